"""Functions of Python sources, cut out by `ast`; nothing is imported or run."""

import ast
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rnope.data.corpus import Document
from rnope.errors import ConfigError

_NOT_SHIPPED_CODE = {"site-packages", "dist-packages", "test", "tests", "pydoc_data", "lib2to3", "idle_test"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function or method, moved to the left margin."""

    file: str
    name: str
    """With its class before it and a dot."""
    text: str
    """Without a line break at its end."""
    calls: frozenset[str]
    """Names that it calls, with an object before them or not."""

    @property
    def label(self) -> str:
        """Names it among all functions."""
        return f"{self.file}: {self.name}"


def training_functions(path: str | None) -> tuple[tuple[Function, ...], ...]:
    """Functions of each file of a folder, or of one file, or of the standard library; in their order, labels distinct.

    A file is of the split that its docstrings are in, as documents of `builtin_documents`: code of a module whose
    docstrings serve an evaluation does not come. Files that do not parse are left out.

    Raises:
        ConfigError: no such path, or no function in it to train on.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if path is None else Path(path)
    files = []
    seen = set()
    try:
        found = [root] if root.is_file() else sorted(root.rglob("*.py"))
        exists = root.exists()
    except (OSError, ValueError):
        found, exists = [], False
    if not exists or path == "":
        raise ConfigError("corpus", path, "does not exist", "Give a folder of .py files, or none for Python's own.")
    for file in found:
        parts = file.relative_to(root).parts or (file.name,)
        if path is None and _NOT_SHIPPED_CODE & set(parts):
            continue
        source = _source(file)
        if source is None or source in seen:
            continue
        seen.add(source)
        if functions := _training_functions("/".join(parts), source):
            files.append(functions)
    if not files:
        raise ConfigError("corpus", path, "has no function in a .py file of the training split", "Use more files.")
    return tuple(files)


def _source(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return None


def parsed(source: str) -> ast.Module | None:
    """The tree of `source`, or None where it does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes that Python will refuse one day
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _training_functions(file: str, source: str) -> tuple[Function, ...]:
    tree = parsed(source)
    if tree is None:
        return ()
    nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    docstrings = "\n\n".join(doc for node in nodes if (doc := ast.get_docstring(node)))
    if Document(source=file, text=docstrings or source).split != "train":
        return ()
    lines = source.split("\n")
    functions: dict[str, Function] = {}
    for prefix, node in _definitions(tree):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        text = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
        # A string at the margin keeps its function from being moved there; two statements can share a line.
        if text.startswith(("def ", "async def ", "@")) and _is_one_function(text):
            function = Function(file=file, name=prefix + node.name, text=text.rstrip(), calls=_calls(node))
            functions.setdefault(function.name, function)
    return tuple(functions.values())


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for definition in inner:
            if isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield prefix, definition


def _is_one_function(text: str) -> bool:
    tree = parsed(text)
    return tree is not None and [type(node) for node in tree.body] in ([ast.FunctionDef], [ast.AsyncFunctionDef])


def _calls(function: ast.AST) -> frozenset[str]:
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    names = (c.id if isinstance(c, ast.Name) else c.attr if isinstance(c, ast.Attribute) else "" for c in called)
    return frozenset(filter(None, names))
