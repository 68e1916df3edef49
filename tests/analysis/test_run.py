"""A run of an analysis: what it measures against attention computed whole, going on, adding, and checks before work."""

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from rnope import Decoder, load, save
from rnope.analysis import opening, run, texts
from rnope.analysis import page as pages
from rnope.analysis.results import AnalysisResults
from rnope.analysis.store import Store
from rnope.errors import ConfigError, UserError
from rnope.evals.models.opening import ModelOptions
from rnope.generate import room as free
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "Fish come in from the sea. Boats go out again! Who sees them? Nobody at the harbour does, says the keeper. "
TOKENIZER = Tokenizer.train([TEXT], vocab_size=280)
LENGTH, LONGER = 400, 500


@pytest.fixture(autouse=True)
def written(monkeypatch):
    """Pages are drawn in a second or two: here it is only seen that they are."""
    calls = []
    monkeypatch.setattr(run.gc, "collect", lambda: None)  # slow among all that tests have imported
    monkeypatch.setattr(pages, "write_pages", lambda results, out: calls.append((results, out)))
    return calls


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        save(tiny_model("rnope-swa", seed, vocab_size=280), root / name, TOKENIZER, context_tokens=LENGTH)
    return root


@pytest.fixture(scope="module")
def haystack(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 60, encoding="utf-8")
    return str(path)


@pytest.fixture
def analyze(models, haystack, tmp_path):
    def call(*names, lengths=(LENGTH,), samples=2, seed=1, new_tokens=0, out=None, chunk=64, lines=None, console=None):
        def build(opened, frame):
            if lines is not None:
                path = tmp_path / "texts.jsonl"
                path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
                return texts.file_texts(path, opened.model.tokenizer, new_tokens=new_tokens)
            return texts.needles(
                opened.model.tokenizer, frame, lengths=lengths, samples=samples, seed=seed, haystack=haystack,
                new_tokens=new_tokens,
            )  # fmt: skip

        given = [(str(models / name), name) for name in names or ("one",)]
        return run.analyze(given, build, out or tmp_path / "out", options=ModelOptions(chunk=chunk), console=console)

    return call


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def probed(monkeypatch):
    """How many texts were looked at; set `stop_after` to be interrupted."""

    class Counted:
        count, stop_after = 0, None

        def __call__(self, *args, probe=run.probe, **more):
            if self.count == self.stop_after:
                raise KeyboardInterrupt
            self.count += 1
            return probe(*args, **more)

    monkeypatch.setattr(run, "probe", counted := Counted())
    return counted


def comparable(out: Path):
    """Results without what time and machine decide."""
    found = json.loads((out / "analysis.json").read_text())
    for length in found["lengths"]:
        length["seconds"], length["memory"]["peak_bytes"] = None, None
    return found


@torch.inference_mode()
def whole(model: Decoder, ids, rows):
    """Attention of `rows` of every layer, [l, h, r, t], by the slow path."""
    x, found = model.embedding(torch.tensor(ids)[None]), []
    places = torch.arange(len(ids))
    tables = model.rotary_tables(places)
    behind = rows[:, None] - places
    for block in model.blocks:
        queries = block.attention.queries(block.norm(x), tables)[0, :, rows]
        keys = block.attention.keys_values(block.norm(x), tables)[0][0]
        scores = queries @ keys.repeat_interleave(len(queries) // len(keys), 0).mT / queries.shape[-1] ** 0.5
        window = block.attention.spec.window or len(ids)
        found.append(scores.masked_fill((behind < 0) | (behind >= window), -torch.inf).softmax(-1))
        x = block(x, tables)
    return torch.stack(found).double().numpy()


def test_tables_say_what_the_whole_attention_does(analyze, models, haystack, tmp_path, written):
    results = analyze(samples=1)
    model = opening.open_probed(str(models / "one"), "one", ModelOptions()).model
    made = texts.needles(
        model.tokenizer, run.Frame.bare(model.tokenizer), lengths=(LENGTH,), samples=1, seed=1, haystack=haystack,
        new_tokens=0,
    )  # fmt: skip
    sample = made.sample(LENGTH, 0)
    attention = whole(load(models / "one"), sample.marks.ids, torch.arange(sample.rows_from, LENGTH))
    kinds = {kind.kind: kind.measures for kind in results.lengths[0].kinds}
    (begin, end), qc = sample.marks.spans["needle"][0], sample.rows_from
    assert kinds["nope"].mass["needle"].value == pytest.approx(attention[3, ..., begin:end].sum(-1).mean(), abs=1e-6)
    assert kinds["rope-window"].mass["qc"].value == pytest.approx(attention[:3, ..., qc:].sum(-1).mean(), abs=1e-6)
    assert kinds["rope-window"].mass["needle"] is None
    bits = -(attention * np.log2(attention.clip(1e-300))).sum(-1)
    assert kinds["all"].row_entropy.value == pytest.approx(bits.mean(), abs=1e-5)
    mean = attention[3].mean((0, 1))
    assert kinds["nope"].mean_entropy.value == pytest.approx(-(mean * np.log2(mean)).sum(), abs=1e-5)
    arrays = load_file(tmp_path / "out" / "arrays" / "one" / f"{LENGTH}.safetensors")
    assert arrays["distribution"] == pytest.approx(attention.mean((1, 2)), abs=1e-6)
    assert written == [(results, tmp_path / "out")]
    assert AnalysisResults.load(tmp_path / "out" / "analysis.json") == results
    facts = results.models[0]
    assert [layer.kind for layer in facts.layers] == ["rope-window"] * 3 + ["nope"] and facts.class_name == "Decoder"


def test_an_interrupted_run_goes_on_and_ends_the_same(analyze, probed, tmp_path):
    analyze("one", "two", out=tmp_path / "straight")
    assert probed.count == 4
    probed.stop_after = 7
    with pytest.raises(KeyboardInterrupt):
        analyze("one", "two", out=tmp_path / "broken")
    assert len([*(tmp_path / "broken").glob("samples/*/*/*.safetensors")]) == 3
    probed.stop_after = None
    analyze("one", "two", out=tmp_path / "broken")
    assert probed.count == 8
    assert comparable(tmp_path / "broken") == comparable(tmp_path / "straight")
    events = [json.loads(line)["event"] for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert events == ["start", "sample", "sample", "sample", "start", "sample", "end"]


def test_samples_lengths_and_models_can_be_added(analyze, probed):
    analyze(samples=1)
    analyze(samples=2)
    results = analyze("two", lengths=(LENGTH, LONGER), samples=1)
    assert probed.count == 4
    assert [(each.model, each.context_tokens, each.n) for each in results.lengths] == [
        ("one", LENGTH, 2), ("two", LENGTH, 1), ("two", LONGER, 1)
    ]  # fmt: skip
    assert [each.facts.name for each in results.models] == ["one", "two"]
    past = next(each for each in results.lengths if each.context_tokens == LONGER)
    assert past.notes == (f"longer than the {LENGTH} that it was trained on",)
    assert not results.lengths[0].notes


def test_a_folder_holds_one_kind_of_texts_and_one_model_by_a_name(analyze, models, probed, tmp_path, monkeypatch):
    analyze(samples=1)
    with pytest.raises(ConfigError, match=r"settings\.seed = 2: .*holds samples of 1.*another --out"):
        analyze(samples=1, seed=2)
    with pytest.raises(ConfigError, match=r"settings\.new_tokens"):
        analyze(samples=1, new_tokens=3)
    monkeypatch.setattr(
        run, "open_probed", lambda given, *more: opening.open_probed(given.replace("one", "two"), *more)
    )
    with pytest.raises(ConfigError, match=r"model\.facts\.sha256 = .*--name the model otherwise"):
        analyze(samples=1)
    assert probed.count == 1


def test_a_sample_of_something_else_is_not_taken_for_ours(analyze, tmp_path):
    analyze(samples=2)
    folder = tmp_path / "out" / "samples" / "one" / str(LENGTH)
    (folder / "0000.safetensors").replace(folder / "0001.safetensors")
    with pytest.raises(UserError, match=r"0001\.safetensors: was made from another"):
        analyze(samples=2)


@pytest.mark.parametrize("left", [0, 500])
def test_a_damaged_sample_is_named_and_a_strangers_file_left_alone(analyze, tmp_path, left):
    analyze(samples=2)
    path = tmp_path / "out" / "samples" / "one" / str(LENGTH) / "0001.safetensors"
    path.with_name("0002 (copy).safetensors").write_bytes(path.read_bytes())
    assert analyze(samples=2).lengths[0].n == 2
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"0001\.safetensors: is no sample of an analysis .*Remove it"):
        analyze(samples=2)
    path.unlink()
    assert analyze(samples=2).lengths[0].n == 2


def test_generated_tokens_are_looked_at(analyze, models, tmp_path):
    results = analyze(samples=1, new_tokens=5)
    unit, arrays = Store(tmp_path / "out").read("one", LENGTH, 0)
    assert len(unit.new_ids) == 5 and unit.rows == LENGTH - 1 - unit.rows_from  # the last one is not read
    assert arrays["distribution"].shape[1] == LENGTH - 1 and unit.context_tokens == LENGTH
    assert np.isnan(arrays["retrieval"]).all()  # nothing is known to be copied
    assert {kind.measures.retrieval for kind in results.lengths[0].kinds} == {None}


def test_texts_of_ones_own_count_by_their_nearest_power_of_two(analyze):
    words = (TEXT * 20)[: 120 * 5]
    lines = [
        {"prompt": words[: 5 * n], "spans": {"hint": [20, 40]}, "completion": "They come. " * 3, "name": str(n)}
        for n in (30, 35, 100)
    ]
    found = analyze(lines=lines).lengths
    assert [each.n for each in found] == [2, 1] and found[0].context_tokens < found[1].context_tokens
    assert list(found[0].uniform) == ["begin", "context", "qc", "hint"]
    nope = next(kind for kind in found[0].kinds if kind.kind == "nope").measures
    assert nope.mass["hint"].n == 2 and sum(each.value for each in nope.mass.values()) == pytest.approx(1, abs=1e-5)


def test_a_text_without_a_question_to_go_on_from_is_refused(analyze, probed):
    line = {"prompt": TEXT, "spans": {"hint": [20, 40]}, "completion": "They come."}
    with pytest.raises(ConfigError, match=r'line-1.*no question.*"qc"|qc'):
        analyze(lines=[line], new_tokens=3)
    assert probed.count == 0


@pytest.mark.parametrize("second", ["missing", "two"])
def test_every_model_is_checked_before_the_first_is_looked_at(analyze, models, probed, monkeypatch, second, tmp_path):
    if second == "two":
        monkeypatch.setattr(run, "_check", lambda opened, *more: opened.model.facts.name != "two" or 1 / 0)
    with pytest.raises((UserError, ZeroDivisionError)):
        analyze("one", second)
    assert probed.count == 0 and not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_found_before_work(analyze, models, probed, tmp_path):
    model = load(models / "one")
    with torch.no_grad():
        for weight in model.blocks[2].attention.parameters():
            weight.fill_(torch.nan)
    save(model, models / "broken", TOKENIZER, context_tokens=LENGTH)
    with pytest.raises(UserError, match=r"attention of layer 2 is not a number"):
        analyze("one", "broken")
    assert probed.count == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_a_place_that_is_no_folder_is_refused_before_a_model_is_opened(analyze, tmp_path, monkeypatch, inside):
    (tmp_path / "file").touch()
    monkeypatch.setattr(run, "open_probed", lambda *given: pytest.fail("opened"))
    with pytest.raises(ConfigError, match=r"--out = .*file.*: .*file is no folder that can be written"):
        analyze(out=tmp_path / "file" / inside)


def test_widened_spans_are_said_before_work(analyze, console):
    begin = TEXT.index("the") + 1
    line = {"prompt": TEXT, "spans": {"hint": [begin, 40]}, "completion": "They come."}
    analyze(lines=[line] * 12, console=console)
    said, _, after = console.file.getvalue().partition("12 of 12 samples")
    assert (
        f"line-1: hint is widened to whole tokens: characters {begin - 2} to" in said
        and "and 2 more like these" in said
    )
    assert "widened" not in after


def test_too_little_memory_is_said_with_the_rows_that_fit(analyze, probed, monkeypatch):
    monkeypatch.setattr(free, "free_bytes", lambda device: 1 << 19)
    monkeypatch.setattr(texts.NeedleSamples, "sample", lambda *given: pytest.fail("a text was made"))
    with pytest.raises(UserError, match=r"rows of attention at 400 tokens.*at most [\d,]+ rows fit"):
        analyze()
    assert probed.count == 0


def test_learned_positions_are_an_end(analyze, probed, monkeypatch):
    def limited(*given):
        found = opening.open_probed(*given)
        found.positions = LENGTH
        return found

    monkeypatch.setattr(run, "open_probed", limited)
    with pytest.raises(ConfigError, match=r"--lengths = 500: one has learned positions for 400 tokens"):
        analyze(lengths=(LENGTH, LONGER))
    assert probed.count == 0
    analyze(samples=1)


def test_a_length_that_cannot_hold_the_question_is_refused(analyze, probed):
    with pytest.raises(ConfigError, match=r"lengths = 60: cannot hold needle"):
        analyze(lengths=(60, LENGTH))
    assert probed.count == 0


def test_two_runs_cannot_share_a_folder_at_once(analyze, tmp_path):
    held, go = threading.Event(), threading.Event()

    def hold():
        with Store(tmp_path / "out").locked():
            held.set()
            go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    with pytest.raises(UserError, match=r"another process analyses into this folder"):
        analyze(samples=1)
    go.set()
    holder.join()
    analyze(samples=1)
