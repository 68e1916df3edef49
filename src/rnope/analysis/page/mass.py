"""Attention mass: in the form of the paper's tables 3, 4 and 8, with its own rows beside; and the needle against length."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from rnope.analysis.page.view import (
    CALLED,
    NO_SUCH_LAYERS,
    PAPER_LENGTHS,
    Part,
    Seen,
    View,
    bars,
    legend,
    log_axis,
    number,
    share,
)
from rnope.analysis.results import ALL, Mean
from rnope.report import draw, paper, words
from rnope.report.blocks import Block, Cell, Picture, Table, Text, table
from rnope.report.paper import PaperTable
from rnope.results import SEGMENTS

Line = tuple[str | None, str | None]
"""A model's layers on one line of table 8: NoPE's kind and RoPE's."""
READ = (
    "What the rows of question and completion give to each segment: the mean over rows, heads, layers and samples, and "
    "below it half the width of its 95 % interval over samples. Uniform: what the segment would get if every token of the "
    "text got the same. Blank: no window reaches the segment."
)
PAPER = (
    "The paper's models have 8 billion parameters and other needles: its rows are beside ours for the direction, not for "
    "the size."
)


def part(view: View) -> Part:
    """The tables, then the needle against length."""
    if not view.lengths:
        return Part(blocks=[])
    blocks: list[Block | None] = [Text(f"{READ} {PAPER}")]
    missing = [n for n in paper.LENGTHS if n not in _theirs(view)]
    if missing:
        what = (
            "none of the paper's" if len(missing) == len(paper.LENGTHS) else f"not the paper's {words.listed(missing)}"
        )
        ours = words.listed([words.tokens(n) for n in view.lengths])
        blocks.append(Text(f"The lengths here ({ours}) are {what}: its rows at other lengths are in tables of their own.",
                           "withheld"))  # fmt: skip
    blocks += [_overall(view), _others(view, paper.TABLE_3)]
    if view.mixed or "nope" in view.kinds or "nope-window" in view.kinds:
        blocks += [_by_position(view), _others(view, paper.TABLE_8)]
    data = against_length(view)
    if data is not None:
        blocks.append(Picture(
            name="mass-length",
            alt=f"Attention mass of segment {view.focus} against context length, a panel for each kind of layers",
            caption=f"Mass of segment {view.focus} against context length, by kind of layers, with 95 % intervals over "
            "samples; a line for each model. Dotted: what it would get if every token got the same. Where a window does "
            "not reach it there is no point.",
        ))  # fmt: skip
    return Part(
        blocks=[block for block in blocks if block is not None],
        figures={} if data is None else {"mass-length": data},
        headline=_headline(view),
    )


def _headline(view: View) -> str:
    length, focus = view.shared(), view.focus
    if length is None or focus is None:
        return ""
    said = []
    for model in view.models[:4]:
        kinds = model.kinds if len(model.kinds) > 1 else (ALL,)
        found = [(kind, model.at(length, kind)) for kind in kinds]
        values = [
            f"{share(mean.value) if (mean := result.measures.mass.get(focus)) else 'out of reach'} "
            f"in {CALLED[kind]}{'' if kind == ALL else ' layers'}"
            for kind, result in found if result is not None
        ]  # fmt: skip
        said.append(f"{model.short} {words.listed(values)}")
    more = " (and others)" if len(view.models) > 4 else ""
    what = "the needle" if focus == "needle" else f"segment {focus}"
    return f"Share of attention that {what} gets at {words.tokens(length)} tokens: {'; '.join(said)}{more}."


def _theirs(view: View) -> set[str]:
    return {PAPER_LENGTHS[n] for n in view.lengths if n in PAPER_LENGTHS}


def _groups(view: View, source: PaperTable) -> Iterator[tuple[int, list[list[Cell]]]]:
    """Each of our lengths with the paper's rows at it."""
    for length in view.lengths:
        at = PAPER_LENGTHS.get(length)
        yield length, [_printed(view, row) for row in source.rows if row[0] == at]


def _printed(view: View, row: Sequence[str]) -> list[Cell]:
    """A row of table 3 or 8; the user's own segments have no column in it."""
    own = [Cell("")] * (len(view.segments) - len(_four(view)))
    cells: list[Cell] = []
    for start in range(2, len(row), len(SEGMENTS)):
        values = dict(zip(SEGMENTS, row[start : start + len(SEGMENTS)], strict=True))
        cells += [*(_theirs_cell(values[s]) for s in _four(view)), *own]
    return [_paper(row), *cells]


def _paper(row: Sequence[str]) -> Cell:
    return Cell(f"paper: {row[1]}, {row[0]}", tone="paper")


def _theirs_cell(text: str) -> Cell:
    return Cell("" if text == "-" else text, tone="paper")


def _four(view: View) -> list[str]:
    """The paper's segments among ours, which come first."""
    return [segment for segment in view.segments if segment in SEGMENTS]


def _overall(view: View) -> Table:
    """Table 3: all layers together."""
    rows: list[list[Cell]] = []
    for length, theirs in _groups(view, paper.TABLE_3):
        for model in view.models:
            if length in model.lengths:
                rows.append([_named(model, length), *_masses(view, model, length, ALL)])
        rows += [*_even(view, length, 1), *theirs]
    return table("All layers (the paper's table 3)", [Cell("model and length"), *map(Cell, view.segments)], rows)


def _by_position(view: View) -> Table:
    """Table 8, of which table 4 is the part at 32k: NoPE layers, then RoPE layers."""
    rows: list[list[Cell]] = []
    for length, theirs in _groups(view, paper.TABLE_8):
        for model in view.models:
            for line in lines(model) if length in model.lengths else ():
                both = [_masses(view, model, length, kind) for kind in line]
                rows.append([_named(model, length, line), *both[0], *both[1]])
        rows += [*_even(view, length, 2), *theirs]
    head = [Cell(segment, f"{position} layers") for position in ("NoPE", "RoPE") for segment in view.segments]
    note = (
        "The paper's table 4 is its table 8 at 32k. –: the model has no such layers. The paper leaves its windowed layers "
        "(8,192 tokens) blank where they do not reach begin and needle; here the segments that they do reach are shown."
    )
    return table("By kind of layers (the paper's tables 4 and 8)", [Cell("model and length"), *head], rows, note)


def _named(model: Seen, length: int, line: Line = (None, None)) -> Cell:
    """The first cell of a line; it says which of its layers have a window."""
    windowed = [
        f"{CALLED[kind].split()[-1]} window {words.listed([words.tokens(n) for n in model.windows_of(kind)])}"
        for kind in line
        if kind is not None and model.windows_of(kind)
    ]
    small = ", ".join([words.tokens(length), f"n {model.lengths[length].n:,}", *windowed])
    return model.cell(small)


def _even(view: View, length: int, times: int) -> Iterator[list[Cell]]:
    """Uniform shares: one line where all models have the same."""
    same: dict[tuple[str, ...], list[str]] = {}
    for model in view.models:
        if length in model.lengths:
            uniform = model.lengths[length].uniform
            printed = tuple(share(uniform[name]) if name in uniform else "" for name in view.segments)
            same.setdefault(printed, []).append(model.short)
    for printed, names in same.items():
        about = f": {words.listed(names)}" if len(same) > 1 else ""
        yield [
            Cell(f"uniform, {words.tokens(length)}{about}", tone="paper"),
            *(Cell(c, tone="paper") for c in printed * times),
        ]


def lines(model: Seen) -> list[Line]:
    """Kinds of a model's layers as lines: more than one where full and windowed layers are alike in position."""
    nope = [kind for kind in model.kinds if kind.startswith("nope")]
    rope = [kind for kind in model.kinds if kind.startswith("rope")]
    return list(zip_longest(nope, rope))


def _masses(view: View, model: Seen, length: int, kind: str | None) -> list[Cell]:
    found = None if kind is None else model.at(length, kind)
    if found is None:
        return [Cell(NO_SUCH_LAYERS)] * len(view.segments)
    return [number(found.measures.mass.get(name), share) for name in view.segments]


def _others(view: View, source: PaperTable) -> Table | None:
    """The paper's rows at lengths that are not ours."""
    have = _theirs(view)
    rows = [row for row in source.rows if row[0] not in have]
    if not rows:
        return None
    head = [Cell("model and length")]
    if source is paper.TABLE_8:
        head += [Cell(s, f"{position} layers") for position in ("NoPE", "RoPE") for s in SEGMENTS]
    else:
        head += map(Cell, SEGMENTS)
    called = "" if not have else f" at {words.listed(sorted({row[0] for row in rows}, key=paper.LENGTHS.index))}"
    body = [[_paper(row), *map(_theirs_cell, row[2:])] for row in rows]
    return table(f"The paper's table {source.number}{called}", head, body, folded=bool(have))


def against_length(view: View) -> bytes | None:
    """A panel for each kind of layers, a line for each model."""
    focus = view.focus
    if focus is None or len(view.lengths) < 2:
        return None
    panels: dict[str, list[tuple[Seen, dict[int, Mean]]]] = {}
    for kind in (ALL, *view.kinds) if view.mixed else (ALL,):
        found = [(model, _by_length(model, kind, focus)) for model in view.models]
        found = [(model, means) for model, means in found if means]
        if found:
            panels[kind] = found
    if not panels:
        return None
    across = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    down = -(-len(panels) // across)
    with draw.look():
        figure, axes = draw.new((6.5, draw.WIDTH, 10.5)[across - 1], 3.1 * down + 0.6, down, across,
                                sharex=True, sharey=True)  # fmt: skip
        for axis, (kind, found) in zip(axes, panels.items(), strict=False):
            for model, means in found:
                apart = 2 ** (
                    0.03 * (view.models.index(model) - (len(view.models) - 1) / 2)
                )  # so that none hides another
                at, values = [n * apart for n in means], list(means.values())
                axis.errorbar(at, [mean.value for mean in values], yerr=bars(values), color=model.colour,
                              marker=model.marker, markersize=5, linewidth=1.6, elinewidth=0.9, capsize=2)  # fmt: skip
            for uniform in {tuple(_uniform(model, focus).items()): None for model, _ in found}:
                axis.plot(
                    [n for n, _ in uniform], [v for _, v in uniform], color=draw.GUESS, linestyle=":", linewidth=1
                )
            axis.set_title(CALLED[kind])
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        log_axis(axes[0])
        for place, axis in enumerate(axes[: len(panels)]):
            draw.token_axis(axis, view.lengths)
            lowest = place + across >= len(panels)
            axis.tick_params(labelbottom=lowest)
            axis.set_xlabel("context length, tokens" if lowest else "")
            axis.set_ylabel(f"mass of {focus}" if place % across == 0 else "")
        keys = [
            *(draw.key(model.colour, model.marker) for model in view.models),
            draw.key(draw.GUESS, dashes=":", width=1),
        ]
        legend(figure, keys, [*(model.label for model in view.models), "uniform"])
        return draw.png(figure)


def _by_length(model: Seen, kind: str, segment: str) -> dict[int, Mean]:
    found = {n: model.at(n, kind) for n in model.lengths}
    return {
        n: mean
        for n, result in found.items()
        if result is not None and (mean := result.measures.mass.get(segment)) is not None
    }


def _uniform(model: Seen, segment: str) -> dict[int, float]:
    return {n: found.uniform[segment] for n, found in model.lengths.items() if segment in found.uniform}
