"""What an evaluation takes: making RULER's prompts, and the engine beside transformers on the same prompts.

python benchmarks/evaluation.py prompts --tokenizer FOLDER --data TEXTS --out FILE.json
python benchmarks/evaluation.py answers --size 100m --length 4k --out FILE.json
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import rnope
from rnope.bench.machine import machine, session
from rnope.data.corpus import read_corpus
from rnope.evals.frame import Frame
from rnope.evals.models.model import EvalModel
from rnope.evals.models.opening import FORCED, ModelOptions, open_model
from rnope.evals.ruler.suite import Ruler
from rnope.evals.run import evaluate
from rnope.evals.store import Store
from rnope.files import write_text
from rnope.tokenizer import Tokenizer
from rnope.units import token_counts


def prompts(given: argparse.Namespace) -> dict[str, object]:
    """Seconds of each prompt of each task: the first, for which the size is searched, and those after it."""
    tokenizer = Tokenizer.load(given.tokenizer)
    (length,) = token_counts(given.length)
    rows = []
    suite = Ruler(
        tokenizer, Frame.bare(tokenizer), tasks=given.tasks.split(","), lengths=[length], samples=1 + given.repeats,
        seed=42, data=given.data,
    )  # fmt: skip
    for cell in suite.cells():
        seconds, started = [], time.perf_counter()
        for sample in suite.samples(cell, {}):
            seconds.append(round(time.perf_counter() - started, 3))
            tokens, started = len(sample.ids), time.perf_counter()
        first, *others = seconds
        median = statistics.median(others)
        rows.append({"cell": cell.name, "prompt_tokens": tokens, "first": first, "others": others, "median": median})
        print(
            f"{cell.name:28} {tokens:>9,} tokens   first {first:6.2f} s   then {median:5.2f} s (median of {len(others)})"
        )
    encoded = []
    text = tokenizer.decode_answer(sample.ids.tolist())
    for _ in range(3):
        started = time.perf_counter()
        tokenizer.encode_batch([text])
        encoded.append(round(time.perf_counter() - started, 3))
    print(f"encoding the last prompt alone: {statistics.median(encoded):.2f} s")
    return {"rows": rows, "encoding_alone": encoded}


def answers(given: argparse.Namespace) -> dict[str, object]:
    """Answers and wall time of a model with random weights, through the engine and through transformers."""
    torch.set_num_threads(1)
    config = rnope.ModelConfig.variant("rnope-swa", size=given.size)
    texts = [document.text for document in read_corpus(None)]
    tokenizer = Tokenizer.train(texts, vocab_size=min(8192, config.vocab_size))
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        rnope.save(rnope.Decoder(config), folder, tokenizer)
        kept = {}
        for kind, name in ((str(folder), "engine"), (FORCED + str(folder), "transformers")):
            model: EvalModel = open_model(kind, name, ModelOptions(dtype=given.dtype))
            suite = Ruler(
                model.tokenizer, Frame.bare(model.tokenizer), tasks=given.tasks.split(","),
                lengths=token_counts(given.length), samples=given.repeats, seed=42, data=None,
            )  # fmt: skip
            evaluate(model, suite, Path(root) / "out")
            store = Store(Path(root) / "out" / name / "ruler")
            lines = [line for cell in store.cells() for line in store.read(cell.name).values()]
            kept[name] = [(line.prompt_sha256, line.answer, line.ended) for line in lines]
            log = [line for line in store.read_log() if line["event"] == "answers"]
            seconds = sum(line["seconds"] for line in log)
            read, written = (sum(line[key] for line in log) for key in ("prompt_tokens", "new_tokens"))
            row = {"model": name, "seconds": round(seconds, 2), "answers": len(lines)}
            rows.append(row | {"prompt_tokens": read, "new_tokens": written})
            print(f"{name:14} {seconds:8.1f} s   {len(lines)} answers, {read:,} tokens read, {written:,} written")
    same = sum(a == b for a, b in zip(*kept.values(), strict=True))
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    print(f"{same} of {len(kept['engine'])} answers are the same; transformers took {ratio:.2f} times as long")
    return {"rows": rows, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["prompts", "answers"])
    parser.add_argument("--tasks")
    parser.add_argument("--length", default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--size", default="100m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    making = given.what == "prompts"
    given.tasks = given.tasks or ("all" if making else "niah_single_1,niah_multikey_2")
    given.length = given.length or ("256k" if making else "4k")
    found = prompts(given) if making else answers(given)
    if given.out is not None:
        command = shlex.join(["benchmarks/evaluation.py", *sys.argv[1:]])
        about = {"what": given.what, "length": given.length, "machine": machine("cpu"), **session(command)}
        write_text(given.out, json.dumps(about | found, indent=1))


if __name__ == "__main__":
    main()
