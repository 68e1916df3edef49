"""A contestant in a process of its own, asked through pipes; its module serves one object. No torch here.

Memory is then its own, two libraries that quarrel over a thread's settings do not meet, and a process that ends ends
alone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Worker:
    """A process that runs `module`, which calls `serve`.

    Args:
        module: for ``python -m``.
        threads: of what it computes.
    """

    def __init__(self, module: str, threads: int) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """What the method of the same name in the process returns.

        Raises:
            RuntimeError: it failed, or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._module} ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def serve(make: Callable[[], object]) -> None:
    """Answer requests to the object that `make` makes, until there are no more.

    One JSON request a line, ``[method, arguments]``; one answer a line, ``{"value": …}`` or ``{"error": …}``. Whatever
    else is printed goes to the standard error.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    served = make()
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = {"value": getattr(served, method)(**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
