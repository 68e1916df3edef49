"""What a training recipe may say: every rule with its message, schedules, 3:1 in both units, and the mesh."""

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnope.config.execution import Execution
from rnope.config.stage import Portion, Stage
from rnope.config.training import AdamW, Arm, Schedule, StageRates, TrainingRecipe
from rnope.errors import ConfigError
from rnope.model.spec import LayerSpec, ModelConfig
from rnope.strict import from_plain, to_plain

STAGE = {
    "name": "pretrain", "steps": 100, "batch_tokens": 768, "context_tokens": 96, "schedule": "all",
    "mixture": [{"source": "web"}],
}  # fmt: skip
LONG = STAGE | {"short_context_tokens": 32}


def stage(**changes):
    return from_plain(Stage, STAGE | changes)


def recipe(*stages, variant="rope", **changes):
    arm = {"name": "a", "variant": variant, "stages": [STAGE | {"name": f"s{i}"} | s for i, s in enumerate(stages)]}
    plain = {"name": "r", "summary": "", "size": "tiny", "schedules": {"all": {"peak": 1e-2}, "more": {"peak": 1e-3}},
             "sources": {"web": ""}, "arms": [arm]}  # fmt: skip
    return from_plain(TrainingRecipe, plain | changes)


def message(*call):
    with pytest.raises(ConfigError) as caught:
        call[0](*call[1:])
    return str(caught.value)


# --- rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a/b"}, "name = 'a/b': names a file or folder"),
        ({"steps": None}, "steps = (None, None): a stage has steps or epochs. Give one."),
        ({"epochs": 2}, "steps = (100, 2.0): a stage has steps or epochs"),
        ({"steps": None, "epochs": 0}, "epochs = 0.0: must be positive"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"steps": 2**48}, "steps = 281474976710656: must be at least 1"),
        ({"short_to_long": 0}, "short_to_long = 0: must be at least 1"),
        ({"short_context_tokens": 96}, "short_context_tokens = 96: must be below context_tokens"),
        ({"short_context_tokens": 0}, "short_context_tokens = 0: must be below context_tokens"),
        ({"short_context_tokens": 1}, "short_context_tokens = 1: must lie in 2"),
        (
            {"short_mixture": [{"source": "web"}]},
            "short_mixture = (Portion(source='web', weight=1.0, longer_than=0),): th",
        ),
        ({"mixture": []}, "mixture = (): has no portion"),
        ({"mixture": [{"source": "web", "weight": 0.0}]}, "mixture[0].weight = 0.0: must be positive"),
        ({"mixture": [{"source": "web", "weight": 1e9}]}, "mixture[0].weight = 1000000000.0: must be positive"),
        ({"mixture": [{"source": "web", "longer_than": -1}]}, "mixture[0].longer_than = -1: must not be negative"),
        ({"context_tokens": 1}, "context_tokens = 1: must lie in 2"),
        ({"context_tokens": 2**31}, "context_tokens = 2147483648: must lie in 2"),
        ({"batch_tokens": 97}, "batch_tokens = 97: must be whole rows of 96 tokens. Use a multiple of 96."),
        ({"batch_tokens": 0}, "batch_tokens = 0: must be whole rows of 96"),
        ({"short_context_tokens": 36}, "batch_tokens = 768: must be whole rows of 36 tokens"),
        ({"theta": 1.0}, "theta = 1.0: the rotary base must exceed 1"),
        ({"theta": 1e30}, "theta = 1e+30"),
        ({"window": 0}, "window = 0: counts the current token: at least 1"),
        ({"rope_window": 2**31}, "rope_window = 2147483648: counts the current token"),
        ({"window": 3, "rope_window": 3}, "rope_window = 3: is given beside window. Give one of them."),
        ({"precision": "fp16"}, "precision = 'fp16': no such choice. Did you mean 'bf16'?"),
        ({"interleave_unit": "row"}, "interleave_unit = 'row': no such choice. Did you mean 'rows'?"),
        ({"mixture_unit": "document"}, "mixture_unit = 'document': no such choice. Did you mean 'documents'?"),
    ],
    ids=str,
)
def test_each_rule_of_a_stage(change, words):
    assert words in message(from_plain, Stage, STAGE | change)


@pytest.mark.parametrize(
    ("cls", "change", "words"),
    [
        (AdamW, {"betas": [0.9]}, "betas = (0.9,): must be two numbers in 0 … 1"),
        (AdamW, {"betas": [0.9, 1]}, "betas = (0.9, 1.0)"),
        (AdamW, {"betas": [-0.1, 0.9]}, "betas = (-0.1, 0.9)"),
        (AdamW, {"eps": 0}, "eps = 0.0: must lie in 0"),
        (AdamW, {"weight_decay": 1}, "weight_decay = 1.0: must lie in 0"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay = -0.1"),
        (AdamW, {"clip_norm": 0}, "clip_norm = 0.0: must lie in 0"),
        (Schedule, {"peak": 0}, "peak = 0.0: must lie in 0 … 1000"),
        (Schedule, {"peak": 1e3}, "peak = 1000.0"),
        (Schedule, {"peak": 1, "end": 1.1}, "end = 1.1: must lie in 0 … peak"),
        (Schedule, {"peak": 1, "end": -0.1}, "end = -0.1"),
        (Schedule, {"peak": 1, "warmup_steps": -1}, "warmup_steps = -1: must not be negative"),
        (Schedule, {"peak": 1, "shape": "square"}, "shape = 'square': no such choice"),
        (Execution, {"sequence_parallel": 0}, "sequence_parallel = 0: must be at least 1"),
        (Execution, {"log_steps": 0}, "log_steps = 0"),
        (Execution, {"save_steps": -5}, "save_steps = -5"),
        (Execution, {"keep": 0}, "keep = 0"),
        (Execution, {"validation_rows": 0}, "validation_rows = 0"),
        (Execution, {"skips": 2**31}, "skips = 2147483648"),
        (Execution, {"micro_batch_tokens": -1}, "micro_batch_tokens = -1: must not be negative"),
        (Execution, {"validation_steps": -1}, "validation_steps = -1: must not be negative"),
        (Arm, {"name": "a b", "variant": "rope", "stages": [STAGE]}, "name = 'a b': names a file"),
        (Arm, {"name": "a", "variant": "rope", "stages": []}, "stages = []: must be distinct"),
        (Arm, {"name": "a", "variant": "rope", "stages": [STAGE, STAGE]}, "stages = ['pretrain', 'pretrain']: must be"),
    ],
    ids=str,
)
def test_each_rule_of_the_rest(cls, change, words):
    assert words in message(from_plain, cls, change)


def test_a_schedule_is_not_taken_up_again():
    names = ("all", "more", "all")
    rule = "stages = 'all': stage 's2' takes up a schedule that another one has come after"
    assert rule in message(recipe, *({"schedule": name} for name in names))
    recipe({}, {}, {"schedule": "more"}, {"schedule": "more"})


@pytest.mark.parametrize(
    ("stages", "change", "words"),
    [
        ([{}], {"name": ".x"}, "name = '.x': names a file"),
        ([{}], {"vocab_size": 2**24 + 1}, "vocab_size = 16777217: must lie in 2"),
        ([{}], {"seed": 2**31}, "seed = 2147483648: must lie in 0"),
        ([{}], {"arms": []}, "arms = []: must have distinct names"),
        ([{"schedule": "al"}], {}, "arms[0].stages[0].schedule = 'al': no such schedule. Did you mean 'all'?"),
        (
            [{}, {"mixture": [{"source": "wed"}]}],
            {},
            "arms[0].stages[1].mixture[0].source = 'wed': no such source. Did",
        ),
        ([{}, {"window": 3}], {}, "arms[0].stages[1].window = 3: 'rope' has no window"),
        ([{}], {"model": {"widht": 3}}, "model.widht = 'widht': no such key of a model. Did you mean 'width'?"),
        ([{}], {"size": "big"}, "size = 'big': no such size"),
        ([{}], {"size": None}, "size = None: is missing. Add it (a string), or start"),
        ([{}], {"start": "x"}, "size = 'tiny': is given beside start, whose folder says it"),
        ([{}], {"start": "x", "size": None}, "arms[0].variant = 'rope': is given beside start"),
    ],
)
def test_each_rule_of_a_recipe(stages, change, words):
    assert words in message(lambda: recipe(*stages, **change))


@pytest.mark.parametrize("key", ["theta", "rope_window"])
def test_what_needs_a_rope_layer(key):
    words = f"arms[0].stages[0].{key} = 3{'.0' if key == 'theta' else ''}: 'nope' has no RoPE layer. Leave it out."
    assert message(lambda: recipe({key: 3}, variant="nope")) == words
    recipe({key: 3}, variant="rnope")


# --- what a stage does to the model ------------------------------------------------------------------------------------


def test_changes_of_theta_and_window_add_up_from_stage_to_stage():
    made = recipe({}, {"theta": 5e5}, {"window": 9}, {"rope_window": 4, "theta": 7.0}, variant="swa-rope")
    rope = [LayerSpec(position="rope", theta=1e4, window=5)] * 3 + [LayerSpec(position="rope", theta=1e4)]
    warmer = [replace(spec, theta=5e5) for spec in rope]
    wider = [replace(spec, window=spec.window and 9) for spec in warmer]
    last = [LayerSpec(position="rope", theta=7.0, window=4)] * 4
    configs = made.stage_configs(made.arms[0])
    assert [list(config.layers) for config in configs] == [rope, warmer, wider, last]
    assert configs[0] == made.model_config(made.arms[0])


def test_a_window_for_rope_layers_leaves_the_others_as_they_are():
    config = ModelConfig.variant("rnope", size="tiny")
    found = stage(rope_window=8).changed(config).layers
    assert found == (LayerSpec(position="nope"), LayerSpec(position="rope", theta=1e4, window=8)) * 2
    # A NoPE layer in a window is no RoPE layer.
    config = config.with_layers((LayerSpec(position="nope", window=3), *config.layers))
    assert stage(rope_window=8).changed(config).layers[0] == LayerSpec(position="nope", window=3)
    assert (
        stage(window=8).changed(config).layers[0].window == 8
        and stage(window=8).changed(config).layers[2].window is None
    )
    assert stage().changed(config).layers == config.layers


def test_a_window_may_follow_one_that_a_stage_gave():
    made = recipe({"rope_window": 4}, {"window": 6}, variant="rnope")
    assert [made.stage_configs(made.arms[0])[i].layers[1].window for i in (0, 1)] == [4, 6]
    assert "has no window" in message(lambda: recipe({"window": 6}, {"rope_window": 4}, variant="rnope"))


# --- 3:1 ---------------------------------------------------------------------------------------------------------------


def test_of_tokens_three_steps_in_four_are_short():
    found = from_plain(Stage, LONG)
    assert found.long_share == Fraction(1, 4) and found.row_lengths == (32, 96)
    assert [found.row_tokens(step) for step in range(9)] == [32, 32, 32, 96, 32, 32, 32, 96, 32]
    assert [found.long_steps(step) for step in (0, 3, 4, 7, 8, 100)] == [0, 0, 1, 1, 2, 25]


def test_of_rows_three_short_rows_weigh_as_much_as_one_long():
    """3 rows of 32 for 1 of 96: as many tokens of each, and steps have equally many tokens."""
    found = from_plain(Stage, LONG | {"interleave_unit": "rows"})
    assert found.long_share == Fraction(1, 2)
    assert [found.row_tokens(step) for step in range(4)] == [32, 96, 32, 96]
    paper = {"batch_tokens": 2**23, "context_tokens": 2**17, "short_context_tokens": 2**13, "interleave_unit": "rows"}
    assert from_plain(Stage, LONG | paper).long_share == Fraction(16, 19)


def test_without_short_rows_all_are_long():
    assert stage().long_share == 1 and stage().row_lengths == (96,)
    assert [stage().row_tokens(step) for step in (0, 1, 99)] == [96] * 3 and stage().long_steps(7) == 7


@given(
    short=st.integers(1, 9), unit=st.sampled_from(["tokens", "rows"]), at=st.integers(0, 10**6), many=st.integers(0, 400)
)  # fmt: skip
def test_long_steps_are_those_that_row_tokens_gives_and_spread_evenly(short, unit, at, many):
    found = from_plain(Stage, LONG | {"short_to_long": short, "interleave_unit": unit})
    long = sum(found.row_tokens(step) == 96 for step in range(at, at + many))
    assert long == found.long_steps(at + many) - found.long_steps(at)
    assert abs(long - many * found.long_share) < 1
    tokens = {96: long, 32: many - long}  # Of steps: each has equally many tokens.
    rows = {length: count * 768 // length for length, count in tokens.items()}
    counted = rows if unit == "rows" else tokens
    assert abs(counted[32] - short * counted[96]) <= (1 + short) * 768 / 32


def test_each_length_has_its_mixture():
    found = from_plain(Stage, LONG | {"mixture": [{"source": "long"}], "short_mixture": [{"source": "web"}]})
    assert found.portions(96) == (Portion(source="long"),) and found.portions(32) == (Portion(source="web"),)
    assert found.sources == ("long", "web")
    assert from_plain(Stage, LONG).portions(32) == (Portion(source="web"),)


# --- schedules ---------------------------------------------------------------------------------------------------------


def test_warm_up_then_cosine_to_the_end():
    schedule = Schedule(peak=8.0, end=2.0, warmup_steps=4)
    rates = [schedule.rate(step, 14) for step in range(15)]
    assert rates[:5] == [2.0, 4.0, 6.0, 8.0, 8.0] and rates[14] == 2.0
    assert math.isclose(rates[9], 5.0) and math.isclose(rates[6], 2 + 6 * (0.5 + 0.5 * math.cos(math.pi * 0.2)))
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_linear_and_constant():
    linear = Schedule(peak=5.0, end=1.0, shape="linear")
    assert [linear.rate(step, 4) for step in range(5)] == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert [Schedule(peak=5.0, shape="constant", warmup_steps=2).rate(step, 9) for step in (0, 1, 2, 9)] == [
        2.5,
        5,
        5,
        5,
    ]
    assert Schedule(peak=5.0, warmup_steps=3).rate(2, 3) == 5.0  # A schedule that is all warm-up.


def test_stages_of_one_schedule_share_its_length():
    made = recipe({"steps": 30}, {"steps": 10}, {"steps": 20, "schedule": "more"})
    first, second, third = made.rates(made.arms[0], (30, 10, 20))
    whole = StageRates(schedule=made.schedules["all"], offset=0, total=40)
    assert [first(i) for i in range(30)] + [second(i) for i in range(11)] == [whole(i) for i in range(41)]
    assert first(30) == second(0) and second(10) == 0.0 and third(0) == 1e-3
    assert third == StageRates(schedule=made.schedules["more"], offset=0, total=20)


def test_a_warm_up_longer_than_its_schedule_is_refused_as_soon_as_the_steps_are_known():
    warm = {"schedules": {"all": {"peak": 1.0, "warmup_steps": 101}}}
    words = "schedules.all.warmup_steps = 101: the stages of arm 'a' that follow it have 100 steps. Shorten it."
    assert message(lambda: recipe({}, **warm)) == words
    recipe({"steps": 90}, {"steps": 11}, **warm)
    made = recipe({"steps": None, "epochs": 2.0}, **warm)
    assert words in message(made.rates, made.arms[0], (100,))
    made.rates(made.arms[0], (101,))


# --- the mesh ----------------------------------------------------------------------------------------------------------


TINY = ModelConfig.variant("rnope-swa", size="tiny")
"""4 heads over 2."""


def test_groups_of_ranks_share_the_rows_of_a_batch():
    stages = (from_plain(Stage, LONG),)
    assert Execution().check_ranks(1, stages, TINY) == 1
    assert Execution().check_ranks(8, stages, TINY) == 8
    assert Execution(sequence_parallel=2).check_ranks(8, stages, TINY) == 4
    assert Execution(micro_batch_tokens=480).check_ranks(4, stages, TINY) == 4
    assert Execution(sequence_parallel=4).check_ranks(4, stages, TINY) == 1


@pytest.mark.parametrize(
    ("change", "ranks", "words"),
    [
        ({"sequence_parallel": 3}, 8, "execution.sequence_parallel = 3: must divide the 8 ranks. Use one of 1, 2, 4, 8."),
        ({"sequence_parallel": 2}, 1, "must divide the 1 ranks. Use one of 1."),
        ({"sequence_parallel": 8}, 8, "share their 4 query heads and 2 key-value heads evenly among the ranks"),
        ({}, 5, "stages.pretrain.batch_tokens = 768: each of 5 groups of ranks takes as many rows of 32 tokens. Use a mult"),
        ({}, 12, "each of 12 groups of ranks takes as many rows of 96 tokens. Use a multiple of 1,152, or other ranks."),
        ({"sequence_parallel": 2}, 6, "each of 3 groups of ranks takes as many rows of 96 tokens"),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit(change, ranks, words):
    assert words in message(Execution(**change).check_ranks, ranks, (from_plain(Stage, LONG),), TINY)


def test_a_row_is_shared_evenly():
    odd = stage(context_tokens=33, batch_tokens=66)
    words = "stages.pretrain.context_tokens = 33: each of 2 ranks takes an equal share of a row"
    assert words in message(Execution(sequence_parallel=2).check_ranks, 2, (odd,), TINY)


def test_only_full_layers_share_heads():
    windowed = ModelConfig.variant("swa-only", size="tiny")
    assert Execution(sequence_parallel=8).check_ranks(8, (stage(),), windowed) == 1
    many = replace(TINY, heads=12, kv_heads=4)
    assert Execution(sequence_parallel=12).check_ranks(12, (stage(),), many) == 1  # each key-value head on 3 ranks
    assert "12 query heads and 4 key-value" in message(Execution(sequence_parallel=6).check_ranks, 6, (stage(),), many)


@pytest.mark.parametrize("most", [0, 16, 100, 192, 500, 10**6])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_micro_batches_cut_a_groups_part_of_a_batch_into_equal_pieces(most, groups):
    found, execution = from_plain(Stage, LONG), Execution(micro_batch_tokens=most)
    for length in found.row_lengths:
        part = 768 // length // groups
        rows = execution.micro_rows(found, length, groups)
        assert 1 <= rows <= part and part % rows == 0 and (rows == 1 or rows * length <= (most or 96))
        assert not any(part % more == 0 and more * length <= (most or 96) for more in range(rows + 1, part + 1))


def test_there_and_back():
    made = recipe({}, LONG | {"name": "s1"}, origins={"seed": "given"})
    assert from_plain(TrainingRecipe, to_plain(made)) == made and made.arm("a") is made.arms[0]
    assert "no such arm. Did you mean 'a'?" in message(made.arm, "A")
