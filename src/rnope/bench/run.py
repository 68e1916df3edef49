"""One benchmark from plan to file, table and figure; and what a dry run prints instead."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rnope.bench import attention, decode, machine, memory, prefill, train
from rnope.bench.figure import draw
from rnope.bench.kit import Kit
from rnope.bench.limits import set_threads
from rnope.bench.plan import Plan
from rnope.bench.record import Record
from rnope.bench.table import markdown
from rnope.bench.timing import Entry, OutOfTime, Row, interleave
from rnope.files import beside, write_text
from rnope.model.accounting import cache_bytes, parameters
from rnope.units import flops, size

ROWS: dict[str, Callable[[Plan, Kit], list[Row]]] = {
    "attention": attention.rows, "prefill": prefill.rows, "decode": decode.rows, "memory": memory.rows,
    "train": train.rows,
}  # fmt: skip


def bench(plan: Plan, out: Path | None, *, command: str, console: Console, stop_after: float | None = None) -> str:
    """Measure what `out` lacks of `plan`, and write table and figure beside it.

    Args:
        plan: what to measure.
        out: the JSON file; None keeps nothing.
        command: the command line, for the file.
        console: for the progress bar.
        stop_after: seconds after which nothing new is begun that would not end in them.

    Returns:
        the table, Markdown.
    """
    with _kit(plan) as kit:
        rows = ROWS[plan.what](plan, kit)
        record = Record(out, head(plan), machine.session(command))
        watch = Follow(rows, record, plan.repeats, console, stop_after)
        stopped = ""
        with watch.bar:
            try:
                for row in rows:
                    set_threads(row.threads)
                    interleave(row, record, plan.repeats, watch)
            except OutOfTime as error:
                stopped = f"\nStopped before {error}: run the same command again to go on.\n"
        record.write()
    if out is not None:
        write_pages(record.data, out)
    return markdown(record.data) + stopped


def head(plan: Plan) -> dict[str, object]:
    """What the results file begins with."""
    config = plan.config
    model = {
        "variant": plan.variant, "size": plan.size, "parameters": parameters(config), "layers": len(config.layers),
        "kinds": config.kinds(), "width": config.width, "heads": config.heads, "kv_heads": config.kv_heads,
        "head_size": config.head_size, "vocab_size": config.vocab_size,
        "window": max((spec.window or 0 for spec in config.layers), default=0),
    }  # fmt: skip
    return {"plan": plan.identity(), "model": model, "machine": machine.machine(plan.device)}


def write_pages(data: Mapping[str, Any], out: Path) -> list[Path]:
    """The table and the figure beside `out`; from the file's contents alone.

    Returns:
        what was written.
    """
    written = [out.with_suffix(".md")]
    write_text(written[0], markdown(data))
    picture = draw(data)
    if picture is not None:
        written.append(out.with_suffix(".png"))
        with beside(written[1]) as place:
            place.write_bytes(picture)
    return written


def describe(plan: Plan) -> str:
    """What would run: shapes, FLOPs, bytes, backends, expected minutes."""
    with _kit(plan) as kit:
        rows = ROWS[plan.what](plan, kit)
        config = plan.config
        lines = [
            f"{plan.what} of {plan.variant}, size {plan.size}: {parameters(config):,} parameters on {plan.device}",
            config.layer_table(),
            *(attention.backends(plan, dtype) for dtype in plan.dtypes),
        ]
        for tokens in sorted(plan.lengths):
            held = {name: cache_bytes(each, tokens) for name, each in kit.models.configs.items()}
            lines.append(
                f"cache at {tokens:,} tokens in 16 bits: {size(held['hybrid'])}, with full attention {size(held['full'])}"
            )
        total = 0.0
        for row in rows:
            lines.append(f"\n{row}")
            for entry in row.entries:
                took = entry.expected_seconds * plan.repeats + entry.warm_seconds
                total += took
                work = f"{flops(entry.flops):>12}" if entry.flops else f"{size(entry.bytes):>12}"
                lines.append(f"  {entry.name:<52}{work}  {took / 60:6.1f} min")
            lines += [f"  {note}" for note in row.notes]
        rates = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {dtype} on {n}" for (dtype, n), rate in kit._rates.items())
        lines.append(
            f"\nexpected: {total / 60:.0f} minutes for {plan.repeats} rounds, guessed from {rates or 'nothing'} thread(s)"
        )
        return "\n".join(lines)


@contextmanager
def _kit(plan: Plan) -> Iterator[Kit]:
    kit = Kit(plan)
    try:
        yield kit
    finally:
        kit.close()


class Follow:
    """A bar for the console, and the time that is left."""

    def __init__(
        self, rows: list[Row], record: Record, repeats: int, console: Console, stop_after: float | None
    ) -> None:
        self.rows, self.record, self.repeats, self.stop_after = rows, record, repeats, stop_after
        self.started = time.monotonic()
        columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=self._left()[0])
        self.console = console

    def before(self, row: Row, entry: Entry, expected_seconds: float) -> None:
        _, left = self._left()
        text = f"{row}: {entry.name}, {expected_seconds:.0f} s; about {left / 60:.0f} min left"
        self.bar.update(self.task, description=text)
        if not self.console.is_terminal and expected_seconds > 20:
            print(text, file=sys.stderr, flush=True)
        if self.stop_after is not None and time.monotonic() - self.started + expected_seconds > self.stop_after:
            raise OutOfTime(f"{row}: {entry.name}")

    def after(self) -> None:
        self.bar.advance(self.task)

    def _left(self) -> tuple[int, float]:
        """Measurements that are still to be made, warm-ups included, and their seconds."""
        count, total = 0, 0.0
        for row in self.rows:
            for entry in row.entries:
                place = self.record.contestant(row.key, entry.name, entry.described())
                if place["error"] is None and len(place["samples"]) < self.repeats:
                    lacking = self.repeats - len(place["samples"])
                    count += lacking + 1
                    total += lacking * (place.get("wall_seconds") or entry.expected_seconds) + entry.warm_seconds
        return count, total
