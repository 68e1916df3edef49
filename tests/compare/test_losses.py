"""Loss by position: against a plain reading, and where a position belongs."""

import math

import numpy as np
import pytest
import torch

from rnope.compare import losses
from rnope.compare.losses import loss_row, windows
from rnope.testing import tiny_model

VOCAB = 64
TEXT = np.random.default_rng(0).integers(3, VOCAB, size=500)


def test_windows_are_spread_over_the_text_and_begin_with_bos():
    found = windows(TEXT, bos=1, context_tokens=101, count=5)
    assert all(len(ids) == 101 and ids[0] == 1 for ids in found)
    assert [ids[1:].tolist() for ids in found] == [TEXT[at : at + 100].tolist() for at in (0, 100, 200, 300, 400)]
    (only, last) = windows(TEXT, bos=1, context_tokens=501, count=2)
    assert only.tolist() == last.tolist() == [1, *TEXT.tolist()]


@pytest.mark.parametrize("variant", ["rnope-swa", "qk-norm"])
@torch.no_grad()
def test_losses_are_those_of_a_plain_reading_by_position(variant, monkeypatch):
    monkeypatch.setattr(losses, "_LOGIT_ROWS", 7)
    model, ticks = tiny_model(variant, vocab_size=VOCAB), []
    row = loss_row(model, TEXT, bos=1, arm="a", seed=3, context_tokens=128, count=3, tick=ticks.append)
    assert (row.arm, row.seed, row.context_tokens, row.n, ticks) == ("a", 3, 128, 3, [1, 1, 1])
    by_window = []
    for ids in windows(TEXT, bos=1, context_tokens=128, count=3):
        logs = model(torch.from_numpy(ids)[None])[0].double().log_softmax(-1)
        by_window.append([-logs[i - 1, ids[i]].item() for i in range(1, 128)])  # of token i, which has i before it
    assert [(b.begin, b.end) for b in row.bins] == [(0, 16), (16, 32), (32, 64), (64, 96), (96, 128)]
    for found in row.bins:
        means = [np.mean(window[max(found.begin, 1) - 1 : found.end - 1]) for window in by_window]
        half = 4.302653 * np.std(means, ddof=1) / math.sqrt(3)
        mean = np.mean(means)
        assert (found.loss, found.low, found.high) == pytest.approx((mean, mean - half, mean + half), abs=1e-4)
