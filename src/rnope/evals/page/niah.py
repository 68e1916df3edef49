"""Needles: the heat map that people know, scores by length with their controls, and the paper's raw scores beside."""

from collections.abc import Iterator, Sequence

from rnope.evals.page.runs import Part, Run, cell_figure, number
from rnope.evals.results import CellResult, Figure
from rnope.report import draw, paper, words
from rnope.report.blocks import Block, Cell, Picture, Table, Text, table

STANDARD = "standard"
ALONE = "needle-only"
JUDGE = (
    "The score is 10 times the share of the needle's facts that stand in the answer, counted by rule (“rule-10”). The "
    "paper's scores are set beside ours for the direction only: the code that it cites lets a language model judge, by a "
    "rubric from 1 to 10."
)


def part(runs: Sequence[Run]) -> Part:
    """Heat maps side by side, scores by length, controls, and the paper's scores."""
    blocks: list[Block | None] = [Text(JUDGE)]
    data = heat(runs)
    if data is not None:
        blocks.append(Picture(
            name="niah",
            alt="Heat maps of needle score by depth and context length, one per model",
            caption="Score by depth of the needle (0 % is the start of the context) and context length, prompt and answer "
            "together. Grey: not asked. A black line stands after the longest length that the model says it was trained "
            "to, where longer ones were asked.",
        ))  # fmt: skip
    blocks += [_scores(runs), _beside(runs), _paper()]
    means = [(run.name, raw) for run in runs if (raw := raw_mean(run)) is not None]
    said = words.listed([f"{name} {words.score(raw.value)}" for name, raw in means[:4]])
    more = " (and others)" if len(means) > 4 else ""
    headline = f"Needle in a haystack, raw score of 10: {said}{more}." if means else ""
    figures = {} if data is None else {"niah": data}
    return Part(blocks=[block for block in blocks if block is not None], figures=figures, headline=headline)


def _rows(run: Run, row: str) -> Iterator[CellResult]:
    return (cell for cell in run.results.cells if cell.labels.get("row") == row)


def raw_mean(run: Run) -> Figure | None:
    """The mean over all cells of length and depth, as the paper's raw score is."""
    return run.figure("raw_score")


def heat(runs: Sequence[Run]) -> bytes | None:
    """Depth against length, a map for each model that has cells; all on the same axes."""
    maps = {}
    for run in runs:
        cells = {
            (cell.context_tokens, float(cell.labels.get("depth", 0.0))): figure.value
            for cell in _rows(run, STANDARD)
            if (figure := cell_figure(cell, "score")) is not None
        }
        if cells:
            maps[run.name] = (run, cells)
    if not maps:
        return None
    lengths = sorted({length for _, cells in maps.values() for length, _ in cells})
    depths = sorted({depth for _, cells in maps.values() for _, depth in cells})
    across = len(maps) if len(maps) <= 3 else 2 if len(maps) == 4 else 3
    down = -(-len(maps) // across)
    height = down * (0.95 + 0.2 * min(len(depths), 16)) + 0.4
    with draw.look():
        figure, axes = draw.new((6.5, 10.5, 12.5)[across - 1], height, down, across)
        image = None
        for axis, (run, cells) in zip(axes, maps.values(), strict=False):
            grid = [[cells.get((length, depth), float("nan")) for length in lengths] for depth in depths]
            trained = run.results.model.trained_tokens
            beyond = trained is not None and trained < lengths[-1]
            image = draw.heat_map(axis, grid, lengths, depths, trained if beyond else None)
            raw = raw_mean(run)
            between = ": " if len(run.label) <= 22 else "\n"
            score = "" if raw is None else f"{between}raw score {words.score(raw.value)}"
            axis.set_title(f"{run.label}{score}", fontsize=10)
        for axis in axes[len(maps) :]:
            axis.set_visible(False)
        figure.colorbar(image, ax=axes, label="score of 10", shrink=min(0.9, 2 / down), aspect=30, pad=0.01)
        return draw.png(figure)


def _scores(runs: Sequence[Run]) -> Table | None:
    found = sorted({cell.context_tokens for run in runs for cell in _rows(run, STANDARD)})
    if not found:
        return None
    rows = [
        [_named(run), number(raw_mean(run), of=10), *(_score(run, length) for length in found)]
        for run in runs
        if any(_rows(run, STANDARD))
    ]
    note = "Score of 10, then its 95 % interval and the number of answers. The raw score is the mean over all cells."
    if any((run.results.model.trained_tokens or found[-1]) < found[-1] for run in runs):
        note += " Lengths beyond the trained one are extrapolation."
    return table("Needles found, by context length", ["model", "raw score", *map(words.tokens, found)], rows, note)


def _score(run: Run, length: int) -> Cell:
    """The mean over depths, and how many of them there are if some are missing."""
    every = {cell.labels["depth"] for cell in _rows(run, STANDARD)}
    here = {cell.labels["depth"] for cell in _rows(run, STANDARD) if cell.context_tokens == length}
    more = "" if here == every else f"{len(here)} of {len(every)} depths"
    return number(run.figure("score", row=STANDARD, context_tokens=length), of=10, more=more)


def _named(run: Run) -> Cell:
    trained = run.results.model.trained_tokens
    return Cell(run.name, "" if trained is None else f"trained to {words.tokens(trained)}", colour=run.colour)


BESIDE = (
    "Exact: the share of answers with all facts and nothing else. No needle: the same prompts without it, whose score must be "
    "near 0. Needle alone: without a haystack, where it must be near 10."
)
REPEATED = " Haystack: how often its texts are gone through; above 1 they repeat."


def _beside(runs: Sequence[Run]) -> Table | None:
    """Exact answers, controls and repeats of the haystack, by length; the needle alone has no length."""
    found = sorted({c.context_tokens for run in runs for c in run.results.cells if c.labels.get("row") != ALONE})
    lines: dict[str, list[list[Cell]]] = {}
    for run in runs:
        repeats = {cell.context_tokens: cell.facts.get("haystack_repeats", 1.0) for cell in _rows(run, STANDARD)}
        often = max(repeats.values(), default=1.0) > 1
        for what, alone, cells in (
            ("exact", Cell(""), [number(_of(run, "exact", STANDARD, n)) for n in found]),
            ("no needle", Cell(""), [number(_of(run, "score", "no-needle", n)) for n in found]),
            ("needle alone", number(run.figure("score", row=ALONE)), [Cell("")] * len(found)),
            ("haystack", Cell(""), [Cell(f"{repeats[n]:.2f}×" if often and n in repeats else "") for n in found]),
        ):
            if any(cell.text for cell in [alone, *cells]):
                lines.setdefault(what, []).append([Cell(what), Cell(run.name, colour=run.colour), alone, *cells])
    rows = [row for same in lines.values() for row in same]
    head = ["", "model", "any length", *map(words.tokens, found)]
    note = BESIDE + (REPEATED if "haystack" in lines else "")
    return table("Beside the score: exact answers and controls", head, rows, note) if rows else None


def _of(run: Run, metric: str, row: str, length: int) -> Figure | None:
    return run.figure(metric, row=row, context_tokens=length)


def _paper() -> Table:
    rows = [[f"paper: {name}", *by_length.values()] for name, by_length in paper.RAW_SCORES.items()]
    note = "Figures 1 and 2: models of 8 billion parameters trained to 128k; another judge, so not comparable with rule-10."
    return table("The paper's raw scores", ["model", "up to 128k", "up to 256k"], rows, note)
