"""The weights of a model folder, read: safetensors in one file or in several with an index, mapped one after another.

What is missing, altered or misplaced is named before or while it is read; files of others, which have no digests, are
read without. It knows tensors by the names they have in the files, and nothing of layers. No pickle is ever opened.
"""

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rnope.errors import UserError
from rnope.hf.reading import read_json, some
from rnope.hf.shards import DIGESTS, EMBEDDING, HEAD, INDEX, TYPES, WEIGHTS, combined, sha256

_AGAIN = "Fetch or write it again."


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """One file's header, and what the index says of the file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    """As safetensors spells them."""
    digests: dict[str, str]
    """Of each tensor; empty in a file that others wrote."""
    indexed: str | None
    """The digest in the index, if it has one."""

    def size(self, name: str) -> int:
        return math.prod(self.shapes[name]) * TYPES[self.types[name]].itemsize


def read(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype | None,
    device: torch.device,
    verify: bool = True,
) -> dict[str, Tensor]:
    """The tensors of `folder`, one file after another; at most one file is mapped beside what is returned.

    Every header is checked before the first tensor is read. As stored and on the CPU, tensors are private views of the
    files: pages are read when used, changing a tensor changes no file, and a file that is replaced by renaming, as
    `rnope.save` does, leaves them as they were. A file that another program writes to in place takes them along, checked or
    not.

    Args:
        shapes: name -> shape of every tensor that is wanted; a tied ``lm_head.weight`` may be there besides.
        dtype: what to convert to; None keeps each as stored.
        device: where to.
        verify: compare the tensors with the digests that were written with them, where there are some. It reads every
            byte once.

    Raises:
        UserError: a file is missing, damaged or altered, a pickle, or not of these tensors.
    """
    files = _open(folder)
    _check_tensors(folder, files, shapes)
    found: dict[str, Tensor] = {}
    for file in files:
        tensors = _stored(file)
        if verify:
            _check_digests(file, tensors)
        tensors.pop(HEAD, None)
        for name in list(tensors):
            found[name] = tensors.pop(name).to(device=device, dtype=dtype)
    _check_head(files)
    return found


def digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of all weights of a model folder: names, types, shapes and numbers, however they are split into files.

    It is put together from the digests in the headers, which `read` compares with the tensors; a file that has none is
    read. A stored head, which `read` compares with the embedding, is left out as transformers leaves it out: the folder
    that it writes of a model has the digest of the one that it read.

    Raises:
        UserError: a file is missing or damaged, or a pickle.
    """
    digests: dict[str, str] = {}
    for file in _open(Path(folder).expanduser()):
        if file.digests:
            digests |= file.digests
        else:
            digests |= sha256(_stored(file))
    digests.pop(HEAD, None)
    return combined(digests)


def _open(folder: Path) -> list[_File]:
    """The headers of a folder's files, in the order of their names; they hold what the index says, and it alone."""
    if (folder / WEIGHTS).is_file():
        if (folder / INDEX).is_file() and any(folder.glob("model-?????-of-?????.safetensors")):
            # transformers leaves the first there when it saves the others, and then reads the old one.
            raise UserError(
                f"{folder} has {WEIGHTS} and beside it the files of {INDEX}. Take away what is old of them."
            )
        return [_header(folder / WEIGHTS, None)]
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    index = read_json(folder / INDEX)
    places, about = index.get("weight_map"), index.get("metadata")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{folder / INDEX}: weight_map must say of each tensor in which file it is. Fetch it again.")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise UserError(f"{folder / INDEX} names {name!r}, which is not in the folder. Fetch the folder again.")
    missing = [name for name in names if not os.path.isfile(folder / name)]  # False, too, for what can be no name
    if missing:
        raise UserError(f"{folder} lacks {some(missing)}, which its index names. {_AGAIN}")
    about = about if isinstance(about, dict) else {}
    indexed = about.get(DIGESTS)
    files = [_header(folder / name, indexed.get(name) if isinstance(indexed, dict) else None) for name in names]
    _check_index(folder / INDEX, places, files)
    _check_size(folder / INDEX, about.get("total_size"), files)
    return files


def _header(path: Path, indexed: str | None) -> _File:
    with _reading(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        try:
            digests = json.loads((file.metadata() or {}).get(DIGESTS, "{}"))
        except (ValueError, RecursionError):
            digests = None
        if not isinstance(digests, dict) or (digests and digests.keys() != slices.keys()):
            raise UserError(f"{path}: the digests in its header are not of its tensors. {_AGAIN}")
        return _File(
            path=path,
            shapes={name: tuple(piece.get_shape()) for name, piece in slices.items()},
            types={name: piece.get_dtype() for name, piece in slices.items()},
            digests=digests,
            indexed=indexed,
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:  # the last by torch, where the file has just gone
        raise UserError(
            f"{path}: not readable as safetensors ({error}). It may be cut short: fetch it again."
        ) from None


def _stored(file: _File) -> dict[str, Tensor]:
    """The tensors of a file, as views of it: nothing is read yet."""
    with _reading(file.path), safe_open(file.path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in file.shapes}


def _check_index(index: Path, places: Mapping[str, str], files: list[_File]) -> None:
    """Every tensor is in the file where the index has it, and in no other."""
    found: dict[str, str] = {}
    for file in files:
        for name in file.shapes:
            if name in found:
                raise UserError(f"{file.path.parent}: {name} is in {found[name]} and in {file.path.name}. {_AGAIN}")
            found[name] = file.path.name
    for name in sorted(places.keys() | found.keys()):
        said, there = places.get(name, "no file"), found.get(name, "none")
        if said != there:
            raise UserError(f"{index} has {name} in {said}, but it is in {there}. {_AGAIN}")


def _check_size(index: Path, said: object, files: list[_File]) -> None:
    """``total_size`` is that of the files; some programs count a tied head that they do not write, or the reverse."""
    if not isinstance(said, int | float) or not all(kind in TYPES for file in files for kind in file.types.values()):
        return
    sizes = {name: file.size(name) for file in files for name in file.shapes}
    size = sum(sizes.values())
    tied = sizes.get(HEAD)
    if said not in (size, size - tied if tied else size + sizes.get(EMBEDDING, 0)):
        rule = f"total_size is {said:,}, but its files hold {size:,} bytes"
        raise UserError(f"{index}: {rule}. Fetch the folder again; if the files are right, delete total_size.")


def _check_tensors(folder: Path, files: list[_File], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The files hold the tensors of `shapes`, and perhaps a head, in types that are read."""
    wanted = {**shapes, HEAD: shapes[EMBEDDING]}
    for file in files:
        extra = sorted(set(file.shapes) - set(wanted))
        if extra:
            rule = f"also holds {some(extra)}, for which config.json has no layer"
            raise UserError(f"{file.path} {rule}. Do they belong together?")
        for name, shape in file.shapes.items():
            if file.types[name] not in TYPES:  # packed, they have other shapes too
                rule = f"{name} is stored as {file.types[name]}; quantised weights are not read"
                raise UserError(f"{file.path}: {rule}. Convert to bfloat16.")
            if shape != wanted[name]:
                rule = f"{name} is {shape}, but by config.json it is {wanted[name]}"
                raise UserError(f"{file.path}: {rule}. Mend config.json.")
    missing = sorted(set(shapes).difference(*(file.shapes for file in files)))
    if missing:
        raise UserError(
            f"{folder}: the weights lack {some(missing)}. The folder is incomplete: fetch or write it again."
        )


def _check_digests(file: _File, tensors: Mapping[str, Tensor]) -> None:
    """The tensors are what the header says, and the file is the one that the index was written with."""
    if file.digests and file.indexed and combined(file.digests) != file.indexed:
        raise _altered(file, f"it is not the file that {INDEX} was written with")
    if not file.digests and not file.indexed:
        return
    found = sha256(tensors)
    altered = sorted(name for name, expected in file.digests.items() if found[name] != expected)
    if altered:
        raise _altered(file, f"the SHA-256 of {some(altered)} is not that in its header")
    if file.indexed and combined(found) != file.indexed:
        raise _altered(file, f"its SHA-256 is not that in {INDEX}")


def _altered(file: _File, how: str) -> UserError:
    return UserError(f"{file.path} was altered or damaged: {how}. {_AGAIN}")


def _check_head(files: list[_File]) -> None:
    """A stored head is the embedding; both are compared where they lie, in no memory of ours."""
    places = {name: file for file in files for name in file.shapes}
    if HEAD not in places:
        return
    pair = []
    for name in (HEAD, EMBEDDING):
        with _reading(places[name].path), safe_open(places[name].path, framework="pt") as opened:
            pair.append(opened.get_tensor(name))
    if pair[0].dtype != pair[1].dtype or not torch.equal(*pair):
        where = places[HEAD].path.parent
        raise UserError(
            f"{where}: {HEAD} differs from {EMBEDDING}; rnope has only tied heads. Use transformers for it."
        )


def _no_weights(folder: Path) -> UserError:
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if not pickled:
        return UserError(f"{folder} has no {WEIGHTS}. Give a folder with weights in it.")
    return UserError(
        f"{folder} has its weights only as {some(pickled)}: pickles, which can run code and are never opened here. "
        f"If you trust them, convert once, and copy the tokenizer's files: {converting(folder)}"
    )


def converting(folder: Path) -> str:
    """The command that makes safetensors of a folder's pickles, for those who trust them."""
    code = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained({str(folder) + '-safetensors'!r})"
    )
    return f"python -c {shlex.quote(code)}"
