"""Conversations: turn by turn the same as all at once, at the cost of the new tokens; and the command over them."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnope
from rnope import cli
from rnope.complete import command
from rnope.complete.chat import Conversation, read_messages
from rnope.complete.completer import Completer, cost_lines
from rnope.errors import UserError
from rnope.generate import Greedy, Sample
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "The ring holds the window; the full layer holds everything. " * 20
WANTED = {"max_new_tokens": 8, "sampling": Greedy()}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT], vocab_size=300, chat=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("chat") / "model"
    rnope.save(tiny_model(vocab_size=tokenizer.vocab_size), path, tokenizer=tokenizer)
    return path


@pytest.fixture
def model(folder):
    return Completer(folder, prefill_chunk_tokens=32)


class Script:
    """A rule that writes what it was told."""

    def __init__(self, ids):
        self.ids = list(ids)

    def generators(self, sequences, device):
        return [None] * sequences

    def choose(self, logits, generators):
        return torch.tensor([self.ids.pop(0)])


def test_an_answer_ends_with_its_turn(model, tokenizer):
    assert model.stop_ids == (tokenizer.eos_id, tokenizer.end_of_turn_id)
    ids = model.encode_chat([SYSTEM, user("Why?")])
    assert ids == tokenizer.encode_chat([SYSTEM, user("Why?")], add_generation_prompt=True)
    for end in model.stop_ids:
        script = Script([*tokenizer.encode("the ring"), end, 9, 9])
        pieces, cost = model.chat([SYSTEM, user("Why?")], max_new_tokens=20, sampling=script)
        assert "".join(pieces) == "the ring" and script.ids == [9, 9] and cost.prompt_tokens == len(ids)
    greedy = model.engine.generate([ids], max_new_tokens=8).tokens[0]
    pieces, _ = model.stream(ids, ignore_stop=True, **WANTED)
    assert "".join(pieces) == "".join(tokenizer.stream(greedy))


def test_a_turn_costs_its_new_tokens_and_answers_as_if_all_were_read_at_once(model, tokenizer):
    conversation, read = Conversation(model, [SYSTEM]), 0
    for turn in range(10):
        text = f"Turn {turn}: what holds the window?"
        said = tokenizer.encode(f"the full layer holds {turn}")
        script = Script([*said, tokenizer.end_of_turn_id])
        whole = conversation.ask(text)
        told = []
        pieces, cost = conversation.answer(text, max_new_tokens=60, sampling=script, progress=told.append)
        assert "".join(pieces) == f"the full layer holds {turn}" and not script.ids
        assert (cost.before_tokens, cost.prompt_tokens) == (read, len(whole) - read)
        assert told[-1] == len(whole) and told == sorted(set(told))
        read = len(whole) + len(said)
    assert (
        cost.prompt_tokens < 45 < 250 < read
        and f"read behind {cost.before_tokens}" in cost_lines(cost, model.engine)[0]
    )
    assert conversation.messages[-1] == {"role": "assistant", "content": "the full layer holds 9"}
    assert len(conversation.messages) == 21
    expected, _ = model.chat([*conversation.messages, user("So?")], **WANTED)
    pieces, cost = conversation.answer("So?", **WANTED)
    assert "".join(pieces) == "".join(expected) and cost.prompt_tokens < 30


def test_an_answer_that_reads_otherwise_later_is_read_again(model, tokenizer):
    """Letters one by one, and white space that the template takes away: not the tokens that the text has."""
    conversation = Conversation(model)
    for text in (" ring window", "ring"):
        first = conversation.ask("one")
        letters = [tokenizer.backend.token_to_id(c) for c in text.replace(" ", "Ġ")]
        assert letters != tokenizer.encode(text.strip())
        list(conversation.answer("one", max_new_tokens=30, sampling=Script([*letters, tokenizer.eos_id]))[0])
        expected, _ = model.chat([*conversation.messages, user("two")], **WANTED)
        whole = conversation.ask("two")
        pieces, cost = conversation.answer("two", **WANTED)
        assert "".join(pieces) == "".join(expected)
        assert (cost.before_tokens, cost.prompt_tokens) == (len(first), len(whole) - len(first))


def test_another_beginning_is_read_anew(model):
    conversation = Conversation(model, [user("a"), {"role": "assistant", "content": "b"}])
    list(conversation.answer("c", **WANTED)[0])
    conversation.messages[0]["content"] = "z"
    expected, _ = model.chat([*conversation.messages, user("d")], **WANTED)
    pieces, cost = conversation.answer("d", **WANTED)
    assert "".join(pieces) == "".join(expected) and cost.before_tokens == 0


@pytest.mark.parametrize("read", [0, 1, 3])
def test_an_answer_that_is_cut_stands_as_far_as_it_came(model, read):
    conversation = Conversation(model)
    pieces, _ = conversation.answer("one", max_new_tokens=40, sampling=Greedy(), ignore_stop=True)
    said = [next(pieces) for _ in range(read)]
    pieces.close()
    assert conversation.messages == ([user("one"), {"role": "assistant", "content": "".join(said)}] if read else [])
    expected, _ = model.chat([*conversation.messages, user("two")], **WANTED)
    pieces, cost = conversation.answer("two", **WANTED)
    assert "".join(pieces) == "".join(expected) and (cost.before_tokens > 0) is (read > 0)


def test_an_interrupt_inside_a_pass_breaks_nothing(model, monkeypatch):
    conversation, step = Conversation(model), model.engine.step

    def interrupted(states, ids):
        step(states, ids)
        raise KeyboardInterrupt  # behind the pass: the state has one token more than is written down

    monkeypatch.setattr(model.engine, "step", interrupted)
    pieces, _ = conversation.answer("one", max_new_tokens=40, sampling=Greedy(), ignore_stop=True)
    with pytest.raises(KeyboardInterrupt):
        list(pieces)
    monkeypatch.undo()
    expected, _ = model.chat([*conversation.messages, user("two")], **WANTED)
    pieces, cost = conversation.answer("two", **WANTED)
    assert "".join(pieces) == "".join(expected) and cost.before_tokens > 0


def test_what_has_no_room_leaves_the_conversation_as_it_was(model):
    conversation = Conversation(model)
    list(conversation.answer("one", **WANTED)[0])
    before = list(conversation.messages)
    for tokens, words in ((10**15, "tokens fit"), (0, "max_new_tokens = 0")):
        with pytest.raises(UserError, match=words):
            conversation.answer("two", max_new_tokens=tokens, sampling=Greedy())
    assert conversation.messages == before
    list(conversation.answer("two", **WANTED)[0])
    assert len(conversation.messages) == 4


def test_draws_follow_the_seed(model):
    rule = Sample(temperature=2.0, seed=5)
    texts = ["".join(Conversation(model).answer("a", max_new_tokens=9, sampling=rule)[0]) for _ in range(2)]
    pieces, _ = model.chat([user("a")], max_new_tokens=9, sampling=rule)
    assert texts == ["".join(pieces)] * 2


def test_what_a_text_is_in_a_conversation():
    talk = [SYSTEM, user("a")]
    assert read_messages("a") == [user("a")] and read_messages("a", "Be brief.") == talk
    assert read_messages(json.dumps(talk)) == talk and read_messages(json.dumps(talk[1:]), "Be brief.") == talk
    for text in ("[1, 2]", '{"role": "user"}', '[{"a": 1}]', "[" * 100_000, "[]", '"a"'):
        assert read_messages(text) == [user(text)]
    with pytest.raises(UserError, match="begin with a system message, and --system gives another"):
        read_messages(json.dumps(talk), "x")
    with pytest.raises(UserError, match=r"messages\[0\] .* has no strings"):
        read_messages('[{"role": "user"}]')


# The command


def test_the_command_answers_by_the_template(folder, model, capsys, tmp_path):
    pieces, _ = model.chat([SYSTEM, user("Why?")], **WANTED)
    expected = "".join(pieces)
    (tmp_path / "talk.json").write_text(json.dumps([SYSTEM, user("Why?")]))
    common = ["generate", str(folder), "--chat", "--max-new-tokens", "8"]
    for said in (["Why?", "--system", SYSTEM["content"]], ["--file", str(tmp_path / "talk.json")]):
        assert cli.run([*common, *said, "--stats"]) == 0
        out, err = capsys.readouterr()
        assert out == expected + "\n" and f"{len(model.encode_chat([SYSTEM, user('Why?')]))} tokens read" in err
    assert cli.run([*common, "Why?", "--dry-run"]) == 0
    assert f"to read {len(model.encode_chat([user('Why?')])) + 8} tokens" in capsys.readouterr().out


def terminal(monkeypatch, lines):
    """Standard input is a terminal on which `lines` are typed; an exception is raised in their place."""
    typed = iter(lines)

    def read(prompt):
        assert prompt == "> "
        line = next(typed, EOFError)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())


def test_turn_by_turn_until_the_end_of_input(folder, model, capsys, monkeypatch):
    terminal(monkeypatch, ["one", "  ", "two"])
    told = ["--system", SYSTEM["content"], "--max-new-tokens", "8", "--stats"]
    assert cli.run(["generate", str(folder), "--chat", *told]) == 0
    conversation = Conversation(model, [SYSTEM])
    expected = ["".join(conversation.answer(text, **WANTED)[0]) for text in ("one", "two")]
    out, err = capsys.readouterr()
    assert out == "".join(f"{text}\n" for text in expected) + "\n"
    assert err.count("tokens read;") == 1 and err.count("tokens read behind") == 1


def test_ctrl_c_ends_an_answer_and_not_the_conversation(folder, capsys, monkeypatch):
    terminal(monkeypatch, ["one", "two"])
    echo, calls = command.click.echo, []

    def pressed(text="", **options):
        calls.append(text)
        if len(calls) == 2:
            raise KeyboardInterrupt
        echo(text, **options)

    monkeypatch.setattr(command.click, "echo", pressed)
    assert cli.run(["generate", str(folder), "--chat", "--max-new-tokens", "5", "--ignore-stop"]) == 0
    assert capsys.readouterr().out.count("\n") >= 3 and len(calls) >= 5
    terminal(monkeypatch, [KeyboardInterrupt])
    assert cli.run(["generate", str(folder), "--chat"]) == 130


def test_a_template_that_writes_nothing_is_no_prompt(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("{% if false %}{{ messages }}{% endif %}")
    with pytest.raises(UserError, match="no token in the prompt"):
        Completer(tmp_path / "m").encode_chat([user("a")])


def test_mistakes_are_said_before_anybody_types(folder, tmp_path, capsys, monkeypatch):
    plain = tmp_path / "plain"
    tokenizer = Tokenizer.train([TEXT], vocab_size=300)
    rnope.save(tiny_model(vocab_size=tokenizer.vocab_size), plain, tokenizer=tokenizer)
    (tmp_path / "bad.json").write_text('[{"role": "tool", "content": "x"}]')
    terminal(monkeypatch, [AssertionError])
    for arguments, words in [
        ((plain, "--chat"), "no chat template, so it cannot write a conversation. Use a model"),
        ((plain, "--chat", "a"), "no chat template"),
        ((folder, "a", "--system", "b"), "--system is for --chat"),
        ((folder, "--chat", ""), "The prompt is empty"),
        ((folder, "--chat", "--file", tmp_path / "bad.json"), "chat_template.jinja: the chat template cannot render"),
        ((folder, "--chat", "--dry-run"), "No prompt"),
        ((folder,), "No prompt"),
    ]:
        assert cli.run(["generate", *map(str, arguments)]) == 2, arguments
        said = capsys.readouterr()
        assert words in said.err and said.out == "" and "Traceback" not in said.err


@pytest.mark.slow
def test_on_a_terminal(folder):
    """The program itself, with keys pressed: an answer that is stopped, another, and the end of input."""
    ours, theirs = pty.openpty()
    arguments = ["generate", folder, "--chat", "--ignore-stop", "--max-new-tokens", "100000", "--threads", "1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "rnope", *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        env=os.environ | {"PYTHONPATH": str(Path(rnope.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(word, more=0):
        nonlocal seen
        while word not in seen:
            seen += os.read(ours, 4096)
        seen = seen[seen.index(word) + len(word) :]
        while len(seen) < more:
            seen += os.read(ours, 4096)

    try:
        for _ in range(2):
            until(b"> ")
            os.write(ours, b"Tell me.\n")
            until(b"Tell me.\r\n", more=200)
            os.write(ours, b"\x03")
        until(b"> ")
        os.write(ours, b"\x04")
        assert program.wait(30) == 0
    finally:
        program.kill()
        os.close(ours)
