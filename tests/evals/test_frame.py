"""What stands around a prompt: templates that fit, change with the day, or cannot be used."""

from dataclasses import replace

import pytest

from rnope.errors import UserError
from rnope.evals.frame import Frame
from rnope.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the needle in the hay " * 9], vocab_size=280)


def chatting(template):
    return replace(TOKENIZER, companions={"chat_template.jinja": template})


TURNS = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"


def test_a_base_model_has_its_begin_and_nothing_else():
    assert Frame.bare(TOKENIZER) == Frame(begin_ids=(TOKENIZER.bos_id,), before="", after="", chat=False)


def test_a_chat_is_one_turn_with_the_answer_open():
    template = TURNS + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    assert Frame.of_chat(chatting(template)) == Frame(
        begin_ids=(), before="<BOS_TOKEN><|user|>", after="<|end|><|assistant|>", chat=True
    )


def test_a_frame_around_a_text_is_the_template_with_that_text(tmp_path):
    from transformers import AutoTokenizer

    chatting(TURNS).save(tmp_path)
    frame = Frame.of_chat(Tokenizer.load(tmp_path))
    text = "The needle? {{ 1 }} <|end|>"
    turn = [{"role": "user", "content": text}]
    whole = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(turn, tokenize=False)
    assert frame.before + text + frame.after == whole


def test_the_day_is_the_same_in_all_runs():
    template = "{% if strftime_now is defined %}{% set day = strftime_now('%d %B %Y, %H:%M') %}{% endif %}" + TURNS
    frame = Frame.of_chat(chatting("\n\n{{ strftime_now('%Y-%m-%d') }} " + template + "{{ day }}"))
    assert (frame.before, frame.after) == ("\n\n2025-01-01 <BOS_TOKEN><|user|>", "<|end|>01 January 2025, 00:00")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system turn') }}", r"cannot render these messages \(no system turn\)"),
        ("{% if %}", "cannot render these messages"),
        ("nothing of the user's", "does not hold the user's text once"),
        ("{{ messages[0].content }} {{ messages[0].content }}", "does not hold the user's text once"),
        ("{{ messages[0].content | upper }}", "does not hold the user's text once"),
        ("{{ messages[0].content | reverse }}", "does not hold the user's text once"),
    ],
)
def test_templates_that_cannot_be_used(template, words):
    with pytest.raises(UserError, match=words) as caught:
        Frame.of_chat(chatting(template))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_template_is_told_so():
    with pytest.raises(UserError, match=r"no chat template.*--chat"):
        Frame.of_chat(TOKENIZER)
