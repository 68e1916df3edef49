"""Commands that messages, docstrings, recipes, documents and the Makefile name: they exist, and so do their options."""

import ast
import re
from pathlib import Path

import click
import pytest

from rnope import cli

ROOT = Path(__file__).parents[1]
QUOTED = re.compile(r"`rnope ([^`]+)`")
TYPED = re.compile(r"^[\s$]*(?:rnope|\$\(RUN\)) (.+)$", re.MULTILINE)


def named(path):
    """What stands behind ``rnope``: in quotes, and outside of Python also on lines of their own."""
    if path.suffix != ".py":
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        return QUOTED.findall(text) + TYPED.findall(text)
    found = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        values = [part.value if isinstance(part, ast.Constant) else "X" for part in parts]
        found += QUOTED.findall("".join(value for value in values if isinstance(value, str)))
    return found


def wrong(line):
    """What `line` names that does not exist, or None. A group without its command has the options of all of them."""
    words, command = re.split(r" [#|;>&]", line)[0].split(), cli.app
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
        if words[0] not in command.commands:
            return words[0]
        command, words = command.commands[words[0]], words[1:]
    commands = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
    options = {name for each in commands for parameter in each.params for name in parameter.opts} | {"--help"}
    return next(
        (word for word in words if word.startswith("--") and re.match(r"--[\w-]*", word)[0] not in options), None
    )


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("show 8b", "show"),
        ("data bild --out X", "bild"),
        ("layers --sise 8b", "--sise"),
        ("layers --size=8b  # --sise", None),
        ("eval --model X", None),
        ("eval SUITE --modl X", "--modl"),
    ],
)
def test_what_does_not_exist_is_found(line, word):
    assert wrong(line) == word


def test_every_command_that_is_named_exists():
    files = [path for place in ("src", "docs", "benchmarks") for path in (ROOT / place).rglob("*")]
    files = [path for path in files if path.suffix in (".py", ".toml", ".md", ".html")]
    lines = [(path, line) for path in [*files, ROOT / "README.md", ROOT / "Makefile"] for line in named(path)]
    mistakes = [f"{path.relative_to(ROOT)}: rnope {line}: {wrong(line)}" for path, line in lines if wrong(line)]
    assert len(lines) > 100 and not mistakes, (len(lines), mistakes)
