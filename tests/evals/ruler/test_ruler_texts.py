"""Where RULER's texts come from, and what is said of them."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from rnope.data.corpus import Document
from rnope.errors import ConfigError, UserError
from rnope.evals.frame import Frame
from rnope.evals.ruler import texts
from rnope.evals.ruler.suite import Ruler
from rnope.evals.ruler.texts import Texts

sys.path.insert(0, str(Path(__file__).parent))
from ruler_texts import ENGLISH, ESSAYS, HOTPOTQA, NOUNS, SQUAD, make_tokenizer, write_texts


def _gz(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def test_other_forms_hold_the_same(tmp_path):
    own = Texts(write_texts(tmp_path / "own"))
    other = tmp_path / "other"
    rows = [{"file": "a", "text": ESSAYS[:100]}, {"file": "b", "text": ESSAYS[100:]}]
    _gz(other / "haystack/paul_graham_essays.jsonl.gz", "\n".join(map(json.dumps, rows)))
    _gz(other / "words/english_words_alpha.txt.gz", "\n".join(ENGLISH))
    _gz(other / "qa/hotpotqa_dev_500.jsonl.gz", "\n".join(map(json.dumps, HOTPOTQA)) + "\n")
    _gz(other / "qa/squad_v2_dev.json.gz", json.dumps(SQUAD))
    found = Texts(other)
    assert found.essays == own.essays == ESSAYS
    assert found.english == own.english
    assert found.squad == own.squad and found.hotpotqa == own.hotpotqa
    assert own.words[0] == NOUNS
    assert [found.origin(kind).why for kind in ("essays", "squad")] == [
        "2 of the original's 217 essays", "56 of the original's 5,928 questions",
    ]  # fmt: skip
    assert own.origin("essays").why == ""


def test_more_contexts_are_distractors_alone(tmp_path):
    _gz(tmp_path / "squad_v2_half.json.gz", json.dumps(SQUAD))
    alone = Texts(tmp_path).squad
    _gz(tmp_path / "squad_v2_other_contexts.jsonl.gz", json.dumps({"title": "t", "context": "A paragraph."}) + "\n")
    found = Texts(tmp_path)
    assert set(found.squad.documents) - set(alone.documents) == {"A paragraph."}
    assert [q.query for q in found.squad.questions] == [q.query for q in alone.questions]
    for question in found.squad.questions[:20]:
        (gold,) = question.gold
        paragraphs = [
            {p["context"] for p in article["paragraphs"]}
            for article in SQUAD["data"]
            if question.query in [p["qas"][0]["question"] for p in article["paragraphs"]]
        ]
        assert {found.squad.documents[i] for i in [gold, *question.near]} == paragraphs[0]


def test_what_is_missing_is_said_before_anything_is_asked(tmp_path):
    def ruler(*tasks, data=tmp_path):
        frame = Frame(begin_ids=())
        return Ruler(make_tokenizer(), frame, tasks=tasks, lengths=[4096], samples=1, seed=1, data=data)

    with pytest.raises(ConfigError, match=r"squad\.json"):
        ruler("qa")
    with pytest.raises(ConfigError, match=r"hotpotqa\.json"):
        ruler("qa_2", data=None)
    with pytest.raises(ConfigError, match="is no folder"):
        ruler("vt", data=tmp_path / "nowhere")
    (tmp_path / "wonderwords_nounlist.txt").write_text("ice\n")
    with pytest.raises(ConfigError, match="once each, or none"):
        ruler("vt")
    for name in ("adjectivelist", "verblist"):
        (tmp_path / f"wonderwords_{name}.txt").write_text("cold\n")
    with pytest.raises(ConfigError, match=r"english_words\.json"):
        list(ruler("cwe").samples(ruler("cwe").cells()[0], {}))
    (tmp_path / "english_words.txt").write_text("few words")
    with pytest.raises(ConfigError, match="cwe needs 40 different words"):
        list(ruler("cwe").samples(ruler("cwe").cells()[0], {}))


@pytest.mark.parametrize("name, content, message", [
    ("squad.json", "version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    ("squad.json", "{}", "not as its name says"),
    ("squad_v2.json.gz", "{}", "cannot be read"),
    ("squad.json", b"\xff", "not UTF-8"),
])  # fmt: skip
def test_broken_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        _ = Texts(tmp_path).squad
    assert name in str(caught.value)


def test_two_files_of_a_kind_are_refused(tmp_path):
    for name in ("squad_v2_a.json", "squad_v2_b.json"):
        (tmp_path / name).write_text(json.dumps(SQUAD))
    with pytest.raises(ConfigError, match="could be meant"):
        Texts(tmp_path)
    (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
    assert len(Texts(tmp_path).squad.questions) == 56, "the original's own name is clear"


def test_settings_name_all_texts_whatever_is_asked(tmp_path):
    frame, data = Frame(begin_ids=(1,)), write_texts(tmp_path)
    one, other = (
        Ruler(make_tokenizer(), frame, tasks=[task], lengths=[n], samples=n, seed=1, data=data).settings()
        for task, n in (("vt", 10), ("qa", 20))
    )
    assert one == other and json.loads(json.dumps(one)) == one
    assert one["comparable"] is False and "squad: 56 of" in one["why"] and "essays" not in one["why"]
    assert one["texts"]["essays"]["original"] and not one["texts"]["words"]["original"]
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": ESSAYS + " More."}))
    changed = Ruler(make_tokenizer(), frame, tasks=["vt"], lengths=[10], samples=1, seed=1, data=data).settings()
    assert changed["texts"]["essays"]["sha256"] != one["texts"]["essays"]["sha256"]


def test_without_a_folder_the_haystack_is_pythons_own_text(monkeypatch):
    documents = [Document(source=str(i), text=f"document {i}") for i in range(40)]
    monkeypatch.setattr(texts, "read_corpus", lambda path: tuple(documents) if path is None else None)
    ruler = Ruler(make_tokenizer(), Frame(begin_ids=()), tasks=["vt"], lengths=[4096], samples=1, seed=1, data=None)
    found = ruler.settings()
    assert found["texts"]["essays"]["source"] == ["built in"] and found["texts"]["squad"] is None
    assert not found["comparable"] and "not RULER's essays" in found["why"]
    kept = [document.text for document in documents if document.split == "eval"]
    assert 0 < len(kept) < 40 and Texts(None).essays == "\n\n".join(kept)
