"""``rnope bench``: options into a `Plan`, and the printing. Nothing here loads torch before a command runs."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rnope.bench import plan as plans
from rnope.commands import Group
from rnope.errors import ConfigError
from rnope.units import token_counts

DEFAULTS: dict[str, dict[str, Any]] = {
    "attention": dict(lengths="8k", dtype="bf16,fp32", repeats=5),
    "prefill": dict(lengths="2k,8k,16k,32k", dtype="bf16", repeats=3),
    "decode": dict(lengths="8k,32k", dtype="bf16,fp16,fp32", repeats=5),
    "memory": dict(lengths="8k,32k,128k", dtype="bf16", repeats=1),
    "train": dict(lengths="2k,8k", dtype="fp32,bf16", repeats=3, threads="1", peers="full,transformers"),
}
"""What each benchmark measures where nothing is said: the rows of the CPU table."""


@click.group(cls=Group)
def bench() -> None:
    """Measure against named peers and the limits of the machine, taking turns, medians, one JSON file."""


def _command(what: str, summary: str, *more: Callable[[Any], Any]) -> None:
    defaults = DEFAULTS[what]
    options = [
        click.option("--size", default="100m", show_default=True, help="A named size."),
        click.option("--variant", default="rnope-swa", show_default=True, help="The hybrid."),
        click.option("--window", type=int, help="In place of the size's own."),
        click.option("--lengths", default=defaults["lengths"], show_default=True,
                     help="Context tokens: 8192, 8k, 1m. k is 1,024 behind a power of two and 1,000 else."),
        click.option("--dtype", default=defaults["dtype"], show_default=True, help="fp32, bf16, fp16; several."),
        click.option("--threads", default=defaults.get("threads", _threads),
                     show_default=defaults.get("threads", "1 and all"), help="Several are measured in turn."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--repeats", type=int, default=defaults["repeats"], show_default=True, help="Rounds."),
        click.option("--peers", default=defaults.get("peers", ",".join(plans.PEERS)), show_default=True,
                     help="Some of these, or none. full is our model with full attention in every layer."),
        click.option("--chunk", "chunk_tokens", type=int, default=2048, show_default=True,
                     help="Our prefill reads so many tokens at once."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of weights and tokens."),
        *more,
        click.option("--quick", is_flag=True, help="Small buffers, to try the command; its limits mean nothing."),
        click.option("--stop-after", type=float, metavar="SECONDS",
                     help="Begin nothing that would not end in this time; the same command goes on later."),
        click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
                     help=f"Results file; table and figure come beside it [default: out/bench-{what}.json]. What it has "
                     "already is not measured again."),
        click.option("--dry-run", is_flag=True, help="Print what would run, with an estimate of its time, and stop."),
    ]  # fmt: skip

    def command(**given: Any) -> None:
        _run(what, **given)

    command.__doc__ = summary
    for option in reversed(options):
        command = option(command)
    bench.command(what)(command)


def _threads() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return "1" if cores == 1 else f"1,{cores}"


def _run(what: str, *, out: Path | None, dry_run: bool, stop_after: float | None, **given: Any) -> None:
    texts = {name: given.pop(name) for name in ("lengths", "dtype", "threads", "peers")}
    new, ways = given.pop("new_tokens", ""), given.pop("ways", None)
    if "peak_tokens" in given:
        (given["peak_tokens"],) = token_counts(given["peak_tokens"], "peak_tokens") or (0,)
    if ways is not None:
        given["ways"] = plans.listed(ways)
    plan = plans.Plan(
        what=what,
        lengths=token_counts(texts["lengths"]),
        dtypes=plans.dtypes(texts["dtype"]),
        threads=plans.numbers(texts["threads"], "threads"),
        peers=plans.listed(texts["peers"]),
        new_tokens=token_counts(new, "new_tokens"),
        **given,
    )
    if stop_after is not None and stop_after <= 0:
        raise ConfigError("stop_after", stop_after, "must be above 0", "Leave it out to measure everything.")
    from rnope.bench import run

    if dry_run:
        click.echo(run.describe(plan))
        return
    place = out or Path("out") / f"bench-{what}.json"
    command = shlex.join(["rnope", *sys.argv[1:]])
    click.echo(run.bench(plan, place, command=command, console=Console(stderr=True), stop_after=stop_after))
    click.echo(place)


_command("attention", "Time one layer's attention, forward, and forward and backward, against torch's own kernels.",
         click.option("--kv-heads", type=int, help="Heads of keys and values [default: as many as query heads]."))  # fmt: skip
_command(
    "prefill",
    "Time reading a prompt: hybrid against full attention, transformers and llama.cpp.",
    click.option("--new-tokens", default="", metavar="LIST",
                 help="Tokens written behind each length: the time is then from end to end."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the steps behind the prompt."),
    click.option("--transformers-tokens", type=int, default=16384, show_default=True,
                 help="transformers runs up to this length: its masks are L x L."),
    click.option("--llama-tokens", type=int, default=8192, show_default=True, help="llama.cpp runs up to this length."),
)  # fmt: skip
_command(
    "decode",
    "Time one token after another behind a long context: plain, compiled and 8-bit, against transformers and llama.cpp.",
    click.option("--ways", default=",".join(plans.WAYS), show_default=True, help="How our own decode runs; several."),
    click.option("--decoded-tokens", type=int, default=24, show_default=True, help="Tokens of a sample."),
    click.option("--transformers-tokens", type=int, default=131072, show_default=True,
                 help="transformers runs up to this length."),
    click.option("--llama-tokens", type=int, default=8192, show_default=True,
                 help="llama.cpp runs up to this length: it must really read the prompt."),
)  # fmt: skip
_command(
    "memory",
    "Count the bytes that caches hold right after a prefill and later, and the peak memory of a long prefill.",
    click.option("--peak", default="model", show_default=True,
                 help="Whose peak: of the model, of a thin one with the same caches, or none."),
    click.option("--peak-tokens", default="128k", show_default=True, help="The prompt of the peak."),
)  # fmt: skip
_command(
    "train",
    "Time one step of training and look at its peak memory: hybrid against full attention and transformers.",
    click.option("--ways", default="plain,mixed", show_default=True,
                 help="How ours trains: plain (all in the row's dtype), mixed (float32 weights, bf16 products), fp8. With "
                 "full attention the first of them."),
    click.option("--layers", type=int, help="In place of the size's own."),
    click.option("--checkpoint", is_flag=True, help="Compute activations again in the backward pass."),
    click.option("--compile", "compiled", is_flag=True, help="Compile the blocks."),
    click.option("--transformers-tokens", type=int, default=16384, show_default=True,
                 help="transformers runs up to this length: its masks are L x L."),
)  # fmt: skip


@bench.command()
@click.argument("file", type=click.Path(path_type=Path))
def figure(file: Path) -> None:
    """Write table and figure of FILE again, which `rnope bench` has written."""
    from rnope.bench.record import read
    from rnope.bench.run import write_pages

    for path in write_pages(read(file), file):
        click.echo(path)
