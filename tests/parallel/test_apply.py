"""A decoder over ranks against one process: weights bit for bit, loss and gradients, in every precision and wrapping."""

import importlib.metadata
import math
import warnings
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rnope.errors import ConfigError
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.parallel import float8
from rnope.parallel.apply import apply, full_state, load_full_state
from rnope.parallel.mesh import joined
from rnope.testing import run_distributed

ROWS, LENGTH, SEED = 4, 22, 5


GRAPHS = []


def counted(graph, inputs):
    """A backend that leaves graphs as they are; torch.compile leaves out what it cannot do, and says nothing."""
    GRAPHS.append(graph)
    return graph.forward


class Way(NamedTuple):
    """How a model is applied, and how near it must be."""

    given: dict[str, Any]
    variant: str = "rnope-swa"
    near: float = 1e-5


WAYS = {
    "plain": Way(dict(precision="fp32")),
    "rope": Way(dict(precision="fp32", checkpoint_activations=True), variant="rope"),
    "compiled": Way(dict(precision="fp32", checkpoint_activations=True, compile_blocks=True, compiler=counted)),
    "compiled bf16": Way(dict(precision="bf16", compile_blocks=True, compiler=counted), "swa-only", 0.05),
    "bf16": Way(dict(precision="bf16", checkpoint_activations=True), near=0.05),
    "fp8": Way(dict(precision="fp8"), near=0.3),
}


def config(variant):
    return ModelConfig.variant(variant, size="tiny", num_layers=4)


def batch():
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(0, 97, (2, ROWS, LENGTH), generator=generator)
    targets[0, 3:19] = -100  # Rows, and shares of a row, have different numbers of targets.
    starts = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    starts[:, 9:] = 9
    starts[1, 12:] = 12
    return ids, targets, starts


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def step(model, mesh):
    """Loss and gradients of all rows, each group in two micro-batches; a rank has its share."""
    width = LENGTH // mesh.degree
    columns = slice(mesh.place * width, (mesh.place + 1) * width)
    total = torch.zeros(())
    for first in range(mesh.group * ROWS // mesh.groups, (mesh.group + 1) * ROWS // mesh.groups):
        ids, targets, starts = (x[first : first + 1, columns].contiguous() for x in batch())
        loss, _ = model.loss(ids, targets, positions=torch.arange(columns.start, columns.stop), starts=starts)
        loss.backward()
        total += loss.detach()
    if mesh.ranks > 1:
        dist.all_reduce(total)
    return total


def reference(variant):
    model = Decoder(config(variant), seed=SEED)
    ids, targets, starts = batch()
    total, _ = model.loss(ids, targets, starts=starts)
    total.backward()
    return model, total.detach()


def gap(ours, right):
    return float((ours - right).norm() / right.norm())


def applied(degree, names):
    """Of each way: what is not as one process has it."""
    found = []
    GRAPHS.clear()
    with joined(degree, device="cpu") as mesh:
        for name in names:
            way = WAYS[name]
            warnings.simplefilter("ignore" if name.startswith(("compiled", "fp8")) else "error")
            right, loss = reference(way.variant)
            model = apply(config(way.variant), mesh, seed=SEED, **way.given)
            wrong = []
            if list(model.state_dict()) != list(right.state_dict()):
                wrong.append(f"names {list(model.state_dict())[:3]}")
            state = full_state(model, mesh)
            if set(state) != (set(right.state_dict()) if mesh.rank == 0 else set()):
                wrong.append("names of the full state")
            wrong += [key for key, value in state.items() if not torch.equal(value, right.state_dict()[key])]
            pairs = list(zip(model.named_parameters(), right.parameters(), strict=True))
            if {weight.dtype for (_, weight), _ in pairs} != {torch.float32}:
                wrong.append("weights are not float32")
            ours = step(model, mesh)
            if gap(ours, loss) > way.near:
                wrong.append(f"loss {ours} for {loss}")
            for (key, weight), twin in pairs:
                grad = whole(weight.grad)
                if grad.dtype != torch.float32 or gap(grad, twin.grad) > way.near:
                    wrong.append(f"gradient of {key}: {gap(grad, twin.grad):.1e}")
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            right_norm = torch.nn.utils.clip_grad_norm_(right.parameters(), 0.5)
            if (
                gap(whole(norm), right_norm) > way.near
                or gap(whole(model.norm.weight.grad), right.norm.weight.grad) > way.near
            ):
                wrong.append(f"clipping: {whole(norm)} for {right_norm}")
            with torch.no_grad():  # As validation does, and after it another step.
                step_without = model.loss(*(x[:1, : LENGTH // mesh.degree] for x in batch()[:2]))[1]
            if not math.isfinite(float(step_without.sum())):
                wrong.append("no loss without gradients")
            again = full_state(model, mesh)  # Not the copies that such a pass may leave gathered.
            wrong += [f"{key} after" for key, value in again.items() if not torch.equal(value, state[key])]
            if bool(GRAPHS) != name.startswith("compiled"):
                wrong.append(f"{len(GRAPHS)} graphs")
            found.append((name, mesh.rank, wrong))
    return found


@pytest.mark.parametrize(("ranks", "degree", "names"), [
    (2, 1, ["plain", "rope", "bf16", "fp8"]),
    (2, 2, ["plain", "compiled"]),
    (4, 2, ["plain", "rope", "bf16"]),
])  # fmt: skip
def test_many_ranks_are_one_process(ranks, degree, names):
    for results in run_distributed(applied, ranks, degree, names):
        assert not [result for result in results if result[2]]


@pytest.mark.parametrize("name", ["plain", "rope", "bf16", "fp8", "compiled bf16"])
@pytest.mark.filterwarnings("default")
def test_one_process_needs_no_process_group(name):
    assert not applied(1, [name])[0][2]
    assert not dist.is_initialized()


def seen_and_loaded():
    """Dtypes of what blocks get, and whether weights that are put in come out."""
    with joined(1, device="cpu") as mesh:
        model = apply(config("rnope-swa"), mesh, seed=SEED, precision="bf16")
        found = []
        model.blocks[0].register_forward_pre_hook(lambda _, given: found.append(given))
        with torch.no_grad():
            model.loss(*batch()[:2], positions=torch.arange(100_003, 100_003 + LENGTH))
        (x, tables), *_ = found
        other = Decoder(config("rnope-swa"), seed=SEED + 1).state_dict()
        load_full_state(model, mesh, other if mesh.rank == 0 else None)
        state = full_state(model, mesh)
        same = all(torch.equal(state[name], other[name]) for name in other) if mesh.rank == 0 else state == {}
        return x.dtype, {table.dtype for pair in tables.values() for table in pair}, same


def test_rotary_tables_stay_float32_and_weights_can_be_put_in():
    expected = (torch.bfloat16, {torch.float32}, True)
    assert [*run_distributed(seen_and_loaded, 2), seen_and_loaded()] == [expected] * 3


@pytest.mark.parametrize(("given", "times"), [({}, 1), ({"checkpoint_activations": True}, 2)])
def test_checkpointed_blocks_compute_again(given, times):
    with joined(1, device="cpu") as mesh:
        model = apply(config("rnope-swa"), mesh, precision="fp32", **given)
    calls = []
    model.blocks[1].attention.register_forward_hook(lambda *_: calls.append(1))
    model.loss(*batch()[:2])[0].backward()
    assert len(calls) == times


@pytest.mark.filterwarnings("default")
def test_float8_takes_the_matrices_whose_sizes_allow_it():
    with torch.device("meta"):
        model = Decoder(ModelConfig.variant("rnope-swa", size="tiny", head_size=4))  # keys and values have 8 rows
    names = list(model.state_dict())
    float8.use_float8(model, torch.device("cpu"))
    changed = {name.split(".", 2)[2] for name, module in model.named_modules() if "Float8" in type(module).__name__}
    assert changed == {
        "attention.query",
        "attention.output",
        "feed_forward.gate",
        "feed_forward.up",
        "feed_forward.down",
    }
    assert list(model.state_dict()) == names and type(model.embedding) is torch.nn.Embedding


def test_float8_that_is_not_to_be_had_is_refused(monkeypatch):
    def version_of(text):
        monkeypatch.setattr(importlib.metadata, "version", lambda name: text)

    with torch.device("meta"):
        odd = Decoder(ModelConfig.variant("rnope-swa", size="tiny", width=40, ffn_width=40, head_size=10, kv_heads=4))
    with pytest.raises(ConfigError, match="multiples of 16"):
        float8.use_float8(odd, torch.device("cpu"))
    version_of("0.9.0+cu126")
    with pytest.raises(ConfigError, match=r"needs torchao 0\.14 or newer, and here is 0\.9\.0"):
        float8.use_float8(odd, torch.device("cpu"))

    version_of("0.14.0")
    with (
        monkeypatch.context() as older,
        pytest.raises(ConfigError, match=r"needs torch 2\.11 or newer, and here is 2\.9"),
    ):
        older.setattr(torch, "__version__", "2.9.1")
        float8.use_float8(odd, torch.device("cpu"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match="needs torchao, which is not installed"):
        float8.use_float8(odd, torch.device("cpu"))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    with pytest.raises(ConfigError, match="A100 has no float8"):
        float8.use_float8(odd, torch.device("cuda", 0))
