"""What every figure shares: the colour and marker of each arm, the axes' look, and turning a figure into PNG bytes."""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rnope.report import words

DPI = 130
WIDTH = 9.0
"""Inches: the page's column."""
# The colours of the heat maps that Kamradt's needle-in-a-haystack repository made customary.
HEAT = LinearSegmentedColormap.from_list("niah", ["#F0496E", "#EBB839", "#0CD79F"])
GUESS, BAR = "#555555", "#8a8a8a"

# Okabe and Ito's colours, which the common kinds of colour blindness keep apart; and a marker each, for grey prints.
_STYLES = {
    "rope": ("#D55E00", "o"),
    "rope-extended": ("#E69F00", "s"),
    "rnope-swa": ("#0072B2", "D"),
    "swa-rope": ("#CC79A7", "^"),
    "rnope": ("#56B4E9", "v"),
    "qk-norm": ("#009E73", "P"),
    "nope": ("#444444", "X"),
}
_SPARE = (
    ("#999933", "<"), ("#882255", ">"), ("#44AA99", "h"), ("#AA4499", "*"), ("#117733", "p"), ("#332288", "8"),
    ("#CC6677", "d"), ("#661100", "H"), ("#6699CC", "1"), ("#DDCC77", "2"), ("#A6761D", "3"), ("#A6D854", "4"),
)  # fmt: skip
SEGMENTS = {"begin": "#9c9ede", "needle": "#D55E00", "context": "#d9d9d9", "qc": "#7fb3d5"}
SEED_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))


def styles(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> (colour, marker): the same in every figure and every report for arms with a known name.

    An arm that was fine-tuned looks like what it was before, unless that is among `arms` too.
    """
    spare = [_SPARE[i % len(_SPARE)] for i in range(len(arms))]
    found = {}
    for arm in arms:
        before = arm.removesuffix("-tuned")
        name = arm if before in arms else before
        found[arm] = _STYLES[name] if name in _STYLES else spare.pop(0)
    return found


@contextmanager
def look() -> Iterator[None]:
    """Settings of every figure. Names come from users, so that ``$`` must not start a formula."""
    settings = {
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "text.parse_math": False,
        "figure.facecolor": "white",
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # an arm may be named in any script
        yield


def png(figure: Any) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Any, list[Any]]:
    """A figure and its axes in reading order."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, [axis for row in axes for axis in row]


def key(colour: str, marker: str | None = None, dashes: Any = "-", width: float = 2.4) -> Any:
    """A line for a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=dashes, linewidth=width, markersize=5)


def patch(colour: str) -> Any:
    """A square for a legend."""
    return Patch(facecolor=colour)


def visible(label: str) -> str:
    """`label` as matplotlib shows it: it hides labels that begin with an underscore."""
    return f" {label}" if label.startswith("_") else label


def token_axis(axis: Any, lengths: Sequence[int]) -> None:
    """A log2 axis of context lengths, ticks at `lengths` as far as there is room: fifteen, evenly spread."""
    axis.set_xscale("log", base=2)
    apart = math.log2(lengths[-1] / lengths[0]) / 14 - 1e-9
    ticks: list[int] = []
    for n in lengths:
        if not ticks or math.log2(n / ticks[-1]) >= apart:
            ticks.append(n)
    axis.set_xticks(ticks, [words.short_tokens(n) for n in ticks])
    axis.minorticks_off()
    axis.set_xlabel("context length, tokens")


def heat_map(
    axis: Any,
    grid: Sequence[Sequence[float]],
    lengths: Sequence[int],
    depths: Sequence[float],
    trained_tokens: int | None,
) -> Any:
    """Needle scores by depth (down) and length (across); the image, for a colour bar.

    Args:
        grid: scores of 10 [depth][length], NaN where there is none.
        depths: percent.
        trained_tokens: a line stands after this length, if given.
    """
    image = axis.imshow(grid, cmap=HEAT, vmin=0, vmax=10, aspect="auto")
    if trained_tokens is not None:
        axis.axvline(sum(n <= trained_tokens for n in lengths) - 0.5, color="#222222", linewidth=1.2)
    if len(lengths) <= 14 and len(depths) <= 16:
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                text = "" if value != value else "10" if value >= 9.95 else f"{value:.1f}"
                axis.text(x, y, text, ha="center", va="center", fontsize=7, color="#222222")
    axis.set_facecolor("#f0f0f0")
    across, down = -(-len(lengths) // 14), -(-len(depths) // 16)  # every so many are named
    names = [words.short_tokens(n) for n in lengths[::across]]
    axis.set_xticks(range(0, len(lengths), across), names, rotation=90 if sum(map(len, names)) > 50 else 0)
    axis.set_yticks(range(0, len(depths), down), [f"{depth:.0f} %" for depth in depths[::down]])
    axis.set_xlabel("context length, tokens")
    axis.set_ylabel("depth of the needle")
    axis.grid(False)
    axis.tick_params(length=0, labelsize=8)
    return image
