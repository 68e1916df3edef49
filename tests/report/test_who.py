"""Groups of arms, the models of the paper that they stand for, and our lengths for the paper's."""

from dataclasses import replace
from itertools import count

from rnope.recipes import load
from rnope.report import paper, who, words
from rnope.report.gate import arms
from rnope.results import Model, Results
from rnope.strict import to_plain


def full(results: Results) -> Results:
    """Arms and models of the recipe cpu-full, all of them the fixture's but for name, variant and stages."""
    recipe = load("cpu-full")
    one = results.models[0]
    models = [
        replace(one, arm=arm.name, variant=arm.variant, trained_tokens=arm.trained_tokens, seed=seed,
                stages=one.stages * len(arm.stages))
        for arm in recipe.arms for seed in arm.seeds
    ]  # fmt: skip
    summaries = {arm.name: arm.summary for arm in recipe.arms}
    return replace(results, recipe=to_plain(recipe), arms=summaries, models=tuple(models), needles=(), learning=())


def test_few_arms_are_one_group(results: Results) -> None:
    (only,) = who.groups(results)
    assert only.arms == arms(results) and only.key == only.title == ""


def test_every_arm_of_the_full_comparison_is_in_one_group(results: Results) -> None:
    many = full(results)
    groups = {group.key: group.arms for group in who.groups(many)}
    assert sorted(arm for names in groups.values() for arm in names) == sorted(arms(many))
    assert {"rope", "nope", "swa-only", "rnope-1to3"} <= set(groups["pretrained"])
    assert {"rope-extended", "rope-tuned", "rnope-10k-swa-tuned"} <= set(groups["tuned"])
    assert {"rope-matched", "rnope-swa-w32", "deep-1to7"} <= set(groups["variations"])
    assert set(groups) == set(who.KEYS) - {""}
    styles = who.styles(many)
    assert all(len({styles[arm][0] for arm in names}) == len(names) for names in groups.values())
    assert styles["rope"] == styles["rope-tuned"]


def test_the_recipe_says_which_arm_stands_for_what(results: Results) -> None:
    stands = who.stands_for(full(results))
    assert stands["RNoPE-10k"] == "rnope-last-tuned" and stands["RNoPE-4M"] == "rnope-last-4m-tuned"
    assert len(stands) == 9
    assert set(paper.WITH_MASSES) <= set(stands)
    assert who.nearest(full(results), "rnope-last-4m-tuned") == "RNoPE-4M"
    assert who.nearest(full(results), "rnope-swa-tuned") == "RNoPE-10k-swa"


def test_where_the_recipe_is_silent_the_longest_trained_of_a_variant_stands(results: Results) -> None:
    assert who.stands_for(results) == {"RoPE": "rope-extended", "RNope-SWA": "rnope-swa"}


def test_lengths_keep_their_multiple_of_the_pretraining_length(results: Results) -> None:
    assert [who.here(results, n * 1024) for n in (8, 32, 64, 128)] == [256, 1024, 2048, 4096]
    assert who.there(results, 16384) == 512 * 1024

    def longer(model: Model) -> Model:
        at = count(4096, 4096)
        return replace(model, stages=tuple(replace(stage, context_tokens=next(at)) for stage in model.stages))

    assert who.here(replace(results, models=tuple(map(longer, results.models))), 8192) == 4096


def test_a_recipe_says_once_what_all_arms_have_alike() -> None:
    lines = words.recipe(to_plain(load("cpu-full"))).splitlines()
    assert sum('"curriculum"' in line for line in lines) == 1
    (stage,) = [line for line in lines if line.startswith('  {"name": "finetune"')]
    assert '"context_tokens": 2048' in stage and "theta" not in stage
    arms = {
        name: next(line for line in lines if line.startswith(f'  {{"name": "{name}"'))
        for name in ("rope-tuned", "nope-tuned")
    }
    assert '"theta": 2000000.0' in arms["rope-tuned"] and "theta" not in arms["nope-tuned"]
