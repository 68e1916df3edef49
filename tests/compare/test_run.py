"""The comparison from end to end on a recipe so small that nothing is learned: what it leaves, and that it goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import rnope
from rnope.report.gate import Gate
from rnope.results import Results
from rnope.strict import to_plain

SOURCE = Path(__file__).parents[2] / "src"


def stamps(out):
    """Files of finished work -> when they were last written."""
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for kind in ("jobs", "stages", "data")
            for p in (out / kind).rglob("*") if p.is_file()}  # fmt: skip


def same_but_for_time(value):
    """Plain results without what may differ between two runs of the same recipe."""
    if isinstance(value, dict):
        return {k: same_but_for_time(v) for k, v in value.items() if not k.endswith("seconds") and k != "provenance"}
    return [same_but_for_time(v) for v in value] if isinstance(value, list) else value


def test_it_leaves_results_report_figures_and_models(done):
    names = {p.name for p in done.out.iterdir()}
    assert names == {
        "data", "jobs", "stages", "run.jsonl", "results.json", "report.html", "report.md", "figures", ".lock",
        "rope", "rope-extended", "rnope-swa", "swa-rope",
    }  # fmt: skip
    assert Results.load(done.out / "results.json") == done.results
    assert list((done.out / "figures").glob("*.png"))
    assert not [p for p in done.out.rglob("*") if p.name.endswith(".tmp")]
    assert "<html" in (done.out / "report.html").read_text()


def test_every_arm_was_asked_everything_once(done):
    rows = [(r.arm, r.row, r.context_tokens) for r in done.results.needles]
    assert len(rows) == len(set(rows))
    for arm in ("rope", "rnope-swa", "swa-rope", "rope-extended"):
        lengths = {n for a, row, n in rows if (a, row) == (arm, "standard")}
        judged = {"rope": {256, 2048}, "rope-extended": {512, 4096}, "rnope-swa": {256, 512, 2048, 4096}}.get(
            arm, set()
        )
        assert lengths == {128, 256, 512} | judged | ({1024} if arm == "rnope-swa" else set())
        assert {(row, n) for a, row, n in rows if a == arm and row != "standard"} == {
            ("no-needle", 128), ("unseen-keys", 128), ("needle-only", 33),
        }  # fmt: skip
    kinds = {(m.arm, m.context_tokens, m.kind) for m in done.results.attention}
    assert ("rnope-swa", 256, "nope") in kinds and ("rnope-swa", 128, "rope-window") in kinds and len(kinds) == 12


def test_tokens_and_stages_are_counted(done):
    models = {m.arm: m for m in done.results.models}
    assert {a: m.trained_tokens for a, m in models.items()} == {
        "rope": 128, "rope-extended": 256, "rnope-swa": 128, "swa-rope": 128,
    }  # fmt: skip
    one, two = models["rope-extended"].stages
    assert (one.steps, one.tokens, two.steps, two.tokens) == (24, 24 * 128, 8, 8 * 256)
    assert one.thetas == (1e4,) and two.thetas == (1e6,) and models["rope"].stages == (one,)
    assert all(stage.validation["all"] > 0 for m in models.values() for stage in m.stages)
    last = [p for p in done.results.learning if p.arm == "rope-extended"][-1]
    assert (last.stage, last.step, last.tokens) == ("extend", 8, 24 * 128 + 8 * 256)
    assert models["rnope-swa"].layers == ("rope θ 10,000, window 8",) * 3 + ("nope, full",)


def test_the_models_open_here_and_in_transformers(done):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.randint(3, 1024, (1, 300), generator=torch.Generator().manual_seed(0))
    for found in done.results.models:
        folder = done.out / found.folder
        assert folder == done.out / found.arm / "seed-0" / "model"
        model = rnope.load(folder)
        assert tuple(map(str, model.config.layers)) == found.layers
        assert sum(p.numel() for p in model.parameters()) == found.parameters
        if found.arm == "swa-rope":
            assert found.model_type == "rnope"
            continue
        theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            ours, other = model(ids), theirs(ids).logits
        assert torch.allclose(ours, other, atol=2e-4), found.arm
        assert AutoTokenizer.from_pretrained(folder)("hello").input_ids[0] == 1


def test_the_page_compares_nothing_that_was_not_learned(done):
    results, gate = done.results, Gate(done.results)
    assert len(results.differences) >= 3, "they are in the results"
    assert not gate.differences() and len(gate.failed()) == 4
    for verdict in results.verdicts:
        if "quarter of the baseline's cache" not in verdict.claim:  # which is counted, not asked
            assert verdict.verdict == "not testable", verdict
    for name in ("report.md", "report.html"):
        page = re.sub(r"<[^>]+>|data:image/[^\"']+", " ", (done.out / name).read_text())
        assert "Paired differences in score" not in page
        assert "rnope-swa against rope, seed 0: rnope-swa and rope did not learn the task" in page
        assert "No model learned the task" in page
        for arm in ("rope", "rope-extended", "rnope-swa", "swa-rope"):
            assert f"{arm} seed 0 did not learn the task" in page
    assert not (done.out / "figures" / "score.png").exists()


def test_run_again_it_computes_nothing(done, place, again):
    before, started = stamps(done.out), time.monotonic()
    lines = (done.out / "run.jsonl").read_text()
    results, said = again(place, done.out)
    assert "· pretrain ·" not in said and "· pretrain ·" in done.said
    assert stamps(done.out) == before and (done.out / "run.jsonl").read_text() == lines
    assert time.monotonic() - started < 20
    assert same_but_for_time(to_plain(results)) == same_but_for_time(to_plain(done.results))


@pytest.mark.slow
def test_a_sweep_comes_first_and_every_trial_is_recorded(place, recipe, again, done):
    results, _ = again(place, place.root / "swept", recipe())
    trials = {(t.arm, t.setting): t for t in results.trials}
    assert set(trials) == {
        (arm, f"rates × {rate}") for arm in ("rope", "rnope-swa", "swa-rope") for rate in ("1", "0.5")
    }
    assert sum(t.chosen for t in results.trials) == 3 and {t.seed for t in results.trials} == {100}
    chosen = {t.arm: t.setting for t in results.trials if t.chosen}
    for found in results.models:
        assert found.setting == chosen["rope" if found.arm == "rope-extended" else found.arm]
    # Where the first setting was chosen, the models are those of the recipe without a sweep.
    same = {m.arm: m for m in done.results.models}
    for found in results.models:
        if found.setting == "rates × 1":
            assert [s.loss for s in found.stages] == [s.loss for s in same[found.arm].stages]


def children(pid):
    """Ids of the processes that `pid` started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(i) for i in listed.read_text().split()] if listed.exists() else []


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_killed_midway_its_workers_die_and_the_next_call_ends_like_an_uninterrupted_one(done, place, again):
    out = place.root / "killed"
    command = [sys.executable, "-m", "rnope", "compare", str(place.recipe), "--out", str(out), "--corpus",
               str(place.corpus), "--workers", "2"]  # fmt: skip
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(SOURCE)]))
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    workers = []
    try:
        limit = time.monotonic() + 240
        while len(list(out.glob("jobs/*.json"))) < 4:
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        workers = children(process.pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(workers) >= 2
    limit = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(map(alive, workers)), "a worker outlived its parent"
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("jobs/*.json")}
    total = len(list(done.out.glob("jobs/*.json")))
    assert 4 <= len(finished) < total and not (out / "results.json").exists()
    again(place, out)
    assert {name: (out / "jobs" / name).stat().st_mtime_ns for name in finished} == finished, "finished work is kept"
    ours, whole = (to_plain(Results.load(folder / "results.json")) for folder in (out, done.out))
    assert same_but_for_time(ours) == same_but_for_time(whole)
    assert {p.name for p in out.glob("jobs/*.json")} == {p.name for p in done.out.glob("jobs/*.json")}
