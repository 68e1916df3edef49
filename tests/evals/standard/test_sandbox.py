"""Programs that try to harm, to hang or to cheat. Each runs behind the walls; what they must not do is looked at from here.

Each is such that it does little should a wall be missing: the first fork of a bomb shows as much as all of it.
"""

import os
import time

import pytest

from rnope.errors import UserError
from rnope.evals.standard import sandbox
from rnope.evals.standard.sandbox import run_tests

try:
    sandbox.check_walls()
except UserError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.mark.parametrize(
    "program",
    [
        "def f(x):\n    return x + 1\nassert f(1) == 2",
        "import re, math, heapq, collections, itertools, functools, decimal, datetime, random\nassert math.pi > 3",
        "open('x', 'w').write('abc')\nassert open('x').read() == 'abc'",  # the small folder is there
        "print('x' * 10_000_000)",
    ],
)
def test_honest_programs_pass(program):
    assert run_tests(program) == "passed"


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 == 2",
        "def f(:",
        "raise SystemExit(0)",
        "import os; os._exit(0)\nassert False",
        "import sys; sys.exit()\nassert False",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM); os._exit(0)",
        # The word that proves the end is not known before it.
        "import os\nfor end in range(3, 30):\n    try: os.write(end, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
        "print('passed')\nimport os; os.write(1, b'passed'); os._exit(0)",
        "input()",
        "def f(n): return f(n + 1)\nf(0)",
    ],
)
def test_what_ends_before_its_tests_has_not_passed(program):
    assert run_tests(program) == "failed"


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor _ in range(3): os.fork()",
        "import threading; threading.Thread(target=print).start()",
        "import subprocess; subprocess.run(['true'], check=True)",
        "import os; os.execv('/bin/true', ['true'])",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import socket; socket.socket(socket.AF_UNIX)",
        "x = bytearray(4 << 30)",
        "x = []\nfor _ in range(90): x.append(bytearray(1 << 24))",
        "file = open('x', 'wb')\nfor _ in range(100): file.write(bytes(1 << 20))",
        "for i in range(40): open(f'x{i}', 'wb').write(bytes(1 << 20))",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (100, 100))",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', None, 32, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).umount2(b'/proc', 2) == 0",
        "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    ],
)
def test_harm_is_refused(program):
    assert run_tests(program) == "failed"


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_what_does_not_end_is_ended(program):
    started = time.monotonic()
    assert run_tests(program, seconds=1) == "timeout"
    assert time.monotonic() - started < 5


def test_nothing_is_written_outside(tmp_path):
    path = tmp_path / "escape"
    assert run_tests(f"open({str(path)!r}, 'w').write('x')") == "failed"
    path.write_text("mine")
    assert run_tests(f"import os; os.remove({str(path)!r})") == "failed"
    assert path.read_text() == "mine"


def test_keys_of_the_environment_are_not_there(monkeypatch):
    monkeypatch.setenv("RNOPE_TEST_KEY", "secret-of-the-test")
    assert run_tests("import os\nassert 'RNOPE_TEST_KEY' not in os.environ\nassert len(os.environ) < 6") == "passed"
    # Nor by the way of other processes.
    assert run_tests(f"open('/proc/{os.getpid()}/environ').read()") == "failed"
    assert run_tests("import os; assert os.listdir('/proc') == []") == "passed"


def test_other_processes_cannot_be_signalled():
    assert run_tests(f"import os; os.kill({os.getpid()}, 0)") == "failed"
    assert run_tests("import os; os.kill(-1, 9)") == "failed"


def test_without_walls_nothing_runs(monkeypatch, tmp_path):
    driver = tmp_path / "confined.py"
    text = sandbox._DRIVER.read_text()
    driver.write_text(
        text.replace('call("namespaces", LIBC', 'raise RefusedError("none here")\n    call("namespaces", LIBC')
    )
    monkeypatch.setattr(sandbox, "_DRIVER", driver)
    with pytest.raises(UserError, match=r"cannot be run safely here .*none here.*Leave out --run-code"):
        run_tests("assert True")
    driver.write_text(text.replace('call("seccomp", LIBC', 'raise RefusedError("no filter")\n    call("seccomp", LIBC'))
    with pytest.raises(UserError, match="no filter"):
        run_tests("open('/dev/null')")
    driver.write_text("print('failed')")
    with pytest.raises(UserError, match="a program that must pass: failed"):
        sandbox.check_walls()
    driver.write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match="ended with 3"):
        run_tests("assert True")
