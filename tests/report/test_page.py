"""The page and its twin: whole, self-contained, escaped, and without a section where there is nothing to say."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rnope.report import write_report
from rnope.report.gate import Gate
from rnope.report.page import markdown_text, render
from rnope.results import Results

WHEN_ALL_LEARNED = ("score", "heat", "learning", "attention", "spread", "spread-kinds", "loss", "cost")
VOID = {"meta", "img", "br", "link", "hr", "input"}


def without_version_2(results: Results) -> Results:
    """As a file of version 1 has it."""
    plain = [replace(r, low={}, high={}, row_entropy=None, mean_entropy=None, sink=None, effective_span=None, retrieval=None)
             for r in results.attention]  # fmt: skip
    return replace(results, version=1, attention=tuple(plain), spreads=(), tasks=(), losses=(), costs=())


class Balance(HTMLParser):
    """Checks that every tag that opens closes in order; keeps attributes that load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "poster", "data") or (name == "href" and tag != "a"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and (value or "").startswith("#"):
                self.anchors.append((value or "")[1:])

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()


def parsed(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    balance.close()
    assert not balance.open
    assert set(balance.anchors) == set(balance.ids) and len(set(balance.ids)) == len(balance.ids)
    return balance


@pytest.mark.parametrize("fixture", ["report", "failed_report"])
def test_html_is_well_formed_and_loads_nothing(fixture: str, request: pytest.FixtureRequest) -> None:
    page = (request.getfixturevalue(fixture) / "report.html").read_text(encoding="utf-8")
    balance = parsed(page)
    assert balance.loads and all(load.startswith("data:image/png;base64,") for load in balance.loads)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert set(re.findall(r"https?://[^\"<\s]+", page)) == {"https://arxiv.org/abs/2501.18795"}


def test_the_figures_of_the_markdown_exist(report: Path) -> None:
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (report / "report.md").read_text(encoding="utf-8"))
    assert set(named) == {f"figures/{name}.png" for name in WHEN_ALL_LEARNED}
    assert all((report / name).read_bytes().startswith(b"\x89PNG") for name in named)


def test_the_order_of_the_page(report: Path) -> None:
    titles = re.findall(r"^## (.+)$", (report / "report.md").read_text(encoding="utf-8"), re.M)
    assert titles == [
        "Claims and verdicts", "Tables 2 to 9, ours beside the paper's", "Score against context length",
        "Needle by depth and length", "Controls and unseen keys", "Learning curves, and who learned",
        "Attention mass beside the paper's", "Loss by position", "RULER's tasks", "What each arm costs",
        "Layers of each arm", "The paper's raw scores and costs", "Scale map", "How it was obtained",
    ]  # fmt: skip


def test_the_answer_comes_from_the_verdicts(results: Results) -> None:
    page, markdown = render(Gate(results), {})
    sentence = "Of 4 claims, judged by rules fixed before the run, 3 are shown at this scale (“The hybrid"
    assert sentence in page and sentence in markdown
    turned = replace(results, verdicts=tuple(replace(v, verdict="not shown") for v in results.verdicts))
    assert "4 are not shown" in render(Gate(turned), {})[1]


def test_every_score_has_its_interval_and_n(results: Results) -> None:
    _, markdown = render(Gate(results), {})
    (section,) = re.findall(r"## Score against context length\n(.*?)\*\*Paired", markdown, re.S)
    rows = [line for line in section.splitlines() if line.startswith(("| r", "| s"))]
    scores = sum(len(re.findall(r"\d\.\d\d<br><sub>\d+\.\d\d–\d+\.\d\d; n \d+</sub>", row)) for row in rows)
    assert scores == len(Gate(results).needles())


def test_both_pages_say_the_same_numbers(report: Path) -> None:
    page, markdown = ((report / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    body = re.sub(
        r"<style>.*?</style>|data:image[^\"]*|style=\"[^\"]*\"|href=\"[^\"]*\"|<span>\(\d+ rows\)</span>",
        "",
        page,
        flags=re.S,
    )
    numbers = [set(re.findall(r"\d+\.\d+", text)) for text in (body, markdown)]
    assert numbers[0] == numbers[1]


def test_strange_names_are_escaped(results: Results, tmp_path: Path) -> None:
    strange = {"rope": '<img src=x onerror="a()"> | $x_1$ `b` [c](http://d.e)', "swa-rope": "_hidden & 鎖"}

    def named(name: str) -> str:
        return strange.get(name, name)

    renamed = replace(
        results,
        arms={named(arm): text for arm, text in results.arms.items()},
        models=tuple(replace(m, arm=named(m.arm), folder="<b>") for m in results.models if m.arm in strange),
        learning=tuple(replace(p, arm=named(p.arm)) for p in results.learning if p.arm in strange),
        needles=tuple(replace(r, arm=named(r.arm)) for r in results.needles if r.arm in strange),
        attention=tuple(replace(r, arm=named(r.arm)) for r in results.attention if r.arm in strange),
        spreads=tuple(replace(r, arm=named(r.arm)) for r in results.spreads if r.arm in strange),
        tasks=tuple(replace(r, arm=named(r.arm), task="<b> | $x$") for r in results.tasks if r.arm in strange),
        losses=tuple(replace(r, arm=named(r.arm)) for r in results.losses if r.arm in strange),
        costs=tuple(replace(r, arm=named(r.arm)) for r in results.costs if r.arm in strange),
        differences=tuple(replace(d, a=named(d.a), b=named(d.b)) for d in results.differences),
        notes=("<script>alert(1)</script>\n# not a heading",),
        provenance={"command": "</td></table><script src='http://evil.example/x.js'></script>"},
    )
    write_report(renamed, tmp_path)
    page, markdown = ((tmp_path / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    assert all(load.startswith("data:") for load in parsed(page).loads)
    for text in (page, markdown):
        assert "<script" not in text and "<img src=x" not in text and "<b>" not in text
        assert "&lt;script&gt;" in text
    assert "\n# not a heading" not in markdown and "](http" not in markdown.replace(r"\]", "")
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_markdown_text() -> None:
    assert markdown_text("a|b <i> *c* _d_\n#e") == r"a\|b &lt;i&gt; \*c\* \_d\_ \#e"


def test_empty_results_still_make_a_page(tmp_path: Path) -> None:
    nothing: dict[str, tuple[()]] = dict.fromkeys(("models", "learning", "needles", "attention", "trials"), ())
    empty = Results(recipe={}, scale={}, provenance={}, arms={}, differences=(), verdicts=(), **nothing)  # type: ignore[arg-type]
    written = write_report(empty, tmp_path)
    assert [path.name for path in written] == ["report.html", "report.md"]
    page = written[0].read_text(encoding="utf-8")
    parsed(page)
    assert "No claim was judged in this run" in page and "No sweep was recorded" in page
    for key in ("controls", "heat", "attention", "cost", "layers", "scale", "learning", "not-learned"):
        assert f'id="{key}"' not in page


def test_the_sweep_says_whether_all_arms_had_the_same_trials(results: Results) -> None:
    assert "Every arm had the same 3." in render(Gate(results), {})[0]
    assert "Arms did not all have the same trials." in render(Gate(replace(results, trials=results.trials[1:])), {})[0]


def test_sections_without_data_are_left_out(results: Results) -> None:
    page, _ = render(
        Gate(replace(results, trials=(), attention=(), differences=(), learning=(), scale={}, notes=())), {}
    )
    parsed(page)
    assert 'id="attention"' not in page and 'id="scale"' not in page and "Paired differences in score" not in page
    assert "No sweep was recorded" in page


def test_the_primary_endpoints_are_those_of_the_recipe(results: Results) -> None:
    pairs = [
        {"a": "rnope-swa", "b": "rope", "multiples": [2, 8]},
        {"a": "rnope-swa", "b": "swa-rope", "multiples": [4]},
    ]
    _, markdown = render(Gate(replace(results, recipe={**results.recipe, "pairs": pairs})), {})
    assert "named in advance, are 2×, 4× and 8×." in markdown


def test_a_second_report_replaces_the_first_and_leaves_nothing_beside(results: Results, tmp_path: Path) -> None:
    curve = tuple(p for p in results.learning if (p.arm, p.seed) == ("rope", 0))
    small = replace(without_version_2(results), models=(), needles=(), attention=(), differences=(), learning=curve)
    (tmp_path / "figures").mkdir()
    for name in ("figures/learning.png", "report.html", "figures/score.png"):
        (tmp_path / name).write_bytes(b"of an earlier report")
    written = write_report(small, tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(written)
    assert [path.stem for path in written] == ["report", "report", "learning", "not-learned"]
    first = [path.read_bytes() for path in written]
    write_report(small, tmp_path)
    assert [path.read_bytes() for path in written] == first


def test_a_file_of_version_1_gives_its_page(results: Results) -> None:
    page, markdown = render(Gate(without_version_2(results)), {})
    parsed(page)
    for key in ("loss", "tasks"):
        assert f'id="{key}"' not in page
    assert "Table 8" in markdown and "effective span" not in markdown and "No task of RULER was asked" in markdown


@pytest.mark.parametrize("name", ["cpu-demo", "cpu-fair", "cpu-uptrain"])
def test_committed_results_give_their_page(name: str) -> None:
    results = Results.load(Path(__file__).parents[2] / "benchmarks" / "results" / name / "results.json")
    page, markdown = render(Gate(results), {})
    parsed(page)
    assert len(markdown.encode()) < 300_000
