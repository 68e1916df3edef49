"""RULER's questions about documents (qa_1, qa_2): which documents stand around those that answer."""

from functools import partial
from random import Random

from rnope.evals.frame import Frame
from rnope.evals.ruler.draws import Drawing, Drawn, Prompt, Streams
from rnope.evals.ruler.tasks import FORMS
from rnope.evals.ruler.texts import Questions


class DocumentDrawing(Drawing):
    """A question for each sample, in the data set's order; units are documents."""

    smallest = 10

    def __init__(self, frame: Frame, questions: Questions, *, seed: int) -> None:
        self._prompt, self._seed = Prompt(frame, FORMS["qa"]), seed
        self._questions, self._documents = questions

    def repeats(self, size: int) -> float:
        """See `Drawing`."""
        return max(1.0, size / len(self._documents))

    def draw(self, size: int, index: int, streams: Streams) -> Drawn:
        """See `Drawing`."""
        question, pool = self._questions[index], len(self._documents)
        missing = size - len(question.gold)
        if size >= pool:
            shown = [i % pool for i in range(size)]
        elif missing > len(question.near):
            own = {*question.gold, *question.near}
            others = [i for i in range(pool) if i not in own]
            drawn = streams.python.sample(others, max(0, missing - len(question.near)))
            shown = [*question.gold, *question.near, *drawn]
        else:
            shown = [*question.gold, *streams.python.sample(question.near, missing)]
        return Drawn(partial(self._text, shown, question.query), question.answers)

    def _text(self, shown: list[int], query: str) -> str:
        shown = list(shown)
        Random(self._seed).shuffle(shown)
        documents = (f"Document {i}:\n{self._documents[d]}" for i, d in enumerate(shown, 1))
        return self._prompt.text(context="\n\n".join(documents), query=query)
