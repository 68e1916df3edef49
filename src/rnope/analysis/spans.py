"""Segments of a text as token spans: named stretches that do not overlap, and the context that is left between them.

It knows tokens and characters, and nothing of attention.
"""

from collections.abc import Mapping, Sequence

from rnope.errors import ConfigError
from rnope.results import SEGMENTS
from rnope.tokenizer import Tokenizer

Span = tuple[int, int]
"""[begin, end)"""
CONTEXT = "context"
"""All that has no other name."""
BEGIN_TOKENS = 10
"""Of segment ``begin`` (paper 2.2.2)."""


def segments(total: int, named: Mapping[str, Span], *, unit: str = "tokens") -> dict[str, tuple[Span, ...]]:
    """Every segment's stretches in a text of `total` tokens: each of `named` has one, ``context`` what lies between.

    Args:
        unit: that `total` and `named` count in, for messages.

    Returns:
        begin, needle, context, qc, as far as they are there, then the others by name. ``context`` always is, if only
        with no stretch.

    Raises:
        ConfigError: a span that is empty or not in the text, two that overlap, or one called ``context``.
    """
    rest: list[Span] = []
    at, before = 0, ""
    for name, span in sorted(named.items(), key=lambda item: item[1]):
        field = f"spans.{name}"
        if name == CONTEXT:
            raise ConfigError(field, span, "is what the other spans leave over", "Leave it out, or call it otherwise.")
        if span[0] >= span[1]:
            raise ConfigError(field, span, "holds nothing", "Give [begin, end), its end behind its begin.")
        if span[0] < 0 or span[1] > total:
            raise ConfigError(field, span, f"is not inside the text of {total:,} {unit}", "Give a span that is.")
        if span[0] < at:
            rule = f"overlaps with {before} = {named[before]}"
            raise ConfigError(field, span, rule, "A token belongs to one segment: let one end where the next begins.")
        if at < span[0]:
            rest.append((at, span[0]))
        at, before = span[1], name
    if at < total:
        rest.append((at, total))
    found = {name: (span,) for name, span in named.items()} | {CONTEXT: tuple(rest)}
    others = sorted(name for name in named if name not in SEGMENTS)
    return {name: found[name] for name in (*SEGMENTS, *others) if name in found}


def token_span(tokenizer: Tokenizer, text: str, begin: int, end: int) -> tuple[Span, bool]:
    """`covering` of characters [begin, end) of `text` among the tokens of ``tokenizer.encode(text)``."""
    return covering(text, offsets(tokenizer, text), begin, end)


def offsets(tokenizer: Tokenizer, text: str) -> list[Span]:
    """Characters of `text` that each token of ``tokenizer.encode(text)`` stands for; tokens that share the bytes of one
    character all have it."""
    return list(tokenizer.backend.encode(text, add_special_tokens=False).offsets)


def covering(text: str, offsets: Sequence[Span], begin: int, end: int) -> tuple[Span, bool]:
    """The tokens that characters [begin, end) of `text` are in, and whether they hold more than those characters.

    A tokenizer may merge the first or last of them with its neighbours: the span is widened to whole tokens. White
    space does not count as widening, since most tokenizers join it to the word behind it.

    Args:
        offsets: of `text`.

    Raises:
        ConfigError: the characters are none, not in the text, or in no token.
    """
    if not 0 <= begin < end <= len(text):
        rule = f"must be a stretch of the {len(text):,} characters of the text"
        raise ConfigError("span", (begin, end), rule, "Give [begin, end) in characters, its end behind its begin.")
    found = [i for i, (first, last) in enumerate(offsets) if max(first, begin) < min(last, end)]
    if not found:
        raise ConfigError("span", (begin, end), "is in no token of this tokenizer", "Give a span with words in it.")
    first = min(begin, offsets[found[0]][0])
    last = max(end, offsets[found[-1]][1])
    return (found[0], found[-1] + 1), bool((text[first:begin] + text[end:last]).strip())
