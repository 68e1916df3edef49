"""The command line: parse, call, print. Exit codes: 0 done, 2 the user's mistake (one message), 1 ours, 130 Ctrl-C."""

import errno
import io
import os
import shlex
import sys
import traceback
from pathlib import Path

import click
from rich.console import Console

from rnope import __version__, recipes
from rnope.analysis.command import analyze
from rnope.bench.command import bench
from rnope.commands import Group
from rnope.complete.command import generate
from rnope.data.command import data
from rnope.errors import ConfigError, UserError, unknown
from rnope.evals.command import evaluation
from rnope.hf.command import convert, export
from rnope.train.command import train

console = Console()
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_BARRED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
"""What goes wrong with a place to write that the user chose, by its number."""


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def app() -> None:
    """Hybrid attention done right: train, ask and compare attention layouts of long-context language models."""


@app.command(help=f"Train every arm of RECIPE, ask for needles far beyond the trained length, and write a page beside the "
             f"paper's own numbers.\n\nRECIPE is one that ships ({', '.join(recipes.shipped())}) or a .toml file.")  # fmt: skip
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results, report and models [default: out/RECIPE]."
              " Run again with the same folder to go on after an interruption.")  # fmt: skip
@click.option("--corpus", help="Text to fill contexts with: a .txt, .md, .rst, .jsonl or .jsonl.gz file or a folder of "
              "them [default: the English that Python itself carries].")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True,
              help="Processes, one thread each.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE",
              help="Change the recipe, for example stages.pretrain.steps=100. May be repeated.")  # fmt: skip
@click.option("--shard", "shards", multiple=True, metavar="ARM[:SEED]", help="Do only this part, at one seed or at all of "
              "its seeds, and write no results. May be repeated; --dry-run lists them.")  # fmt: skip
@click.option("--merge", multiple=True, metavar="FOLDER", type=click.Path(path_type=Path), help="First take over the "
              "finished work of another run's --out, where this one has none. May be repeated.")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Begin nothing after so many minutes and stop "
              "trainings at a checkpoint: what is left is said, the exit code is 0, and the same command goes on.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the resolved plan (layers, stages, tokens, FLOPs, time) and stop.")
def compare(
    recipe: str, out: Path | None, corpus: str | None, workers: int, changes: tuple[str, ...], shards: tuple[str, ...],
    merge: tuple[Path, ...], minutes: float | None, dry_run: bool,
) -> None:  # fmt: skip
    resolved = recipes.load(recipe, changes)
    if dry_run:
        from rnope.compare.preview import preview
        from rnope.compare.shards import parse

        parse(resolved, shards)

        click.echo(preview(resolved))
        return
    from rnope.compare.run import compare as run

    folder = out or Path("out") / resolved.name
    command = shlex.join(["rnope", *sys.argv[1:]])
    results = run(
        resolved, corpus=corpus, out=folder, workers=workers, console=console, command=command, shards=shards,
        merge=merge, minutes=minutes,
    )  # fmt: skip
    if results is not None:
        click.echo(folder / "report.html")


@app.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write page, Markdown and figures again from FOLDER/results.json."""
    from rnope.report import write_report
    from rnope.results import Results

    for path in write_report(Results.load(folder / "results.json"), folder):
        click.echo(path)


@app.command()
@click.argument("model", required=False)
@click.option("--size", help="A named size for a variant: 8b (the paper's), cpu, tiny [default: 8b].")
def layers(model: str | None, size: str | None) -> None:
    """Print what each layer of MODEL does, its parameters and its cache.

    MODEL is a variant (none given: all of them), or a model folder or config.json, whose keys without a use are printed too.
    """
    from rnope.compare.preview import describe
    from rnope.hf.show import file_sizes
    from rnope.model.spec import VARIANTS

    path = Path(model or "").expanduser()
    if model is None or model in VARIANTS:
        for name in [model] if model else list(VARIANTS):
            click.echo(describe(name, size or "8b"))
    elif not path.exists():
        raise unknown("variant", model, "variant, and no model folder or config.json of that name", VARIANTS)
    elif size is not None:
        raise ConfigError("size", size, "a model folder has the size that it has", "Leave --size out.")
    else:
        click.echo(file_sizes(path))


for command in (analyze, bench, convert, data, evaluation, export, generate, train):
    app.add_command(command)


def main() -> None:
    """Entry point of ``rnope`` and ``python -m rnope``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # θ where the terminal has none
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; a user's mistake is one message on standard error."""
    try:
        app.main(arguments, prog_name="rnope", standalone_mode=False)
        return 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        return _fail(f"{error.format_message()} See `rnope --help`, or --help behind a command.")
    except UserError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes the end of any file for the user's
            return _ours()
        click.echo("\nStopped. Finished work is kept: run the same command again to go on.", err=True)
        return 130
    except OSError as error:
        if error.errno not in _FULL | _BARRED:
            return _ours()
        where = f" ({error.filename})" if error.filename else ""
        remedy = "Make room" if error.errno in _FULL else "Choose another folder"
        return _fail(f"{error.strerror}{where}. Finished work is kept. {remedy}, and run the same command again.")
    except Exception:
        return _ours()


def _fail(message: str) -> int:
    click.echo(f"rnope: {message}", err=True)
    return 2


def _ours() -> int:
    traceback.print_exc()
    click.echo("rnope: this is a fault of rnope, not yours. Please report it with the lines above.", err=True)
    return 1
