"""Caches: any chunking is one shot, slot by slot; bytes to the byte; forks, rollbacks and passes that break off."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnope.errors import ConfigError
from rnope.generate import Engine
from rnope.generate import cache as caches
from rnope.generate.cache import BLOCK_TOKENS, FullCache, RingCache
from rnope.model import attention
from rnope.model.accounting import cache_bytes

W = 5
LENGTH = 41
TOLERANCE = 2e-5  # logits have a standard deviation of about 1.4
LAYOUTS = [
    ("rnope-swa", {}),
    ("rope", {}),
    ("nope", {}),
    ("qk-norm", {}),
    ("swa-only", {}),
    ("rnope-swa-1to1", {}),
    ("rnope-swa-1to7", {}),
    ("rnope-swa-full-first", {}),
    ("rnope-10k-swa", {}),  # a window of 2 W
    ("rnope-swa", {"window": 1}),
    ("swa-only", {"window": 1}),
    ("rnope-swa", {"window": 200}),
    ("swa-only", {"window": 2}),
]
each_layout = pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda layout: "-".join([layout[0], *(f"W{w}" for w in layout[1].values())])
)
CHUNKS = [1, W - 1, W, W + 1, 2 * W + 3, 1000]


def close(a, b, tolerance=TOLERANCE):
    return a.shape == b.shape and (a.numel() == 0 or (a.float() - b.float()).abs().max().item() < tolerance)


@torch.no_grad()
def forward(model, ids):
    """Logits [t, vocab] of the whole text at once, without a cache."""
    return model(torch.tensor([ids]))[0]


def seen_by_layers(model, ids):
    """(keys, values) [kv, t, d] of each layer for the whole text at once, as attention gets them."""
    seen, plain = [], attention.Attention.keys_values

    def recorded(self, x, tables):
        seen.append(plain(self, x, tables))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.Attention, "keys_values", recorded)
        forward(model, ids)
    return [(k[0], v[0]) for k, v in seen]


def kept(layer, positions):
    """What a cache has in the slots of `positions`, by the invariants that it states."""
    slots = positions if layer.spec.window is None else [p % layer.spec.window for p in positions]
    return layer.slots.keys[0][:, slots], layer.slots.values[0][:, slots]


def holds(state, model, ids):
    """Whether each slot of each layer holds the position it should."""
    for layer, expected in zip(state.layers, seen_by_layers(model, ids), strict=True):
        positions = list(range(len(ids) - layer.spec.visible(len(ids)), len(ids)))
        assert layer.tokens == len(ids)
        for ours, full in zip(kept(layer, positions), expected, strict=True):
            assert close(ours, full[:, positions])
    return True


def read(engine, ids, parts=()):
    state, at = engine.new_state(), 0
    for part in [*parts, len(ids)]:
        if ids[at : at + part]:
            assert engine.prefill(ids[at : at + part], after=state) is state
        at += part
    return state


@each_layout
@pytest.mark.parametrize("chunk", CHUNKS)
def test_any_chunk_gives_the_logits_and_the_cache_of_one_shot(layout, chunk, model, text):
    it, ids = model(layout[0], **layout[1]), text(LENGTH)
    state = Engine(it, prefill_chunk_tokens=chunk).prefill(ids)
    assert state.tokens == LENGTH and close(state.logits, forward(it, ids)[-1])
    assert holds(state, it, ids)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_list_of_parts_gives_the_logits_and_the_cache_of_one_shot(data, model, text):
    name, overrides = data.draw(st.sampled_from(LAYOUTS))
    parts = data.draw(st.lists(st.sampled_from([1, 2, W - 1, W, W + 1, 7, 2 * W + 3, 30]), min_size=1, max_size=7))
    it, ids = model(name, **overrides), text(sum(parts))
    state = read(Engine(it, prefill_chunk_tokens=data.draw(st.integers(1, 20))), ids, parts)
    assert close(state.logits, forward(it, ids)[-1])
    assert holds(state, it, ids)


@each_layout
@pytest.mark.parametrize("prompt", [1, W, 2 * W + 3])
def test_each_step_is_the_full_forward_through_all_wraps(layout, prompt, model, text):
    it, ids = model(layout[0], **layout[1]), text(6 * W + 3)
    engine, expected = Engine(it), forward(it, ids)
    state = engine.prefill(ids[:prompt])
    for t in range(prompt, len(ids)):
        logits = engine.step([state], [ids[t]])
        assert close(logits[0], expected[t]) and close(state.logits, expected[t])
    assert holds(state, it, ids)


@each_layout
def test_steps_of_a_ragged_batch_are_the_full_forwards(layout, model, text):
    it = model(layout[0], **layout[1])
    engine, rows = Engine(it), [text(40, seed) for seed in range(3)]
    expected, at = [forward(it, row) for row in rows], [1, W, 17]
    states = [engine.prefill(row[:n]) for row, n in zip(rows, at, strict=True)]
    for _ in range(3 * W):
        logits = engine.step(states, [row[n] for row, n in zip(rows, at, strict=True)])
        for i, n in enumerate(at):
            assert close(logits[i], expected[i][n])
        at = [n + 1 for n in at]
    assert all(holds(state, it, row[:n]) for state, row, n in zip(states, rows, at, strict=True))


def test_chunks_between_steps(model, text):
    """Prefill, decode, prefill on, decode: what several turns of a conversation do."""
    it, ids = model("rnope-swa"), text(60)
    engine, expected = Engine(it, prefill_chunk_tokens=7), forward(it, ids)
    state, at = engine.prefill(ids[:3]), 3
    for turn in (2, 9, 1, 16):
        for _ in range(3):
            engine.step([state], [ids[at]])
            at += 1
        engine.prefill(ids[at : at + turn], after=state)
        at += turn
        assert close(state.logits, expected[at - 1])
    assert holds(state, it, ids[:at])


def test_a_state_that_read_nothing_takes_a_step(model, text):
    engine, ids = Engine(model()), text(9)
    state = engine.new_state()
    assert state.tokens == 0 and state.logits is None and state.held_bytes == 0 and state.logical_bytes == 0
    for token in ids:
        engine.step([state], [token])
    assert close(state.logits, forward(model(), ids)[-1])


# ---- bytes


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_the_formulas_at_every_moment(layout, dtype, small_blocks, model, text):
    import copy

    it, ids = copy.deepcopy(model(layout[0], **layout[1])).to(dtype), text(64)
    engine = Engine(it, prefill_chunk_tokens=4)
    state = engine.new_state()

    def check(tokens):
        formula = cache_bytes(it.config, tokens, bytes_per_value=dtype.itemsize)
        assert state.logical_bytes == formula == engine.cache_bytes(tokens) == engine.cache_bytes(context_tokens=tokens)
        assert sum(row.logical_bytes for row in engine.cache_table(tokens)) == formula
        assert state.held_bytes == engine.held_bytes() >= formula
        for layer in state.layers:
            assert layer.slots.count * layer.token_bytes == layer.slots.bytes
            assert layer.logical_bytes <= layer.slots.bytes < layer.logical_bytes + small_blocks * layer.token_bytes
            assert layer.slots.count <= (layer.spec.window or layer.slots.count)

    engine.prefill(ids[:11], after=state)
    check(11)
    for tokens in range(12, 40):
        engine.step([state], [ids[tokens]])
        check(tokens)
    engine.prefill(ids[:24], after=state)
    check(63)


def test_bytes_of_a_long_ring(model, text):
    """A window of more than one block: it grows block after block, and never beyond the window."""
    it = model("rnope-swa", window=BLOCK_TOKENS + 44)
    engine, state = Engine(it), None
    for tokens, slots in [(10, 256), (246, 256), (1, 300), (30, 300), (400, 300)]:
        state = engine.prefill(text(tokens), after=state)
        assert state.layers[0].slots.count == slots
        assert state.layers[3].slots.count == -(-state.tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        assert state.logical_bytes == engine.cache_bytes(state.tokens)


def test_nothing_is_copied_token_by_token(model, text):
    it = model("rnope-swa")
    engine, ids = Engine(it), text(3 * BLOCK_TOKENS)
    state, moved = engine.prefill(ids[:250]), []
    places = [(layer.slots.keys.data_ptr(), layer.slots.values.data_ptr()) for layer in state.layers]
    for t in range(250, len(ids)):
        engine.step([state], [ids[t]])
        now = [(layer.slots.keys.data_ptr(), layer.slots.values.data_ptr()) for layer in state.layers]
        moved += [(i, t) for i in range(4) if now[i] != places[i]]
        places = now
    assert moved == [(3, BLOCK_TOKENS), (3, 2 * BLOCK_TOKENS)]  # the full layer alone, where a block is full


def test_reserved_memory_is_not_allocated_again(model, text):
    engine, ids = Engine(model()), text(900)
    state = engine.prefill(ids[:10])
    state.reserve(900)
    places, held = [layer.slots.keys.data_ptr() for layer in state.layers], state.held_bytes
    engine.prefill(ids[10:400], after=state)
    for token in ids[400:600]:
        engine.step([state], [token])
    engine.prefill(ids[600:], after=state)
    assert [layer.slots.keys.data_ptr() for layer in state.layers] == places and state.held_bytes == held
    assert close(state.logits, forward(model(), ids)[-1])


def test_a_prompt_is_allocated_at_once(model, text):
    """However many chunks it has."""
    engine, counts = Engine(model("nope"), prefill_chunk_tokens=100), set()
    state = engine.new_state()
    engine.prefill(text(1000), after=state, progress=lambda _: counts.add(state.layers[0].slots.keys.data_ptr()))
    assert len(counts) == 1 and state.layers[0].slots.count == 1024


def test_layers_have_caches_by_their_spec_alone(every_kind):
    for layer, spec in zip(Engine(every_kind).new_state().layers, every_kind.config.layers, strict=True):
        assert type(layer) is (FullCache if spec.window is None else RingCache) and layer.spec is spec


# ---- forks


@each_layout
def test_forks_and_their_parent_go_their_own_ways(layout, model, text):
    it = model(layout[0], **layout[1])
    engine, ids = Engine(it, prefill_chunk_tokens=4), text(2 * W + 1)
    parent = engine.prefill(ids)
    first, second = parent.fork(), parent.fork()
    assert first.tokens == len(ids) and torch.equal(first.logits, parent.logits)
    engine.prefill(text(7, 1), after=first)
    third = first.fork()  # a fork after a fork
    engine.prefill(text(9, 2), after=second)
    engine.step([parent], [5])
    engine.step([third], [6])
    engine.prefill(text(3, 3), after=first)
    engine.step([parent, second], [8, 9])
    expected = {
        first: ids + text(7, 1) + text(3, 3),
        second: [*ids, *text(9, 2), 9],
        third: [*ids, *text(7, 1), 6],
        parent: [*ids, 5, 8],
    }
    for state, tokens in expected.items():
        assert close(state.logits, forward(it, tokens)[-1]) and holds(state, it, tokens)


def test_a_fork_shares_memory_until_both_have_gone_on(model, text):
    engine = Engine(model("rnope-swa-1to1"))
    parent = engine.prefill(text(300))
    alone = engine.held_bytes()
    rings = sum(layer.slots.bytes for layer in parent.layers if layer.spec.window)
    forks = [parent.fork() for _ in range(3)]
    assert engine.held_bytes() == alone + 3 * rings
    assert forks[0].held_bytes == parent.held_bytes == alone
    engine.prefill(text(20, 1), after=forks[0])  # There is room behind the parent's tokens.
    assert engine.held_bytes() == alone + 3 * rings
    engine.step([parent], [3])
    assert engine.held_bytes() == 2 * alone + 2 * rings
    del forks
    assert engine.held_bytes() == alone
    del parent
    assert engine.held_bytes() == 0


def test_an_only_child_inherits(model, text):
    """Who once shared and is alone now writes on in place."""
    engine = Engine(model("nope"))
    parent = engine.prefill(text(20))
    fork = parent.fork()
    engine.step([fork], [1])
    place = parent.layers[0].slots.keys.data_ptr()
    del fork
    engine.step([parent], [2])
    assert parent.layers[0].slots.keys.data_ptr() == place
    assert close(parent.logits, forward(model("nope"), [*text(20), 2])[-1])


def test_a_fork_that_moved_away_is_no_longer_in_the_way(model, text):
    engine = Engine(model("nope"))
    parent = engine.prefill(text(250))
    fork, place = parent.fork(), parent.layers[0].slots.keys.data_ptr()
    engine.prefill(text(20, 1), after=fork)  # It needs a block more.
    assert fork.layers[0].slots.keys.data_ptr() != place
    engine.step([parent], [2])
    assert parent.layers[0].slots.keys.data_ptr() == place


def test_a_fork_that_leaves_shared_memory_moves_once(model, text):
    """Not at every block of its prompt."""
    engine = Engine(model("nope"), prefill_chunk_tokens=100)
    parent = engine.prefill(text(10))
    parent.reserve(2000)
    first, second = parent.fork(), parent.fork()
    engine.prefill(text(50), after=first)
    places = []
    engine.prefill(text(1500), after=second, progress=lambda _: places.append(second.layers[0].slots.keys.data_ptr()))
    assert len(set(places)) == 1


def test_a_fork_of_an_interrupted_pass_leaves_its_parent_whole(model, text, monkeypatch):
    it = model("rnope-swa-1to1")
    engine, ids = Engine(it, prefill_chunk_tokens=4), text(20)
    parent = engine.prefill(ids)
    fork = parent.fork()
    interrupt(monkeypatch, RingCache, 2)
    with pytest.raises(KeyboardInterrupt):
        engine.prefill(text(9, 1), after=fork)
    assert close(engine.step([parent], [3])[0], forward(it, [*ids, 3])[-1])
    assert holds(parent, it, [*ids, 3])


# ---- rollback


@pytest.mark.parametrize("window", [1, 2, W])
@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, 3 * W])
def test_a_rollback_goes_as_far_as_the_rings_remember_and_no_further(window, length, model, text):
    it, ids = model("rnope-swa", window=window), text(length)
    engine = Engine(it)
    # The token at n sees n - window + 1 ... n - 1; after `length` tokens a ring holds length - window ... length - 1.
    allowed = [n for n in range(length + 1) if length <= window or n - window + 1 >= length - window]
    for n in range(-2, length + 3):
        state = engine.prefill(ids)
        if n not in allowed:
            with pytest.raises(ConfigError, match="sliding windows still hold") as refusal:
                state.rollback(n)
            assert refusal.value.field == "tokens" and refusal.value.value == n
            assert "Fork the state before" in str(refusal.value)
            assert f"{min(allowed):,} to {length:,}" in str(refusal.value)
            assert state.tokens == length and state.logits is not None
            engine.step([state], [4])
            assert close(state.logits, forward(it, [*ids, 4])[-1])
            continue
        state.rollback(n)
        assert state.tokens == n and (state.logits is None) == (n < length)
        assert state.logical_bytes == engine.cache_bytes(n)
        more = text(2 * W + 1, 1)
        engine.prefill(more, after=state)
        assert close(state.logits, forward(it, ids[:n] + more)[-1]) and holds(state, it, ids[:n] + more)


def test_full_layers_go_back_all_the_way(model, text):
    it, ids = model("rnope"), text(30)
    engine = Engine(it)
    state = engine.prefill(ids)
    for n in (29, 12, 1, 0):
        state.rollback(n)
        with pytest.raises(ConfigError):
            state.rollback(n + 1)
    engine.prefill(ids[:7], after=state)
    assert holds(state, it, ids[:7])


def test_a_fork_remembers_no_more_than_its_parent(model, text):
    it, ids = model("rnope-swa"), text(3 * W)
    fork = Engine(it).prefill(ids).fork()
    for n in (0, 3, 3 * W - 2):
        with pytest.raises(ConfigError, match="sliding windows"):
            fork.rollback(n)
    fork.rollback(3 * W - 1)
    assert fork.tokens == 3 * W - 1


def test_a_rollback_leaves_forks_alone(model, text):
    it, ids = model("rnope"), text(30)
    engine = Engine(it)
    parent = engine.prefill(ids)
    fork = parent.fork()
    parent.rollback(10)
    engine.prefill(text(40, 1), after=parent)
    assert holds(fork, it, ids) and holds(parent, it, ids[:10] + text(40, 1))
    engine.step([fork], [3])
    assert close(fork.logits, forward(it, [*ids, 3])[-1]) and holds(parent, it, ids[:10] + text(40, 1))


def test_logits_that_were_rolled_back_are_not_known(model, text):
    engine = Engine(model("nope"))
    state = engine.prefill(text(5))
    state.rollback(5)
    assert state.logits is not None
    state.rollback(4)
    assert state.logits is None


# ---- everything at once

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["read", "read", "step", "step", "fork", "rollback", "drop"]),
        st.integers(0, 2**16),
        st.integers(0, 2**16),
    ),
    min_size=4,
    max_size=22,
)


@settings(deadline=None, max_examples=50)
@given(layout=st.sampled_from(LAYOUTS), chunk=st.integers(1, 12), operations=OPERATIONS)
def test_whatever_is_done_to_states_they_are_their_texts(layout, chunk, operations, model, text):
    """Any mixture of reading, batched steps, forks, rollbacks and dropped states, with blocks of 4 slots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "BLOCK_TOKENS", 4)
        it = model(layout[0], **layout[1])
        engine = Engine(it, prefill_chunk_tokens=chunk)
        shortest = min(spec.window or 1000 for spec in it.config.layers)
        begun = text(3)
        states = [[engine.prefill(begun), begun, 3]]  # state, its text, the most tokens that it ever had
        for index, (what, a, b) in enumerate(operations):
            row = states[a % len(states)]
            state, ids, most = row
            if what == "read":
                more = text(1 + b % 17, index)
                engine.prefill(more, after=state)
                row[1:] = [ids + more, max(most, len(ids + more))]
                assert close(state.logits, forward(it, row[1])[-1])
            elif what == "step":
                chosen = states[a % len(states) :] + states[: a % len(states)]
                chosen = chosen[: 1 + b % len(states)]
                logits = engine.step([each[0] for each in chosen], [(b + i) % 97 for i in range(len(chosen))])
                for i, each in enumerate(chosen):
                    each[1] = [*each[1], (b + i) % 97]
                    each[2] = max(each[2], len(each[1]))
                    assert close(logits[i], forward(it, each[1])[-1])
            elif what == "fork" and len(states) < 5:
                states.append([state.fork(), ids, most])
            elif what == "rollback":
                n = b % (len(ids) + 1)
                if n < most - 1 and most > shortest:  # A ring that is full has forgotten one token for each new one.
                    with pytest.raises(ConfigError):
                        state.rollback(n)
                else:
                    state.rollback(n)
                    row[1] = ids[:n]
                if not row[1]:
                    engine.prefill(begun, after=state)
                    row[1:] = [begun, max(most, 3)]
            elif what == "drop" and len(states) > 1:
                states.remove(row)
            state = row = chosen = each = None
            memory = {}
            for one, tokens, highest in states:
                assert one.tokens == len(tokens) and one.logical_bytes == engine.cache_bytes(len(tokens))
                for layer in one.layers:
                    limit = -(-highest // 4) * 4
                    assert layer.slots.count <= min(limit, layer.spec.window or limit)
                    memory[layer.slots.keys.data_ptr()] = layer.slots.bytes
            one = None
            assert engine.held_bytes() == sum(memory.values())
        for state, ids, most in states:
            if most == len(ids):
                assert holds(state, it, ids)
            engine.step([state], [1])
            assert close(state.logits, forward(it, [*ids, 1])[-1])


# ---- passes that break off


def interrupt(monkeypatch, kind, calls):
    """The user presses Ctrl-C in the call after `calls` of a cache's attention; later ones work."""
    left, plain = [calls], kind.attend

    def attend(self, *args, **kwargs):
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "attend", attend)


def refuses_everything(engine, state):
    assert state.logits is None
    for attempt in (
        lambda: engine.prefill([1, 2], after=state),
        lambda: engine.step([state], [1]),
        lambda: engine.generate([[1]], 2, after=state),
        lambda: engine.prefill([1], after=state.fork()),
        lambda: engine.step([state.fork()], [1]),
    ):
        with pytest.raises(ConfigError, match=r"interrupted.*Prefill again"):
            attempt()
    return True


@pytest.mark.parametrize("calls", [0, 2, 4])
def test_an_interrupted_prefill_leaves_a_state_that_refuses_further_use(calls, model, text, monkeypatch):
    engine = Engine(model("rnope-swa"), prefill_chunk_tokens=4)
    state = engine.prefill(text(9))
    interrupt(monkeypatch, RingCache, calls)
    with pytest.raises(KeyboardInterrupt):
        engine.prefill(text(11), after=state)
    assert refuses_everything(engine, state)


@pytest.mark.parametrize("int8", [False, True])
def test_an_interrupted_step_leaves_a_state_that_refuses_further_use(int8, model, text, monkeypatch):
    engine = Engine(model("rnope-swa"), int8=int8)
    state = engine.prefill(text(9))
    interrupt(monkeypatch, FullCache, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.step([state], [3])
    assert refuses_everything(engine, state)


def test_an_interrupted_batch_leaves_states_that_refuse_further_use(model, text, monkeypatch):
    engine = Engine(model("rnope-swa"))
    states = [engine.prefill(text(n)) for n in (3, 9)]
    interrupt(monkeypatch, FullCache, 1)
    with pytest.raises(KeyboardInterrupt):
        engine.step(states, [3, 4])
    assert all(refuses_everything(engine, state) for state in states)


def test_a_broken_state_says_so_when_rolled_back(model, text, monkeypatch):
    engine = Engine(model("rnope-swa"))
    state = engine.prefill(text(9))
    interrupt(monkeypatch, FullCache, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.step([state], [3])
    for n in (-1, 0, 8, 9):
        with pytest.raises(ConfigError, match="interrupted"):
            state.rollback(n)


@pytest.mark.parametrize("int8", [False, True])
def test_a_broken_state_does_not_break_its_company(int8, model, text, monkeypatch):
    """The call is refused before anything is read."""
    it, ids = model("rnope-swa"), text(9)
    engine = Engine(it, int8=int8)
    broken, good = engine.prefill(ids), engine.prefill(ids)
    interrupt(monkeypatch, FullCache, 0)
    with pytest.raises(KeyboardInterrupt):
        engine.step([broken], [3])
    for states in ([good, broken], [broken, good]):
        with pytest.raises(ConfigError, match="interrupted"):
            engine.step(states, [1, 2])
        assert good.tokens == 9 and good.logits is not None and holds(good, it, ids)


def test_a_progress_that_raises_leaves_a_state_at_the_end_of_its_chunk(model, text):
    """What was read was read by all layers: it can go on, and does not have the logits of long ago."""
    it, ids = model("rnope-swa"), text(30)
    engine = Engine(it, prefill_chunk_tokens=7)

    for read in (7, 14, 20):
        state, tokens = engine.prefill(ids[:10]), 10 + read
        with pytest.raises(ZeroDivisionError):
            engine.prefill(ids[10:], after=state, progress=lambda done, last=read: 1 / (last - done))
        assert state.tokens == tokens and state.logits is None
        engine.prefill([*ids[tokens:], 3], after=state)
        assert close(state.logits, forward(it, [*ids, 3])[-1])
