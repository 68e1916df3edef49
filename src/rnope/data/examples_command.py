"""``rnope data examples``: options into a task and its lengths, and the printing. Libraries load when it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnope.errors import check, unknown
from rnope.units import token_counts

if TYPE_CHECKING:
    from rnope.data.examples.draft import Task

KINDS = ("retrieval", "qa", "translation", "code")


@click.command()
@click.argument("kind")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The .jsonl file to write.")
@click.option("--tokenizer", "folder", required=True, type=click.Path(path_type=Path),
              help="A folder with the tokenizer.json that lengths are counted by.")  # fmt: skip
@click.option("--tokens", default="8k,64k", show_default=True,
              help="Lengths of the examples, by turns: 8192, 8k, 1m. None is longer, few shorter than 95 %.")  # fmt: skip
@click.option("--count", type=int, default=1000, show_default=True, help="Examples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--corpus", help="Text to hide facts in or to translate, or for code a folder of .py files "
              "[default: what Python itself carries].")  # fmt: skip
@click.option("--pairs", type=click.Path(path_type=Path), help="Lines of {question, answer, context} for qa, of "
              "{source, target} for translation, in place of invented ones.")  # fmt: skip
def examples(
    kind: str, out: Path, folder: Path, tokens: str, count: int, seed: int, corpus: str | None, pairs: Path | None
) -> None:
    """Make completion-only examples of KIND: retrieval, qa, translation or code.

    Each is a line {"kind", "prompt", "completion", ...}, for `rnope data build`. Documents, pairs and files that the
    digest of their text keeps for evaluation, about half of them, are left out. Run again after an interruption, it
    goes on where it stopped.
    """
    from rnope.data.examples.file import write_examples
    from rnope.tokenizer import Tokenizer

    lengths = token_counts(tokens, "tokens")
    check("tokens", tokens, bool(lengths), "names no length", "Write 8k,64k.")
    tokenizer = Tokenizer.load(folder)
    task = task_of(kind, corpus, pairs)
    with _bar(kind, count) as progress:
        write_examples(task, tokenizer, out, lengths=lengths, count=count, seed=seed, progress=progress)
    click.echo(out)


def task_of(kind: str, corpus: str | None, pairs: Path | None) -> "Task":
    """The examples of a kind, their material read.

    Raises:
        ConfigError: no such kind, material that it does not take, or none in it to train on.
    """
    from rnope.data.examples import code, material, qa, retrieval, sources, translation

    if kind not in KINDS:
        raise unknown("kind", kind, "kind of examples", KINDS)
    of_pairs: dict[str, type[qa.PairQA | translation.PairTranslation]] = {
        "qa": qa.PairQA,
        "translation": translation.PairTranslation,
    }
    if pairs is not None:
        check("pairs", str(pairs), kind in of_pairs, f"{kind} is made without pairs", "Leave it out.")
        check("corpus", corpus, corpus is None, "the text comes from the pairs", "Leave one out.")
        return of_pairs[kind].read(pairs)
    if kind == "qa":
        check("corpus", corpus, corpus is None, "qa is made of pairs or invented", "Leave it out.")
        return qa.InventedQA()
    if kind == "code":
        return code.Code(sources.training_functions(corpus))
    made_of_text = retrieval.Retrieval if kind == "retrieval" else translation.InventedTranslation
    return made_of_text(material.training_documents(corpus))


@contextmanager
def _bar(kind: str, count: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error; none where nobody watches."""
    console = Console(stderr=True)
    columns = TextColumn(kind), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=count)
        yield lambda done: progress.update(bar, completed=done)
