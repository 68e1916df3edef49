"""What was measured of attention, in numbers: every arm, layer kind and length, seeds folded."""

from collections.abc import Sequence

from rnope.report import paper, who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.gate import Gate
from rnope.report.masses import by_kind
from rnope.report.tables import arm_cell, seeds_said
from rnope.results import SEGMENTS, MassRow

# Field of a row, head of its column, decimals.
_MEASURES = (
    ("row_entropy", Cell("entropy of rows", "bits"), 2),
    ("mean_entropy", Cell("entropy of their mean", "bits"), 2),
    ("sink", Cell("sink", "first token"), 4),
    ("effective_span", Cell("effective span", "tokens that hold 90 %"), 0),
    ("retrieval", Cell("retrieval", "best head"), 3),
)


def mass_cell(rows: Sequence[MassRow], segment: str, *, brief: bool = False) -> Cell:
    """Mass of one segment over the seeds of `rows`, with the 95 % interval over samples and the range of seeds.

    Args:
        brief: of several seeds their range alone, of one the interval; the table says so.
    """
    found = [row for row in rows if row.mass.get(segment) is not None]
    if not found:
        return Cell("", "out of reach" if rows else "")
    values = [row.mass[segment] or 0.0 for row in found]
    edges = [edge for row in found for edge in (row.low.get(segment), row.high.get(segment)) if edge is not None]
    over, seeds = words.bounds(edges) if edges else "", words.bounds(values) if len(values) > 1 else ""
    small = (
        seeds or over
        if brief
        else "\n".join(f"{what} {said}" for what, said in (("samples", over), ("seeds", seeds)) if said)
    )
    return Cell(words.share(sum(values) / len(values)), small)


def value_cell(rows: Sequence[MassRow], name: str, digits: int) -> Cell:
    """Another measure: of one seed with the 95 % interval over samples, of several the mean with their range."""
    values = [value for row in rows if (value := getattr(row, name)) is not None]
    if not values:
        return Cell("")
    edges = [edge for row in rows for edge in (row.low.get(name), row.high.get(name)) if edge is not None]
    small = words.bounds(values if len(values) > 1 else edges, digits) if len(values) > 1 or edges else ""
    return Cell(f"{sum(values) / len(values):.{digits}f}", small)


def tables(gate: Gate) -> list[Table]:
    """A table per group of arms; measures that the file lacks have no column."""
    found = by_kind(gate)
    there = [one for one in _MEASURES if any(getattr(row, one[0]) is not None for row in gate.attention())]
    made = []
    for group in who.groups(gate.results):
        rows = [
            _line(gate, arm, kind, length, seeds, there)
            for (arm, kind), lengths in found.items()
            if arm in group.arms
            for length, seeds in lengths.items()
        ]
        if rows:
            head: list[Cell | str] = ["arm", "layers", "context, tokens", *SEGMENTS, "needle against uniform"]
            head += ["needle, best head", *(cell for _, cell, _ in there), "needle, paper"]
            title = who.titled("Attention in numbers", group)
            made.append(table(title, head, rows, _NOTE, folded=True))
    return made


_NOTE = (
    "Mass of the question's and completion's rows: of one seed with the 95 % interval over samples, of several the mean "
    "with their range. Needle against uniform: how many times its share of the context. Blank where a window cannot "
    "reach. Retrieval: the share of samples in which the best head's top key is the value itself; a head that answers "
    "from the fact's key, to which a lower layer carried the value, has 0. In the paper, lengths stand at the same "
    "multiples of its pretraining length; it prints no masses for RNope-SWA, whose nearest model is RNoPE-10k-swa."
)


def uniform(gate: Gate) -> Table | None:
    """What every segment would get if all tokens of a context got the same."""
    found: dict[int, list[MassRow]] = {}
    for row in gate.attention():
        found.setdefault(row.context_tokens, []).append(row)
    rows = [
        [words.tokens(n), *(words.share(sum(r.uniform.get(s, 0.0) for r in same) / len(same)) for s in SEGMENTS)]
        for n, same in sorted(found.items())
    ]
    note = "The share of the context's tokens: what a segment would get of attention that prefers none."
    return table("Uniform shares", ["context, tokens", *SEGMENTS], rows, note) if rows else None


def _line(
    gate: Gate, arm: str, kind: str, length: int, rows: list[MassRow], there: list[tuple[str, Cell, int]]
) -> list[Cell | str]:
    trained = max(gate.trained[arm, row.seed] for row in rows)
    pairs = [(row.mass.get("needle"), row.uniform.get("needle")) for row in rows]
    folds = [needle / uniform for needle, uniform in pairs if needle is not None and uniform]
    heads = [row.best_head_needle for row in rows if row.mass.get("needle") is not None]
    name = who.nearest(gate.results, arm)
    at = {who.here(gate.results, int(label[:-1]) * 1024): label for label in paper.LENGTHS}.get(length)
    theirs = paper.masses(name, kind, at) if name and at else None
    return [
        arm_cell(gate, arm, f"{seeds_said(row.seed for row in rows)}; n {rows[0].n}"),
        kind,
        Cell(words.tokens(length), words.times(length / trained)),
        *(mass_cell(rows, segment, brief=True) for segment in SEGMENTS),
        f"{sum(folds) / len(folds):,.1f}×" if folds else "",
        Cell(f"{sum(heads) / len(heads):.3f}", words.bounds(heads, 3) if len(heads) > 1 else "") if heads else "",
        *(value_cell(rows, measure, digits) for measure, _, digits in there),
        Cell(f"{theirs['needle']:.4f}", f"{name}, {at}") if theirs else "",
    ]
