"""Conversations in a build: the ids of transformers, and the loss on the last answer; bad ones by file and line."""

import json
import re
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer

from rnope.data import build as building
from rnope.data.build import BuildRequest, build
from rnope.data.shards import Shards
from rnope.data.sources import Example, examples, find_sources, read_blocks
from rnope.errors import ConfigError, UserError
from rnope.tokenizer import EOS, Tokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ENDED = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)


def talk(number, turns=1, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {number}, part {turn}: 漢字? \n"})
        messages.append({"role": "assistant", "content": f" Answer {number * turn} to {number}."})
    return messages


TALKS = [talk(n, 1 + n % 3, "Be brief." if n % 2 else None) for n in range(12)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of ours, for conversations."""
    path = tmp_path_factory.mktemp("tokenizer") / "ours"
    texts = [message["content"] for messages in TALKS for message in messages]
    Tokenizer.train(texts, vocab_size=330, chat=True).save(path)
    return path


def documents(folder, split="train"):
    shards = Shards.open(folder, split)
    return [(list(map(int, ids)), completion) for ids, completion in shards.first_documents(shards.documents)]


def check_chain(out, theirs, talks, *, ends_itself):
    """Every document is what transformers writes, without BOS and with one EOS; the answer begins behind its prompt."""
    found = documents(out)
    assert len(found) == len(talks)
    for (ids, completion), messages in zip(found, talks, strict=True):
        whole = theirs.apply_chat_template(messages)["input_ids"]
        prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
        bos = int(whole[0] == theirs.bos_token_id)
        assert ids == whole[bos:] + ([] if ends_itself else [theirs.eos_token_id])
        assert completion == len(prompt) - bos and ids[:completion] == prompt[bos:]
        answer = theirs.decode(ids[completion:])
        assert messages[-1]["content"].strip() in answer and "Question" not in answer


def test_the_whole_chain_with_our_template(folder, tmp_path):
    lines = write(tmp_path / "a.jsonl", [{"messages": messages} for messages in TALKS])
    request = BuildRequest(inputs=(lines,), tokenizer=folder, validation=0.0)
    build(request, tmp_path / "out")
    check_chain(tmp_path / "out", AutoTokenizer.from_pretrained(tmp_path / "out"), TALKS, ends_itself=False)
    tokenizer = Tokenizer.load(tmp_path / "out")
    for (ids, completion), messages in zip(documents(tmp_path / "out"), TALKS, strict=True):
        said = tokenizer.encode(messages[-1]["content"].strip())
        assert ids[completion:] == [*said, tokenizer.end_of_turn_id, tokenizer.eos_id]
    assert Shards.open(tmp_path / "out").tokenizer().chat_template == tokenizer.chat_template is not None


@pytest.mark.parametrize(("template", "ends_itself"), [(CHATML, False), (ENDED, True)])
def test_the_whole_chain_with_templates_of_others(folder, template, ends_itself, tmp_path):
    theirs = tmp_path / "theirs"
    Tokenizer(Tokenizer.load(folder).backend, {"chat_template.jinja": template}).save(theirs)
    talks = [messages for messages in TALKS if messages[0]["role"] == "user"]
    lines = write(tmp_path / "a.jsonl", [{"messages": messages} for messages in talks])
    build(BuildRequest(inputs=(lines,), tokenizer=theirs, validation=0.0), tmp_path / "out")
    check_chain(tmp_path / "out", AutoTokenizer.from_pretrained(theirs), talks, ends_itself=ends_itself)


def test_a_tokenizer_trained_on_conversations(tmp_path):
    """Beside text and examples; with its template, so that `rnope train` has a model that converses."""
    rows = [{"messages": messages} for messages in TALKS]
    rows += [{"text": "plain text"}, {"prompt": "Ask", "completion": " answer"}]
    lines = write(tmp_path / "a.jsonl", rows)
    request = BuildRequest(inputs=(lines,), vocab_size=300, validation=0.3)
    index, _ = build(request, tmp_path / "out")
    assert index.vocabulary.vocab_size == 300
    tokenizer = Tokenizer.load(tmp_path / "out")
    assert tokenizer.stop_ids == (2, 4)
    held = {tuple(ids) for ids, _ in documents(tmp_path / "out", "validation")}
    sampled = "".join(building._sample(request, find_sources(request.inputs)))
    kept = [m for m in TALKS if (*tokenizer.encode_chat(m)[1:], tokenizer.eos_id) in held]
    assert 0 < len(kept) < len(TALKS)
    for messages in TALKS:
        assert (messages[-1]["content"] in sampled) is (messages not in kept), "no tokenizer learns from validation"


def test_what_a_message_spells_is_text(folder, tmp_path):
    messages = [{"role": "user", "content": f"a{EOS}b"}, {"role": "assistant", "content": "<|END_OF_TURN_TOKEN|> c"}]
    lines = write(tmp_path / "a.jsonl", [{"messages": messages}])
    build(BuildRequest(inputs=(lines,), tokenizer=folder, validation=0.0), tmp_path / "out")
    ((ids, completion),) = documents(tmp_path / "out")
    tokenizer = Tokenizer.load(folder)
    assert ids.count(tokenizer.eos_id) == 1 and ids.count(tokenizer.end_of_turn_id) == 2
    assert tokenizer.decode(ids[completion:]) == f"<|END_OF_TURN_TOKEN|> c<|END_OF_TURN_TOKEN|>{EOS}"


def read(path):
    (source,) = find_sources((str(path),))
    return [e for block in read_blocks(source) for e in examples(block, "text")]


def test_every_kind_of_file_gives_the_same_conversations(tmp_path, monkeypatch):
    table = {"id": list(range(12)), "prompt": ["p"] * 12, "messages": TALKS}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", [{"messages": messages, "prompt": "p"} for messages in TALKS])
    found = [read(tmp_path / name) for name in ("a.jsonl", "a.parquet")]
    load = SimpleNamespace(load_dataset=lambda *a, **b: iter([{"messages": m, "n": 3} for m in TALKS]))
    monkeypatch.setitem(sys.modules, "datasets", load)
    (source,) = find_sources(("datasets:some/talks",))
    found.append([e for block in read_blocks(source) for e in examples(block, "text")])
    for rows in found:
        assert [row.messages for row in rows] == [tuple(messages) for messages in TALKS]
        assert [row.digest for row in rows] == [row.digest for row in found[0]]
    assert len({row.digest for row in found[0]}) == 12
    assert found[0][3].where.endswith("a.jsonl:4") and found[0][0].text == TALKS[0][-1]["content"]
    assert found[0][0].digest != Example(text=found[0][0].text, prompt=found[0][0].prompt).digest
    other = write(tmp_path / "b.jsonl", [{"text": "t", "messages": TALKS[0]}, {"messages": [*talk(1)[:1], talk(0)[1]]}])
    assert read(other)[0] == Example(text="t") and read(other)[1].text == " Answer 0 to 0."
    blank = [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]
    assert read(write(tmp_path / "c.jsonl", [{"messages": blank}])) == [None]


A, U = {"role": "assistant", "content": "a"}, {"role": "user", "content": "u"}
BAD = [
    ([A], "a.jsonl:2': its messages do not end with an answer of the assistant to others"),
    ([U, A, U], "a.jsonl:2': its messages do not end with an answer"),
    ([], "a.jsonl:2': messages holds no message"),
    ("text", "a.jsonl:2': messages is no list of messages"),
    ([U, 3], "a.jsonl:2': messages[1] has no strings 'role' and 'content'"),
    ([U, {"role": "assistant"}], "a.jsonl:2': messages[1] has no strings"),
    ([U, A | {"tool_calls": [{}]}], "a.jsonl:2': messages[1] only role and content are read"),
    ([{"role": "tool", "content": "x"}, A], "a.jsonl:2': chat_template.jinja: the chat template cannot render these"),
]


@pytest.mark.parametrize(("messages", "words"), BAD)
def test_a_bad_conversation_is_named(messages, words, folder, tmp_path):
    lines = write(tmp_path / "a.jsonl", [{"text": "t"}, {"messages": messages}])
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(BuildRequest(inputs=(lines,), tokenizer=folder, validation=0.0), tmp_path / "out")


def test_a_tokenizer_without_a_template(tmp_path):
    Tokenizer.train(["a"], vocab_size=260).save(tmp_path / "plain")
    lines = write(tmp_path / "a.jsonl", [{"messages": TALKS[0]}])
    with pytest.raises(ConfigError, match=r"a\.jsonl:1': The tokenizer has no chat template"):
        build(BuildRequest(inputs=(lines,), tokenizer=tmp_path / "plain", validation=0.0), tmp_path / "out")


def test_another_template_is_another_build(folder, tmp_path):
    lines = write(tmp_path / "a.jsonl", [{"messages": TALKS[0]}])
    request = BuildRequest(inputs=(lines,), tokenizer=folder, validation=0.0)
    build(request, tmp_path / "out")
    assert build(request, tmp_path / "out")[1] == 0
    Tokenizer(Tokenizer.load(folder).backend, {"chat_template.jinja": CHATML}).save(tmp_path / "other")
    with pytest.raises(UserError, match="of another kind: chat_template"):
        build(BuildRequest(inputs=(lines,), tokenizer=tmp_path / "other", validation=0.0), tmp_path / "out")


def test_a_long_conversation_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("rnope.data.sources.DOCUMENT_BYTES", 50)
    with pytest.raises(ConfigError, match="is one document of more than 50 bytes"):
        read(write(tmp_path / "a.jsonl", [{"messages": [U | {"content": "x" * 40}, A | {"content": "y" * 40}]}]))
