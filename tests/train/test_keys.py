"""A stage's key: the same for all that changes no weight, another for each thing that does."""

import pytest

from rnope import recipes
from rnope.train.keys import span, stage_key

RECIPE = """
kind = "training"
name = "keys"
summary = ""
size = "tiny"
[schedules.a]
peak = 1e-2
warmup_steps = 3
[schedules.b]
peak = 1e-3
[sources]
web = ""
more = ""
[stages.first]
steps = 10
batch_tokens = 256
context_tokens = 64
schedule = "a"
mixture = [{ source = "web" }]
[stages.second]
steps = 5
batch_tokens = 256
context_tokens = 128
short_context_tokens = 64
schedule = "a"
mixture = [{ source = "more" }]
[stages.third]
epochs = 2.0
batch_tokens = 256
context_tokens = 128
schedule = "b"
mixture = [{ source = "web" }]
[arms.one]
variant = "rnope"
stages = ["first", "second", "third"]
[arms.two]
variant = "rnope"
stages = ["first", "second", "third"]
stage.second.rope_window = 16
[arms.three]
variant = "rnope-10k"
stages = ["first"]
"""
STEPS = (10, 5, 7)
DIGESTS = {"web": "0a", "more": "0b"}


@pytest.fixture
def recipe(tmp_path):
    def make(*changes, text=RECIPE):
        path = tmp_path / "keys.toml"
        path.write_text(text)
        return recipes.load_training(str(path), changes)

    return make


def keys(recipe, arm="one", steps=STEPS, digests=DIGESTS):
    found = recipe.arm(arm)
    return [stage_key(recipe, found, i, steps[: len(found.stages)], digests) for i in range(len(found.stages))]


def test_stages_that_arms_share_have_one_key(recipe):
    made = recipe()
    one, two = keys(made), keys(made, "two")
    assert one[0] == two[0] and one[1] != two[1] and one[2] != two[2] and len({*one, *two}) == 5
    assert all(len(key) == 10 and int(key, 16) >= 0 for key in one)
    assert keys(recipe()) == one


def test_a_schedule_that_ends_elsewhere_changes_stages_before(recipe):
    """The rates of `first` depend on how long `second` is, which follows the same schedule."""
    one, three = keys(recipe()), keys(recipe(), "three", steps=(10,))
    assert one[0] != three[0]
    assert keys(recipe("arms.one.stages=['first']"), steps=(10,)) == three  # rnope-10k is rnope, where θ is 10,000


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("name=other", 3),
        ("summary=other", 3),
        ("arms.one.summary=other", 3),
        ("sources.web=elsewhere", 3),  # What is there has its digest.
        ("execution.sequence_parallel=2", 3),
        ("execution.micro_batch_tokens=512", 3),
        ("execution.checkpoint_activations=true", 3),
        ("execution.save_steps=1", 3),
        ("execution.validation_rows=3", 3),
        ("stages.third.epochs=3.5", 3),  # As many steps all the same: they are given below.
        ("seed=1", 0),
        ("vocab_size=96", 0),
        ("model.ffn_width=40", 0),
        ("model.logit_scale=0.25", 0),
        ("model.init.matrix_gain=0.5", 0),
        ("arms.one.variant=nope", 0),
        ("optimizer.weight_decay=0.0", 0),
        ("optimizer.clip_norm=2.0", 0),
        ("schedules.a.peak=2e-2", 0),
        ("schedules.a.warmup_steps=2", 0),
        ("schedules.b.peak=2e-3", 2),
        ("stages.first.batch_tokens=512", 0),
        ("stages.first.precision=fp32", 0),
        ("stages.second.theta=1e6", 1),
        ("stages.second.interleave_unit=rows", 1),
        ("stages.second.across_documents=true", 1),
        ("stages.second.mixture=[{ source = 'more', weight = 2.0 }]", 1),
        ("stages.third.reset_optimizer=true", 2),
        ("stages.third.completions_only=true", 2),
    ],
)
def test_what_changes_a_key_and_those_after_it(change, same, recipe):
    before, after = keys(recipe()), keys(recipe(change))
    assert [a == b for a, b in zip(before, after, strict=True)] == [i < same for i in range(3)]


@pytest.mark.parametrize(
    ("digests", "steps", "same"),
    [
        ({"web": "1a"}, STEPS, 0),
        ({"more": "1b"}, STEPS, 1),
        ({}, (10, 5, 8), 2),
        ({}, (10, 6, 7), 0),
        ({}, (11, 4, 7), 0),
    ],
)
def test_data_and_steps_are_in_the_key(digests, steps, same, recipe):
    before, after = keys(recipe()), keys(recipe(), digests=DIGESTS | digests, steps=steps)
    assert [a == b for a, b in zip(before, after, strict=True)] == [i < same for i in range(3)]


def test_names_of_schedules_are_not(recipe):
    renamed = RECIPE.replace("schedules.a", "schedules.c").replace('schedule = "a"', 'schedule = "c"')
    assert keys(recipe(text=renamed)) == keys(recipe())


def test_names_of_stages_are_since_they_seed_the_order_of_the_data(recipe):
    renamed = (
        RECIPE.replace("stages.second", "stages.2nd").replace('"second"', '"2nd"').replace("stage.second", "stage.2nd")
    )
    assert [a == b for a, b in zip(keys(recipe()), keys(recipe(text=renamed)), strict=True)] == [True, False, False]


def test_the_span_of_a_schedule(recipe):
    arm = recipe().arm("one")
    assert [span(arm, i, STEPS) for i in range(3)] == [(0, 15), (10, 15), (0, 7)]
    assert [span(arm, i, (10, None, None)) for i in range(3)] == [(0, None), (10, None), (0, None)]
    assert [span(arm, i, (None, 5, 7)) for i in range(3)] == [(0, None), (None, None), (0, 7)]
    unknown = keys(recipe(), steps=(10, 5, None))
    assert (
        unknown[:2] == keys(recipe())[:2]
        and unknown[2] != keys(recipe("stages.third.epochs=3.0"), steps=(10, 5, None))[2]
    )
