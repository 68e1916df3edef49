"""What the figures of all benchmarks share: which rows and contestants are drawn, how, and the axes of tokens and bytes."""

from typing import Any

from matplotlib.ticker import FuncFormatter

from rnope.bench.lines import Data, fastest, measured
from rnope.report import draw as style
from rnope.units import size

Curve = dict[int, float]
COLOURS = {layout: style.styles([arm])[arm] for layout, arm in (("hybrid", "rnope-swa"), ("full", "rope"))}
NAMES = {"hybrid": "hybrid", "full": "full attention"}
FAINT = {"transformers": "#9a9a9a", "llama.cpp": "#b59a6d"}
DASHES: list[Any] = ["-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (6, 3)), (0, (2, 1))]


def drawn_rows(data: Data) -> list[Data]:
    """The rows of one setting (threads, dtype): of the one with most lengths, then most threads, shortest first."""
    settings: dict[tuple[int, str], list[Data]] = {}
    for row in data["rows"]:
        if measured(row, who="ours"):
            settings.setdefault((row["threads"], row["dtype"]), []).append(row)
    best = max(settings, key=lambda key: (len(settings[key]), key), default=None)
    return sorted(settings[best], key=lambda row: row["tokens"]) if best else []


def our_layouts(row: Data) -> dict[str, Data]:
    """Layout -> our fastest contestant; where both layouts ran, two that ran alike."""
    hybrid, full = ({each["how"]: each for each in measured(row, who="ours", layout=x).values()} for x in NAMES)
    alike = hybrid.keys() & full.keys()
    found = {}
    for layout, entries in (("hybrid", hybrid), ("full", full)):
        best = fastest({how: each for how, each in entries.items() if how in alike or not alike})
        if best is not None:
            found[layout] = entries[best]
    if alike and found["hybrid"]["how"] != found["full"]["how"]:
        found["hybrid"] = hybrid[found["full"]["how"]]
    return found


def legend(axis: Any) -> None:
    """Below the axis, where no line can be."""
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)


def token_axis(axis: Any, lengths: list[int]) -> None:
    shown: list[int] = []
    for n in sorted(set(lengths)):
        if not shown or n / shown[-1] > 1.3:
            shown.append(n)
    axis.set_xscale("log", base=2)
    axis.set_xticks(shown, [_short(n) for n in shown])
    axis.minorticks_off()
    axis.set_xlabel("context length, tokens")


def _short(tokens: int) -> str:
    for base in (1024, 1000):
        if tokens % base == 0:
            return f"{tokens // base}k"
    return f"{tokens:,}"


def byte_axis(axis: Any) -> None:
    axis.set_yscale("log", base=2)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))


def ticks(axis: Any) -> None:
    """1, 2, 5 in each decade where there are few decades."""
    low, high = axis.get_ylim()
    if high / low < 300:
        ticks = [m * 10.0**e for e in range(-6, 6) for m in (1, 2, 5)]
        axis.set_yticks([t for t in ticks if low <= t <= high])
