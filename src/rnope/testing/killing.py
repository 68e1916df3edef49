"""Kill a piece of work again and again, go on each time, and see that it ends as one that was never killed.

Half of the kills come at a random moment; the other half at a random operation on a file (opening, renaming, removing: all of
them can be hit), so that what is being written is hit as often as what is being computed. Every process is a fork. It knows
nothing of the work.
"""

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.symlink"}
"""Operations on files, as Python's audit hooks name them."""


def hammer(
    work: Callable[[Path], None], contents: Callable[[Path], Mapping[str, str]], root: Path, *, kills: int, seed: int
) -> str:
    """Kill `work` so many times; what happened, in a sentence.

    Args:
        work: does the work in a folder, or goes on with it.
        contents: of a folder, what must not depend on kills: name -> text or digest.
        root: a folder to work in.

    Raises:
        AssertionError: a run that was killed ended otherwise than the one that was not.
    """
    whole = root / "whole"
    started = time.monotonic()
    total = operations(lambda: work(whole), whole)
    seconds = time.monotonic() - started
    wanted = contents(whole)
    assert wanted, "there is nothing to compare"
    rng = random.Random(seed)
    done = rounds = 0
    while done < kills:
        rounds += 1
        out = root / f"killed-{rounds}"
        here = 0
        while True:
            still = done + here < kills
            by_time = rng.random() < 0.5
            after = rng.uniform(0, seconds) if still and by_time else None
            at = rng.randint(1, total) if still and not by_time else None
            died = child(lambda out=out: work(out), kill_after=after, kill_at=at, within=out)  # type: ignore[misc]
            assert died in (0, signal.SIGKILL), f"a resumed run failed with {died} after {done + here} kills"
            if died == 0:
                break
            here += 1
        found = contents(out)
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not differing, f"after {here} kills these differ: {differing[:5]}"
        done += here
    return f"{done} kills in {rounds} runs of {seconds:.1f} s and {total} file operations: every run ended with the same bits"


def child(
    work: Callable[[], None], *, kill_after: float | None = None, kill_at: int | None = None, within: Path
) -> int:
    """Do `work` in a fork; the signal it died of, 0 if it ended well.

    Args:
        kill_after: seconds after which it is killed, if it still runs.
        kill_at: number of the operation on a file under `within` at which it kills itself.
    """
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if kill_at is not None:
                _doom(kill_at, str(within))
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                return -os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return -os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _doom(kill_at: int, within: str) -> None:
    """Have this process kill itself at the `kill_at`-th operation on a file under `within`, just before it is done."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in EVENTS and arguments and str(arguments[0]).startswith(within):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def operations(work: Callable[[], None], within: Path) -> int:
    """How many operations on files under `within` a run of `work` makes, found by doing it in a fork."""
    reader, writer = os.pipe()

    def counted() -> None:
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            count += event in EVENTS and bool(arguments) and str(arguments[0]).startswith(str(within))

        sys.addaudithook(hook)
        work()
        os.write(writer, str(count).encode())

    assert child(counted, within=within) == 0
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return int(pipe.read())
