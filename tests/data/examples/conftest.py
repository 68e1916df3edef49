"""A tokenizer, documents and sources that are small, each document with a mark of its own."""

import json
import random

import pytest

from rnope.data.corpus import Document
from rnope.data.examples.draft import Counter
from rnope.tokenizer import Tokenizer

WORDS = (
    "the a of and to in that it was he for with as his on be at by had not but from she which or we an there were "
    "their been has when who will no more if out so said what its about into than them can only other new some time "
    "don't I'm NASA McDonald iPhone café Ångström I A l'été USA-made naïve O'Neill well-known 1984 3.5"
).split()


def sentence(rng):
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 18)))
    return text[0].upper() + text[1:] + rng.choice(".!?;:")


def document(number):
    """Some paragraphs of running words; the mark ``zq<number>q`` stands in every sentence."""
    rng = random.Random(number)
    told = (f"zq{number}q {sentence(rng)}" for _ in range(rng.randint(8, 40)))
    return "".join(text + rng.choice((" ", " ", "\n", "\n\n", "\n    ")) for text in told)


FUNCTION = '''def area_{n}(width, height_{n}, *rest, scale=None):
    """Say how large number {n} is; width stays in this string."""
    total = 0
    for item in rest:  # width of the rest
        total += item.size * width
    if scale is None:
        scale = helper_{m}(width)
    label = f"{{width}} by {{total}}"
    return round_{k}(total, scale=scale), label, [width + height_{n} for width in rest]
'''
CLASS = '''class Shape{n}:
    """A shape."""

    @property
    def size(self):
        return self.width * {n}

    def grow(self, amount):
        before = self.size
        factor = amount / before

        self.width *= factor
        return helper_{k}(self).area_{m}(before)
'''


def source(number):
    """A module whose docstring bears the mark ``zq<number>q``."""
    rng = random.Random(number)
    parts = [f'"""Module zq{number}q."""\nimport os\n']
    for _ in range(3):
        numbers = dict(n=rng.randint(0, 999), m=rng.randint(0, 30), k=rng.randint(0, 30))
        parts += [FUNCTION.format(**numbers), CLASS.format(**numbers)]
        parts.append(f"def tiny_{rng.randint(0, 999)}():\n    return helper_{rng.randint(0, 30)}()\n")
    return "\n\n".join(parts)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train([*map(document, range(6)), *map(source, range(3))], vocab_size=700)


@pytest.fixture
def counter(tokenizer):
    return Counter(tokenizer)


@pytest.fixture(scope="session")
def texts():
    return [document(number) for number in range(120)]


@pytest.fixture(scope="session")
def held_out(texts):
    """Marks of the documents that may stand in no prompt."""
    marks = {f"zq{n}q" for n, text in enumerate(texts) if Document(source="", text=text).split != "train"}
    assert 40 < len(marks) < 80
    return marks


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts):
    """Path of a file of documents."""
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A folder of Python files."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "deep").mkdir()
    for number in range(60):
        (folder / ("deep" if number % 2 else ".") / f"m{number}.py").write_text(source(number), encoding="utf-8")
    return str(folder)
