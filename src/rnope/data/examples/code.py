"""Long code instructions: many functions of real files, and one thing to do that needs a certain one or all of them.

Write a function out with a variable renamed; go on with a copy whose names are changed; list the functions that call a
given one. Answers are made by `ast` and `tokenize`, so that they are right by construction.
"""

import ast
import io
import tokenize
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from rnope.data.examples.draft import Counter, Draft, take
from rnope.data.examples.invented import Inventor
from rnope.data.examples.material import digest_of
from rnope.data.examples.sources import Function, parsed
from rnope.errors import ConfigError

TASKS = ("rename", "complete", "callers")
_INTRODUCTION = "Here are functions from files of Python code, each under the name of its file and its own."
_MOST_CALLERS = 6
_LINES = range(5, 81)
"""Of a function that is to be written."""


class Code:
    """Instructions about the functions of Python files."""

    kind = "code"

    def __init__(self, files: Sequence[Sequence[Function]]) -> None:
        self._files = files
        self._writable = [f for functions in files for f in functions if f.text.count("\n") + 1 in _LINES]
        self.digest = digest_of(text for functions in files for f in functions for text in (f.label, f.text))

    def draft(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        """See `Task`."""
        task = rng.choice(TASKS)
        if task == "callers":
            return self._callers(rng, counter, budget_tokens)
        function = self._target(rng, counter, budget_tokens // 6)
        names = renamable(function.text)
        changed = rng.sample(names, 1 if task == "rename" else min(len(names), rng.randint(2, 4)))
        inventor = Inventor(rng)
        renames = {name: _unlike(function.text, inventor) for name in changed}
        text = renamed(function.text, renames)
        listed = ", ".join(f"`{old}` to `{new}`" for old, new in renames.items())
        where = f"{function.name} of {function.file}"
        rule = "Comments and strings stay as they are."
        if task == "rename":
            ask = f"\n\nWrite out {where} with a variable renamed everywhere, {listed}. {rule}"
            completion = f"\n\n{text}"
        else:
            lines = text.split("\n")
            cut = rng.choice([i for i in range(len(lines) // 4, 2 * len(lines) // 3) if lines[i].strip()]) + 1
            begun, completion = "\n".join(lines[:cut]), "".join(f"\n{line}" for line in lines[cut:])
            ask = f"\n\nBelow begins a copy of {where} with variables renamed: {listed}. {rule} Go on to its end.\n\n{begun}"
        shown = self._fill(rng, counter, budget_tokens - counter.parts(ask, completion), [function])
        return Draft(task=task, prompt="".join([_INTRODUCTION, *map(_shown, shown), ask]), completion=completion)

    def _callers(self, rng: Random, counter: Counter, budget_tokens: int) -> Draft:
        ask = (
            "\n\nWhich of the functions above call `{}`, by itself or as a method of something? Name each by its file and its "
            "own name, in the order in which they stand, one a line.\n\nAnswer:"
        )
        reserve = min(256, budget_tokens // 8)
        shown = self._fill(rng, counter, budget_tokens - counter.parts(ask) - reserve, [])
        tally = Tally(name for function in shown for name in function.calls)
        names = sorted(name for name, times in tally.items() if times <= _MOST_CALLERS)
        rng.shuffle(names)
        for name in names:
            completion = "".join(f"\n{f.label}" for f in shown if name in f.calls)
            if counter.parts(completion, name) <= reserve:
                prompt = "".join([_INTRODUCTION, *map(_shown, shown), ask.format(name)])
                return Draft(task="callers", prompt=prompt, completion=completion)
        raise ConfigError("tokens", budget_tokens, "holds no functions that call another", "Use longer examples.")

    def _target(self, rng: Random, counter: Counter, most_tokens: int) -> Function:
        """A function to write: of moderate length, and with variables that can be renamed."""
        for index in rng.sample(range(len(self._writable)), len(self._writable)):
            function = self._writable[index]
            if counter.parts(_shown(function)) <= most_tokens and renamable(function.text):
                return function
        rule = f"has no function of {_LINES[0]} to {_LINES[-1]} lines, within {most_tokens:,} tokens, with a local variable"
        raise ConfigError("corpus", f"{len(self._files)} files", rule, "Use more files, or longer examples.")

    def _fill(self, rng: Random, counter: Counter, budget_tokens: int, chosen: list[Function]) -> list[Function]:
        """Functions of whole files in a random order, among them the chosen ones."""

        def tokens(block: list[Function]) -> list[int]:
            return counter.each([_shown(function) for function in block])

        budget = budget_tokens - counter.parts(_INTRODUCTION) - sum(tokens(chosen))
        labels = {function.label for function in chosen}
        shuffled = rng.sample(range(len(self._files)), len(self._files))
        others = (function for index in shuffled for function in self._files[index] if function.label not in labels)
        shown = take(others, tokens, budget, what="corpus", misses=64)
        for function in chosen:
            shown.insert(rng.randint(0, len(shown)), function)
        return shown


def _shown(function: Function) -> str:
    return f"\n\n# {function.label}\n{function.text}"


def _unlike(text: str, inventor: Inventor) -> str:
    while (word := inventor.word()) in text:
        pass
    return word


def _names(text: str) -> Iterator[tokenize.TokenInfo]:
    return (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NAME)


def renamable(text: str) -> list[str]:
    """Variables of a function that are bound in it and can be renamed by replacing each token that spells them.

    Left out is every name that is also spelled as something else (an attribute, a keyword argument, a function), or stands
    in an f-string, whose inside is a token in some versions of Python and not in others.
    """
    tree = parsed(text)
    assert tree is not None
    uses: Tally[str] = Tally()
    bound, barred = set(), {"self", "cls", "_"}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            uses[node.arg] += 1
            bound.add(node.arg)
        elif isinstance(node, ast.Name):
            uses[node.id] += 1
            if isinstance(node.ctx, ast.Store):
                bound.add(node.id)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            barred.update(node.names)
        elif isinstance(node, ast.JoinedStr):
            barred.update(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
    spelled = Tally(token.string for token in _names(text))
    return sorted(name for name in bound - barred if uses[name] == spelled[name])


def renamed(text: str, renames: Mapping[str, str]) -> str:
    """`text` with every token that spells an old name replaced by the new one."""
    lines = text.split("\n")
    for token in reversed([token for token in _names(text) if token.string in renames]):
        row, column = token.start
        line = lines[row - 1]
        lines[row - 1] = line[:column] + renames[token.string] + line[column + len(token.string) :]
    return "\n".join(lines)
