"""RULER's 13 tasks as its files `synthetic.yaml` and `constants.py` have them. No texts, no tokens.

Everything in this folder that is said of "the original" is said of NVIDIA/RULER (Apache-2.0) at `REVISION`; the words of the
prompts are its own, since they must be.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rnope.errors import check, unknown

REVISION = "c3f5e3b4f87f97e048793bb510a3a6b19a46bf3a"

Kind = Literal["niah", "vt", "cwe", "fwe", "qa"]
Haystack = Literal["noise", "essay", "needle"]
Word = Literal["words", "numbers", "uuids"]
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The words around a context, to be filled in by `str.format`."""

    template: str
    answer_prefix: str
    max_new_tokens: int


FORMS: dict[Kind, Form] = {
    "niah": Form(
        template="Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will "
        "quiz you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} for "
        "{query} mentioned in the provided text?",
        answer_prefix=" The special magic {type_needle_v} for {query} mentioned in the provided text are",
        max_new_tokens=128,
    ),
    "vt": Form(
        template="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
        "Question: Find all variables that are assigned the value {query} in the text above.",
        answer_prefix=" Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are "
        "assigned the value {query}, they are: ",
        max_new_tokens=30,
    ),
    "cwe": Form(
        template="Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
        "that appear most often.\n{context}\nQuestion: What are the 10 most common words in the above list?",
        answer_prefix=" Answer: The top 10 words that appear most often in the list are:",
        max_new_tokens=120,
    ),
    "fwe": Form(
        template="Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are "
        "the three most frequently appeared words in the above coded text?",
        answer_prefix=" Answer: According to the coded text above, the three most frequently appeared words are:",
        max_new_tokens=50,
    ),
    "qa": Form(
        template="Answer the question based on the given documents. Only give me the answer and do not output any other "
        "words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given documents. "
        "Only give me the answer and do not output any other words.\n\nQuestion: {query}",
        answer_prefix=" Answer:",
        max_new_tokens=32,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. Fields after `kind` belong to needles, but for `dataset`."""

    name: str
    kind: Kind
    haystack: Haystack = "essay"
    keys: Word = "words"
    values: Word = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    dataset: Literal["squad", "hotpotqa"] = "squad"

    @property
    def form(self) -> Form:
        return FORMS[self.kind]

    @property
    def group(self) -> str:
        """The category of the paper that introduced RULER."""
        groups = {"niah": "retrieval", "vt": "multi-hop", "cwe": "aggregation", "fwe": "aggregation", "qa": "qa"}
        return groups[self.kind]


TASKS = {
    task.name: task
    for task in (
        Task(name="niah_single_1", kind="niah", haystack="noise"),
        Task(name="niah_single_2", kind="niah"),
        Task(name="niah_single_3", kind="niah", values="uuids"),
        Task(name="niah_multikey_1", kind="niah", num_keys=4),
        Task(name="niah_multikey_2", kind="niah", haystack="needle"),
        Task(name="niah_multikey_3", kind="niah", haystack="needle", keys="uuids", values="uuids"),
        Task(name="niah_multivalue", kind="niah", num_values=4),
        Task(name="niah_multiquery", kind="niah", num_keys=4, num_queries=4),
        Task(name="vt", kind="vt"),
        Task(name="cwe", kind="cwe"),
        Task(name="fwe", kind="fwe"),
        Task(name="qa_1", kind="qa", dataset="squad"),
        Task(name="qa_2", kind="qa", dataset="hotpotqa"),
    )
}
GROUPS = {
    "retrieval": tuple(name for name, task in TASKS.items() if task.kind == "niah"),
    "qa": tuple(name for name, task in TASKS.items() if task.kind == "qa"),
    "all": tuple(TASKS),
}


def chosen(names: Iterable[str]) -> tuple[Task, ...]:
    """The tasks of names and groups, each once, in RULER's order.

    Raises:
        ConfigError: a name that is neither, or none at all.
    """
    given = list(names)
    for name in given:
        if name not in TASKS and name not in GROUPS:
            raise unknown("tasks", name, "task or group of tasks", [*GROUPS, *TASKS])
    check("tasks", given, bool(given), "are none", "Give names, or retrieval, qa or all.")
    wanted = {task for name in given for task in GROUPS.get(name, (name,))}
    return tuple(task for name, task in TASKS.items() if name in wanted)
