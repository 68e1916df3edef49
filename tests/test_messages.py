"""Conversations as text: the same as transformers' for templates of many kinds, nothing run outside the sandbox."""

import json
import re

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from rnope.errors import ConfigError, UserError
from rnope.messages import CHAT_TEMPLATE, checked, mark, pieces, render

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
COMMAND_R = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}\
{% set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% if system_message != false %}\
{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}\
{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% set content = message['content'] %}{% if message['role'] == 'user' %}\
{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}\
{% elif message['role'] == 'assistant' %}\
{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""
COMMAND_R7B = """{% if documents %}{{ raise_exception('none') }}
{%- else -%}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' -%}
        {{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + message['content'].strip() }}
        {{- '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}
    {%- else %}
        {{- '<|START_OF_TURN_TOKEN|><|' + message['role'] | upper + '_TOKEN|>' + message['content'].strip() }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}
    {{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}
{%- endif %}
{% endif %}
"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}{{ "no tools " }}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + "Today Date: " + date_string + "\\n\\n" + system_message }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
PROGRAM = """
{%- macro turn(message, last=false) -%}
    [{{ message.role }}|{{ message | tojson }}|{{ message | tojson(indent=2) }}]
  {%- if last %}{{ eos_token }}{% endif %}
{%- endmacro %}
{% set held = namespace(count=0, self='s') %}
  {% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set held.count = held.count + 1 %}
    {{ turn(message, last=loop.last) }}
    {% if message.role == 'assistant' %}
        {%- generation %}<{{ message.content }}>{% endgeneration %}
    {% endif %}
    {% if held.count == 4 %}{% break %}{% endif %}
  {% endfor %}
{{ held.count }} {{ held.self }} {{ dict(a=1).items() | list }} {{ dict.fromkeys([1], 2) }} {{ undefined_name }}
{{ '<&">' | tojson }} {{ messages | map(attribute='role') | join(',') }}
"""
TEMPLATES = {
    "ours": CHAT_TEMPLATE, "command r": COMMAND_R, "command r7b": COMMAND_R7B, "chatml": CHATML, "dated": DATED,
    "program": PROGRAM,
}  # fmt: skip
U, A, S = ({"role": role} for role in ("user", "assistant", "system"))
TALKS = {
    "one": [U | {"content": "Hello, <b>you</b>"}],
    "system": [S | {"content": " Be brief.\n"}, U | {"content": " häßlich 日本 \n\n"}],
    "many": [
        S | {"content": ""}, U | {"content": "1"}, A | {"content": " one\n"}, U | {"content": "2"}, A | {"content": ""},
        U | {"content": "{{ 7 * 7 }}{% raw %}"},
    ],
    "answered": [U | {"content": "q"}, A | {"content": "a </s> <s>"}],
}  # fmt: skip


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_write_what_they_write_in_transformers(name, talk, prompt):
    ours = render(TEMPLATES[name], checked(TALKS[talk]), tokens=TOKENS, add_generation_prompt=prompt)
    (theirs,), _ = render_jinja_template(
        [TALKS[talk]], chat_template=TEMPLATES[name], add_generation_prompt=prompt, **TOKENS
    )
    assert ours == theirs and (len(ours) > 10)


def test_our_turns_are_command_rs():
    talk = checked(TALKS["many"])
    assert render(CHAT_TEMPLATE, talk, tokens=TOKENS) == render(COMMAND_R, talk, tokens=TOKENS)
    text = render(CHAT_TEMPLATE, talk[:1], tokens={"bos_token": "B"}, add_generation_prompt=True)
    system = "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|><|END_OF_TURN_TOKEN|>"
    assert text == f"B{system}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"


REFUSED = [
    ("{{ raise_exception('no such thing') }}", "no such thing"),
    ("{% if %}", "Expected an expression"),
    ("{{ messages[9].content }}", "has no element 9"),
    ("{{ 'a' + 1 }}", "can only concatenate str"),
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
    ("{{ raise_exception.__globals__['x'] }}", "'__globals__' of 'function' object is unsafe"),
    ("{{ strftime_now.__init__.__globals__['__builtins__'] }}", "unsafe"),
    ("{% set n = namespace(_a=1) %}", "cannot hold '_a'"),
    ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "cannot hold '__class__'"),
    ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ("{% include 'x' %}", "no loader"),
    ("{{ '\\ud800' }}", "surrogates not allowed"),
]


@pytest.mark.parametrize(("template", "words"), REFUSED)
def test_what_a_template_cannot_do_is_one_message(template, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        render(template, checked(TALKS["one"]), tokens=TOKENS, where="chat_template.jinja")
    assert str(caught.value).startswith("chat_template.jinja: the chat template cannot render these messages (")


def test_a_role_that_our_template_has_no_word_for():
    with pytest.raises(UserError, match=r"no role tool: use system, user or assistant"):
        render(CHAT_TEMPLATE, [{"role": "tool", "content": "x"}], tokens=TOKENS)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages = []: holds no message"),
        ("text", "messages = 'text': is no list of messages"),
        ({"role": "user"}, "is no list of messages"),
        (None, "is no list of messages"),
        (["text"], "messages[0] = 'text': has no strings 'role' and 'content'"),
        ([TALKS["one"][0], {"role": "user"}], "messages[1] = {'role': 'user'}: has no strings"),
        ([{"role": "user", "content": ["a"]}], "has no strings"),
        ([{"role": 1, "content": "a"}], "has no strings"),
        (
            [{"role": "user", "content": "a", "tool_calls": [1]}],
            "messages[0] = 'tool_calls': only role and content are",
        ),
    ],
)
def test_what_is_no_conversation_is_said(messages, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        checked(messages)


def test_half_characters_and_empty_fields_are_mended():
    found = checked(json.loads('[{"role": "user", "content": "a\\ud800", "name": null}]'))
    assert found == [{"role": "user", "content": "a\ufffd"}]


def test_marks_go_through_a_template_and_out_again():
    names = re.compile(re.escape("</s>") + "|" + re.escape("<s>"))
    text = render(CHATML, mark(checked(TALKS["answered"]), names), tokens=TOKENS)
    found = list(pieces(text, names))
    assert "".join(piece for piece, _ in found) == render(CHATML, checked(TALKS["answered"]), tokens=TOKENS)
    assert [piece for piece, plain in found if plain] == ["</s>", "<s>"]
    forged = mark([{"role": "user", "content": "\U000f0000<s>\U000f0001"}], names)[0]["content"]
    assert forged == "\U000f0000<s>\U000f0001" and list(pieces("a\U000f0001<s>", names)) == [
        ("a", False),
        ("<s>", False),
    ]
