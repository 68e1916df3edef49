"""Contexts that do not fit are refused before anything is read, with the number of tokens that would."""

import re

import pytest
import torch

from rnope.errors import ConfigError
from rnope.generate import Engine, room
from rnope.testing import tiny_model

MB = 2**20


@pytest.fixture
def free(monkeypatch):
    """Says how much memory is free: ``free(bytes)``."""

    def say(amount):
        monkeypatch.setattr(room, "free_bytes", lambda device: amount)

    return say


def fitting(refusal):
    return int(re.search(r"At most ([\d,]+) tokens fit", str(refusal.value))[1].replace(",", ""))


@pytest.mark.parametrize("name", ["rnope-swa", "nope", "swa-only"])
@pytest.mark.parametrize(("chunk", "amount"), [(16, 300_001), (64, 300_001), (64, 700_000)])
def test_what_is_said_to_fit_fits_and_one_more_does_not(name, chunk, amount, free, text):
    engine = Engine(tiny_model(name, window=9000), prefill_chunk_tokens=chunk)
    free(amount)
    with pytest.raises(ConfigError) as refusal:
        engine.prefill(text(100_000))
    assert engine.held_bytes() == 0
    assert "GiB are free" in str(refusal.value) and refusal.value.value == 100_000
    fit = fitting(refusal)
    assert 0 < fit < 100_000
    state = engine.prefill(text(fit))
    assert state.tokens == fit and state.held_bytes <= amount
    del state
    with pytest.raises(ConfigError) as refusal:
        engine.prefill(text(fit + 1))
    assert fitting(refusal) == fit


def test_the_same_for_what_comes_after(free, text):
    """What is held already is not asked for again, and the number counts the whole context."""
    engine = Engine(tiny_model("nope"), prefill_chunk_tokens=32)
    state = engine.prefill(text(200))
    free(300_000)
    with pytest.raises(ConfigError) as refusal:
        engine.prefill(text(50_000), after=state)
    fit = fitting(refusal)
    assert state.tokens == 200 and state.logits is not None  # nothing was read
    with pytest.raises(ConfigError):
        engine.prefill(text(fit - 199), after=state.fork())
    engine.prefill(text(fit - 200), after=state)
    assert state.tokens == fit


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_the_same_for_prompts_and_their_answers(method, free, text):
    """Prompt and new tokens together, as the field says."""
    engine = Engine(tiny_model("nope"), prefill_chunk_tokens=32)
    free(400_000)
    prompts = [text(10), text(20)]
    with pytest.raises(ConfigError) as refusal:
        getattr(engine, method)(prompts, 100_000)
    assert refusal.value.value == 100_020
    fit = fitting(refusal)
    assert fit > 20
    getattr(engine, method)([prompts[1]] * 2, fit - 20)
    with pytest.raises(ConfigError):
        getattr(engine, method)([prompts[1]] * 2, fit - 19)


def test_all_prompts_are_checked_before_any_is_read(free, text):
    engine = Engine(tiny_model("nope"), prefill_chunk_tokens=32)
    free(MB)
    with pytest.raises(ConfigError) as several:
        engine.generate([text(100_000)] * 5, 3)
    with pytest.raises(ConfigError) as one:
        engine.generate([text(100_000)], 3)
    assert 3 * fitting(several) < fitting(one)
    short = text(fitting(one) - 600)
    engine.generate([short], 1)
    with pytest.raises(ConfigError, match="5 context"):
        engine.generate([short] * 5, 1)
    assert engine.held_bytes() == 0


def test_windows_fit_where_full_layers_do_not(free, text):
    free(MB)
    ids = text(20_000)
    engine = Engine(tiny_model("swa-only"), prefill_chunk_tokens=256)
    assert engine.prefill(ids).tokens == 20_000
    with pytest.raises(ConfigError):
        Engine(tiny_model("nope"), prefill_chunk_tokens=256).prefill(ids)


def test_nothing_at_all_may_fit(free, text):
    engine = Engine(tiny_model())
    free(10)
    with pytest.raises(ConfigError, match="At most 0 tokens fit"):
        engine.prefill([1])
    with pytest.raises(ConfigError, match="At most 0 tokens fit"):
        engine.score([1], [2])


def test_scores_are_checked_too(free, text):
    engine = Engine(tiny_model("nope"), prefill_chunk_tokens=32)
    free(300_000)
    with pytest.raises(ConfigError, match="tokens fit"):
        engine.score(text(20), [text(5), text(50_000)])


def test_where_it_cannot_be_known_nothing_is_refused(free, text):
    free(None)
    assert Engine(tiny_model()).prefill(text(3000)).tokens == 3000


def peak(engine, work):
    """The most bytes that caches hold while `work` runs, above what they held before."""
    held, before = [], engine.held_bytes()
    handle = engine.model.blocks[-1].norm.register_forward_hook(lambda *_: held.append(engine.held_bytes()))
    result = work()
    handle.remove()
    held.append(engine.held_bytes())
    del result
    return max(held) - before


@pytest.mark.parametrize("name", ["nope", "rnope-swa"])
@pytest.mark.parametrize("questions", [1, 4])
def test_answers_after_a_shared_text_are_counted_as_they_will_be(name, questions, free, text):
    """Forks share memory until both go on: then full layers are copied, each time."""
    engine = Engine(tiny_model(name), prefill_chunk_tokens=16)
    state = engine.prefill(text(2000))

    def work():
        return engine.generate([text(100, i) for i in range(questions)], 4, after=state)

    needed = peak(engine, work)
    assert engine.held_bytes() == state.held_bytes
    free(needed - 1)
    with pytest.raises(ConfigError):
        work()


@pytest.mark.parametrize("name", ["nope", "rnope-swa"])
def test_scores_are_counted_as_they_will_be(name, free, text):
    engine = Engine(tiny_model(name), prefill_chunk_tokens=16)

    def work():
        return engine.score(text(2040), [text(30), text(20)])

    needed = peak(engine, work)
    free(needed - 1)
    with pytest.raises(ConfigError):
        work()


def test_a_prefill_after_a_fork_is_counted_as_it_will_be(free, text):
    engine = Engine(tiny_model("nope"), prefill_chunk_tokens=16)
    state = engine.prefill(text(2000))
    state.reserve(2048)
    first = state.fork()
    engine.prefill(text(5), after=first)

    def work():
        return engine.prefill(text(5), after=state.fork())

    needed = peak(engine, work)
    assert needed == engine.cache_bytes(2048)
    free(needed - 1)
    with pytest.raises(ConfigError):
        work()


# ---- how much is free


def test_free_memory_of_a_machine():
    free = room.free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50
    assert room.free_bytes(torch.device("meta")) is None


def group(monkeypatch, folder, limit, used):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    monkeypatch.setattr(room, "_CGROUP", folder)
    return room.free_bytes(torch.device("cpu"))


def test_a_containers_limit_counts(monkeypatch, tmp_path):
    assert group(monkeypatch, tmp_path, 5 * MB, 3 * MB) == 2 * MB
    assert group(monkeypatch, tmp_path, 5 * MB, 6 * MB) == 0
    without = group(monkeypatch, tmp_path, "max", 3 * MB)
    monkeypatch.setattr(room, "_CGROUP", tmp_path / "none")
    machine = room.free_bytes(torch.device("cpu"))
    assert (without is None) == (machine is None) and (machine is None or machine > 2 * MB)


def test_files_in_the_page_cache_can_be_dropped(monkeypatch, tmp_path):
    """A container's usage counts the model's files that were read; the kernel takes that memory back when asked."""
    (tmp_path / "memory.stat").write_text(f"anon {MB}\nfile {2 * MB}\nactive_file 0\ninactive_file {2 * MB}\n")
    monkeypatch.setattr(room, "status_bytes", lambda name: 0)
    assert group(monkeypatch, tmp_path, 5 * MB, 3 * MB) == 4 * MB


def test_weights_that_are_mapped_from_files_are_not_free(monkeypatch, tmp_path):
    """The kernel would take their pages back as well, and read them again for every token."""
    (tmp_path / "memory.stat").write_text(f"active_file 0\ninactive_file {2 * MB}\n")
    monkeypatch.setattr(room, "status_bytes", lambda name: MB * (name == "RssFile"))
    assert group(monkeypatch, tmp_path, 5 * MB, 3 * MB) == 3 * MB
    (tmp_path / "memory.stat").write_text(f"active_file {3 * MB}\ninactive_file {2 * MB}\n")
    assert group(monkeypatch, tmp_path, 5 * MB, 3 * MB) == 4 * MB  # what is active counts as used already
    machine = group(monkeypatch, tmp_path, "max", 3 * MB)
    if machine is not None:
        monkeypatch.setattr(room, "status_bytes", lambda name: machine // 2)
        assert group(monkeypatch, tmp_path, "max", 3 * MB) < 0.8 * machine
