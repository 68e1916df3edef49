"""The log, and the loss by position."""

import json
import math
from itertools import pairwise

import pytest
import torch

from rnope.train.metrics import Log, by_position, memory_bytes, position_edges, position_losses


@pytest.mark.parametrize("row_tokens", [1, 2, 5, 96, 127, 128, 8192])
def test_ranges_double_and_cover_the_row(row_tokens):
    edges = position_edges(row_tokens)
    assert edges[-1] == row_tokens and edges == sorted(set(edges)) and edges[0] >= 1
    if row_tokens >= 128:
        assert len(edges) == 8 and all(b == 2 * a or row_tokens % 128 for a, b in pairwise(edges))


@pytest.mark.parametrize(("row_tokens", "shares"), [(96, 1), (96, 3), (7, 7), (130, 2)])
def test_shares_of_a_row_add_up_to_what_a_plain_loop_finds(row_tokens, shares):
    generator = torch.Generator().manual_seed(row_tokens)
    counted = torch.rand(3, row_tokens, generator=generator) < 0.5
    each = torch.rand(3, row_tokens, generator=generator) * counted
    edges = position_edges(row_tokens)
    length = row_tokens // shares
    sums = sum(
        by_position(each[:, at : at + length], counted[:, at : at + length], torch.arange(at, at + length), edges)
        for at in range(0, row_tokens, length)
    )
    found, begin, wanted = position_losses(sums, edges), 0, {}
    for end in edges:
        if counted[:, begin:end].any():
            total = sum(each[i, p].item() for i in range(3) for p in range(begin, end))
            wanted[f"{begin}-{end - 1}"] = total / int(counted[:, begin:end].sum())
        begin = end
    assert found.keys() == wanted.keys()
    assert all(math.isclose(found[name], wanted[name], rel_tol=1e-6) for name in wanted)


def test_a_resumed_log_forgets_what_came_after_the_checkpoint_and_half_a_line(tmp_path):
    log = Log(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')
    Log(tmp_path, 2, tensorboard=False).write({"step": 3, "loss": 7.0})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 7.0}]


def test_a_loss_that_is_no_number_is_still_json(tmp_path):
    log = Log(tmp_path, 0, tensorboard=False)
    log.write({"step": 1, "loss": math.nan, "by_position": {"0-1": math.inf}})
    assert json.loads(log.path.read_text()) == {"step": 1, "loss": None, "by_position": {"0-1": None}}


def test_memory_is_what_this_process_held():
    before = memory_bytes(torch.device("cpu"))
    held = torch.ones(before // 4 + 2**24)
    assert memory_bytes(torch.device("cpu")) > held.nbytes
