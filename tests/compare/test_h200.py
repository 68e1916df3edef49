"""Recipe h200 as it ships: what it costs by its own estimate; and all of it at toy size, in bf16, on the CPU."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from rnope import recipes
from rnope.compare.plan import arm_jobs, sweep_key
from rnope.compare.preview import preview
from rnope.compare.run import compare
from rnope.compare.work import Place, perform
from rnope.config import Execution
from rnope.data.prepare import prepare
from rnope.errors import ConfigError
from rnope.hf.configs import read_config
from rnope.model.accounting import activation_bytes, loss_bytes, parameters, state_bytes
from rnope.recipes import load

STAGES = {"pretrain": 64, "extend-16k": 128, "extend-32k": 256}
TOY = [
    "execution.device=cpu", "execution.save_seconds=0", "vocab_size=1024", "model.window=32", "model.width=32",
    "model.heads=2", "model.head_size=16", "model.kv_heads=1", "model.ffn_width=48", "model.logit_scale=0.18",
    "stages.pretrain.curriculum=[32]", "stages.pretrain.warmup_steps=1",
    "stages.extend-16k.short_context_tokens=64", "stages.extend-32k.short_context_tokens=64",
    *(f"stages.{name}.{key}={value}" for name, tokens in STAGES.items()
      for key, value in {"context_tokens": tokens, "batch_tokens": 256, "steps": 4, "decay_steps": 2}.items()),
    "needles.depths=4", "needles.contexts=2", "needles.context_tokens=[64, 256]", "needles.control_tokens=[]",
    "attention_tokens=[64, 256]", "attention_samples=2", "tasks.context_tokens=[256]", "tasks.answers=4",
    "tasks.far_tokens=[512]", "tasks.far_answers=2", "losses.context_tokens=[64, 256]", "losses.windows=2",
]  # fmt: skip
"""h200 at a size that a CPU trains in seconds: every stage has four steps, every fourth of the later ones of long rows."""


def jobs_of(recipe, data=""):
    settings = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    return arm_jobs(recipe, settings, data)


def test_it_is_what_the_comparison_on_one_gpu_should_be():
    recipe = load("h200")
    assert {arm.variant for arm in recipe.arms} == {"rope", "rnope-swa", "swa-rope"}
    for arm in recipe.arms:
        assert 50e6 < parameters(recipe.model_config(arm)) < 100e6
        assert [stage.context_tokens for stage in arm.stages] == [4096, 16384, 32768]
        thetas = [stage.theta for stage in arm.stages]
        assert thetas == [None, 1e6, 3e6] if arm.name == "rope" else not any(thetas)
    assert max(recipe.needles.context_tokens) == 262_144 == 8 * recipe.arms[0].trained_tokens
    lengths = {job.work.context_tokens for arm in jobs_of(recipe) for job in arm.questions}
    assert max(lengths) == 262_144, "no pair asks for more"
    tokens = {sum(stage.steps * stage.batch_tokens for stage in arm.stages) for arm in recipe.arms}
    assert recipe.scale["training tokens"]["here"] == f"{round(tokens.pop() / 1e6)} million" and not tokens


def test_by_its_own_estimate_it_takes_three_parts_and_leaves_none_half_done():
    jobs = [job for arm in jobs_of(load("h200")) for job in (*arm.training, *arm.questions)]
    assert 10 * 60 < sum(job.cost for job in jobs) < 20 * 60, "of 25 minutes, with room for data and starts"
    assert max(job.cost for job in jobs if job.needs) < 60, "what cannot be stopped half way"
    assert "of one GPU" in preview(load("h200"))


def test_a_step_fits_into_the_memory_of_the_gpu_without_computing_anything_twice():
    recipe = load("h200")
    for arm in recipe.arms:
        config = recipe.model_config(arm)
        for stage in arm.stages:
            tokens = stage.batch_tokens // stage.accumulate
            rows = tokens // stage.context_tokens
            held = activation_bytes(config, rows, stage.context_tokens, value_bytes=2, checkpoint=False)
            held += sum(state_bytes(config, 1, value_bytes=2, checkpoint=False).values())
            held += 2 * loss_bytes(config, tokens, value_bytes=2)
            assert held < 60e9, "of 150"


def test_where_a_model_is_trained_is_part_of_what_it_is():
    recipe = load("cpu-demo")
    ids = {}
    for name, execution in {
        "cpu": Execution(), "saved": Execution(save_seconds=9.0), "bf16": Execution(precision="bf16"),
        "cuda": Execution(device="cuda", precision="bf16"),
    }.items():  # fmt: skip
        found = jobs_of(replace(recipe, execution=execution))
        ids[name] = [job.id for arm in found for job in (*arm.training, *arm.questions)]
    assert ids["cpu"] == ids["saved"]
    assert not {*ids["cpu"]} & {*ids["bf16"]} and not {*ids["bf16"]} & {*ids["cuda"]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_before_it_reads_a_corpus(tmp_path):
    with pytest.raises(ConfigError, match=r"execution\.device.*no GPU.*--set execution\.device=cpu"):
        compare(load("h200"), corpus="nowhere", out=tmp_path / "out", workers=2, console=Console(file=io.StringIO()),
                command="")  # fmt: skip
    assert not (tmp_path / "out").exists()


def trained(arm, place, stop):
    """Run the arm's stages, as often as it takes; how many calls it took."""
    calls = 0
    for job in arm.training:
        while (result := perform(job, place, lambda units: None, stop)) is None:
            calls += 1
        assert result["run"]["steps"] == 4
        calls += 1
    return calls


@pytest.mark.parametrize("name", ["rope", "rnope-swa"])
def test_stopped_and_run_again_it_ends_with_the_same_weights(place, tmp_path, name):
    recipe = recipes.load("h200", TOY)
    assert recipe.execution == Execution(precision="bf16")
    data = prepare(str(place.corpus), vocab_size=1024, folder=place.root / "h200-data", least_tokens=256)
    (arm,) = (each for each in jobs_of(recipe, data.digest) if each.arm.name == name)
    whole, parts = (Place(out=tmp_path / which, data=data, execution=recipe.execution) for which in ("whole", "parts"))
    assert trained(arm, whole, lambda: False) == 3
    asked = iter([False, True] * 100)
    assert trained(arm, parts, lambda: next(asked)) == 3 * 2, "every second step is the last of a part"
    for job in arm.training:
        a, b = (load_file(where.stage(job.id) / "model" / "model.safetensors") for where in (whole, parts))
        assert {weight.dtype for weight in a.values()} == {torch.float32}
        assert all(torch.equal(a[key], b[key]) for key in a)
    one, last = (load_file(whole.stage(arm.training[i].id) / "model" / "model.safetensors") for i in (0, -1))
    assert not torch.equal(one["model.embed_tokens.weight"], last["model.embed_tokens.weight"])
    config = read_config(whole.stage(arm.training[-1].id) / "model")
    assert config.thetas == ((3e6,) if name == "rope" else (1e4,))


@pytest.mark.slow
def test_all_of_it_at_toy_size(place, tmp_path):
    results = compare(
        recipes.load("h200", TOY), corpus=str(place.corpus), out=tmp_path, workers=1,
        console=Console(file=io.StringIO()), command="the tests",
    )  # fmt: skip
    assert {model.arm for model in results.models} == {"rope", "rnope-swa", "swa-rope"}
    lengths = {row.context_tokens for row in results.needles if row.row == "standard"}
    assert lengths == {64, 256, 512, 2048}, "pairs are judged at 2× and 8×"
    assert {d.multiple for d in results.differences} >= {2, 8}
    assert {row.context_tokens for row in results.attention} == {64, 256}
    assert {(row.task, row.context_tokens) for row in results.tasks} >= {("niah_single_2", 256), ("niah_single_2", 512)}
    assert {row.context_tokens for row in results.losses} == {64, 256}
    assert (tmp_path / "report.html").exists()
