"""Converted folders: the same weights bit for bit, other layers, and what transformers computes of both."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CohereConfig, CohereForCausalLM

import rnope
from rnope.cli import run
from rnope.errors import ConfigError, UserError
from rnope.hf.configs import read_config, read_provenance
from rnope.hf.convert import conversion, convert
from rnope.hf.folder import save
from rnope.hf.weights import digest
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

WINDOW = 6
T = 31  # several windows
TOLERANCE = 2e-5


def ids():
    return torch.randint(0, 97, (2, T), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A model of type `cohere` as transformers writes it, in several files, with keys that mean nothing here."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, logit_scale=0.5, max_position_embeddings=20, eos_token_id=7, bos_token_id=5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4}, initializer_range=0.3,
    )  # fmt: skip
    model = CohereForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="20KB")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"somebody_knows": [1, 2]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8], "temperature": 0.3}))
    (folder / "model.extra.txt").write_text("not a model's")
    return folder


@pytest.fixture
def trained(tmp_path):
    """A model that rnope wrote, with its tokenizer."""
    tokenizer = Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=300)
    save(tiny_model("rope", vocab_size=320), tmp_path / "m", tokenizer, provenance={"recipe": "r"}, context_tokens=64)
    return tmp_path / "m"


def done(folder, variant, out, **options):
    convert(conversion(folder, variant, **options), out)
    return out


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("variant", "options"),
    [("rnope-swa", {"window": WINDOW}), ("rnope", {}), ("swa-only", {"window": 1}), ("nope", {})],
)
def test_weights_stay_and_transformers_computes_the_new_layers(foreign, variant, options, tmp_path):
    out = done(foreign, variant, tmp_path / "h", **options)
    assert same(stored(foreign), stored(out)) and digest(out) == digest(foreign)
    model = rnope.load(out)
    assert model.config == read_config(foreign).converted(variant, **options) != read_config(foreign)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    assert type(theirs).__name__ == "Cohere2ForCausalLM"
    with torch.no_grad():
        logits = theirs(ids(), use_cache=False).logits
        old = rnope.load(foreign)(ids())
        assert old.std() > 0.3
        assert (model(ids()) - logits).abs().max() < TOLERANCE
        changed = (logits - old).abs().amax(dim=(0, 2))
    assert changed[0] < TOLERANCE and changed[-1] > 100 * TOLERANCE  # the first token sees only itself


def test_up_to_the_window_windows_alone_change_nothing(foreign, tmp_path):
    out = done(foreign, "swa-rope", tmp_path / "h", window=WINDOW)
    with torch.no_grad():
        far = (rnope.load(out)(ids()) - rnope.load(foreign)(ids())).abs().amax(dim=(0, 2))
    assert far[:WINDOW].max() < TOLERANCE < 10 * TOLERANCE < far[WINDOW:].min()


def test_what_goes_along_and_what_does_not(foreign, tmp_path):
    out = done(foreign, "rnope-swa", tmp_path / "h", window=WINDOW)
    raw, old = (json.loads((folder / "config.json").read_text()) for folder in (out, foreign))
    assert raw["model_type"] == "cohere2" and raw["sliding_window"] == WINDOW
    for key in ("somebody_knows", "max_position_embeddings", "bos_token_id", "eos_token_id", "initializer_range"):
        assert raw[key] == old[key]
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [7, 8] and generation["temperature"] == 0.3
    assert not (out / "model.extra.txt").exists()
    found = read_provenance(out)["converted"]
    assert found["to"] == "rnope-swa" and found["from"]["provenance"] == {}
    assert found["from"]["layers"] == ["0–3  rope θ 50,000, full"] and found["from"]["weights"] == digest(foreign)


def test_a_model_of_ours_keeps_tokenizer_and_history(trained, tmp_path):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    out = done(trained, "rnope-swa", tmp_path / "h", window=WINDOW)
    assert Tokenizer.load(out).digest == Tokenizer.load(trained).digest
    assert read_provenance(out)["converted"]["from"]["provenance"] == {"recipe": "r"}
    assert rnope.load(out).config.layers[3].position == "nope"
    # Nothing is shared with the source: changing one leaves the other.
    with (out / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    assert read_config(trained).layers[0].window is None


def test_a_hybrid_takes_another_window(trained, tmp_path):
    first = done(trained, "rnope-swa", tmp_path / "a", window=WINDOW)
    second = done(first, "rnope-swa", tmp_path / "b", window=3)
    assert [layer.window for layer in read_config(second).layers] == [3, 3, 3, None]
    history = read_provenance(second)["converted"]["from"]
    assert history["provenance"]["converted"]["from"]["provenance"] == {"recipe": "r"}
    assert history["layers"] == ["0–2  rope θ 10,000, window 6", "3  nope, full"]


def test_qk_norm_becomes_a_hybrid_that_only_rnope_opens(tmp_path):
    save(tiny_model("qk-norm"), tmp_path / "m")
    plan = conversion(tmp_path / "m", "rnope-swa", window=WINDOW)
    assert any("only rnope opens" in note and "QK-Norm" in note for note in plan.notes)
    convert(plan, tmp_path / "h")
    model = rnope.load(tmp_path / "h")
    assert all(layer.qk_norm for layer in model.config.layers) and model.config.layers[0].window == WINDOW
    assert same(model.state_dict(), rnope.load(tmp_path / "m").state_dict())


def test_a_window_that_holds_the_context_is_said(trained):
    assert conversion(trained, "rnope-swa", window=63).notes == ()
    raw = json.loads((trained / "config.json").read_text())
    (trained / "config.json").write_text(json.dumps(raw | {"model_max_length": 70}))  # it counts, as in Command R v01
    assert conversion(trained, "rnope-swa", window=64).notes == ()
    (trained / "config.json").write_text(json.dumps(raw))
    (note,) = conversion(trained, "rnope-swa", window=64).notes
    assert "64 tokens holds the whole trained context of 64" in note


@pytest.mark.parametrize(
    ("variant", "window", "words"),
    [
        ("rnope-swaa", 4, "Did you mean 'rnope-swa'"),
        ("rnope-swa", None, r"--window = None: variant 'rnope-swa' has windowed layers"),
        ("rnope", 4, r"--window = 4: variant 'rnope' has no window"),
        ("rnope-swa", 0, "--window = 0"),
        ("qk-norm", None, r"--to = 'qk-norm': has QK-Norm in layer 0, which has no weights"),
        ("rnope-swa-1to7", 4, r"--to = 'rnope-swa-1to7': .* a group of 8 layers, and the model has 4"),
        ("rope", None, r"--to = 'rope': the layers of .* are these already"),
    ],
)
def test_what_cannot_be_is_refused_first(trained, variant, window, words):
    with pytest.raises(ConfigError, match=words):
        conversion(trained, variant, window=window)


def test_its_own_folder_stays(trained, tmp_path):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    (tmp_path / "link").symlink_to(trained)
    plan = conversion(trained, "rnope-swa", window=WINDOW)
    for out in (trained, tmp_path / "link", tmp_path / "x" / ".." / "m"):
        with pytest.raises(UserError, match="own folder"):
            convert(plan, out)
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.md").write_text("words")
    with pytest.raises(UserError, match=r"thesis\.md"):
        convert(plan, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.md").exists()


def test_damaged_weights_leave_nothing(foreign, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(foreign, folder)
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(UserError, match="model-00002"):
        convert(conversion(folder, "rnope", window=None), tmp_path / "h")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_command_prints_both_tables_and_what_is_next(trained, tmp_path, capsys):
    words = ["convert", str(trained), "--to", "rnope-swa", "--window", "6", "--out", str(tmp_path / "h")]
    assert run(words) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(tmp_path / "h")]
    assert "rope θ 10,000, full" in err and "rope θ 10,000, window 6" in err and "nope, full" in err
    assert f"rnope train uptrain --start {tmp_path / 'h'}" in err and "heal" in err
    assert run([*words[:-1], str(tmp_path / "of mine")]) == 0
    assert f"--tokenizer '{tmp_path / 'of mine'}' --out DATA" in capsys.readouterr().err
    assert run([*words[:-1], str(trained)]) == 2
    assert run(["convert", str(tmp_path), "--to", "rope", "--out", "x"]) == 2
    assert "Traceback" not in capsys.readouterr().err
