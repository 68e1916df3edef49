"""Options that commands which open models share, and what their values mean. No torch."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from rnope.errors import ConfigError, check
from rnope.evals.results import ModelFacts
from rnope.units import token_counts

MOST_TOKENS = 1 << 27
"""Of a context: a slip of the keyboard must not fill the memory with a haystack."""

NAME = click.option("--name", "names", multiple=True,
                    help="What reports call the model; once for each --model [default: from its path].")  # fmt: skip
DTYPE = click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]),
                     help="Of the weights [default: as stored].")  # fmt: skip
DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
THREADS = click.option("--threads", type=click.IntRange(min=1), help="Of the CPU [default: one per core].")
SEED = click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of the prompts.")
DRY_RUN = click.option("--dry-run", is_flag=True,
                       help="Print samples, tokens and hours at the measured speed, and stop.")  # fmt: skip
CHAT = click.option("--chat", is_flag=True, help="Ask in the model's chat template.")
HAYSTACK = click.option("--haystack", help="Text to hide needles in: a file or folder (.txt .md .jsonl .jsonl.gz ...) "
                        "[default: the English that Python itself carries].")  # fmt: skip
LENGTHS = click.option(
    "--lengths", default="1x,2x", show_default=True,
    help="Context lengths in tokens, prompt and answer together: 8k,32k,128k; 2x is twice the model's trained length.",
)  # fmt: skip


def chunk(what: str) -> Callable[[Any], Any]:
    """``--chunk``, with words on who reads so."""
    return click.option("--chunk", type=click.IntRange(min=1), default=2048, show_default=True, help=what)


def model_names(models: Sequence[str], given: Sequence[str], *, taken: Sequence[str] = ()) -> list[str]:
    """What each of `models` is called: folders of OUT have these names.

    Args:
        given: by the user, one for each; by default they are made from the models' paths.
        taken: folders that OUT has anyway.

    Raises:
        UserError: not one name for each, two alike, or one that no folder can have.
    """
    from rnope.evals.models.opening import default_name

    names = list(given) if given else [default_name(model) for model in models]
    if len(names) != len(models) or len(set(names)) < len(names):
        raise ConfigError(
            "--name", names, f"must be one for each of {len(models)} models, all different", "Give --name."
        )
    for name in names:
        fits = name.isprintable() and re.fullmatch(r"[^\s./][^/]{0,99}", name) is not None and name not in taken
        check("--name", name, fits, "is no name for a folder", "Use letters, digits, dots and hyphens.")
    return names


def lengths(text: str, model: ModelFacts) -> tuple[int, ...]:
    """Token counts; those that are multiples (``2x``) are of the model's trained length.

    Raises:
        ConfigError: none, too many, or a multiple of a length that the model does not say.
    """
    found: list[int] = []
    for part in listed(text):
        if re.fullmatch(r"[0-9]{1,6}x", part):
            trained = model.trained_tokens
            remedy = "Give lengths in tokens, such as 8k,16k."
            check("--lengths", part, trained is not None, "the model does not say its trained length", remedy)
            found.append(int(part[:-1]) * (trained or 0))
        else:
            found += token_counts(part)
    check("--lengths", text, len(found) > 0, "names no length", "Write 8k,32k or 1x,2x.")
    check("--lengths", max(found), max(found) <= MOST_TOKENS, f"is more than {MOST_TOKENS:,}", "Use shorter contexts.")
    return tuple(sorted(set(found)))


def listed(text: str) -> tuple[str, ...]:
    """The parts of ``a,b``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
