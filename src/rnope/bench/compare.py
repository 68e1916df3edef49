"""Which contestants are compared, and the targets that were set for them (on a CPU for size 100m, on a GPU for 8b)."""

from collections.abc import Callable

from rnope.bench.lines import Data, Line, fastest, measured, part, rate, time, took, where
from rnope.generate.cache import BLOCK_TOKENS
from rnope.units import size


def lines(data: Data) -> list[Line]:
    """Every comparison that a results file allows; ratios are of medians of one row, nothing else."""
    found: list[Line] = []
    for row in sorted(data["rows"], key=lambda row: (row["threads"], row["dtype"], row["tokens"])):
        found += BY_KIND[data["plan"]["what"]](data, row)
    return found


def _small(data: Data) -> bool:
    """Whether the targets of the CPU table were set for this model."""
    plan = data["plan"]
    same = (plan["variant"], plan["size"], plan["device"]) == ("rnope-swa", "100m", "cpu")
    return same and data["model"]["window"] == 512 and not plan.get("layers")


def _large(data: Data) -> bool:
    """Whether the targets of the GPU table were."""
    plan = data["plan"]
    return bool((plan["variant"], plan["size"]) == ("rnope-swa", "8b") and plan["device"] != "cpu")


PREFILL_LEAST = {
    (8192, "transformers sdpa hybrid"): 2.6,
    (8192, "transformers flex_attention hybrid"): 1.4,
    (8192, "transformers sdpa full"): 1.5,
    (8192, "llama.cpp"): 2.0,
    (16384, "transformers sdpa hybrid"): 3.7,
}
RATIO_MOST = {2048: 0.95, 8192: 0.75, 16384: 0.6, 32768: 0.5}


def _prefill(data: Data, row: Data) -> list[Line]:
    ours = measured(row, who="ours")
    hybrid, full = ours.get("ours hybrid"), ours.get("ours full")
    what, found = f"{'latency' if row['new_tokens'] else 'prefill'}, {where(row)}", []
    if hybrid is not None:
        own = time(took(hybrid))
        if full is not None:
            target = RATIO_MOST.get(row["tokens"]) if _small(data) and row["dtype"] == "bf16" else None
            if _large(data) and row["new_tokens"]:
                target = 0.5 if row["tokens"] < 500_000 else 0.3
            peer = f"{time(took(full))} with full attention (FLOP ratio {hybrid['flops'] / full['flops']:.2f})"
            ratio = took(hybrid) / took(full)
            found.append(
                Line(figure=f"{what}: time ratio", ours=own, peer=peer, ratio=ratio, unit="", target=target, most=True)
            )
        peers = {name: each for name, each in measured(row).items() if each["who"] not in ("ours", "limit")}
        best = fastest({name: each for name, each in peers.items() if each["who"] == "llama.cpp"})
        for name, each in peers.items():
            key = "llama.cpp" if name == best else name
            target = PREFILL_LEAST.get((row["tokens"], key)) if _small(data) and row["dtype"] == "bf16" else None
            compiled = (each["warm_up_seconds"] or 0) - took(each) if "flex" in name else 0.0
            extra = f", and {compiled:.0f} s to compile" if compiled > 0 else ""
            ratio = took(each) / took(hybrid)
            found.append(
                Line(figure=what, ours=own, peer=f"{name} {time(took(each))}{extra}", ratio=ratio, target=target)
            )
    limit = rate(row)
    for name, each in ours.items():
        if limit is None:
            break
        found.append(_share(f"{what}: {name}", each, limit))
        found += _layers(data, row, name, each, limit)
    return found


def _share(figure: str, entry: Data, limit: float, target: float | None = None) -> Line:
    """The part of the matmul rate that useful work reaches."""
    reached = entry["flops"] / took(entry)
    peer = f"{reached / 1e9:,.0f} of {limit / 1e9:,.0f} GFLOP/s; at the limit {time(entry['flops'] / limit)}"
    return Line(
        figure=f"{figure}, share of the matmul rate", ours=time(took(entry)), peer=peer, ratio=reached / limit,
        unit="%", target=target,
    )  # fmt: skip


def _layers(data: Data, row: Data, name: str, entry: Data, limit: float) -> list[Line]:
    """Time and rate of the layers of each kind."""
    found, whole = [], part(entry, "prefill")
    for kind, flops in entry["facts"].get("layer_flops", {}).items():
        each = part(entry, "layers", kind)
        target = 0.7 if _large(data) and "window" not in kind else None
        found.append(
            Line(
                figure=f"{where(row)}: {name}, {kind} layers, share of the matmul rate",
                ours=f"{time(each)}, {100 * each / whole:.0f} % of the prefill",
                peer=f"{flops / each / 1e9:,.0f} of {limit / 1e9:,.0f} GFLOP/s",
                ratio=flops / each / limit, unit="%", target=target,
            )
        )  # fmt: skip
    return found


def _decode(data: Data, row: Data) -> list[Line]:
    own, theirs = measured(row, who="ours", layout="hybrid"), measured(row, who="transformers")
    what, found = f"a token after {where(row)}", []

    def against(figure: str, mine: str | None, other: str | None, target: float | None = None) -> None:
        if mine is not None and other is not None:
            a, b = (took(row["contestants"][name]) for name in (mine, other))
            text, peer = f"{mine} {time(a)}", f"{other} {time(b)}"
            found.append(Line(figure=figure, ours=text, peer=peer, ratio=b / a, target=target))

    target = 2.0 if _small(data) and row["tokens"] in (8192, 32768) else None
    against(f"{what}: the fastest of each", fastest(own), fastest(theirs), target)
    for dtype in dict.fromkeys(each["dtype"] for each in own.values()):
        same = {name: each for name, each in own.items() if each["dtype"] == dtype and "int8" not in name}
        peers = {name: each for name, each in theirs.items() if each["dtype"] == dtype}
        against(f"{what}: {dtype}", fastest(same), fastest(peers), target)
    halves = {name: each for name, each in own.items() if each["dtype"] != "fp32"}
    target = 0.65 if _small(data) and row["tokens"] == 8192 else None
    for weights, mine in (("f16", halves), ("q8_0", halves), ("f32", measured(row, who="ours", dtype="fp32"))):
        peers = {name: each for name, each in measured(row, who="llama.cpp").items() if name.split()[1] == weights}
        against(what, fastest(mine), fastest(peers), None if weights == "f32" else target)
    for name, each in measured(row, who="ours", layout="full").items():
        twin = own.get(name.removesuffix("full") + "hybrid")
        if twin is not None:
            peer = f"{time(took(each))} with full attention (byte ratio {twin['bytes'] / each['bytes']:.2f})"
            ratio, figure = took(twin) / took(each), f"{what}: time ratio, {each['how']}"
            found.append(Line(figure=figure, ours=time(took(twin)), peer=peer, ratio=ratio, unit=""))
    bandwidth = rate(row, "bytes")
    for name, each in measured(row).items():
        if bandwidth is not None and each["who"] != "limit":
            reached = each["bytes"] / took(each)
            peer = f"{size(each['bytes'])}: {reached / 1e9:,.1f} of {bandwidth / 1e9:,.1f} GB/s"
            figure, ratio = f"{what}: {name}, share of the bandwidth", reached / bandwidth
            found.append(Line(figure=figure, ours=time(took(each)), peer=peer, ratio=ratio, unit="%"))
    return found


def _attention(data: Data, row: Data) -> list[Line]:
    limit, found = rate(row), []
    aim = _small(data) and row["tokens"] == 8192 and row["dtype"] == "bf16"
    for name, each in measured(row, who="ours").items():
        both = "backward" in name
        way = "forward and backward" if both else "the last chunk" if "chunk" in name else "forward"
        what = f"{each['layout']} attention, {way}, {where(row)}"
        if limit:
            target = (0.28 if both else 0.3) if aim and each["layout"] == "window" else None
            found.append(_share(what, each, limit, target))
        for other, theirs in measured(row, who="torch", layout=each["layout"]).items():
            if ("backward" in other) == both:
                target = 1.4 if aim and "flex" in other and not both else None
                if _large(data) and each["layout"] == "full":
                    target = 0.95
                # By rates, since a chunk is less work than all.
                ratio = each["flops"] / took(each) / (theirs["flops"] / took(theirs))
                peer = f"{other} {time(took(theirs))}"
                found.append(Line(figure=what, ours=time(took(each)), peer=peer, ratio=ratio, target=target))
    return found


def _memory(data: Data, row: Data) -> list[Line]:
    found = []
    for name, each in measured(row, who="ours", how="cache").items():
        model = data["model"]
        token = 2 * model["kv_heads"] * model["head_size"] * (4 if row["dtype"] == "fp32" else 2)
        full, held = token * model["layers"] * row["tokens"], each["facts"]["moments"]["after prefill"]["held_bytes"]
        peer = f"{size(full)} with full attention (formula ratio {each['bytes'] / full:.3f})"
        figure = f"cache after prefill, {where(row)}: {name}"
        found.append(Line(figure=figure, ours=f"held {size(held)}", peer=peer, ratio=held / full, unit=""))
    for name, each in measured(row).items():
        for moment, seen in each["facts"].get("moments", {}).items():
            held, formula = seen["held_bytes"], seen["formula_bytes"]
            peer, most = f"formula {size(formula)}", None
            if each["who"] == "ours":
                block = _block_bytes(data, row)
                peer += (
                    f", logical {'equal' if seen['logical_bytes'] == formula else 'DIFFERENT'}, a block {size(block)}"
                )
                most = (formula + block) / formula
            figure = f"cache {moment}, {where(row)}: {name}"
            ratio = held / formula
            found.append(Line(figure=figure, ours=f"held {size(held)}", peer=peer, ratio=ratio, target=most, most=True))
        peak = each["facts"].get("peak")
        if peak:
            parts = {part: peak[f"{part}_bytes"] for part in ("weight", "cache", "chunk")}
            figure = f"peak of a prefill, {where(row)}: {name}{', a thin model' if peak['thin'] else ''}"
            peer = " + ".join(f"{part} {size(count)}" for part, count in parts.items())
            ratio = peak["peak_bytes"] / sum(parts.values())
            own = size(peak["peak_bytes"])
            found.append(Line(figure=figure, ours=own, peer=peer, ratio=ratio, target=1.3, most=True))
    return found


TRAIN_LEAST = {(2048, "fp32"): 1.5, (2048, "bf16"): 1.3, (8192, "fp32"): 2.0, (8192, "bf16"): 2.3}
TRAIN_GIGABYTES_MOST = {(8192, "fp32"): 9.0, (8192, "bf16"): 6.0}
TRAIN_GAIN_LEAST = {65_536: 1.5, 131_072: 2.0}


def _train(data: Data, row: Data) -> list[Line]:
    own, theirs = measured(row, who="ours"), measured(row, who="transformers")
    key, what, found = (row["tokens"], row["dtype"]), f"a training step, {where(row)}", []

    def speed(entry: Data) -> str:
        return f"{row['tokens'] / took(entry):,.0f} tokens/s"

    for name, each in own.items():
        for other, peer in own.items():
            ratio = took(peer) / took(each)
            if each["layout"] == "hybrid" and (peer["layout"], peer["how"]) == ("full", each["how"]):
                target = TRAIN_GAIN_LEAST.get(row["tokens"]) if _large(data) else None
                text = f"{speed(peer)} with full attention (FLOP ratio {peer['flops'] / each['flops']:.2f})"
                found.append(Line(figure=f"{what}: {name}", ours=speed(each), peer=text, ratio=ratio, target=target))
            if each["how"] == "fp8" and peer["how"] == "mixed" and peer["layout"] == each["layout"]:
                text = f"{other} {speed(peer)}"
                found.append(Line(figure=f"{what}: {name}", ours=speed(each), peer=text, ratio=ratio))
        for other, peer in theirs.items():
            if peer["layout"] == each["layout"]:
                aimed = _small(data) and row["threads"] == 1 and name == "ours hybrid"
                found += _against(f"{what}: {name}", key, each, other, peer, aimed=aimed, speed=speed)
    limit = rate(row)
    found += [_share(f"{what}: {name}", each, limit) for name, each in own.items() if limit is not None]
    for name, each in own.items():
        peak, aimed = each["facts"]["memory"]["peak_bytes"], _small(data) and name == "ours hybrid"
        target = TRAIN_GIGABYTES_MOST.get(key) if aimed else None
        found.append(Line(figure=f"peak memory of {what}: {name}", ours=size(peak), ratio=peak / 1e9, unit=" GB",
                          target=target, most=True))  # fmt: skip
    return found


def _against(
    figure: str, key: tuple[int, str], own: Data, name: str, peer: Data, *, aimed: bool, speed: Callable[[Data], str]
) -> list[Line]:
    """Speed, memory and agreement of one of ours with one of theirs."""
    a, b = own["facts"], peer["facts"]
    target = TRAIN_LEAST.get(key) if aimed else None
    bytes_ = [each["memory"]["peak_bytes"] for each in (a, b)]
    agree = [f"loss {x['loss']:.5f}, gradient norm {x['gradient_norm']:.5f}" for x in (a, b)]
    return [
        Line(figure=figure, ours=speed(own), peer=f"{name} {speed(peer)}", ratio=took(peer) / took(own), target=target),
        Line(figure=f"{figure}, peak memory", ours=size(bytes_[0]), peer=f"{name} {size(bytes_[1])}",
             ratio=bytes_[1] / bytes_[0]),
        Line(figure=f"{figure}, the same step", ours=agree[0], peer=f"{name} {agree[1]}"),
    ]  # fmt: skip


def _block_bytes(data: Data, row: Data) -> int:
    """A block of every full layer."""
    model = data["model"]
    full = sum(count for kind, count in model["kinds"].items() if "window" not in kind)
    value = 4 if row["dtype"] == "fp32" else 2
    return int(2 * model["kv_heads"] * model["head_size"] * value * BLOCK_TOKENS * full)


BY_KIND: dict[str, Callable[[Data, Data], list[Line]]] = {
    "prefill": _prefill, "decode": _decode, "attention": _attention, "memory": _memory,
    "train": _train,
}  # fmt: skip
