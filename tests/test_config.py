"""Recipes: files that inherit, overrides, the arms' own changes, and each rule with its message."""

import tomllib
from importlib.resources import files

import pytest

from rnope import recipes
from rnope.compare.preview import preview
from rnope.config import Arm, Needles, Optimizer, Setting, Stage, Sweep
from rnope.errors import ConfigError, UserError
from rnope.strict import from_plain

STAGE = {"name": "pretrain", "steps": 100, "batch_tokens": 256, "context_tokens": 64}
SMALL = """
name = "small"
summary = "a recipe"
size = "tiny"
seeds = [3]
baseline = "rope"
[model]
window = 6
theta = 500
[stages.pretrain]
steps = 10
batch_tokens = 256
context_tokens = 64
[stages.extend]
steps = 5
batch_tokens = 512
context_tokens = 128
[needles]
depths = 4
[arms.rope]
variant = "rope"
summary = "s"
stages = ["pretrain"]
[arms.hybrid]
variant = "rnope-swa"
summary = "s"
stages = ["pretrain", "extend"]
model.theta = 700.0
stage.extend.theta = 9000.0
seeds = [4, 5]
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


def message(*call, **options):
    with pytest.raises(UserError) as caught:
        call[0](*call[1:], **options)
    return str(caught.value)


@pytest.mark.parametrize("name", recipes.shipped())
def test_each_shipped_recipe_is_whole(name):
    recipe = recipes.load(name)
    assert recipe.name == name and recipe.pairs and recipe.scale
    plan = preview(recipe)
    for arm in recipe.arms:
        assert f"{arm.name} ({arm.summary})\n{recipe.model_config(arm).layer_table()}" in plan


def test_arms_are_resolved(small):
    recipe = recipes.load(small)
    rope, hybrid = recipe.arms
    assert (rope.name, rope.seeds, rope.trained_tokens) == ("rope", (3,), 64)
    assert (hybrid.seeds, hybrid.trained_tokens) == ((4, 5), 128)
    assert [s.name for s in hybrid.stages] == ["pretrain", "extend"] and hybrid.stages[1].theta == 9000.0
    assert hybrid.stages[0] == rope.stages[0] and hybrid.stages[0].theta is None
    assert recipe.model_config(rope).thetas == (500.0,) and type(recipe.model_config(rope).thetas[0]) is float
    assert recipe.model_config(hybrid).thetas == (700.0,) and recipe.model_config(hybrid).layers[0].window == 6
    assert recipe.model_config(rope).vocab_size == recipe.vocab_size == 1024


def test_a_setting_of_the_sweep_changes_the_initialisation(small):
    recipe = recipes.load(small, ["model.init.tie_query_key=true"])
    arm = recipe.arms[0]
    assert recipe.model_config(arm).init.tie_query_key
    assert not recipe.model_config(arm, Setting(tie_query_key=False)).init.tie_query_key
    assert recipe.model_config(arm, Setting(learning_rate=2.0)) == recipe.model_config(arm)


def test_a_file_inherits_and_gives_what_differs(small, tmp_path):
    child = tmp_path / "child.toml"
    child.write_text('base = "small.toml"\nseeds = [9]\n[stages.extend]\nsteps = 7\n[arms.rope]\nstages = ["extend"]\n')
    recipe = recipes.load(str(child))  # the base is sought beside the file
    assert recipe.name == "small" and recipe.seeds == (9,) and len(recipe.arms) == 2
    (stage,) = recipe.arms[0].stages
    assert (stage.steps, stage.batch_tokens) == (7, 512)  # tables merge, lists are replaced


def test_a_file_inherits_from_a_shipped_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('base = "cpu-demo"\nname = "mine"\n[stages.pretrain]\nsteps = 300\ndecay_steps = 1\n')
    recipe = recipes.load(str(path))
    assert recipe.arms[0].stages[0].steps == 300 and recipe.pairs == recipes.load("cpu-demo").pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "a.toml"', "base = 'a.toml': leads back to itself"),
        ('base = "../{folder}/a.toml"', "leads back to itself"),
        ('base = "cpu-dmo"', "base = 'cpu-dmo': no such recipe, nor a .toml file. Did you mean 'cpu-demo'?"),
        ("base = 3", "base = 3: must name a recipe. One of cpu-demo"),
        (f'base = "{"x" * 5000}.toml"', "no such recipe"),
        ("x = [", "is not TOML"),
        ("x = " + "9" * 5000, "is not TOML"),
        ("x = " + "[" * 5000, "is not TOML"),
        ("", "arms = {}: a comparison needs an arm"),
        ("arms = 3", "arms = 3: must be a table"),
        ('[stages.s]\n[arms.x]\nstages = ["s"]', "seeds = None: is missing"),
        ("[arms.x]", "arms.x.stages = None: must be a list of stage names"),
        ('seeds = [0]\n[stages.extend]\n[arms.x]\nstages = ["extnd"]', "no such stage. Did you mean 'extend'?"),
    ],
)
def test_a_file_that_is_no_recipe(text, words, tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(text.replace("{folder}", tmp_path.name), encoding="utf-8")
    assert words in message(recipes.load, str(path))


@pytest.mark.parametrize("source", ["cpu-dmo", "cpu-demo.toml", "/", "", "\x00.toml", "x" * 5000 + ".toml"])
def test_no_such_recipe(source):
    assert "no such recipe, nor a .toml file" in message(recipes.load, source)


def test_a_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes("name = 'θ'".encode("utf-16"))
    assert "cannot be read" in message(recipes.load, str(path)) and "UTF-8" in message(recipes.load, str(path))


def test_overrides(small):
    changes = ["stages.pretrain.steps=33", "seeds=[7, 8]", "summary=hello there", "arms.rope.stage.pretrain.theta=5e5"]
    recipe = recipes.load(small, [*changes, "sweep.seed=1", 'scale.a b.here="c"'])
    rope, hybrid = recipe.arms
    assert (rope.stages[0].steps, hybrid.stages[0].steps) == (33, 33)
    assert rope.stages[0].theta == 5e5 and hybrid.stages[0].theta is None
    assert recipe.seeds == rope.seeds == (7, 8) and recipe.summary == "hello there"
    assert recipe.sweep.seed == 1 and recipe.scale == {"a b": {"here": "c"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("steps", "--set = 'steps': must be dotted.key=value. Write --set stages.pretrain.steps=100."),
        ("=1", "must be dotted.key=value"),
        ("a..b=1", "must be dotted.key=value"),
        ("name.x=1", "'name' is no table"),
        ("pairs.0.a=x", "pairs = {'0': {'a': 'x'}}: must be a list"),
        (
            "stages.pretrian.steps=5",
            "--set stages.pretrian.steps = 'pretrian': no such stage. Did you mean 'pretrain'?",
        ),
        ("arms.hybird.seeds=[1]", "arms.hybird.stages = None"),
        ("sumary=x", "sumary = 'sumary': no such key. Did you mean 'summary'?"),
        ("stages.pretrain.stepz=5", "stages.pretrain.stepz = 'stepz': no such key. Did you mean 'steps'?"),
        ("stages.pretrain.steps=many", "stages.pretrain.steps = 'many': must be a whole number"),
        ("stages.pretrain.curriculum=[1.5]", "stages.pretrain.curriculum[0] = 1.5: must be a whole number"),
        ("arms.hybrid.stage.extend.steps=0", "arms.hybrid.stage.extend.steps = 0: must be at least 1"),
        (
            "arms.hybrid.stage.extnd.steps=1",
            "arms.hybrid.stage.extnd = 'extnd': no such stage of this arm. Did you mean",
        ),
        (
            "arms.hybrid.variant=rnope-swe",
            "arms.hybrid.variant = 'rnope-swe': no such variant. Did you mean 'rnope-swa'?",
        ),
        ("arms.hybrid.varaint=rope", "arms.hybrid.varaint = 'varaint': no such key. Did you mean 'variant'?"),
        ("arms.hybrid.seeds=[]", "arms.hybrid.seeds = (): must be distinct"),
        ('arms.rope.stages=["pretrain", "pretrain"]', "arms.rope.stages = ['pretrain', 'pretrain']: must be distinct"),
        (
            "needles.depths=9",
            "needles.depths = 9: arm 'rope' is asked at its longest context, 64 tokens, and that many need",
        ),
        ("size=tinny", "size = 'tinny': no such size. Did you mean 'tiny'?"),
        ("model.widht=64", "model.widht = 'widht': no such key of a model. Did you mean 'width'?"),
        ("model.name=rope", "model.name = 'name': no such key of a model"),
        ("model.vocab_size=99", "model.vocab_size = 99: belongs to the recipe itself"),
        ("model.window=0", "window = 0: must be at least 1"),
        ("model.window=2.5", "model.window = 2.5: must be a whole number"),
        ("model.window=true", "model.window = True: must be a whole number"),
        ("arms.hybrid.model.window=0", "arms.hybrid.model.window = 0: must be at least 1"),
        ("model.theta=inf", "model.theta = inf: must be a number below 1e30"),
        ("model.num_layers=6", "model.num_layers = 6: variant 'rnope-swa' repeats a group of 4"),
        ("model.num_layers=60000", "model.num_layers = 60000: a recipe has at most 1024 layers"),
        ("model.kv_heads=3", "model.kv_heads = 3: must divide the number of query heads, 4. Use one of 1, 2, 4."),
        ("model.head_size=7", "model.head_size = 7: must be even where a layer is RoPE"),
        (
            "model.init.embeding_std=1",
            "model.init.embeding_std = 'embeding_std': no such key. Did you mean 'embedding_std'?",
        ),
        ("baseline=rop", "baseline = 'rop': no such arm. Did you mean 'rope'?"),
        ('needles.far_arms=["hybird"]', "needles.far_arms[0] = 'hybird': no such arm. Did you mean 'hybrid'?"),
        ('pairs=[{a = "rope", b = "ropes", claim = "x"}]', "pairs[0].b = 'ropes': no such arm. Did you mean 'rope'?"),
        ('pairs=[{a = "rope", b = "rope", claim = "x"}]', "pairs[0].b = 'rope': an arm is not judged against itself"),
        (
            'patterns=[{claim = "x", a = {arm = "rope", of = "needle", kind = "rope+qk-norm"}}]',
            "patterns[0].a.kind = 'rope+qk-norm': ",
        ),
        ("seeds=[1, 1]", "seeds = (1, 1): must be distinct"),
        ("seeds=[-1]", "seeds = (-1,): must lie in 0"),
        ("vocab_size=100", "vocab_size = 100: must lie in 300"),
        ("attention_samples=0", "attention_samples = 0: must be at least 1"),
        ("attention_tokens=[8]", "attention_tokens = 8: a needle and its question need 20 tokens"),
        ("attention_tokens=[512, 512]", "attention_tokens = (512, 512): must be distinct"),
        ("name=../x", "name = '../x': names a file or folder"),
        ('arms."a/b".stages=[]', "must be a list of stage names"),
        ("seeds=" + "9" * 5000, "cannot be read"),
        ("seeds=" + "[" * 5000, "cannot be read"),
        ("seeds=0x" + "F" * 5000, "seeds = <int too large to show>: must be a list"),
    ],
    ids=lambda value: value[:50],
)
def test_an_override_that_does_not_serve_is_named_as_written(change, words, small):
    assert words in message(recipes.load, small, [change])


def test_a_name_may_not_leave_the_folder(small):
    for name in ("jobs", "stages", "../rope", "a/b", "", "results.json", "a\nb", ".hidden", "x" * 65):
        text = SMALL.replace("[arms.hybrid]", f"[arms.{name!r}]" if "\n" not in name else '[arms."a\\nb"]')
        with pytest.raises(ConfigError, match="names a file or folder"):
            recipes.resolve(tomllib.loads(text))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a/b"}, "name = 'a/b': names a file or folder"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"steps": 2**40}, "steps = 1099511627776"),
        ({"batch_tokens": -64}, "batch_tokens = -64"),
        (
            {"batch_tokens": 100},
            "batch_tokens = 100: each of 1 micro-batches must be whole rows of 64 tokens. Use a mul",
        ),
        ({"accumulate": 8}, "each of 8 micro-batches must be whole rows of 64 tokens. Use a multiple of 512."),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"context_tokens": 16}, "context_tokens = 16: a row of needles has at least 20 tokens"),
        ({"warmup_steps": -1}, "warmup_steps = -1: must not be negative"),
        ({"warmup_steps": 60, "decay_steps": 41}, "decay_steps = 41: warm-up and decay exceed the stage's steps"),
        ({"short_batches": -1}, "short_batches = -1"),
        ({"window": 0}, "window = 0: counts the current token: at least 1"),
        ({"window": 2**31}, "window = 2147483648"),
        ({"warmup_window": 0}, "warmup_window = 0"),
        ({"theta": 1.0}, "theta = 1.0: the rotary base must exceed 1"),
        ({"theta": 1e300}, "theta = 1e+300"),
        ({"facts": (3,)}, "facts = (3,): must be [fewest, most]. Write [2, 25]."),
        ({"facts": (5, 4)}, "facts = (5, 4)"),
        ({"curriculum": (32, 32)}, "curriculum = (32, 32): must ascend"),
        ({"curriculum": (64,)}, "curriculum = (64,): must ascend and stay below context_tokens"),
        ({"curriculum": (24,)}, "whole rows of 24 tokens"),
        ({"short_context_tokens": 64}, "short_context_tokens = 64: must have at least 20 tokens and stay below"),
        ({"short_context_tokens": 0}, "short_context_tokens = 0: must have at least 20 tokens"),
        ({"short_context_tokens": 32, "curriculum": (32,)}, "short_context_tokens = 32: excludes a curriculum"),
        ({"promote_accuracy": 1.5}, "promote_accuracy = 1.5: must lie in 0 … 1"),
        ({"text_share": -0.1}, "text_share = -0.1: must lie in 0 … 1"),
        ({"text_share": 0.0}, "text_share = 0.0: leaves no text to weigh. Set text_weight = 0"),
        ({"final_scale": 2.0}, "final_scale = 2.0"),
        ({"text_weight": -1.0}, "text_weight = -1.0"),
        ({"learning_rate_scale": 0.0}, "learning_rate_scale = 0.0: must be positive"),
        ({"decay": "lineer"}, "decay = 'lineer': no such choice. Did you mean 'linear'?"),
    ],
    ids=str,
)
def test_each_rule_of_a_stage(change, words):
    assert words in message(from_plain, Stage, STAGE | change)


def test_what_a_stage_tells():
    stage = Stage(**(STAGE | {"curriculum": (32,)}))
    assert stage.row_lengths == (32, 64) and stage.facts_at(64) == (2, 25) and stage.facts_at(32) == (2, 3)
    assert Stage(**(STAGE | {"short_context_tokens": 32})).row_lengths == (32, 64)
    assert Stage(**(STAGE | {"text_weight": 0.0, "text_share": 0.0})).text_share == 0


@pytest.mark.parametrize(
    ("cls", "change", "words"),
    [
        (Optimizer, {"learning_rate": 0.0}, "learning_rate = 0.0: must lie in 0 … 1000"),
        (Optimizer, {"muon_learning_rate": 1e3}, "muon_learning_rate = 1000.0"),
        (Optimizer, {"embedding_learning_rate": -1.0}, "embedding_learning_rate = -1.0"),
        (Optimizer, {"clip_norm": 0}, "clip_norm = 0.0"),
        (Optimizer, {"betas": [0.9]}, "betas = (0.9,): must be two numbers in 0 … 1. Write [0.9, 0.95]."),
        (Optimizer, {"betas": [0.9, 1]}, "betas = (0.9, 1.0)"),
        (Optimizer, {"weight_decay": 1.0}, "weight_decay = 1.0"),
        (Optimizer, {"name": "adam"}, "name = 'adam': no such choice. Did you mean 'adamw'? Valid: adamw, muon."),
        (Needles, {"depths": 13}, "depths = 13: must lie in 2 … 12"),
        (Needles, {"contexts": 0}, "contexts = 0"),
        (Needles, {"context_tokens": [64]}, "context_tokens = 64: 11 needles and their questions need 89 tokens"),
        (Needles, {"far_tokens": [2**31]}, "far_tokens = 2147483648"),
        (Needles, {"control_tokens": [128, 128]}, "control_tokens = (128, 128): must be distinct"),
        (Needles, {"seed": -1}, "seed = -1: must lie in 0"),
        (Sweep, {"settings": []}, "settings = (): needs an entry. Write [[sweep.settings]]."),
        (Sweep, {"settings": [{"learning_rate": 0}]}, "settings[0].learning_rate = 0.0: must be a positive multiplier"),
        (Sweep, {"seed": -1}, "seed = -1"),
        (
            Arm,
            {"name": "x", "variant": "rope", "summary": "", "stages": [], "seeds": [0]},
            "stages = []: must be distinct",
        ),
    ],
    ids=str,
)
def test_each_rule_of_the_rest(cls, change, words):
    assert words in message(from_plain, cls, change)


def test_shipped_recipes_are_the_files_of_the_package():
    assert sorted([*recipes.shipped(), *recipes.shipped("training")]) == sorted(
        p.name[:-5] for p in files("rnope.recipes").iterdir() if p.name.endswith(".toml")
    )
