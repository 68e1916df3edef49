"""The probe: a text read as usual, and for its last tokens what every layer attended to, reduced as it goes.

It knows no model: a `Probed` reads and hands over what each layer had. It holds one layer's rows of one key-value head
at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from rnope.analysis.rows import Captured, Rows, rows_by_group
from rnope.errors import UserError, check

Position = Literal["rope", "nope"]
Take = Callable[[Captured], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One attention layer, as read off the model."""

    index: int
    """Of the decoder's layer; layers without attention are left out."""
    position: Position
    """``rope`` also for any other rule that makes keys depend on where they stand."""
    window: int | None
    heads: int
    kv_heads: int

    @property
    def kind(self) -> str:
        """``nope``, ``rope``, ``nope-window`` or ``rope-window``: `LayerSpec.kind` without QK-Norm, which a model of
        another house does not tell."""
        return self.position if self.window is None else f"{self.position}-window"


class Probed(Protocol):
    """A model that can be looked into."""

    @property
    def layers(self) -> Sequence[Layer]: ...

    def read(self, ids: Sequence[int], *, rows_from: int, take: Take, new_tokens: int = 0) -> list[int]:
        """Read `ids` in chunks, and greedily go on for `new_tokens`.

        `take` is given, layer by layer, the queries from `rows_from` on (those of new tokens that were read included)
        with all keys that the layer has for them. The pieces of one layer come in order, each with later queries.

        Returns:
            the new tokens; the last of them was not read.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    """What measures know of a text beside its attention."""

    ids: Sequence[int]
    spans: Mapping[str, tuple[tuple[int, int], ...]]
    """Name -> its stretches [begin, end) of tokens, in order; all of them disjoint, and together the whole text, what
    is generated behind it included (`rnope.analysis.spans.segments`). Only ``context`` has more than one, or none."""
    copied: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Position of a token -> where the token that should come *after* it stands in the needle: the row of that
    position copies from there."""


Measure = Callable[[Rows, Marks], Tensor]
"""From rows [h, r, k] to a value, or a vector of values, for each: [h, r] or [h, r, n]. NaN leaves a row out."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reading:
    """One layer's measures of one text."""

    layer: Layer
    values: dict[str, Tensor]
    """Measure -> mean over rows, [h] or [h, n], float64; NaN where no row counted."""
    distribution: Tensor
    """[t]: what each token is given, the mean over heads and rows, float64 (SPEC A3)."""
    rows: int


@torch.inference_mode()
def probe(
    model: Probed, marks: Marks, measures: Mapping[str, Measure], *, rows_from: int, new_tokens: int = 0
) -> tuple[list[Reading], list[int]]:
    """Read the text of `marks` and measure the attention of its tokens from `rows_from` on.

    Returns:
        a reading per layer, and the tokens generated behind the text (`new_tokens` of them; none by default).

    Raises:
        ConfigError: `rows_from` is no place of the text; or as the model's `read`.
        UserError: attention that is not a number.
    """
    inside = type(rows_from) is int and 0 <= rows_from < len(marks.ids)
    rule = f"must be a place in the text of {len(marks.ids):,} tokens"
    check("rows_from", rows_from, inside, rule, "Give where question and completion begin.")
    sums = {layer.index: _Sums(layer) for layer in model.layers}
    new = model.read(
        marks.ids, rows_from=rows_from, new_tokens=new_tokens, take=lambda found: sums[found.layer].add(found, marks, measures)
    )  # fmt: skip
    tokens = len(marks.ids) + max(len(new) - 1, 0)
    return [each.reading(tokens) for each in sums.values()], new


def given(rows: Rows, layer: int) -> Tensor:
    """What each key is given, [k] float64 on the CPU: the sum over heads and rows.

    Args:
        layer: for the message.

    Raises:
        UserError: that is no number, for one of them.
    """
    found = rows.probabilities.sum((0, 1)).double().cpu()
    if not found.isfinite().all():
        raise UserError(
            f"The attention of layer {layer} is not a number: the weights hold values that are none, or what is computed "
            "from them is too large for their dtype. Try --dtype float32, or write the weights again."
        )
    return found


class _Sums:
    """Sums over the rows seen so far of one layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.distribution = torch.zeros(0, dtype=torch.float64)
        self.rows = 0

    def add(self, captured: Captured, marks: Marks, measures: Mapping[str, Measure]) -> None:
        parts: dict[str, list[Tensor]] = {name: [] for name in measures}
        end = captured.first_key + captured.keys.shape[1]
        if end > len(self.distribution):
            self.distribution = torch.cat(
                (self.distribution, self.distribution.new_zeros(end - len(self.distribution)))
            )
        for rows in rows_by_group(captured):
            self.distribution[captured.first_key : end] += given(rows, captured.layer)
            for name, measure in measures.items():
                parts[name].append(measure(rows, marks))
            del rows  # before the next are made: they may fill hundreds of megabytes
        for name, found in parts.items():
            values = torch.cat(found).double().cpu()  # h r ...
            known = ~values.isnan()
            self.totals[name] = self.totals.get(name, 0) + values.nan_to_num(0.0).sum(1)
            self.counts[name] = self.counts.get(name, 0) + known.sum(1)
        self.rows += captured.queries.shape[1]

    def reading(self, tokens: int) -> Reading:
        spread = torch.zeros(tokens, dtype=torch.float64)
        spread[: len(self.distribution)] = self.distribution / max(self.rows * self.layer.heads, 1)
        values = {name: total / self.counts[name] for name, total in self.totals.items()}  # 0 / 0 is NaN
        return Reading(layer=self.layer, values=values, distribution=spread, rows=self.rows)
