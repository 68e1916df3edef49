"""What a model folder takes: seconds and memory of writing it and of opening it, here and in transformers.

python benchmarks/folders.py --size 8b --dtype bfloat16 --shard 5GB --out FILE.json

Every step runs in a process of its own, in which a tiny model was opened before, with the files out of the page cache at
its start. The weights are random and made one tensor at a time.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from rnope.bench.machine import machine, session
from rnope.files import write_text
from rnope.hf.folder import load, save_state
from rnope.hf.weights import digest
from rnope.memory import status_bytes
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.units import size

STEPS = {
    "write": "rnope.save",
    "stored": "rnope.load, as stored",
    "unverified": "rnope.load, as stored, digests not compared",
    "converted": "rnope.load, converted",
    "digest": "rnope.hf.weights.digest",
    "transformers": "transformers, as stored",
    "transformers-converted": "transformers, converted",
}


class Random(Mapping[str, Tensor]):
    """Weights of `config` that are made when asked for."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            self.state = Decoder(config).state_dict()
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(0)

    def __getitem__(self, name: str) -> Tensor:
        made = torch.empty(self.state[name].shape, dtype=self.dtype)
        return made.normal_(std=0.02, generator=self.generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


class Watch:
    """Peaks of this process's memory above what it held at the start, in bytes; the anonymous part is looked at often."""

    def __enter__(self) -> "Watch":
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
        self._start = {key: status_bytes(key) for key in ("VmRSS", "RssAnon")}
        self._anonymous, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self._since = time.perf_counter()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.005):
            self._anonymous = max(self._anonymous, status_bytes("RssAnon"))

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._since
        self._done.set()
        self._thread.join()
        peak, anonymous = status_bytes("VmHWM"), max(self._anonymous, status_bytes("RssAnon"))
        self.found = {
            "seconds": round(seconds, 3), "peak_bytes": peak - self._start["VmRSS"],
            "peak_anonymous_bytes": anonymous - self._start["RssAnon"],
        }  # fmt: skip


def step(given: argparse.Namespace) -> dict[str, object]:
    """One step, in this process."""
    folder: Path = given.folder / "model"
    stored = getattr(torch, given.dtype)
    other = torch.float16 if stored == torch.bfloat16 else torch.bfloat16
    if given.step == "write":
        config = ModelConfig.variant(given.variant, size=given.size)
        weights = Random(config, stored)
        tiny = ModelConfig.variant(given.variant, size="tiny")
        save_state(tiny, Random(tiny, stored), given.folder / "warm")
        with Watch() as watch:
            save_state(config, weights, folder, shard_bytes=given.shard_bytes)
        return watch.found
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    about: dict[str, object] = {}
    if given.step == "digest":
        with Watch() as watch:
            about["digest"] = digest(folder)
        return watch.found | about
    if given.step.startswith("transformers"):
        from transformers import AutoModelForCausalLM

        dtype = other if given.step.endswith("converted") else "auto"
        AutoModelForCausalLM.from_pretrained(given.folder / "warm", dtype=dtype, trust_remote_code=False)
        with Watch() as watch:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    else:
        dtype = other if given.step == "converted" else None
        load(given.folder / "warm", dtype)
        with Watch() as watch:
            model = load(folder, dtype, verify=given.step != "unverified")
    started = time.perf_counter()
    for parameter in model.parameters():
        parameter.detach().reshape(-1).view(torch.uint8)[::4096].sum()
    about["seconds_to_touch_every_page"] = round(time.perf_counter() - started, 3)
    about["model_bytes"] = sum(parameter.nbytes for parameter in model.parameters())
    return watch.found | about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", default="rnope-swa")
    parser.add_argument("--size", default="100m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--shard", default="5GB", help="most bytes of weights in a file: 5GB, 200MB")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--folder", type=Path, help="where to write the model, which is removed at the end")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    number, unit = given.shard[:-2], given.shard[-2:].upper()
    given.shard_bytes = int(float(number) * {"GB": 10**9, "MB": 10**6}[unit])
    if given.step is not None:
        print(json.dumps(step(given)))
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as root:
        for name in given.steps.split(","):
            words = [sys.executable, __file__, *sys.argv[1:], "--folder", root, "--step", name]
            out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
            files = [path.stat().st_size for path in Path(root, "model").glob("*.safetensors")]
            row = {"step": name, "what": STEPS[name], **json.loads(out)}
            rows.append(row)
            print(
                f"{row['what']:45} {row['seconds']:8.2f} s   peak {size(row['peak_bytes']):>9}, "
                f"{size(max(row['peak_anonymous_bytes'], 0)):>9} of it anonymous"
            )
    print(f"{len(files)} files of {size(sum(files))}, the largest of {size(max(files))}")
    if given.out is not None:
        about = {
            "size": given.size, "variant": given.variant, "dtype": given.dtype, "stored_bytes": sum(files),
            "files": len(files), "largest_file_bytes": max(files), "threads": torch.get_num_threads(),
            "safetensors": version("safetensors"), "machine": machine("cpu"),
        }  # fmt: skip
        about |= session(shlex.join(["benchmarks/folders.py", *sys.argv[1:]]))
        write_text(given.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
