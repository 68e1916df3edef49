"""``rnope eval``: options into suites and models. Nothing here loads torch before a command runs."""

import gc
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from rnope.commands import Group
from rnope.evals import options

if TYPE_CHECKING:
    from rnope.evals.frame import Frame
    from rnope.evals.models.model import EvalModel
    from rnope.evals.suite import Suite

Builder = Callable[["EvalModel", "Frame"], "Suite"]

_MODEL_OPTIONS = [
    click.option("--model", "models", multiple=True, required=True, metavar="MODEL",
                 help="A model folder, transformers:FOLDER, or a server (http://HOST:PORT/v1#MODEL). May be repeated."),
    options.NAME,
    click.option("--out", default="out/eval", show_default=True, type=click.Path(path_type=Path), help="Folder for "
                 "answers, results and report. Run again with it to go on, or to add models, lengths and tasks."),
    click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Samples asked together; for a server, at once."),
    options.DTYPE,
    options.DEVICE,
    options.THREADS,
    options.chunk("rnope's engine reads prompts in chunks of so many tokens."),
    click.option("--tokenizer", type=click.Path(path_type=Path),
                 help="For servers: a folder with the served model's tokenizer.json."),
    click.option("--timeout", type=click.FloatRange(min=1), default=600.0, show_default=True,
                 help="For servers: seconds of one request."),
    click.option("--send-text", is_flag=True, help="For servers that take no token ids: send the prompt as text."),
    options.SEED,
    options.DRY_RUN,
]  # fmt: skip


def _asking(*more: Any) -> Callable[[Any], Any]:
    """The options that every evaluation has, behind its own."""

    def decorate(command: Any) -> Any:
        for option in reversed([*more, *_MODEL_OPTIONS]):
            command = option(command)
        return command

    return decorate


@click.group("eval", cls=Group)
def evaluation() -> None:
    """Evaluate any model at long context: needles, RULER, standard benchmarks, perplexity."""


@evaluation.command()
@_asking(
    options.LENGTHS,
    click.option("--depths", type=click.IntRange(min=1), default=11, show_default=True,
                 help="Places of the needle, evenly from begin to end."),
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True,
                 help="Of each length and depth (the paper's 16)."),
    options.HAYSTACK,
    click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True),
    options.CHAT,
)  # fmt: skip
def niah(lengths: str, depths: int, samples: int, haystack: str | None, max_new_tokens: int, **asked: Any) -> None:
    """A needle in a haystack, as the paper asks for it: every cell many times, each with its own needle and text."""
    from rnope.evals.niah.suite import Niah

    _run(
        lambda model, frame: Niah(
            model.tokenizer, frame, lengths=options.lengths(lengths, model.facts), depths=depths, samples=samples,
            seed=asked["seed"], haystack=haystack, max_new_tokens=max_new_tokens,
        ),
        **asked,
    )  # fmt: skip


@evaluation.command()
@_asking(
    options.LENGTHS,
    click.option("--tasks", default="retrieval,qa", show_default=True, help="Names, or retrieval (eight), qa (two), all (13)."),
    click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True,
                 help="Of each task and length; RULER's own default is 500, the paper's figures fit 100."),
    click.option("--data", type=click.Path(path_type=Path), help="Folder with RULER's texts: essays, SQuAD, HotpotQA, words "
                 "(see docs/evaluation.md)."),
    options.CHAT,
)  # fmt: skip
def ruler(lengths: str, tasks: str, samples: int, data: Path | None, **asked: Any) -> None:
    """RULER's 13 tasks, with the prompts of its own generator and its own metrics."""
    from rnope.evals.ruler.suite import Ruler

    names = options.listed(tasks)
    _run(
        lambda model, frame: Ruler(
            model.tokenizer,
            frame,
            tasks=names,
            lengths=options.lengths(lengths, model.facts),
            samples=samples,
            seed=asked["seed"],
            data=data,
        ),
        **asked,
    )


@evaluation.command()
@_asking(
    click.option("--tasks", default="paper", show_default=True,
                 help="paper (tables 2 and 5), longbench, scrolls, or names of the harness."),
    click.option("--data", type=click.Path(path_type=Path), help="Folder with local copies of the data sets [default: the "
                 "harness downloads]. See docs/evaluation.md."),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first so many documents of each task [default: all]."),
    click.option("--shots", type=click.IntRange(min=0), help="Examples before each question [default: each task's own]."),
    click.option("--context-tokens", type=click.IntRange(min=2), help="What the model may read and write, where that is not "
                 "its trained length; longer prompts lose their beginning [default: its trained length]."),
    click.option("--run-code", is_flag=True, help="Allow MBPP to run the code that the model writes, in a separate process."),
)  # fmt: skip
def standard(
    tasks: str, data: Path | None, limit: int | None, shots: int | None, context_tokens: int | None, run_code: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """The paper's standard benchmarks, LongBench and SCROLLS, through lm-evaluation-harness (pip install rnope[eval])."""
    from rnope.evals.standard.suite import Standard

    names = options.listed(tasks)
    _run(
        lambda model, frame: Standard(
            model.tokenizer,
            tasks=names,
            data=data,
            limit=limit,
            shots=shots,
            context_tokens=context_tokens,
            run_code=run_code,
            seed=asked["seed"],
        ),
        **asked,
    )


@evaluation.command()
@_asking(
    options.LENGTHS,
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True,
                 help="Windows of text of each length."),
    click.option("--corpus", help="A file or folder of text [default: the English that Python itself carries]."),
)  # fmt: skip
def perplexity(lengths: str, samples: int, corpus: str | None, **asked: Any) -> None:
    """Perplexity by position in the context and by context length."""
    from rnope.evals.perplexity.suite import Perplexity

    _run(
        lambda model, frame: Perplexity(
            model.tokenizer,
            frame,
            lengths=options.lengths(lengths, model.facts),
            samples=samples,
            seed=asked["seed"],
            corpus=corpus,
        ),
        **asked,
    )


@evaluation.command()
@click.argument("out", type=click.Path(path_type=Path))
def report(out: Path) -> None:
    """Score the kept answers in OUT again and write its page; no model is needed."""
    _report(out)


def _run(
    build: Builder, *, models: Sequence[str], names: Sequence[str], out: Path, batch: int, threads: int | None,
    dry_run: bool, seed: int, chat: bool = False, **more: Any,
) -> None:  # fmt: skip
    # Threads that wait long for each other stand still where another program takes a core.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    from rnope.evals.frame import Frame
    from rnope.evals.models.opening import ModelOptions, check_model, open_model
    from rnope.evals.plan import measure, plan_table
    from rnope.evals.run import evaluate

    for given in models:
        check_model(given)
    called = options.model_names(models, names, taken=("figures",))
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    command = shlex.join(["rnope", *sys.argv[1:]])
    opened = ModelOptions(
        dtype=more["dtype"], device=more["device"], chunk=more["chunk"], tokenizer=more["tokenizer"],
        timeout_seconds=more["timeout"], send_text=more["send_text"], concurrency=batch,
    )  # fmt: skip
    for given, name in zip(models, called, strict=True):
        model = open_model(given, name, opened)
        suite = build(model, Frame.of_chat(model.tokenizer) if chat else Frame.bare(model.tokenizer))
        cells = suite.cells()
        suite.check()
        for note in suite.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        if dry_run:
            speed = measure(model, cells, every_token_scored=suite.every_token_scored)
            click.echo(plan_table(model.facts, cells, speed))
        else:
            console.print(plan_table(model.facts, cells, None), highlight=False, markup=False, soft_wrap=True)
            evaluate(model, suite, out, batch=batch, console=console, command=command)
        del model, suite
        gc.collect()  # before the next one is loaded
    if not dry_run:
        _report(out)


def _report(out: Path) -> None:
    from rnope.evals.page import write_report

    for path in write_report(out):
        click.echo(path)
