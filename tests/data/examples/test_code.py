"""Code: what is shown is of the files, and every answer is right by the trees of what is shown."""

import ast
import re
from pathlib import Path

import pytest

from rnope.data.corpus import Document
from rnope.data.examples.code import TASKS, Code, renamable, renamed
from rnope.data.examples.draft import FULL, Counter, make
from rnope.data.examples.sources import training_functions
from rnope.errors import ConfigError

HEADING = re.compile(r"\n\n# (\S+\.py: [\w.]+)\n")


def shown(prompt):
    """Functions of the prompt by label, and what is asked."""
    begin = re.search(r"\n\n(?:Write out|Below begins|Which of the functions)", prompt).start()
    _, *parts = HEADING.split(prompt[:begin])
    assert len(set(parts[::2])) == len(parts) // 2
    return dict(zip(parts[::2], parts[1::2], strict=True)), prompt[begin:].strip()


def dump(text, renames=None):
    """The one function of `text`, variables renamed in the tree."""
    (function,) = ast.parse(text).body
    for node in ast.walk(function):
        for field in {ast.Name: ("id",), ast.arg: ("arg",)}.get(type(node), ()):
            setattr(node, field, (renames or {}).get(getattr(node, field), getattr(node, field)))
    return ast.dump(function)


def called(text):
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return {getattr(func, "id", getattr(func, "attr", None)) for func in calls}


def check_answer(example):
    """Whether the completion is right, by what the prompt shows; returns the functions shown."""
    functions, ask = shown(example.prompt)
    if example.task == "callers":
        name = re.search(r"call `(\w+)`", ask)[1]
        right = [label for label, text in functions.items() if name in called(text)]
        assert example.completion == "".join(f"\n{label}" for label in right) and right
        return functions
    where = re.search(r"(?:Write out|a copy of) (\S+) of (\S+) with", ask)
    original = functions[f"{where[2]}: {where[1]}"]
    renames = dict(re.findall(r"`(\w+)` to `(\w+)`", ask))
    assert renames and not any(new in original for new in renames.values())
    if example.task == "rename":
        (old,) = renames
        written = example.completion.removeprefix("\n\n")
        assert not re.search(
            rf"(?<![\w.]){old}\b", re.sub(r"#.*|\"\"\".*?\"\"\"|'[^']*'|\"[^\"]*\"", "", written, flags=re.S)
        )
    else:
        written = ask.partition("Go on to its end.\n\n")[2] + example.completion
        assert example.completion.startswith("\n") and example.completion.count("\n") >= 2
    assert dump(written) == dump(original, renames) != dump(original)
    assert len(written.split("\n")) == len(original.split("\n"))
    return functions


@pytest.fixture(scope="module")
def made(sources, tokenizer):
    task, counter = Code(training_functions(sources)), Counter(tokenizer)
    return [make(task, counter, seed=0, number=n, tokens=(3000, 7000)[n % 2]) for n in range(36)]


def test_answers_are_right_by_the_trees_of_what_is_shown(made):
    for example in made:
        assert len(check_answer(example)) > 8
    assert {example.task for example in made} == set(TASKS)


def test_lengths_and_where_prompt_and_completion_meet(made, tokenizer):
    for number, example in enumerate(made):
        asked = (3000, 7000)[number % 2]
        together = tokenizer.encode(example.prompt + example.completion)
        assert together == tokenizer.encode(example.prompt) + tokenizer.encode(example.completion)
        assert FULL * asked <= len(together) + 2 == example.tokens <= asked


def test_functions_are_those_of_the_files(tmp_path):
    (tmp_path / "a").mkdir()
    text = (
        "x = 1\n\n@cache\n@other(3)\ndef one(a):\n    def inner():\n        return go(a)\n    return inner\n\n\n"
        'class C:\n    y = 2\n\n    async def two(self):\n        """Doc\n        string."""\n        await self.z.go()\n\n'
        "    def two(self):\n        pass\n\n    def three(self):\n        return '''\nat the margin'''\n"
        "class D:\n  def four(self): return 4\n"
    )
    docstrings = (f"Doc\nstring {i}." for i in range(99))
    docstring = next(doc for doc in docstrings if Document(source="", text=doc).split == "train")
    path = tmp_path / "a" / "b.py"
    path.write_text(text.replace("string.", docstring.removeprefix("Doc\n")))
    (functions,) = training_functions(str(tmp_path))
    found = {f.label: f for f in functions}
    assert list(found) == ["a/b.py: one", "a/b.py: C.two", "a/b.py: D.four"]
    one = found["a/b.py: one"]
    assert one.text == "@cache\n@other(3)\ndef one(a):\n    def inner():\n        return go(a)\n    return inner"
    assert one.calls == {"other", "go"} and found["a/b.py: C.two"].calls == {"go"}
    assert found["a/b.py: C.two"].text.startswith('async def two(self):\n    """Doc\n')
    (alone,) = training_functions(str(path))
    assert [f.label for f in alone] == ["b.py: one", "b.py: C.two", "b.py: D.four"]


def test_files_go_by_the_split_of_their_docstrings(sources):
    """A module's docstrings are a document of the corpus that an evaluation may use."""
    kept = {functions[0].file for functions in training_functions(sources)}
    expected, by_source = set(), set()
    for number in range(60):
        file = f"{'deep/' if number % 2 else ''}m{number}.py"
        text = Path(sources, file).read_text(encoding="utf-8")
        tree = ast.parse(text)
        owners = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        docstrings = "\n\n".join(filter(None, map(ast.get_docstring, owners)))
        assert f"zq{number}q" in docstrings
        if Document(source="", text=docstrings).split == "train":
            expected.add(file)
        if Document(source="", text=text).split == "train":
            by_source.add(file)
    assert kept == expected != by_source


FUNCTION = '''def f(a, b, *, c=0, **d):
    """a and b."""
    e = a + a  # a
    b.e = g(c=c)
    with h() as i:
        i(f"{e} {i}", lambda j: j + a)
    global k
    k = d
    try:
        l, (m, n) = d, (e, a)
    except E as o:
        p: int = o
    return [q for q in m if (r := q)], l, self_
'''


def test_what_can_be_renamed():
    # b, d, l, m, n, p, q, r and a are names alone; c is a keyword, e an attribute and in an f-string as i, k global,
    # o spelled by `except` alone, j an argument.
    assert renamable(FUNCTION) == ["a", "b", "d", "j", "l", "m", "n", "p", "q", "r"]
    assert renamable("def f(self, cls, _):\n    return self") == []
    assert renamable("def f(x):\n    match x:\n        case [y]: return y") == ["x"]


def test_renaming_changes_code_alone():
    text = renamed(FUNCTION, {"a": "long_name", "q": "w"})
    assert '"""a and b."""' in text and "e = long_name + long_name  # a" in text
    assert "lambda j: j + long_name)" in text and "[w for w in m if (r := w)]" in text
    assert renamed(text, {"long_name": "a", "w": "q"}) == FUNCTION
    assert renamed("def f(x):\n    s = 'é\u2028x'; x = x\x0c\n    return x", {"x": "yy"}) == (
        "def f(yy):\n    s = 'é\u2028x'; yy = yy\x0c\n    return yy"
    )


@pytest.mark.parametrize("path", ["", "nowhere", "\x00", "x" * 5000])
def test_a_path_that_is_none(path):
    with pytest.raises(ConfigError, match=r"^corpus = .*does not exist"):
        training_functions(path)


def test_sources_that_do_not_serve(tmp_path, sources, counter):
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b"# \xff\ndef f(): pass\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "a.txt").write_text("def f(): pass")
    with pytest.raises(ConfigError, match=r"^corpus = .*has no function in a \.py file"):
        training_functions(str(tmp_path))
    task = Code(training_functions(sources))
    with pytest.raises(ConfigError, match=r"^corpus = '[\d,]+ tokens': are all there is to train on"):
        make(task, counter, seed=0, number=0, tokens=1_000_000)
    for number in range(6):
        with pytest.raises(ConfigError, match=r"tokens|longer examples"):
            make(task, counter, seed=0, number=number, tokens=60)


def test_escapes_that_python_warns_of_are_read_in_silence(tmp_path):
    for i in range(20):
        (tmp_path / f"a{i}.py").write_text(f"def f():\n    return '\\d{i}'\n")
    assert training_functions(str(tmp_path))


@pytest.mark.slow
def test_the_standard_library(tokenizer):
    task, counter = Code(training_functions(None)), Counter(tokenizer)
    for number in range(60):
        check_answer(make(task, counter, seed=5, number=number, tokens=8192))
