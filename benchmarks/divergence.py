"""How far llama.cpp's next-token distribution lies from ours, by type of weights: KL in nats, and greedy text.

python benchmarks/divergence.py FOLDER... --out JSON

Each model is exported in every type and reads the same text, which it has sampled itself. Needs ``llama-cpp-python``.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import llama_cpp

from rnope.bench.limits import set_threads
from rnope.bench.machine import machine, session
from rnope.errors import ConfigError
from rnope.files import write_text
from rnope.generate import Engine, Sample
from rnope.hf.folder import load
from rnope.hf.gguf import export_gguf
from rnope.model.decoder import Decoder
from rnope.testing.llama import divergence, llama_logits, opened, our_logits, reading, silenced

DTYPES = ("f32", "f16", "bf16", "q8_0")
TOKENS, GREEDY, ROOM = 600, 128, 1024


def greedy(api: Any, path: Path, ids: list[int]) -> list[int]:
    """llama.cpp's likeliest continuation of `ids`."""
    made: list[int] = []
    with opened(api, path) as model, reading(api, model, tokens=ROOM, ubatch=128) as read:
        logits = read(ids, 0)
        for at in range(GREEDY):
            made.append(int(logits[-1].argmax()))
            logits = read(made[-1:], len(ids) + at)
    return made


def measured(api: Any, model: Decoder, place: Path) -> dict[str, Any]:
    """Mean and largest KL of each type, and whether greedy text in F32 is ours."""
    engine = Engine(model)
    ids = [1, *engine.generate([[1]], max_new_tokens=TOKENS - 1, sampling=Sample(seed=1)).tokens[0]]
    ours, found = our_logits(model, ids), {}
    for dtype in DTYPES:
        export_gguf(model, place, dtype=dtype)
        nats = divergence(ours, llama_logits(api, place, ids, tokens=ROOM, ubatch=128))
        found[dtype] = {"mean": float(nats.mean()), "largest": float(nats.max())}
        if dtype == "f32":
            same = greedy(api, place, ids) == engine.generate([ids], max_new_tokens=GREEDY).tokens[0]
    return {"nats": found, "greedy_equal": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    set_threads(1)
    began = session("python benchmarks/divergence.py FOLDER... --out JSON")
    models: dict[str, Any] = {}
    print("| model | " + " | ".join(DTYPES) + f" | {GREEDY} greedy tokens |\n" + "| --- " * (len(DTYPES) + 2) + "|")
    with silenced(llama_cpp) as api, TemporaryDirectory() as place:
        for folder in given.folders:
            name = "/".join(folder.parts[-3:-1]) if folder.name == "model" else folder.name
            try:
                models[name] = measured(api, load(folder), Path(place) / "m.gguf")
            except ConfigError as error:
                print(f"| {name} | refused: {error} |")
                continue
            cells = [f"{nats['mean']:.1e} / {nats['largest']:.1e}" for nats in models[name]["nats"].values()]
            print(
                f"| {name} | " + " | ".join(cells) + f" | {'equal' if models[name]['greedy_equal'] else 'differ'} |",
                flush=True,
            )
    for what in ("mean", "largest"):
        for dtype in DTYPES:
            each = sorted(found["nats"][dtype][what] for found in models.values())
            print(f"{dtype} {what}: median {statistics.median(each):.1e}, worst {each[-1]:.1e}, of {len(each)} models")
    if given.out:
        library = {"llama_cpp": llama_cpp.__version__}
        whole = {"tokens": TOKENS, "models": models, "machine": machine("cpu"), "session": began, "versions": library}
        write_text(given.out, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
