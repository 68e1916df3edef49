"""Names on the command line: which model they open, and what they are called."""

import json
import sys
from pathlib import Path

import pytest

from rnope.errors import ConfigError, UserError
from rnope.evals.models.hub import TransformersModel
from rnope.evals.models.opening import ModelOptions, check_model, default_name, open_model
from rnope.evals.models.ours import EngineModel
from rnope.evals.models.server import ServerModel

sys.path.insert(0, str(Path(__file__).parent))
from fake_server import FakeServer, completion
from model_kit import TOKENIZER, write, write_ours


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return write_ours(tmp_path_factory.mktemp("models") / "m")


def test_a_folder_of_ours_goes_to_the_engine_and_others_through_transformers(ours, tmp_path):
    options = ModelOptions(dtype="bfloat16", chunk=3)
    model = open_model(str(ours), "n", options)
    assert isinstance(model, EngineModel) and model.engine.prefill_chunk_tokens == 3
    assert (model.facts.dtype, model.facts.name, model.facts.device) == ("bfloat16", "n", "cpu")
    forced = open_model(f"transformers:{ours}", "n", options)
    assert isinstance(forced, TransformersModel) and forced.facts.dtype == "bfloat16"
    assert isinstance(open_model(str(write(tmp_path / "m", "llama")), "n", ModelOptions()), TransformersModel)


def test_what_our_engine_cannot_read_is_pointed_to_transformers(tmp_path):
    folder = write(tmp_path / "m", "cohere2", attention_bias=True)
    with pytest.raises(UserError, match=r"\(Or evaluate it through transformers: --model transformers:"):
        open_model(str(folder), "n", ModelOptions())
    assert open_model(f"transformers:{folder}", "n", ModelOptions()).facts.model_type == "cohere2"


def test_what_only_our_engine_reads_is_not(ours, tmp_path):
    config = json.loads((ours / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "rnope"}))
    TOKENIZER.save(tmp_path)
    with pytest.raises(UserError) as caught:
        open_model(str(tmp_path), "n", ModelOptions())
    assert "transformers" not in str(caught.value)


def test_a_server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    TOKENIZER.save(tmp_path)
    server = FakeServer(lambda number, path, body: completion(body))
    try:
        assert isinstance(open_model(f"{server.url}#x", "n", ModelOptions(tokenizer=tmp_path)), ServerModel)
    finally:
        server.close()


@pytest.mark.parametrize("given", ["no/such/folder", "transformers:no/such", "ftp://host/v1"])
def test_no_such_folder(given):
    with pytest.raises(ConfigError, match="there is no such folder"):
        open_model(given, "n", ModelOptions())


def test_models_are_checked_without_being_opened(tmp_path):
    for given in (str(tmp_path), f"transformers:{tmp_path}"):
        with pytest.raises(UserError, match=r"has no config\.json"):
            check_model(given)
    (tmp_path / "config.json").write_text("{}")
    check_model(str(tmp_path))
    check_model(f"transformers:{tmp_path}")
    check_model("http://127.0.0.1:1/v1#nobody-is-asked")
    with pytest.raises(ConfigError, match="there is no such folder"):
        check_model(str(tmp_path / "no"))
    for given in ("https://user:secret@host/v1#it", "http://host/v1?key=secret"):
        with pytest.raises(UserError, match="has a user, a password or a query") as caught:
            check_model(given)
        assert "secret" not in str(caught.value)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(UserError, match=r"no config.json"):
        open_model(str(tmp_path), "n", ModelOptions())
    with pytest.raises(UserError):
        open_model(f"transformers:{tmp_path}", "n", ModelOptions())


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("runs/lm/my model", "my-model"),
        ("transformers:/data/Llama-3.1-8B/", "Llama-3.1-8B"),
        ("/runs/a/stage-2/model", "a-stage-2-model"),
        ("/model", "model"),
        ("http://host:8000/v1#org/Model-7B", "org-Model-7B"),
        ("http://host:8000/v1", "host-8000-v1"),
        ("https://host/v1/", "host-v1"),
        ("/..", "model"),
    ],
)
def test_default_names(given, name):
    assert default_name(given) == name


@pytest.mark.parametrize(
    "given",
    [
        "https://user:secret@host/v1",
        "https://user:sec@secret/@host/v1?key=secret",
        "http://host/v1?key=secret",
        "http://[secret/",
    ],
)
def test_no_name_is_made_of_secrets(given):
    with pytest.raises(UserError, match="--model: ") as caught:
        default_name(given)
    assert "secret" not in str(caught.value)


def test_names_are_good_for_folders():
    for given in ("/a/b/..", "http://h/v1#../../x", "/a/ü/é", "http://h#..", "/x/.hidden"):
        name = default_name(given)
        assert name and "/" not in name and not name.startswith(".")
