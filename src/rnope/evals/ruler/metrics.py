"""RULER's metrics, as the original computes them, and what stands beside them. Text in, numbers out."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def postprocess(answer: str) -> str:
    """`answer` stripped, its control characters made line breaks, and stripped again."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """The share of `references` that `answer` contains, upper and lower case alike."""
    return sum([1.0 if reference.lower() in answer.lower() else 0.0 for reference in references]) / len(references)


def string_match_part(answer: str, references: Sequence[str]) -> float:
    """1 where `answer` contains any of `references`, upper and lower case alike."""
    return max([1.0 if reference.lower() in answer.lower() else 0.0 for reference in references])


def rounded(mean: float) -> float:
    """A mean of samples as RULER prints it: of 100, two decimals."""
    return round(mean * 100, 2)


def words(text: str) -> list[str]:
    """The words of `text` as SQuAD compares them: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split()


def exact_match(answer: str, references: Sequence[str], *, every: bool) -> float:
    """Whether `answer` is the words of any reference and nothing else; with `every`, of all of them in any order."""
    said = words(answer)
    if every:
        return float(Counter(said) == Counter(word for reference in references for word in words(reference)))
    return float(any(said == words(reference) for reference in references))


def token_f1(answer: str, references: Sequence[str], *, every: bool) -> float:
    """F1 of the words of `answer` against the best of `references`; with `every`, against all of them together."""
    said = Counter(words(answer))
    wanted = [Counter(words(reference)) for reference in references]
    if every:
        wanted = [sum(wanted, Counter())]
    return max(_f1(said, reference) for reference in wanted)


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())
