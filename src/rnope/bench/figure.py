"""The figure of a results file: latency and cache against context length, hybrid and full, with the paper's points.

It reads the file alone. Peers stay faint: the figure is about the layout, the table about them.
"""

from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

from rnope.bench import train_figure
from rnope.bench.axes import (
    COLOURS,
    DASHES,
    FAINT,
    NAMES,
    Curve,
    byte_axis,
    drawn_rows,
    legend,
    our_layouts,
    ticks,
    token_axis,
)  # fmt: skip
from rnope.bench.lines import Data, measured, time, took
from rnope.report import draw as style

PAPER = {132_000: 44, 990_000: 70}
"""Context tokens -> per cent of latency saved (section 5.3, 8B, end to end)."""
BOUND = 75
"""Per cent of cache and latency that three windowed layers in four can save at most (section 5.3)."""


def draw(data: Data) -> bytes | None:
    """PNG bytes; None where nothing depends on a length."""
    what = data["plan"]["what"]
    rows = drawn_rows(data)
    if what == "attention" or not rows:
        return None
    if what == "train":
        return train_figure.draw(data, rows)
    with style.look():
        if what == "memory":
            figure, (cache,) = style.new(style.WIDTH * 0.75, 5.0)
            _held(cache, data, rows)
            return style.png(figure)
        figure, (latency, saved, cache) = style.new(13.5, 5.0, 1, 3)
        _latency(latency, data, rows)
        _saved(saved, data)
        _cache(cache, data, rows)
        return style.png(figure)


def _latency(axis: Any, data: Data, rows: list[Data]) -> None:
    peers: dict[tuple[str, str, str], Curve] = {}
    for row in rows:
        for each in measured(row).values():
            if each["who"] not in ("ours", "limit"):
                # The fastest of a peer's ways: caches, flash attention on and off.
                curve = peers.setdefault((each["who"], each["how"].split()[0], each["layout"]), {})
                curve[row["tokens"]] = min(took(each), curve.get(row["tokens"], took(each)))
    for (names, curve), dashes in zip(peers.items(), DASHES * len(peers), strict=False):
        axis.plot(list(curve), list(curve.values()), color=FAINT.get(names[0], "#9a9a9a"), linewidth=1.1, marker=".",
                  linestyle=dashes, label=" ".join(names))  # fmt: skip
    for layout in ("full", "hybrid"):
        curve = {row["tokens"]: took(own) for row in rows if (own := our_layouts(row).get(layout)) is not None}
        if curve:
            colour, marker = COLOURS[layout]
            axis.plot(
                list(curve),
                list(curve.values()),
                color=colour,
                marker=marker,
                linewidth=2.4,
                label=f"ours, {NAMES[layout]}",
            )
    token_axis(axis, [row["tokens"] for row in rows])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: time(value).replace(".0 ", " ").replace(".00 ", " ")))
    axis.yaxis.set_minor_locator(NullLocator())
    ticks(axis)
    row, what = rows[0], data["plan"]["what"]
    ends = any(row["new_tokens"] for row in rows)
    dtype = f", {row['dtype']}" if row["dtype"] else ""
    where = data["machine"].get("gpu") or f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    title = "time of a token" if what == "decode" else "latency, end to end" if ends else "time of a prefill"
    axis.set_title(f"{title} ({data['model']['size']}{dtype}, {where})")
    legend(axis)


def _saved(axis: Any, data: Data) -> None:
    """What the hybrid saves of full attention's time, in per cent."""
    curves: dict[tuple[int, str], Curve] = {}
    ideal: Curve = {}
    for row in sorted(data["rows"], key=lambda row: row["tokens"]):
        both = our_layouts(row)
        if len(both) < 2:
            continue
        ratio = took(both["hybrid"]) / took(both["full"])
        curves.setdefault((row["threads"], row["dtype"]), {})[row["tokens"]] = 100 * (1 - ratio)
        work = "bytes" if data["plan"]["what"] == "decode" else "flops"
        ideal[row["tokens"]] = 100 * (1 - both["hybrid"][work] / both["full"][work])
    colour, marker = COLOURS["hybrid"]
    for (threads, dtype), curve in curves.items():
        label = f"measured, {f'{dtype}, ' if dtype else ''}{threads} thread{'s' * (threads > 1)}"
        dashes = "-" if threads == max(n for n, _ in curves) else "--"
        axis.plot(
            list(curve), list(curve.values()), color=colour, marker=marker, linewidth=2.2, linestyle=dashes, label=label
        )
    if ideal:
        work = "bytes" if data["plan"]["what"] == "decode" else "FLOPs"
        axis.plot(list(ideal), list(ideal.values()), color=colour, linewidth=1.1, linestyle=":", label=f"{work} saved")
    lengths = sorted({n for curve in curves.values() for n in curve})
    axis.plot(
        list(PAPER),
        list(PAPER.values()),
        color="#222222",
        marker="*",
        markersize=11,
        linestyle="none",
        label="the paper (8B, end to end)",
    )
    axis.axhline(BOUND, color=style.BAR, linestyle="--", linewidth=1)
    axis.annotate("bound of the layout: 75 %", (0.02, BOUND), xycoords=("axes fraction", "data"), xytext=(0, 3),
                  textcoords="offset points", fontsize=8, color="#555555")  # fmt: skip
    token_axis(axis, [*lengths, *PAPER])
    low = min([0.0, *(value for curve in curves.values() for value in curve.values())])
    axis.set_ylim(max(-60, low * 1.15), 85)
    axis.set_ylabel("per cent of full attention's time saved")
    axis.set_title("what the hybrid saves")
    legend(axis)


def _cache(axis: Any, data: Data, rows: list[Data]) -> None:
    """Formula as lines, what was held as markers."""
    model = data["model"]
    itemsize = 4 if rows[0]["dtype"] == "fp32" else 2
    token = 2 * model["kv_heads"] * model["head_size"] * itemsize
    windowed = sum(count for kind, count in model["kinds"].items() if "window" in kind)
    seen = sorted({row["tokens"] for row in rows} | {2048, 131_072, 990_000})
    every = [seen[0] * (seen[-1] / seen[0]) ** (i / 60) for i in range(61)]
    curves = {
        "full": [token * model["layers"] * n for n in every],
        "hybrid": [token * ((model["layers"] - windowed) * n + windowed * min(n, model["window"])) for n in every],
    }
    for layout, values in curves.items():
        colour, _ = COLOURS[layout]
        axis.plot(every, values, color=colour, linewidth=2.2, label=f"{NAMES[layout]}, formula")
    share = 1 - BOUND / 100
    axis.plot(
        every,
        [share * x for x in curves["full"]],
        color=style.BAR,
        linestyle="--",
        linewidth=1,
        label="bound of the layout: −75 %",
    )
    for layout in ("full", "hybrid"):
        held = {row["tokens"]: each["facts"].get("held_bytes") or each["facts"].get("cache_bytes") for row in rows
                for each in measured(row, who="ours", layout=layout).values()
                if data["plan"]["what"] == "prefill"}  # fmt: skip
        held = {n: value for n, value in held.items() if value}
        colour, marker = COLOURS[layout]
        if held:
            axis.plot(
                list(held),
                list(held.values()),
                color=colour,
                marker=marker,
                linestyle="none",
                markersize=6,
                label=f"{NAMES[layout]}, held",
            )
    token_axis(axis, [n for n in seen if n != 990_000] + [990_000])
    byte_axis(axis)
    axis.set_title(f"keys and values of one sequence, {itemsize} bytes a value")
    legend(axis)


def _held(axis: Any, data: Data, rows: list[Data]) -> None:
    """What each cache holds right after a prefill."""
    curves: dict[str, Curve] = {}
    kinds: dict[str, Data] = {}
    for row in rows:
        for name, each in measured(row).items():
            if "moments" in each["facts"]:
                curves.setdefault(name, {})[row["tokens"]] = each["facts"]["moments"]["after prefill"]["held_bytes"]
                kinds[name] = each
    dashes = iter(DASHES * len(curves))
    for name, curve in curves.items():
        ours = kinds[name]["who"] == "ours"
        colour, marker = COLOURS[kinds[name]["layout"]] if ours else ("#9a9a9a", ".")
        axis.plot(list(curve), list(curve.values()), color=colour, marker=marker, linewidth=2.4 if ours else 1.3,
                  linestyle="-" if ours else next(dashes), label=name, zorder=3 if ours else 2)  # fmt: skip
    formula = {
        row["tokens"]: each["bytes"]
        for row in rows
        for each in measured(row, who="ours", layout="hybrid").values()
        if each["bytes"]
    }
    axis.plot(
        list(formula),
        list(formula.values()),
        color="#222222",
        linestyle="none",
        marker="_",
        markersize=14,
        label="formula, hybrid",
        zorder=4,
    )
    token_axis(axis, sorted({n for curve in curves.values() for n in curve}))
    byte_axis(axis)
    axis.set_title(f"cache held right after a prefill ({rows[0]['dtype']})")
    legend(axis)
