"""Tables 2 to 9: the paper's rows as printed, ours as measured, nothing of a model that did not learn the task."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from rnope.report import balance, forms, losses, paper, tasks
from rnope.report.blocks import Cell, Table
from rnope.report.forms import UNTESTABLE
from rnope.report.gate import Gate
from rnope.results import Results

ARMS = (("rope-extended", "RoPE"), ("rnope-swa", "RNoPE-10k-swa"))


@pytest.fixture(scope="module")
def marked(results: Results) -> Results:
    return replace(
        results, recipe={"arms": [{"name": name, "paper": model} for name, model in ARMS], "baseline": "rope"}
    )


def tables(results: Results) -> dict[str, Table]:
    return {table.caption.split(":")[0]: table for table in forms.tables(Gate(results))}


def row(table: Table, *start: str) -> tuple[Cell, ...]:
    (found,) = [line for line in table.rows if tuple(cell.text for cell in line[: len(start)]) == start]
    return found


def test_every_row_of_the_paper_stands_as_printed(marked: Results) -> None:
    made = tables(marked)
    assert list(made) == [f"Table {n}" for n in range(2, 10)]
    for theirs in paper.TABLES:
        ours = [[cell.text for cell in line if cell.tone == "paper"] for line in made[f"Table {theirs.number}"].rows]
        printed = [line for line in ours if line]
        assert len(printed) == len(theirs.rows)
        for line, cells in zip(printed, theirs.rows, strict=True):
            numbers = [cell for cell in cells if cell.replace(".", "", 1).isdigit()]
            assert [text for text in line if text.replace(".", "", 1).isdigit()] == numbers


def test_masses_are_means_with_both_intervals(marked: Results) -> None:
    lower = tuple(
        replace(r, mass={**r.mass, "needle": 0.5}, low={**r.low, "needle": 0.41}, high={**r.high, "needle": 0.61})
        if (r.arm, r.seed, r.kind, r.context_tokens) == ("rnope-swa", 1, "nope", 1024)
        else r
        for r in marked.attention
    )
    made = tables(replace(marked, attention=lower))
    line = row(made["Table 8"], "rnope-swa", "32k")
    assert line[1].small == "here 1,024"
    assert line[3] == Cell("0.4900", "samples 0.4100–0.6100\nseeds 0.4800–0.5000")
    assert line[6:8] == (Cell("", "out of reach"), Cell("", "out of reach")) and line[9].text == "0.7700"
    assert row(made["Table 4"], "rnope-swa")[2] == Cell("0.4900", "0.4800–0.5000")
    assert row(made["Table 3"], "rope-extended", "128k")[3].text == f"{0.11 / 4:.4f}"


def test_needles_stand_at_the_length_that_stands_for_the_papers(marked: Results) -> None:
    at = {(r.arm, r.seed): r for r in marked.needles if r.row == "standard" and r.context_tokens == 4096}
    rows = [at["rope-extended", seed] for seed in (0, 1)]
    cell = row(tables(marked)["Table 4"], "rope-extended")[-1]
    assert cell.text == f"{(rows[0].score + rows[1].score) / 2:.2f}" and cell.small.endswith(
        f"n {rows[0].n + rows[1].n:,}"
    )


def test_table_2_has_the_loss_and_says_what_is_not_testable(marked: Results) -> None:
    line = row(tables(marked)["Table 2"], "rope-extended")
    assert line[1].text == "4.310" and list(line[2:7]) == [UNTESTABLE] * 5 and line[7].small == "not measured"
    assert all(cell == UNTESTABLE for cell in row(tables(marked)["Table 5"], "rope-extended")[1:])
    assert all(cell == UNTESTABLE for cell in row(tables(marked)["Table 7"], "rope-extended")[1:])


def test_table_2_gives_the_needles_of_all_seeds_at_their_trained_length(
    marked: Results, failing: Callable[..., Results]
) -> None:
    short = replace(marked, models=tuple(
        replace(m, stages=(replace(m.stages[0], context_tokens=32), *m.stages[1:])) for m in marked.models
    ))  # fmt: skip
    one = failing(replace(short, recipe={"arms": [{"name": "swa-rope", "paper": "RoPE"}]}))
    line = row(tables(one)["Table 2"], "swa-rope")
    scores = [r.score for r in one.needles if (r.arm, r.row, r.context_tokens) == ("swa-rope", "standard", 256)]
    assert len(scores) == 2 and min(scores) < 9 and line[-1].text == f"{sum(scores) / 2:.2f}"


def test_tables_6_and_9(marked: Results) -> None:
    made = tables(marked)
    head = [cell.text for cell in made["Table 6"].head]
    assert head == ["model", "8k", "16k", "32k", "64k", "128k", "256k", "512k"]
    line = row(made["Table 6"], "rope-extended")
    assert line[1] == Cell("74.8", "seeds 74.5–75.0") and line[2] == Cell("") and line[7].text == "74.8"
    entropies = row(made["Table 9"], "rope-extended", "mean entropy of rows")
    assert (
        entropies[3] == Cell("2.62", "2.50–2.75")
        and entropies[2] == Cell("")
        and "8.0 bits" in made["Table 9"].head[2].small
    )


def test_a_model_that_did_not_learn_has_blanks_and_is_named(marked: Results, failing: Callable[..., Results]) -> None:
    failed = failing(failing(marked, arm="rope-extended", seed=0), arm="rope-extended", seed=1)
    made = tables(failed)
    for name, first in (("Table 3", 2), ("Table 4", 1), ("Table 6", 1), ("Table 8", 2), ("Table 9", 2)):
        line = next(line for line in made[name].rows if line[0].text == "rope-extended")
        assert line[0].small == "did not learn the task at any seed"
        assert not any(cell.text for cell in line[first:]), name


def test_a_seed_that_did_not_learn_is_in_no_mean(marked: Results, failing: Callable[..., Results]) -> None:
    one = failing(marked, arm="rope-extended", seed=1)
    assert row(tables(one)["Table 6"], "rope-extended")[1].text == "75.0"
    gate = Gate(one)
    assert {r.seed for r in (*gate.tasks(), *gate.spreads()) if r.arm == "rope-extended"} == {0}
    kept = {(r.seed, max(b.end for b in r.bins)) for r in gate.losses() if r.arm == "rope-extended"}
    assert kept == {(0, 4096), (1, 1024)}


def test_an_arm_that_is_not_there_is_said(results: Results) -> None:
    made = tables(replace(results, recipe={"arms": [{"name": "rnope-swa", "paper": "RNope-SWA"}]}))
    assert made["Table 3"].rows[0][0] == Cell("ours", "no arm stands for RoPE")
    assert row(made["Table 6"], "rnope-swa")[1].text


def test_losses_and_tasks_fold_seeds(marked: Results) -> None:
    (loss,) = losses.tables(Gate(marked))
    assert row(loss, "rope")[1] == Cell(f"{5 - 6 / 20 + 1 / 16:.3f}", "seeds 4.700–4.825")
    (found,) = tasks.tables(Gate(marked))
    assert row(found, "rope", "niah_single_1")[2] == Cell("89.5", "seeds 89.0–90.0")


def test_the_balance_has_costs_beside_scores(marked: Results) -> None:
    first, others, _ = balance.tables(Gate(marked))
    assert [line[0].text for line in first.rows] == ["rope", "rnope-swa"]
    assert [line[0].text for line in others.rows] == ["rope-extended", "swa-rope"]
    line = row(first, "rnope-swa")
    assert [cell.text for cell in line[-3:]] == ["3.25 s", "4.2 ms", ""]
    at = [r.score for r in marked.needles if (r.arm, r.row, r.context_tokens) == ("rnope-swa", "standard", 16384)]
    assert line[5].text == f"{sum(at) / 2:.2f}"
