"""Kill an analysis of two small models again and again: ``python tests/analysis/kills.py --kills 10 --seed 0``.

The folder must end as that of a run that was never killed: samples, arrays and results, all but times and memory.
"""

import argparse
import functools
import hashlib
import json
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

from rnope import save
from rnope.analysis import opening, page, run, texts
from rnope.analysis.opening import Opened
from rnope.analysis.results import AnalysisResults
from rnope.evals.frame import Frame
from rnope.evals.models.opening import ModelOptions
from rnope.files import write_text
from rnope.testing import tiny_model
from rnope.testing.killing import hammer
from rnope.tokenizer import Tokenizer

TEXT = "Fish come in from the sea. Boats go out again! Who sees them? Nobody at the harbour does, says the keeper. "
MODELS = ("one", "two")
OPTIONS = ModelOptions(chunk=64)
TIMES = ("seconds", "peak_bytes")


@functools.cache
def opened(given: str, name: str, options: ModelOptions) -> Opened:
    """A model, opened once for all forks."""
    return opening.open_probed(given, name, options)


def short(results: AnalysisResults, out: Path) -> None:
    """In place of pages, which take a second each to draw."""
    write_text(out / "report.md", json.dumps([length.n for length in results.lengths]))


def analyze(root: Path, out: Path) -> None:
    """Analyze, or go on."""

    def build(model: Opened, frame: Frame) -> texts.Texts:
        return texts.needles(
            model.model.tokenizer, frame, lengths=(400, 500), samples=3, seed=1, haystack=str(root / "text.txt"),
            new_tokens=0,
        )  # fmt: skip

    run.analyze([(str(root / name), name) for name in MODELS], build, out, options=OPTIONS)


def contents(out: Path) -> dict[str, str]:
    """What all files but the log hold."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if ".tmp" in name or ".old" in name:
            found[name] = "left over"
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="numpy") as file:
                told = {key: json.loads(value) for key, value in file.metadata().items()}
                arrays = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118  no mapping
            sums = {key: hashlib.sha256(values).hexdigest() for key, values in arrays.items()}
            found[name] = json.dumps([timeless(told), sums], sort_keys=True)
        elif path.suffix == ".json":
            found[name] = json.dumps(timeless(json.loads(path.read_text(encoding="utf-8"))))
        elif path.is_file() and path.name not in ("log.jsonl", ".lock"):
            found[name] = path.read_text(encoding="utf-8")
    return found


def timeless(value: object) -> object:
    """Without what differs from run to run."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def kill(kills: int, seed: int, root: Path) -> str:
    """`hammer` on it."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train([TEXT], vocab_size=280)
    for number, name in enumerate(MODELS):
        save(tiny_model("rnope-swa", number, vocab_size=280), root / name, tokenizer, context_tokens=400)
        opened(str(root / name), name, OPTIONS)
    (root / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    run.open_probed, page.write_pages = opened, short
    return hammer(lambda out: analyze(root, out), contents, root, kills=kills, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(kill(given.kills, given.seed, Path(folder)))


if __name__ == "__main__":
    main()
