"""What stands around a prompt: templates that fit, change with the day, or cannot be used."""

import json

import pytest

from rnope.errors import UserError
from rnope.evals.frame import Frame
from rnope.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the needle in the hay " * 9], vocab_size=280)


@pytest.fixture
def folder(tmp_path):
    """Makes a tokenizer folder with this template."""

    def make(template=None):
        TOKENIZER.save(tmp_path)
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        return tmp_path

    return make


TURNS = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def test_a_base_model_has_its_begin_and_nothing_else():
    assert Frame.bare(TOKENIZER) == Frame(begin_ids=(TOKENIZER.bos_id,), before="", after="", chat=False)


def test_a_chat_is_one_turn_with_the_answer_open(folder):
    template = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    assert Frame.of_chat(folder(template)) == Frame(
        begin_ids=(), before="<BOS_TOKEN><|user|>", after="<|end|><|assistant|>", chat=True
    )


def test_a_frame_around_a_text_is_the_template_with_that_text(folder):
    from transformers import AutoTokenizer

    place = folder(TURNS)
    frame = Frame.of_chat(place)
    text = "The needle? {{ 1 }} <|end|>"
    turn = [{"role": "user", "content": text}]
    whole = AutoTokenizer.from_pretrained(place).apply_chat_template(turn, tokenize=False)
    assert frame.before + text + frame.after == whole


def test_the_day_is_the_same_in_all_runs(folder):
    template = "{% if strftime_now is defined %}{% set day = strftime_now('%d %B %Y, %H:%M') %}{% endif %}" + TURNS
    frame = Frame.of_chat(folder("\n\n{{ strftime_now('%Y-%m-%d') }} " + template + "{{ day }}"))
    assert (frame.before, frame.after) == ("\n\n2025-01-01 <BOS_TOKEN><|user|>", "<|end|>01 January 2025, 00:00")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template can be used"),
        ("{{ raise_exception('no system turn') }}", r"no chat template can be used \(no system turn\)"),
        ("{% if %}", "no chat template can be used"),
        ("nothing of the user's", "does not hold the user's text once"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "does not hold the user's text once"),
        ("{{ messages[0].content | upper }}", "does not hold the user's text once"),
        ("{{ messages[0].content | reverse }}", "does not hold the user's text once"),
    ],
)
def test_templates_that_cannot_be_used(template, words, folder):
    with pytest.raises(UserError, match=words) as caught:
        Frame.of_chat(folder(template))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    def no(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no)
    with pytest.raises(UserError, match="no chat template can be used") as caught:
        Frame.of_chat(tmp_path / "nobody" / "nothing")
    assert "network" not in str(caught.value)


def test_code_of_a_folder_is_not_run(folder):
    place = folder(TURNS)
    config = json.loads((place / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": [None, "odd.Odd"]}}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "odd.py").write_text("raise SystemExit('code of a folder was run')")
    try:
        frame = Frame.of_chat(place)
    except UserError:
        return
    assert frame.before == "<BOS_TOKEN><|user|>"
