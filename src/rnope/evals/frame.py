"""What stands around a prompt: nothing for a base model, the turns of a conversation for one that was tuned to chat."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rnope.errors import UserError
from rnope.tokenizer import Tokenizer

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
    def of_chat(cls, folder: Path) -> "Frame":
        """The chat template of a tokenizer folder, one turn of the user's, the answer open.

        Raises:
            UserError: the folder has no template, or one that changes or repeats the user's text.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            turn = [{"role": "user", "content": _MARK}]
            template = tokenizer.get_chat_template()
            text = tokenizer.apply_chat_template(
                turn, chat_template=_CLOCK + template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is code in a language of its own: anything may be raised
            remedy = "Evaluate without --chat, or add a chat_template.jinja."
            raise UserError(f"{folder}: no chat template can be used ({error}). {remedy}") from None
        before, mark, after = str(text).partition(_MARK)
        if not mark or _MARK in after:
            raise UserError(f"{folder}: the chat template does not hold the user's text once. Evaluate without --chat.")
        return cls(begin_ids=(), before=before, after=after, chat=True)
