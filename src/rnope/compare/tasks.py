"""RULER's tasks in the words of the needles: their contexts, which are the same for every model, and their scores.

`rnope.config.TASKS` says how many facts a task hides and asks for, `UNREAD` which of RULER's tasks cannot be said so.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rnope.config import TASKS, TaskName
from rnope.data.needles import UNIT_TOKENS, Context, Haystack, NeedleTask
from rnope.evals.needles import answers
from rnope.evals.ruler.tasks import NOISE
from rnope.intervals import wilson
from rnope.model.decoder import Decoder
from rnope.results import TaskRow
from rnope.tokenizer import Tokenizer

UNREAD = {
    "niah_single_3, niah_multikey_3": "values (and keys) are random identifiers of many tokens; here each is one word",
    "niah_multivalue": "a key has one value in all that the models were taught",
    "vt": "the models were taught no assignments from variable to variable",
    "cwe, fwe": "the models were taught no counting",
    "qa_1, qa_2": "the models were taught no questions in English",
}
"""RULER's other tasks, and why these models cannot read them."""


def noise(tokenizer: Tokenizer) -> Haystack:
    """RULER's sentence as a haystack, which is that sentence over and over."""
    return Haystack([np.array(tokenizer.encode(" " + NOISE), dtype=np.int64)])


def task_context(
    name: TaskName, task: NeedleTask, haystack: Haystack, *, seed: int, context_tokens: int, index: int
) -> Context:
    """The `index`-th context of a task and length, of exactly `context_tokens` tokens: a function of these and the seed.

    Facts are of other keys each and lie at random depths; the haystack goes up to the questions.

    Args:
        haystack: `noise` where the task wants it, else held-out text.

    Raises:
        ConfigError: facts and questions do not fit.
    """
    form = TASKS[name]
    number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng([seed, 79, number, context_tokens, index])
    depths = np.sort(rng.random(form.needles)).tolist()
    # Every fact is asked for, in random order; what comes behind the questions that count is cut off.
    spare = (form.needles - form.asked) * UNIT_TOKENS
    whole = task.context(rng, haystack, context_tokens=context_tokens + spare, depths=depths)
    kept = np.argsort(whole.rows)[: form.asked]
    return Context(
        ids=whole.ids[:context_tokens],
        rows=whole.rows[kept],
        answers=whole.answers[kept],
        spans=tuple(whole.spans[i] for i in kept),
        haystack_tokens=whole.haystack_tokens,
    )


def task_rows(
    model: Decoder,
    task: NeedleTask,
    haystacks: Mapping[bool, Haystack],
    names: Sequence[TaskName],
    *,
    arm: str,
    seed: int,
    needles_seed: int,
    context_tokens: int,
    asked: int,
    tick: Callable[[int], None] = lambda contexts: None,
) -> list[TaskRow]:
    """Ask `asked` questions of every task at one length, or a few more where a context asks several.

    Args:
        haystacks: whether a task wants noise -> what it gets.
        needles_seed: of the contexts, which are the same for every model.
        tick: told the number of contexts done since it was told last.
    """
    rows = []
    for name in names:
        form = TASKS[name]
        haystack = haystacks[form.noise]
        contexts = [
            task_context(name, task, haystack, seed=needles_seed, context_tokens=context_tokens, index=index)
            for index in range(form.contexts(asked))
        ]
        hits, n = sum(map(sum, answers(model, contexts, tick))), len(contexts) * form.asked
        low, high = wilson(hits, n)
        rows.append(
            TaskRow(
                arm=arm,
                seed=seed,
                task=name,
                context_tokens=context_tokens,
                n=n,
                hits=hits,
                score=100 * hits / n,
                low=100 * low,
                high=100 * high,
            )
        )
    return rows
