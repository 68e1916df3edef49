"""Running code that a model wrote. Never in this process; and not at all where the kernel gives no walls to run it behind.

What the walls are, `confined` says. What they are not: the program may read what the user may read (it has no way to send
it anywhere), and a program that is written against `confined` itself may claim to have passed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

from rnope.errors import UserError

Verdict = Literal["passed", "failed", "timeout"]
_VERDICTS: dict[str, Verdict] = {verdict: verdict for verdict in get_args(Verdict)}
SECONDS = 5
"""Of processor time; twice that by the clock."""
MEMORY_BYTES = 1 << 30
FILE_BYTES = 1 << 22
_DRIVER = Path(__file__).with_name("confined.py")


def run_tests(program: str, *, seconds: int = SECONDS) -> Verdict:
    """Run `program`, which ends in its own tests, and say whether it came to its end without an error.

    Raises:
        UserError: there are no walls on this machine.
    """
    said = _said(program, seconds)
    if said not in _VERDICTS:
        raise _no_walls(said)
    return _VERDICTS[said]


def check_walls() -> None:
    """See that code can be run here.

    Raises:
        UserError: it cannot.
    """
    verdict = run_tests("assert True")
    if verdict != "passed":
        raise _no_walls(f"a program that must pass: {verdict}")


def _no_walls(why: str) -> UserError:
    return UserError(
        f"code that a model wrote cannot be run safely here ({why}). It needs Linux 5.12 or newer, x86-64 or arm64, "
        "with user namespaces (in a container: allow unshare and mount). Leave out --run-code."
    )


def _said(program: str, seconds: int) -> str:
    limits = {"seconds": seconds, "memory": MEMORY_BYTES, "file": FILE_BYTES}
    if not sys.platform.startswith("linux"):
        return f"the system is {sys.platform}"
    with tempfile.TemporaryDirectory(prefix="rnope-answer-") as folder:
        # -I -S: no environment, no site; a clean environment besides, since it may hold keys.
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_DRIVER)],
            cwd=folder, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": folder},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = started.communicate(json.dumps({"program": program, **limits}), timeout=2 * seconds + 20)
        except subprocess.TimeoutExpired:
            return "it could not be stopped"
        finally:
            started.kill()  # which ends everything behind the walls too
            started.wait()
    return said.strip() or f"it ended with {started.returncode}"
