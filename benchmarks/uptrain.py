"""From RoPE to hybrid in small: loss before conversion, after it, after healing, and from scratch for the same steps.

python benchmarks/uptrain.py --text TEXT --held-out TEXT --out FOLDER

Trains models of 0.2 million parameters on one thread, writes FOLDER/uptrain.json and prints its table; run again, it goes on.
Rates of healing are tried at the first seed, and the best on the data's own held-out split is taken for all; the rate of
pretraining is `cpu-train`'s, for RoPE and hybrid alike. Losses are those of `rnope eval perplexity`, of text that no
training saw.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rnope.bench.limits import set_threads
from rnope.bench.machine import machine, session
from rnope.cli import run
from rnope.files import write_text

RECIPE = """
kind = "training"
name = "scratch"
summary = "RoPE and the hybrid from scratch"
size = "cpu"
vocab_size = 512
[model]
window = {window}
[schedules.pretrain]
peak = {peak}
end = 1e-3
warmup_steps = 30
[sources]
web = ""
[stages.pretrain]
steps = 1
batch_tokens = 2048
context_tokens = 256
schedule = "pretrain"
mixture = [{{ source = "web" }}]
precision = "fp32"
[arms.rope]
variant = "rope"
stages = ["pretrain"]
[arms.rnope-swa]
variant = "rnope-swa"
stages = ["pretrain"]
[execution]
micro_batch_tokens = 2048
save_steps = 100000
log_steps = 50
validation_rows = 256
"""
PEAK, WINDOW = 2e-2, 64
HEALING = (PEAK / 10, PEAK / 5, PEAK / 3)
COLUMNS = {
    "256 tokens": (256, 0, 256),
    "positions 32–64": (1024, 32, 64),
    "128–256": (1024, 128, 256),
    "512–1,024": (1024, 512, 1024),
}
"""Length of windows of text, and the positions that count: all that was trained, inside an attention window, beyond it, and
beyond the trained length."""


def rnope(*words: object) -> None:
    """A command; its mistakes end this one."""
    if run([str(word) for word in words]):
        raise SystemExit(1)


def trained(given: argparse.Namespace, arm: str, steps: int, seed: str) -> Path:
    """A model from scratch."""
    place = given.out / ("n" if steps == given.steps else "nm") / str(seed)
    rnope("train", given.out / "scratch.toml", "--arm", arm, "--data", f"web={given.out / 'web'}", "--out", place,
          "--device", "cpu", "--set", f"seed={seed}", "--set", f"stages.pretrain.steps={steps}")  # fmt: skip
    return place / arm / "pretrain" / "model"


def healed(given: argparse.Namespace, start: Path, seed: str, rate: float) -> Path:
    """`start` after the shipped recipe, made small."""
    place = given.out / "healed" / f"{seed}-{rate:.2g}"
    changes = (
        f"seed={seed}", f"schedules.heal.peak={rate}", f"schedules.heal.warmup_steps={given.heal // 10}",
        f"stages.heal.steps={given.heal}", "stages.heal.batch_tokens=2048", "stages.heal.context_tokens=256",
        "stages.heal.precision=fp32", "execution.micro_batch_tokens=2048", "execution.checkpoint_activations=false",
        "execution.validation_rows=256", "execution.log_steps=10",
    )  # fmt: skip
    rnope("train", "uptrain", "--start", start, "--data", f"web={given.out / 'web'}", "--out", place, "--device", "cpu",
          *(word for change in changes for word in ("--set", change)))  # fmt: skip
    return place / "healed" / "heal" / "model"


def validation(model: Path) -> float:
    """Loss on the data's held-out split at the end of the stage that made `model`."""
    lines = [json.loads(line) for line in (model.parent / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(next(line for line in reversed(lines) if "validation" in line)["validation"]["web"]["loss"])


def measured(given: argparse.Namespace, models: dict[str, Path]) -> dict[str, dict[str, list[float]]]:
    """Name -> what of `COLUMNS` -> nats per token of each window of text."""
    words = [word for name, model in models.items() for word in ("--model", model, "--name", name)]
    lengths = sorted({length for length, *_ in COLUMNS.values()})
    rnope("eval", "perplexity", *words, "--corpus", given.held_out, "--lengths", ",".join(map(str, lengths)),
          "--samples", given.samples, "--batch", 8, "--threads", 1, "--out", given.out / "eval")  # fmt: skip
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for name in models:
        for column, (length, first, last) in COLUMNS.items():
            path = given.out / "eval" / name / "perplexity" / "predictions" / f"window-{length}.jsonl"
            answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
            answers.sort(key=lambda answer: answer["index"])
            parts = [[b for b in a["facts"]["buckets"] if first <= b["from"] and b["to"] <= last] for a in answers]
            found[name][column] = [sum(b["nats"] for b in part) / sum(b["tokens"] for b in part) for part in parts]
    return found


def table(losses: dict[str, dict[str, dict[str, list[float]]]], kinds: list[str]) -> str:
    """Means, and differences from the hybrid from scratch: paired by window, seeds averaged, with 95 % intervals."""
    base = {column: means(losses, kinds[-1], column) for column in COLUMNS}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for kind in kinds:
        cells = []
        for column in COLUMNS:
            mine = means(losses, kind, column)
            cells.append(f"{statistics.mean(mine):.3f}")
            if kind != kinds[-1]:
                gaps = [x - y for x, y in zip(mine, base[column], strict=True)]
                half = 1.96 * statistics.stdev(gaps) / len(gaps) ** 0.5
                cells[-1] += f" ({statistics.mean(gaps):+.3f} ± {half:.3f})"
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def means(losses: dict[str, dict[str, dict[str, list[float]]]], kind: str, column: str) -> list[float]:
    """Of each window, over seeds."""
    return [statistics.mean(each) for each in zip(*(by_kind[kind][column] for by_kind in losses.values()), strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="to measure on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600, help="of RoPE before conversion, 2,048 tokens each")
    parser.add_argument("--heal", type=int, default=60)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samples", type=int, default=128, help="windows of text of each length")
    given = parser.parse_args()
    set_threads(1)
    seeds, whole = given.seeds.split(","), given.steps + given.heal
    began = session(f"python benchmarks/uptrain.py --text {given.text.name} --held-out {given.held_out.name} --out FOLDER "
                    f"--steps {given.steps} --heal {given.heal} --seeds {given.seeds} --samples {given.samples}")  # fmt: skip
    write_text(given.out / "scratch.toml", RECIPE.format(window=WINDOW, peak=PEAK))
    rnope("data", "build", given.text, "--vocab-size", 512, "--workers", 1, "--out", given.out / "web")
    models: dict[str, dict[str, Path]] = {}
    tried: dict[float, float] = {}
    for seed in seeds:
        rope, hybrid = trained(given, "rope", given.steps, seed), given.out / "hybrid" / seed
        rnope("convert", rope, "--to", "rnope-swa", "--window", WINDOW, "--out", hybrid)
        if not tried:
            tried = {rate: validation(healed(given, hybrid, seed, rate)) for rate in HEALING}
        models[seed] = {
            "RoPE, before": rope,
            "converted": hybrid,
            "healed": healed(given, hybrid, seed, min(tried, key=tried.__getitem__)),
            "RoPE, as many steps": trained(given, "rope", whole, seed),
            "hybrid from scratch": trained(given, "rnope-swa", whole, seed),
        }
    flat = {f"{seed}-{i}": model for seed in seeds for i, model in enumerate(models[seed].values())}
    found = measured(given, flat)
    kinds = list(models[seeds[0]])
    losses = {seed: {kind: found[f"{seed}-{i}"] for i, kind in enumerate(kinds)} for seed in seeds}
    results: dict[str, Any] = {
        "steps": given.steps, "heal": given.heal, "window": WINDOW, "peak": PEAK, "samples": given.samples,
        "healing_rates": [{"peak": rate, "validation": loss} for rate, loss in tried.items()],
        "nats": {s: {k: {c: statistics.mean(v) for c, v in cs.items()} for k, cs in ks.items()} for s, ks in losses.items()},
        "machine": machine("cpu"), "session": began,
    }  # fmt: skip
    write_text(given.out / "uptrain.json", json.dumps(results, indent=1) + "\n")
    print(table(losses, kinds))


if __name__ == "__main__":
    main()
