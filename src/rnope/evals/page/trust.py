"""What the numbers rest on: which prompts every cell asked, what failed or was cut, and how to score again."""

from collections.abc import Sequence

from rnope.evals.page.runs import Part, Run, short
from rnope.evals.results import CellResult
from rnope.report import words
from rnope.report.blocks import Block, Cell, Items, Table, Text, table


def part(runs: Sequence[Run]) -> Part:
    """Counts by model and suite, then cell by cell."""
    blocks: list[Block] = [_counts(runs)]
    for suite in dict.fromkeys(run.results.suite for run in runs):
        own = [run for run in runs if run.results.suite == suite and run.results.cells]
        if own:
            blocks.append(_cells(suite, own))
    notes = (
        "Every answer is kept: a file for each cell, a line for each sample, with the digest of its prompt's token ids, "
        "in the folder named above.",
        "`rnope eval report OUT` scores these files again and writes this page; no model is needed.",
        "An interval is the 95 % percentile bootstrap over samples. Where all samples agree it has no width: read it as a "
        "floor.",
        "Samples without an answer (errors) are in no figure; the same command asks them again.",
        "An answer is cut when it used up its new tokens before the model ended it; a prompt is cut (standard "
        "benchmarks only) when it lost its beginning, being longer than the model's context.",
    )
    blocks += [Text("How to check it:"), Items(notes)]
    return Part(blocks=blocks)


def _counts(runs: Sequence[Run]) -> Table:
    rows: list[list[Cell | str]] = []
    for run in runs:
        cells = run.results.cells
        rows.append([
            run.cell,
            run.results.suite,
            f"{sum(cell.samples for cell in cells):,}",
            f"{sum(cell.errors for cell in cells):,}",
            f"{sum(cell.answers_cut for cell in cells):,}",
            f"{sum(map(prompts_cut, cells)):,}",
            same_prompts(run, runs),
            words.listed([str(token) for token in run.results.model.begin_ids]) or "none",
            f"{run.place}/predictions",
        ])  # fmt: skip
    head = [
        "model",
        "suite",
        "samples",
        "errors",
        "answers cut",
        "prompts cut",
        "prompts",
        "begin ids",
        "answers, under OUT",
    ]
    return table("Answers by model and suite", head, rows)


def same_prompts(run: Run, runs: Sequence[Run]) -> str:
    """Whether `run` asked the same token ids as the first model of its suite, over the cells that both have."""
    first = next(other for other in runs if other.results.suite == run.results.suite)
    if first is run:
        return "" if sum(other.results.suite == run.results.suite for other in runs) == 1 else "first"
    theirs = {(cell.name, cell.samples): cell.prompts_sha256 for cell in first.results.cells}
    ours = {(cell.name, cell.samples): cell.prompts_sha256 for cell in run.results.cells}
    both = theirs.keys() & ours.keys()
    alike = sum(theirs[name] == ours[name] for name in both)
    if not both:
        return f"no cell in common with {first.name}"
    return f"as {first.name}" if alike == len(both) else f"{len(both) - alike} of {len(both)} cells unlike {first.name}"


def _cells(suite: str, runs: Sequence[Run]) -> Table:
    """A line for each cell: the digest of its prompts, then samples, errors and cuts of each model."""
    found: dict[str, dict[str, CellResult]] = {}
    for run in runs:
        for cell in run.results.cells:
            found.setdefault(cell.name, {})[run.name] = cell
    rows: list[list[Cell | str]] = []
    for name, cells in sorted(
        found.items(), key=lambda item: (min(c.context_tokens for c in item[1].values()), item[0])
    ):
        digests = list(dict.fromkeys(short(cell.prompts_sha256) for cell in cells.values()))
        mean = list(dict.fromkeys(f"{cell.prompt_tokens:,.0f}" for cell in cells.values()))
        rows.append([
            name,
            Cell(digests[0], "\n".join(digests[1:])),
            " / ".join(mean),
            *(_asked(cells.get(run.name)) for run in runs),
        ])  # fmt: skip
    head = [Cell("cell"), Cell("prompts"), Cell("prompt tokens"), *(run.cell for run in runs)]
    note = (
        "Digest of the prompts' token ids (more than one where models were asked different prompts), mean prompt tokens, "
        "and each model's samples."
    )
    return table(f"Cells of {suite}", head, rows, note, folded=True)


def prompts_cut(cell: CellResult) -> int:
    """Samples whose prompt lost its beginning, since it was longer than the model's context."""
    return round(cell.facts.get("cut", 0.0) * cell.samples)


def _asked(cell: CellResult | None) -> Cell:
    if cell is None:
        return Cell("")
    counts = ((cell.errors, "errors"), (cell.answers_cut, "answers cut"), (prompts_cut(cell), "prompts cut"))
    return Cell(f"{cell.samples:,}", "\n".join(f"{count:,} {what}" for count, what in counts if count))
