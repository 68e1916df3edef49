"""A suite and a model without weights, for tests of what stands around them."""

from collections.abc import Sequence

import numpy as np

from rnope.evals.models.model import Answer, EvalModel, Score
from rnope.evals.results import CellResult, Figure, ModelFacts, mean_figure
from rnope.evals.suite import Cell, GenerationSuite, Sample, Scoring
from rnope.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=300)


class ToyScoring(Scoring):
    def score(self, prediction):
        return {"found": float(prediction.references[0] in prediction.answer)}

    def summary(self, cells: Sequence[CellResult]):
        return (mean_figure("all", [figure.value for cell in cells for figure in cell.figures]),) if cells else ()


class ToySuite(GenerationSuite):
    """Prompts of `lengths` tokens; the model is right where the index is even."""

    name = "toy"
    scoring = ToyScoring()

    def __init__(self, lengths=(8, 16), samples=5, seed=0):
        self.lengths, self.count, self.seed = lengths, samples, seed

    def settings(self):
        return {"seed": self.seed}

    def cells(self):
        return tuple(
            Cell(name=f"toy-{n}", context_tokens=n, samples=self.count, max_new_tokens=3, labels={"task": "toy"})
            for n in self.lengths
        )

    def samples(self, cell, done):
        for index in range(cell.samples):
            if index not in done:
                rng = np.random.default_rng([self.seed, cell.context_tokens, index])
                ids = rng.integers(3, 259, size=cell.context_tokens - 3)
                reference = str(int(ids.sum()) + index % 2)
                yield Sample(index=index, ids=ids, references=(reference,), facts={"repeats": 1 + index, "word": "x"})


class ToyModel(EvalModel):
    """Answers with the sum of the prompt's ids; some prompts are errors, and it can be told to fail after so many."""

    tokenizer = TOKENIZER

    def __init__(self, name="toy-model", errors=(), stop_after=None, sha256="a" * 64):
        self.facts = ModelFacts(
            name=name, kind="rnope", sha256=sha256, tokenizer_sha256=TOKENIZER.digest, begin_ids=(1,), dtype="float32",
            device="cpu",
        )  # fmt: skip
        self.errors, self.stop_after = set(errors), stop_after
        self.asked: list[int] = []
        self.groups: list[int] = []

    def generate(self, prompts, max_new_tokens, *, stop=(), progress=lambda tokens: None):
        if self.stop_after is not None and len(self.asked) + len(prompts) > self.stop_after:
            raise KeyboardInterrupt
        self.groups.append(len(prompts))
        answers = []
        for ids in prompts:
            self.asked.append(int(ids.sum()))
            progress(len(ids) + max_new_tokens)
            failed = len(self.asked) in self.errors
            answers.append(
                Answer(text="", tokens=0, ended="error", error="no answer came")
                if failed
                else Answer(text=f"it is {ids.sum()}", tokens=max_new_tokens, ended="length")
            )
        return answers

    def scores(self, requests, *, progress=lambda tokens: None):
        for i, (_, rest) in enumerate(requests):
            yield i, Score((-1.0,) * len(rest), (False,) * len(rest))


def figure(figures: Sequence[Figure], name: str) -> Figure:
    (found,) = [each for each in figures if each.name == name]
    return found
