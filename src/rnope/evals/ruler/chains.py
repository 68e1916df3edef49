"""RULER's chains of variables (vt), behind an example that the original makes once for each length."""

import itertools
import string
from functools import partial
from random import Random

from rnope.evals.frame import Frame
from rnope.evals.ruler.draws import Drawing, Drawn, Prompt, Streams, fine
from rnope.evals.ruler.tasks import FORMS, NOISE

EXAMPLE_TOKENS = 500
"""Of the example, whatever the length."""
_NAMES = 5
"""Of a chain: four hops."""
_EXAMPLE_VALUE = "12345"


class ExampleDrawing(Drawing):
    """The example: short names, always one value, no frame; units are lines."""

    smallest = 5

    def __init__(self) -> None:
        self._prompt = Prompt(Frame(begin_ids=()), FORMS["vt"])

    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`."""
        names = _names(3, streams.python)
        _refuse_more(names)
        return Drawn(partial(_text, self._prompt, size, names, _EXAMPLE_VALUE, _places(size, streams)), tuple(names))


class ChainDrawing(Drawing):
    """Chains as they are asked; units are lines."""

    def __init__(self, frame: Frame, example: Drawn, *, context_tokens: int) -> None:
        self.smallest = fine(context_tokens, 10)
        self._prompt = Prompt(frame, FORMS["vt"])
        self._before = len(frame.before)
        self._example_names = example.references
        self.example = f"{example.text()} {' '.join(example.references)}\n"

    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`; without the example, as the original draws while it searches."""
        names = _names(5, streams.python)
        value = _value(streams)
        if len(names) > _NAMES:
            _value(streams)  # of the chain that cannot be finished
        _refuse_more(names)
        return Drawn(partial(_text, self._prompt, size, names, value, _places(size, streams)), tuple(names))

    def ask(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`; with the example, its names and value drawn anew."""
        drawn = self.draw(size, index, streams)
        names = [_name(len(name), streams.python) for name in self._example_names]
        return Drawn(partial(self._with_example, drawn, names, _value(streams)), drawn.references)

    def _with_example(self, drawn: Drawn, names: list[str], value: str) -> str:
        example = self.example
        for old, new in zip(self._example_names, names, strict=True):
            example = example.replace(old, new)
        text = drawn.text()
        return f"{text[: self._before]}{example.replace(_EXAMPLE_VALUE, value)}\n{text[self._before :]}"


def _name(letters: int, rng: Random) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=letters))


def _names(letters: int, rng: Random) -> list[str]:
    names = [_name(letters, rng) for _ in range(_NAMES)]
    while len(set(names)) < _NAMES:
        names.append(_name(letters, rng))
    return names


def _refuse_more(names: list[str]) -> None:
    """Where two names are alike the original draws another, begins a second chain with it, and fails."""
    if len(names) > _NAMES:
        raise ValueError("two variables of one name")


def _value(streams: Streams) -> str:
    return str(streams.numpy.randint(10000, 99999))


def _places(size: int, streams: Streams) -> list[int]:
    return sorted(streams.python.sample(range(size), _NAMES))


def _text(prompt: Prompt, size: int, names: list[str], value: str, places: list[int]) -> str:
    chain = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in itertools.pairwise(names))]
    lines = [NOISE] * size
    for i, (place, link) in enumerate(zip(places, chain, strict=True)):
        lines.insert(place + i, link)
    return prompt.text(context="\n".join(lines), query=value, num_v=_NAMES)
