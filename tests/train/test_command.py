"""``rnope train``: a plan, a run, and mistakes in one line."""

import pytest

from rnope.cli import run

SHORT = ["--set", "stages.pretrain.steps=4", "--set", "stages.extend.steps=2", "--set", "stages.tune.steps=1"]


@pytest.fixture
def rnope(capsys):
    """Runs a command: ``rnope("train", …)``, its exit code, output and errors."""

    def go(*words):
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return go


def test_a_run_prints_its_models_and_a_second_one_finds_them(rnope, recipe_file, data, tmp_path):
    words = ["train", recipe_file, "--data", f"text={data}", "--out", tmp_path / "out", "--device", "cpu", *SHORT]
    code, out, err = rnope(*words)
    model = tmp_path / "out" / "rnope-swa" / "tune" / "model"
    assert code == 0 and out.split() == [str(model)] and (model / "config.json").exists(), err
    assert "rnope-swa tune" in err and "validation text" in err
    code, out, err = rnope(*words)
    assert code == 0 and err.count("done before") == 3
    assert rnope("generate", model, "the law", "--max-new-tokens", "3")[0] == 0


def test_a_dry_run_prints_the_plan_and_writes_nothing(rnope, recipe_file, data, tmp_path):
    words = ["--data", f"text={data}", "--out", tmp_path / "out", "--dry-run", "--ranks", "2"]
    code, out, _ = rnope("train", recipe_file, *words, "--set", "stages.tune.batch_tokens=192")
    assert code == 0 and "where stages join" in out and "2 × H100" in out and "continuous" in out
    assert not (tmp_path / "out").exists()


def test_the_papers_recipe_needs_no_data_for_its_plan(rnope):
    code, out, _ = rnope("train", "paper-main", "--arm", "rnope-swa", "--dry-run", "--ranks", "256")
    assert code == 0 and "596,046 steps" in out and "8,028,033,024 parameters" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "paper-mian"], "Did you mean 'paper-main'"),
        (["train", "cpu-demo"], "rnope compare"),
        (["compare", "paper-main"], "rnope train"),
        (["train", "cpu-train", "--arm", "rnope"], "no such arm"),
        (["train", "cpu-train", "--data", "web"], "SOURCE=FOLDER"),
        (["train", "cpu-train", "--data", "wbe=x", "--dry-run"], "Did you mean 'web'"),
        (["train", "cpu-train"], "rnope data build"),
        (["train", "cpu-train", "--device", "tpu"], "no such device"),
        (["train", "cpu-train", "--set", "stages.pretrain.batch_tokens=1000"], "must be whole rows of 256 tokens"),
        (
            ["train", "cpu-train", "--set", "execution.sequence_parallel=3", "--data", "web=x"],
            "must divide the 1 ranks",
        ),
        (["train", "cpu-train", "--dry-run", "--ranks", "3"], "each of 3 groups of ranks"),
        (["train", "cpu-train", "--dry-run", "--gpu", "H10"], "Did you mean 'H100'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(rnope, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = rnope(*words)
    assert code == 2 and out == "" and said in err and len(err.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())
