"""A stage that converts: its rules, its jobs, and a recipe with one from training to results, in shards and merged."""

import io
import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import rnope
from rnope import recipes
from rnope.compare import pool
from rnope.compare.chain import chain_variant
from rnope.compare.plan import arm_jobs, sweep_key
from rnope.compare.preview import preview
from rnope.compare.run import compare
from rnope.errors import ConfigError
from rnope.report.gate import Gate
from rnope.report.tables import stages
from rnope.results import Results
from rnope.strict import to_plain

sys.path.insert(0, str(Path(__file__).parent))
from at_once import Here

UPTRAIN = """
name = "uptrain"
summary = "models that learn nothing, one of them converted"
size = "cpu"
vocab_size = 1024
seeds = [0]
baseline = "rope"
needles = { depths = 2, contexts = 2, context_tokens = [64], far_arms = ["healed"] }
model = { width = 16, head_size = 8, ffn_width = 16 }

[stages.pretrain]
context_tokens = 64
steps = 4
batch_tokens = 64

[stages.convert]
variant = "rnope-swa"
window = 8
context_tokens = 64
steps = 0
batch_tokens = 64

[stages.heal]
context_tokens = 64
steps = 2
batch_tokens = 64
reset_optimizer = true

[arms.rope]
variant = "rope"
summary = "before"
stages = ["pretrain"]

[arms.converted]
variant = "rope"
summary = "after"
stages = ["pretrain", "convert"]

[arms.healed]
variant = "rope"
summary = "healed"
stages = ["pretrain", "convert", "heal"]

[arms.rope-longer]
variant = "rope"
summary = "control"
stages = ["pretrain", "heal"]
"""
HYBRID = ("rope θ 10,000, window 8",) * 3 + ("nope, full",)


def made(**change):
    """The recipe; `change` holds keys of its stage ``convert``, None to leave one out."""
    plain = tomllib.loads(UPTRAIN)
    stage = plain["stages"]["convert"] | change
    plain["stages"]["convert"] = {key: value for key, value in stage.items() if value is not None}
    return recipes.resolve(plain)


@pytest.fixture
def run(place, monkeypatch):
    """Runs the recipe into a folder, its jobs in this process."""

    monkeypatch.setattr(pool, "ProcessPoolExecutor", Here)
    monkeypatch.setattr("rnope.compare.run.write_report", lambda results, out: [])

    def go(out, **options):
        return compare(
            made(), corpus=str(place.corpus), out=out, workers=1, console=Console(file=io.StringIO()),
            command="the tests", **options,
        )  # fmt: skip

    return go


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"variant": "rnope-swaa"},
            r"stages.convert.variant = 'rnope-swaa': no such variant. Did you mean 'rnope-swa'",
        ),
        ({"window": None}, r"stages.convert.window = None: variant 'rnope-swa' has windowed layers. Give a number"),
        ({"variant": "rnope"}, r"stages.convert.window = 8: variant 'rnope' has no window. Leave it out"),
        (
            {"variant": "rnope-swa-1to7"},
            r"stages.convert.num_layers = 4: variant 'rnope-swa-1to7' repeats a group of 8",
        ),
        ({"variant": "qk-norm", "window": None}, r"stages.convert.variant = 'qk-norm': has QK-Norm in layer 0"),
        (
            {"variant": None, "window": None},
            r"stages.convert.steps = 0: must be at least 1, or 0 in a stage with a variant",
        ),
        ({"warmup_steps": 1}, r"stages.convert.decay_steps = 0: warm-up and decay exceed"),
    ],
)
def test_what_cannot_be_converted_is_named_by_stage_when_the_recipe_is_read(change, words):
    with pytest.raises(ConfigError, match=words):
        made(**change)


def test_a_second_conversion_starts_from_the_first():
    plain = tomllib.loads(UPTRAIN)
    plain["stages"]["back"] = plain["stages"]["convert"] | {"variant": "swa-rope"}
    plain["arms"]["converted"]["stages"].append("back")
    with pytest.raises(ConfigError, match=r"stages.back.variant = 'swa-rope': has RoPE in layer 3, which is NoPE here"):
        recipes.resolve(plain)


def test_jobs_are_shared_and_named_by_what_the_model_has_become():
    recipe = made()
    settings = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    jobs = {one.arm.name: [job.id for job in one.training] for one in arm_jobs(recipe, settings, "d")}
    assert jobs["healed"][:2] == jobs["converted"] and jobs["converted"][:1] == jobs["rope"]
    assert [job.partition("-seed")[0] for job in jobs["healed"]] == [
        "pretrain-rope", "convert-rnope-swa", "heal-rnope-swa",
    ]  # fmt: skip
    assert jobs["rope-longer"][1].startswith("heal-rope-seed0")
    other = {one.arm.name: [job.id for job in one.training] for one in arm_jobs(made(window=9), settings, "d")}
    assert other["rope"] == jobs["rope"] and other["converted"][1] != jobs["converted"][1]
    assert chain_variant("rope", recipe.arms[2].stages) == "rnope-swa"


def test_the_plan_prints_the_layers_before_and_after():
    (text,) = (part for part in preview(made()).split("\n\n") if "healed (" in part)
    said = text[text.index("healed (") : text.index("rope-longer (")]
    where = [
        said.index(words) for words in ("rope θ 10,000, full", "convert to rnope-swa: 0 steps", "window 8", "heal:")
    ]
    assert where == sorted(where) and said.index("nope, full") > where[1]


def test_a_converted_model_is_trained_asked_and_merged_as_any_other(run, tmp_path):
    results = run(tmp_path / "whole")
    models = {model.arm: model for model in results.models}
    assert {arm: model.variant for arm, model in models.items()} == {
        "rope": "rope", "converted": "rnope-swa", "healed": "rnope-swa", "rope-longer": "rope",
    }  # fmt: skip
    assert models["converted"].layers == models["healed"].layers == HYBRID
    assert models["converted"].cache_bytes == models["healed"].cache_bytes != models["rope"].cache_bytes
    mine, theirs = (models[arm].cache_bytes["64"] for arm in ("healed", "rope"))
    assert any(f"{mine:,} against {theirs:,} bytes" in v.because for v in results.verdicts) and mine < theirs
    assert [(s.name, s.steps, s.tokens) for s in models["healed"].stages] == [
        ("pretrain", 4, 256), ("convert", 0, 0), ("heal", 2, 128),
    ]  # fmt: skip
    before, after, healed = (stage.validation["all"] for stage in models["healed"].stages)
    assert len({before, after, healed}) == 3, "the same weights in other layers have another loss"
    assert [(p.stage, p.step, p.tokens) for p in results.learning if p.arm == "healed"][-1] == ("heal", 2, 384)
    weights = {arm: load_file(tmp_path / "whole" / model.folder / "model.safetensors") for arm, model in models.items()}
    same = [torch.equal(weights["rope"][name], weights["converted"][name]) for name in weights["rope"]]
    assert all(same) and not torch.equal(*(next(iter(weights[arm].values())) for arm in ("converted", "healed")))
    assert tuple(map(str, rnope.load(tmp_path / "whole" / models["converted"].folder).config.layers)) == HYBRID
    scores = {arm: [r.context_hits for r in results.needles if r.arm == arm] for arm in models}
    assert all(len(hits) == len(scores["rope"]) > 0 for hits in scores.values())

    lines = (tmp_path / "whole" / "run.jsonl").read_text()
    assert but_for_time(run(tmp_path / "whole")) == but_for_time(results), "again: nothing is computed"
    assert (tmp_path / "whole" / "run.jsonl").read_text() == lines

    assert run(tmp_path / "part", shards=["converted"]) is None
    merged = run(tmp_path / "other", merge=[tmp_path / "part"])
    assert but_for_time(merged) == but_for_time(results)
    ids = [json.loads(line)["job"] for line in (tmp_path / "other" / "run.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == len(lines.splitlines())

    rows = stages(Gate(results)).rows
    row = next(row for row in rows if row[0].text == "converted" and row[1].text == "convert")
    assert [cell.text for cell in row[4:6]] == ["0", "0"] and row[7].text == row[8].text == "", "no step has no loss"


def but_for_time(value):
    if isinstance(value, Results):
        return but_for_time(to_plain(value))
    if isinstance(value, dict):
        return {k: but_for_time(v) for k, v in value.items() if not k.endswith("seconds") and k != "provenance"}
    return [but_for_time(v) for v in value] if isinstance(value, list) else value
