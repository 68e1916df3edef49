"""What a probe takes: its seconds beside a plain prefill, and its memory by length beside eager attention outputs.

python benchmarks/analysis.py overhead --size 100m --length 32k --out FILE.json
python benchmarks/analysis.py overhead --size 100m --length 32k --through transformers --out FILE.json
python benchmarks/analysis.py memory --size cpu --lengths 8k,16k,32k,64k,128k --out FILE.json
python benchmarks/analysis.py long --size cpu --length 128k --out FILE.json
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import rnope
from rnope.analysis.measures import MEASURES
from rnope.analysis.ours import EngineProbed
from rnope.analysis.probe import Layer, Marks, Probed, probe
from rnope.analysis.room import eager_bytes, probe_bytes
from rnope.analysis.spans import segments
from rnope.bench.limits import set_threads
from rnope.bench.machine import machine, session
from rnope.files import write_text
from rnope.generate.room import chunk_bytes
from rnope.memory import status_bytes
from rnope.model.decoder import Decoder
from rnope.units import size, token_counts

ROWS = 64
"""Queries of question and completion."""


def decoder(given: argparse.Namespace) -> Decoder:
    """With random weights."""
    config = rnope.ModelConfig.variant(given.variant, size=given.size, vocab_size=given.vocab)
    return Decoder(config).requires_grad_(False)


def marked(length: int, vocab: int) -> Marks:
    """Random tokens, with a needle in the middle that eight rows copy from."""
    ids = torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    needle = length // 2, length // 2 + 32
    named = {"begin": (0, 10), "needle": needle, "qc": (length - ROWS, length)}
    copied = {length - 9 + i: (needle[0] + i,) for i in range(8)}
    return Marks(ids=ids, spans=segments(length, named), copied=copied)


def overhead(given: argparse.Namespace) -> dict[str, object]:
    """Seconds of a prefill in chunks, and of the same with the probe and every measure, in turns."""
    model = decoder(given)
    (length,) = token_counts(given.lengths)
    marks = marked(length, given.vocab)
    with tempfile.TemporaryDirectory() as root:
        pair = engine if given.through == "engine" else transformers
        probed, plain = pair(model, given.chunk, Path(root))
        short = marked(1024, given.vocab)
        works: dict[str, Callable[[Marks], object]] = {
            "plain": lambda marks: plain(marks.ids),
            "probed": lambda marks: probe(probed, marks, MEASURES, rows_from=len(marks.ids) - ROWS),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for work in works.values():
            work(short)
        for turn in range(given.rounds):
            for name in sorted(works, reverse=turn % 2 == 1):
                started = time.perf_counter()
                works[name](marks)
                seconds[name].append(round(time.perf_counter() - started, 3))
                print(f"round {turn + 1}: {name:7} {seconds[name][-1]:9.3f} s", flush=True)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    ratio = medians["probed"] / medians["plain"]
    print(f"the probe takes {ratio:.3f} times a plain prefill of {length:,} tokens (wanted: at most 1.25)")
    return {"through": given.through, "seconds": seconds, "medians": medians, "ratio": round(ratio, 4)}


Pair = tuple[Probed, Callable[[Sequence[int]], object]]
"""A model to be probed, and how it reads a text plainly."""


def engine(model: Decoder, chunk: int, root: Path) -> Pair:
    probed = EngineProbed(model, chunk=chunk)
    return probed, probed.engine.prefill


def transformers(model: Decoder, chunk: int, root: Path) -> Pair:
    from transformers import AutoModelForCausalLM, DynamicCache

    from rnope.analysis.hub import HubProbed

    rnope.save(model, root / "model")
    theirs = AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float32).eval()

    @torch.inference_mode()
    def plain(ids: Sequence[int]) -> object:
        cache = DynamicCache(config=theirs.config)
        for piece in torch.tensor(ids)[None].split(chunk, dim=1):
            found = theirs(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits

    return HubProbed(theirs, chunk=chunk), plain


def memory(given: argparse.Namespace) -> dict[str, object]:
    """Peak and seconds of a probe at each length, each in a process of its own, beside eager attention outputs."""
    rows = []
    options = ("variant", "size", "vocab", "chunk", "threads")
    for length in token_counts(given.lengths):
        words = [f"--{name}={getattr(given, name)}" for name in options]
        command = [sys.executable, __file__, "one", f"--lengths={length}", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        print(
            f"{length:>9,} tokens {row['seconds']:8.1f} s   peak {size(row['peak_bytes']):>9} beside the libraries' "
            f"{size(row['baseline_bytes'])} and the model's (counted {size(row['counted_bytes'])}); "
            f"eager outputs {size(row['eager_bytes'])}",
            flush=True,
        )
    return {"rows": rows}


def one(given: argparse.Namespace) -> dict[str, object]:
    """One probe in this process."""
    model = decoder(given)
    probed = EngineProbed(model, chunk=given.chunk)
    layers: list[Layer] = probed.layers
    short = marked(2 * given.chunk + ROWS, given.vocab)
    probe(probed, short, MEASURES, rows_from=len(short.ids) - ROWS)  # code, thread pools and workspaces are there now
    (length,) = token_counts(given.lengths)
    marks = marked(length, given.vocab)
    baseline = status_bytes("VmRSS")
    started = time.perf_counter()
    readings, _ = probe(probed, marks, MEASURES, rows_from=length - ROWS)
    seconds = time.perf_counter() - started
    config = model.config
    counted = probe_bytes(layers, head_size=config.head_size, value_bytes=4, context_tokens=length, rows=ROWS)
    return {
        "context_tokens": length,
        "rows": readings[0].rows,
        "seconds": round(seconds, 2),
        "baseline_bytes": baseline,
        "peak_bytes": status_bytes("VmHWM") - baseline,
        "counted_bytes": counted + chunk_bytes(probed.engine),
        "eager_bytes": eager_bytes(layers, context_tokens=length),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["overhead", "memory", "long", "one"])
    parser.add_argument("--size", default=None)
    parser.add_argument("--variant", default="rnope-swa")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--lengths", "--length", default=None)
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--through", choices=["engine", "transformers"], default="engine")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    set_threads(given.threads)
    given.size = given.size or ("100m" if given.what == "overhead" else "cpu")
    usual = {"overhead": "32k", "memory": "8k,16k,32k,64k,128k", "long": "128k", "one": "8k"}
    given.lengths = given.lengths or usual[given.what]
    found = {"overhead": overhead, "memory": memory, "long": memory, "one": one}[given.what](given)
    if given.what == "one":
        print(json.dumps(found))
    if given.out is not None:
        command = shlex.join(["benchmarks/analysis.py", *sys.argv[1:]])
        plan = {
            name: getattr(given, name) for name in ("what", "size", "variant", "vocab", "lengths", "chunk", "threads")
        }
        write_text(given.out, json.dumps(plan | {"machine": machine("cpu"), **session(command)} | found, indent=1))


if __name__ == "__main__":
    main()
