"""Weights read: named when missing or altered, views of their files where they can be, and never held twice."""

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import rnope
from rnope.errors import UserError
from rnope.hf.folder import load, save, save_state
from rnope.hf.mapping import tensor_names
from rnope.hf.shards import DIGESTS, HEAD, INDEX, WEIGHTS
from rnope.hf.weights import digest
from rnope.model.decoder import Decoder
from rnope.testing import tiny_model

sys.path.insert(0, str(Path(__file__).parent))
from weights_kit import SHARD, files, index, same

UP = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    save(tiny_model(), place / "one")
    save(tiny_model(), place / "four", shard_bytes=SHARD)
    return place


@pytest.fixture
def one(written, tmp_path):
    return Path(shutil.copytree(written / "one", tmp_path / "m"))


@pytest.fixture
def four(written, tmp_path):
    return Path(shutil.copytree(written / "four", tmp_path / "m"))


def refused(folder, *words):
    with pytest.raises(UserError) as caught:
        load(folder)
    assert all(str(word) in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


# ---- what is altered or missing


def test_a_missing_or_shortened_shard_is_named(four):
    second = four / files(four)[1]
    whole = second.read_bytes()
    for length in (0, 7, 500, len(whole) - 1):
        second.write_bytes(whole[:length])
        refused(four, second, "cut short", "fetch it again")
    second.unlink()
    refused(four, f"lacks {second.name}", "Fetch or write it again")
    with pytest.raises(UserError, match=second.name):
        digest(four)


@pytest.mark.parametrize("kind", ["one", "four"])
def test_an_altered_byte_names_the_file_and_the_tensor(kind, request):
    folder = request.getfixturevalue(kind)
    path = folder / files(folder)[-1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(folder, path, "altered", "model.norm.weight", "Fetch or write it again")
    assert not same(load(folder, verify=False), tiny_model())


def test_tensors_exchanged_in_a_header_are_noticed(one):
    path = one / WEIGHTS
    data = path.read_bytes()
    a, b = b"model.layers.1.mlp.up_proj.weight", b"model.layers.2.mlp.up_proj.weight"
    length = 8 + int.from_bytes(data[:8], "little")
    start = data.index(a, data.index(b"}", data.index(b"__metadata__")))  # behind the digests
    middle = data.index(b, start)
    path.write_bytes(data[:start] + b + data[start + len(a) : middle] + a + data[middle + len(b) :])
    assert middle < length and load_file(path).keys() == set(tensor_names(tiny_model().config).values())
    refused(one, path, "altered", "layers.1.mlp.up_proj", "layers.2.mlp.up_proj")


def test_a_shard_of_another_model_of_the_shape_is_noticed(four, tmp_path):
    save(tiny_model(seed=1), tmp_path / "other", shard_bytes=SHARD)
    third = files(four)[2]
    shutil.copy(tmp_path / "other" / third, four / third)
    refused(four, four / third, "not the file that model.safetensors.index.json was written with")
    save_file(load_file(four / third), four / third)  # without digests of its own
    refused(four, four / third, "SHA-256 is not that in model.safetensors.index.json")
    assert not same(load(four, verify=False), tiny_model())


def test_what_others_rewrite_has_no_digest_and_is_read(four):
    for file in files(four):
        save_file(load_file(four / file), four / file)
    assert same(load(four), tiny_model())  # those of the index still hold
    said = index(four)
    del said["metadata"][DIGESTS]
    (four / INDEX).write_text(json.dumps(said))
    first = four / files(four)[0]
    save_file({name: tensor + 1 for name, tensor in load_file(first).items()}, first)
    assert torch.equal(load(four).embedding.weight, tiny_model().embedding.weight + 1)


def test_digests_that_are_none(one):
    tensors = load_file(one / WEIGHTS)
    for text in ("{", "[]", '{"a": "b"}', "[" * 100_000):
        save_file(tensors, one / WEIGHTS, metadata={"format": "pt", DIGESTS: text})
        refused(one, WEIGHTS, "digests in its header")


def test_an_index_that_contradicts_its_files(four):
    good, names = index(four), files(four)

    def say(**changes):
        (four / INDEX).write_text(json.dumps(good | changes))

    say(weight_map=good["weight_map"] | {UP: names[0]})
    refused(four, INDEX, UP, f"in {names[0]}", "but it is in model-")
    say(weight_map=good["weight_map"] | {"model.extra": names[0]})
    refused(four, "model.extra", "it is in none")
    say(weight_map={name: file for name, file in good["weight_map"].items() if name != UP})
    refused(four, UP, "in no file")
    for outside in ("../m/" + names[0], str(four / names[0]), "..", ""):
        say(weight_map=good["weight_map"] | {UP: outside})
        refused(four, INDEX, repr(outside), "not in the folder")
    for none in ("x" * 5000, "x\0y"):
        say(weight_map=good["weight_map"] | {UP: none})
        refused(four, "lacks x", "which its index names")
    for nothing in ({}, [], None, {UP: 3}):
        say(weight_map=nothing)
        refused(four, INDEX, "weight_map")
    size = good["metadata"]["total_size"]
    say(metadata={"total_size": size - 2})
    refused(four, INDEX, f"{size - 2:,}", f"{size:,}")
    embedding = tiny_model().embedding.weight.nbytes
    for fine in (size, float(size), size + embedding, None, "unknown"):
        say(metadata={"total_size": fine})
        assert same(load(four), tiny_model())
    say(metadata=None)
    first = load_file(four / names[0])
    save_file(load_file(four / names[1]) | first, four / names[1])
    refused(four, next(iter(first)), names[0], names[1])


def test_tensors_that_do_not_fit_are_named(one):
    path = one / WEIGHTS
    good = load_file(path)
    save_file({k: v for k, v in good.items() if k != UP}, path)
    refused(one, f"lack {UP}")
    save_file(good | {"model.layers.4.mlp.up_proj.weight": good[UP].clone()}, path)
    refused(one, "also holds model.layers.4.mlp.up_proj.weight")
    save_file(good | {UP: good[UP].T.contiguous()}, path)
    refused(one, UP, "(32, 48)", "(48, 32)")
    for packed in (good[UP].to(torch.int8), good[UP][:, ::4].to(torch.float8_e4m3fn).contiguous()):
        save_file(good | {UP: packed}, path)
        refused(one, UP, "8", "quantised")


def test_one_file_beside_several_is_refused_since_one_is_old(one):
    """transformers leaves model.safetensors where it saves several files beside it."""
    model = AutoModelForCausalLM.from_pretrained(one)
    torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(one, max_shard_size=SHARD)
    refused(one, WEIGHTS, INDEX, "what is old")
    (one / WEIGHTS).unlink()
    assert not load(one).norm.weight.any()
    model.save_pretrained(one)  # it takes the several away, and leaves their index
    assert (one / INDEX).exists() and not load(one).norm.weight.any()


def test_a_file_that_goes_while_it_is_read_is_named(one, monkeypatch):
    def gone(*_, **__):
        raise RuntimeError("unable to open file")  # as torch says it, which maps the file

    monkeypatch.setattr(rnope.hf.weights, "safe_open", gone)
    refused(one, WEIGHTS, "unable to open file")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_stored_head_must_be_the_embedding(four, dtype):
    last = four / files(four)[-1]  # the embedding is in the first
    good, said, before = load_file(last), index(four), digest(four)
    said["weight_map"][HEAD], said["metadata"] = last.name, {"total_size": said["metadata"]["total_size"]}
    (four / INDEX).write_text(json.dumps(said))
    embedding = tiny_model().embedding.weight.data
    save_file(good | {HEAD: embedding}, last)
    assert digest(four) == before
    assert [p.dtype for p in load(four, dtype).parameters()] == [dtype or torch.float32] * 34
    for other in (embedding + 1e-6, embedding.bfloat16()):
        save_file(good | {HEAD: other}, last)
        (four / INDEX).write_text(json.dumps(said | {"metadata": {}}))
        with pytest.raises(UserError, match=r"lm_head\.weight differs.*tied"):
            load(four, dtype)


def test_pickles_are_refused_and_the_command_converts_them(written, tmp_path):
    folder = tmp_path / "it's a model"
    folder.mkdir()
    shutil.copy(written / "one" / "config.json", folder)
    refused(folder, "has no model.safetensors")
    torch.save(load_file(written / "one" / WEIGHTS), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"only as pytorch_model\.bin.*never opened") as caught:
        load(folder)
    command = shlex.split(str(caught.value).partition("tokenizer's files: ")[2])
    assert command[:2] == ["python", "-c"] and "trust_remote_code" not in command[2]
    exec(compile(command[2], "command", "exec"), {})  # in this process: a second one would import for seconds
    assert same(load(Path(f"{folder}-safetensors")), tiny_model())


# ---- where the tensors lie


def mapped(tensor):
    """The file that a tensor lies in, None where it lies in memory of its own."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, _, high = line.partition(" ")[0].partition("-")
        if int(low, 16) <= tensor.data_ptr() < int(high, 16):
            return line.split(maxsplit=5)[5].rpartition("/")[2] if "/" in line else None
    raise AssertionError


def test_weights_as_stored_are_views_of_the_files(four):
    places = {mapped(parameter) for parameter in load(four).parameters()}
    assert places == set(files(four))
    assert {mapped(parameter) for parameter in load(four, torch.bfloat16).parameters()} == {None}


def test_training_in_place_alters_no_file(four):
    before = {path.name: path.read_bytes() for path in four.iterdir()}
    model = load(four)
    assert mapped(model.norm.weight) == files(four)[-1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(6)[None]).square().sum().backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
    assert {path.name: path.read_bytes() for path in four.iterdir()} == before
    assert same(load(four), tiny_model())


def test_a_folder_that_is_replaced_leaves_a_loaded_model_as_it_was(four):
    model = load(four)
    save(tiny_model(seed=1), four, shard_bytes=SHARD)
    assert same(model, tiny_model()) and same(load(four), tiny_model(seed=1))
    save(model, four)
    assert files(four) == [WEIGHTS] and same(load(four), tiny_model())


MEASURE = """
import json, sys
from pathlib import Path
import torch
from rnope.hf.folder import load

def held():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines if words[0] in ("VmHWM:", "VmRSS:", "RssAnon:")}
    return found["VmHWM:"], found["VmRSS:"], found["RssAnon:"]

torch.ones(64, 64) @ torch.ones(64, 64)
load(sys.argv[1] + "/warm")
for dtype in (None, torch.float32):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    _, total, own = held()
    model = load(sys.argv[1] + "/large", dtype)
    peak, _, after = held()
    size = sum(parameter.nbytes for parameter in model.parameters())
    del model
    print(json.dumps({"size": size, "peak": peak - total, "anonymous": after - own}))
"""


def test_loading_takes_the_model_and_one_shard(tmp_path):
    """42 MB of bfloat16 in shards of 5 MB: as stored none of it is copied; in float32 the peak is that and a shard."""
    spec = tiny_model().config
    config = dataclasses.replace(spec.with_layers(spec.layers[:1] * 48), vocab_size=4000, width=256, ffn_width=512)
    with torch.device("meta"):
        model = Decoder(config)
    model = model.to_empty(device="cpu").bfloat16()
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    save_state(config, state, tmp_path / "large", shard_bytes=5 * 10**6)
    save(tiny_model(), tmp_path / "warm")
    assert len(files(tmp_path / "large")) > 8
    environment = {"PYTHONPATH": str(Path(rnope.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    stored, converted = (json.loads(line) for line in out.stdout.splitlines())
    print(stored, converted)
    slack, shard = 6 * 2**20, 5 * 10**6
    assert converted["size"] == 2 * stored["size"] > 80e6
    assert stored["anonymous"] < slack and stored["size"] / 2 < stored["peak"] < stored["size"] + slack
    assert converted["size"] < converted["peak"] < converted["size"] + shard + slack
