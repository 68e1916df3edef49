"""What stands around a prompt: nothing for a base model, the turns of a conversation for one that was tuned to chat."""

from dataclasses import dataclass, replace
from datetime import datetime

from rnope.errors import UserError
from rnope.tokenizer import TEMPLATE, Tokenizer

_MARK = "\u27e6prompt\u27e7"
_DAY = datetime(2025, 1, 1)
"""Some templates tell the model the date: it is the same one in all runs, or prompts would change from day to day."""
_REPLACED = "".join(f".replace('%{letter}', '{_DAY.strftime('%' + letter)}')" for letter in "AaBbdmYyHMSIpj")
_CLOCK = f"{{% macro strftime_now(format) %}}{{{{ format{_REPLACED} }}}}{{% endmacro %}}\n"
"""Stands before a template, in the place of the function that would tell it the time. Its line's end is dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """Text before and after the user's; the answer's first words, where a task gives some, come behind `after`."""

    begin_ids: tuple[int, ...]
    """Special ids that the prompt begins with; none where `before` names them itself."""
    before: str = ""
    after: str = ""
    chat: bool = False

    @classmethod
    def bare(cls, tokenizer: Tokenizer) -> "Frame":
        """For continuing a text."""
        return cls(begin_ids=tokenizer.begin_ids)

    @classmethod
    def of_chat(cls, tokenizer: Tokenizer) -> "Frame":
        """The chat template of `tokenizer`, one turn of the user's, the answer open.

        Raises:
            UserError: there is no template, or one that changes or repeats the user's text.
        """
        remedy = "Evaluate without --chat, or add a chat_template.jinja."
        template = tokenizer.chat_template
        if template is None:
            raise UserError(f"The tokenizer has no chat template. {remedy}")
        dated = replace(tokenizer, companions={**tokenizer.companions, TEMPLATE: _CLOCK + template})
        text = dated.render_chat([{"role": "user", "content": _MARK}], add_generation_prompt=True)
        before, mark, after = text.partition(_MARK)
        if not mark or _MARK in after:
            raise UserError(f"The chat template does not hold the user's text once. {remedy}")
        return cls(begin_ids=(), before=before, after=after, chat=True)
