"""``rnope eval``: options into suites and models. Nothing here loads torch before a command runs."""

import gc
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from rnope.commands import Group
from rnope.errors import ConfigError, check
from rnope.units import token_counts

if TYPE_CHECKING:
    from rnope.evals.frame import Frame
    from rnope.evals.models.model import EvalModel
    from rnope.evals.suite import Suite

Builder = Callable[["EvalModel", "Frame"], "Suite"]

MOST_TOKENS = 1 << 27
"""Of a context: a slip of the keyboard must not fill the memory with a haystack."""
_MODEL_OPTIONS = [
    click.option("--model", "models", multiple=True, required=True, metavar="MODEL",
                 help="A model folder, transformers:FOLDER, or a server (http://HOST:PORT/v1#MODEL). May be repeated."),
    click.option("--name", "names", multiple=True,
                 help="What reports call the model; once for each --model [default: from its path]."),
    click.option("--out", default="out/eval", show_default=True, type=click.Path(path_type=Path), help="Folder for "
                 "answers, results and report. Run again with it to go on, or to add models, lengths and tasks."),
    click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
                 help="Samples asked together; for a server, at once."),
    click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
                 help="Of the weights [default: as stored]."),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
    click.option("--threads", type=click.IntRange(min=1), help="Of the CPU [default: one per core]."),
    click.option("--chunk", type=click.IntRange(min=1), default=2048, show_default=True,
                 help="rnope's engine reads prompts in chunks of so many tokens."),
    click.option("--tokenizer", type=click.Path(path_type=Path),
                 help="For servers: a folder with the served model's tokenizer.json."),
    click.option("--timeout", type=click.FloatRange(min=1), default=600.0, show_default=True,
                 help="For servers: seconds of one request."),
    click.option("--send-text", is_flag=True, help="For servers that take no token ids: send the prompt as text."),
    click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of the prompts."),
    click.option("--dry-run", is_flag=True, help="Print samples, tokens and hours at the measured speed, and stop."),
]  # fmt: skip
_CHAT = click.option("--chat", is_flag=True, help="Ask in the model's chat template.")
_LENGTHS = click.option(
    "--lengths", default="1x,2x", show_default=True,
    help="Context lengths in tokens, prompt and answer together: 8k,32k,128k; 2x is twice the model's trained length.",
)  # fmt: skip


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
    _LENGTHS,
    click.option("--depths", type=click.IntRange(min=1), default=11, show_default=True,
                 help="Places of the needle, evenly from begin to end."),
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True,
                 help="Of each length and depth (the paper's 16)."),
    click.option("--haystack", help="Text to hide needles in: a file or folder (.txt .md .jsonl .jsonl.gz ...) [default: "
                 "the English that Python itself carries]."),
    click.option("--max-new-tokens", type=click.IntRange(min=1), default=64, show_default=True),
    _CHAT,
)  # fmt: skip
def niah(lengths: str, depths: int, samples: int, haystack: str | None, max_new_tokens: int, **asked: Any) -> None:
    """A needle in a haystack, as the paper asks for it: every cell many times, each with its own needle and text."""
    from rnope.evals.niah.suite import Niah

    _run(
        lambda model, frame: Niah(
            model.tokenizer, frame, lengths=_lengths(lengths, model), depths=depths, samples=samples, seed=asked["seed"],
            haystack=haystack, max_new_tokens=max_new_tokens,
        ),
        **asked,
    )  # fmt: skip


@evaluation.command()
@_asking(
    _LENGTHS,
    click.option("--tasks", default="retrieval,qa", show_default=True, help="Names, or retrieval (eight), qa (two), all (13)."),
    click.option("--samples", type=click.IntRange(min=1), default=100, show_default=True,
                 help="Of each task and length; RULER's own default is 500, the paper's figures fit 100."),
    click.option("--data", type=click.Path(path_type=Path), help="Folder with RULER's texts: essays, SQuAD, HotpotQA, words "
                 "(see docs/evaluation.md)."),
    _CHAT,
)  # fmt: skip
def ruler(lengths: str, tasks: str, samples: int, data: Path | None, **asked: Any) -> None:
    """RULER's 13 tasks, with the prompts of its own generator and its own metrics."""
    from rnope.evals.ruler.suite import Ruler

    names = _names(tasks)
    _run(
        lambda model, frame: Ruler(
            model.tokenizer,
            frame,
            tasks=names,
            lengths=_lengths(lengths, model),
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

    names = _names(tasks)
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
    _LENGTHS,
    click.option("--samples", type=click.IntRange(min=1), default=16, show_default=True,
                 help="Windows of text of each length."),
    click.option("--corpus", help="A file or folder of text [default: the English that Python itself carries]."),
)  # fmt: skip
def perplexity(lengths: str, samples: int, corpus: str | None, **asked: Any) -> None:
    """Perplexity by position in the context and by context length."""
    from rnope.evals.perplexity.suite import Perplexity

    _run(
        lambda model, frame: Perplexity(
            model.tokenizer, frame, lengths=_lengths(lengths, model), samples=samples, seed=asked["seed"], corpus=corpus
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
    dry_run: bool, seed: int, chat: bool = False, **options: Any,
) -> None:  # fmt: skip
    # Threads that wait long for each other stand still where another program takes a core.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    import torch

    from rnope.evals.models.opening import ModelOptions, check_model, default_name, model_folder, open_model
    from rnope.evals.plan import measure, plan_table
    from rnope.evals.run import evaluate

    for given in models:
        check_model(given)
    called = list(names) if names else [default_name(model) for model in models]
    if len(called) != len(models) or len(set(called)) < len(called):
        raise ConfigError(
            "--name", called, f"must be one for each of {len(models)} models, all different", "Give --name."
        )
    for name in called:  # a folder of OUT is called so
        fits = name.isprintable() and re.fullmatch(r"[^\s./][^/]{0,99}", name) is not None and name != "figures"
        check("--name", name, fits, "is no name for a folder", "Use letters, digits, dots and hyphens.")
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    command = shlex.join(["rnope", *sys.argv[1:]])
    opened = ModelOptions(
        dtype=options["dtype"], device=options["device"], chunk=options["chunk"], tokenizer=options["tokenizer"],
        timeout_seconds=options["timeout"], send_text=options["send_text"], concurrency=batch,
    )  # fmt: skip
    for given, name in zip(models, called, strict=True):
        model = open_model(given, name, opened)
        folder = options["tokenizer"] or model_folder(given)
        suite = build(model, _frame(model, folder, chat))
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


def _frame(model: "EvalModel", folder: Path, chat: bool) -> "Frame":
    from rnope.evals.frame import Frame

    return Frame.of_chat(folder) if chat else Frame.bare(model.tokenizer)


def _report(out: Path) -> None:
    from rnope.evals.page import write_report

    for path in write_report(out):
        click.echo(path)


def _lengths(text: str, model: "EvalModel") -> tuple[int, ...]:
    """Token counts; those that are multiples (``2x``) are of the model's trained length."""
    found = []
    for part in _names(text):
        if re.fullmatch(r"[0-9]{1,6}x", part):
            trained = model.facts.trained_tokens
            remedy = "Give lengths in tokens, such as 8k,16k."
            check("--lengths", part, trained is not None, "the model does not say its trained length", remedy)
            found.append(int(part[:-1]) * (trained or 0))
        else:
            found += token_counts(part)
    check("--lengths", text, len(found) > 0, "names no length", "Write 8k,32k or 1x,2x.")
    check("--lengths", max(found), max(found) <= MOST_TOKENS, f"is more than {MOST_TOKENS:,}", "Use shorter contexts.")
    return tuple(sorted(set(found)))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
