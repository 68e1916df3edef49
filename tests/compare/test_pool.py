"""Which results of an earlier call are found again."""

import io

import pytest
from rich.console import Console

from rnope import recipes
from rnope.compare.plan import arm_jobs, sweep_key
from rnope.compare.pool import Pool
from rnope.compare.work import Place
from rnope.data.prepare import Prepared
from rnope.files import write_text


@pytest.mark.parametrize(
    ("text", "found"), [('{"score": 1}', True), ("3", False), ('{"sco', False), ("", False), (None, False)]
)
def test_a_damaged_result_counts_as_not_done(tmp_path, text, found):
    recipe = recipes.load("cpu-demo")
    settings = {sweep_key(recipe, arm): recipe.sweep.settings[0] for arm in recipe.arms}
    job = arm_jobs(recipe, settings, "d")[0].questions[0]
    place = Place(out=tmp_path, data=Prepared(folder=tmp_path, digest="d", tokens={}))
    pool = Pool(place, workers=1, console=Console(file=io.StringIO()))
    if text is not None:
        write_text(tmp_path / "jobs" / f"{job.id}.json", text)
    assert (job.id not in pool.left([job])) is found and (job.id in pool.results) is found
