"""Reading a prompt, hybrid against full attention and against the peers; with new tokens, from end to end."""

from collections.abc import Callable
from functools import partial

from rnope.bench import cost, limits, llama_peer, ours, transformers_peer
from rnope.bench.kit import Kit
from rnope.bench.plan import Plan
from rnope.bench.timing import Contestant, Entry, Row
from rnope.errors import UserError
from rnope.units import size

SHARES = {
    "hybrid": 0.3, "full": 0.25, "sdpa hybrid": 0.05, "sdpa full": 0.15, "flex_attention hybrid": 0.15, "llama": 0.06,
}  # fmt: skip
"""Shares of the matmul rate, guessed, for estimates."""
COMPILE_SECONDS = 40.0
LLAMA_WEIGHTS = {"fp32": ("f32",), "bf16": ("f16", "q8_0"), "fp16": ("f16", "q8_0")}


Make = Callable[[], Contestant]


def rows(plan: Plan, kit: Kit) -> list[Row]:
    """A row for each number of threads, dtype and length. Where full attention does not fit, the longest that does is added."""
    found = []
    for threads in plan.threads:
        for dtype in plan.dtypes:
            for tokens, new_tokens in _pairs(plan, kit, dtype):
                found.append(_row(plan, kit, tokens, new_tokens, dtype, threads))
    return found


def _pairs(plan: Plan, kit: Kit, dtype: str) -> list[tuple[int, int]]:
    pairs = plan.pairs()
    if "full" not in plan.peers:
        return pairs
    full = kit.models.configs["full"]
    lacking = [(n, new) for n, new in pairs if kit.lacking_bytes(full, n + new, dtype)]
    if lacking:
        tokens, new = lacking[0]
        longest = kit.longest(full, dtype, tokens - new)
        if longest > max((n for n, _ in pairs if n < tokens), default=0):
            pairs = sorted([*pairs, (longest, new)])
    return pairs


def _row(plan: Plan, kit: Kit, tokens: int, new_tokens: int, dtype: str, threads: int) -> Row:
    def entry(who: str, how: str, layout: str, share: str, make: Make) -> Entry:
        flops = cost.prefill(kit.models.configs[layout], tokens, new_tokens)
        took = kit.expected(flops, dtype, threads, SHARES[share])
        tries = 5 if who == "llama.cpp" else 1  # So many settings it tries out.
        pilot = llama_peer.PILOT_TOKENS if who == "llama.cpp" else ours.WARM_TOKENS
        warm = COMPILE_SECONDS + took if "flex" in how else tries * took * min(1.0, pilot / tokens)
        return Entry(who=who, how=how, layout=layout, dtype=dtype, make=make, flops=flops,
                     expected_seconds=took, warm_seconds=warm)  # fmt: skip

    entries: list[Entry] = []
    notes: list[str] = []
    for layout in ("hybrid", "full") if "full" in plan.peers else ("hybrid",):
        lacking = kit.lacking_bytes(kit.models.configs[layout], tokens + new_tokens, dtype)
        make: Make = partial(_ours, kit, layout, dtype, tokens, new_tokens)
        if lacking:
            notes.append(f"{layout} attention does not fit: {lacking:,} bytes ({size(lacking)}) are missing")
            make = partial(_refuse, notes[-1])
        entries.append(entry("ours", "", layout, layout, make))
    if "transformers" in plan.peers and tokens <= plan.transformers_tokens:
        for layout in ("hybrid", "full"):
            make = partial(_transformers, kit, layout, dtype, tokens, new_tokens, "sdpa")
            entries.append(entry("transformers", "sdpa", layout, f"sdpa {layout}", make))
    if "flex" in plan.peers and tokens <= plan.transformers_tokens and not new_tokens:
        how = "flex_attention"
        make = partial(_transformers, kit, "hybrid", dtype, tokens, 0, how)
        entries.append(entry("transformers", how, "hybrid", f"{how} hybrid", make))
    if "llama" in plan.peers and tokens <= plan.llama_tokens and not new_tokens and plan.device == "cpu":
        for weights in LLAMA_WEIGHTS[dtype]:
            make = partial(_llama, kit, weights, dtype, threads, tokens)
            entries.append(entry("llama.cpp", weights, "hybrid", "llama", make))
    entries += limits.matmuls(plan, dtype, kit.rate(dtype, threads))
    return Row(tokens=tokens, new_tokens=new_tokens, threads=threads, dtype=dtype, entries=entries, notes=notes)


def _ours(kit: Kit, layout: str, dtype: str, tokens: int, new_tokens: int) -> Contestant:
    return ours.Prefill(kit.models.get(layout, dtype), kit.models.ids(tokens), kit.plan, new_tokens)


def _transformers(kit: Kit, layout: str, dtype: str, tokens: int, new_tokens: int, attention: str) -> Contestant:
    return transformers_peer.Prefill(kit.models.get(layout, dtype), kit.models.ids(tokens), attention, new_tokens)


def _llama(kit: Kit, weights: str, dtype: str, threads: int, tokens: int) -> Contestant:
    path = kit.files.get(kit.models.get("hybrid", dtype), weights, f"hybrid-{dtype}")
    return llama_peer.Prefill(path, threads, kit.models.ids(tokens))


def _refuse(text: str) -> Contestant:
    raise UserError(text)
