"""The loss in chunks is the loss at once, value and gradients, and never holds the logits of all positions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rnope.kernels import IGNORED, cross_entropy
from rnope.kernels import cross_entropy as _function
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig

module = sys.modules[_function.__module__]
N, WIDTH, VOCAB, SCALE = 61, 24, 97, 0.3


def naive(states: Tensor, weight: Tensor, targets: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """The slow twin: all logits at once."""
    logits = (states @ weight.T).to(torch.promote_types(states.dtype, torch.float32)) * scale
    each = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return each.sum(), each.detach()


def inputs(dtype: torch.dtype = torch.float32, ignored: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(n, WIDTH, generator=generator) for n in (N, VOCAB))
    targets = torch.randint(0, VOCAB, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORED
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def small_chunks(monkeypatch: pytest.MonkeyPatch, positions: int, rows: int) -> None:
    """At most so many float32 positions to a chunk, and rows to a block."""
    monkeypatch.setitem(module.LOGITS_BYTES, "cpu", positions * VOCAB * 4)
    monkeypatch.setitem(module.BLOCK_VALUES, "cpu", rows * VOCAB)


@pytest.mark.parametrize("positions, rows", [(1, 1), (7, 3), (10**6, 10**6)])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_chunks_change_neither_value_nor_gradient(
    positions: int, rows: int, ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chunks(monkeypatch, positions, rows)
    states, weight, targets = inputs(ignored=ignored)
    found = []
    for loss in (cross_entropy, naive):
        total, each = loss(states, weight, targets, scale=SCALE)
        assert total.dtype == each.dtype == torch.float32 and total.requires_grad and not each.requires_grad
        found.append((total.detach(), each, *torch.autograd.grad(total / 1_000_003, (states, weight))))
    for name, ours, theirs in zip(("total", "each", "states", "weight"), *found, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=2e-5, atol=1e-6 * float(theirs.abs().max()), msg=lambda text, n=name: f"{n}: {text}"
        )
    assert torch.equal(found[0][1] == 0, targets == IGNORED)


def test_the_scale_counts() -> None:
    states, weight, targets = inputs()
    a, b = (cross_entropy(states, weight, targets, scale=scale)[0].detach() for scale in (SCALE, 1.0))
    assert abs(float(a - b)) > 1
    torch.testing.assert_close(a, cross_entropy(states * SCALE, weight, targets)[0].detach())


def test_gradients_are_those_of_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chunks(monkeypatch, 14, 4)
    states, weight, targets = inputs(torch.float64)
    total, each = cross_entropy(states, weight, targets, scale=SCALE)
    assert total.dtype == each.dtype == torch.float64

    def loss(s: Tensor, w: Tensor) -> Tensor:
        return cross_entropy(s, w, targets, scale=SCALE)[0]

    assert torch.autograd.gradcheck(loss, (states, weight), fast_mode=True)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_in_16_bits_sums_are_float32(weight_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float64 as the naive loss, over many chunks, whatever factor the loss is divided by."""
    small_chunks(monkeypatch, 2, 2)
    states, weight, targets = inputs(torch.bfloat16)
    weight = weight.detach().to(weight_dtype).requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (states, weight)]
    truth = torch.autograd.grad(naive(*exact, targets, scale=SCALE)[0] / 1_000_003, exact)
    total, each = cross_entropy(states, weight, targets, scale=SCALE)
    torch.testing.assert_close(each.double(), naive(*exact, targets, scale=SCALE)[1], rtol=0.02, atol=0.02)
    assert total.dtype == torch.float32 and torch.equal(total, each[targets != IGNORED].sum())
    ours = torch.autograd.grad(total / 1_000_003, (states, weight))
    assert [x.dtype for x in ours] == [torch.bfloat16, weight_dtype]
    for mine, right in zip(ours, truth, strict=True):
        error = (mine.double() - right).norm() / right.norm()
        assert error < 4e-3 and abs(float((mine.double() * right).sum() / right.square().sum()) - 1) < 1e-3


def test_without_targets_everything_is_zero() -> None:
    for states, targets in (
        (torch.randn(5, WIDTH), torch.full((5,), IGNORED)),
        (torch.randn(0, WIDTH), torch.zeros(0, dtype=torch.int64)),
    ):
        weight = torch.randn(VOCAB, WIDTH, requires_grad=True)
        total, each = cross_entropy(states.requires_grad_(), weight, targets)
        total.backward()
        assert total == 0 and not each.any() and each.shape == targets.shape
        assert states.grad is not None and weight.grad is not None
        assert states.grad.shape == states.shape and not states.grad.any() and not weight.grad.any()


class Products(TorchDispatchMode):
    """Multiply-adds of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm_"):
            a, b = args[-2:]
            self.count += a.numel() * b.shape[-1]
        assert name in ("mm", "addmm_") or "mm" not in name, f"{name} is not counted"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained, products", [((), 1), (("states",), 2), (("weight",), 2), (("states", "weight"), 3)])
def test_only_targets_go_through_the_head_and_only_wanted_gradients_are_made(
    trained: tuple[str, ...], products: int
) -> None:
    states, weight, targets = inputs()
    states.requires_grad_("states" in trained)
    weight.requires_grad_("weight" in trained)
    with Products() as seen:
        total, _ = cross_entropy(states, weight, targets)
        if trained:
            total.backward()
    assert seen.count == products * int((targets != IGNORED).sum()) * WIDTH * VOCAB
    assert (states.grad is not None, weight.grad is not None) == ("states" in trained, "weight" in trained)


def test_validation_makes_no_gradients() -> None:
    states, weight, targets = inputs()
    with Products() as seen, torch.no_grad():
        total, each = cross_entropy(states, weight, targets, scale=SCALE)
    assert seen.count == int((targets != IGNORED).sum()) * WIDTH * VOCAB and not total.requires_grad
    torch.testing.assert_close(each, naive(states, weight, targets, scale=SCALE)[1])


def test_gradients_can_be_had_twice_and_not_be_differentiated() -> None:
    states, weight, targets = inputs()
    total, _ = cross_entropy(states, weight, targets)
    once, again = (torch.autograd.grad(total, (states, weight), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    (gradient,) = torch.autograd.grad(total.square(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("target", [VOCAB, -1])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    states, weight, targets = inputs()
    targets[3] = target
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy(states, weight, targets)


@pytest.mark.filterwarnings("ignore")  # The compiler's own, about what it does itself.
def test_a_compiled_model_has_the_same_loss() -> None:
    model = Decoder(ModelConfig.variant("rnope-swa", "tiny"))
    ids = torch.randint(0, 97, (2, 19), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1, 1).masked_fill(ids < 30, IGNORED)
    found = []
    for compute in (model.loss, torch.compile(model.loss, backend="aot_eager")):
        total, each = compute(ids, targets)
        found.append((total.detach(), each, *torch.autograd.grad(total, list(model.parameters()))))
    torch._dynamo.reset()
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5 * float(eager.abs().max()))


MEASURE = """
import torch
from rnope.kernels import cross_entropy

def most():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM")) * 1024

torch.set_num_threads(1)
vocab, width = 256_000, 32
weight = torch.randn(vocab, width, dtype=torch.bfloat16, requires_grad=True)
states = torch.randn(1024, width, dtype=torch.bfloat16, requires_grad=True)
targets = torch.arange(1024)
cross_entropy(states[:8], weight[:1000], targets[:8])[0].backward()
weight.grad = torch.zeros_like(weight)
before = most()
cross_entropy(states, weight, targets)[0].backward()
print(most() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_vocabulary_of_256000_needs_little_memory() -> None:
    """One chunk of logits, and the weight's gradient in float32 with its copies; all logits in float32 are 1 GB."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**27 + 4 * 2**25 + 50e6
