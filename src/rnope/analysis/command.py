"""``rnope analyze``: options into models and texts. Nothing here loads torch before the command runs."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from rnope.evals import options

if TYPE_CHECKING:
    from rnope.analysis.opening import Opened
    from rnope.analysis.texts import Texts
    from rnope.evals.frame import Frame


@click.command()
@click.option("--model", "models", multiple=True, required=True, metavar="MODEL",
              help="A model folder, or transformers:FOLDER. May be repeated.")  # fmt: skip
@options.NAME
@options.LENGTHS
@click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Of each length.")
@click.option("--out", default="out/analysis", show_default=True, type=click.Path(path_type=Path), help="Folder for samples, "
              "results and page. Run again with it to go on, or to add models, lengths and samples.")  # fmt: skip
@click.option("--generate", "new_tokens", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
              help="Let the model write N tokens, and look from there, instead of giving it the answer.")  # fmt: skip
@click.option("--samples-file", type=click.Path(path_type=Path), help="JSON Lines of your own texts and segments (see "
              "docs/analysis.md), in place of needles; --lengths and --samples do not count then.")  # fmt: skip
@options.HAYSTACK
@options.DTYPE
@options.DEVICE
@options.THREADS
@options.chunk("Texts are read in chunks of so many tokens; of so many rows at once is attention kept.")
@options.SEED
@options.CHAT
@options.DRY_RUN
def analyze(
    models: tuple[str, ...], names: tuple[str, ...], lengths: str, samples: int, out: Path, new_tokens: int,
    samples_file: Path | None, haystack: str | None, dtype: str | None, device: str, threads: int | None, chunk: int,
    seed: int, chat: bool, dry_run: bool,
) -> None:  # fmt: skip
    """See where models look: what their attention gives to a needle, to the begin, to what is near, at any length."""
    # Threads that wait long for each other stand still where another program takes a core.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    from rnope.analysis import run, texts
    from rnope.evals.models.opening import ModelOptions

    if samples_file is not None and (chat or haystack is not None):
        raise click.UsageError("--samples-file has whole texts: leave --chat and --haystack out.")
    called = options.model_names(models, names)
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)

    def build(opened: "Opened", frame: "Frame") -> "Texts":
        tokenizer = opened.model.tokenizer
        if samples_file is not None:
            return texts.file_texts(samples_file, tokenizer, new_tokens=new_tokens)
        return texts.needles(
            tokenizer, frame, lengths=options.lengths(lengths, opened.model.facts), samples=samples, seed=seed,
            haystack=haystack, new_tokens=new_tokens,
        )  # fmt: skip

    given = list(zip(models, called, strict=True))
    opening = ModelOptions(dtype=dtype, device=device, chunk=chunk)
    if dry_run:
        click.echo(run.dry_run(given, build, options=opening, chat=chat, console=console))
        return
    command = shlex.join(["rnope", *sys.argv[1:]])
    run.analyze(given, build, out, options=opening, chat=chat, console=console, command=command)
    for name in ("report.html", "report.md", "analysis.json", "arrays"):
        click.echo(out / name)
