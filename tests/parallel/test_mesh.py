"""Ranks and how they are arranged, and what is said where they do not fit."""

import re
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from rnope.errors import ConfigError, UserError
from rnope.parallel.mesh import joined
from rnope.testing import run_distributed

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def arranged(degree):
    with joined(degree, device="cpu") as mesh:
        flat = mesh.flat
        assert flat is mesh.flat or flat == mesh.flat
        return mesh.group, mesh.place, dist.get_process_group_ranks(mesh.sequence_group), flat.mesh.tolist()


def refused():
    try:
        joined(3, device="cpu")
    except ConfigError as error:
        return str(error)


def test_neighbours_share_a_row_and_all_share_the_weights():
    everyone = [0, 1, 2, 3]
    results = run_distributed(both, 4)
    assert [r[0] for r in results] == [
        (0, 0, [0, 1], everyone), (0, 1, [0, 1], everyone), (1, 0, [2, 3], everyone), (1, 1, [2, 3], everyone),
    ]  # fmt: skip
    assert [r[1][:3] for r in results] == [(0, rank, everyone) for rank in everyone]
    assert all("= 3: must divide the 4 ranks. Use one of 1, 2, 4." in r[2] for r in results)


def both():
    return arranged(2), arranged(4), refused()


def test_one_process_alone_begins_nothing():
    with joined(device="cpu") as mesh:
        assert (mesh.rank, mesh.ranks, mesh.groups, mesh.group, mesh.place, mesh.devices) == (0, 1, 1, 0, 0, None)
        assert mesh.device == torch.device("cpu") and mesh.device_name == "cpu" and not dist.is_initialized()
    with pytest.raises(ConfigError, match="sequence_parallel = 2: must divide the 1 ranks"):
        joined(2, device="cpu")


def test_torchruns_environment_is_joined_and_left(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with joined(device="cpu") as mesh:
        assert dist.get_backend() == "gloo" and mesh.ranks == 1 and mesh.flat.size() == 1
    assert not dist.is_initialized()
    with pytest.raises(ConfigError, match="must divide the 1 ranks"):
        joined(2, device="cpu")
    assert not dist.is_initialized()
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="RANK is set and MASTER_PORT is not"):
        joined(device="cpu")
    monkeypatch.setenv("MASTER_PORT", str(port))
    for name, value in (("WORLD_SIZE", "two"), ("RANK", "1")):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="Start the processes by torchrun"):
            joined(device="cpu")


def test_devices_that_are_not_there(monkeypatch):
    with pytest.raises(ConfigError, match="Did you mean 'cuda'"):
        joined(device="cud")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert joined(device="auto").device.type == "cpu"
    with pytest.raises(ConfigError, match=r"cuda:0.*has 0 GPUs.*Use cpu"):
        joined(device="cuda")


def test_calls_that_torch_deprecates_or_hides_are_not_made():
    texts = {path.relative_to(SOURCE).as_posix(): path.read_text("utf-8") for path in SOURCE.rglob("*.py")}
    gone = r"all_gather_into_tensor\(|reduce_scatter_tensor\(|distributed\.nn\b|_functional_collectives|torchdata"
    assert not [name for name, text in texts.items() if re.search(gone, text)]
    assert [name for name, text in texts.items() if "._flatten(" in text] == ["rnope/parallel/mesh.py"]


@pytest.mark.slow
def test_torchrun_itself(tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(
        textwrap.dedent("""
            from rnope.parallel.mesh import joined
            with joined(2, device="cpu") as mesh:
                print(f"rank {mesh.rank} place {mesh.place} of {mesh.ranks}", flush=True)
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split("\n")) == ["", "rank 0 place 0 of 2", "rank 1 place 1 of 2"], done.stderr
    assert "destroy_process_group" not in done.stderr
