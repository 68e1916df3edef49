"""``rnope data``: options into a `BuildRequest`, and the printing. Nothing here loads numpy before a command runs."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from rnope.commands import Group
from rnope.data.examples_command import examples

if TYPE_CHECKING:
    from rnope.data.shards import Index, Shards

LONG = (8_192, 32_768, 131_072)
"""Lengths that a trainer of long contexts asks for."""
SHOWN = 1000
"""Characters of a document that are printed; of longer ones head and tail."""


@click.group(cls=Group)
def data() -> None:
    """Turn text into token shards that `rnope train` reads, and show what is in them."""


@data.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the shards. Run again with the "
              "same folder to go on after an interruption.")  # fmt: skip
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder with a tokenizer.json: any Hugging Face one."
)
@click.option(
    "--vocab-size",
    type=int,
    help="In place of --tokenizer: train a byte-level BPE of this size on the input, with a chat template.",
)
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default="all cores",
              help="Processes that tokenise. The result does not depend on it.")  # fmt: skip
@click.option("--shard-tokens", type=int, default=100_000_000, show_default=True,
              help="A shard ends with the MiB of input that fills it; what a kill loses at most.")  # fmt: skip
@click.option("--validation", type=float, default=0.005, show_default=True,
              help="Share of the documents that is kept for validation, by a digest of their text.")  # fmt: skip
@click.option("--text-field", default="text", show_default=True, help="Field or column that holds the text.")
def build(inputs: tuple[str, ...], out: Path, workers: int, **options: Any) -> None:
    """Tokenise INPUT... into memory-mapped shards.

    INPUT is a file, a folder of files, or datasets:NAME[:CONFIG[:SPLIT]] (needs `pip install datasets`). Files:
    .txt, .md, .rst (a document each), .jsonl (a line each), any of these as .gz, and .parquet (a row each; needs
    `pip install pyarrow`). A line or row has its text in --text-field, or is an example with `prompt` and
    `completion`, of which only the completion is learned, or a conversation with `messages` ({role, content} each),
    written as the tokenizer's chat template has it, of which only the last answer and what ends it are learned: for
    more answers give the conversation again, up to each. Repeated and empty documents are dropped, and counted.
    """
    from rnope.data.build import BuildRequest
    from rnope.data.build import build as run

    request = BuildRequest(inputs=inputs, **options)
    started = time.perf_counter()
    with _bar() as report:
        index, fresh = run(request, out, workers=workers, report=report)
    seconds = time.perf_counter() - started
    console = Console()
    _print(console, out, index)
    if fresh:
        rate = f"{fresh / seconds:,.0f} tokens/s by {workers} worker{'s' if workers > 1 else ''}"
        console.print(f"{fresh:,} tokens in {seconds:,.1f} s, {rate}.")
    else:
        console.print("It was built before.")
    click.echo(out)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read everything and compare it with the checksums.")
@click.option("--documents", type=click.IntRange(min=0), default=0, show_default=True,
              help="Print so many documents of each split, as text.")  # fmt: skip
def show(folder: Path, verify: bool, documents: int) -> None:
    """Print what `rnope data build` left in FOLDER: splits, sources, counts, shares of long documents."""
    from rnope.data.shards import Index

    index = Index.read(folder)
    console = Console()
    _print(console, folder, index)
    for shards in _splits(folder, index):
        shards.check_sizes()
        if verify:
            shards.verify()
            console.print(f"{shards.split}: {3 * len(shards.shards)} files are what was written.")
    for shards in _splits(folder, index):
        _print_documents(shards, documents)


def _splits(folder: Path, index: "Index") -> "list[Shards]":
    from rnope.data.shards import SPLITS, Shards

    return [Shards(folder, split, index) for split in SPLITS if getattr(index, split)]


def _print(console: Console, folder: Path, index: "Index") -> None:
    title = "Last columns: share of the tokens that stand in documents longer than so"
    table = _table("split", "documents", "tokens", "mean", *map(_thousands, LONG), caption=title)
    for shards in _splits(folder, index):
        lengths = shards.lengths()
        long = [f"{lengths[lengths > length].sum() / shards.tokens:.1%}" for length in LONG]
        mean = f"{shards.tokens / shards.documents:,.0f}"
        table.add_row(shards.split, f"{shards.documents:,}", f"{shards.tokens:,}", mean, *long)
    console.print(table)
    table = _table("input", "documents", "tokens", "empty", "repeated")
    for source in index.sources:
        counts = (source.documents, source.tokens, source.empty, source.duplicates)
        table.add_row(source.name, *(f"{count:,}" for count in counts))
    console.print(table)
    vocabulary = index.vocabulary
    console.print(
        f"Tokenizer {vocabulary.digest[:16]}: {vocabulary.vocab_size:,} tokens, BOS {vocabulary.bos_id}, "
        f"EOS {vocabulary.eos_id}, PAD {vocabulary.pad_id}.", highlight=False
    )  # fmt: skip
    for split in ("train", "validation"):
        if not getattr(index, split):
            remedy = "a larger --validation" if split == "validation" else "a smaller --validation"
            console.print(f"No document fell into the {split} split: build with {remedy} or more documents.")


def _thousands(tokens: int) -> str:
    return f"> {tokens // 1024}k"


def _table(*headers: str, caption: str | None = None) -> Table:
    """Names on the left, figures on the right and never cut."""
    table = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    table.add_column(headers[0], overflow="fold")
    for header in headers[1:]:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _print_documents(shards: "Shards", count: int) -> None:
    tokenizer = shards.tokenizer() if count else None
    for number, (ids, completion) in enumerate(shards.first_documents(count)):
        assert tokenizer is not None
        click.echo(f"--- {shards.split} {number}: {len(ids):,} tokens")
        parts = (ids[:completion], ids[completion:])
        click.echo("[completion]".join(_shown(tokenizer.decode(part.tolist())) for part in parts if len(part)))


def _shown(text: str) -> str:
    cut = len(text) - SHOWN
    return text if cut <= 0 else f"{text[: SHOWN // 2]} [... {cut:,} characters ...] {text[-SHOWN // 2 :]}"


@contextmanager
def _bar() -> Iterator[Callable[[int, int, int], None]]:
    """A bar on standard error; where the end is not known, it runs to and fro."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda done, total, tokens: progress.update(
            task, completed=done, total=total or None, description=f"{tokens:,} tokens"
        )


data.add_command(examples)
