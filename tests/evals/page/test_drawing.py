"""The page with its figures drawn: a whole folder, the same bytes twice, and names that no figure may trip over."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from folders import PNG, Folder, parsed, read, smooth, whole

from rnope.evals.page import FIGURES, write_report
from rnope.evals.store import Store
from rnope.report import draw, paper
from rnope.strict import to_plain


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


def test_a_whole_folder(folder: Folder) -> None:
    whole(folder, "rope")
    whole(folder, "rnope-swa", windows=(512, 1024))
    written = write_report(folder.out)
    assert [str(path.relative_to(folder.out)) for path in written] == [
        "report.html", "report.md", *(f"figures/{name}.png" for name in FIGURES)
    ]  # fmt: skip
    page, markdown = read(folder.out)
    balance = parsed(page)
    assert balance.ids == ["asked", "niah", "ruler", "standard", "perplexity", "trust"] and len(balance.loads) == len(
        FIGURES
    )
    assert set(re.findall(r"https?://[^\"<\s]+", page)) == {paper.LINK}
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown)
    assert named == [f"figures/{name}.png" for name in FIGURES]
    assert all((folder.out / name).read_bytes().startswith(PNG) for name in named)
    assert str(folder.out) not in page + markdown


def test_the_same_answers_give_the_same_bytes(folder: Folder) -> None:
    whole(folder, "rope")
    folder.perplexity("a", smooth, lengths=(1024, 8192), samples=2, tokenizer_sha256="b" * 64)
    first = [path.read_bytes() for path in write_report(folder.out)]
    results = [path.read_bytes() for path in sorted(folder.out.rglob("results.json"))]
    assert [path.read_bytes() for path in write_report(folder.out)] == first
    assert [path.read_bytes() for path in sorted(folder.out.rglob("results.json"))] == results and len(results) == 5


STRANGE = "<img src=x onerror=a()> | $x_1$ `b` [c](d) 鎖 _e"


def test_strange_names_are_escaped(folder: Folder) -> None:
    whole(folder, STRANGE, model_type="<script>alert(1)</script>", sha256="*not* <b>hex</b>")
    folder.ruler("_hidden", lambda task, length, i: True, lengths=(1024, 8192), samples=1, tasks=("qa_1",))
    store = Store(folder.out / STRANGE / "niah")
    store.log("start", command="rnope </pre><script src='x.js'></script>\n</details>", versions={}, cells=1)
    identity = store.identity()
    changed = replace(identity, settings={"<b>seed</b>": "</td><script>"}, versions={"<i>": "| a"})
    (store.folder / "run.json").write_text(json.dumps(to_plain(changed)), encoding="utf-8")
    write_report(folder.out)
    page, markdown = read(folder.out)
    parsed(page)
    assert "<script" not in page and "<img src=x" not in page and "<b>" not in page and "<i>" not in page
    outside = "\n".join(line for line in markdown.splitlines() if not line.startswith("    "))
    assert (
        "<script" not in outside
        and "<img" not in outside
        and "<b>" not in outside
        and "](d)" not in outside.replace(r"\]", "")
    )
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_many_lengths_and_depths_are_named_only_as_far_as_there_is_room() -> None:
    lengths = [1000 + 7500 * i for i in range(35)]
    with draw.look():
        figure, (first, second) = draw.new(6, 3, 1, 2)
        draw.token_axis(first, lengths)
        draw.heat_map(second, [[5.0] * 35] * 35, lengths, [100 * i / 34 for i in range(35)], 128_000)
        draw.png(figure)
    assert 5 <= len(first.get_xticks()) <= 15 and set(first.get_xticks()) <= set(lengths)
    assert len(second.get_xticks()) == 12 and len(second.get_yticks()) == 12 and not second.texts
    assert second.get_xticklabels()[-1].get_text() == f"{lengths[33]:,}"
    (line,) = second.lines
    assert line.get_xdata()[0] == sum(n <= 128_000 for n in lengths) - 0.5
