"""Weights written: in files as asked, as Hugging Face has them, the same bytes each time, and a shard at a time."""

import json
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rnope.errors import ConfigError, UserError
from rnope.hf import shards
from rnope.hf.folder import load, save, save_state
from rnope.hf.shards import DIGESTS, EMBEDDING, WEIGHTS
from rnope.hf.weights import digest
from rnope.testing import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from weights_kit import SHARD, files, index, same


@pytest.fixture
def four(tmp_path):
    save(tiny_model(), tmp_path / "four", shard_bytes=SHARD)
    return tmp_path / "four"


def test_shards_and_their_index_are_those_of_hugging_face(four):
    names = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert files(four) == names and not (four / WEIGHTS).exists()
    parts = {name: load_file(four / name) for name in names}
    assert all(sum(tensor.nbytes for tensor in part.values()) <= SHARD for part in parts.values())
    model = tiny_model()
    total = sum(parameter.nbytes for parameter in model.parameters())
    said = index(four)
    assert said["weight_map"] == {name: file for file, part in parts.items() for name in part}
    assert list(said["weight_map"]) == sorted(said["weight_map"])
    assert said["metadata"].pop(DIGESTS).keys() == set(names)
    assert said["metadata"] == {"total_size": total, "total_parameters": sum(p.numel() for p in model.parameters())}
    # In the model's order: nobody has to read all files for the first layers.
    layers = [int(name.split(".")[2]) for part in parts.values() for name in sorted(part) if ".layers." in name]
    assert layers == sorted(layers) and EMBEDDING in parts[names[0]] and "model.norm.weight" in parts[names[-1]]


def test_theirs_open_here_and_ours_there(four, tmp_path):
    theirs = AutoModelForCausalLM.from_pretrained(four)
    for name, tensor in {k: v for file in files(four) for k, v in load_file(four / file).items()}.items():
        assert torch.equal(theirs.state_dict()[name], tensor)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=SHARD)
    assert len(files(tmp_path / "theirs")) > 2 and DIGESTS not in index(tmp_path / "theirs")["metadata"]
    assert same(load(tmp_path / "theirs"), tiny_model())
    ours, them = index(four)["metadata"], index(tmp_path / "theirs")["metadata"]
    assert {key: ours[key] for key in them} == them
    theirs.save_pretrained(tmp_path / "whole")
    assert digest(four) == digest(tmp_path / "theirs") == digest(tmp_path / "whole")


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 10**9])
def test_any_size_of_file_holds_the_same_model(shard_bytes, four, tmp_path):
    save(tiny_model(), tmp_path / "m", shard_bytes=shard_bytes)
    assert same(load(tmp_path / "m"), tiny_model())
    assert digest(tmp_path / "m") == digest(four)
    count = len(tiny_model().state_dict())
    assert len(files(tmp_path / "m")) == (count if shard_bytes == 1 else 1 if shard_bytes == 10**9 else 8)
    save(tiny_model(), tmp_path / "m", shard_bytes=SHARD)  # over it
    assert len(files(tmp_path / "m")) == 4 and same(load(tmp_path / "m"), tiny_model())
    with pytest.raises(ConfigError, match="shard_bytes = 0"):
        save(tiny_model(), tmp_path / "m", shard_bytes=0)


def test_the_library_reads_the_same_header_and_the_bytes_never_vary(tmp_path):
    state = tiny_model().state_dict()
    state["layers.0.norm.weight"] = state["layers.0.norm.weight"].bfloat16()[:31]  # an odd number of 2-byte numbers
    shards.write(state.items(), tmp_path)
    first = (tmp_path / WEIGHTS).read_bytes()
    shards.write(state.items(), tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == first
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(tmp_path / WEIGHTS).items())
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        about = file.metadata()
        assert about.pop("format") == "pt" and json.loads(about.pop(DIGESTS)).keys() == set(file.keys()) and not about
        short = "layers.0.norm.weight"
        assert file.offset_keys() == [*(name for name in state if name != short), short]  # each is aligned


class Lazy(Mapping):
    """Tensors made when asked for, with the bytes of those that are alive."""

    def __init__(self, model):
        self.state, self.asked, self.alive, self.most = model.state_dict(), [], 0, 0

    def __getitem__(self, name):
        self.asked.append(name)
        made = self.state[name].numpy().copy()
        self.alive += made.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self.free, made.nbytes)
        return torch.from_numpy(made)

    def free(self, size):
        self.alive -= size

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def test_a_lazy_state_is_asked_once_in_order_and_a_shard_at_a_time(tmp_path):
    state = Lazy(tiny_model())
    save_state(tiny_model().config, state, tmp_path / "m", shard_bytes=SHARD)
    largest = max(tensor.nbytes for tensor in state.state.values())
    assert state.asked == list(state.state)
    assert SHARD / 2 < state.most <= SHARD + largest and state.alive == 0
    assert same(load(tmp_path / "m"), tiny_model())


def test_tensors_that_overlap_or_lie_otherwise_are_written_as_they_read(tmp_path):
    state = tiny_model().state_dict()
    state["layers.0.norm.weight"] = state["embedding.weight"][5]  # inside another
    state["layers.1.norm.weight"] = state["layers.0.norm.weight"]
    state["layers.2.norm.weight"] = torch.ones(1).expand(32)
    state["layers.0.attention.output.weight"] = state["layers.0.attention.query.weight"].T
    save_state(tiny_model().config, state, tmp_path / "m")
    again = load(tmp_path / "m").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("wrong", [torch.zeros(32, dtype=torch.int8), torch.zeros(32, device="meta")])
def test_a_tensor_that_cannot_be_saved_leaves_nothing(wrong, tmp_path):
    state = tiny_model().state_dict() | {"norm.weight": wrong}  # the last, after three shards are written
    with pytest.raises(UserError, match=r"model\.norm\.weight is of torch\.int8|meta device"):
        save_state(tiny_model().config, state, tmp_path / "m", shard_bytes=SHARD)
    assert not list(tmp_path.iterdir())
