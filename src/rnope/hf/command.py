"""``rnope export`` and ``rnope convert``: options, calls, printing. Nothing here loads torch before a command runs."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", type=click.Choice(["gguf"]), default="gguf", show_default=True, expose_value=False,
              help="gguf is one file for llama.cpp; it needs `pip install gguf`.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
              help="Type of the matrices; norms are f32 always [default: as stored].")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option("--no-tokenizer", is_flag=True, help="Leave FOLDER's tokenizer out: the file then takes token ids only.")
def export(folder: Path, dtype: str | None, out: Path, no_tokenizer: bool) -> None:
    """Write the model of FOLDER in another program's format, its tokenizer and chat template inside."""
    from rnope.hf.configs import read_config, read_context_tokens
    from rnope.hf.folder import load
    from rnope.hf.gguf import architecture, export_gguf
    from rnope.tokenizer import Tokenizer

    architecture(read_config(folder))  # refused before the weights are opened
    context_tokens = read_context_tokens(folder)
    tokenizer = None if no_tokenizer or not (folder / "tokenizer.json").exists() else Tokenizer.load(folder)
    model = load(folder)
    with _writing() as progress:
        export_gguf(model, out, dtype=dtype, tokenizer=tokenizer, context_tokens=context_tokens, progress=progress)
    click.echo(out)


@contextmanager
def _writing() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error while weights are written; none where nobody watches."""
    console = Console(stderr=True)
    columns = TextColumn("writing"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--to", "variant", required=True, metavar="VARIANT", help="Whose layers: rnope-swa, for example; "
              "`rnope layers` prints all.")  # fmt: skip
@click.option("--window", type=int, help="Tokens that a windowed layer sees, the current one counted.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the converted model.")
def convert(folder: Path, variant: str, window: int | None, out: Path) -> None:
    """Give the weights of FOLDER the layers of another variant: where training goes on from RoPE to the hybrid.

    FOLDER is a Hugging Face model of type cohere or cohere2, whoever trained it. Weights, tokenizer and context length
    stay; what comes out is to be healed by training.
    """
    from rnope.hf.convert import conversion
    from rnope.hf.convert import convert as run

    plan = conversion(folder, variant, window=window)
    console = Console(stderr=True)
    for name, config in (("before", plan.before), ("after", plan.after)):
        console.print(f"{name}\n{config.layer_table()}", highlight=False, markup=False, soft_wrap=True)
    with console.status("writing the weights"):
        run(plan, out)
    for note in (*plan.notes, "These weights never saw such layers: heal them by training before use."):
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    place = shlex.quote(str(out))
    for line in (
        f"rnope data build TEXT --tokenizer {place} --out DATA",
        f"rnope train uptrain --start {place} --data web=DATA",
    ):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    click.echo(out)
