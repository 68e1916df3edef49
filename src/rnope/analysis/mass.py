"""Attention mass (SPEC A1): what the rows of question and completion give to begin, needle, context and themselves.

For each layer only the rows asked for are recomputed, in float32, against that layer's keys: the memory is rows × length
of one layer at a time (A4), and the model runs as it always does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rnope.data.needles import UNIT_TOKENS, Context
from rnope.evals.needles import Prompts
from rnope.kernels.reference import visible
from rnope.model.attention import RotaryTables, tables_at
from rnope.model.decoder import Block, Decoder
from rnope.results import SEGMENTS, MassRow

BEGIN_TOKENS = 10


def probabilities(block: Block, x: Tensor, tables: RotaryTables, rows: Tensor) -> Tensor:
    """Attention of `rows` [r] of the block's input `x` [1, t, width]: [h, r, t], float32, each row summing to 1."""
    normal = block.norm(x)
    keys, _ = block.attention.keys_values(normal, tables)
    queries = block.attention.queries(normal[:, rows], tables_at(tables, rows))  # 1 h r d
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)  # 1 h t d
    scores = (queries[0].float() @ keys[0].float().transpose(-1, -2)) * block.attention.head_size**-0.5
    seen = visible(rows, torch.arange(x.shape[1]), block.attention.spec.window, None)  # 1 r t
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def segment_ids(context: Context, needle: tuple[int, int], qc: int) -> Tensor:
    """Segment of every token [t], as an index into `SEGMENTS`; `qc` is where question and completion begin."""
    segment = torch.full((len(context.ids),), SEGMENTS.index("context"))
    segment[:BEGIN_TOKENS] = SEGMENTS.index("begin")
    segment[needle[0] : needle[1]] = SEGMENTS.index("needle")
    segment[qc:] = SEGMENTS.index("qc")
    return segment


@torch.inference_mode()
def attention_mass(
    model: Decoder, prompts: Prompts, *, arm: str, seed: int, context_tokens: int, samples: int
) -> list[MassRow]:
    """One `MassRow` per layer kind: one needle at half depth, one question with its answer, `samples` contexts.

    The rows are those of question and completion (a recall, its key, the value and the stop); mass is averaged over
    rows, heads, layers of the kind and samples.
    """
    kinds: dict[str, list[Tensor]] = {}
    best: dict[str, list[float]] = {}
    uniform = torch.zeros(len(SEGMENTS), dtype=torch.float64)
    for sample in range(samples):
        rng = np.random.default_rng([prompts.settings.seed, 77, context_tokens, sample])
        context = prompts.task.context(rng, prompts.haystack, context_tokens=context_tokens, depths=[0.5])
        qc = context_tokens - UNIT_TOKENS
        segment = segment_ids(context, context.spans[0], qc)
        uniform += torch.bincount(segment, minlength=len(SEGMENTS)) / context_tokens / samples
        ids = torch.from_numpy(context.ids)[None]
        tables = model.rotary_tables(torch.arange(context_tokens))
        rows = torch.arange(qc, context_tokens)
        x = model.embedding(ids)
        for block in model.blocks:
            shares = probabilities(block, x, tables, rows)  # h r t
            by_segment = torch.zeros(*shares.shape[:2], len(SEGMENTS)).index_add_(2, segment, shares)
            kind = block.attention.spec.kind
            kinds.setdefault(kind, []).append(by_segment.mean((0, 1)).double())
            asked = int(context.rows[0]) - qc
            best.setdefault(kind, []).append(by_segment[:, asked, SEGMENTS.index("needle")].max().item())
            x = block(x, tables)
    reach = _reachable(model, segment)  # segments lie alike in every sample of one length
    return [
        MassRow(
            arm=arm,
            seed=seed,
            context_tokens=context_tokens,
            kind=kind,
            n=samples,
            mass=_masses(values, reach[kind]),
            uniform=dict(zip(SEGMENTS, uniform.tolist(), strict=True)),
            best_head_needle=float(np.mean(best[kind])),
        )
        for kind, values in kinds.items()
    ]


def _masses(values: Sequence[Tensor], reachable: frozenset[str]) -> dict[str, float | None]:
    mean = torch.stack(tuple(values)).mean(0).tolist()
    return {name: share if name in reachable else None for name, share in zip(SEGMENTS, mean, strict=True)}


def _reachable(model: Decoder, segment: Tensor) -> dict[str, frozenset[str]]:
    """Segments that a layer kind's widest window can see from the question: what it cannot see is blank, not 0."""
    reach: dict[str, frozenset[str]] = {}
    for block in model.blocks:
        spec = block.attention.spec
        oldest = len(segment) - UNIT_TOKENS - (spec.visible(len(segment)) - 1)  # that the question's first row sees
        seen = frozenset(SEGMENTS[i] for i in segment[max(0, oldest) :].unique().tolist())
        reach[spec.kind] = reach.get(spec.kind, frozenset()) | seen
    return reach
