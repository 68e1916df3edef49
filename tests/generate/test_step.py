"""One token through `Step`, against its slow twin; in 8 bits against what rounding allows; compiled against plain."""

import copy

import pytest
import torch

from rnope.generate import Engine
from rnope.generate.step import Matrix, Step, times
from rnope.model.decoder import Decoder

LAYOUTS = ["rnope-swa", "rope", "nope", "qk-norm", "swa-only"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def difference(a, b):
    return (a.float() - b.float()).abs().max().item()


def steps(step, engine, ids):
    """Logits [t, vocab], one token after the other from an empty state."""
    state = engine.new_state()
    return torch.stack([step(state, token) for token in ids])


@torch.no_grad()
def forward(model, ids):
    return model(torch.tensor([ids]))[0]


@pytest.mark.parametrize("name", [*LAYOUTS, "every kind"])
def test_a_step_is_the_decoder(name, model, every_kind, text):
    it, ids = every_kind if name == "every kind" else model(name), text(33)
    assert difference(steps(Step(it), Engine(it), ids), forward(it, ids)) < 2e-5


@pytest.mark.parametrize("overrides", [{"head_size": 14}, {"heads": 8, "kv_heads": 1}, {"kv_heads": 4}], ids=str)
def test_other_shapes_too(overrides, model, text):
    for name in ("rnope-swa", "qk-norm"):
        it, ids = model(name, **overrides), text(20)
        assert difference(steps(Step(it), Engine(it), ids), forward(it, ids)) < 2e-5


@pytest.mark.parametrize("name", ["qk-norm", "rnope-swa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_in_16_bits_stays_near_float32(name, dtype, model, text):
    it, ids = model(name), text(33)
    low = copy.deepcopy(it).to(dtype)
    logits, exact = steps(Step(low), Engine(low), ids), forward(it, ids)
    assert logits.dtype == dtype
    assert (logits.float() - exact).std() < (0.05 if dtype == torch.bfloat16 else 0.01) * exact.std()


def test_weights_are_used_and_not_copied(model, text):
    it = copy.deepcopy(model("rnope-swa"))
    step, engine, ids = Step(it), Engine(it), text(7)
    linears = [m for m in it.modules() if isinstance(m, torch.nn.Linear)]
    assert step.bytes == sum(m.weight.nbytes for m in linears) + it.embedding.weight.nbytes
    steps(step, engine, ids)
    with torch.no_grad():
        for m in linears:
            m.weight.mul_(0.7)
    assert difference(steps(step, engine, ids), forward(it, ids)) < 2e-5


# ---- 8 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_8_bits_round_each_row_by_its_own_largest(dtype):
    weight = (torch.randn(64, 48, generator=generator()) * torch.logspace(-3, 1, 64)[:, None]).to(dtype)
    matrix = Matrix.int8(weight)
    assert matrix.weight.dtype == torch.int8 and matrix.weight.abs().max() == 127
    back = matrix.weight.float() * matrix.scale[:, None]
    largest = weight.float().abs().amax(-1, keepdim=True)
    assert ((back - weight.float()).abs() <= largest / 254 * 1.0001).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_8_bits_of_nothing_are_nothing(dtype):
    weight = torch.zeros(3, 5, dtype=dtype)
    weight[1, 2] = 1.0
    product = times(Matrix.int8(weight), torch.ones(5, dtype=dtype))
    assert product.tolist() == [0.0, 1.0, 0.0] and product.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_8_bit_products_are_finite_where_16_bit_ones_are(dtype):
    """1024 times 127 is more than float16 holds; the product, 10.24, is not."""
    weight, x = torch.full((4, 1024), 0.01, dtype=dtype), torch.ones(1024, dtype=dtype)
    plain, rounded = times(Matrix(weight), x), times(Matrix.int8(weight), x)
    assert plain.isfinite().all() and difference(plain, rounded) < 0.01 * plain.abs().max()


def rounded(model):
    """The model with each linear map as 8 bits say it, and the head's matrix; the embedding stays as it is."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, torch.nn.Linear):
                matrix = Matrix.int8(module.weight)
                module.weight.copy_(matrix.weight.float() * matrix.scale[:, None])
    matrix = Matrix.int8(model.embedding.weight)
    return twin, matrix.weight.float() * matrix.scale[:, None]


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_8_bit_logits_are_those_of_the_rounded_weights_and_near_the_full_ones(name, model, text):
    it, ids = model(name), text(33)
    logits = steps(Step(it, int8=True), Engine(it), ids)
    twin, head = rounded(it)
    assert difference(logits, twin.hidden(torch.tensor([ids]))[0] @ head.T * it.config.logit_scale) < 2e-5
    # A rounded weight is off by at most half a step, uniformly: for rows of 32 normal weights, whose largest is about
    # 2.2 sigma, 0.5 % of sigma; a logit adds this up over itself and, of each of 4 layers, about 3 maps in a row.
    exact = forward(it, ids)
    assert 0 < (logits - exact).std() / exact.std() < 2 * 0.005 * (1 + 4 * 3) ** 0.5


def test_an_8_bit_engine_reads_prompts_with_the_full_weights(model, text):
    it, ids = model("rnope-swa"), text(23)
    engine = Engine(it, int8=True)
    state = engine.prefill(ids)
    assert difference(state.logits, forward(it, ids)[-1]) < 2e-5
    twin = state.fork()
    together = engine.step([state, engine.prefill(text(9, 1))], [3, 4])
    assert torch.equal(together[0], engine.step([twin], [3])[0])  # A batch is one at a time: 8 bits for all.
    error = together[0] - forward(it, [*ids, 3])[-1]
    assert 1e-4 < error.std() < 0.05 * together[0].std()


def test_8_bits_cost_a_byte_per_weight(model):
    it = model("rnope-swa")
    assert Step(it, int8=True).bytes * 4 == Step(it).bytes


# ---- compiled

# What torch itself imports when it compiles.
compiling = pytest.mark.filterwarnings("ignore:`torch.jit.*deprecated:DeprecationWarning")


def compiled_is_plain(it, ids):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    engine, plain = Engine(it, compiled=True), Engine(it)
    assert engine.compile_seconds is None and plain.compile_seconds is None
    state, twin = engine.prefill(ids[:3]), plain.prefill(ids[:3])
    assert engine.compile_seconds is None  # Reading compiles nothing.
    logits = [engine.step([state], [token])[0] for token in ids[3:5]]
    seconds, graphs = engine.compile_seconds, counters["stats"]["unique_graphs"]
    assert seconds > 0 and graphs > 0
    logits += [engine.step([state], [token])[0] for token in ids[5:]]
    expected = [plain.step([twin], [token])[0] for token in ids[3:]]
    assert difference(torch.stack(logits), torch.stack(expected)) < 1e-4
    assert difference(torch.stack(logits), forward(it, ids)[3:]) < 1e-4
    assert engine.generate([ids], 12).tokens == plain.generate([ids], 12).tokens
    assert engine.compile_seconds == seconds and counters["stats"]["unique_graphs"] == graphs
    return True


@compiling
def test_compiled_is_plain(every_kind, text):
    """A window that wraps, RoPE and QK-Norm, then NoPE; and nothing is compiled again later on."""
    layers = every_kind.config.layers
    it = Decoder(every_kind.config.with_layers((layers[0], layers[7]))).requires_grad_(False)
    assert [str(spec) for spec in it.config.layers] == ["rope θ 10,000, window 5, QK-Norm", "nope, full"]
    assert compiled_is_plain(it, text(40))


@compiling
@pytest.mark.slow
def test_compiled_is_plain_for_every_kind_of_layer(every_kind, text):
    assert compiled_is_plain(every_kind, text(40))


@compiling
def test_compiled_8_bits_are_plain_8_bits_in_16_bits_too(model, text):
    torch._dynamo.reset()
    it = copy.deepcopy(model("swa-only", num_layers=1)).to(torch.bfloat16)
    ids = text(14)
    compiled = steps(Step(it, int8=True, compiled=True), Engine(it), ids)
    plain = steps(Step(it, int8=True), Engine(it), ids)
    assert compiled.dtype == torch.bfloat16
    assert (compiled.float() - plain.float()).std() < 0.05 * plain.float().std()
