"""Every peer computes the model that we do, and a whole run of each benchmark leaves its file, table and figure.

Times are not looked at: only that they are there.
"""

import importlib.util
import json

import pytest
import torch
from rich.console import Console

from rnope import cli
from rnope.bench import ours, transformers_peer
from rnope.bench.kit import Kit
from rnope.bench.memory import thin
from rnope.bench.plan import Plan, full_attention
from rnope.bench.prefill import rows as prefill_rows
from rnope.bench.run import bench, describe
from rnope.bench.timing import sync
from rnope.generate import Engine
from rnope.model.accounting import cache_bytes, prefill_flops
from rnope.model.decoder import Decoder

TOKENS = 61
"""Twelve windows of 5."""

needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="needs llama-cpp-python")


def plan(what="prefill", **changes):
    defaults = dict(what=what, lengths=(TOKENS,), dtypes=("fp32",), size="tiny", repeats=1, chunk_tokens=16, quick=True)
    return Plan(**(defaults | changes))


@pytest.fixture
def models():
    return ours.Models(plan())


def run(contestant):
    try:
        contestant.warm_up()
        return contestant.measure(), contestant.logits
    finally:
        contestant.close()


def assert_same(ours, theirs, bound=2e-5):
    assert ours.std() > 0.3 and (ours - theirs).abs().max() < bound


@pytest.mark.parametrize("layout", ["hybrid", "full"])
def test_transformers_reads_a_prompt_to_our_logits(layout, models):
    model, ids = models.get(layout, "fp32"), models.ids(TOKENS)
    sample, own = run(ours.Prefill(model, ids, plan(), 3))
    _, theirs = run(transformers_peer.Prefill(model, ids, "sdpa", 3))
    assert_same(own, theirs)
    with torch.no_grad():
        assert_same(own, model(ids[None])[0, -1])
    assert sample.seconds == pytest.approx(sample.parts["prefill"] + sample.parts["decode"])
    assert set(sample.parts["layers"]) == set(model.config.kinds())


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("layout", ["hybrid", "full"])
def test_transformers_decodes_behind_the_same_cache_to_our_logits(layout, kind, models):
    model = models.get(layout, "fp32")
    sample, own = run(ours.Decode(model, plan("decode", decoded_tokens=4), TOKENS))
    _, theirs = run(transformers_peer.Decode(model, plan("decode", decoded_tokens=4), TOKENS, kind))
    assert_same(own, theirs)
    assert len(sample.parts["tokens"]) == 4


@needs_llama
def test_llama_cpp_reads_and_decodes_to_our_logits(models, tmp_path):
    from rnope.bench import llama_peer

    model, ids = models.get("hybrid", "fp32"), models.ids(TOKENS)
    _, own = run(ours.Prefill(model, ids, plan(), 0))
    files = llama_peer.Files()
    try:
        path = files.get(model, "f32", "hybrid")
        peer = llama_peer.Prefill(path, 1, ids)
        _, theirs = run(peer)
        assert_same(own, theirs, 3e-3)  # Its keys and values are float16.
        assert len(peer.facts["tried_seconds"]) == 5 and peer.facts["setting"]["ubatch"] in (512, 2048)
        sample, _ = run(llama_peer.Decode(path, 1, ids, plan(decoded_tokens=3), flash=True))
        assert len(sample.parts["tokens"]) == 3
    finally:
        files.close()
    assert not path.exists()


@needs_llama
def test_a_process_of_llama_cpp_that_fails_says_so(tmp_path):
    from rnope.bench import llama_peer

    (tmp_path / "m.gguf").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match=r"no setting of llama.cpp works.*cannot load"):
        run(llama_peer.Prefill(tmp_path / "m.gguf", 1, torch.tensor([1, 2])))
    worker = llama_peer.Worker(1)
    worker._process.kill()
    with pytest.raises(RuntimeError, match="ended with -9"):
        worker.ask("logits")
    worker.close()


def test_layouts_and_dtypes_are_one_set_of_weights(models):
    hybrid, full = models.get("hybrid", "fp32"), models.get("full", "fp32")
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(hybrid.parameters(), full.parameters(), strict=True))
    half = models.get("hybrid", "bf16")
    assert torch.equal(half.embedding.weight, hybrid.embedding.weight.bfloat16())
    sync(torch.device("cpu"))


def test_a_filled_state_is_one_that_the_engine_could_have_made(models):
    engine = Engine(models.get("hybrid", "fp32"))
    state = ours.filled(engine, TOKENS)
    assert state.tokens == TOKENS and state.logical_bytes == engine.cache_bytes(TOKENS)
    keys, _ = ours.random_keys_values(engine.config, TOKENS, 0, torch.float32, torch.device("cpu"))
    recent, _ = state.layers[0].recent()
    assert torch.equal(recent, keys[:, :, -4:])


def test_what_does_not_fit_is_said_by_bytes_and_the_longest_that_does_is_added():
    kit = Kit(plan(lengths=(200, 5000), new_tokens=(2, 2)))
    try:
        full = kit.models.configs["full"]
        kit.free = kit.needed_bytes(full, 3328, "fp32")  # Whole blocks of 256.
        rows = prefill_rows(kit.plan, kit)
        assert [(row.tokens, row.new_tokens) for row in rows] == [(200, 2), (3300, 2), (5000, 2)]
        missing = kit.needed_bytes(full, 5002, "fp32") - kit.free
        assert rows[0].notes == rows[1].notes == [] and f"{missing:,} bytes" in rows[2].notes[0]
        with pytest.raises(ValueError, match="does not fit"):
            next(e for e in rows[2].entries if e.name == "ours full").make()
    finally:
        kit.close()


def test_a_thin_model_has_the_caches_of_the_other():
    config = plan().config
    for n in (3, 700):
        assert cache_bytes(thin(config), n) == cache_bytes(config, n)
    assert cache_bytes(full_attention(thin(config)), 50) == cache_bytes(full_attention(config), 50)


def test_flops_by_kind_are_those_of_the_model(models):
    from rnope.bench import cost

    config = models.get("hybrid", "fp32").config
    head = 2 * config.width * config.vocab_size
    assert (
        sum(cost.by_kind(config, 40).values()) + head
        == prefill_flops(config, 40, skip=True)
        == cost.prefill(config, 40)
    )
    assert cost.attention(2, 8, 10, None, queries=1) == 4 * 2 * 8 * 10


RUNS = {
    "attention": dict(peers=("full",), dtypes=("bf16",)),
    "prefill": dict(peers=("full", "transformers"), new_tokens=(2,)),
    "decode": dict(peers=("full", "transformers"), ways=("plain",), decoded_tokens=2),
    "memory": dict(peers=("transformers",), peak="thin", peak_tokens=300),
}


@pytest.mark.parametrize("what", RUNS)
def test_a_whole_run_leaves_file_table_and_figure_and_does_nothing_twice(what, tmp_path, capsys):
    out, chosen = tmp_path / f"{what}.json", plan(what, **RUNS[what])
    table = bench(chosen, out, command="rnope bench", console=Console(quiet=True))
    data = json.loads(out.read_text())
    entries = [each for row in data["rows"] for each in row["contestants"].values()]
    assert entries and all(len(each["samples"]) == 1 and each["error"] is None for each in entries)
    assert all(sample["seconds"] > 0 for each in entries for sample in each["samples"])
    assert {"date", "command", "revision", "load_average"} == set(data["sessions"][0])
    assert {"processor", "cores", "features", "versions"} == set(data["machine"])
    assert "| ours |" in table and out.with_suffix(".md").read_text() == table
    if what == "memory":
        assert "logical equal" in table and "DIFFERENT" not in table
        peak = next(each["facts"]["peak"] for each in entries if each["how"] == "peak")
        assert peak["peak_bytes"] > peak["weight_bytes"] > 0 and peak["tokens"] == 300
    if what == "attention":
        assert not out.with_suffix(".png").exists()
    else:
        assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    bench(chosen, out, command="rnope bench", console=Console(quiet=True))
    again = json.loads(out.read_text())
    assert again["rows"] == data["rows"] and len(again["sessions"]) == 2
    assert cli.run(["bench", "figure", str(out)]) == 0 and str(out.with_suffix(".md")) in capsys.readouterr().out


@pytest.mark.parametrize("what", RUNS)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(what):
    text = describe(plan(what, **RUNS[what]))
    assert "parameters on cpu" in text and "window 5" in text and "expected:" in text and "min" in text
    assert "windowed layers blockwise" in text


def test_time_that_is_up_stops_between_measurements(tmp_path):
    out = tmp_path / "p.json"
    text = bench(plan(peers=()), out, command="x", console=Console(quiet=True), stop_after=1e-9)
    assert (
        "Stopped before" in text
        and json.loads(out.read_text())["rows"][0]["contestants"]["ours hybrid"]["samples"] == []
    )


def test_a_model_that_no_class_of_transformers_has_is_a_failure_of_that_peer_alone(tmp_path):
    with pytest.raises(ValueError, match="no class of transformers"):
        transformers_peer.hf_model(
            Decoder(
                plan(variant="rnope-2m", size="tiny").config.with_layers(
                    (*plan().config.layers[:3], *plan(variant="rope").config.layers[:1])
                )
            ),
            "sdpa",
            8,
        )
