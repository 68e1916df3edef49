"""Kill an evaluation of a small model again and again: ``python tests/evals/kills.py --kills 10 --seed 0``.

The folder must end as that of a run that was never killed: answers and results, all but the times in the log.
"""

import argparse
import functools
import hashlib
import tempfile
from pathlib import Path

import torch

from rnope import save
from rnope.evals.frame import Frame
from rnope.evals.models.ours import EngineModel
from rnope.evals.niah.suite import Niah
from rnope.evals.run import evaluate
from rnope.testing import tiny_model
from rnope.testing.killing import hammer
from rnope.tokenizer import Tokenizer

TEXT = "Fish come in from the sea. Boats go out again! Who sees them? Nobody at the harbour does, says the keeper. "


@functools.cache
def opened(folder: Path) -> EngineModel:
    """The model, opened once for all forks."""
    return EngineModel(folder, name="tiny")


def run(root: Path, out: Path) -> None:
    """Evaluate, or go on."""
    model = opened(root / "model")
    suite = Niah(
        model.tokenizer, Frame.bare(model.tokenizer), lengths=(320, 400), depths=2, samples=4, seed=1,
        haystack=str(root / "text.txt"), max_new_tokens=4,
    )  # fmt: skip
    evaluate(model, suite, out)


def contents(out: Path) -> dict[str, str]:
    """Digests of all files but the log."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if ".tmp" in name or ".old" in name:
            found[name] = "left over"
        elif path.is_file() and path.name not in ("log.jsonl", ".lock"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def test_kit(kills: int, seed: int, root: Path) -> str:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([TEXT], vocab_size=280)
    save(tiny_model(vocab_size=280), root / "model", tokenizer)
    (root / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    opened(root / "model")  # once; it has computed nothing yet, so that it may be forked
    return hammer(lambda out: run(root, out), contents, root, kills=kills, seed=seed)


test_kit.__test__ = False  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(test_kit(given.kills, given.seed, Path(folder)))


if __name__ == "__main__":
    main()
