"""The weights of a model folder, written: safetensors in one file or in several with an index, a file at a time.

A file's header has the SHA-256 of every tensor in it, and the index has one of each file, so that a reader can tell what
was altered. It knows tensors by the names they are to have in the files, and nothing of layers.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from rnope.errors import UserError, check

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SHARD_BYTES = 5 * 10**9
"""Most bytes of tensors in one file, as the Hub recommends."""
DIGESTS = "rnope_sha256"
"""Key of the digests: in a header, a JSON object of tensor -> digest; in the index's metadata, file -> digest."""
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Types of weights, as safetensors spells them."""


def write(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> torch.dtype:
    """Write `tensors` into `folder`, which is there and has no weights yet; each is asked for once, in this order.

    One shard is held in memory at a time, and the tensor after it; writing copies none. The same tensors make the same
    files, byte for byte.

    Args:
        tensors: name in the file and tensor, of any device and layout; at least one.
        shard_bytes: most bytes of tensors in a file; a larger tensor has a file to itself.

    Returns:
        the type of the first tensor.

    Raises:
        UserError: a tensor is on the meta device, or of a type that `read` does not read.
    """
    check("shard_bytes", shard_bytes, shard_bytes >= 1, "a file has room for at least a byte", "Use 5 * 10**9.")
    digests: list[dict[str, str]] = []
    dtypes: list[torch.dtype] = []
    numbers = size = 0
    for shard in _shards(tensors, shard_bytes):
        digests.append(sha256(shard))
        _write_file(folder / f"{len(digests)}.part", shard, digests[-1])
        dtypes += [tensor.dtype for tensor in shard.values()]
        numbers += sum(tensor.numel() for tensor in shard.values())
        size += sum(tensor.nbytes for tensor in shard.values())
        shard.clear()  # before the next one is gathered
    count = len(digests)
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)] if count > 1 else [WEIGHTS]
    for i, file in enumerate(files, start=1):
        (folder / f"{i}.part").rename(folder / file)
    if count > 1:
        index = {
            "metadata": {
                "total_size": size, "total_parameters": numbers,
                DIGESTS: {file: combined(held) for file, held in zip(files, digests, strict=True)},
            },
            "weight_map": {name: file for file, held in zip(files, digests, strict=True) for name in held},
        }  # fmt: skip
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return dtypes[0]


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if tensor.is_meta:
            raise UserError("The model is on the meta device and has no weights to save. Load or initialise it first.")
        if tensor.dtype not in TYPES.values():
            raise UserError(f"{name} is of {tensor.dtype}: only floating-point weights are saved. Convert the model.")
        if held and sum(other.nbytes for other in held.values()) + tensor.nbytes > shard_bytes:
            yield held
            held = {}
        held[name] = tensor.detach().to("cpu").contiguous()
    yield held


def _write_file(path: Path, tensors: Mapping[str, Tensor], digests: Mapping[str, str]) -> None:
    """One safetensors file. The library's own writer has the header's metadata in an order that changes by chance."""
    codes = {dtype: code for code, dtype in TYPES.items()}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].itemsize)  # so that each is aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt", DIGESTS: json.dumps(digests)}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(_bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def sha256(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """name -> SHA-256 over its name, type, shape and bytes, as hex; in threads, since hashlib lets go of the GIL."""

    def one(item: tuple[str, Tensor]) -> tuple[str, str]:
        name, tensor = item
        kind = str(tensor.dtype).removeprefix("torch.")
        found = hashlib.sha256(f"{name} {kind} {list(tensor.shape)}\n".encode())
        found.update(_bytes(tensor))
        return name, found.hexdigest()

    with ThreadPoolExecutor(max_workers=min(8, torch.get_num_threads())) as pool:
        return dict(pool.map(one, tensors.items()))


def combined(digests: Mapping[str, str]) -> str:
    """One digest of several tensors: SHA-256 over lines of name and digest, by name."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()
