"""Kill a small training run again and again, and see that it ends with the same bits as one that was never killed.

    python -m rnope.testing.kills --kills 100 --seed 0

Three stages with a change of theta, of row lengths and of the optimizer's state between them. Half of the kills come at a
random moment; the other half at a random operation on a file (opening, renaming, removing: all of them can be hit), so that
what is being written is hit as often as what is being computed. Every process is a fork of one that has computed nothing.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from rnope import recipes
from rnope.data.shards import Index, Split, Vocabulary, shard_path, write_shard
from rnope.parallel.mesh import joined
from rnope.tokenizer import Tokenizer
from rnope.train.run import train

RECIPE = """
kind = "training"
name = "kills"
summary = "three small stages to be killed in"
size = "tiny"
vocab_size = 320

[schedules]
main = { peak = 1e-2, end = 1e-3, warmup_steps = 3 }
tune = { peak = 1e-3, shape = "constant" }

[sources]
text = ""

[stages.pretrain]
steps = 24
batch_tokens = 128
context_tokens = 32
schedule = "main"
precision = "fp32"
mixture = [{ source = "text" }]

[stages.extend]
steps = 13
batch_tokens = 192
context_tokens = 96
short_context_tokens = 32
schedule = "main"
precision = "fp32"
theta = 1e6
mixture = [{ source = "text" }, { source = "text", weight = 0.5, longer_than = 40 }]

[stages.tune]
steps = 7
batch_tokens = 96
context_tokens = 96
schedule = "tune"
precision = "fp32"
reset_optimizer = true
mixture = [{ source = "text" }]

[arms.rnope-swa]
variant = "rnope-swa"
stages = ["pretrain", "extend", "tune"]

[execution]
save_steps = 3
log_steps = 2
validation_steps = 10
validation_rows = 2
"""
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.symlink"}
"""Operations on files, as Python's audit hooks name them."""


def write_data(folder: Path) -> None:
    """A source of random documents, some long, with a validation split."""
    tokenizer = Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=300)
    tokenizer.save(folder)
    rng = np.random.default_rng(0)
    entries = {}
    counts: dict[Split, int] = {"train": 300, "validation": 12}
    for split, count in counts.items():
        lengths = rng.integers(1, 120, size=count)
        (folder / split).mkdir()
        ids = rng.integers(3, 300, size=int(lengths.sum()))
        ids[np.cumsum(lengths) - 1] = tokenizer.eos_id
        place, none = (
            shard_path(folder, "train" if split == "train" else "validation", 0),
            np.zeros(count, dtype=np.int64),
        )
        entries[split] = (write_shard(place, [ids], lengths, none, vocab_size=300),)
    vocabulary = Vocabulary(
        digest="kills", vocab_size=300, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id
    )
    Index(vocabulary=vocabulary, train=entries["train"], validation=entries["validation"]).write(folder)


def run(root: Path, out: Path, changes: tuple[str, ...] = ()) -> None:
    """Train, or go on."""
    torch.set_num_threads(1)
    recipe = recipes.load_training(str(root / "kills.toml"), changes)
    with joined(1, device="cpu") as mesh:
        train(recipe, (), data={"text": str(root / "text")}, out=out, mesh=mesh, console=Console(file=io.StringIO()))


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


def contents(out: Path) -> dict[str, str]:
    """Digest of every file that must not depend on kills: weights, moments, models, and the log but for its times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors" and "stages" in path.parts:
            tensors = load_file(path)  # Files of the same tensors differ: their headers have no fixed order.
            whole = hashlib.sha256()
            for key in sorted(tensors):
                whole.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
                whole.update(tensors[key].contiguous().view(torch.uint8).numpy().tobytes())
            found[name] = whole.hexdigest()
        elif path.name == "config.json":
            found[name] = path.read_text(encoding="utf-8")
        elif path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            times = {"seconds", "tokens_per_second", "flops_per_second", "memory_bytes"}
            found[name] = json.dumps([{k: v for k, v in line.items() if k not in times} for line in lines])
        elif ".tmp" in name or ".old" in name:
            found[name] = "left over"
    return found


def test_kit(kills: int, seed: int, root: Path, changes: tuple[str, ...] = ()) -> str:
    """Kill `kills` times; what happened, in a sentence.

    Raises:
        AssertionError: a run that was killed ended otherwise than the one that was not.
    """
    (root / "kills.toml").write_text(RECIPE, encoding="utf-8")
    write_data(root / "text")
    whole = root / "whole"
    started = time.monotonic()
    total = operations(lambda: run(root, whole, changes), whole)
    seconds = time.monotonic() - started
    wanted = contents(whole)
    assert any("model" in name for name in wanted) and not any("left over" in v for v in wanted.values())
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
            died = child(lambda out=out: run(root, out, changes), kill_after=after, kill_at=at, within=out)  # type: ignore[misc]
            assert died in (0, signal.SIGKILL), f"a resumed run failed with {died} after {done + here} kills"
            if died == 0:
                break
            here += 1
        found = contents(out)
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        assert not differing, f"after {here} kills these differ: {differing[:5]}"
        done += here
    return f"{done} kills in {rounds} runs of {seconds:.1f} s and {total} file operations: every run ended with the same bits"


test_kit.__test__ = False  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asynchronous", action="store_true", help="checkpoints written while training goes on")
    given = parser.parse_args()
    changes = ("execution.asynchronous=true",) if given.asynchronous else ()
    with tempfile.TemporaryDirectory() as folder:
        print(test_kit(given.kills, given.seed, Path(folder), changes))


if __name__ == "__main__":
    main()
