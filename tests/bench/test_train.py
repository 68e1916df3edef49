"""A step of training is the same step for all contestants, and what a run of it leaves. Times are not looked at."""

import json
from dataclasses import asdict

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from rnope.bench.compare import lines
from rnope.bench.figure import draw
from rnope.bench.plan import Plan, full_attention
from rnope.bench.run import bench, describe
from rnope.bench.train import Step
from rnope.bench.train_worker import Trainer
from rnope.bench.worker import Worker
from rnope.errors import ConfigError
from rnope.model.accounting import training_flops
from rnope.model.decoder import Decoder

TOKENS = 61
"""Twelve windows of 5."""


def plan(**changes):
    given = dict(what="train", lengths=(TOKENS,), dtypes=("fp32",), size="tiny", ways=("plain",), repeats=1, quick=True)
    return Plan(**(given | changes))


def steps(chosen, *, who="ours", way="plain", layout="hybrid", dtype="fp32"):
    """A short step, and two whole ones."""
    trainer = Trainer()
    trainer.open(plan=asdict(chosen), who=who, way=way, layout=layout, dtype=dtype, tokens=TOKENS, threads=1)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.step(tokens=7)
    found = [trainer.step(tokens=TOKENS) for _ in range(2)]
    assert found[0]["loss"] == found[1]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert all(seconds > 0 for seconds in found[0]["parts"].values())
    assert found[0]["memory"]["peak_bytes"] >= found[0]["memory"]["base_bytes"] > 0
    return found[0]


@pytest.mark.parametrize("layout", ["hybrid", "full"])
def test_ours_theirs_and_the_formula_are_one_step(layout):
    config = plan().config if layout == "hybrid" else full_attention(plan().config)
    model = Decoder(config, seed=0)
    ids = torch.randint(0, config.vocab_size, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    loss = F.cross_entropy(model(ids)[0, :-1], ids[0, 1:])
    loss.backward()
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters()])
    for who in ("ours", "transformers"):
        seen = steps(plan(), who=who, layout=layout)
        assert seen["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert seen["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize(
    "changes, way, dtype",
    [(dict(), "plain", "bf16"), (dict(), "mixed", "bf16"), (dict(checkpoint=True), "plain", "fp32")],
)
def test_other_ways_to_the_same_loss(changes, way, dtype):
    seen, plain = steps(plan(**changes), way=way, dtype=dtype), steps(plan())
    assert seen["loss"] == pytest.approx(plain["loss"], rel=1e-6 if dtype == "fp32" else 3e-3)
    assert seen["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-5 if dtype == "fp32" else 0.02)


def test_a_whole_run_leaves_file_table_and_figure_and_does_nothing_twice(tmp_path):
    out, chosen = tmp_path / "train.json", plan(peers=("transformers",))
    table = bench(chosen, out, command="rnope bench", console=Console(quiet=True))
    data = json.loads(out.read_text())
    entries = {name: each for row in data["rows"] for name, each in row["contestants"].items()}
    assert all(len(each["samples"]) == 1 and each["error"] is None for each in entries.values())
    ours, theirs = entries["ours hybrid"], entries["transformers sdpa hybrid"]
    assert theirs["facts"]["logits_differ_by"] < 1e-5
    assert theirs["facts"]["memory"]["peak_bytes"] > 100e6
    assert ours["flops"] == theirs["flops"] == training_flops(chosen.config, TOKENS)
    assert set(ours["samples"][0]["parts"]) == {"forward", "backward", "optimizer"}
    assert "the same step" in table and out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    bench(chosen, out, command="rnope bench", console=Console(quiet=True))
    assert json.loads(out.read_text())["rows"] == data["rows"]


def test_what_a_process_cannot_do_is_said_and_so_is_its_end():
    step = Step(plan(variant="swa-rope"), "transformers", "plain", "hybrid", "fp32", TOKENS, 1)
    with pytest.raises(RuntimeError, match="no class of transformers"):
        step.measure()
    worker = Worker("rnope.bench.train_worker", 1)
    worker._process.kill()
    with pytest.raises(RuntimeError, match="ended with -9"):
        worker.ask("step", tokens=2)
    worker.close()


def test_a_dry_run_names_every_contestant():
    text = describe(plan(dtypes=("fp32", "bf16"), ways=("plain", "mixed"), peers=("full", "transformers"), layers=8))
    for name in ("ours full", "ours mixed hybrid", "transformers sdpa full", "expected:"):
        assert name in text
    assert text.count("ours mixed hybrid") == 1  # float32 rows have no mixed precision


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(dtypes=("fp16",)), "dtype = 'fp16': no such dtype"),
        (dict(ways=("compiled",)), "ways = 'compiled': no such way to train"),
        (dict(ways=("mixed",)), "ways = .*: is of bf16, and there is a row of fp32"),
        (dict(lengths=(1,)), "lengths = 1: training needs a token to predict"),
        (dict(layers=6), "num_layers = 6"),
    ],
)
def test_mistakes_name_field_rule_and_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(**changes).config  # noqa: B018


def test_layers_and_checkpointing_keep_files_apart_and_old_files_go_on():
    assert plan(layers=8).identity() != plan().identity() != plan(checkpoint=True).identity()
    assert not {"layers", "checkpoint"} & set(plan().identity())
    assert len(plan(layers=8).config.layers) == 8


def entry(who, took, layout="hybrid", how="", flops=10**9, gigabytes=5.0):
    memory = dict(peak_bytes=int(gigabytes * 1e9), base_bytes=1)
    samples = [dict(seconds=took, parts=dict(forward=took), session=0)]
    return dict(who=who, how=how, layout=layout, dtype="bf16", flops=flops, bytes=0, samples=samples, error=None,
                warm_up_seconds=1.0, facts=dict(loss=10.0, gradient_norm=1.0, memory=memory))  # fmt: skip


def results(tokens=8192, size="100m", window=512, device="cpu", dtype="bf16", **entries):
    named = {" ".join(x for x in (e["who"], e["how"], e["layout"]) if x): e for e in entries.values()}
    row = dict(tokens=tokens, new_tokens=0, threads=1, dtype=dtype, notes=[], contestants=named)
    model = dict(variant="rnope-swa", size=size, parameters=1, layers=4, kinds={}, window=window)
    return dict(plan=dict(what="train", variant="rnope-swa", size=size, device=device), model=model, rows=[row],
                machine=dict(processor="p", cores=2, features=[], versions={}),
                sessions=[dict(date="d", command="c", revision="r", load_average=[0.1])])  # fmt: skip


ENTRIES = dict(
    ours=entry("ours", 4.0),
    full=entry("ours", 7.0, layout="full", flops=2 * 10**9),
    mixed=entry("ours", 5.0, how="mixed", gigabytes=7.0),
    fp8=entry("ours", 2.0, how="fp8"),
    hf=entry("transformers", 10.0, how="sdpa", gigabytes=10.0),
    limit=entry("limit", 1.0, layout="", how="matmul"),
)


def test_speed_and_memory_stand_beside_their_targets():
    found = {(line.figure, line.peer.rsplit(" ", 2)[0]): line for line in lines(results(**ENTRIES))}
    what = "a training step, 8,192 tokens, bf16, 1 thread: ours hybrid"
    against = found[what, "transformers sdpa hybrid"]
    assert (against.ratio, against.target, against.met) == (2.5, 2.3, True)
    assert "2,048 tokens/s" in against.ours and "819 tokens/s" in against.peer
    peak = found[f"peak memory of {what}", ""]
    assert (peak.ratio, peak.target, peak.met) == (5.0, 6.0, True)
    assert found[f"{what}, peak memory", "transformers sdpa hybrid"].ratio == 2.0
    gain = next(line for (figure, peer), line in found.items() if figure == what and "full attention" in peer)
    assert gain.ratio == 1.75 and gain.target is None and "FLOP ratio 2.00" in gain.peer
    fp8 = next(line for (figure, peer), line in found.items() if "fp8" in figure and peer.startswith("ours mixed"))
    assert fp8.ratio == 2.5
    others = [line for line in lines(results(**ENTRIES)) if line not in (against, peak)]
    assert all(line.target is None for line in others)


@pytest.mark.parametrize("change", [dict(tokens=4096), dict(size="tiny"), dict(window=256), dict(device="cuda")])
def test_targets_hold_for_their_model_length_and_machine_alone(change):
    assert all(line.target is None for line in lines(results(**(ENTRIES | change))))


@pytest.mark.parametrize("tokens, target, met", [(65_536, 1.5, True), (131_072, 2.0, False)])
def test_the_gpu_is_held_against_the_paper(tokens, target, met):
    found = lines(results(tokens=tokens, size="8b", device="cuda", **ENTRIES))
    (gain,) = [line for line in found if line.target is not None]
    assert (gain.ratio, gain.target, gain.met) == (1.75, target, met)


def test_the_figure_shows_every_setting():
    data = results(**ENTRIES)
    data["rows"].append(results(tokens=2048, **ENTRIES)["rows"][0])
    data["rows"].append(results(tokens=2048, dtype="fp32", **ENTRIES)["rows"][0])
    assert draw(data).startswith(b"\x89PNG")
    del data["rows"][0]["contestants"]["ours full"]
    assert draw(data).startswith(b"\x89PNG")
    assert draw(results(ours=entry("ours", 4.0) | dict(samples=[]))) is None
