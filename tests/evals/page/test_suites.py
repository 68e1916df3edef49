"""What the sections of the suites print, against sums made here from what was written, and the paper's own numbers."""

import math
import sys
from itertools import pairwise, product
from pathlib import Path
from statistics import mean

import pytest
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).parent))
from folders import PNG, Folder, noise, read, row, smooth, tables, value

from rnope.evals.page import niah, perplexity, ruler, write_report
from rnope.evals.page.runs import read_runs
from rnope.evals.ruler.tasks import GROUPS
from rnope.report import draw, paper

LENGTHS, DEPTHS = (1024, 4096, 8192), (0.0, 50.0, 100.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Figures are laid out, but not turned into pixels: that is for test_drawing."""
    monkeypatch.setattr(draw, "png", lambda figure: PNG)
    return Folder(tmp_path / "out")


def page(folder: Folder) -> dict[str, list[list[str]]]:
    write_report(folder.out)
    return tables(read(folder.out)[1])


def some(length: int, depth: float, i: int) -> int:
    return noise(length, depth, i).randrange(4)


def test_needles_against_sums(folder: Folder) -> None:
    folder.niah("m", some, lengths=LENGTHS, depths=DEPTHS, samples=7, repeats=lambda n: max(1.0, n / 2000))
    found = page(folder)
    line = row(found["Needles found, by context length"], "m")
    for length in LENGTHS:
        expected = mean(10 * some(length, depth, i) / 3 for depth, i in product(DEPTHS, range(7)))
        assert value(line[f"{length:,}"]) == pytest.approx(expected, abs=0.00501)
        assert line[f"{length:,}"].endswith("n 21</sub>")
    every = mean(10 * some(length, depth, i) / 3 for length, depth, i in product(LENGTHS, DEPTHS, range(7)))
    assert value(line["raw score"]) == pytest.approx(every, abs=0.00501)
    beside = found["Beside the score: exact answers and controls"]
    for length in LENGTHS:
        exact = mean(some(length, depth, i) == 3 for depth, i in product(DEPTHS, range(7)))
        assert value(row(beside, "exact", "m")[f"{length:,}"]) == pytest.approx(exact, abs=0.00501)
        assert value(row(beside, "no needle", "m")[f"{length:,}"]) == 0
    assert value(row(beside, "needle alone", "m")["any length"]) == 10
    assert [row(beside, "haystack", "m")[f"{n:,}"] for n in LENGTHS] == ["1.00×", "2.05×", "4.10×"]
    assert f"raw score of 10: m {every:.2f}." in read(folder.out)[1]


def test_the_heat_map_has_every_cell_and_the_trained_length(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.niah("m", some, lengths=LENGTHS, depths=DEPTHS, samples=4)
    folder.niah("other", some, lengths=LENGTHS[:2], depths=DEPTHS, samples=4)
    drawn = []
    monkeypatch.setattr(draw, "heat_map", lambda axis, *shown: drawn.append(shown) or axis.imshow(shown[0]))
    niah.heat(read_runs(folder.out))
    (grid, lengths, depths, trained), (less, *_) = drawn
    assert (lengths, depths, trained) == (list(LENGTHS), list(DEPTHS), 4096)
    for (y, depth), (x, length) in product(enumerate(DEPTHS), enumerate(LENGTHS)):
        expected = mean(10 * some(length, depth, i) / 3 for i in range(4))
        assert grid[y][x] == pytest.approx(expected)
        assert math.isnan(less[y][x]) if length == 8192 else less[y][x] == pytest.approx(expected)


def test_no_trained_length_is_marked_where_nothing_is_longer(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.niah("m", some, lengths=LENGTHS[:2], depths=DEPTHS, samples=1)
    drawn = []
    monkeypatch.setattr(draw, "heat_map", lambda axis, *shown: drawn.append(shown) or axis.imshow(shown[0]))
    niah.heat(read_runs(folder.out))
    assert drawn[0][3] is None


def test_depths_that_a_length_lacks_are_told(folder: Folder) -> None:
    store = folder.niah("m", some, lengths=(1024,), depths=DEPTHS, samples=2)
    line = {"answer": "", "references": ("a",), "facts": {"town": "t"}}
    folder.cell(store, "standard-2048-d050", 2048, [line], row="standard", depth=50.0)
    cell = row(page(folder)["Needles found, by context length"], "m")["2,048"]
    assert cell == "0.00<br><sub>0.00–0.00; n 1; 1 of 3 depths</sub>"


def hit(task: str, length: int, i: int) -> bool:
    return noise(task, length, i).random() < 0.6


def test_ruler_against_sums_and_beside_the_paper(folder: Folder) -> None:
    folder.ruler("m", hit, lengths=(4096, 8192), samples=9)
    found = page(folder)
    retrieval = found["Retrieval: mean over eight tasks"]
    for group, title in (
        ("retrieval", "Retrieval: mean over eight tasks"),
        ("qa", "Question answering: mean over two tasks"),
    ):
        for length in (4096, 8192):
            tasks = [round(100 * mean(hit(task, length, i) for i in range(9)), 2) for task in GROUPS[group]]
            cell = row(found[title], "m")[f"{length:,}"]
            assert value(cell) == pytest.approx(mean(tasks), abs=0.0501) and cell.endswith(f"n {9 * len(tasks)}</sub>")
    assert retrieval[0] == ["model", "4,096", *(f"{2**k * 1024:,}" for k in range(3, 9))]
    for name in ("Baseline", "RNope-SWA"):
        printed = row(retrieval, f"paper: {name}")
        assert [printed[f"{2**k * 1024:,}"] for k in range(3, 9)] == list(paper.TABLE_6.row(name)[1:])
        assert printed["4,096"] == ""
    by_task = found["m: task by task"]
    assert [line[0] for line in by_task[1:]] == [
        name.replace("_", r"\_") for name in (*GROUPS["retrieval"], *GROUPS["qa"])
    ]
    assert value(row(by_task, r"qa\_1")["4,096"]) == pytest.approx(
        100 * mean(hit("qa_1", 4096, i) for i in range(9)), abs=0.0501
    )
    assert "Mean over all 13 tasks" not in found
    side = row(found["Score and what stands beside it"], "m", r"qa\_1", "4,096")
    hits = mean(hit("qa_1", 4096, i) for i in range(9))
    assert side["texts"] == "1.00×"
    assert (float(side["exact"]), float(side["nulls"])) == (0, pytest.approx(100 * (1 - hits), abs=0.0501))
    assert float(side["F1"]) == pytest.approx(100 * hits * 2 / 6, abs=0.0501)  # one word of "It is 00777, I think."


def test_a_part_of_a_group_is_told_and_not_set_beside_the_paper(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.ruler("m", hit, lengths=(4096, 8192), samples=3, tasks=("niah_single_1", "vt"))
    found = page(folder)
    assert row(found["Retrieval: mean over eight tasks"], "m")["8,192"].endswith("1 of 8 tasks</sub>")
    assert "RULER, of 100" not in read(folder.out)[1] and "Question answering: mean over two tasks" not in found
    monkeypatch.setattr(ruler, "_papers", lambda *_: pytest.fail("drawn beside the paper"))
    assert ruler.lines(read_runs(folder.out)) is not None


def test_all_thirteen_have_a_mean(folder: Folder) -> None:
    folder.ruler("m", hit, lengths=(4096,), samples=2, tasks=GROUPS["all"])
    assert row(page(folder)["Mean over all 13 tasks"], "m")["4,096"].endswith("n 26</sub>")


def test_texts_that_are_not_the_originals_are_told(folder: Folder) -> None:
    apart = {"seed": 42, "comparable": False, "why": "essays: these are not RULER's <essays>"}
    for name in ("a", "b"):
        folder.ruler(name, hit, lengths=(4096,), samples=2, settings=apart)
    folder.ruler("c", hit, lengths=(4096,), samples=2, settings={"seed": 42, "comparable": True, "why": ""})
    page(folder)
    (said,) = [line for line in read(folder.out)[1].splitlines() if line.startswith("- a and b: ")]
    assert said.endswith("(essays: these are not RULER's &lt;essays&gt;)")
    assert all(task.replace("_", "\\_") in said for task in GROUPS["retrieval"])


def right(task: str, i: int) -> float:
    return float(noise(task, i).random() < 0.55)


def test_benchmarks_against_sums_and_beside_the_paper(folder: Folder) -> None:
    folder.standard("m", {"winogrande": ("acc",), "arc_easy": ("acc", "acc_norm"), "mmlu": ("acc",), "agieval_sat_en": ("acc",),
                          "commonsense_qa": ("acc",), "piqa": ("acc",)}, right, samples=8)  # fmt: skip
    found = page(folder)
    table = found["Benchmarks"]
    # The paper's, in its order, then others.
    assert [line[0].split("<br>")[0] for line in table[1:]] == [
        "MMLU",
        "ARC-E",
        "SAT-en",
        "Winogrande",
        "CommonsenseQA",
        "piqa",
    ]
    for name, task, metric in (("MMLU", "mmlu", "acc"), ("ARC-E", "arc_easy", "acc_norm"), ("piqa", "piqa", "acc")):
        cell = row(table, name)["m"]
        assert value(cell) == pytest.approx(100 * mean(right(task + metric, i) for i in range(8)), abs=0.0501)
        assert cell.endswith("n 8; 5 shots</sub>")
    heads = [column.split("<br>")[0] for column in table[0]]
    assert heads == [
        "benchmark",
        "m",
        "paper: Baseline",
        "paper: RNope-SWA",
        "paper: RoPE",
        "paper: QK-Norm",
        "paper: NoPE",
    ]
    printed = {line[0].split("<br>")[0]: line[2:] for line in table[1:]}
    assert printed["MMLU"] == ["57.5", "59.5", "48.55", "48.21", "47.61"]
    assert printed["SAT-en"] == ["70.0", "71.9", "", "", ""] and printed["Winogrande"][:2] == ["68.5", "69.5"]
    assert printed["CommonsenseQA"] == ["", "", "68.30", "68.23", "66.42"] and printed["piqa"] == [""] * 5
    every = {(line[0], line[1]) for line in found["Every metric"][1:]}
    assert {("ARC-E", "acc"), ("ARC-E", r"acc\_norm"), ("MMLU", "acc, mean of 2 subjects")} <= every
    subjects = mean(mean(right("mmluacc", i) for i in range(k, 8, 2)) for k in range(2))
    assert value(row(found["Every metric"], "MMLU", "acc, mean of 2 subjects")["m"]) == pytest.approx(
        100 * subjects, abs=0.0501
    )
    markdown = read(folder.out)[1]
    assert "MBPP is not among them" in markdown and "Not comparable" not in markdown
    assert (
        f"MMLU, the first of 6 benchmarks, of 100: m {100 * mean(right('mmluacc', i) for i in range(8)):.1f}."
        in markdown
    )


def test_benchmarks_that_are_not_comparable_say_why(folder: Folder) -> None:
    folder.standard("m", {"mmlu": ("acc",)}, right, samples=8, documents=10, altered="choices <shuffled>", cut=2)
    found = page(folder)
    markdown = read(folder.out)[1]
    for why in ("choices &lt;shuffled&gt;", "only 8 of 10 documents", "2 prompts were longer than the model's context"):
        assert f"- m, MMLU: {why}" in markdown
    assert row(found["Benchmarks"], "MMLU")["m"].split("<br>")[0].endswith(" ≠")
    assert "m/standard: 2 prompts were longer" in markdown
    assert row(found["Answers by model and suite"], "m", "standard")["prompts cut"] == "2"
    assert row(found["Cells of standard"], "mmlu")["m"] == "8<br><sub>2 prompts cut</sub>"


def test_other_benchmarks_alone_have_no_columns_of_the_paper(folder: Folder) -> None:
    folder.standard("m", {"piqa": ("acc",)}, right, samples=3)
    folder.standard("n", {"boolq": ("acc",)}, right, samples=3)
    table = page(folder)["Benchmarks"]
    assert table[0] == ["benchmark", "m", "n"] and row(table, "boolq")["m"] == ""
    assert "MBPP" not in read(folder.out)[1]


def test_perplexity_against_sums(folder: Folder) -> None:
    folder.perplexity("m", smooth, lengths=LENGTHS, samples=5)
    found = page(folder)
    by_length = found["By context length"]
    for length in LENGTHS:
        edges = [0, *(2**k for k in range(4, length.bit_length() - 2)), length // 2, 3 * length // 4, length]
        spans = list(pairwise(edges))
        nats = mean(
            sum((b - max(a, 1)) * smooth(length, a, i) for a, b in spans) / (length - 1) for i in range(5)
        )  # the first token is given
        assert value(row(by_length, "m", "nats per token")[f"{length:,}"]) == pytest.approx(nats, abs=0.000501)
        assert value(row(by_length, "m", "perplexity")[f"{length:,}"]) == pytest.approx(math.exp(nats), abs=0.00501)
        bits = nats / math.log(2) / 4
        assert value(row(by_length, "m", "bits per byte of text")[f"{length:,}"]) == pytest.approx(bits, abs=0.0000501)
        last = math.exp(mean(smooth(length, 3 * length // 4, i) for i in range(5)))
        assert value(row(by_length, "m", "perplexity, last quarter")[f"{length:,}"]) == pytest.approx(last, abs=0.00501)
    positions = found["m: perplexity by position"]
    first = math.exp(mean(smooth(4096, 16, i) for i in range(5)))
    assert value(row(positions, "16–31")["4,096"]) == pytest.approx(first, abs=0.00501)
    assert row(positions, "6,144–8,191")["4,096"] == ""


def test_perplexity_beyond_all_numbers_is_printed_and_not_drawn(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.perplexity("m", lambda length, begin, i: 800.0 if begin >= 4096 else 2.0, lengths=LENGTHS, samples=2)
    found = page(folder)
    by_length = found["By context length"]
    assert row(by_length, "m", "perplexity")["1,024"].startswith("7.39")
    assert row(by_length, "m", "perplexity, last quarter")["8,192"].startswith("inf<br>")
    assert row(found["m: perplexity by position"], "4,096–6,143")["8,192"].startswith("inf<br>")
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda axis, at, values, **look: drawn.extend(values))
    perplexity.by_position(read_runs(folder.out))
    assert len(drawn) == 8 + 10 + 9 and set(drawn) == {math.exp(2.0)}


def test_perplexity_of_one_length_and_no_marks(folder: Folder) -> None:
    folder.perplexity("m", smooth, lengths=(1024,), samples=1, trained_tokens=None, windows=())
    found = page(folder)
    assert "By context length" in found and not (folder.out / "figures/perplexity-length.png").exists()


def test_tokenizers_apart_are_told_at_perplexity(folder: Folder) -> None:
    for name, digest in (("a", "1" * 64), ("b", "2" * 64)):
        folder.perplexity(name, smooth, lengths=(1024,), samples=1, tokenizer_sha256=digest)
    page(folder)
    assert "compare bits per byte and not perplexities" in read(folder.out)[1]
