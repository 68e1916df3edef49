"""Text to token ids with a memory of pieces: three times as fast as the tokenizer alone, and the same ids.

The usual pre-tokenisers of byte-level BPE cut a text with one regular expression, none of whose parts matches across the
bounds that this module cuts at: before a single space, and between letters and a punctuation mark. Pieces between such
bounds are encoded alone, once. Any other tokenizer is handed the whole text.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

from rnope.tokenizer import LLAMA3, QWEN2, Tokenizer

_PIECE = re.compile(
    r" ?[A-Za-z]+(?=[,.;:!?)\n”—’'-]| \S)"  # a word and what ends it for certain
    r"|.[^ ]*(?:(?: (?=\s)|(?<=\s) )[^ ]*)*",  # or all until a single space; runs of white space stay whole
    re.DOTALL,
)
_PATTERNS = {LLAMA3, QWEN2}
"""Regular expressions of others of which the above is known; GPT-2's comes with the byte level."""
_KEPT = 2**18
_LONGEST = 32
"""Characters of a piece that is kept: longer ones hardly come again."""


class PieceEncoder:
    """`Tokenizer.encode_plain` with a memory of some hundred thousand pieces."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.in_pieces = _cuts_alike(json.loads(tokenizer.backend.to_str()))
        """Whether this tokenizer is known to give the same ids for the pieces as for the whole."""
        self._known: dict[str, Sequence[int]] = {}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS; the names of special tokens are text like any other."""
        if not self.in_pieces:
            return self.tokenizer.encode_plain(texts)
        if len(self._known) > _KEPT:
            self._known.clear()
        rows = [_PIECE.findall(text) for text in texts]
        fresh = list(set(chain.from_iterable(rows)).difference(self._known))
        self._known.update(zip(fresh, map(tuple, self.tokenizer.encode_plain(fresh)), strict=True))
        ids = [list(chain.from_iterable(map(self._known.__getitem__, row))) for row in rows]
        for piece in fresh:
            if len(piece) > _LONGEST:
                del self._known[piece]
        return ids


def _cuts_alike(content: dict[str, Any]) -> bool:
    """Whether the tokenizer of this ``tokenizer.json`` never looks across the bounds of pieces."""
    model, normalizer = content["model"], content["normalizer"]
    steps = content["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer["type"] == "NFC")
        and all(_known(step) for step in steps)
        and any(step["type"] == "Split" or step.get("use_regex") for step in steps)
        and all(_never_cut(token) for token in content["added_tokens"])
    )


def _known(step: dict[str, Any]) -> bool:
    if step.get("type") == "Split":
        return step["pattern"].get("Regex") in _PATTERNS and step["behavior"] == "Isolated" and not step["invert"]
    return step.get("type") == "Digits" or (step.get("type") == "ByteLevel" and not step["add_prefix_space"])


def _never_cut(token: dict[str, Any]) -> bool:
    """Whether an added token lies in one piece wherever it stands; special ones are text here."""
    wide = token["lstrip"] or token["rstrip"] or token["single_word"]
    return bool(token["special"]) or (not wide and len(_PIECE.findall(token["content"])) == 1)
