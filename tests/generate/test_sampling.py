"""Sampling against the probabilities that it states, computed here by hand; seeds, ties and bad values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.errors import ConfigError
from rnope.generate import Engine, Greedy, Sample

CPU = torch.device("cpu")
DRAWS = 6_000
# Chi-square that is exceeded with a chance of 0.001, by degrees of freedom.
CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}
LOGITS = [0.3, -1.0, 2.0, 0.3, 1.1, -4.0, 0.0, 1.9]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def chances(logits, temperature=1.0, top_k=None, top_p=1.0):
    """By the definition, in float64 and plain Python."""
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    if top_k is not None:
        least = sorted(logits)[-min(top_k, len(logits))]
        weights = [w if x >= least else 0.0 for w, x in zip(weights, logits, strict=True)]
    weights = [w / sum(weights) for w in weights]
    if top_p < 1:
        kept, reached = set(), 0.0
        for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
            if reached >= top_p:
                break
            kept.add(i)
            reached += weights[i]
        weights = [w if i in kept else 0.0 for i, w in enumerate(weights)]
    return [w / sum(weights) for w in weights]


def fits(drawn, expected):
    counts = torch.bincount(drawn, minlength=len(expected)).tolist()
    assert all(n == 0 for n, p in zip(counts, expected, strict=True) if p == 0)
    cells = [(n, p * len(drawn)) for n, p in zip(counts, expected, strict=True) if p > 0]
    return sum((n - e) ** 2 / e for n, e in cells) < CRITICAL[len(cells) - 1]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0},
        {"top_k": 3},
        {"top_k": 4, "temperature": 2.0},
        {"top_k": 1000},
        {"top_p": 0.8},
        {"top_p": 0.5, "temperature": 2.0},
        {"top_p": 0.7, "top_k": 5},
    ],
    ids=str,
)
def test_draws_have_the_chances_that_the_rule_states(rule):
    row = torch.tensor([LOGITS]).expand(DRAWS, -1)
    drawn = Sample(**rule).choose(row, [generator(11)] * DRAWS)
    assert drawn.dtype == torch.int64 and drawn.shape == (DRAWS,)
    assert fits(drawn, chances(LOGITS, **rule))


def test_seeds_side_by_side_are_independent():
    """Sequence i has seed + i; the first draws of all of them must be spread as the draws of one are."""
    rule = Sample(seed=500)
    first = rule.generators(DRAWS, CPU)
    row = torch.tensor([LOGITS]).expand(DRAWS, -1)
    one, two = rule.choose(row, first), rule.choose(row, first)
    assert fits(one, chances(LOGITS)) and fits(two, chances(LOGITS))
    likely = chances(LOGITS)
    agree = sum(p * p for p in likely)
    for a, b in ((one, two), (one[:-1], one[1:])):
        found = (a == b).float().mean().item()
        assert abs(found - agree) < 4 * (agree * (1 - agree) / DRAWS) ** 0.5


def test_top_k_keeps_equals_of_the_last():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]).expand(2000, -1)
    drawn = Sample(top_k=2).choose(logits, [generator()] * 2000)
    assert set(drawn.tolist()) == {1, 2, 3, 4}
    drawn = Sample(top_k=1).choose(logits, [generator()] * 2000)
    assert set(drawn.tolist()) == {1}


def test_top_k_above_the_vocabulary_keeps_all():
    logits = torch.zeros(500, 3)
    for k in (3, 4, 10**9):
        assert set(Sample(top_k=k).choose(logits, [generator()] * 500).tolist()) == {0, 1, 2}


def test_top_p_keeps_the_likeliest_whatever_its_chance():
    logits = torch.tensor([[0.0, 0.1, 0.0, 0.0]]).expand(500, -1)
    assert set(Sample(top_p=1e-9).choose(logits, [generator()] * 500).tolist()) == {1}


def test_top_p_that_is_just_reached_takes_no_more():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().expand(500, -1)
    assert set(Sample(top_p=0.5).choose(logits, [generator()] * 500).tolist()) == {0}
    assert set(Sample(top_p=0.501).choose(logits, [generator()] * 500).tolist()) == {0, 1}


def test_each_row_is_cut_on_its_own():
    logits = torch.tensor([[5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 5.0, 5.0]]).repeat(200, 1)
    drawn = Sample(top_p=0.9, top_k=2).choose(logits, [generator()] * 400)
    assert set(drawn[::2].tolist()) == {0, 1} and set(drawn[1::2].tolist()) == {2, 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_temperature_zero_is_greedy(dtype):
    logits = torch.randn(50, 97, generator=generator()).to(dtype)
    greedy = Greedy().choose(logits, [None] * 50)
    assert torch.equal(greedy, logits.argmax(-1)) and greedy.dtype == torch.int64
    for rule in (Sample(temperature=0), Sample(temperature=0.0, top_k=5, top_p=0.1), Sample(temperature=-0.0)):
        assert torch.equal(rule.choose(logits, rule.generators(50, CPU)), greedy)


def test_greedy_takes_the_first_of_equals():
    assert Greedy().choose(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), [None, None]).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-45, 1e-50, 5e-324])
def test_small_temperatures_are_nearly_greedy(temperature):
    logits = torch.randn(50, 97, generator=generator()) * 10
    rule = Sample(temperature=temperature)
    assert torch.equal(rule.choose(logits, rule.generators(50, CPU)), logits.argmax(-1))


@pytest.mark.parametrize("scale", [1e4, 1e30, -1e30])
def test_large_logits_do_not_overflow(scale):
    rule = Sample(top_p=0.9, top_k=50)
    drawn = rule.choose(torch.randn(20, 97, generator=generator()) * scale, rule.generators(20, CPU))
    assert ((drawn >= 0) & (drawn < 97)).all()


def test_large_temperatures_are_nearly_uniform():
    row = torch.tensor([LOGITS]).expand(DRAWS, -1)
    assert fits(Sample(temperature=1e9).choose(row, [generator(1)] * DRAWS), [1 / 8] * 8)


def test_forbidden_tokens_are_never_drawn():
    logits = torch.full((300, 10), -math.inf)
    logits[:, 3:5] = 0
    for rule in (Sample(), Sample(top_k=7), Sample(top_p=0.99), Sample(temperature=50.0)):
        assert set(rule.choose(logits, [generator()] * 300).tolist()) == {3, 4}


def test_choosing_leaves_the_logits_alone():
    logits = torch.randn(4, 97, generator=generator())
    before = logits.clone()
    rule = Sample(temperature=0.3, top_k=5, top_p=0.4)
    rule.choose(logits, rule.generators(4, CPU))
    assert torch.equal(logits, before)


@settings(deadline=None, max_examples=40)
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True),
    rule=st.fixed_dictionaries(
        {},
        optional={"temperature": st.floats(0.05, 5), "top_k": st.integers(1, 120), "top_p": st.floats(0.01, 1)},
    ),
)
def test_what_a_row_draws_does_not_depend_on_its_company(seeds, rule):
    logits = torch.randn(5, len(seeds), 97, generator=generator(4)) * 2
    together = Sample(seed=tuple(seeds), **rule)
    sources = together.generators(len(seeds), CPU)
    rows = torch.stack([together.choose(step, sources) for step in logits])
    for i, seed in enumerate(seeds):
        alone = Sample(seed=(seed,), **rule)
        source = alone.generators(1, CPU)
        assert [alone.choose(step[i : i + 1], source).item() for step in logits] == rows[:, i].tolist()


def test_one_seed_counts_up(model, text):
    engine, prompt = Engine(model()), text(9)
    counted = engine.generate([prompt] * 3, 12, Sample(seed=5)).tokens
    assert counted == engine.generate([prompt] * 3, 12, Sample(seed=(5, 6, 7))).tokens
    assert counted != engine.generate([prompt] * 3, 12, Sample(seed=8)).tokens
    assert len({tuple(row) for row in counted}) == 3
    assert counted == engine.generate([prompt] * 3, 12, Sample(seed=5)).tokens  # and a rule has no memory


def test_sequences_draw_alike_alone_and_in_a_batch_that_shrinks(model, text):
    engine, prompts = Engine(model()), [text(n, n) for n in (3, 20, 1, 9)]
    rule = {"temperature": 1.3, "top_k": 40, "top_p": 0.95}
    seeds = (3, 2**62, 0, 77)
    stop = list(range(0, 97, 9))
    together = engine.generate(prompts, 20, Sample(seed=seeds, **rule), stop_ids=stop)
    assert len({len(row) for row in together.tokens}) > 1  # some ended early
    for i, prompt in enumerate(prompts):
        alone = engine.generate([prompt], 20, Sample(seed=(seeds[i],), **rule), stop_ids=stop)
        assert alone.tokens[0] == together.tokens[i]


def test_generation_at_temperature_zero_is_greedy(model, text):
    engine, prompts = Engine(model()), [text(4), text(11, 1)]
    greedy = engine.generate(prompts, 15, Greedy()).tokens
    assert engine.generate(prompts, 15).tokens == greedy
    assert engine.generate(prompts, 15, Sample(temperature=0, seed=9)).tokens == greedy
    assert engine.generate(prompts, 15, Sample(top_k=1, seed=9)).tokens == greedy
    assert engine.generate(prompts, 15, Sample(temperature=5.0, top_p=1e-6, seed=9)).tokens == greedy


def test_the_global_generator_is_left_alone(model, text):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    Engine(model()).generate([text(5)], 5, Sample())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1e-9),
        ("temperature", -1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_k", -3),
        ("top_p", 0),
        ("top_p", -0.1),
        ("top_p", 1.0000001),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", (0, -1)),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ConfigError) as refusal:
        Sample(**{field: value})
    assert refusal.value.field == field


@pytest.mark.parametrize(("seeds", "sequences"), [((1,), 2), ((1, 2, 3), 2), ((), 1)])
def test_as_many_seeds_as_sequences(seeds, sequences, model, text):
    engine = Engine(model())
    with pytest.raises(ConfigError, match=f"{len(seeds)} seeds for {sequences} sequences"):
        engine.generate([text(5)] * sequences, 3, Sample(seed=seeds))


def test_a_stream_refuses_a_wrong_number_of_seeds_at_the_call(model, text):
    """Not at the first token."""
    with pytest.raises(ConfigError, match="1 seeds for 2 sequences"):
        Engine(model()).stream([text(5), text(6)], 3, Sample(seed=(1,)))
