"""Jobs on several processes, one thread each; every result is a file as soon as it is there, and found again next time.

A worker that loses its parent ends itself. After a deadline no job is started and trainings stop at a checkpoint.
Progress goes to the terminal (rich) and to ``run.jsonl``.
"""

import json
import multiprocessing
import os
import queue
import time
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rnope.compare.jobs import Job, job_file, read_result
from rnope.compare.work import Place, perform
from rnope.errors import UserError
from rnope.files import write_text
from rnope.workers import belong_to

_ticks: Any = None


def _start_worker(ticks: Any, parent: int) -> None:
    global _ticks
    import torch

    _ticks = ticks
    torch.set_num_threads(1)
    belong_to(parent)


def _perform(job: Job, place: Place, deadline: float | None) -> tuple[dict[str, Any] | None, float]:
    started = time.monotonic()
    result = perform(job, place, lambda units: _ticks.put((job.id, units)), lambda: _passed(deadline))
    return result, time.monotonic() - started


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.time() >= deadline


class Pool:
    """Runs jobs in the order that their needs and their costs ask for.

    Args:
        deadline: as `time.time`; None: until all is done.
    """

    def __init__(self, place: Place, *, workers: int, console: Console, deadline: float | None = None) -> None:
        self.place = place
        self.workers = workers
        self.console = console
        self.deadline = deadline
        self.results: dict[str, dict[str, Any]] = {}
        """Job id -> result, of all jobs run or found so far."""

    def left(self, jobs: Iterable[Job]) -> dict[str, Job]:
        """Those of `jobs` that are not done, by id. Arms may share jobs: the first to need one gives it its title."""
        todo: dict[str, Job] = {}
        for job in jobs:
            if job.id not in self.results:
                result = read_result(job_file(self.place.out, job.id))
                if result is None:
                    todo.setdefault(job.id, job)
                else:
                    self.results[job.id] = result
        return todo

    def run(self, jobs: Iterable[Job]) -> bool:
        """Do what of `jobs` is not done yet.

        Returns:
            whether every one of them is in `results` now; False when the deadline came first.

        Raises:
            UserError: a worker was killed, as by the system when memory runs out.
        """
        todo = self.left(jobs)
        if not todo or _passed(self.deadline):
            return not todo
        context = multiprocessing.get_context("spawn")
        ticks = context.Queue()
        workers = min(self.workers, len(todo))
        executor = ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(ticks, os.getpid())
        )
        try:
            with self._progress() as progress:
                self._drive(executor, todo, ticks, progress)
            executor.shutdown()
            return all(job_id in self.results for job_id in todo)
        except BaseException as error:
            for process in list((executor._processes or {}).values()):
                process.terminate()
            executor.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "A worker was killed, most likely because memory ran out. Finished work is kept: "
                    "run the same command again, with --workers 1 if it happens again."
                ) from None
            raise
        finally:
            ticks.close()

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def _drive(self, executor: ProcessPoolExecutor, todo: dict[str, Job], ticks: Any, progress: Progress) -> None:
        urgency = _urgency(todo)
        waiting = dict(todo)
        running: dict[Future[tuple[dict[str, Any] | None, float]], Job] = {}
        done_cost = dict.fromkeys(todo, 0.0)
        whole = progress.add_task(f"{len(todo)} jobs", total=sum(job.cost for job in todo.values()))
        bars: dict[str, Any] = {}
        while waiting or running:
            if _passed(self.deadline):
                waiting.clear()
            ready = [job for job in waiting.values() if job.needs not in todo or job.needs in self.results]
            for job in sorted(ready, key=lambda job: -urgency[job.id])[: self.workers - len(running)]:
                del waiting[job.id]
                running[executor.submit(_perform, job, self.place, self.deadline)] = job
                bars[job.id] = progress.add_task(job.title, total=job.units)
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for job_id, units in _drained(ticks):
                if job_id in bars:
                    progress.advance(bars[job_id], units)
                    done_cost[job_id] += todo[job_id].cost * units / todo[job_id].units
            for future in finished:
                job = running.pop(future)
                result, seconds = future.result()
                progress.remove_task(bars.pop(job.id))
                self._log(job, seconds, done=result is not None)
                if result is None:  # the deadline has come: it left a checkpoint
                    waiting.clear()
                    continue
                write_text(job_file(self.place.out, job.id), json.dumps(result))
                self.results[job.id] = result
                done_cost[job.id] = job.cost
                number = f"{sum(job_id in self.results for job_id in todo):>3}/{len(todo)}"
                said = f"[dim]{number}[/dim] {job.title} [dim]{seconds:.1f} s[/dim]"
                self.console.print(said, highlight=False)
            progress.update(whole, completed=sum(min(done_cost[i], todo[i].cost) for i in todo))

    def _log(self, job: Job, seconds: float, *, done: bool) -> None:
        line = {"time": time.time(), "job": job.id, "title": job.title, "seconds": round(seconds, 3), "done": done}
        with (self.place.out / "run.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _urgency(todo: dict[str, Job]) -> dict[str, float]:
    """Cost of a job and of the longest chain that waits for it."""
    after: dict[str, list[Job]] = {}
    for job in todo.values():
        if job.needs in todo:
            after.setdefault(job.needs, []).append(job)
    known: dict[str, float] = {}

    def of(job: Job) -> float:
        if job.id not in known:
            known[job.id] = job.cost + max((of(next_) for next_ in after.get(job.id, [])), default=0.0)
        return known[job.id]

    return {job_id: of(job) for job_id, job in todo.items()}


def _drained(ticks: Any) -> list[tuple[str, int]]:
    found = []
    while True:
        try:
            found.append(ticks.get_nowait())
        except queue.Empty:
            return found
