"""The plan in words: every number that matters, its mark beside it, what is shared once."""

import re
import subprocess
import sys

import pytest

from rnope import recipes
from rnope.train.plan import plan
from rnope.train.preview import describe, shown


def plans(name, *changes, **options):
    recipe = recipes.load_training(name, changes)
    return [plan(recipe, arm, **options) for arm in recipe.arms]


@pytest.fixture(scope="module")
def text():
    return describe(*plans("paper-main", "stages.cooldown-32k.steps=9_000", "optimizer.eps=1e-9", ranks=256))


def line(text, start):
    (found,) = [line for line in text.splitlines() if re.match(rf"\s*{re.escape(start)}( |$)", line)]
    return found


def part(text, start, end):
    return text[text.index(start) : text.index(end, text.index(start))]


def test_each_value_with_where_it_is_from(text):
    rope = text[: text.index("paper-main · rnope-swa")]
    assert re.search(r"  theta +10,000  assumed: 2\.1 has it for the ablation", rope)
    assert re.search(r"  betas +0\.9, 0\.95  assumed: usual at this size", rope)
    assert re.search(r"  eps +1e-09  given", rope)
    assert re.search(r"  ffn_width +14,336  paper: table 1: 28,672 is gate and up", rope)
    long = part(rope, "stage 3 of 5: cooldown-32k", "stage 4 of 5")
    assert re.search(r"  steps +9,000  given", long) and re.search(r"  theta +1,000,000  paper: 4", long)
    assert re.search(r"  mixture +text longer than 8,192  assumed: documents that a short row", long)
    assert re.search(r"  precision +bf16  paper: 4", long)


def test_layers_steps_rates_and_cost(text):
    rope, hybrid = text[: text.index("paper-main · rnope-swa")], text[text.index("paper-main · rnope-swa") :]
    assert "8,028,033,024 parameters on 256 × H100: 8 share a row, 32 such groups a batch; 40% of the peak" in rope
    assert rope.count("  layers\n") == 3 and "rope θ 8,000,000, full" in rope
    assert hybrid.count("  layers\n") == 1 and "0–2  rope θ 10,000, window 4,096" in hybrid
    assert "6.25e-07 at the first step, 0.005 at step 8,000, 0.00025 at the last" in rope
    assert "596,046 steps of 1,024 rows: 2 micro-batches, each group of 8 takes 16" in rope
    assert "596,046 steps, 5 trillion tokens" in rope and "2.73e+23: layers' matrices 77%" in rope
    assert re.search(r"  time +4,924 GPU-days, 19\.2 days; 2\.79 s a step", rope)


def test_joints_say_whether_the_rate_is_continuous(text):
    assert re.search(r"  pretrain → cooldown-8k +0\.00025 → 0\.00025 +continuous", text)
    assert re.search(r"  cooldown-128k → sft +1e-06 → 1\.25e-06 +a jump to 1\.25 times", text)
    assert text.count("continuous\n") == 6


def test_what_the_data_must_say(text):
    sft = part(text, "stage 5 of 5: sft", "where stages join")
    assert "as many as the data has: give its folders with --data to know" in sft and "unknown at the last" in sft
    assert "0.25 of the steps of 32 rows: one micro-batch" in sft
    assert re.search(r"in all without sft: [\d.]+ trillion tokens, 2\.97e\+23 FLOPs, 5,\d\d\d GPU-days, 2\d days", text)


def test_what_arms_share_is_written_once():
    text = describe(*plans("paper-ablation", ranks=64))
    assert text.count("weight_decay") == 1 and text.count("(the rest as rope's)") > 10
    assert text.count("trained once, also for rnope-100k, rnope-2m, rnope-4m, rnope-10k-swa") == 1
    assert text.count("trained once: see rnope-10k") == 4
    swa = text[text.index("paper-ablation · rnope-10k-swa") :]
    assert re.search(r"  rope_window +8,192  paper: 2\.2\.3", swa) and re.search(r"  theta +–\n", swa)
    assert "1  rope θ 10,000, window 8,192" in swa
    # Four pretrainings and eight fine-tunings.
    assert "8 arms, in all: 3.02 trillion tokens" in text


def test_one_arm_alone_is_written_out():
    recipe = recipes.load_training("paper-ablation")
    text = describe(plan(recipe, recipe.arm("rnope-2m"), ranks=64))
    assert "trained once, also for rnope-10k, rnope-100k, rnope-4m, rnope-10k-swa" in text
    assert "the rest as" not in text and "arms, in all" not in text and "weight_decay" in text


def test_bytes_of_each_gpu_and_whether_they_fit():
    (text,) = [describe(made) for made in plans("paper-ablation", ranks=64)[:1]]
    assert "memory of each GPU, of 80 GiB" in text and "!" not in text
    assert re.search(r"  weights, float32 +479 MiB +479 MiB", text)
    assert "activations, checkpointed *" in text and "in all, with *" in text
    text = describe(plans("paper-ablation", "execution.checkpoint_activations=false", ranks=64, gpu="RTX 4090")[0])
    assert "activations, all kept *" in text and "  ! more than the GPU has" in text
    assert re.search(r"  in all, with \* +\d\d\.\d GiB !  \d\d\.\d GiB !\n", text)


def test_a_small_run_on_one_gpu():
    text = describe(*plans("cpu-train", ranks=1))
    assert "on 1 × H100: each has rows of its own" in text and "each GPU takes 8" in text
    assert "GPU-days" not in text and re.search(r"0\.\d+ seconds; ", text)
    assert re.search(r"  extend → sft +0\.0001 → 0\.0004 +a jump to 4 times", text)
    assert "window" not in part(text, "\nmodel", "\noptimizer")  # The baseline has none.


def test_lines_are_aligned(text):
    section = part(text, "\noptimizer", "\nschedule").strip().splitlines()[1:]
    assert len({line.index("  assumed") if "assumed" in line else line.index("  given") for line in section}) == 1
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "yes"), (False, "no"), (4194304, "4,194,304"), (7e-3, "0.007"), (3.5e-4, "0.00035"), (2e6, "2,000,000"),
        (0.0, "0"), (1e-8, "1e-08"), ("cosine", "cosine"), ([0.9, 0.95], "0.9, 0.95"),
        ([{"source": "a", "weight": 1.0, "longer_than": 0}, {"source": "b", "weight": 2.5, "longer_than": 8192}],
         "a, b longer than 8,192 × 2.5"),
    ],
)  # fmt: skip
def test_values_as_a_reader_wants_them(value, words):
    assert shown(value) == words


def test_no_torch_is_loaded():
    code = (
        "import sys; from rnope import recipes; from rnope.train.plan import plan; from rnope.train.preview import describe;"
        "r = recipes.load_training('cpu-train'); describe(plan(r, r.arms[0], ranks=1)); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
