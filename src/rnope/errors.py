"""What a user did wrong, said so that it can be mended: the field, the value, the rule and the remedy.

The command line turns a `UserError` into one message and exit code 2; anything else that escapes is ours (exit code 1).
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend. The message is complete: no traceback is needed to act on it."""


class ConfigError(UserError):
    """A field of a configuration breaks a rule.

    Args:
        field: dotted name as the user wrote it, for example ``stages[1].context_tokens``.
        value: what was given.
        rule: what it breaks.
        remedy: what to write instead.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        super().__init__(f"{field} = {shown(value)}: {rule}. {remedy}")
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def inside(self, parent: str) -> "ConfigError":
        """The same error, its field named from one level further out."""
        joint = "" if self.field.startswith("[") else "."
        return ConfigError(f"{parent}{joint}{self.field}" if parent else self.field, self.value, self.rule, self.remedy)


def shown(value: object) -> str:
    """`value` as a short literal."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def unknown(field: str, value: object, noun: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `valid`, with the nearest of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    remedy = (f"Did you mean {near[0]!r}? " if near else "") + f"Valid: {', '.join(names)}."
    return ConfigError(field, value, f"no such {noun}", remedy)
