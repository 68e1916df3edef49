"""The mask of `flex`: its blocks hold what is seen and no more than they must, and compiled it gives the same numbers."""

import pytest
import torch

from rnope.kernels import attend, flex
from rnope.kernels.reference import visible

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", [None, 1, 5, 128, 129, 300])
@pytest.mark.parametrize(("tq", "tk"), [(1, 1), (128, 128), (400, 400), (512, 512), (130, 600), (7, 300)])
@pytest.mark.parametrize("bounds", ["window", "documents", "rows"])
def test_blocks_hold_what_is_seen(tq: int, tk: int, window: int | None, bounds: str) -> None:
    rows = torch.randint(tk, (tq,), generator=torch.Generator().manual_seed(tk)) if bounds == "rows" else None
    positions = torch.arange(tk - tq, tk) if rows is None else rows
    starts = torch.stack([positions // 150 * 150, torch.full((tq,), tk - 3)]) if bounds == "documents" else None
    mask = flex.block_mask(*flex.stretches(window, tq, tk, CPU, starts, rows), tk)
    seen = visible(positions, torch.arange(tk), window, starts)
    assert mask.shape == (len(seen), 1, tq, tk)

    down, across = (torch.arange(-(-n // flex.BLOCK) * flex.BLOCK) for n in (tq, tk))
    padded = torch.zeros(len(seen), len(down), len(across), dtype=torch.bool)
    padded[:, :tq, :tk] = seen
    blocks = padded.unflatten(2, (-1, flex.BLOCK)).unflatten(1, (-1, flex.BLOCK)).transpose(2, 3)  # b Q K r l
    partial, full = (
        dense(mask.kv_num_blocks, mask.kv_indices),
        dense(mask.full_kv_num_blocks, mask.full_kv_indices),
    )
    assert torch.equal(full, blocks.all(-1).all(-1)) and not (partial & full).any()
    needed = blocks.any(-1).any(-1)
    assert not (needed & ~full & ~partial).any()
    if bounds == "window":
        assert torch.equal(partial, needed & ~full)
    # The backward pass reads the same by columns.
    assert mask.q_num_blocks is not None and torch.equal(mask.q_num_blocks.sum(), mask.kv_num_blocks.sum())


def dense(counts: torch.Tensor | None, places: torch.Tensor | None) -> torch.Tensor:
    """bool [b, Q, K] from lists of blocks."""
    assert counts is not None and places is not None and counts.dtype == places.dtype == torch.int32
    listed = torch.arange(places.shape[-1]) < counts[..., None]
    return torch.zeros_like(listed).scatter(-1, places.long(), listed)[:, 0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of torch, about its own modules.
def test_compiled_on_cpu_it_reads_blocks_and_serves_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window, an offset or a length that is new must not compile again: beyond a limit torch would give up."""
    compiled = flex._compiled()
    monkeypatch.setattr(flex, "kernel", lambda device: compiled)
    requests = [(300, 300, 20), (260, 260, 33), (300, 420, None), (290, 520, 64), (330, 900, 200)]
    for tq, tk, window in requests:
        if tk == 520:
            monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
        q, k, v = (torch.randn(2, h, t, 32) for h, t in ((4, tq), (2, tk + 9), (2, tk + 9)))
        k, v = k[:, :, :tk], v[:, :, :tk]
        with torch.no_grad():
            out, expected = (attend(q, k, v, window=window, backend=name) for name in ("flex", "reference"))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
