"""The page of evaluations as a whole: what it says of what was asked, and folders that are partial, unlike or empty."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from folders import PNG, Folder, parsed, read, row, tables, whole

from rnope.errors import UserError
from rnope.evals.page import write_report
from rnope.report import draw

DEPTHS = (0.0, 50.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Figures are laid out, but not turned into pixels: that is for test_drawing."""
    monkeypatch.setattr(draw, "png", lambda figure: PNG)
    return Folder(tmp_path / "out")


def test_a_folder_without_evaluations(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"holds no evaluation .*--out of `rnope eval"):
            write_report(out)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suite_is_named(folder: Folder) -> None:
    folder.begin("m", "chess")
    with pytest.raises(UserError, match="chess"):
        write_report(folder.out)


def test_a_run_that_has_only_begun(folder: Folder) -> None:
    store = folder.begin("m", "niah")
    written = write_report(folder.out)
    assert [path.name for path in written] == ["report.html", "report.md"]
    page, markdown = read(folder.out)
    assert parsed(page).ids == ["asked", "trust"] and "No cell is finished yet." in markdown
    folder.cell(store, "standard-1024-d050", 1024, [{"answer": "", "references": ("a",), "facts": {"town": "b"}}], samples=2,
                row="standard", depth=50.0)  # fmt: skip
    write_report(folder.out)
    markdown = read(folder.out)[1]
    assert "m/niah: 1 of 1 cells are not finished" in markdown and "## Needle" not in markdown


def test_one_cell_is_a_page(folder: Folder) -> None:
    store = folder.begin("m", "niah", trained_tokens=None, windows=(), parameters=None, model_type=None)
    line = {"answer": "a", "references": ("a", "b", "c"), "facts": {"town": "t"}}
    folder.cell(store, "standard-1024-d050", 1024, [line], row="standard", depth=50.0)
    write_report(folder.out)
    page, markdown = read(folder.out)
    parsed(page)
    assert row(tables(markdown)["Needles found, by context length"], "m")["1,024"].startswith("3.33<br>")
    assert "trained length" not in markdown and "windows" not in markdown.split("## Needle")[0]
    (folder.out / "figures" / "ruler.png").write_bytes(b"of an earlier page")
    write_report(folder.out)
    assert [path.name for path in (folder.out / "figures").iterdir()] == ["niah.png"]


def test_errors_are_counted_and_in_no_figure(folder: Folder) -> None:
    store = folder.begin("m", "niah")
    good = {"answer": "a", "references": ("a",), "facts": {"town": "t"}}
    bad = {
        "answer": "",
        "ended": "error",
        "error": "too long",
        "references": ("a",),
        "facts": {"town": "t"},
        "new_tokens": 0,
    }
    cut = {**good, "ended": "length"}
    folder.cell(store, "standard-1024-d050", 1024, [good, bad, cut, bad], row="standard", depth=50.0)
    folder.cell(store, "standard-2048-d050", 2048, [bad, bad], row="standard", depth=50.0)
    write_report(folder.out)
    markdown = read(folder.out)[1]
    assert "m/niah: 4 of 6 samples have no answer" in markdown
    found = tables(markdown)
    scores = row(found["Needles found, by context length"], "m")
    assert scores["1,024"] == "10.00<br><sub>10.00–10.00; n 2</sub>" and scores["2,048"] == ""
    counts = row(found["Answers by model and suite"], "m", "niah")
    assert (counts["samples"], counts["errors"], counts["answers cut"]) == ("6", "4", "1")
    cells = found["Cells of niah"]
    assert row(cells, "standard-1024-d050")["m"] == "4<br><sub>2 errors; 1 answers cut</sub>"


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"tokenizer_sha256": "b" * 64}, "niah: the models have different tokenizers"),
        ({"begin_ids": ()}, "niah: prompts begin with different ids"),
    ],
)
def test_unlike_models_are_told(folder: Folder, changes: dict[str, object], warning: str) -> None:
    for name, own in (("a", {}), ("b", changes)):
        folder.niah(name, lambda length, depth, i: 3, lengths=(1024,), depths=DEPTHS, samples=2, **own)
    write_report(folder.out)
    page, markdown = read(folder.out)
    assert warning in page and warning in markdown


def test_alike_models_are_not_warned_of(folder: Folder) -> None:
    for name in ("a", "b"):
        folder.niah(name, lambda length, depth, i: 3, lengths=(1024,), depths=DEPTHS, samples=2)
    write_report(folder.out)
    markdown = read(folder.out)[1]
    assert "Read with care" not in markdown
    counts = tables(markdown)["Answers by model and suite"]
    assert (row(counts, "a", "niah")["prompts"], row(counts, "b", "niah")["prompts"]) == ("first", "as a")


def test_unlike_settings_cells_weights_and_prompts_are_told(folder: Folder) -> None:
    folder.niah("a", lambda length, depth, i: 3, lengths=(1024, 4096), depths=DEPTHS, samples=2)
    folder.begin("a", "perplexity", sha256="f" * 64)
    store = folder.begin("b", "niah", {"seed": 7, "haystack": "d" * 16, "frame": {"chat": True}})
    line = {"answer": "a", "references": ("a",), "facts": {"town": "t"}, "prompt_sha256": "9" * 64}
    folder.cell(store, "standard-1024-d050", 1024, [line, line], row="standard", depth=50.0)
    write_report(folder.out)
    markdown = read(folder.out)[1]
    assert r"niah: the settings of a and b differ in frame.chat, score and seed." in markdown
    assert "niah: the models do not have the same cells and samples" in markdown
    assert "a: its suites were answered by different weights (000000000000 and ffffffffffff)." in markdown
    assert row(tables(markdown)["Answers by model and suite"], "b", "niah")["prompts"] == "1 of 1 cells unlike a"


def test_a_copied_folder_keeps_its_own_name(folder: Folder) -> None:
    store = folder.niah("m", lambda length, depth, i: 3, lengths=(1024,), depths=(50.0,), samples=2)
    store.folder.rename(store.folder.with_name("niah-old"))
    folder.niah("m", lambda length, depth, i: 0, lengths=(1024,), depths=(50.0,), samples=2)
    write_report(folder.out)
    scores = tables(read(folder.out)[1])["Needles found, by context length"]
    assert row(scores, "m")["raw score"].startswith("0.00") and row(scores, "m/niah-old")["raw score"].startswith(
        "10.00"
    )


def test_both_pages_say_the_same_numbers(folder: Folder) -> None:
    whole(folder, "rope")
    write_report(folder.out)
    page, markdown = read(folder.out)
    page = re.sub(r"<style>.*?</style>|data:image[^\"]*|style=\"[^\"]*\"|href=\"[^\"]*\"", "", page, flags=re.S)
    numbers = [set(re.findall(r"\d+\.\d+", text)) for text in (page, markdown)]
    assert numbers[0] == numbers[1] and len(numbers[0]) > 50


def test_what_was_asked_adds_up(folder: Folder) -> None:
    folder.niah("m", lambda length, depth, i: 3, lengths=(1024, 2048), depths=DEPTHS, samples=5)
    write_report(folder.out)
    line = row(tables(read(folder.out)[1])["What was asked"], "m", "niah")
    cells = [150, *(1024,) * 3, *(2048,) * 3]
    assert line["cells"] == str(len(cells)) and line["samples"] == str(5 * len(cells)) and line["seed"] == "42"
    assert line["prompt tokens"] == f"{sum(5 * (n - 8) for n in cells):,}"
    assert line["new tokens"] == str(5 * len(cells) * 4)
    assert float(line["hours"]) == pytest.approx(90 * len(cells) / 3600, abs=0.00501)
    assert "rnope eval niah --model m" in read(folder.out)[0]


def test_a_folder_without_its_log(folder: Folder) -> None:
    folder.niah("m", lambda length, depth, i: 3, lengths=(1024,), depths=DEPTHS, samples=2)
    (folder.out / "m/niah/log.jsonl").unlink()
    write_report(folder.out)
    assert "hours" not in tables(read(folder.out)[1])["What was asked"][0]
