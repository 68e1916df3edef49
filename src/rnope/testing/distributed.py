"""`run_distributed`: a function on several ranks of this machine, over gloo, as a plain call.

Processes are forked from a server that has loaded torch and nothing else, so that they start in milliseconds and inherit
no threads. Ranks meet through a file in a temporary folder: no ports, so that many runs go side by side.
"""

import importlib
import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class RankTraceback(Exception):
    """Where on its rank an error was raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run_distributed(fn: Callable[..., T], world_size: int, *args: object, timeout_seconds: float = 120.0) -> list[T]:
    """Call ``fn(*args)`` on `world_size` ranks, each a process of one thread in a gloo group; their results, by rank.

    Args:
        fn: a function of a module's top level; by `torch.distributed` it knows its rank.
        world_size: number of ranks.
        args: what it is called with; plain data, or objects of classes that can be imported by name.
        timeout_seconds: for all of it.

    Returns:
        what the ranks returned, copied.

    Raises:
        TimeoutError: some ranks were not done in time. They are ended.
        RuntimeError: a rank died without a word.
        Exception: whatever the first rank to fail raised, caused by a `RankTraceback`. The others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "rnope.testing", "torch.distributed.fsdp"])  # seconds, once
    where = (fn.__module__, fn.__code__.co_filename, fn.__qualname__)
    with tempfile.TemporaryDirectory(prefix="rnope-ranks-") as folder:
        processes, ends = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            job = (where, args, folder, rank, world_size, timeout_seconds, theirs)
            process = context.Process(target=_rank, args=job, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            ends.append(ours)
        try:
            return _collect(processes, ends, time.monotonic() + timeout_seconds)
        finally:
            for process, end in zip(processes, ends, strict=True):
                process.kill()
                process.join()
                process.close()
                end.close()


def _collect(processes: Sequence[Any], ends: Sequence[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        waiting = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(str(rank) for rank in range(len(ends)) if rank not in results)
            raise TimeoutError(f"rank {late} of {len(ends)} did not end in time")
        failures, dead = [], []
        for end in ready:
            rank = ends.index(end)
            try:
                failed, when, payload = pickle.loads(ends[rank].recv_bytes())
            except EOFError:
                dead.append(rank)
                continue
            if failed:
                failures.append((when, rank, payload))
            results[rank] = payload
        if failures:  # The first is the cause, and others may have failed of it.
            _, rank, (error, text) = min(failures, key=lambda failure: failure[:2])
            raise error from RankTraceback(f"On rank {rank}:\n{text}")
        if dead:
            processes[dead[0]].join()
            code = processes[dead[0]].exitcode
            raise RuntimeError(f"rank {dead[0]} ended with exit code {code} and returned nothing")
    return [results[rank] for rank in range(len(ends))]


def _rank(
    where: tuple[str, str, str],
    args: tuple[Any, ...],
    folder: str,
    rank: int,
    ranks: int,
    seconds: float,
    end: Connection,
) -> None:
    """What a process does."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # Not the address that the machine's name stands for, if any.
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        fn = _found(*where)
        store, timeout = (Path(folder) / "store").as_uri(), timedelta(seconds=seconds)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timeout)
        message = pickle.dumps((False, 0.0, fn(*args)))
        dist.barrier()  # A rank that leaves early would break the others' connections.
        dist.destroy_process_group()
    except BaseException as error:
        message = pickle.dumps((True, time.monotonic(), (_portable(error), traceback.format_exc())))
    end.send_bytes(message)
    end.close()


def _found(module: str, file: str, name: str) -> Callable[..., Any]:
    """A function by its names, also of a test module that is not on the path."""
    if module not in sys.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError:
            spec = importlib.util.spec_from_file_location(module, file)
            assert spec is not None and spec.loader is not None
            sys.modules[module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[module])
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _portable(error: BaseException) -> Exception:
    """The error itself if it survives the way, or its words."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = None
    return copy if isinstance(copy, Exception) else RuntimeError(f"{type(error).__name__}: {error}")
