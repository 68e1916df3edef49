"""Conversations as lists of messages, and as text by a chat template, which a tokenizer carries as a Jinja program.

A template comes from a folder that others may have written: it runs in Jinja's sandbox, set up as transformers (5.23)
has it so that both write the same text, and is handed plain text alone. It knows no tokens.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rnope.errors import ConfigError, UserError, check

if TYPE_CHECKING:
    from jinja2 import Template

START_OF_TURN, END_OF_TURN = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
SYSTEM, USER, CHATBOT = "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"
TURNS = (START_OF_TURN, END_OF_TURN, SYSTEM, USER, CHATBOT)
"""Command R's tokens of turns."""
CHAT_TEMPLATE = f"""\
{{%- set speakers = {{'system': '{SYSTEM}', 'user': '{USER}', 'assistant': '{CHATBOT}'}} -%}}
{{{{ bos_token }}}}
{{%- for message in messages %}}
    {{%- if message['role'] not in speakers %}}
        {{{{- raise_exception("no role " + message['role'] + ": use system, user or assistant") }}}}
    {{%- endif %}}
    {{{{- '{START_OF_TURN}' + speakers[message['role']] + message['content'] | trim + '{END_OF_TURN}' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '{START_OF_TURN}{CHATBOT}' }}}}
{{%- endif %}}
"""
"""Turns as Command R writes them (its ``default`` template, without a preamble)."""
_BEGIN, _END = "\U000f0000", "\U000f0001"
"""Around what spells a special token and is none, from a message through a template to its ids: characters that mean
nothing, those of transformers."""

Message = dict[str, str]
"""``role`` and ``content``."""


def checked(messages: object, field: str = "messages") -> list[Message]:
    """`messages` as plain text: a list of objects with a ``role`` and a ``content``, of both halves of surrogate pairs.

    Raises:
        ConfigError: it is no such list, holds no message, or a message says more than its role and content.
    """
    remedy = 'Write [{"role": "user", "content": "..."}, ...].'
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise ConfigError(field, messages, "is no list of messages", remedy)
    check(field, messages, bool(messages), "holds no message", remedy)
    found = []
    for number, message in enumerate(messages):
        held = message if isinstance(message, Mapping) else {}
        said = {key: value for key, value in held.items() if value is not None}  # as rows of a table have them
        texts = [said.pop(key, None) for key in ("role", "content")]
        if not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"{field}[{number}]", message, "has no strings 'role' and 'content'", remedy)
        other = ", ".join(sorted(map(str, said)))
        rule = "only role and content are read, and a template could do more with the rest"
        check(f"{field}[{number}]", other, not said, rule, "Leave it out.")
        # JSON can spell half a surrogate pair, which is no text.
        role, content = (str(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts)
        found.append({"role": role, "content": content})
    return found


def render(
    template: str, messages: Sequence[Message], *, tokens: Mapping[str, str], add_generation_prompt: bool = False,
    where: str = "chat template",
) -> str:  # fmt: skip
    """The text that `template` makes of `messages`, as transformers' ``apply_chat_template`` does.

    Args:
        template: a program in Jinja.
        messages: as `checked` gives them.
        tokens: what the template may name: ``bos_token``, ``eos_token`` and the like.
        add_generation_prompt: end with what an answer of the model begins behind.
        where: the file of the template, for messages.

    Raises:
        UserError: the template is no Jinja, or fails on these messages, or refuses them; it says why.
    """
    try:
        text = _compiled(template).render(
            messages=[dict(message) for message in messages], tools=None, documents=None,
            add_generation_prompt=add_generation_prompt, **tokens,
        )  # fmt: skip
        text.encode("utf-8")  # fails where the template spells half a surrogate pair
    except Exception as error:  # whatever the program of somebody else raises
        said = str(error) or type(error).__name__
        remedy = "Change the messages, or the template."
        raise UserError(f"{where}: the chat template cannot render these messages ({said}). {remedy}") from None
    return text


def mark(messages: Sequence[Message], names: re.Pattern[str]) -> list[Message]:
    """`messages` with marks around each of `names` that is in them."""
    plain = re.compile(f"[{_BEGIN}{_END}]")
    return [
        {key: names.sub(rf"{_BEGIN}\g<0>{_END}", plain.sub("", text)) for key, text in message.items()}
        for message in messages
    ]


def pieces(text: str, names: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """The pieces of a text rendered from `mark`ed messages, without the marks; and of each whether marks were around it."""
    # A template may have torn marks apart; then they stand for nothing.
    parts = re.split(f"{_BEGIN}({names.pattern}){_END}|[{_BEGIN}{_END}]", text)
    return ((part, number % 2 == 1) for number, part in enumerate(parts) if part)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> "Template":
    """`template` in an environment of its own, as that of transformers.utils.chat_template_utils."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import CallBlock, Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %} … {% endgeneration %}`` marks answers for trainers; here it is only what is inside."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("inside"), [], [], body).set_lineno(line)

        def inside(self, caller: Callable[[], str]) -> str:
            return caller()

    def refuse_private(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}")

    class Plain(Namespace):
        """A namespace without names that begin with an underscore: no way to Python's internals."""

        def __init__(*args: Any, **values: Any) -> None:  # as Jinja has it, so that a value may be called `self`
            held = dict(*args[1:], **values)
            for name in held:
                refuse_private(name)
            Namespace.__init__(args[0], held)

        def __setitem__(self, name: str, value: Any) -> None:
            refuse_private(name)
            super().__setitem__(name, value)

    class Dict:
        """`dict` for templates, without its other attributes."""

        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        # Jinja's own escapes what HTML would not take.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Plain,
    }
    return environment.from_string(template)
