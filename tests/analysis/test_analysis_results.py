"""The results file: intervals, a way out and back in, and versions that it refuses."""

import json

import pytest

from rnope.analysis.results import (
    AnalysedModel,
    AnalysisResults,
    KindResult,
    LayerFacts,
    LayerResult,
    LengthResult,
    Mean,
    Measures,
    Memory,
    RetrievalHead,
    Spread,
    mean,
)
from rnope.errors import ConfigError, UserError
from rnope.evals.results import ModelFacts


def results():
    some = Measures(
        mass={"begin": None, "qc": mean([0.25, 0.75])}, row_entropy=mean([2.0]), mean_entropy=mean([3.0, 3.5]),
        sink=None, effective_span=mean([10.0, 20.0]), retrieval=None,
    )  # fmt: skip
    facts = ModelFacts(
        name="m", kind="rnope", sha256="a", tokenizer_sha256="b", begin_ids=(1,), dtype="float32", device="cpu"
    )
    spread = Spread(smoothed_tokens=3, positions=(10.0, 20.5), values=(0.1, 0.2))
    length = LengthResult(
        model="m", context_tokens=64, n=2, rows=8.5, uniform={"begin": 0.1, "qc": 0.9},
        spans={"qc": (50.0, 64.0)}, kinds=(KindResult(kind="rope-window", layers=1, measures=some, spread=spread),),
        layers=(LayerResult(index=0, kind="rope-window", measures=some, heads={"mass.qc": (0.5, None)}),),
        retrieval_heads=(RetrievalHead(layer=0, head=1, kind="rope-window", score=mean([1.0]), needle_mass=None),),
        memory=Memory(eager_bytes=1, rows_bytes=2, peak_bytes=3, peak_is="counted"), seconds=(1.0, 2.0), notes=("x",),
    )  # fmt: skip
    layers = (LayerFacts(index=0, kind="rope-window", window=8, heads=2, kv_heads=1),)
    return AnalysisResults(
        models=(AnalysedModel(facts=facts, class_name="Decoder", layers=layers),), settings={"seed": 1},
        versions={"rnope": "0"}, command="rnope analyze", segments=("begin", "qc"), lengths=(length,),
    )  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "analysis.json"
    results().save(path)
    assert AnalysisResults.load(path) == results()


@pytest.mark.parametrize("change", [{"version": 2}, {"version": None}, {"segmants": []}, {"segments": [1]}])
def test_other_versions_and_fields_are_refused_by_name(tmp_path, change):
    path = tmp_path / "analysis.json"
    results().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=r"analysis\.json.*(version|segm.nts)"):
        AnalysisResults.load(path)


def test_numbers_that_are_none_are_refused_on_both_ways(tmp_path):
    path = tmp_path / "analysis.json"
    results().save(path)
    path.write_text(path.read_text().replace('"rows":8.5', '"rows":NaN'))
    with pytest.raises(ConfigError, match=r"rows"):
        AnalysisResults.load(path)


def test_the_interval_is_students():
    """Student's own data (1908): additional hours of sleep, ten patients; 0.70 to 2.46 by any t table."""
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = mean(hours)
    assert found.value == pytest.approx(1.58) and found.n == 10
    assert (found.low, found.high) == (pytest.approx(0.70, abs=5e-3), pytest.approx(2.46, abs=5e-3))


def test_one_sample_has_no_interval():
    assert mean([0.5]) == Mean(value=0.5, n=1)
