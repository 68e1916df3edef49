"""Jobs: which arms share which, what changes an id and what does not, and that choices are made by other needles."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rnope import recipes
from rnope.compare import work
from rnope.compare.plan import arm_jobs, ask_job, clock_job, sweep_jobs, sweep_key, training_jobs
from rnope.compare.preview import describe, preview
from rnope.compare.run import chosen_settings
from rnope.config import Setting
from rnope.data.needles import WORDS, Haystack, NeedleTask
from rnope.errors import ConfigError
from rnope.evals.needles import Prompts
from rnope.tokenizer import Tokenizer

TIMED = ("costs", "context_tokens", [64])


def plan(recipe, data="d", setting=None):
    """Arm name -> its jobs at seed 0."""
    settings = {sweep_key(recipe, arm): setting or recipe.sweep.settings[0] for arm in recipe.arms}
    return {jobs.arm.name: jobs for jobs in arm_jobs(recipe, settings, data) if jobs.seed == recipe.seeds[0]}


def training_ids(jobs):
    return {name: [job.id for job in one.training] for name, one in jobs.items()}


def test_arms_that_begin_alike_share_the_stages_that_are_alike(recipe):
    ids = training_ids(plan(recipe()))
    assert ids["rope-extended"][0] == ids["rope"][0]
    assert len({i for chain in ids.values() for i in chain}) == 4
    jobs = plan(recipe())["rope-extended"]
    assert [job.needs for job in jobs.training] == [None, jobs.training[0].id]
    assert all(job.needs == jobs.training[1].id for job in jobs.questions)
    assert [len(job.work.stages) for job in jobs.training] == [1, 2]


def test_arms_that_are_alike_in_all_but_their_name_share_everything(recipe):
    twin = {"variant": "rope", "summary": "the same again", "stages": ["pretrain"]}
    jobs = plan(recipe(("arms", "twin", twin), ("pairs", [])))
    assert training_ids(jobs)["twin"] == training_ids(jobs)["rope"]
    assert [job.id for job in jobs["twin"].questions] == [job.id for job in jobs["rope"].questions]


@pytest.mark.parametrize("change", [
    ("stages", "pretrain", "steps", 31),
    ("stages", "pretrain", "theta", 5e5),
    ("stages", "pretrain", "curriculum", [64]),
    ("stages", "pretrain", "text_weight", 0.2),
    ("model", "theta", 120.0),
    ("model", "window", 6),
    ("model", "width", 32),
    ("optimizer", "learning_rate", 1e-3),
    ("optimizer", "clip_norm", 2.0),
    ("vocab_size", 1025),
    ("seeds", [1]),
])  # fmt: skip
def test_what_changes_a_weight_changes_the_id_of_the_training_and_of_all_that_needs_it(recipe, change):
    before, after = plan(recipe()), plan(recipe(change))
    for name in before:
        old = {job.id for job in (*before[name].training, *before[name].questions)}
        new = {job.id for job in (*after[name].training, *after[name].questions)}
        if change[1:3] == ("pretrain", "theta") or change[-2] == "theta" or change[-2] == "window":
            continue  # not every layout has these; see below
        assert not old & new, name
    rope_changed = change[-2] != "window"
    assert (training_ids(before)["rope"] != training_ids(after)["rope"]) == rope_changed
    assert training_ids(before)["rnope-swa"] != training_ids(after)["rnope-swa"]


def test_data_and_setting_change_the_id(recipe):
    base = training_ids(plan(recipe()))["rope"]
    assert training_ids(plan(recipe(), data="e"))["rope"] != base
    assert training_ids(plan(recipe(), setting=Setting(learning_rate=0.5)))["rope"] != base
    assert training_ids(plan(recipe(), setting=Setting(tie_query_key=False)))["rope"] != base
    assert training_ids(plan(recipe(), setting=Setting(tie_query_key=True)))["rope"] == base, "what the size says"


@pytest.mark.parametrize("change", [
    ("name", "other"), ("summary", "other words"), ("arms", "rope", "summary", "other words"),
    ("scale", {"length": {"paper": "8,192", "here": "128"}}), ("stages", "extend", "steps", 9),
])  # fmt: skip
def test_what_changes_no_weight_changes_no_id(recipe, change):
    before, after = plan(recipe()), plan(recipe(change))
    assert training_ids(before)["rope"] == training_ids(after)["rope"]
    assert [job.id for job in before["rope"].questions] == [job.id for job in after["rope"].questions]


def test_ids_of_finished_work_stay_what_they_are():
    """Of recipe cpu-full on the default corpus: what has been trained and asked must be found again."""
    full, data = recipes.load("cpu-full"), "afb996f0bd5eeb02-1024"
    first = sweep_jobs(full, data)[0]
    assert (first.train.id, first.ask.id) == ("pretrain-rope-seed100-538f101f58", "dev-standard-256-b58d123ce2")
    found = {}
    for name in ("rnope-swa", "rope-tuned"):
        arm = next(arm for arm in full.arms if arm.name == name)
        training = training_jobs(full, arm, 0, full.sweep.settings[0], data)
        ask = ask_job(full, arm, 0, training[-1].id, "standard", 4096)
        found[name] = [job.id for job in (*training, ask)]
    assert found == {
        "rnope-swa": ["pretrain-rnope-swa-seed0-af32467763", "eval-standard-4096-d481525c95"],
        "rope-tuned": [
            "pretrain-rope-seed0-07ac8ee80a", "finetune-rope-seed0-8b19962dd1", "eval-standard-4096-38b8d3c787",
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (("attention_samples", 3), {"look"}),
        (("tasks", "answers", 7), {"tasks-256"}),
        (("tasks", "far_answers", 3), {"tasks-512"}),
        (("tasks", "names", ["niah_single_1"]), {"tasks-256", "tasks-512"}),
        (("losses", "windows", 4), {"loss"}),
        (("needles", "seed", 1), {"eval", "look", "tasks"}),
    ],
)
def test_other_measurements_are_other_jobs_of_the_same_training(recipe, change, kinds):
    before, after = (plan(made)["rope"] for made in (recipe(), recipe(change)))
    assert before.training == after.training or [j.id for j in before.training] == [j.id for j in after.training]
    old, new = ({job.id for job in jobs.questions} for jobs in (before, after))
    assert len(old) == len(new)
    assert old ^ new == {i for i in old ^ new if i.startswith(tuple(kinds))}
    assert all({i for i in old if i.startswith(kind)}.isdisjoint(new) for kind in kinds)


def test_arms_that_differ_in_theta_alone_share_their_times(recipe):
    matched = {"variant": "rope", "summary": "θ 120", "stages": ["pretrain"], "model": {"theta": 120.0}}
    job = clock_job(recipe(TIMED, ("arms", "rope-matched", matched)))
    assert [layout.arms for layout in job.work.layouts] == [
        ("rope", "rope-extended", "rope-matched"), ("rnope-swa",), ("swa-rope",),
    ]  # fmt: skip
    assert job.units == 9 and job.needs is None and job.work.context_tokens == (64,)
    assert clock_job(recipe()) is None
    ids = {clock_job(recipe(TIMED, c)).id for c in [("name", "x"), ("costs", "rounds", 2), ("model", "width", 32)]}
    assert len({*ids, job.id}) == 3, "the name counts for nothing, what is timed does"
    with pytest.raises(ConfigError, match="times are taken on a processor"):
        recipe(TIMED, ("execution", "device", "cuda"))


@pytest.mark.parametrize("change", [("depths", 5), ("contexts", 3), ("seed", 1)])
def test_other_needles_are_other_questions_of_the_same_training(recipe, change):
    before, after = plan(recipe()), plan(recipe(("needles", *change)))
    assert training_ids(before) == training_ids(after)
    old, new = ({j.id for j in jobs["rope"].questions if j.id.startswith("eval")} for jobs in (before, after))
    assert len(old) == len(new) and not old & new


def asked(jobs):
    return sorted((job.work.row, job.work.context_tokens) for job in jobs.questions if hasattr(job.work, "row"))


def test_every_arm_is_asked_at_its_own_length_and_only_far_arms_far(recipe):
    jobs = plan(recipe(("needles", "context_tokens", [512]), ("pairs", [])))
    controls = [("no-needle", 128), ("unseen-keys", 128)]
    assert asked(jobs["rope"]) == sorted([*controls, ("needle-only", 128), ("standard", 128), ("standard", 512)])
    assert ("standard", 256) in asked(jobs["rope-extended"]) and ("needle-only", 256) in asked(jobs["rope-extended"])
    assert ("standard", 1024) in asked(jobs["rnope-swa"]) and ("standard", 1024) not in asked(jobs["swa-rope"])


def test_both_sides_of_a_pair_are_asked_where_it_is_judged(recipe):
    """2× and 16× the longer trained length of the two: 128 for rope, 256 for rope-extended."""
    jobs = plan(recipe(("needles", "context_tokens", [128])))
    lengths = {name: {n for row, n in asked(jobs[name]) if row == "standard"} for name in jobs}
    assert lengths["rope"] == {128, 256, 2048} and lengths["swa-rope"] == {128}
    assert lengths["rope-extended"] == {128, 256, 512, 4096}
    assert lengths["rnope-swa"] == {128, 256, 512, 1024, 2048, 4096}


def all_jobs(recipe):
    found = [job for trial in sweep_jobs(recipe, "d") for job in (trial.train, trial.ask)]
    settings = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    found += [job for jobs in arm_jobs(recipe, settings, "d") for job in (*jobs.training, *jobs.questions)]
    return list({job.id: job for job in found}.values())


def test_no_two_jobs_have_the_same_title(recipe):
    matched = {"variant": "rope", "summary": "θ 120", "stages": ["pretrain"], "model": {"theta": 120.0}}
    titles = [job.title for job in all_jobs(recipe(("arms", "rope-matched", matched)))]
    assert len(titles) == len(set(titles)), sorted(t for t in titles if titles.count(t) > 1)


def test_jobs_count_what_they_do_and_cost_something(recipe):
    for job in all_jobs(recipe()):
        assert job.units >= 1 and job.cost > 0


def test_every_subject_of_the_sweep_gets_every_setting_on_the_development_split(recipe):
    trials = sweep_jobs(recipe(), "d")
    assert len(trials) == 3 * 2 and {trial.arm.name for trial in trials} == {"rope", "rnope-swa", "swa-rope"}
    for trial in trials:
        assert trial.ask.work.split == "dev" and trial.ask.needs == trial.train.id
        assert trial.train.work.seed == 100 and len(trial.train.work.stages) == 1
        assert trial.ask.work.context_tokens == 128
    assert not sweep_jobs(recipe(("sweep", "settings", [{"learning_rate": 2.0}])), "d")


def test_the_best_setting_wins_and_of_equals_the_first(recipe):
    settings = [{"learning_rate": rate} for rate in (1.0, 0.5, 2.0)]
    tuned = recipe(("sweep", "settings", settings))
    trials = sweep_jobs(tuned, "d")
    scores = {"rope": (3.0, 9.0, 9.0), "rnope-swa": (0.0, 0.0, 0.0), "swa-rope": (1.0, 2.0, 8.0)}
    results = {
        trial.ask.id: {"score": scores[trial.arm.name][[1.0, 0.5, 2.0].index(trial.setting.learning_rate)]}
        for trial in trials
    }
    chosen = chosen_settings(tuned, trials, results)
    named = {arm.name: chosen[sweep_key(tuned, arm)].learning_rate for arm in tuned.arms}
    assert named == {"rope": 0.5, "rope-extended": 0.5, "rnope-swa": 1.0, "swa-rope": 2.0}
    alone = recipe(("sweep", "settings", [{"learning_rate": 2.0}]))
    assert {s.learning_rate for s in chosen_settings(alone, [], {}).values()} == {2.0}


def test_development_needles_are_not_those_of_the_evaluation(recipe):
    """SPEC R: evaluation needles were never used for choosing."""
    made = recipe(("needles", "depths", 11))
    task = NeedleTask(Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=1024, whole_words=WORDS))
    arm = made.arms[0]
    pairs = {}
    for dev in (True, False):
        work = ask_job(made, arm, 0, "t", "standard", 128, dev=dev).work
        prompts = Prompts(task=task, haystack=Haystack([task.values]), settings=work.needles)
        contexts = [prompts.context("standard", 128, index) for index in range(4)]
        pairs[work.split] = [tuple(c.ids[row] for row in c.rows) + tuple(c.answers) for c in contexts]
    assert not set(pairs["dev"]) & set(pairs["eval"])


def test_a_job_asks_with_the_pairs_and_documents_of_its_split(recipe, monkeypatch):
    made, seen = recipe(), {}
    monkeypatch.setattr(work, "_task", lambda folder: "task")
    monkeypatch.setattr(work, "_haystack", lambda folder, split: split)
    monkeypatch.setattr(work, "needle_row", lambda model, prompts, **_: seen.update({prompts.haystack: prompts}))
    place = SimpleNamespace(data=SimpleNamespace(folder=None))
    for dev in (True, False):
        work.ask(None, ask_job(made, made.arms[0], 0, "t", "standard", 128, dev=dev).work, place, lambda n: None)
    assert {split: prompts.development for split, prompts in seen.items()} == {"dev": True, "eval": False}
    assert seen["eval"].settings == made.needles != seen["dev"].settings


def test_the_identity_of_a_training_is_its_whole_chain(recipe):
    made = recipe()
    arm = made.arms[1]
    longer = replace(arm, stages=(replace(arm.stages[0], steps=23), arm.stages[1]))
    a, b = (training_jobs(made, one, 0, Setting(), "d") for one in (arm, longer))
    assert a[1].id != b[1].id, "the second stage depends on the first"


def test_a_preview_says_what_would_be_done(recipe):
    made = recipe()
    text = preview(made)
    for arm in made.arms:
        assert arm.name in text and arm.summary in text
    assert "θ 1,000,000" in text and "24 steps of 128 tokens" in text and "1× is 256 tokens" in text
    jobs = {j.id for jobs in plan(made).values() for j in (*jobs.training, *jobs.questions)}
    assert f"comparison: {len(jobs)} jobs" in text
    assert f"comparison: {len(jobs) + 1} jobs" in preview(recipe(TIMED)), "and the times"
    assert "shards (--shard)" in text and all(f"{arm.name}:0 about " in text for arm in made.arms)
    assert "3.75 GiB" not in text and recipes.shipped()
    assert "8,028,033,024 parameters" in describe("rope", "8b")
