"""Training recipes: the two of the paper, number by number and mark by mark, and how files of this kind are loaded."""

import math
import re
import tomllib
from importlib.resources import files

import pytest

from rnope import recipes
from rnope.config.execution import Execution
from rnope.config.training import AdamW, Schedule
from rnope.errors import ConfigError, UserError
from rnope.model.accounting import parameters
from rnope.model.spec import SIZES, ModelConfig
from rnope.strict import from_plain, to_plain

PAPER = ("paper-ablation", "paper-main")
SMALL = """
kind = "training"
name = "small"
summary = "a recipe"
size = { value = "tiny", assumed = "small" }
[optimizer]
weight_decay = { value = 0.1, assumed = "usual" }
[schedules.all]
peak = { value = 1e-2, paper = "2.1" }
[sources]
text = ""
[stages.pretrain]
steps = { value = 10, paper = "2.1" }
batch_tokens = 256
context_tokens = 64
schedule = "all"
mixture = { value = [{ source = "text" }], assumed = "there is one" }
[stages.sft]
steps = 5
batch_tokens = 256
context_tokens = 128
short_context_tokens = 64
schedule = "all"
mixture = [{ source = "text", weight = { value = 2.0, assumed = "heavy" } }]
theta = { value = 1e6, paper = "4" }
[arms.rope]
variant = { value = "rope", paper = "2.1" }
stages = ["pretrain", "sft"]
[arms.hybrid]
variant = "rnope-swa"
stages = ["pretrain", "sft"]
model.window = { value = 6, paper = "3" }
stage.sft.theta = 7e5
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def message(*call):
    with pytest.raises(UserError) as caught:
        call[0](*call[1:])
    return str(caught.value)


# --- the paper's -------------------------------------------------------------------------------------------------------


def stage_of(name, arm, stage):
    recipe = recipes.load_training(name)
    return next(s for s in recipe.arm(arm).stages if s.name == stage)


def test_t1_the_ablations_pretraining():
    recipe, stage = recipes.load_training("paper-ablation"), stage_of("paper-ablation", "rope", "pretrain")
    assert stage.batch_tokens == 4_194_304 and stage.steps == 179_000 and stage.context_tokens == 8192
    assert round(stage.steps * stage.batch_tokens / 1e9) == 751
    assert recipe.schedules["pretrain"] == Schedule(peak=7e-3, end=3.5e-4, shape="cosine", warmup_steps=2000)
    assert stage.short_context_tokens is None and stage.precision == "bf16" and not stage.completions_only
    assert type(recipe.optimizer) is AdamW
    for arm in recipe.arms:
        config = recipe.model_config(arm)
        assert config.thetas == ((1e4,) if arm.name != "nope" else ())
        assert parameters(config) == 8_028_033_024 + 163_840 * (arm.name == "qk-norm")


def test_t2_the_main_pretraining():
    recipe, stage = recipes.load_training("paper-main"), stage_of("paper-main", "rnope-swa", "pretrain")
    assert stage.batch_tokens == 8_388_608 and stage.context_tokens == 8192 and stage.precision == "fp8"
    assert abs(stage.steps * stage.batch_tokens - 5e12) < stage.batch_tokens
    schedule = recipe.schedules["pretrain"]
    assert schedule == Schedule(peak=5e-3, end=2.5e-4, shape="cosine", warmup_steps=8000)
    assert math.isclose(schedule.end / schedule.peak, 0.05)
    rope, hybrid = (recipe.model_config(recipe.arm(name)) for name in ("rope", "rnope-swa"))
    assert rope == ModelConfig.variant("rope") and hybrid == ModelConfig.variant("rnope-swa")
    assert hybrid.layers[0].window == 4096 and parameters(hybrid) == 8_028_033_024


def test_t3_the_cool_down():
    recipe = recipes.load_training("paper-main")
    assert recipe.schedules["cooldown"] == Schedule(peak=2.5e-4, end=1e-6, shape="linear", warmup_steps=0)
    for arm in recipe.arms:
        stages = arm.stages[1:4]
        assert [stage.steps for stage in stages] == [35_000, 10_000, 5_000]
        assert [stage.context_tokens for stage in stages] == [8192, 32_768, 131_072]
        assert [stage.short_context_tokens for stage in stages] == [None, 8192, 8192]
        assert all(s.precision == "bf16" and s.batch_tokens == 8_388_608 and s.short_to_long == 3 for s in stages)
        assert {s.schedule for s in stages} == {"cooldown"} and not any(s.reset_optimizer for s in stages)
        rates = recipe.rates(arm, (596_046, 35_000, 10_000, 5_000, 100))
        # 5 % of the peak is where the cool-down starts, and nothing jumps until it ends.
        assert rates[0](596_046) == 2.5e-4 == rates[1](0)
        assert rates[1](35_000) == rates[2](0) and rates[2](10_000) == rates[3](0) and rates[3](5000) == 1e-6
        assert math.isclose(rates[2](0), 2.5e-4 - (2.5e-4 - 1e-6) * 0.7)
    rope, hybrid = (recipe.stage_configs(recipe.arm(name)) for name in ("rope", "rnope-swa"))
    assert [config.thetas for config in rope] == [(1e4,), (1e4,), (1e6,), (8e6,), (8e6,)]
    assert len(set(hybrid)) == 1


def test_t4_fine_tuning():
    stage = stage_of("paper-ablation", "rope", "sft")
    assert (stage.context_tokens, stage.short_context_tokens, stage.batch_tokens) == (65_536, 8192, 524_288)
    main = stage_of("paper-main", "rope", "sft")
    assert (main.context_tokens, main.short_context_tokens) == (131_072, 8192)
    assert (main.epochs, main.steps) == (2.0, None)
    for each in (stage, main):
        assert each.short_to_long == 3 and each.interleave_unit == "tokens" and each.completions_only
        assert [p.source for p in each.mixture] == ["retrieval", "rag", "translation", "code"]


def test_the_ablations_arms_end_as_the_variants_of_table_4_and_rnope_is_pretrained_once():
    recipe = recipes.load_training("paper-ablation")
    ends = {arm.name: recipe.stage_configs(arm)[-1] for arm in recipe.arms}
    two_million = {"rope": 2e6, "qk-norm": 2e6}
    assert set(ends) == {
        "rope", "qk-norm", "nope", "rnope-10k", "rnope-100k", "rnope-2m", "rnope-4m", "rnope-10k-swa"
    }  # fmt: skip
    for name, config in ends.items():
        assert config == ModelConfig.variant(name, theta=two_million.get(name, 1e4))
    family = [arm for arm in recipe.arms if arm.name.startswith("rnope")]
    assert len({recipe.stage_configs(arm)[0] for arm in family}) == len({arm.stages[0] for arm in family}) == 1
    assert recipe.stage_configs(family[0])[0] == ModelConfig.variant("rnope")


def leaves(value, path=""):
    """Dotted paths of a file's leaves, with their marks."""
    if isinstance(value, dict) and "value" not in value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


STRUCTURE = re.compile(
    r"kind|name|summary|sources\..+|stages\.[^.]+\.schedule|arms\.[^.]+\.(summary|stages)"
)  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_every_value_of_a_full_size_recipe_is_marked(name):
    plain = tomllib.loads(files("rnope.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    bare = [path for path, value in leaves(plain) if not isinstance(value, dict) and not STRUCTURE.fullmatch(path)]
    assert not bare
    for path, origin in recipes.load_training(name).origins.items():
        paper = re.fullmatch(r"paper: (table 1|2\.1|2\.2\.3|3|4)(: .+)?", origin)
        assert paper or re.fullmatch(r"assumed: .{5,}", origin), (path, origin)


@pytest.mark.parametrize("name", PAPER)
def test_nothing_of_a_full_size_recipe_is_left_to_a_default(name):
    recipe = recipes.load_training(name)
    wanted = {"size", "seed", "vocab_size"}
    shape = SIZES["8b"].keys() - {"init", "vocab_size", *(["window"] if name == "paper-ablation" else [])}
    wanted |= {f"model.{key}" for key in shape} | {f"model.init.{key}" for key in to_plain(SIZES["8b"]["init"])}
    wanted |= {f"optimizer.{key}" for key in to_plain(AdamW())} | {f"execution.{key}" for key in to_plain(Execution())}
    for schedule in recipe.schedules:
        wanted |= {f"schedules.{schedule}.{key}" for key in ("peak", "end", "shape", "warmup_steps")}
    for arm in recipe.arms:
        wanted.add(f"arms.{arm.name}.variant")
        for stage in arm.stages:
            keys = {key for key, value in to_plain(stage).items() if value not in (None, [])} - {"name", "schedule"}
            if stage.short_context_tokens is None:
                keys -= {"short_to_long", "interleave_unit"}
            mine = {key for key in keys if f"arms.{arm.name}.stage.{stage.name}.{key}" in recipe.origins}
            wanted |= {f"stages.{stage.name}.{key}" for key in keys - mine}
    assert wanted <= recipe.origins.keys()


@pytest.mark.parametrize(("name", "ranks"), [("paper-main", 256), ("paper-main", 128), ("paper-ablation", 64)])
def test_a_full_size_recipe_fits_the_gpus_that_it_is_made_for(name, ranks):
    recipe = recipes.load_training(name)
    for arm in recipe.arms:
        assert recipe.execution.check_ranks(ranks, arm.stages, recipe.model_config(arm)) == ranks // 8


# --- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipes.shipped("training"))
def test_each_shipped_recipe_is_whole_and_goes_there_and_back(name):
    recipe = recipes.load_training(name)
    assert recipe.name == name and recipe.summary and all(arm.summary for arm in recipe.arms)
    assert from_plain(type(recipe), to_plain(recipe)) == recipe
    assert not any(recipe.sources.values())


def test_each_kind_lists_its_own():
    assert recipes.shipped("training") == ["cpu-train", "paper-ablation", "paper-main", "uptrain"]
    assert (
        recipes.shipped()
        == recipes.shipped("comparison")
        == ["cpu-demo", "cpu-fair", "cpu-full", "cpu-uptrain", "h200"]
    )


def test_a_recipe_of_the_other_kind_names_the_command_that_takes_it(small):
    words = "is a training recipe. Use `rnope train"
    assert message(recipes.load, "paper-main") == f"recipe = 'paper-main': {words} paper-main`."
    assert f"{words} {small}`." in message(recipes.load, small)
    words = "recipe = 'cpu-demo': is a comparison recipe. Use `rnope compare cpu-demo`."
    assert message(recipes.load_training, "cpu-demo") == words
    assert "Valid: cpu-train, paper-ablation, paper-main, uptrain." in message(recipes.load_training, "paper-mian")
    assert "Did you mean 'paper-main'?" in message(recipes.load_training, "paper-mian")


def test_marks_are_taken_off_and_kept_beside(small):
    recipe = recipes.load_training(small)
    assert recipe.origins == {
        "size": "assumed: small",
        "optimizer.weight_decay": "assumed: usual",
        "schedules.all.peak": "paper: 2.1",
        "stages.pretrain.steps": "paper: 2.1",
        "stages.pretrain.mixture": "assumed: there is one",
        "stages.sft.mixture[0].weight": "assumed: heavy",
        "stages.sft.theta": "paper: 4",
        "arms.rope.variant": "paper: 2.1",
        "arms.hybrid.model.window": "paper: 3",
        "arms.hybrid.stage.sft.theta": "",
    }
    rope, hybrid = recipe.arms
    assert rope.stages[1].theta == 1e6 and hybrid.stages[1].theta == 7e5 and hybrid.stages[1].mixture[0].weight == 2.0
    assert recipe.model_config(hybrid).layers[0].window == 6 and recipe.model_config(rope).vocab_size == 97


def test_an_override_replaces_value_and_mark(small):
    recipe = recipes.load_training(small, ["schedules.all.peak=2e-2", "stages.sft.steps=6", "seed=3"])
    assert recipe.schedules["all"].peak == 2e-2 and recipe.arms[0].stages[1].steps == 6 and recipe.seed == 3
    assert [recipe.origins[key] for key in ("schedules.all.peak", "stages.sft.steps", "seed")] == ["given"] * 3
    recipe = recipes.load_training(small, ['stages.sft.mixture=[{source = "text"}]', "arms.rope.stage.sft.theta=3.0"])
    assert recipe.origins["stages.sft.mixture"] == recipe.origins["arms.rope.stage.sft.theta"] == "given"
    assert "stages.sft.mixture[0].weight" not in recipe.origins and recipe.arms[0].stages[1].theta == 3.0


def test_a_file_that_inherits_replaces_values_with_their_marks(small, tmp_path):
    child = tmp_path / "child.toml"
    child.write_text(
        'base = "small.toml"\n[schedules.all]\npeak = { value = 3e-2, assumed = "mine" }\n'
        '[stages.pretrain]\nsteps = 20\n[optimizer]\neps = { value = 1e-6, paper = "4" }\n'
    )
    recipe = recipes.load_training(str(child))
    assert recipe.schedules["all"].peak == 3e-2 and recipe.origins["schedules.all.peak"] == "assumed: mine"
    assert recipe.arms[0].stages[0].steps == 20 and "stages.pretrain.steps" not in recipe.origins
    assert recipe.origins["optimizer.weight_decay"] == "assumed: usual" and recipe.optimizer.eps == 1e-6


def test_a_shipped_recipe_is_a_base(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "paper-main"\nname = "mine"\n[arms.rope]\nstages = ["pretrain"]\n[arms.rope.stage]\n')
    with pytest.raises(UserError, match=r"arms\.rope\.stage\.cooldown-32k = .*: no such stage of this arm"):
        recipes.load_training(str(path))
    path.write_text(
        'base = "paper-main"\nname = "mine"\n[arms.swa-rope]\nvariant = "swa-rope"\nstages = ["pretrain"]\n'
    )
    assert [arm.name for arm in recipes.load_training(str(path)).arms] == ["rope", "rnope-swa", "swa-rope"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("kind=1", None),
        ("stages.pretrain.stepz=3", "stages.pretrain.stepz = 'stepz': no such key. Did you mean 'steps'?"),
        (
            "stages.pretrian.steps=3",
            "--set stages.pretrian.steps = 'pretrian': no such stage. Did you mean 'pretrain'?",
        ),
        ("stages.sft.schedule=al", "stages.sft.schedule = 'al': no such schedule. Did you mean 'all'?"),
        ('arms.rope.stage.sft.schedule="al"', "arms.rope.stage.sft.schedule = 'al': no such schedule"),
        ('stages.sft.mixture=[{source="txt"}]', "stages.sft.mixture[0].source = 'txt': no such source. Did you mean"),
        (
            'arms.rope.stage.sft.short_mixture=[{source="text"}, {source="txt"}]',
            "arms.rope.stage.sft.short_mixture[1].source = 'txt': no such source",
        ),
        ('stages.sft.mixture=[{source="text", weight=0}]', "stages.sft.mixture[0].weight = 0.0: must be positive"),
        ("stages.sft.window=9", "stages.sft.window = 9: 'rope' has no window. Leave it out."),
        ("arms.rope.stage.sft.window=9", "arms.rope.stage.sft.window = 9: 'rope' has no window"),
        ("arms.rope.variant=nope", "stages.sft.theta = 1000000.0: 'nope' has no RoPE layer. Leave it out."),
        ("arms.rope.stage.sft.batch_tokens=200", "arms.rope.stage.sft.batch_tokens = 200: must be whole rows of 64"),
        (
            "schedules.all.warmup_steps=16",
            "schedules.all.warmup_steps = 16: the stages of arm 'rope' that follow it have",
        ),
        ("schedules.all.end=0.1", "schedules.all.end = 0.1: must lie in 0"),
        ("schedules.all.shape=cosin", "schedules.all.shape = 'cosin': no such choice. Did you mean 'cosine'?"),
        ("optimizer.betas=[0.9]", "optimizer.betas = (0.9,): must be two numbers"),
        ("execution.save_steps=0", "execution.save_steps = 0: must be at least 1"),
        ("arms.hybrid.model.window=0", "arms.hybrid.model.window = 0: must be at least 1"),
        ("arms.hybrid.model.vocab_size=8", "arms.hybrid.model.vocab_size = 8: belongs to the recipe itself"),
        ("vocab_size=1", "vocab_size = 1: must lie in 2"),
        ("seed=-1", "seed = -1: must lie in 0"),
        ("arms={}", "arms = {}: a training recipe needs an arm"),
        ("seeds=[0]", "seeds = 'seeds': no such key. Did you mean 'seed'?"),
        ("origins.x=y", "origins = {'x': 'y'}: is made of the marks of values. Leave it out."),
        ("schedules.all.peak.value=3", "'peak' is no table"),
        ("stages.sft.steps={value=3}", "stages.sft.steps = {'value': 3}: must be a whole number"),
    ],
)
def test_an_override_that_does_not_serve_is_named_as_written(change, words, small):
    if words is None:  # The kind is the file's; as an override it is a key like any other, and unknown.
        words = "kind = 'kind': no such key"
    assert words in message(recipes.load_training, small, [change])


def test_a_kind_that_is_none(tmp_path):
    path = tmp_path / "a.toml"
    for kind in ('"trainin"', "3"):
        path.write_text(f"kind = {kind}\n")
        for load in (recipes.load, recipes.load_training):
            assert "no such kind of recipe" in message(load, str(path))


def test_a_bad_mark_is_named_with_its_place(small, tmp_path):
    path = tmp_path / "b.toml"
    path.write_text('base = "small.toml"\n[stages.sft]\nsteps = { value = 3, paper = "" }\n')
    assert message(recipes.load_training, str(path)).startswith(
        "stages.sft.steps = {'value': 3, 'paper': ''}: a marked"
    )


def test_a_window_for_rope_layers_that_had_none(small):
    """RNoPE-10k-swa (paper 2.2.3), and what a later stage may then say."""
    more = ['arms.rope.stages=["pretrain", "sft"]', "arms.rope.stage.pretrain.rope_window=9"]
    recipe = recipes.load_training(small, [*more, "arms.rope.stage.sft.window=11"])
    first, second = recipe.stage_configs(recipe.arms[0])
    assert {layer.window for layer in first.layers} == {9} and {layer.window for layer in second.layers} == {11}
    with pytest.raises(ConfigError, match="rope_window = 9: 'nope' has no RoPE layer"):
        recipes.load_training(small, [*more, "arms.rope.variant=nope", "stages.sft.theta=3.0"])


@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        (["stages.sft.steps=100"], 100, None),
        (["arms.rnope-swa.stage.sft.steps=70"], 70, None),
        (["stages.sft.steps=100", "stages.sft.epochs=3"], None, 3.0),
    ],
)
def test_steps_take_the_place_of_epochs(changes, steps, epochs):
    stage = recipes.load_training("paper-main", changes).arm("rnope-swa").stages[-1]
    assert (stage.steps, stage.epochs) == (steps, epochs)


def test_a_file_that_gives_both_is_still_refused(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text('base = "paper-main"\n[stages.sft]\nsteps = 5\nepochs = 2\n')
    with pytest.raises(ConfigError, match="has steps or epochs"):
        recipes.load_training(str(path))
