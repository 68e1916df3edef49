"""run_distributed against its promises: order, errors with their rank, ends in time, leaves nothing running."""

import multiprocessing
import os
import time
import warnings

import pytest
import torch
import torch.distributed as dist

from rnope.errors import ConfigError
from rnope.testing import run_distributed

KEPT = torch.arange(3)


class Local(Exception):
    """Takes two arguments, so that pickling it by its message alone fails."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def ranks(base, tensor):
    total = torch.tensor([dist.get_rank() + 1])
    dist.all_reduce(total)
    return base + dist.get_rank(), int(total), torch.get_num_threads(), tensor * dist.get_rank()


def fails(how):
    if dist.get_rank() == 1:
        if how == "config":
            raise ConfigError("mesh", 3, "is odd", "Even it.")
        if how == "local":
            raise Local(1, 2)
        if how == "dies":
            os._exit(7)
        time.sleep(60)
    dist.barrier()  # The others wait, and must not keep the caller waiting.


def test_results_come_in_rank_order_from_one_thread_each():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = run_distributed(ranks, 3, 10, KEPT)
    assert [r[:3] for r in results] == [(10, 6, 1), (11, 6, 1), (12, 6, 1)]
    assert all(torch.equal(r[3], KEPT * i) for i, r in enumerate(results))


def test_an_error_is_its_ranks_own_and_says_where():
    with pytest.raises(ConfigError, match="mesh = 3: is odd") as caught:
        run_distributed(fails, 3, "config")
    assert "On rank 1" in str(caught.value.__cause__) and "in fails" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Local: 1 and 2"):
        run_distributed(fails, 2, "local")


def test_a_dead_rank_and_a_late_one_are_named_and_nothing_runs_on():
    with pytest.raises(RuntimeError, match="rank 1 ended with exit code 7"):
        run_distributed(fails, 2, "dies")
    with pytest.raises(TimeoutError, match="rank 0, 1 of 2"):
        run_distributed(fails, 2, "sleeps", timeout_seconds=2)
    assert not multiprocessing.active_children()
