"""Checkpoints: read without unpickling, and refused with a remedy when they are damaged."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from rnope.compare.learn.checkpoint import Progress, load_checkpoint, restore, save_checkpoint
from rnope.compare.learn.optim import build_optimizers
from rnope.compare.learn.stage import run_stage
from rnope.errors import UserError


@pytest.fixture
def trained(model, training, stage, tmp_path):
    run_stage(model(), stage(steps=3), training(name="muon"), tmp_path)
    return tmp_path / "checkpoint.pt"


def test_a_checkpoint_gives_back_everything(model, training, trained, tmp_path):
    state = load_checkpoint(trained)
    net = model(seed=5)
    optimizers = build_optimizers(net, training(name="muon").optimizer, 1.0)
    progress = restore(state, net, optimizers)
    assert progress.step == 3 and progress.history[-1]["step"] == 3
    again = tmp_path / "again.pt"
    save_checkpoint(again, net, optimizers, progress)
    twin = load_checkpoint(again)
    assert all(torch.equal(twin["model"][k], v) for k, v in state["model"].items())
    for a, b in zip(state["optimizers"], twin["optimizers"], strict=True):
        assert a["param_groups"] == b["param_groups"]
        assert all(torch.equal(x, b["state"][i][k]) for i, s in a["state"].items() for k, x in s.items())
    assert twin["progress"] == state["progress"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pt", "checkpoint.pt", "log.jsonl"]


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_the_users_to_delete(model, training, stage, trained, kept):
    data = trained.read_bytes()
    trained.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError) as error:
        run_stage(model(), stage(steps=5), training(name="muon"), trained.parent)
    assert str(trained) in str(error.value) and "Delete it: the stage then starts over." in str(error.value)
    trained.unlink()
    assert run_stage(model(), stage(steps=5), training(name="muon"), trained.parent).step == 5


@pytest.mark.parametrize("data", [b"\n", b"hello", b"{}", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x80\x05cos\nsystem\n.",
                                  pickle.dumps({"format": 1}), os.urandom(300), bytes(1000)])  # fmt: skip
def test_what_is_no_checkpoint_is_refused(tmp_path, data):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(data)
    with pytest.raises(UserError, match="Delete it") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("state", [{}, [], {"format": 2}, 7, {"format": "1"}])
def test_what_torch_can_read_but_is_of_another_kind_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="no checkpoint of this version"):
        load_checkpoint(tmp_path / "checkpoint.pt")


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_nothing_in_a_checkpoint_is_run(tmp_path, write):
    path = tmp_path / "checkpoint.pt"
    write({"format": 1, "model": Evil(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
    assert not (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rubbish(model, training, trained, monkeypatch):
    before = trained.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    net = model()
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(trained, net, build_optimizers(net, training().optimizer, 1.0), Progress())
    assert trained.read_bytes() == before
    assert sorted(p.name for p in trained.parent.iterdir()) == ["checkpoint.pt", "log.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_to_be_full_and_leaves_the_old_checkpoint(model, training, trained, monkeypatch):
    before = trained.read_bytes()
    full, net = Path("/dev/full").open("wb"), model()  # noqa: SIM115
    monkeypatch.setattr(Path, "open", lambda path, mode: full)
    with pytest.raises(OSError) as error:
        save_checkpoint(trained, net, build_optimizers(net, training().optimizer, 1.0), Progress())
    monkeypatch.undo()
    assert error.value.errno == errno.ENOSPC
    assert trained.read_bytes() == before
