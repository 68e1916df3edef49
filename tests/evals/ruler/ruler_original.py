"""Runs a checkout of the original and keeps digests of what it made.

    RULER_CHECKOUT=FOLDER PYTHONPATH=src python tests/evals/ruler/ruler_original.py

writes `digests.json` anew. The checkout is copied, never written to; `git clone https://github.com/NVIDIA/RULER` and
`git checkout` of `rnope.evals.ruler.tasks.REVISION` make one. What the original imports and a machine may lack (NLTK,
wonderwords, tenacity, tqdm, the zeta of SciPy) are stubs: ours splits sentences, and the words are ours.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from ruler_texts import make_tokenizer, write_texts

DIGESTS = Path(__file__).with_name("digests.json")
VARIABLE = "RULER_CHECKOUT"


@dataclass(frozen=True)
class Case:
    """A call of the original's prepare.py."""

    task: str
    length: int
    seed: int
    samples: int
    frame: str = "base"

    @property
    def name(self):
        return f"{self.task}-{self.length}-s{self.seed}-{self.frame}"


_RUNNER = """
import importlib.util, json, runpy, shlex, subprocess, sys, types
from pathlib import Path
cases, scripts, tokenizer, out, words, sources = json.loads(sys.argv[1])
sys.path[:0] = [scripts + "/data", scripts + "/data/synthetic", sources]

def module(name, **parts):
    made = types.ModuleType(name)
    made.__dict__.update(parts)
    sys.modules[name] = made
    return made

from rnope.evals.ruler.sentences import sentences
from rnope.evals.ruler import tasks
find = types.SimpleNamespace(find=lambda name: None)
module("nltk", data=find, tokenize=module("nltk.tokenize", sent_tokenize=sentences))
read = lambda name: [line.rstrip() for line in open(words + "/wonderwords_" + name).readlines()]
module("wonderwords", random_word=types.SimpleNamespace(_get_words_from_text_file=read))
same = lambda *a, **k: (lambda f: f)
module("tenacity", retry=same, stop_after_attempt=same, wait_fixed=lambda n: 0, wait_random=lambda a, b: 0)
import logging
for name in ("tqdm", "scipy", "scipy.special"):
    if importlib.util.find_spec(name.split(".")[0]) is None:
        module(name, tqdm=lambda x: x, zeta=lambda a: 1.6449340668482264)
logging.raiseExceptions = False

def run(command, **options):
    before, sys.argv = sys.argv, shlex.split(command)[1:]
    for name in ("niah", "qa"):
        sys.modules.pop(name, None)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before
    return types.SimpleNamespace(returncode=0, stdout="", stderr="")
subprocess.run = run


made = []
for case in cases:
    folder = out + "/" + str(len(made))
    sys.argv = ["prepare.py", "--save_dir", folder, "--task", case["task"], "--tokenizer_path", tokenizer,
                "--tokenizer_type", "hf", "--max_seq_length", str(case["length"]), "--num_samples", str(case["samples"]),
                "--random_seed", str(case["seed"]), "--model_template_type", case["frame"]]
    runpy.run_path(scripts + "/data/prepare.py", run_name="__main__")
    made.append([json.loads(line) for line in open(folder + "/" + case["task"] + "/validation.jsonl")])
json.dump(made, open(out + "/made.json", "w"))
"""


def run_original(checkout: Path, cases: list[Case]) -> list[list[dict]]:
    """What the original makes of each case: its lines, as they are in its files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(checkout / "scripts", folder / "scripts")
        words = write_texts(folder / "texts")
        for path in words.glob("*.json"):
            shutil.copy(path, folder / "scripts/data/synthetic/json" / path.name)
        make_tokenizer().save(folder / "tokenizer")
        sources = Path(__file__).parents[3] / "src"
        arguments = [[asdict(case) for case in cases], folder / "scripts", folder / "tokenizer", folder, words, sources]
        plain = json.dumps([arguments[0], *map(str, arguments[1:])])
        done = subprocess.run([sys.executable, "-c", _RUNNER, plain], capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "made.json").read_text())


def digest(text: str, references: list[str]) -> str:
    """Of a prompt with its answer's first words, and of what is asked for."""
    return hashlib.sha256(json.dumps([text, list(references)]).encode()).hexdigest()


def digests(lines: list[dict]) -> list:
    """[digest, tokens] of each of the original's lines; `length` counts the answer's tokens too."""
    return [[digest(line["input"] + line["answer_prefix"], line["outputs"]), line["length"]] for line in lines]


TASKS = (
    "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 niah_multivalue "
    "niah_multiquery vt cwe fwe qa_1 qa_2"
).split()
# At 4,096 the original tries cwe without end: this tokenizer is not good enough.
SMALL = [Case(task, 2048, 42, 4) for task in TASKS]
SMALL += [Case(task, 8192 if task == "cwe" else 4096, seed, 3) for task in TASKS for seed in (42, 7)]
SMALL += [Case(task, 3000, 3, 3, "meta-llama3") for task in TASKS]
LONG = [Case(task, 16384, 42, 5) for task in TASKS] + [Case(task, 16384, 1, 3, "meta-chat") for task in TASKS]
LONG += [Case(task, 65536, 5, 2) for task in TASKS]


if __name__ == "__main__":
    everything = SMALL + LONG
    made = run_original(Path(os.environ[VARIABLE]), everything)
    kept = {case.name: digests(lines) for case, lines in zip(everything, made, strict=True)}
    DIGESTS.write_text(json.dumps(kept, indent=0) + "\n")
    print(f"{len(kept)} cases, {DIGESTS.stat().st_size:,} bytes")
