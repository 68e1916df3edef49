"""Tables from kept samples: blanks, kinds, means and heads, against numbers worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from rnope.analysis.results import AnalysedModel, LayerFacts
from rnope.analysis.store import Store, Unit
from rnope.analysis.tables import length_result
from rnope.errors import UserError
from rnope.evals.results import ModelFacts

TOKENS, QC = 400, 380
FULL = LayerFacts(index=1, kind="nope", window=None, heads=2, kv_heads=1)
WINDOW = LayerFacts(index=0, kind="rope-window", window=40, heads=2, kv_heads=2)
SPANS = {"begin": ((0, 10),), "needle": ((200, 210),), "context": ((10, 200), (210, QC)), "qc": ((QC, TOKENS),)}
REACH = {"begin": False, "needle": False, "context": True, "qc": True}


def described(*layers):
    facts = ModelFacts(
        name="m", kind="rnope", sha256="a", tokenizer_sha256="b", begin_ids=(), dtype="float32", device="cpu"
    )
    return AnalysedModel(facts=facts, class_name="Decoder", layers=layers)


def unit(index, spans=SPANS, tokens=TOKENS, **more):
    given = {
        "identity": "x", "name": f"s{index}", "length": TOKENS, "context_tokens": tokens, "rows_from": QC, "rows": 20,
        "seconds": 1.0 + index, "peak_bytes": 100 + index, "peak_is": "counted", **more,
    }  # fmt: skip
    return Unit(index=index, segments=spans, **given)


def sample(masses, retrieval, *, sink=((0, 0), (0.25, 0.75)), reached=(REACH, None), spans=SPANS, tokens=TOKENS):
    """Arrays of a windowed layer and a full one, two heads each: `masses` by layer, head and segment."""
    layers = len(masses)
    seen = [[True] * len(spans) if each is None else [each[name] for name in spans] for each in reached]
    values = {
        "mass": masses, "retrieval": retrieval, "sink": sink, "row_entropy": [[1, 2], [3, 5]][:layers],
        "effective_span": [[4, 8], [100, 300]][:layers], "mean_entropy": [2, 6][:layers],
        "distribution": np.arange(1, layers + 1)[:, None] * np.ones(tokens) / tokens,
    }  # fmt: skip
    return {name: np.array(value, dtype=np.float32) for name, value in values.items()} | {"reached": np.array(seen)}


LOW = [[[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.75]], [[0.1, 0.2, 0.3, 0.4], [0.3, 0.4, 0.2, 0.1]]]
HIGH = [[[0, 0, 0.75, 0.25], [0, 0, 0.5, 0.5]], [[0.2, 0.3, 0.1, 0.4], [0.2, 0.7, 0.0, 0.1]]]


@pytest.fixture
def store(tmp_path):
    kept = Store(tmp_path)
    kept.add("m", unit(0), sample(LOW, [[0, 0], [0.5, 1.0]]))
    kept.add("m", unit(1, notes=("widened",)), sample(HIGH, [[0, 0], [0.0, 0.5]]))
    return kept


@pytest.fixture
def found(store):
    return length_result(store, described(WINDOW, FULL), TOKENS)


def by_kind(found):
    return {kind.kind: kind for kind in found.kinds}


def test_what_a_window_cannot_reach_is_blank_and_the_rest_is_the_mean(found):
    kinds = by_kind(found)
    assert list(kinds) == ["nope", "rope-window", "all"] and [kinds[kind].layers for kind in kinds] == [1, 1, 2]
    window, full = kinds["rope-window"].measures, kinds["nope"].measures
    assert window.mass["begin"] is window.mass["needle"] is window.sink is window.retrieval is None
    assert window.mass["context"].value == pytest.approx(0.5)  # of 0.375 and 0.625
    assert full.mass["needle"].value == pytest.approx(0.4) and full.mass["needle"].n == 2  # of 0.3 and 0.5
    low, high = 0.4 - 12.7062 * 0.1, 0.4 + 12.7062 * 0.1  # one degree of freedom
    assert (full.mass["needle"].low, full.mass["needle"].high) == (pytest.approx(low), pytest.approx(high))
    assert full.sink.value == pytest.approx(0.5) and full.row_entropy.value == pytest.approx(4)
    assert full.retrieval.value == pytest.approx(0.5)  # of 0.75 and 0.25


def test_all_layers_together_sum_to_one_but_blank_scores_do_not_count(found):
    both = by_kind(found)["all"].measures
    assert sum(each.value for each in both.mass.values()) == pytest.approx(1)
    assert both.mass["needle"].value == pytest.approx(0.2)  # half of the layers give it nothing
    assert both.retrieval.value == pytest.approx(0.5)  # the other layer cannot retrieve
    assert both.mean_entropy.value == pytest.approx(4) and both.effective_span.value == pytest.approx(103)


def test_layers_and_heads(found):
    window, full = found.layers
    assert (window.index, window.kind, full.index, full.kind) == (0, "rope-window", 1, "nope")
    assert window.heads["mass.needle"] == window.heads["retrieval"] == window.heads["sink"] == (None, None)
    assert full.heads["mass.needle"] == (pytest.approx(0.25), pytest.approx(0.55))
    assert full.heads["effective_span"] == (100, 300) and window.heads["row_entropy"] == (1, 2)


def test_the_best_heads_come_first_and_those_that_never_retrieve_not(found):
    assert [(each.layer, each.head, each.score.value) for each in found.retrieval_heads] == [(1, 1, 0.75), (1, 0, 0.25)]
    assert found.retrieval_heads[0].needle_mass == pytest.approx(0.55)


def test_sizes_spans_and_notes(found):
    assert found.n == 2 and found.rows == 20 and found.seconds == (1.0, 2.0)
    assert found.uniform == {"begin": 0.025, "needle": 0.025, "context": 0.9, "qc": 0.05}
    assert found.spans == {"begin": (0, 10), "needle": (200, 210), "qc": (QC, TOKENS)}
    assert found.notes == ("widened (1 of 2 samples)",)
    assert found.memory.eager_bytes == 4 * TOKENS**2 * 4 and found.memory.peak_bytes == 101
    assert found.memory.rows_bytes == 4 * 20 * (2 * 60 + 2 * TOKENS)


def test_the_spread_leaves_out_the_ends_and_is_smoothed(found):
    spread = by_kind(found)["nope"].spread
    assert spread.smoothed_tokens == 5  # 100 at 8k, proportionally fewer here
    assert spread.positions[0] == 12 and spread.positions[-1] == TOKENS - 12 - 3 and len(spread.positions) <= 400
    assert spread.values == pytest.approx([2 / TOKENS] * len(spread.values))
    assert by_kind(found)["all"].spread.values == pytest.approx([1.5 / TOKENS] * len(spread.values))


def test_arrays_hold_what_was_measured(store, found):
    arrays = load_file(store.out / "arrays" / "m" / f"{TOKENS}.safetensors")
    assert arrays["mass"].shape == (2, 2, 2, 4) and arrays["retrieval"].shape == (2, 2, 2)
    assert arrays["mass"] == pytest.approx(np.array([LOW, HIGH]))
    assert arrays["reached"].shape == (2, 2, 4) and arrays["reached"].sum() == 12
    assert arrays["distribution"].shape == (2, TOKENS)


def test_a_segment_that_some_texts_lack_is_the_mean_of_those_that_have_it(store):
    spans = {"begin": ((0, 10),), "hint": ((20, 40),), "context": ((10, 20), (40, QC)), "qc": ((QC, 398),)}
    arrays = sample([LOW[0], [[0, 0.5, 0.5, 0], [0, 0.7, 0.3, 0]]], [[np.nan] * 2] * 2,
                    reached=({**REACH, "hint": False}, None), spans=spans, tokens=398)  # fmt: skip
    store.add("m", unit(2, spans, 398), arrays)
    found = length_result(store, described(WINDOW, FULL), TOKENS)
    full = by_kind(found)["nope"].measures
    assert list(found.uniform) == ["begin", "needle", "context", "qc", "hint"]
    assert full.mass["hint"].value == pytest.approx(0.6) and full.mass["hint"].n == 1
    assert full.mass["needle"].value == pytest.approx(0.4) and full.mass["needle"].n == 2
    assert full.retrieval.n == 2 and found.n == 3 and found.spans["hint"] == (20, 40)


def test_a_learned_sink_is_in_reach_of_any_window(tmp_path):
    store = Store(tmp_path)
    store.add("m", unit(0), sample(LOW, [[0, 0], [1, 1]], sink=((0.1, 0.3), (0.5, 0.5))))
    found = length_result(store, described(WINDOW, FULL), TOKENS)
    assert by_kind(found)["rope-window"].measures.sink.value == pytest.approx(0.2)


def test_layers_count_alike_whatever_number_of_heads_they_have(tmp_path):
    store = Store(tmp_path)
    half = [[0.5, 0.5, 0, 0], [np.nan] * 4]
    arrays = sample([half, LOW[1]], [[0, np.nan], [0.5, 1.0]], sink=((0, np.nan), (0.2, 0.4)), reached=(None, None))
    store.add("m", unit(0), arrays)
    layers = replace(FULL, index=0, heads=1), FULL
    (kind,) = length_result(store, described(*layers), TOKENS).kinds
    assert kind.measures.mass["needle"].value == pytest.approx((0.5 + (0.2 + 0.4) / 2) / 2)
    assert kind.measures.retrieval.value == pytest.approx((0 + 0.75) / 2)
    assert kind.measures.sink.value == pytest.approx((0 + 0.3) / 2)


def test_a_model_of_one_kind_has_no_line_for_all(tmp_path):
    store = Store(tmp_path)
    store.add("m", unit(0), sample(LOW[1:], [[1, 1]], sink=((0.5, 0.5),), reached=(None,)))
    assert [kind.kind for kind in length_result(store, described(FULL), TOKENS).kinds] == ["nope"]
    assert length_result(store, described(FULL), 999) is None


def test_a_damaged_sample_is_named(store):
    path = store.out / "samples" / "m" / str(TOKENS) / "0001.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"0001\.safetensors.*Remove it"):
        length_result(store, described(WINDOW, FULL), TOKENS)
