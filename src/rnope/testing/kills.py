"""Kill a small training run again and again, and see that it ends with the same bits as one that was never killed.

    python -m rnope.testing.kills --kills 100 --seed 0

Three stages with a change of theta, of row lengths and of the optimizer's state between them.
"""

import argparse
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file

from rnope import recipes
from rnope.data.shards import Index, Split, Vocabulary, shard_path, write_shard
from rnope.parallel.mesh import joined
from rnope.testing.killing import hammer
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
    return hammer(lambda out: run(root, out, changes), contents, root, kills=kills, seed=seed)


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
