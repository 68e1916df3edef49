"""The plan: its numbers against what they are made of, counted another way."""

import math

import pytest

from rnope import recipes
from rnope.data.rows import StageRows
from rnope.data.shards import Shards
from rnope.errors import ConfigError, UserError
from rnope.model.accounting import activation_bytes, training_flops
from rnope.train.plan import plan


@pytest.fixture(scope="module")
def main():
    recipe = recipes.load_training("paper-main")
    return {arm.name: plan(recipe, arm, ranks=256) for arm in recipe.arms}


def test_tokens_and_steps_of_the_main_run(main):
    stages = main["rnope-swa"].stages
    assert [stage.steps for stage in stages] == [596_046, 35_000, 10_000, 5_000, None]
    assert sum(stage.tokens or 0 for stage in stages) == (596_046 + 50_000) * 2**23
    assert [[(row.row_tokens, row.steps, row.rows) for row in stage.rows] for stage in stages[2:]] == [
        [(8192, 7500, 1024), (32_768, 2500, 256)],
        [(8192, 3750, 1024), (131_072, 1250, 64)],
        [(8192, None, 512), (131_072, None, 32)],
    ]
    assert [row.share for row in stages[4].rows] == [0.75, 0.25]
    assert stages[4].tokens is stages[4].flops is stages[4].gpu_days is None and stages[4].step_seconds > 0


def test_micro_batches_make_up_a_step(main):
    for made in main.values():
        for stage in made.stages:
            for row in stage.rows:
                assert 32 * row.rows_at_once * row.micro_batches * row.row_tokens == stage.batch_tokens
                assert row.rows_at_once * row.row_tokens == 131_072


@pytest.mark.parametrize("arm", ["rope", "rnope-swa"])
def test_flops_are_those_of_every_step(arm, main):
    recipe = recipes.load_training("paper-main")
    stages, configs = recipe.arm(arm).stages, recipe.stage_configs(recipe.arm(arm))
    for stage, config, made in zip(stages[:4], configs, main[arm].stages, strict=False):
        lengths = [stage.row_tokens(step) for step in range(400)]
        mean = sum(training_flops(config, n) * (stage.batch_tokens // n) for n in lengths) / 400
        assert sum(made.flops.values()) == pytest.approx(mean * stage.steps, rel=1e-12)


def test_days_follow_from_the_peaks(main):
    """fp8 for the matrices of layers, bf16 for all else; 40 % of either is reached."""
    pretrain, cooldown = main["rope"].stages[:2]
    layers, rest = pretrain.flops["layers"], pretrain.flops["attention"] + pretrain.flops["head"]
    assert math.isclose(pretrain.gpu_days, (layers / 1979e12 + rest / 989e12) / 0.4 / 86_400)
    assert math.isclose(cooldown.gpu_days, sum(cooldown.flops.values()) / 989e12 / 0.4 / 86_400)
    recipe = recipes.load_training("paper-main", ["stages.pretrain.precision=bf16"])
    slower = plan(recipe, recipe.arms[0], ranks=256, gpu="A100", utilisation=0.8).stages[0]
    assert math.isclose(slower.gpu_days, (layers + rest) / 312e12 / 0.8 / 86_400)


def test_the_hybrid_is_cheaper_the_longer_the_rows(main):
    rope, hybrid = (main[name].stages for name in ("rope", "rnope-swa"))
    gains = [sum(a.rows[-1].flops.values()) / sum(b.rows[-1].flops.values()) for a, b in zip(rope, hybrid, strict=True)]
    assert 1 < gains[0] == gains[1] < gains[2] < gains[3] == gains[4] and 1.9 < gains[3] < 2.2  # the paper: nearly 2 ×


def test_rates_and_joints_of_the_main_run(main):
    rates = [stage.rates for stage in main["rope"].stages]
    assert rates[0].first == 5e-3 / 8000 and rates[0].peak == (8000, 5e-3)
    assert [r.end for r in rates[:3]] == [r.first for r in rates[1:4]] and rates[0].end == 2.5e-4
    assert rates[3].end == 1e-6 and rates[3].last == pytest.approx(1e-6 + 249e-6 / 50_000)
    assert rates[1].peak is None
    assert (rates[4].first, rates[4].last, rates[4].end) == (2.5e-5 / 20, None, None)


def test_layers_are_shown_where_they_change(main):
    assert [stage.layers_change for stage in main["rope"].stages] == [True, False, True, True, False]
    assert [stage.layers_change for stage in main["rnope-swa"].stages] == [True, False, False, False, False]
    assert "θ 8,000,000" in main["rope"].stages[4].layer_table


def test_bytes_of_each_gpu(main):
    recipe = recipes.load_training("paper-main")
    made, config = main["rnope-swa"], recipe.model_config(recipe.arm("rnope-swa"))
    for stage in made.stages:
        assert stage.state_bytes["weights"] == 4 * -(-made.parameters // 256)
        for row in stage.rows:
            given = {"value_bytes": 2, "ranks": 8}
            kept, checkpoint = (
                activation_bytes(config, row.rows_at_once, row.row_tokens, checkpoint=c, **given) for c in (False, True)
            )
            assert (row.kept_bytes, row.checkpoint_bytes) == (kept, checkpoint) and checkpoint < kept / 10
    precise = recipes.load_training("cpu-train")
    stage = plan(precise, precise.arms[0], ranks=1).stages[0]
    assert stage.state_bytes["working"] == 0
    config = precise.model_config(precise.arms[0])
    assert stage.rows[0].kept_bytes == activation_bytes(config, 8, 256, value_bytes=4, checkpoint=False)


def test_arms_share_a_pretraining():
    recipe = recipes.load_training("paper-ablation")
    made = {arm.name: plan(recipe, arm, ranks=64).stages for arm in recipe.arms}
    family = ("rnope-10k", "rnope-100k", "rnope-2m", "rnope-4m", "rnope-10k-swa")
    for name, stages in made.items():
        assert stages[0].arms == (family if name in family else (name,)) and stages[1].arms == (name,)
    assert len({made[name][0].key for name in family}) == 1 and len({stages[1].key for stages in made.values()}) == 8


def test_data_at_hand_is_in_the_key(recipe, data):
    made = recipe()
    told, untold = (plan(made, made.arms[0], ranks=1, data=given) for given in ({"text": str(data)}, None))
    assert [stage.steps for stage in told.stages] == [stage.steps for stage in untold.stages]
    assert not {stage.key for stage in told.stages} & {stage.key for stage in untold.stages}


def test_a_stage_of_epochs(data, tmp_path):
    path = tmp_path / "epochs.toml"
    path.write_text(
        'kind = "training"\nname = "e"\nsummary = ""\nsize = "tiny"\nvocab_size = 300\nschedules.a.peak = 1e-2\n'
        "[schedules.b]\npeak = 1e-3\nwarmup_steps = 2\n"
        '[sources]\ntext = ""\n[stages.one]\nsteps = 3\nbatch_tokens = 64\ncontext_tokens = 32\nschedule = "a"\n'
        'mixture = [{ source = "text" }]\n[stages.two]\nepochs = 2.5\nbatch_tokens = 64\ncontext_tokens = 32\n'
        'schedule = "b"\nmixture = [{ source = "text" }]\n[arms.x]\nvariant = "rope"\nstages = ["one", "two"]\n'
    )
    recipe = recipes.load_training(str(path))
    (arm,) = recipe.arms
    steps = StageRows(arm.stages[1], {"text": Shards.open(data)}, seed=0).steps
    here, away = plan(recipe, arm, ranks=1, data={"text": str(data)}), plan(recipe, arm, ranks=1)
    assert [s.steps for s in here.stages] == [3, steps] and [s.steps for s in away.stages] == [3, None]
    assert here.stages[1].rates.end == 0 and away.stages[1].rates.first == here.stages[1].rates.first == 5e-4
    assert here.stages[1].tokens == 64 * steps and here.stages[1].rates.peak == (2, 1e-3)
    longer = recipes.load_training(str(path), [f"schedules.b.warmup_steps={steps + 1}"])
    plan(longer, longer.arms[0], ranks=1)
    with pytest.raises(ConfigError, match=f"schedules.b.warmup_steps = {steps + 1}: the stages of arm 'x'"):
        plan(longer, longer.arms[0], ranks=1, data={"text": str(data)})


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ([], {"ranks": 255}, "execution.sequence_parallel = 8: must divide the 255 ranks"),
        (
            [],
            {"ranks": 512},
            "stages.sft.batch_tokens = 4194304: each of 64 groups of ranks takes as many rows of 131,072",
        ),
        (["execution.sequence_parallel=64"], {"ranks": 256}, "32 query heads and 8 key-value heads"),
        ([], {"ranks": 256, "gpu": "H10"}, "--gpu = 'H10': no such GPU in the table. Did you mean 'H100'?"),
        (
            [],
            {"ranks": 256, "gpu": "A100"},
            "stages.pretrain.precision = 'fp8': A100 has no such one. Use one of fp32, bf16",
        ),
        (
            [],
            {"ranks": 256, "data": {"txt": "x"}},
            "--data = 'txt': no such source of the recipe. Did you mean 'text'?",
        ),
        ([], {"ranks": 256, "data": {"text": "/nowhere"}}, "/nowhere"),
    ],
)
def test_what_cannot_be_planned(change, options, words):
    recipe = recipes.load_training("paper-main", change)
    with pytest.raises(UserError) as caught:
        plan(recipe, recipe.arms[0], **options)
    assert words in str(caught.value)
