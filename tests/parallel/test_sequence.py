"""Rows over several ranks against rows on one: loss, every gradient, and the bytes that travel, counted and by formula."""

import warnings
from collections import Counter
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from rnope.config.execution import check_heads
from rnope.errors import ConfigError
from rnope.kernels import IGNORED
from rnope.model.spec import ModelConfig
from rnope.parallel.mesh import joined
from rnope.parallel.sequence import Exchange, SequenceParallel, hops, sent_bytes, share_rows
from rnope.testing import run_distributed, tiny_model

ROWS = 2
TOLERANCE = 1e-5


class Case(NamedTuple):
    variant: str
    tokens: int
    """Of a share."""
    overrides: dict[str, Any]
    documents: bool = False
    compiled: bool = False


def batch(length, documents):
    """Ids, targets (some ignored), and starts: a document of one token, one that crosses shares, one to the end."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 97, (ROWS, length), generator=generator)
    targets = torch.randint(0, 97, (ROWS, length), generator=generator)
    targets[:, ::5] = IGNORED
    starts = torch.zeros(ROWS, length, dtype=torch.int64)
    for row, bounds in enumerate(((1, 2, length // 2 - 1), (length // 3, length - 1))):
        for bound in bounds:
            starts[row, bound:] = bound
    return ids, targets, starts if documents else None


def stirred(case):
    """A model whose norms are not all ones, so that heads in the wrong order show."""
    model = tiny_model(case.variant, **case.overrides)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.5, generator=generator)
    return model


def gap(ours, right):
    return float((ours - right).abs().max() / right.abs().max().clamp(min=1e-30))


def compared(cases, degree):
    """For each case: how far loss and gradients are from one process, and whether the bytes are the formula's."""
    found = []
    with joined(degree, device="cpu") as mesh:
        for case in cases:
            warnings.simplefilter("ignore" if case.compiled else "error")  # torch's compiler warns of itself
            length = case.tokens * degree
            ids, targets, starts = batch(length, case.documents)
            right, model = stirred(case), stirred(case)
            whole, _ = right.loss(ids, targets, starts=starts)
            whole.backward()
            parallel = share_rows(model, mesh)
            if case.compiled:
                for block in model.blocks:
                    block.compile(backend="aot_eager")
            mine = slice(mesh.place * case.tokens, (mesh.place + 1) * case.tokens)
            total, _ = model.loss(
                ids[:, mine].contiguous(),
                targets[:, mine].contiguous(),
                positions=torch.arange(mine.start, mine.stop),
                starts=None if starts is None else starts[:, mine].contiguous(),
            )
            total.backward()
            loss = total.detach().clone()
            dist.all_reduce(loss)
            errors = {"loss": gap(loss, whole.detach())}
            for (name, weight), wanted in zip(model.named_parameters(), right.parameters(), strict=True):
                dist.all_reduce(weight.grad)
                errors[name] = gap(weight.grad, wanted.grad)
            found.append((errors, dict(parallel.ledger.bytes) == expected(right.config, length, mesh, case.documents)))
    return found


def expected(config, length, mesh, documents):
    total = Counter()
    for spec in config.layers:
        sent = sent_bytes(
            spec, config, rows=ROWS, row_tokens=length, ranks=mesh.degree, rank=mesh.place, bytes_per_value=4,
            starts=documents,
        )  # fmt: skip
        kind = "full" if spec.window is None else "window"
        if hops(spec.window or 2, length // mesh.degree, mesh.degree):  # Without a hop nothing is noted, not even 0.
            total[kind, "forward"] += sent.forward
            total[kind, "backward"] += sent.backward
    return dict(total)


def check(cases, degree):
    for rank, results in enumerate(run_distributed(compared, degree, cases, degree)):
        for case, (errors, counted) in zip(cases, results, strict=True):
            worst = max(errors, key=errors.get)
            assert errors[worst] < TOLERANCE, f"rank {rank}, {case}: {worst} is {errors[worst]:.1e} away"
            assert counted or case.compiled, f"rank {rank}, {case}: bytes"


def windows(tokens, degree):
    """1, below, equal to, one and more above a share; over several shares and over the row."""
    return [1, 2, tokens - 2, tokens, tokens + 1, tokens + 2, 2 * tokens + 2, degree * tokens, 3 * degree * tokens]


def grids(tokens, degree):
    kinds = [
        ("rope", dict(num_layers=2)),
        ("qk-norm", dict(num_layers=2, heads=8, kv_heads=4)),
        ("rnope-swa", dict(window=tokens + 2)),
        ("rnope", dict(num_layers=2, heads=8, kv_heads=1)),
        ("rope", dict(num_layers=2, heads=8, kv_heads=8)),
    ]
    cases = [Case(name, tokens, given, documents) for (name, given), documents in product(kinds, (False, True))]
    for window in windows(tokens, degree):
        cases.append(Case("swa-only", tokens, dict(num_layers=2, window=window), documents=True))
    cases.append(Case("swa-only", tokens, dict(num_layers=2, window=tokens - 1, heads=3, kv_heads=1)))  # odd heads
    return cases


def test_two_ranks_are_one_process():
    compiled = Case("rnope-swa-1to1", 7, dict(num_layers=2), compiled=True)
    check([*grids(11, 2), compiled], 2)


def test_four_ranks_are_one_process():
    assert any(
        case.overrides.get("kv_heads", 2) < 4 and case.overrides.get("heads", 4) > 4 for case in grids(5, 4)
    )  # replication
    check(grids(5, 4), 4)


def traffic(window, tokens):
    """What each rank notes for one layer over two rows, forward and backward."""
    config = tiny_model("rope", num_layers=1).config
    with joined(dist.get_world_size(), device="cpu") as mesh:
        parallel = SequenceParallel(group=mesh.sequence_group, ranks=mesh.degree, rank=mesh.place)
        shapes = [(ROWS, heads, tokens, config.head_size) for heads in (config.heads, config.kv_heads, config.kv_heads)]
        q, k, v = (torch.ones(shape, requires_grad=True) for shape in shapes)
        mixed = parallel(q, k, v, window=window, starts=None, rows=None, backend="auto")
        mixed.sum().backward()
        return dict(parallel.ledger.bytes)


def several(requests):
    return [traffic(*request) for request in requests]


def test_what_a_sliding_layer_sends_does_not_grow_with_the_row():
    requests = [(6, 7), (6, 14), (6, 140), (16, 7), (None, 7), (None, 70)]
    results = run_distributed(several, 4, requests)
    key = 2 * ROWS * 2 * 8 * 4  # bytes: key and value, rows, key-value heads, head size, float32
    for rank, (short, longer, longest, hopping, full, wide) in enumerate(results):
        assert short == longer == longest
        assert short["window", "forward"] == (5 * key if rank < 3 else 0)
        assert short["window", "backward"] == (5 * key if rank > 0 else 0)
        # Fifteen keys from shares of seven: seven to the next rank, seven to the one after, one to the third.
        assert hopping["window", "forward"] == [15, 14, 7, 0][rank] * key
        assert hopping["window", "backward"] == [0, 7, 14, 15][rank] * key
        assert wide == {entry: 10 * sent for entry, sent in full.items()}


def traps():
    """Gradients that arrive with strides of their own, and a graph in one piece; what is not so."""
    wrong = []
    with joined(2, device="cpu") as mesh:
        me, other = mesh.rank, 1 - mesh.rank
        parallel = SequenceParallel(group=mesh.sequence_group, ranks=2, rank=me)

        def drawn(rank):
            return torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(rank))

        weights = drawn(10 + me).permute(2, 0, 1).contiguous()  # so that the gradient of what was received is not

        def weighed(x):
            received = Exchange.apply(x, [1, 1], [1, 1], parallel, "full")
            return (received.permute(2, 0, 1) * weights).sum()

        for way in (weighed, torch.compile(weighed, fullgraph=True, backend="aot_eager")):
            x = drawn(me).requires_grad_()
            total = way(x)
            total.backward()
            expected = torch.stack([(drawn(source)[me] * drawn(10 + me)[source]).sum() for source in (0, 1)]).sum()
            gradient = torch.empty(2, 3, 5)
            gradient[me], gradient[other] = drawn(10 + me)[me], drawn(10 + other)[me]
            if gap(total.detach(), expected) > TOLERANCE or not torch.equal(x.grad, gradient):
                wrong.append((me, way))
    return wrong


def test_gradients_of_any_strides_go_back_and_compilers_see_through():
    assert run_distributed(traps, 2) == [[], []]


def test_hops_by_hand():
    assert hops(1, 4, 8) == []  # itself alone
    assert hops(4, 4, 8) == [3] and hops(5, 4, 8) == [4] and hops(6, 4, 8) == [4, 1]
    assert hops(10, 4, 8) == [4, 4, 1]
    assert hops(100, 4, 3) == [4, 4]  # no further than there are ranks


def test_degrees_that_heads_do_not_allow_are_refused_with_both_numbers():
    config = ModelConfig.variant("rnope-swa", size="tiny", heads=12, kv_heads=4)
    for degree in (1, 2, 4, 12):
        check_heads(config, degree)
    for degree in (3, 5, 6, 8):  # 6 divides the query heads and fits the key-value heads in no way
        with pytest.raises(ConfigError, match=f"= {degree}: .* 12 query heads and 4 key-value heads"):
            check_heads(config, degree)
    check_heads(ModelConfig.variant("swa-only", size="tiny"), 3)


def test_the_papers_size_by_formula():
    """At 128k on eight ranks a full layer sends 294 MB a rank, a sliding one 16.8 MB whatever the length."""
    config = ModelConfig.variant("rnope-swa", size="8b")
    given = dict(rows=1, ranks=8, rank=0, bytes_per_value=2)
    assert sent_bytes(config.layers[0], config, row_tokens=131_072, **given) == (4095 * 2 * 8 * 128 * 2, 0)
    full = 7 * 16_384 * 10 * 128 * 2
    assert sent_bytes(config.layers[3], config, row_tokens=131_072, **given) == (full, full)
