"""``rnope analyze`` as a user types it."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evals" / "models"))
from model_kit import write

from rnope import cli, save
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "Fish come in from the sea. Boats go out again! Who sees them? Nobody at the harbour does, says the keeper. "


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "one"
    save(
        tiny_model("rnope-swa", 0, vocab_size=280), folder, Tokenizer.train([TEXT], vocab_size=280), context_tokens=400
    )
    return folder


@pytest.fixture
def rnope(capsys, tmp_path, monkeypatch):
    """Runs ``rnope analyze`` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT * 60, encoding="utf-8")

    def call(*arguments):
        code = cli.run(["analyze", *(str(each) for each in arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_two_engines_one_page(rnope, model, tmp_path):
    """The same folder through rnope's engine and through transformers: the same figures."""
    asked = ("--model", model, "--model", f"transformers:{model}", "--name", "ours", "--name", "theirs")
    code, out, err = rnope(*asked, "--lengths", "1x", "--samples", 1, "--haystack", "text.txt", "--out", "out")
    assert code == 0, err
    assert out.split() == [f"out/{name}" for name in ("report.html", "report.md", "analysis.json", "arrays")]
    assert all(Path(name).exists() for name in out.split())
    found = json.loads(Path("out/analysis.json").read_text())
    ours, theirs = found["lengths"]
    assert (ours["model"], theirs["model"], ours["context_tokens"]) == ("ours", "theirs", 400)
    assert [model["class_name"] for model in found["models"]] == ["Decoder", "Cohere2ForCausalLM"]
    assert found["models"][0]["layers"] == found["models"][1]["layers"]
    for mine, other in zip(ours["layers"], theirs["layers"], strict=True):
        for segment, value in mine["measures"]["mass"].items():
            there = other["measures"]["mass"][segment]
            assert (value is None) == (there is None)
            assert value is None or value["value"] == pytest.approx(there["value"], abs=1e-5)


def test_a_dry_run_says_what_it_would_take_and_leaves_nothing(rnope, model):
    code, out, err = rnope(
        "--model", model, "--lengths", "400,500", "--samples", 3, "--haystack", "text.txt", "--dry-run"
    )
    assert code == 0, err
    assert "hours" in out and "2,700" in out and not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "http://localhost:1/v1#m"), "is a server"),
        (("--model", "nowhere"), "no such folder"),
        (("--model", "MODEL", "--lengths", "8q"), "is no number of tokens"),
        (("--model", "MODEL", "--name", "a/b"), "is no name for a folder"),
        (("--model", "MODEL", "--model", "MODEL"), "all different"),
        (("--model", "MODEL", "--samples-file", "none.jsonl"), "cannot be read"),
        (("--model", "MODEL", "--samples-file", "x", "--chat"), "leave --chat"),
        (("--model", "MODEL", "--device", "cuda:77"), "device"),
    ],
)
def test_mistakes_are_one_line(rnope, model, arguments, said):
    code, _, err = rnope(*(model if each == "MODEL" else each for each in arguments))
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_a_model_whose_attention_does_not_show_is_refused(rnope, tmp_path):
    code, _, err = rnope("--model", write(tmp_path / "mamba", "mamba"), "--lengths", "400", "--samples", 1)
    assert code == 2 and "Mamba" in err
