"""What a page is made of: sections of paragraphs, tables, figures, lists and listings. Plain data, no markup.

Both templates render these blocks, so that the HTML page and its Markdown twin cannot say different things.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    small: str = ""
    """Second line, set smaller: interval, n, the paper's figure."""
    tone: str = ""
    """``shown``, ``not-shown``, ``not-testable``, or ``s0`` … ``s10`` for a score; empty: none."""
    colour: str = ""
    """``#rrggbb`` of the dot that marks an arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    folded: bool = False
    """Closed until a reader opens it; Markdown and print show it open."""
    prose: bool = False
    """Cells are sentences, not numbers."""

    block: str = "table"


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure by the name of its file, without suffix."""

    name: str
    alt: str
    caption: str
    block: str = "picture"


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    tone: str = ""
    """``withheld`` for what the gate held back."""
    block: str = "text"


@dataclass(frozen=True, slots=True)
class Items:
    items: tuple[str, ...]
    tone: str = ""
    block: str = "items"


@dataclass(frozen=True, slots=True)
class Listing:
    title: str
    text: str
    folded: bool = False
    block: str = "listing"


Block = Table | Picture | Text | Items | Listing


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    key: str
    title: str
    blocks: tuple[Block, ...]


def cells(*row: Cell | str) -> tuple[Cell, ...]:
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row)


def table(
    caption: str,
    head: Sequence[Cell | str] | Sequence[str],
    rows: Iterable[Sequence[Cell | str] | Sequence[str] | Sequence[Cell]],
    note: str = "",
    *,
    folded: bool = False,
    prose: bool = False,
) -> Table:
    """A table from cells and plain strings; every row as long as the head."""
    body = tuple(cells(*row) for row in rows)
    top = cells(*head)
    assert all(len(row) == len(top) for row in body), caption
    return Table(caption=caption, head=top, rows=body, note=note, folded=folded, prose=prose)
