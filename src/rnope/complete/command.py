"""``rnope generate``: options, prompt and printing. Nothing here loads torch before the command runs."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnope.errors import UserError

if TYPE_CHECKING:
    from rnope.complete.completer import Completer, Cost


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--file", type=click.File(encoding="utf-8"), help="Read the prompt from a file ('-' is standard input).")
@click.option("--chat", is_flag=True, help="The text is what the user says, or a conversation as JSON: [{role, content}, ...]; "
              "the model answers by its chat template. Without a text, on a terminal: turn by turn.")  # fmt: skip
@click.option("--system", help="With --chat: what the model is told before.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True, help="The answer's length, at most.")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token each time."
)
@click.option("--top-k", type=int, help="Draw from the k likeliest tokens only.")
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest that reach this chance."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the draws.")
@click.option("--ignore-stop", is_flag=True, help="Go on where the model would end.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights [default: as stored]."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--chunk", "prefill_chunk_tokens", type=int, default=2048, show_default=True,
              help="The prompt is read in chunks of so many tokens.")  # fmt: skip
@click.option("--compile", "compiled", is_flag=True, help="Compile the steps of decoding: a start of some seconds, then "
              "up to twice as fast. Pays for long answers.")  # fmt: skip
@click.option("--int8", is_flag=True, help="Decode with weights rounded to 8 bits; with --compile.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU [default: one per core].")
@click.option("--stats", is_flag=True, help="Print tokens/s, time to first token and cache bytes to standard error.")
@click.option("--dry-run", is_flag=True, help="Print what would run (layers, backends, FLOPs, cache bytes) and stop.")
def generate(
    folder: Path, prompt: str | None, file: Any, chat: bool, system: str | None, max_new_tokens: int, temperature: float,
    top_k: int | None, top_p: float, seed: int, ignore_stop: bool, dtype: str | None, device: str, threads: int | None,
    stats: bool, dry_run: bool, **options: Any,
) -> None:  # fmt: skip
    """Continue a text with the model of FOLDER (Hugging Face: config.json, safetensors, tokenizer.json).

    The text is PROMPT, or --file, or what comes through a pipe. The answer is streamed to standard output. With --chat
    and without a text, on a terminal: a conversation until the end of input (Ctrl-D); Ctrl-C ends an answer.
    """
    if system is not None and not chat:
        raise click.UsageError("--system is for --chat; give both.")
    # Threads that wait long for each other stand still where another program takes a core: 20 times slower was seen.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    from rnope.complete.chat import read_messages
    from rnope.complete.completer import Completer, describe
    from rnope.generate import Sample

    if threads is not None:
        torch.set_num_threads(threads)
    converse = chat and not dry_run and prompt is None and file is None and sys.stdin.isatty()
    text = None if converse else _prompt(prompt, file)
    sampling = Sample(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    weights = getattr(torch, dtype) if dtype else None
    model = Completer(folder, dtype=weights, device=device, verify=not dry_run, **options)
    wanted: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "ignore_stop": ignore_stop}
    if text is None:
        _converse(model, system, wanted, stats=stats)
        return
    ids = model.encode_chat(read_messages(text, system)) if chat else model.encode(text)
    if dry_run:
        click.echo(describe(model.engine, len(ids) + max_new_tokens))
        return
    with _reading(len(ids)) as progress:
        pieces, cost = model.stream(ids, progress=progress, **wanted)
        first = next(pieces, "")
    _print(first, pieces)
    if stats:
        _print_cost(cost, model)


def _converse(model: "Completer", system: str | None, wanted: dict[str, Any], *, stats: bool) -> None:
    """Turn by turn, until the end of input."""
    from rnope.complete.chat import Conversation

    conversation = Conversation(model, [] if system is None else [{"role": "system", "content": system}])
    while True:
        try:
            text = input("> ")
        except EOFError:
            click.echo()
            return
        if not text.strip():
            continue
        try:
            with _reading(len(conversation.ask(text))) as progress:
                pieces, cost = conversation.answer(text, progress=progress, **wanted)
                first = next(pieces, "")
            with closing(pieces):
                _print(first, pieces)
        except KeyboardInterrupt:  # ends the answer, not the conversation
            click.echo()
        else:
            if stats:
                _print_cost(cost, model)


def _print(first: str, pieces: Iterator[str]) -> None:
    """The answer, as it comes."""
    click.echo(first, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


def _print_cost(cost: "Cost", model: "Completer") -> None:
    from rnope.complete.completer import cost_lines

    click.echo("\n".join(cost_lines(cost, model.engine)), err=True)


def _prompt(prompt: str | None, file: Any) -> str:
    """The one text that was given."""
    if prompt is not None and file is not None:
        raise click.UsageError("Both PROMPT and --file are given; give one.")
    if prompt is not None:
        return prompt
    if file is None and sys.stdin.isatty():
        raise click.UsageError("No prompt. Give PROMPT, or --file PATH, or pipe a text in.")
    try:
        return str((file or sys.stdin).read()).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"The prompt is not UTF-8 text ({error}). Convert it.") from None


@contextmanager
def _reading(tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error while a prompt of `tokens` is read; none where nobody watches."""
    console = Console(stderr=True)
    columns = TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=tokens)
        yield lambda done: progress.update(task, completed=done)
