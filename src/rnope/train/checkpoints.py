"""The checkpoints of one stage: folders of safetensors that any number of ranks writes and any other number reads.

A checkpoint is written beside its place and renamed when all of it is there, with a manifest of its files' sizes and
SHA-256. One that is cut short or altered is named and passed over for the one before. Nothing is ever unpickled: PyTorch's
distributed checkpoint keeps tensors in safetensors here, and everything else is JSON.
"""

import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from rnope.errors import UserError
from rnope.files import write_text

FORMAT = 1
MANIFEST = "manifest.json"
Facts = dict[str, Any]
"""What a checkpoint says besides its tensors: plain JSON."""


class Checkpoints:
    """The checkpoints in `folder`, ``step-00000100`` and so on. All ranks call every method together.

    Args:
        folder: of the stage; made when first written.
        keep: how many of the newest are kept.
        asynchronous: `save` returns when the state has been copied; `finish` makes the checkpoint visible.
    """

    def __init__(self, folder: Path, *, keep: int, asynchronous: bool = False) -> None:
        self.folder, self.keep, self.asynchronous = folder, keep, asynchronous
        self._writing: tuple[Future[Any], int, Facts] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.passed_over: list[str] = []
        """What was wrong with the checkpoints that `newest` could not use."""

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Write `tensors` and `facts` as the checkpoint of `step`; one that is being written is finished first."""
        self.finish()
        place = self._beside(step)
        if _rank() == 0:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        _meet()
        state = {name: tensor.detach() for name, tensor in tensors.items()}
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        if not self.asynchronous:
            _write(state, writer, place)
            self._publish(step, facts)
        elif _ranks() == 1:
            copied = {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
            self._writing = self._thread.submit(_write, copied, writer, place), step, facts
        else:
            future = async_save(state, storage_writer=writer, process_group=_group())
            assert isinstance(future, Future)
            self._writing = future, step, facts

    def ready(self) -> bool:
        """Whether this rank has nothing left to write."""
        return self._writing is None or self._writing[0].done()

    def finish(self) -> None:
        """Wait for what is being written and put it into its place."""
        if self._writing is None:
            return
        future, step, facts = self._writing
        self._writing = None
        try:
            with _plainly():
                future.result()
        except Exception:
            shutil.rmtree(self._beside(step), ignore_errors=True)  # a full disk needs the room
            raise
        self._publish(step, facts)

    def _publish(self, step: int, facts: Facts) -> None:
        place = self._beside(step)
        _meet()  # Every rank's file is there.
        mine = sorted(place.glob("*.safetensors"))[_rank() :: _ranks()]
        write_text(place / f"rank-{_rank()}.json", json.dumps({path.name: _digest(path) for path in mine}))
        _meet()
        if _rank() == 0:
            files: dict[str, tuple[int, str]] = {}
            for path in sorted(place.glob("rank-*.json")):
                files |= json.loads(path.read_text(encoding="utf-8"))
                path.unlink()
            manifest = {"format": FORMAT, "step": step, "files": dict(sorted(files.items())), "facts": facts}
            write_text(place / MANIFEST, json.dumps(manifest | {"sha256": _seal(manifest)}, indent=1))
            final = self.folder / f"step-{step:08d}"
            shutil.rmtree(final, ignore_errors=True)  # a damaged one, passed over before
            place.rename(final)
            # Later ones were passed over, since the run has come by here again: they would take the place of whole ones.
            for later in self.steps():
                if later > step:
                    self._remove(later)
            self._thin(step)
        _meet()

    def newest(self) -> tuple[int, Facts] | None:
        """Step and facts of the newest checkpoint that is whole; what is wrong with newer ones goes to `passed_over`.

        Raises:
            UserError: there are checkpoints, and none is whole.
        """
        self.passed_over = []
        for step in self.steps():
            fault = self._fault(step)
            # All ranks look at a part of the files, and must agree.
            bad = torch.tensor([1 if fault else 0])
            if _ranks() > 1:
                dist.all_reduce(bad, group=_group())
            if not bad.item():
                facts: Facts = self._manifest(step)["facts"]
                return step, facts
            self.passed_over.append(fault or f"{self._place(step)}: another rank found it damaged.")
        if self.passed_over:
            raise UserError(
                f"{self.folder}: none of its checkpoints is whole ({self.passed_over[0]}). "
                f"Remove the folder: the stage then starts over."
            )
        return None

    def load(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors` in place from the checkpoint of `step`, which any number of ranks may have written."""
        with _plainly():
            reader = HuggingFaceStorageReader(str(self._place(step)))
            state = {name: tensor.detach() for name, tensor in tensors.items()}
            load(state, storage_reader=reader, no_dist=_ranks() == 1, process_group=_group())

    def sweep(self, newest: int | None) -> None:
        """Remove what a killed run left half-written, half-removed or not removed, `newest` being the newest whole one."""
        if _rank() == 0:
            for path in self.folder.glob(".step-*"):
                shutil.rmtree(path, ignore_errors=True)
            if newest is not None:
                self._thin(newest)
        _meet()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or not, newest first; nothing is read."""
        return sorted((int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*")), reverse=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _beside(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}.tmp"

    def _thin(self, step: int) -> None:
        """Of `step` and those before it, leave as many as are kept."""
        for old in [earlier for earlier in self.steps() if earlier <= step][self.keep :]:
            self._remove(old)

    def _remove(self, step: int) -> None:
        """Out of sight first, so that a half-removed one is never taken for a checkpoint."""
        hidden = self.folder / f".step-{step:08d}.old"
        shutil.rmtree(hidden, ignore_errors=True)
        self._place(step).rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def _manifest(self, step: int) -> dict[str, Any]:
        manifest = json.loads((self._place(step) / MANIFEST).read_text(encoding="utf-8"))
        if manifest.pop("sha256") != _seal(manifest):
            raise ValueError("it was altered")
        if manifest["format"] != FORMAT or manifest["step"] != step:
            raise ValueError(f"format {manifest['format']}, step {manifest['step']}")
        return dict(manifest)

    def _fault(self, step: int) -> str | None:
        """What is wrong with the checkpoint of `step`, as far as this rank has looked."""
        place = self._place(step)
        try:
            files = self._manifest(step)["files"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{place / MANIFEST}: cannot be read ({error})"
        for name in sorted(files)[_rank() :: _ranks()]:
            path, (size, digest) = place / name, files[name]
            if not path.is_file():
                return f"{path}: is missing"
            if path.stat().st_size != size:
                return f"{path}: has {path.stat().st_size:,} of {size:,} bytes"
            if _digest(path)[1] != digest:
                return f"{path}: was altered (its SHA-256 is not the manifest's)"
        return None


def _write(state: Mapping[str, Tensor], writer: HuggingFaceStorageWriter, place: Path) -> None:
    """Write this rank's part of `state` to `place`, or nothing: a full disk needs the room."""
    try:
        with _plainly():
            save(dict(state), storage_writer=writer, no_dist=_ranks() == 1, process_group=_group())
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _digest(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: Facts) -> str:
    """A digest of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _group() -> dist.ProcessGroup | None:
    """All ranks over gloo, and nobody else's: a thread may write while others compute, on a GPU by another backend."""
    return _own_group(id(dist.group.WORLD)) if _ranks() > 1 else None


@functools.cache
def _own_group(_world: int) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo")


def _meet() -> None:
    """Wait for all ranks."""
    if _ranks() > 1:
        dist.barrier(group=_group())


@contextmanager
def _plainly() -> Iterator[None]:
    """Without the warning that one process is one process; and a full disk as what it is, out of torch's wrapping."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:
        # Of rank -> (exception, traceback), the first that says what is wrong with the disk.
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError):
                raise cause from None
        raise RuntimeError(str(error)) from None  # torch's own is no Exception, and would pass for an interruption
