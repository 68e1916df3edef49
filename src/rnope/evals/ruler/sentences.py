"""Where sentences end, by a small fixed rule. It takes the place of NLTK's trained Punkt, which has to be downloaded.

Whether a sentence ends between two words is seen from these two words alone, so that the beginning of a text is split as
the text is.
"""

import re

_END = re.compile(r"""(?<!\S)(?P<word>\S*[.!?…]["'”’»)\]]*)(?P<gap>\s+)(?=["'“‘«(\[]*[A-Z0-9])""")
_NO_END = re.compile(
    r"""["'“‘«(\[]*(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Gov|Sen|Rep|Rev|Capt|Lt|Col|vs|cf|etc|al|No|Fig|Vol|pp?|"""
    r"""Inc|Ltd|Co|Corp|(?:[A-Za-z]\.)+[A-Za-z])\.["'”’»)\]]*"""
)
"""Abbreviations, and initials of names."""


def gaps(text: str) -> list[tuple[int, int]]:
    """The white space between the sentences of `text`, as spans of characters [begin, end)."""
    return [found.span("gap") for found in _END.finditer(text) if not _NO_END.fullmatch(found["word"])]


def sentences(text: str) -> list[str]:
    """The sentences of `text`, without the white space between them."""
    between = gaps(text)
    begins, ends = [0, *(end for _, end in between)], [*(begin for begin, _ in between), len(text)]
    return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
