"""Who takes part: the ranks, their device, and how they are arranged, data parallel × sequence parallel.

Neighbouring ranks share a row, so that its keys travel inside a machine. It knows nothing of models. The one underscored
call of torch's that everybody needs, `DeviceMesh._flatten`, is made here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rnope.errors import UserError, check, unknown

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others: the first may be drawing or reading the weights of all."""
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """The ranks of a run. A context manager: leaving it ends the process group that `joined` began."""

    rank: int
    ranks: int
    degree: int
    """Ranks that share each row."""
    device: torch.device
    """This rank's own."""
    devices: DeviceMesh | None
    """Axes ``dp`` and ``sp``; None for one process alone."""
    owned: bool = False
    """Whether leaving ends the process group."""

    @property
    def groups(self) -> int:
        """Groups of ranks that have different rows."""
        return self.ranks // self.degree

    @property
    def group(self) -> int:
        """Which of them this rank is in."""
        return self.rank // self.degree

    @property
    def place(self) -> int:
        """Which share of its group's rows this rank holds."""
        return self.rank % self.degree

    @property
    def device_name(self) -> str:
        """What the maker calls the device; ``"cpu"`` for all of those."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    @property
    def sequence_group(self) -> dist.ProcessGroup:
        """The ranks that share this one's rows, in the order of their shares."""
        assert self.devices is not None
        return self.devices.get_group("sp")

    @property
    def flat(self) -> DeviceMesh:
        """All ranks in one axis, over which weights are cut: FSDP also adds up gradients of shares of a row."""
        assert self.devices is not None
        flat: DeviceMesh = self.devices["dp", "sp"]._flatten("fsdp")
        return flat

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error nobody is waited for."""
        if self.owned and dist.is_initialized():
            if error is None:
                dist.barrier()
            dist.destroy_process_group()


def joined(sequence_parallel: int = 1, *, device: str = "auto") -> Mesh:
    """The mesh of this process: over the process group that is there already, or torchrun's, or one process alone.

    Args:
        sequence_parallel: ranks that share each row; the other factor of their number shares the rows of a batch.
        device: ``"cuda"``, ``"cpu"``, or ``"auto"``: a GPU where there is one.

    Raises:
        ConfigError: the ranks do not divide, or there are fewer GPUs here than processes.
        UserError: the environment is torchrun's in part only.
    """
    launched = "RANK" in os.environ
    local, ranks = _launched(os.environ) if launched else (0, 1)
    where = _device(device, local)
    owned = launched and not dist.is_initialized()
    if owned:
        _check_degree(sequence_parallel, ranks)
        if where.type == "cuda":
            dist.init_process_group("nccl", timeout=PATIENCE, device_id=where)
        else:
            dist.init_process_group("gloo", timeout=PATIENCE)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _check_degree(sequence_parallel, ranks)
    shape = (ranks // sequence_parallel, sequence_parallel)
    devices = init_device_mesh(where.type, shape, mesh_dim_names=("dp", "sp")) if dist.is_initialized() else None
    return Mesh(rank=rank, ranks=ranks, degree=sequence_parallel, device=where, devices=devices, owned=owned)


def _check_degree(degree: int, ranks: int) -> None:
    divisors = ", ".join(str(n) for n in range(1, min(ranks, 4096) + 1) if ranks % n == 0)
    ok = degree >= 1 and ranks % degree == 0
    check("execution.sequence_parallel", degree, ok, f"must divide the {ranks} ranks", f"Use one of {divisors}.")


def _launched(environment: Mapping[str, str]) -> tuple[int, int]:
    """LOCAL_RANK and WORLD_SIZE, where everything is there that torchrun tells a rank."""
    missing = [name for name in _TORCHRUN if not environment.get(name)]
    if missing:
        raise UserError(
            f"RANK is set and {', '.join(missing)} is not. Start many processes by torchrun, or one with RANK unset."
        )
    numbers = [environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
    if not all(number.isdecimal() for number in numbers) or int(numbers[0]) >= int(numbers[2]):
        raise UserError(f"RANK, LOCAL_RANK, WORLD_SIZE are {', '.join(numbers)}. Start the processes by torchrun.")
    return int(numbers[1]), int(numbers[2])


def _device(wanted: str, local: int) -> torch.device:
    """This process's device, which becomes torch's current one."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise unknown("device", wanted, "device", ("auto", "cpu", "cuda"))
    there = torch.cuda.device_count()
    if wanted == "cpu" or (wanted == "auto" and not there):
        return torch.device("cpu")
    remedy = f"Start at most {there} processes here: torchrun --nproc-per-node {there}." if there else "Use cpu."
    check("device", f"cuda:{local}", local < there, f"this machine has {there} GPUs for PyTorch", remedy)
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
