"""Small texts and a tokenizer for RULER's tests, made by rule: no file, no training, the same everywhere."""

import json
from pathlib import Path
from random import Random

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from rnope.evals.ruler.tasks import FORMS, NOISE
from rnope.tokenizer import BOS, EOS, PAD, Tokenizer

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def _words(seed, count, least=2):
    rng = Random(seed)
    found = {}
    while len(found) < count:
        found["".join(rng.choices(_SYLLABLES, k=rng.randint(least, 4)))] = None
    return list(found)


PROSE = _words(1, 300)
NOUNS = [*_words(2, 120), "b-c", "two words", "ice"]
ADJECTIVES = [*_words(3, 40), "a", "a-b", "a-b-c", "well-made"]
VERBS = _words(4, 4000)
ENGLISH = _words(5, 6000, least=3)


def _sentence(rng):
    words = rng.choices(PROSE, k=rng.randint(3, 14))
    end = rng.choice([". ", ". ", ". ", "! ", '." ', ".\n\n", "? ", " Mr. ", ", and\t"])
    return " ".join(words).capitalize() + end


def _paragraph(seed, sentences):
    rng = Random(f"paragraph {seed}")
    return "".join(_sentence(rng) for _ in range(sentences)).strip()


ESSAYS = f" {_paragraph('essays', 260)} \n"
"""Begins and ends with white space, and is short: long haystacks repeat it."""
SQUAD = {
    "data": [
        {
            "title": f"article {a}",
            "paragraphs": [
                {
                    "context": _paragraph((a, p), 3 + (a + p) % 5),
                    "qas": [
                        {
                            "question": f"What is {{{PROSE[7 * a + p]}}}?",
                            "is_impossible": (a + p) % 4 == 3,
                            "answers": [{"text": f"{PROSE[a]} {PROSE[p]}"}, {"text": PROSE[p]}],
                        }
                    ],
                }
                for p in range(2 + a % 9)
            ],
        }
        for a in range(14)
    ]
}


def _titled(number):
    return [f"title {number}", [_paragraph((number, s), 1) + " " for s in range(2)]]


HOTPOTQA = [
    {
        "question": f"Who is {PROSE[q]}?",
        "answer": PROSE[q + 1],
        "context": [_titled((q + i * i) % 90) for i in range(8)],
    }
    for q in range(40)
]


def write_texts(folder: Path) -> Path:
    """The original's layout, and lists of words as wonderwords has them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "PaulGrahamEssays.json": {"text": ESSAYS},
        "english_words.json": dict(enumerate(ENGLISH)),
        "squad.json": SQUAD,
        "hotpotqa.json": HOTPOTQA,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    for name, words in (("nounlist", NOUNS), ("adjectivelist", ADJECTIVES), ("verblist", VERBS)):
        (folder / f"wonderwords_{name}.txt").write_text("\n".join(words) + "\n")
    return folder


def make_tokenizer() -> Tokenizer:
    """A byte-level BPE with Command R's pre-tokeniser; frequent words of the prompts are few tokens."""
    text = " ".join([NOISE, *(form.template + form.answer_prefix for form in FORMS.values()), *PROSE, *_SYLLABLES])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *alphabet])}
    merges: dict[tuple[str, str], None] = {}
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word, _ in split.pre_tokenize_str(text):
        for cut in range(1, len(word)):
            merges.setdefault((word[:cut], word[cut]))
            vocabulary.setdefault(word[: cut + 1], len(vocabulary))
    backend = Backend(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, BOS, EOS])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    return Tokenizer(backend)
