"""Ratios come from the raw times of one row, and targets stand beside what they were set for and nothing else."""

import pytest

from rnope.bench.compare import lines
from rnope.bench.figure import draw
from rnope.bench.lines import Line, time
from rnope.bench.table import markdown


def entry(who, times, layout="hybrid", how="", dtype="bf16", flops=10**9, **facts):
    samples = [{"seconds": t, "parts": {"prefill": t, "layers": {"rope-window": t / 2}}, "session": 0} for t in times]
    return dict(who=who, how=how, layout=layout, dtype=dtype, flops=flops, bytes=10**6, samples=samples, error=None,
                warm_up_seconds=30.0, facts=facts)  # fmt: skip


def results(what="prefill", tokens=8192, size="100m", window=512, device="cpu", new_tokens=0, **entries):
    names = {" ".join(x for x in (e["who"], e["how"], e["layout"]) if x): e for e in entries.values()}
    model = dict(variant="rnope-swa", size=size, parameters=1, layers=4, kinds={"rope-window": 3, "nope": 1}, kv_heads=2,
                 head_size=8, window=window)  # fmt: skip
    row = dict(tokens=tokens, new_tokens=new_tokens, threads=1, dtype="bf16", notes=["a note"], contestants=names)
    return dict(
        plan=dict(what=what, variant="rnope-swa", size=size, device=device), model=model, rows=[row],
        machine=dict(processor="p", cores=2, features=[], versions={"torch": "2"}),
        sessions=[dict(date="d", command="c", revision="r", load_average=[0.1])],
    )  # fmt: skip


PREFILL = dict(
    ours=entry("ours", [9.0, 4.0, 5.0]),
    full=entry("ours", [10.0, 10.0, 1.0], layout="full", flops=2 * 10**9),
    hf=entry("transformers", [20.0, 12.5, 11.0], how="sdpa"),
    flex=entry("transformers", [8.0], how="flex_attention"),
    f16=entry("llama.cpp", [30.0], how="f16"),
    q8=entry("llama.cpp", [9.0], how="q8_0"),
    limit=entry("limit", [0.5], layout="", how="matmul"),
)


def by_peer(found):
    return {line.peer.rsplit(" ", 2)[0] if "compile" not in line.peer else "flex": line for line in found}


def test_ratios_are_of_medians():
    found = lines(results(**PREFILL))
    ratio = found[0]
    assert (ratio.ratio, ratio.target, ratio.most, ratio.met) == (0.5, 0.75, True, True)
    assert "FLOP ratio 0.50" in ratio.peer
    peers = by_peer(found)
    assert (peers["transformers sdpa hybrid"].ratio, peers["transformers sdpa hybrid"].target) == (2.5, 2.6)
    assert peers["transformers sdpa hybrid"].met is False
    assert peers["flex"].ratio == 1.6 and peers["flex"].met and "22 s to compile" in peers["flex"].peer
    assert peers["llama.cpp q8_0 hybrid"].target == 2.0 and peers["llama.cpp f16 hybrid"].target is None
    share = next(line for line in found if line.figure.endswith("ours hybrid, share of the matmul rate"))
    assert share.ratio == pytest.approx(0.1) and share.unit == "%" and "0 of 2 GFLOP/s" in share.peer


@pytest.mark.parametrize("change", [dict(tokens=4096), dict(size="tiny"), dict(window=256), dict(device="cuda")])
def test_targets_hold_for_their_model_length_and_machine_alone(change):
    assert all(line.target is None for line in lines(results(**(PREFILL | change))))


def test_the_gpu_has_targets_of_its_own():
    layers = entry("ours", [4.0], layer_flops={"rope-window": 10**9})
    found = lines(results(tokens=132_000, size="8b", device="cuda", new_tokens=96, **(PREFILL | {"ours": layers})))
    assert found[0].target == 0.5 and found[0].ratio == 0.4
    found = lines(results(tokens=990_000, size="8b", device="cuda", new_tokens=8, **PREFILL))
    assert found[0].target == 0.3 and found[0].met is False


def test_decode_compares_the_fastest_of_each_and_like_with_like():
    own = dict(a=entry("ours", [0.02], how="bf16"), b=entry("ours", [0.01], how="bf16 compiled int8"))
    theirs = dict(
        c=entry("transformers", [0.06], how="bf16 dynamic"), d=entry("transformers", [0.05], how="bf16 static")
    )
    llama = dict(e=entry("llama.cpp", [0.008], how="q8_0 flash"), f=entry("llama.cpp", [0.009], how="q8_0"))
    found = lines(results("decode", **own, **theirs, **llama))
    best, alike, against = found[:3]
    assert best.ratio == pytest.approx(5.0) and best.target == 2.0 and "int8" in best.ours and "static" in best.peer
    assert alike.ratio == pytest.approx(2.5) and "int8" not in alike.ours
    assert against.ratio == pytest.approx(0.8) and against.target == 0.65 and "q8_0 flash" in against.peer


def test_memory_holds_logical_against_formula_and_held_against_a_block():
    moments = {"after prefill": dict(held_bytes=1300, held_by_kind={}, logical_bytes=1000, formula_bytes=1000)}
    peak = dict(peak_bytes=260, weight_bytes=100, cache_bytes=50, chunk_bytes=50, thin=True)
    found = lines(
        results(
            "memory", a=entry("ours", [1], how="cache", moments=moments), b=entry("ours", [1], how="peak", peak=peak)
        )
    )
    held = next(line for line in found if line.most and "formula" in line.peer)
    assert held.ratio == 1.3 and held.target == pytest.approx((1000 + 2 * 2 * 8 * 2 * 256) / 1000) and held.met
    assert found[-1].ratio == 1.3 and found[-1].met and "thin" in found[-1].figure


def test_attention_is_held_against_the_rate_and_against_flex():
    own = dict(a=entry("ours", [1.0], how="attend", layout="window"))
    peers = dict(b=entry("torch", [1.5], how="flex_attention", layout="window"))
    limit = dict(c=entry("limit", [0.4], layout="", how="matmul"))
    share, flex = lines(results("attention", **own, **peers, **limit))
    assert (share.ratio, share.target, share.met) == (0.4, 0.3, True)
    assert (flex.ratio, flex.target, flex.met) == (1.5, 1.4, True)


def test_the_page_names_machine_command_notes_and_failures():
    data = results(**PREFILL)
    data["rows"][0]["contestants"]["torch x"] = entry("torch", [], how="x") | {"error": "RuntimeError: no"}
    text = markdown(data)
    assert "## Against the targets" in text and "| reached |" in text and "`c`" in text and "torch 2" in text
    assert "- 8,192 tokens, bf16, 1 thread: a note." in text and "torch x failed: RuntimeError: no" in text


@pytest.mark.parametrize("what", ["prefill", "decode", "memory", "attention"])
def test_a_file_without_samples_has_a_page_and_no_figure(what):
    data = results(what, a=entry("ours", []))
    assert draw(data) is None and markdown(data)


def test_numbers_for_readers():
    assert [time(x) for x in (12.34, 1.234, 0.01234, 5e-5)] == ["12.3 s", "1.23 s", "12.3 ms", "50 µs"]
    assert Line(figure="f", ours="o", ratio=0.5, unit="%", target=0.6).cells()[3:] == ["50 %", "≥ 60 %", "no"]
