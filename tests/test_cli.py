"""The command line by its exit codes: 0 done, 2 the user's mistake in one line, 1 ours with a traceback, 130 Ctrl-C."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rnope
from rnope import cli, recipes
from rnope.compare import run as comparison
from rnope.compare.learn.checkpoint import Progress, load_checkpoint, save_checkpoint
from rnope.errors import UserError
from rnope.files import write_text
from rnope.hf.mapping import to_hf
from rnope.model.spec import VARIANTS, ModelConfig
from rnope.results import VERSION
from rnope.testing import tiny_model

SOURCE = Path(__file__).parents[1] / "src"


@pytest.fixture
def rnope_(capsys):
    """Runs a command and gives its exit code, standard output and standard error."""

    def call(*arguments):
        code = cli.run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def refused(result, *words):
    code, _, err = result
    assert code == 2 and err.startswith("rnope: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err


def run_python(*arguments, **env):
    return subprocess.run(
        [sys.executable, *arguments], env={"PYTHONPATH": str(SOURCE), **env}, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("name", cli.app.commands)
def test_every_command_explains_itself(name, rnope_):
    code, out, err = rnope_(name, "--help")
    assert code == 0 and not err
    for parameter in cli.app.commands[name].params:
        words = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
        assert all(word in out for word in words), parameter.name
    assert (0, out, "") == rnope_(name, "-h")
    first = " ".join(out.split("\n\n")[1].split())
    assert first.endswith(".") and len(first) > 30


def test_help_version_and_nothing(rnope_):
    code, out, _ = rnope_("--help")
    assert code == 0 and all(name in out for name in cli.app.commands)
    assert rnope_("--version") == (0, f"rnope, version {rnope.__version__}\n", "")
    code, out, err = rnope_()
    assert code == 2 and not out and "Usage: rnope" in err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("comapre cpu-demo", ["command = 'comapre': no such command", "Did you mean 'compare'?"]),
        ("zzz", ["no such command. Valid: analyze, bench, compare"]),
        ("--verison", ["No such option '--verison'", "'--version'"]),
        ("compare", ["Missing argument 'RECIPE'"]),
        ("compare cpu-demo --dryrun", ["No such option '--dryrun'", "'--dry-run'"]),
        ("compare cpu-demo extra", ["unexpected extra argument (extra)"]),
        ("compare cpu-demo --workers 0", ["--workers", "0 is not in the range x>=1"]),
        ("compare cpu-demo --workers two", ["--workers", "'two' is not a valid integer"]),
        ("compare cpu-demo --out", ["--out", "requires an argument"]),
        ("compare cpu-dmo", ["recipe = 'cpu-dmo': no such recipe, nor a .toml file", "Did you mean 'cpu-demo'?"]),
        ("compare missing.toml", ["no such recipe, nor a .toml file"]),
        ("compare cpu-demo --dry-run --set sumary=x", ["sumary", "Did you mean 'summary'?"]),
        ("compare cpu-demo --dry-run --set model.window=0", ["window = 0: must be at least 1"]),
        ("compare cpu-demo --dry-run --set arms.rope.variant=rop", ["arms.rope.variant", "Did you mean 'rope'?"]),
        ("layers rnope-swe", ["variant = 'rnope-swe': no such variant", "config.json", "Did you mean 'rnope-swa'?"]),
        ("layers rope --size 8B", ["size = '8B': no such size", "Did you mean '8b'?"]),
        ("report", ["Missing argument 'FOLDER'"]),
        ("report /no/such/folder", ["/no/such/folder/results.json: cannot be read", "rnope compare"]),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest_name(line, words, rnope_):
    refused(rnope_(*line.split()), *words)


def test_layers_prints_each_variant(rnope_):
    code, out, err = rnope_("layers")
    assert code == 0 and not err and all(f"{name}: {v.summary}" in out for name, v in VARIANTS.items())
    code, out, _ = rnope_("layers", "rnope-swa", "--size", "tiny")
    assert code == 0 and "rope θ 10,000, window 5" in out and "nope, full" in out and "parameters" in out


def test_layers_reads_a_folder_or_a_file_and_lists_what_has_no_use(rnope_, tmp_path):
    config = ModelConfig.variant("rnope-swa", size="8b", theta=5e4)
    raw = to_hf(config, context_tokens=16384) | {"mine": {"a": 1}, "auto_map": {"AutoModel": "x.Y"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for place in (tmp_path, tmp_path / "config.json"):
        code, out, err = rnope_("layers", str(place))
        assert code == 0 and not err and config.layer_table() in out
        assert "8,028,033,024 parameters" in out and "0.875 GiB at 16,384 tokens" in out
        assert "unknown to rnope: mine = {'a': 1}" in out and "changes nothing here: attention_dropout = 0.0, " in out
        assert "names code, which is never run: auto_map" in out
    refused(rnope_("layers", str(tmp_path), "--size", "8b"), "size = '8b'", "Leave --size out")
    (tmp_path / "config.json").write_text(json.dumps(raw | {"a\n\x1b[2J": 1, "max_position_embeddings": 10**400}))
    code, out, _ = rnope_("layers", str(tmp_path))
    assert code == 0 and "unknown to rnope: 'a\\n\\x1b[2J' = 1" in out and "at 8,192, " in out
    (tmp_path / "config.json").write_text(json.dumps(raw | {"hidden_act": "gelu"}))
    refused(rnope_("layers", str(tmp_path)), "config.json: hidden_act = 'gelu'", "only 'silu'")
    (tmp_path / "config.json").unlink()
    refused(rnope_("layers", str(tmp_path)), "has no config.json")
    (tmp_path / "config.json").write_text(json.dumps(to_hf(ModelConfig.variant("swa-rope", size="tiny"))))
    assert "opens in rnope only: Its RoPE layers have several spans" in rnope_("layers", str(tmp_path))[1]


@pytest.mark.parametrize("name", recipes.shipped())
def test_dry_run_prints_the_layers_of_every_arm(name, rnope_, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = rnope_("compare", name, "--dry-run")
    assert code == 0 and not err and not list(tmp_path.iterdir())
    recipe = recipes.load(name)
    assert all(f"{a.name} ({a.summary})\n{recipe.model_config(a).layer_table()}\n" in out for a in recipe.arms)
    assert "FLOPs" in out and "minutes" in out


def test_dry_run_loads_no_torch():
    code = "import sys; from rnope.cli import run; assert run(['compare', 'cpu-demo', '--dry-run']) == 0"
    done = run_python("-c", code + "; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr


def test_as_a_module_and_on_a_terminal_without_greek():
    assert run_python("-m", "rnope", "--version").stdout.decode().strip().endswith(rnope.__version__)
    done = run_python("-m", "rnope", "layers", "rope", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0 and rb"rope \u03b8 10,000, full" in done.stdout
    done = run_python("-m", "rnope", "layers", "rnop\udcff")
    assert done.returncode == 2 and b"Did you mean" in done.stderr and b"Traceback" not in done.stderr


# What stands on the disk


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            json.dumps({"version": VERSION + 1}),
            [f"of version {VERSION + 1}; this rnope reads versions 1 and {VERSION}"],
        ),
        ("{}", ["version None"]),
        ("[]", ["version None"]),
        ('{"version": ' + "9" * 4000 + "}", ["version 999"]),
        ("{", ["is not JSON"]),
        ("[" * 100_000, ["nested too deeply"]),
        (json.dumps({"version": VERSION}), ["results.json: recipe = None: is missing"]),
        (json.dumps({"version": VERSION, "recipee": {}}), ["results.json: recipee", "Did you mean 'recipe'?"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_results_file_that_is_another(text, words, rnope_, tmp_path):
    (tmp_path / "results.json").write_text(text)
    refused(rnope_("report", tmp_path), *words)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("x")])
def test_a_folder_that_is_no_model(make, tmp_path):
    make(tmp_path / "m")
    with pytest.raises(UserError, match=r"no model folder|no such folder") as caught:
        rnope.load(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value) and "Give" in str(caught.value)


def no_corpus(tmp_path):
    return tmp_path / "none"


def empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def not_utf8(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("naïve".encode("latin-1"))
    return path


def without_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"txt": "bad"}\n')
    return path


def one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One document is in one split.")
    return path


def too_small(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"Line {i} of a small corpus."}) + "\n" for i in range(30)))
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_corpus, ["none': does not exist. Give a file or a folder"]),
        (empty_folder, ["empty': holds no text", ".jsonl.gz"]),
        (not_utf8, ["a.txt': cannot be read", "UTF-8"]),
        (without_text, ["a.jsonl:2': is no JSON object with a string `text`"]),
        (one_document, ["leave none for the", "Use more documents"]),
        (too_small, ["tokens, too few for rows of 1,024", "Use a larger corpus, or shorter contexts."]),
    ],
)
def test_a_corpus_that_does_not_serve(make, words, rnope_, tmp_path):
    corpus = make(tmp_path)
    refused(rnope_("compare", "cpu-demo", "--corpus", corpus, "--out", tmp_path / "out"), "corpus = '", *words)
    assert not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "jobs").exists()


def test_an_empty_corpus_argument_is_not_the_current_folder(rnope_, tmp_path):
    refused(rnope_("compare", "cpu-demo", "--corpus", "", "--out", tmp_path), "corpus = '': is empty")


def test_a_place_that_cannot_be_written(rnope_, tmp_path):
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper", tmp_path / ("x" * 300)):
        refused(rnope_("compare", "cpu-demo", "--out", out), f"--out {out}: cannot be written", "Name another folder.")
    assert (tmp_path / "file").read_text() == "x"


# What goes wrong on the way


def fails_with(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(comparison, "compare", fail)


def test_ctrl_c(monkeypatch, rnope_, tmp_path):
    fails_with(monkeypatch, KeyboardInterrupt())
    code, _, err = rnope_("compare", "cpu-demo", "--out", tmp_path)
    assert code == 130 and "Finished work is kept: run the same command again to go on." in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EROFS, "Choose another folder"),
        (errno.EACCES, "Choose another folder"),
    ],
)
def test_a_full_or_closed_disk(number, remedy, monkeypatch, rnope_, tmp_path):
    fails_with(monkeypatch, OSError(number, os.strerror(number), "/disk/file"))
    result = rnope_("compare", "cpu-demo", "--out", tmp_path)
    refused(result, os.strerror(number), "(/disk/file)", "Finished work is kept.", remedy, "run the same command again")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("boom"), ValueError("boom"), OSError(errno.EIO, "boom"), EOFError("boom"), AssertionError("boom")],
)
def test_our_own_fault_shows_where(error, monkeypatch, rnope_, tmp_path):
    fails_with(monkeypatch, error)
    code, _, err = rnope_("compare", "cpu-demo", "--out", tmp_path)
    assert code == 1 and "Traceback" in err and "boom" in err and "a fault of rnope, not yours" in err


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def half(self, text, **_):
    with self.open("w") as file:
        file.write(text[: len(text) // 2])
    full()


@pytest.mark.parametrize("broken", ["rename", "write"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(broken, monkeypatch, tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "replace", full) if broken == "rename" else (Path, "write_text", half)))
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "new")
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "deep" / "new.json", "new")
    assert path.read_text() == "old"
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["deep", "results.json"]


def test_a_full_disk_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    model, path = tiny_model(), tmp_path / "checkpoint.pt"
    save_checkpoint(path, model, [], Progress(step=1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises((OSError, UserError), match="No space left"):
            save_checkpoint(path, model, [], Progress(step=2))
    assert load_checkpoint(path)["progress"]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
