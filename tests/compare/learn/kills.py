"""Trains two tiny stages in child processes, and has them killed: the program behind `test_kills`.

    python kills.py FOLDER

In ``FOLDER/whole`` nothing is killed. In ``FOLDER/killed`` a child dies of SIGKILL at each of `MOMENTS`, and the next
one goes on where it was. Torch is loaded once: every child is a fork that has computed nothing before.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from rnope.compare.learn import stage
from rnope.compare.learn.stage import Training, run_stage
from rnope.config import Optimizer, Stage
from rnope.data.needles import WORDS, NeedleTask
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.tokenizer import Tokenizer

VOCAB = 1024
ONE = Stage(
    name="pretrain", steps=60, batch_tokens=128, context_tokens=64, curriculum=(32,), promote_accuracy=0.0,
    warmup_window=3, warmup_steps=5, decay_steps=20, facts=(2, 3),
)  # fmt: skip
TWO = Stage(
    name="extend", steps=30, batch_tokens=128, context_tokens=128, short_context_tokens=32, theta=1e6, decay_steps=10,
    learning_rate_scale=0.5, facts=(2, 6),
)  # fmt: skip
MOMENTS = (
    ("step", 4),  # before the first checkpoint
    ("log", 20),  # half a line of the log
    ("save", 35),  # half a checkpoint, beside its place
    ("rename", 49),  # a whole checkpoint, not yet in its place
    ("renamed", 60),  # the last checkpoint of the first stage in its place, the second stage not begun
    ("step", 76),  # in the second stage
    ("time", 0),  # whenever the parent likes
)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def doom(kind, moment):
    """Have this process die at `moment`, counted in steps of both stages together."""
    save_checkpoint, write, replace, save = stage.save_checkpoint, stage._Log.write, os.replace, torch.save

    def steps(path, progress):
        return progress.step + (ONE.steps if path.parent.name == "two" else 0)

    def half_a_file(state, file):
        save(state, file)
        file.flush()
        os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
        die()

    def half_a_line(log, progress, row_tokens):
        write(log, progress, row_tokens)
        if steps(log.path, progress) == moment:
            os.truncate(log.path, log.path.stat().st_size - 30)
            die()

    def saving(path, model, optimizers, progress):
        if steps(path, progress) == moment:
            torch.save = half_a_file if kind == "save" else save
            os.replace = {"rename": die, "renamed": lambda a, b: (replace(a, b), die())}.get(kind, replace)
        save_checkpoint(path, model, optimizers, progress)

    if kind in ("save", "rename", "renamed"):
        stage.save_checkpoint = saving
    if kind == "log":
        stage._Log.write = half_a_line


def train(folder, kind="", moment=0):
    torch.set_num_threads(1)
    stage.CHECKPOINT_STEPS = 7
    doom(kind, moment)
    training = Training(
        task=NeedleTask(Tokenizer.load(folder.parent)),
        text=np.random.default_rng(9).integers(3, VOCAB, size=5000),
        optimizer=Optimizer(name="muon", weight_decay=0.01),
        learning_rate=1.0,
        seed=3,
    )
    done = [0]

    def tick(steps):
        done[0] += steps
        if kind == "step" and done[0] >= moment:
            die()

    config = ModelConfig.variant("rnope-swa", size="tiny", vocab_size=VOCAB)
    before = None
    for name, plan in (("one", ONE), ("two", TWO)):
        config = plan.changed(config)
        run_stage(Decoder(config, seed=3), plan, training, folder / name, before=before, tick=tick)
        before = folder / name / "checkpoint.pt"


def child(folder, kind="", moment=0):
    """Train in a process of its own; returns the signal it died of, or 0."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(folder, kind, moment)
            code = 0
        finally:
            os._exit(code)
    if kind == "time":
        time.sleep(0.3)
        os.kill(process, signal.SIGKILL)
    return -os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    Tokenizer.train(["the law of needles in hay. " * 20], vocab_size=VOCAB, whole_words=WORDS).save(root)
    assert child(root / "whole") == 0
    for kind, moment in MOMENTS:
        assert child(root / "killed", kind, moment) == signal.SIGKILL, (kind, moment)
    assert child(root / "killed") == 0
