"""Checkpoints: what is read is what was written, damage is named and passed over, and nothing half-done is ever seen."""

import json
import os

import pytest
import torch

from rnope.errors import UserError
from rnope.train.checkpoints import MANIFEST, Checkpoints


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight.a": torch.randn(7, 3, generator=generator),
        "exp_avg.a": torch.randn(7, 3, generator=generator).bfloat16(),
        "weight.scalar": torch.randn(1, generator=generator),
    }


def empty():
    return {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}


@pytest.fixture(params=[False, True], ids=["now", "asynchronous"])
def checkpoints(tmp_path, request):
    return Checkpoints(tmp_path / "checkpoints", keep=2, asynchronous=request.param)


def saved(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, tensors(step), {"step": step, "seconds": 1.5})
    checkpoints.finish()
    return checkpoints


def test_what_is_loaded_is_what_was_saved_bit_for_bit(checkpoints):
    saved(checkpoints, 5)
    assert checkpoints.newest() == (5, {"step": 5, "seconds": 1.5})
    found = empty()
    checkpoints.load(5, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(5).items())


def test_a_copy_is_written_and_not_what_the_weights_became(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1, asynchronous=True)
    state = tensors(1)
    checkpoints.save(1, state, {})
    for tensor in state.values():
        tensor.zero_()
    checkpoints.finish()
    found = empty()
    checkpoints.load(1, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(1).items())


def test_only_the_newest_are_kept(checkpoints):
    saved(checkpoints, 1, 2, 3, 10)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000003", "step-00000010"]


def test_what_a_kill_left_beyond_those_kept_is_swept(checkpoints, monkeypatch):
    """A process that dies between the new one's rename and the old one's removal."""
    saved(checkpoints, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            saved(checkpoints, 3)
    again = Checkpoints(checkpoints.folder, keep=2)
    assert again.steps() == [3, 2, 1]
    again.sweep(again.newest()[0])
    assert again.steps() == [3, 2]


def test_there_is_none_at_first(checkpoints):
    assert checkpoints.newest() is None and checkpoints.passed_over == []


def damage_file(place):
    path = next(place.glob("*.safetensors"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    return path, "altered"


def cut_file(place):
    path = next(place.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 1)
    return path, "bytes"


def lose_file(place):
    path = next(place.glob("*.safetensors"))
    path.unlink()
    return path, "missing"


def damage_manifest(place):
    path = place / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["facts"]["step"] += 1
    path.write_text(json.dumps(manifest))
    return path, "altered"


def cut_manifest(place):
    path = place / MANIFEST
    os.truncate(path, path.stat().st_size // 2)
    return path, "cannot be read"


def lose_manifest(place):
    (place / MANIFEST).unlink()
    return place / MANIFEST, "cannot be read"


def manifest_of_something_else(place):
    (place / MANIFEST).write_text('[1, {"a": 2}]')
    return place / MANIFEST, "cannot be read"


DAMAGES = [
    damage_file,
    cut_file,
    lose_file,
    damage_manifest,
    cut_manifest,
    lose_manifest,
    manifest_of_something_else,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_it_used(tmp_path, damage):
    checkpoints = saved(Checkpoints(tmp_path, keep=3), 1, 2)
    path, what = damage(tmp_path / "step-00000002")
    assert checkpoints.newest() == (1, {"step": 1, "seconds": 1.5})
    (fault,) = checkpoints.passed_over
    assert str(path) in fault and what in fault
    saved(checkpoints, 2)  # which takes the place of the damaged one
    assert checkpoints.newest() == (2, {"step": 2, "seconds": 1.5})


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_all_are_damaged_nothing_starts_over_in_silence(tmp_path, damage):
    checkpoints = saved(Checkpoints(tmp_path, keep=3), 1)
    path, _ = damage(tmp_path / "step-00000001")
    with pytest.raises(UserError, match=r"none of its checkpoints is whole.*Remove the folder") as error:
        checkpoints.newest()
    assert str(path) in str(error.value)


def test_what_a_kill_left_is_never_taken_for_a_checkpoint_and_swept(tmp_path):
    checkpoints = saved(Checkpoints(tmp_path, keep=3), 1)
    (tmp_path / ".step-00000002.tmp").mkdir()
    (tmp_path / ".step-00000000.old").mkdir()
    assert checkpoints.newest() == (1, {"step": 1, "seconds": 1.5})
    checkpoints.sweep(None)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_full_disk_leaves_the_older_ones_and_says_what_it_is(tmp_path, monkeypatch):
    checkpoints = saved(Checkpoints(tmp_path, keep=1), 1)
    import safetensors.torch
    import torch.distributed.checkpoint.filesystem as filesystem

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save", full)
    monkeypatch.setattr(filesystem.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, tensors(2), {})
    assert checkpoints.newest() == (1, {"step": 1, "seconds": 1.5})


def test_no_pickle_is_written(tmp_path):
    saved(Checkpoints(tmp_path, keep=1), 1)
    names = sorted(path.suffix for path in tmp_path.rglob("*") if path.is_file())
    assert names == [".json", ".safetensors"]
