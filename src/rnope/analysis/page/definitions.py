"""Every word of the page in a sentence."""

from rnope.analysis.page.view import Part, View
from rnope.report.blocks import Items

_SEGMENTS = {
    "begin": "begin: the first 10 tokens.",
    "needle": "needle: the tokens that the question asks about.",
    "context": "context: all that is in no other segment.",
    "qc": "qc: question and completion, whose rows are measured.",
}
_WORDS = (
    "Row: what one query of one head gives to every token before it and to itself; it sums to 1, less what a learned sink "
    "takes.",
    "Uniform: a segment's share of the tokens.",
    "NoPE layer: one whose keys do not depend on where they stand. RoPE layer: any other. Window: the layer sees only so "
    "many tokens, the query's own included.",
    "Row entropy: of one row, in bits; of the row over tokens alone where a learned sink takes a share.",
    "Entropy of the mean: of a layer's attention averaged over rows and heads, in bits.",
    "Sink: what the first token and learned sinks get.",
    "Effective span: the fewest tokens, counted back from the query, that hold 90 % of its row.",
    "Retrieval score: the share of rows that copy a token of the needle whose top key is that token. After Wu et al. (2024), "
    "who look at the steps in which a model decodes; here the completion is given, unless it was generated.",
    "±: half the width of the 95 % interval over samples, by Student's t. With few samples it is wide; it says nothing of "
    "other models of the same kind.",
    "Heads are counted from 0, as layers are.",
)


def part(view: View) -> Part:
    """Those of the segments that there are, then all others."""
    own = [f"{name}: as the file of samples says." for name in view.segments if name not in _SEGMENTS]
    return Part(blocks=[Items((*(_SEGMENTS[s] for s in view.segments if s in _SEGMENTS), *own, *_WORDS))])
