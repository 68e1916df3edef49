"""Bytes of a probe: what is counted beforehand against what is held, exactly, and how it grows with the text."""

import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnope.analysis.measures import MEASURES
from rnope.analysis.ours import EngineProbed
from rnope.analysis.probe import Layer, Marks, probe
from rnope.analysis.room import cache_bytes, check_rows, eager_bytes, probe_bytes, rows_bytes
from rnope.analysis.rows import Captured, rows_by_group
from rnope.errors import UserError
from rnope.generate import room
from rnope.generate.room import chunk_bytes
from rnope.model import accounting
from rnope.testing import tiny_model

SMALL = dict(width=16, heads=4, kv_heads=2, head_size=4, ffn_width=32)
ROWS = 24


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that somebody still has: now, and the most there were."""

    def __init__(self):
        super().__init__()
        self.readers, self.known = {}, set()
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self.known:
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.readers:
                    if key in given:
                        continue  # was there before
                    self.readers[key] = 0
                    self.now += size
                    self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
                self.readers[key] += 1
                self.known.add(id(leaf))
                weakref.finalize(leaf, self.gone, id(leaf), key, size)
        return out

    def gone(self, name, key, size):
        self.known.discard(name)
        self.readers[key] -= 1
        if not self.readers[key]:
            del self.readers[key]
            self.now -= size


def test_the_count_itself():
    with Live() as live:
        a = torch.zeros(1000)
        b = a[10:20] + 1
        view = a[:500]
        del a
        assert (live.now, live.peak) == (4040, 4040)
        view.add_(1)
        del view
        assert live.now == 40
        torch.ones(100, 100) @ torch.ones(100, 1)
        assert (live.now, live.largest) == (40, 40_000) and live.peak >= 40_440
    assert len(b) == 10


def marks_of(tokens):
    middle = tokens // 2
    spans = {
        "begin": ((0, 10),),
        "needle": ((middle, middle + 5),),
        "context": ((10, middle), (middle + 5, tokens - ROWS)),
        "qc": ((tokens - ROWS, tokens),),
    }
    ids = torch.randint(0, 97, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    return Marks(ids=ids, spans=spans, copied={tokens - 2: (middle,)})


def held(model, tokens, chunk):
    probed, marks = EngineProbed(model, chunk=chunk), marks_of(tokens)
    with Live() as live:
        readings, _ = probe(probed, marks, MEASURES, rows_from=tokens - ROWS)
    assert all(reading.rows == ROWS and reading.values["mass"].sum() > 1 for reading in readings)
    return live, probed


@pytest.mark.parametrize("variant", ["nope", "rnope-swa"])
def test_memory_grows_linearly_and_is_what_was_counted(variant):
    """SPEC A4. Every tensor that all of prefill, probe and measures make."""
    model, chunk = tiny_model(variant, window=16, **SMALL), 512
    lengths = [4096, 8192, 16384]
    peaks = []
    for tokens in lengths:
        live, probed = held(model, tokens, chunk)
        counted = probe_bytes(probed.layers, head_size=4, value_bytes=4, context_tokens=tokens, rows=ROWS)
        # Token ids and what is drawn up for them beside.
        assert 0.5 * counted < live.peak < counted + chunk_bytes(probed.engine) + 16 * tokens
        assert live.largest < tokens * tokens // 16
        peaks.append(live.peak)
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.05)


def test_measures_hold_what_is_said_on_top_of_the_rows():
    tokens, heads = 10_000, 3
    layer = Layer(index=0, position="nope", window=None, heads=heads, kv_heads=1)
    keys, queries = torch.randn(1, tokens, 16), torch.randn(heads, ROWS, 16)
    captured = Captured(
        layer=0, queries=queries, keys=keys, positions=torch.arange(tokens - ROWS, tokens), first_key=0, scale=0.25
    )
    with torch.inference_mode(), Live() as live:
        (rows,) = rows_by_group(captured)
        for measure in MEASURES.values():
            measure(rows, marks_of(tokens))
    least = 4 * heads * ROWS * tokens
    assert least < live.peak <= rows_bytes([layer], context_tokens=tokens, rows=ROWS)


@pytest.mark.parametrize("variant", ["rope", "rnope-swa", "swa-only"])
@pytest.mark.parametrize("tokens", [3, 5, 100])
def test_the_cache_is_counted_as_for_the_engine(variant, tokens):
    probed = EngineProbed(tiny_model(variant))
    config = probed.engine.config
    found = cache_bytes(probed.layers, head_size=config.head_size, value_bytes=2, context_tokens=tokens)
    assert found == accounting.cache_bytes(config, tokens)


def test_bytes_of_rows_by_hand():
    full = Layer(index=0, position="nope", window=None, heads=8, kv_heads=2)
    narrow = Layer(index=1, position="rope", window=100, heads=16, kv_heads=2)
    assert rows_bytes([full], context_tokens=1000, rows=7) == 4 * 7 * (4 * 1000 + 65536)
    assert rows_bytes([narrow], context_tokens=1000, rows=7) == 8 * 7 * (4 * 107 + 65536)
    assert rows_bytes([full, narrow], context_tokens=10**6, rows=7) == 4 * 7 * (4 * 10**6 + 65536)


def test_bytes_of_eager_outputs():
    """Terabytes at 128k: 32 layers of 32 heads."""
    layers = [Layer(index=i, position="rope", window=None, heads=32, kv_heads=8) for i in range(32)]
    assert eager_bytes(layers, context_tokens=131_072) == 64 * 2**40
    assert eager_bytes(layers[:1], context_tokens=3) == 32 * 9 * 4
    rows = torch.zeros(32, 3, 3)
    assert eager_bytes(layers[:1], context_tokens=3) == rows.nbytes


# ---- what is refused

LAYERS = [
    Layer(index=0, position="nope", window=None, heads=8, kv_heads=2),
    Layer(index=1, position="rope", window=64, heads=8, kv_heads=2),
]


def asked(monkeypatch, free, rows, **changed):
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    settings = dict(head_size=64, value_bytes=2, context_tokens=100_000, rows=rows, chunk=2048) | changed
    check_rows(LAYERS, **settings)


def test_what_is_said_to_fit_fits_and_one_more_does_not(monkeypatch):
    free = 2**29
    with pytest.raises(UserError) as refusal:
        asked(monkeypatch, free, 1500)
    message = str(refusal.value)
    assert "\n" not in message and "1,500 rows of attention at 100,000 tokens need" in message
    assert "512 MiB are free" in message
    fit = int(re.search(r"at most ([\d,]+) rows fit at once", message)[1].replace(",", ""))
    assert 100 < fit < 1500 and f"Read in chunks of {fit:,}" in message
    asked(monkeypatch, free, fit)
    asked(monkeypatch, free, 1500, chunk=fit)
    for rows, chunk in ((fit + 1, 2048), (1500, fit + 1)):
        with pytest.raises(UserError, match=f"at most {fit:,} rows"):
            asked(monkeypatch, free, rows, chunk=chunk)


def test_no_row_may_fit(monkeypatch):
    with pytest.raises(UserError, match=r"at most 0 rows fit at once at this length\. Shorten the text"):
        asked(monkeypatch, 10**6, 5)


def test_where_it_cannot_be_known_nothing_is_refused(monkeypatch):
    asked(monkeypatch, None, 10**9)
    assert check_rows(LAYERS, head_size=4, value_bytes=2, context_tokens=10**9, rows=9, chunk=9, device="meta") is None
