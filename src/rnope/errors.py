"""What a user did wrong, said so that it can be mended: the field, the value, the rule and the remedy.

The command line turns a `UserError` into one message and exit code 2; anything else that escapes is ours (exit code 1).
"""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend. The message is complete, on one line: no traceback is needed to act on it."""

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


class ConfigError(UserError):
    """A field of a configuration breaks a rule.

    Args:
        field: dotted name as the user wrote it, for example ``stages[1].context_tokens``.
        value: what was given.
        rule: what it breaks.
        remedy: what to write instead.
    """

    def __init__(self, field: str, value: object, rule: str, remedy: str) -> None:
        super().__init__(f"{_short(field, 1000)} = {shown(value)}: {rule}. {remedy}")
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its four parts, since worker processes raise it too."""
        return type(self), (self.field, self.value, self.rule, self.remedy)

    def inside(self, parent: str) -> "ConfigError":
        """The same error, its field named from one level further out."""
        joint = "" if self.field.startswith("[") else "."
        return ConfigError(f"{parent}{joint}{self.field}" if parent else self.field, self.value, self.rule, self.remedy)


def check(field: str, value: object, holds: bool, rule: str, remedy: str) -> None:
    """Raise the `ConfigError` of these words unless the rule `holds`."""
    if not holds:
        raise ConfigError(field, value, rule, remedy)


def shown(value: object) -> str:
    """`value` as a short literal."""
    try:
        return _short(repr(value), 80)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; tables in tables without end
        return f"<{type(value).__name__} too large to show>"


def unknown(field: str, value: object, noun: str, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is not one of `valid`, with the nearest of them."""
    names = sorted(valid)
    folded = {name.casefold(): name for name in reversed(names)}
    given = value if isinstance(value, str) else shown(value)
    near = difflib.get_close_matches(given[:200].casefold(), folded, n=1, cutoff=0.4)
    remedy = f"Did you mean {shown(folded[near[0]])}? " if near else ""
    listed = ", ".join(_short(name, 80) for name in names[:50]) + (", ..." if len(names) > 50 else "")
    return ConfigError(field, value, f"no such {noun}", f"{remedy}Valid: {listed or 'none'}.")


def _short(text: str, length: int) -> str:
    """Head and tail of a long text: the end of a path says most."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def _one_line(text: str) -> str:
    """`text` with line breaks, control characters and halves of surrogate pairs escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
