"""What is drawn for a prompt, apart from its text: drawing is cheap and moves the random streams, text is made on demand.

The original draws everything of a task and length from one stream, also what it throws away while it searches for the
size that fits. So an interrupted run can only go on where it stopped by drawing all that again.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnope.evals.frame import Frame
from rnope.evals.ruler.tasks import Form


class Streams:
    """The original's two random streams, which are Python's and NumPy's global ones there."""

    def __init__(self, seed: int) -> None:
        self.python = random.Random(seed)
        self.numpy = np.random.RandomState(seed)

    def copy(self) -> "Streams":
        """Streams that go on alike and apart from these."""
        other = Streams(0)
        other.python.setstate(self.python.getstate())
        other.numpy.set_state(self.numpy.get_state())
        return other


@dataclass(frozen=True, slots=True)
class Drawn:
    """A prompt that is decided."""

    text: Callable[[], str]
    """Makes the prompt; the same however often."""
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A task's form inside a frame."""

    frame: Frame
    form: Form

    def text(self, **values: object) -> str:
        """The form filled in. Braces in the frame or in a value are text like any other."""
        question = self.form.template.format(**values)
        return f"{self.frame.before}{question}{self.frame.after}{self.form.answer_prefix.format(**values)}"


class Drawing(ABC):
    """How one task draws.

    Attributes:
        smallest: units of haystack that a search begins with, and by which a prompt that is too long is shrunk.
    """

    smallest: int

    @abstractmethod
    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """A prompt of `size` units of haystack.

        Args:
            index: of the sample; 0 while a size is searched.

        Raises:
            ValueError: so few units cannot hold what is to be hidden.
        """

    def ask(self, size: int, index: int, streams: Streams) -> Drawn:
        """A prompt that is asked; raises as `draw`."""
        return self.draw(size, index, streams)

    def highest(self, tokens_of: Callable[[int], int], context_tokens: int) -> int:
        """Where the search for a size begins from above, which the original guesses from one prompt.

        Args:
            tokens_of: draws a prompt of a size and counts it.
        """
        per_unit = tokens_of(self.smallest) / self.smallest
        return max(int((context_tokens / per_unit) * 3), self.smallest * 2)

    def repeats(self, size: int) -> float | None:
        """How often the texts are gone through for `size` units; None where there is nothing to go through."""
        return None


def fine(context_tokens: int, usual: int) -> int:
    """The original's smallest size where units are lines: less for short contexts."""
    return 5 if context_tokens < 4096 else usual
