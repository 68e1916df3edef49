"""No code and no pickle out of a model folder: over the source tree, and with a folder that tries."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from rnope.errors import UserError
from rnope.evals.frame import Frame
from rnope.evals.models.pretrained import read_model, read_tokenizer
from rnope.hf.folder import load, save
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
SOURCES = [path for room in ("src", "benchmarks") for path in sorted((ROOT / room).rglob("*.py"))]
UNPICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BETWEEN_OUR_OWN_PROCESSES = {"src/rnope/testing/distributed.py"}


def faults(text, *, opens_models=True):
    """Lines of a source that would run what a folder holds."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if UNPICKLERS & {module.split(".")[0] for module in modules}:
                found.append((node.lineno, "unpickler"))
            if isinstance(node, ast.ImportFrom) and node.module == "torch" and "load" in [a.name for a in node.names]:
                found.append((node.lineno, "torch.load by another name"))
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: word.value.value if isinstance(word.value, ast.Constant) else ... for word in node.keywords}
        name = ast.unparse(node.func)
        if given.get("trust_remote_code", False) is not False:
            found.append((node.lineno, "trust_remote_code"))
        if name == "torch.load" and given.get("weights_only") is not True:
            found.append((node.lineno, "torch.load without weights_only"))
        if given.get("allow_pickle", False) is not False:
            found.append((node.lineno, "pickle"))
        # Without the word, transformers asks whoever sits at the terminal.
        if opens_models and name.endswith(".from_pretrained") and "trust_remote_code" not in given:
            found.append((node.lineno, "from_pretrained without trust_remote_code=False"))
    return found


@pytest.mark.parametrize(
    "text, count",
    [
        ("M.from_pretrained(x, trust_remote_code=True)", 1),
        ("M.from_pretrained(x, trust_remote_code=yes)", 1),
        ("M.from_pretrained(x)", 1),
        ("M.from_pretrained(x, trust_remote_code=False)", 0),
        ("torch.load(x)", 1),
        ("torch.load(x, weights_only=False)", 1),
        ("torch.load(x, weights_only=True)", 0),
        ("from torch import load", 1),
        ("import os, pickle", 1),
        ("np.load(x, allow_pickle=True)", 1),
        ("model.load(x)", 0),
    ],
)
def test_the_look_through_the_sources_finds(text, count):
    assert len(faults(text)) == count


def test_no_source_takes_code_or_pickles():
    assert len(SOURCES) > 100
    found = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        ours = name.startswith("src/")  # benchmarks open what they have just written
        found += [
            f"{name}:{line}: {fault}"
            for line, fault in faults(path.read_text(encoding="utf-8"), opens_models=ours)
            if not (fault == "unpickler" and name in BETWEEN_OUR_OWN_PROCESSES)
        ]
    assert not found


def test_no_text_tells_anybody_to():
    texts = [*SOURCES, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "Makefile"]
    telling = re.compile(r"trust_remote_code['\"]?\s*[=:]\s*True|--trust[-_]remote[-_]code|weights_only\s*=\s*False")
    assert not [path.name for path in texts if telling.search(path.read_text(encoding="utf-8"))]


@pytest.fixture
def trap(tmp_path):
    """A model folder whose own code leaves a file behind, should anybody import it."""
    folder, sprung = tmp_path / "model", tmp_path / "sprung"
    tokenizer = Tokenizer.train(["the needle in the hay is a red apple. "] * 20, vocab_size=300)
    save(tiny_model(vocab_size=300), folder, tokenizer)
    (folder / "trap.py").write_text(
        f"open({str(sprung)!r}, 'w').close()\nclass C: pass\nclass M: pass\nclass T: pass\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        raw = json.loads((folder / name).read_text())
        raw["auto_map"] = {
            "AutoConfig": "trap.C", "AutoModelForCausalLM": "trap.M", "AutoModel": "trap.M",
            "AutoTokenizer": ["trap.T", "trap.T"],
        }  # fmt: skip
        (folder / name).write_text(json.dumps(raw))
    return folder, sprung


def test_the_code_of_a_folder_is_not_imported(trap):
    folder, sprung = trap
    assert torch.equal(load(folder).norm.weight, tiny_model(vocab_size=300).norm.weight)
    theirs = read_model(folder, None, None)
    assert type(theirs).__module__.startswith("transformers.")
    assert read_tokenizer(folder).encode("needle")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Frame.of_chat(read_tokenizer(folder)).chat
    assert not sprung.exists()
    exec((folder / "trap.py").read_text(), {})
    assert sprung.exists()  # it would have been


def test_a_model_that_is_nothing_but_its_own_code_is_refused(trap):
    folder, sprung = trap
    raw = json.loads((folder / "config.json").read_text()) | {"model_type": "its-own"}
    (folder / "config.json").write_text(json.dumps(raw))
    for opening in (load, lambda place: read_model(place, None, None)):
        with pytest.raises(UserError):
            opening(folder)
    assert not sprung.exists()
