"""The engine against the decoder and `transformers`: answers, batches, scores; what it computes, and what it refuses."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from rnope.errors import ConfigError
from rnope.generate import Engine, Greedy
from rnope.hf.folder import save
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.testing import tiny_model

TOLERANCE = 2e-5


def close(a, b, tolerance=TOLERANCE):
    return a.shape == b.shape and (a.float() - b.float()).abs().max().item() < tolerance


@torch.no_grad()
def forward(model, ids):
    return model(torch.tensor([ids]))[0]


def greedy(model, ids, new):
    """Whether each of `new` is the likeliest, by one full forward."""
    return forward(model, [*ids, *new[:-1]])[len(ids) - 1 :].argmax(-1).tolist() == new


# ---- transformers


@pytest.mark.parametrize("name", ["rope", "qk-norm", "nope", "rnope-swa", "swa-only"])
@torch.no_grad()
def test_logits_and_tokens_are_those_of_transformers_with_its_cache(name, model, text, tmp_path):
    it, ids = model(name), text(11)
    save(it, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    assert theirs.config.model_type == ("cohere" if name in ("rope", "qk-norm") else "cohere2")
    engine = Engine(it, prefill_chunk_tokens=4)
    state, out = engine.prefill(ids), theirs(torch.tensor([ids]), use_cache=True)
    more = text(14, 1)
    for token in more:
        assert close(state.logits, out.logits[0, -1])
        engine.step([state], [token])
        out = theirs(torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
    assert close(state.logits, out.logits[0, -1])
    expected = theirs.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False, pad_token_id=0)[0, 11:]
    assert engine.generate([ids], 20).tokens == [expected.tolist()]


# ---- answers


@pytest.mark.parametrize(
    "name", ["rope", "nope", "qk-norm", "rnope-swa", "swa-only", "rnope-swa-1to1", "rnope-swa-1to7"]
)
def test_generation_is_the_full_forwards_argmax_far_beyond_the_window(name, model, text):
    it, ids = model(name), text(13)
    out = Engine(it, prefill_chunk_tokens=6).generate([ids], 40, Greedy())
    assert len(out.tokens[0]) == 40 and greedy(it, ids, out.tokens[0]) and out.stopped == [False]
    assert out.states[0].tokens == 13 + 40 - 1


@settings(deadline=None, max_examples=15)
@given(
    name=st.sampled_from(["rnope-swa", "rope", "swa-only", "qk-norm"]),
    lengths=st.lists(st.integers(1, 18), min_size=1, max_size=5),
    chunk=st.integers(1, 20),
    stops=st.lists(st.integers(0, 96), max_size=12),
    count=st.integers(1, 14),
)
def test_a_ragged_batch_is_one_at_a_time(name, lengths, chunk, stops, count, model, text):
    it, prompts = model(name), [text(n, i) for i, n in enumerate(lengths)]
    engine = Engine(it, prefill_chunk_tokens=chunk)
    together = engine.generate(prompts, count, stop_ids=stops)
    for i, prompt in enumerate(prompts):
        alone = engine.generate([prompt], count, stop_ids=stops)
        new = together.tokens[i]
        assert alone.tokens[0] == new and greedy(it, prompt, new)
        assert alone.stopped[0] == together.stopped[i] == (new[-1] in stops)
        assert not set(new[:-1]) & set(stops) and (len(new) == count or new[-1] in stops)
        assert together.states[i].tokens == len(prompt) + len(together.tokens[i]) - 1
        assert close(together.states[i].logits, alone.states[0].logits)


def test_stop_ids_end_a_sequence_and_are_its_last_token(model, text):
    it, prompts = model(), [text(6), text(9, 1), text(3, 2)]
    engine = Engine(it)
    free = engine.generate(prompts, 20).tokens
    stop = free[0][4]
    out = engine.generate(prompts, 20, stop_ids=[stop])
    for row, whole, stopped in zip(out.tokens, free, out.stopped, strict=True):
        assert stopped == (stop in whole)
        assert row == (whole[: whole.index(stop) + 1] if stopped else whole)
    first = engine.generate(prompts[:1], 20, stop_ids=(free[0][0],))
    assert first.tokens == [free[0][:1]] and first.stopped == [True] and first.states[0].tokens == 6
    last = engine.generate(prompts[:1], free[0].index(stop) + 1, stop_ids=[stop])
    assert last.stopped == [True]  # Both at once.
    assert engine.generate(prompts, 20, stop_ids=[10_000]).tokens == free


def test_finished_sequences_drop_out(model, text):
    """The batch of each pass is what is still going."""
    it, prompts = copy.deepcopy(model()), [text(6, i) for i in range(4)]
    engine = Engine(it)
    free = engine.generate(prompts, 16).tokens
    stops = [free[0][2], free[1][7]]
    rows = []
    it.blocks[0].norm.register_forward_hook(lambda module, args, out: rows.append((args[0].shape[0], args[0].shape[1])))
    out = engine.generate(prompts, 16, stop_ids=stops)
    going = [sum(len(row) > n for row in out.tokens) for n in range(1, 16)]
    assert min(going) < 4
    # One sequence alone goes through `Step`, which has no modules.
    assert rows == [(1, 6)] * 4 + [(n, 1) for n in going if n > 1]


def test_what_generation_leaves_can_go_on(model, text):
    it, prompts = model(), [text(6), text(11, 1)]
    engine = Engine(it)
    whole, half = engine.generate(prompts, 20), engine.generate(prompts, 8)
    for prompt, row, rest, state in zip(prompts, whole.tokens, half.tokens, half.states, strict=True):
        assert row[:8] == rest and state.tokens == len(prompt) + 7
        on = engine.generate([rest[-1:]], 12, after=state)
        assert on.tokens == [row[8:]]


def test_streams_are_generations_in_turn(model, text):
    engine, prompts = Engine(model()), [text(6), text(2, 1), text(9, 2)]
    stop = engine.generate(prompts, 12).tokens[1][3]
    whole = engine.generate(prompts, 12, stop_ids=[stop])
    streamed = list(engine.stream(prompts, 12, stop_ids=[stop]))
    turns = [(i, n) for n in range(12) for i in range(3) if len(whole.tokens[i]) > n]
    assert [token.sequence for token in streamed] == [i for i, _ in turns]
    assert [token.id for token in streamed] == [whole.tokens[i][n] for i, n in turns]


def test_streams_come_as_they_are_made(model, text):
    """Nothing is read before the first token is asked for, and no token is made before it is."""
    it, done = copy.deepcopy(model("rnope")), []
    passes = []
    it.blocks[0].norm.register_forward_hook(lambda *_: passes.append(1))
    engine = Engine(it, prefill_chunk_tokens=4)
    stream = engine.stream([text(10), text(3, 1)], 5, progress=done.append)
    assert not done and not passes
    next(stream)
    assert done == [4, 8, 10, 13] and len(passes) == 4
    next(stream)
    assert len(passes) == 4
    next(stream)
    assert len(passes) == 5
    stream.close()
    assert engine.held_bytes() == 0


def test_streams_refuse_at_the_call(model, text):
    engine = Engine(model())
    for arguments in (([[]],), ([],), ([[97]],), ([[1]], 0)):
        with pytest.raises(ConfigError):
            engine.stream(*arguments)


def test_progress_counts_what_was_read(model, text):
    engine, done = Engine(model(), prefill_chunk_tokens=4), []
    state = engine.prefill(text(10), progress=done.append)
    engine.prefill(text(3), after=state, progress=done.append)
    engine.prefill(text(8), after=state, progress=done.append)
    assert done == [4, 8, 10, 3, 4, 8]


@pytest.mark.parametrize("name", ["rnope-swa", "rope", "swa-only", "rnope-swa-full-first"])
def test_parallel_questions_are_answered_as_alone(name, model, text):
    it, paper, questions = model(name), text(30), [text(n, n) for n in (1, 8, 4)]
    engine = Engine(it, prefill_chunk_tokens=7)
    state = engine.prefill(paper)
    slots = [(layer.slots.keys[:, :, : layer.tokens].clone(), layer.tokens) for layer in state.layers]
    logits = state.logits.clone()
    expected = engine.generate([paper + q for q in questions], 15).tokens
    assert all(greedy(it, paper + q, new) for q, new in zip(questions, expected, strict=True))
    for _ in range(2):  # It stays as it is.
        answers = engine.generate(questions, 15, after=state)
        assert answers.tokens == expected
        assert state.tokens == 30 and torch.equal(state.logits, logits)
        for layer, (keys, tokens) in zip(state.layers, slots, strict=True):
            assert layer.tokens == tokens and torch.equal(layer.slots.keys[:, :, :tokens], keys)
    engine.step([state], [3])
    assert close(state.logits, forward(it, [*paper, 3])[-1])


def test_memory_is_freed_with_the_states(model, text):
    engine = Engine(model())
    out = engine.generate([text(5), text(300)], 4)
    assert engine.held_bytes() == sum(state.held_bytes for state in out.states) > 0
    kept = out.states[0]
    del out
    assert engine.held_bytes() == kept.held_bytes
    del kept
    assert engine.held_bytes() == 0
    engine.score(text(9), [text(4), text(5)])
    list(engine.stream([text(9)], 3))
    assert engine.held_bytes() == 0
    other = Engine(model())
    state = other.prefill(text(9))
    assert engine.held_bytes() == 0 and other.held_bytes() == state.held_bytes


# ---- scores


@pytest.mark.parametrize(("name", "chunk"), [("rnope-swa", 1), ("rnope-swa", 8), ("rope", 3), ("qk-norm", 100)])
def test_scores_are_the_full_forwards_log_softmax(name, chunk, model, text):
    it, ids = model(name), text(14)
    engine, targets = Engine(it, prefill_chunk_tokens=chunk), [text(n, n) for n in (20, 1, 8, 9, 3)]
    scores = engine.score(ids, targets)
    for target, row in zip(targets, scores, strict=True):
        logits = forward(it, ids + target)[len(ids) - 1 : -1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(target)[:, None])[:, 0]
        assert all(type(x) is float for x in row) and close(torch.tensor(row), expected)
        assert engine.score(ids, target) == pytest.approx(row, abs=TOLERANCE)


@pytest.mark.parametrize("ids", [[5], torch.tensor([5]), np.array([5])], ids=["list", "tensor", "array"])
def test_scores_of_one_and_of_several(ids, model):
    engine = Engine(model())
    one = engine.score(ids, [1, 2, 3])
    for target in ((1, 2, 3), torch.tensor([1, 2, 3]), np.array([1, 2, 3]), list(np.array([1, 2, 3]))):
        assert engine.score(ids, target) == one
    for targets in ([[1, 2, 3]], torch.tensor([[1, 2, 3]]), [torch.tensor([1, 2, 3])], np.array([[1, 2, 3]])):
        assert engine.score(ids, targets) == [one]
    assert engine.score(ids, [[1, 2, 3], torch.tensor([1, 2]), (1,)]) == [
        pytest.approx(one[:n], abs=TOLERANCE) for n in (3, 2, 1)
    ]


def test_scores_after_a_state_are_those_after_its_tokens(model, text):
    engine, ids = Engine(model(), prefill_chunk_tokens=5), text(23)
    state = engine.prefill(ids)
    held, logits = [layer.slots.keys.clone() for layer in state.layers], state.logits.clone()
    targets = [text(9, seed=1), text(3, seed=2)]
    for found, expected in zip(engine.score(state, targets), engine.score(ids, targets), strict=True):
        assert found == pytest.approx(expected, abs=TOLERANCE)
    assert state.tokens == 23 and torch.equal(state.logits, logits)
    rings = [layer for layer in range(4) if state.layers[layer].spec.window]
    assert rings and all(torch.equal(held[i], state.layers[i].slots.keys) for i in rings)
    assert engine.score(state, targets[0]) == pytest.approx(engine.score(ids, targets[0]), abs=TOLERANCE)


def test_chances_of_all_tokens_add_up(model, text):
    scores = Engine(model()).score(text(12), [[token] for token in range(97)])
    assert torch.tensor(scores).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_scoring_puts_few_rows_through_the_head_at_once(model, text, monkeypatch):
    it, rows, plain = model(), [], Decoder.logits

    def logits(self, states):
        rows.append(states.numel() // states.shape[-1])
        return plain(self, states)

    monkeypatch.setattr(Decoder, "logits", logits)
    scores = Engine(it).score(text(5), [text(700), text(257, 1)])
    assert max(rows) <= 256 and sum(rows) == 1 + 699 + 256
    expected = forward(it, text(5) + text(700))[4:-1].log_softmax(-1).gather(-1, torch.tensor(text(700))[:, None])
    assert close(torch.tensor(scores[0]), expected[:, 0])


def test_scoring_reads_what_comes_before_once(model, text):
    it, rows = copy.deepcopy(model()), []
    it.blocks[0].norm.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1]))
    Engine(it, prefill_chunk_tokens=8).score(text(20), [text(3), text(10), text(1)])
    assert rows == [8, 8, 4, 2, 8, 1]


def test_scoring_does_not_hold_the_cache_twice(text):
    """A target goes into the slots behind its prompt; the last token of it is not read."""
    it = tiny_model("nope")
    engine, held = Engine(it, prefill_chunk_tokens=50), []
    it.blocks[0].norm.register_forward_hook(lambda *_: held.append(engine.held_bytes()))
    engine.score(text(1020), [text(30), text(20), text(30)])
    assert max(held) <= engine.cache_bytes(1280)


# ---- what is computed


@pytest.mark.parametrize("name", ["rnope-swa", "rope", "rnope-swa-full-first", "swa-only"])
def test_the_last_layer_computes_only_what_is_asked_for(name, model, text):
    it, rows = copy.deepcopy(model(name)), {}

    def count(module, label):
        rows[label] = 0

        def hook(_module, args, _out):
            rows[label] += args[0].shape[1]

        module.register_forward_hook(hook)

    for i, block in enumerate(it.blocks):
        for part in ("query", "key", "value", "output"):
            count(getattr(block.attention, part), (i, part))
        for part in ("gate", "up", "down"):
            count(getattr(block.feed_forward, part), (i, part))
    engine, last = Engine(it, prefill_chunk_tokens=8), len(it.blocks) - 1
    for work, read, asked in (
        (lambda: engine.prefill(text(30)), 30, 1),
        (lambda: engine.score(text(30), text(12)), 41, 1 + 11),
        (lambda: engine.generate([text(20), text(9)], 1), 29, 2),
    ):
        rows.update(dict.fromkeys(rows, 0))
        work()
        for (i, part), n in rows.items():
            assert n == (asked if i == last and part not in ("key", "value") else read), (i, part)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made, but for those in slots."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("name", ["rnope-swa", "nope", "swa-only"])
@pytest.mark.parametrize("chunk", [128, 100_000])
def test_no_tensor_is_as_large_as_the_square_of_the_text(name, chunk, model, text):
    it = model(name, window=64)
    sizes = {}
    for length in (1024, 2048):
        with Largest() as largest:
            state = Engine(it, prefill_chunk_tokens=chunk).prefill(text(length))
        sizes[length] = largest.bytes
        # A chunk's feed-forward, or its window's scores for all heads in whole tiles; or the slots of one layer.
        rows = min(chunk, length)
        slots = max(layer.slots.bytes // 2 for layer in state.layers)
        assert largest.bytes <= max(slots, 4 * rows * max(48, 4 * 4 * 64), 4 * 97 * 32)
    assert sizes[2048] <= 2.05 * sizes[1024]  # and not 4 times
    if chunk == 128 and name == "swa-only":
        assert sizes[2048] == sizes[1024]


def test_keys_are_not_repeated_for_the_heads_that_share_them(text):
    it = tiny_model("nope", heads=16, kv_heads=1)
    engine = Engine(it, prefill_chunk_tokens=64)
    state = engine.prefill(text(4000))
    with Largest() as largest:
        engine.step([state], [3])
        engine.prefill(text(64), after=state)
    assert largest.bytes <= state.layers[0].slots.bytes // 2


# ---- dtypes


@pytest.mark.parametrize("name", ["rnope-swa", "qk-norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_stay_near_float32(name, dtype, model, text):
    it, rows = model(name), [text(40, i) for i in range(2)]
    low = copy.deepcopy(it).to(dtype)
    engine = Engine(low, prefill_chunk_tokens=9)
    assert engine.dtype == dtype and engine.device.type == "cpu"
    states = [engine.prefill(row[:17]) for row in rows]
    assert states[0].layers[0].slots.keys.dtype == dtype
    exact = torch.stack([forward(it, row) for row in rows])
    logits = [torch.stack([state.logits for state in states])]
    for t in range(17, 40):
        logits.append(engine.step(states, [row[t] for row in rows]))
    found = torch.stack(logits, 1)
    assert found.dtype == dtype
    tolerance = (0.05 if dtype == torch.bfloat16 else 0.01) * exact.std()
    assert (found.float() - exact[:, 16:]).std() < tolerance
    alone = engine.prefill(rows[0][:17])
    single = torch.stack([engine.step([alone], [token])[0] for token in rows[0][17:]])
    assert (single.float() - exact[0, 17:]).std() < tolerance
    scores = torch.tensor(engine.score(rows[0][:17], rows[0][17:]))
    expected = exact[0, 16:-1].log_softmax(-1).gather(-1, torch.tensor(rows[0][17:])[:, None])[:, 0]
    assert (scores - expected).std() < 2 * tolerance
    assert all(len(row) == 20 for row in engine.generate(rows, 20).tokens)


# ---- input


@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        torch.tensor,
        np.array,
        lambda ids: torch.tensor(ids, dtype=torch.int32),
        lambda ids: torch.tensor(ids, dtype=torch.uint8),
        lambda ids: np.array(ids, dtype=np.int32),
        lambda ids: np.array(ids, dtype=np.int64),
        lambda ids: np.array(ids, dtype=np.uint16),
        lambda ids: np.array(ids[::-1])[::-1],
        lambda ids: np.frombuffer(np.array(ids).tobytes(), dtype=np.int64),
        lambda ids: torch.tensor(ids).repeat_interleave(2)[::2],
        lambda ids: list(np.array(ids)),
        lambda ids: list(torch.tensor(ids)),
    ],
    ids=[
        "tuple", "tensor", "array", "int32 tensor", "uint8 tensor", "int32 array", "int64 array", "uint16 array",
        "reversed array", "read-only array", "strided tensor", "list of numpy", "list of tensors",
    ],
)  # fmt: skip
def test_ids_of_every_kind(kind, model, text):
    engine, ids = Engine(model(), prefill_chunk_tokens=4), text(9)
    expected = engine.prefill(ids)
    state = engine.prefill(kind(ids))
    assert torch.equal(state.logits, expected.logits)
    assert torch.equal(engine.step([state], kind([3])), engine.step([expected], [3]))
    assert engine.generate([kind(ids), kind(ids[:4])], 5).tokens == engine.generate([ids, ids[:4]], 5).tokens
    assert list(engine.stream([kind(ids)], 5)) == list(engine.stream([ids], 5))
    assert engine.score(kind(ids), [kind(ids[:3])]) == engine.score(ids, [ids[:3]])


def test_a_batch_can_be_a_matrix(model, text):
    engine, rows = Engine(model()), [text(9), text(9, 1)]
    expected = engine.generate(rows, 5).tokens
    assert engine.generate(torch.tensor(rows), 5).tokens == engine.generate(np.array(rows), 5).tokens == expected


def test_a_stream_does_not_see_what_the_caller_does_to_its_ids_later(model, text):
    engine, ids = Engine(model()), torch.tensor(text(9))
    expected = engine.generate([ids.clone()], 5).tokens[0]
    stream = engine.stream([ids], 5)
    ids.zero_()
    assert [token.id for token in stream] == expected


BAD_IDS = {
    "none": [],
    "no tensor": torch.empty(0, dtype=torch.int64),
    "negative": [3, -1, 5],
    "the vocabulary's size": [3, 97],
    "far too large": [2**62],
    "larger than 64 bits": [2**70],
    "floats": [1.0, 2.0],
    "a float tensor": torch.ones(3),
    "complex": [1j],
    "booleans": [True, False],
    "a boolean tensor": torch.ones(3, dtype=torch.bool),
    "nested": [[1, 2], [3, 4]],
    "ragged": [[1], [2, 3]],
    "a matrix": torch.ones(1, 3, dtype=torch.int64),
    "one number": 5,
    "a scalar": torch.tensor(5),
    "text": "hello",
    "nothing": None,
    "words": ["a", "b"],
    "objects": [None, 3],
}
OUTSIDE = {"negative": -1, "the vocabulary's size": 97, "far too large": 2**62}


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_ids_are_refused_by_name_and_change_nothing(bad, model, text):
    engine, ids = Engine(model()), BAD_IDS[bad]
    state = engine.prefill(text(9))
    attempts = {
        "ids": lambda: engine.prefill(ids, after=state),
        "prompts[1]": lambda: engine.generate([[1, 2], ids], 3, after=state),
        "targets[1]": lambda: engine.score([1, 2], [[1], ids]),
    }
    for field, attempt in attempts.items():
        with pytest.raises(ConfigError) as refusal:
            attempt()
        assert refusal.value.field == field and "\n" not in str(refusal.value)
        if bad in OUTSIDE:
            assert refusal.value.value == OUTSIDE[bad] and "vocabulary of 97 tokens" in str(refusal.value)
    with pytest.raises(ConfigError):
        engine.score(ids, [1])
    with pytest.raises(ConfigError):
        engine.step([state], ids)
    assert state.tokens == 9 and state.logits is not None
    assert close(engine.step([state], [4])[0], forward(model(), [*text(9), 4])[-1])


def test_bad_calls_are_refused_by_name(model, text):
    engine, ids = Engine(model()), text(9)
    for field, attempt in [
        ("prompts", lambda: engine.generate([])),
        ("prompts", lambda: engine.generate(np.empty((0, 3), dtype=np.int64))),
        ("prompts[0]", lambda: engine.generate(ids)),  # a flat list where a list of lists is wanted
        ("max_new_tokens", lambda: engine.generate([ids], 0)),
        ("max_new_tokens", lambda: engine.generate([ids], -1)),
        ("max_new_tokens", lambda: engine.stream([ids], 0)),
        ("targets[0]", lambda: engine.score(ids, [])),
        ("targets[0]", lambda: engine.score(ids, [[]])),
        ("targets[1]", lambda: engine.score(ids, [[1], []])),
        ("prefill_chunk_tokens", lambda: Engine(model(), prefill_chunk_tokens=0)),
        ("prefill_chunk_tokens", lambda: Engine(model(), prefill_chunk_tokens=-5)),
    ]:
        with pytest.raises(ConfigError) as refusal:
            attempt()
        assert refusal.value.field == field


def test_an_unknown_backend_is_refused_at_once():
    it = tiny_model()
    with pytest.raises(ConfigError, match="blockwise"):
        Engine(it, backend="blokwise")
    assert all(block.attention.backend == "auto" for block in it.blocks)
    assert Engine(it).generate([[1, 2, 3]], 3).tokens  # and the model is as it was


@pytest.mark.parametrize("backend", ["reference", "blockwise"])
def test_backends_agree(backend, text):
    it, ids = tiny_model(), text(33)
    expected = Engine(it).generate([ids, ids[:7]], 12).tokens
    engine = Engine(it, backend=backend, prefill_chunk_tokens=6)
    assert engine.generate([ids, ids[:7]], 12).tokens == expected


def test_a_model_without_weights_is_refused():
    with torch.device("meta"):
        it = Decoder(ModelConfig.variant("rnope-swa", size="8b"))
    with pytest.raises(ConfigError, match="no weights"):
        Engine(it)


def test_matrices_of_several_types_are_refused():
    it = tiny_model()
    it.layers[2].norm.bfloat16()  # as some have their norms
    assert Engine(it).generate([[1, 2]], 2).tokens
    it.layers[1].feed_forward.up.bfloat16()
    with pytest.raises(ConfigError, match="dtype = 'bfloat16, float32'"):
        Engine(it)


def test_states_and_ids_of_a_step_must_match(model, text):
    engine = Engine(model())
    states = [engine.prefill(text(n)) for n in (3, 8)]
    for some, ids in ((states, [1]), (states[:1], [1, 2]), ([], [1]), (states, [])):
        with pytest.raises(ConfigError) as refusal:
            engine.step(some, ids)
        assert refusal.value.field == "ids"
    assert [state.tokens for state in states] == [3, 8]


@pytest.mark.parametrize("int8", [False, True])
def test_one_state_cannot_take_two_steps_at_once(int8, model, text):
    engine = Engine(model(), int8=int8)
    state = engine.prefill(text(9))
    with pytest.raises(ConfigError):
        engine.step([state, state], [1, 2])
    assert state.tokens == 9 and all(layer.tokens == 9 for layer in state.layers)


def test_logits_of_a_step_are_kept_by_the_states(model, text):
    engine = Engine(model())
    states = [engine.prefill(text(n)) for n in (3, 8, 1)]
    for some in (states, states[:1]):
        logits = engine.step(some, [5] * len(some))
        assert logits.shape == (len(some), 97)
        assert all(torch.equal(row, state.logits) for row, state in zip(logits, some, strict=True))


def test_cache_tables_say_what_full_attention_would_hold(model):
    engine = Engine(model("rnope-swa"))
    for tokens in (1, 5, 6, 1000):
        rows = {row.kind: row for row in engine.cache_table(tokens)}
        assert {kind: row.layers for kind, row in rows.items()} == {"rope-window": 3, "nope": 1}
        one = 2 * 2 * 8 * 4
        assert rows["nope"].logical_bytes == rows["nope"].full_bytes == one * tokens
        assert rows["rope-window"].logical_bytes == 3 * one * min(5, tokens)
        assert rows["rope-window"].full_bytes == 3 * one * tokens


def test_the_weights_ask_for_no_gradients_and_logits_carry_none(text):
    it = tiny_model()  # as it comes, with gradients wanted
    engine = Engine(it)
    state = engine.prefill(text(9))
    logits = engine.step([state, engine.prefill(text(4))], [1, 2])
    assert not state.logits.requires_grad and not logits.requires_grad
    assert not any(layer.slots.keys.requires_grad for layer in state.layers)
