"""What the page of an analysis says: our numbers, the paper's beside, and what is missing or must be read with care."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "evals" / "page"))
import made
from folders import PNG, parsed, read, tables

from rnope.analysis.page import heads, layers, mass, positions, write_pages
from rnope.analysis.page.asked import layer_table
from rnope.analysis.results import AnalysisResults
from rnope.report import draw, paper
from rnope.results import SEGMENTS

THREE, EIGHT = "All layers (the paper's table 3)", "By kind of layers (the paper's tables 4 and 8)"


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; figures are laid out, but not turned into pixels: that is for test_figures."""
    monkeypatch.setattr(draw, "png", lambda figure: PNG)
    return tmp_path / "out"


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; no figure is laid out."""
    for module, name in (
        (heads, "heat"), (layers, "spans"), (mass, "against_length"), (positions, "draw_spreads")
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_: PNG)
    return tmp_path / "out"


def page_of(results: AnalysisResults, out: Path) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """The Markdown, and the lines of its tables by the names in their heads, of a page whose HTML is whole."""
    write_pages(results, out)
    page, markdown = read(out)
    parsed(page)
    found = tables(markdown)
    return markdown, {
        caption: [dict(zip(lines[0], line, strict=True)) for line in lines[1:]] for caption, lines in found.items()
    }


def row(lines: list[dict[str, str]], first: str) -> dict[str, str]:
    """The one line whose first cell is `first`."""
    (found,) = [line for line in lines if next(iter(line.values())) == first]
    return found


def small(name: str = "rnope-swa", **changes: object) -> made.AnalysedModel:
    return made.model(name, ["rope-window", "rope-window", "rope-window", "nope"], **changes)  # type: ignore[arg-type]


def test_files_and_sections(laid_out: Path) -> None:
    out, models = laid_out, [small(), made.model("rope", ["rope"] * 2)]
    (out / "figures").mkdir(parents=True)
    (out / "figures" / "heads-gone-8192.png").write_bytes(b"of an earlier page")
    written = write_pages(made.results(models, (8192, 1024)), out)
    page, markdown = read(out)
    ids = ["asked", "mass", "entropy", "positions", "heads", "layers", "memory", "definitions"]
    assert parsed(page).ids == ids
    assert set(re.findall(r"https?://[^\"<\s]+", page)) == {paper.LINK}
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {path.name for path in written[2:]}
    heads = {f"heads-{name}-{length}.png" for name in ("rnope-swa", "rope") for length in (1024, 8192)}
    others = {"mass-length.png", "distribution.png", "distribution-kinds.png", "span-layers.png"}
    assert names == heads | others
    shown = {Path(name).name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown)}
    assert shown == others | {"heads-rnope-swa-8192.png", "heads-rope-8192.png"}  # heat maps: the longest length only
    assert len(parsed(page).loads) == len(shown)


def test_the_form_of_table_3_has_the_papers_rows_beside(out: Path) -> None:
    found = page_of(made.results([small()], (8192,)), out)[1]
    assert list(found[THREE][0])[1:] == list(SEGMENTS)
    ours = row(found[THREE], "rnope-swa<br><sub>8,192, n 16</sub>")
    assert ours["needle"] == "0.0600<br><sub>±0.0060</sub>" and ours["begin"] == "0.3000<br><sub>±0.0300</sub>"
    assert row(found[THREE], "uniform, 8,192") == {
        "model and length": "uniform, 8,192", "begin": "0.0012", "needle": "0.0029", "context": "0.9900", "qc": "0.0059"
    }  # fmt: skip
    for name in ("RoPE", "QK-Norm", "NoPE"):
        assert tuple(row(found[THREE], f"paper: {name}, 8k").values())[1:] == paper.TABLE_3.row("8k", name)[2:]
    others = found["The paper's table 3 at 32k and 128k"]
    assert len(others) == 6 and row(others, "paper: QK-Norm, 128k")["context"] == "0.8993"


def test_the_form_of_table_8_is_blank_where_a_window_does_not_reach(out: Path) -> None:
    models = [made.model("rope", ["rope"]), small(), made.model("nope", ["nope"])]
    markdown, found = page_of(made.results(models, (8192,)), out)
    assert list(found[EIGHT][0])[1:] == [
        f"{segment}<br><sub>{position} layers</sub>" for position in ("NoPE", "RoPE") for segment in SEGMENTS
    ]
    hybrid = list(row(found[EIGHT], "rnope-swa<br><sub>8,192, n 16, RoPE window 4,096</sub>").values())[1:]
    assert hybrid[1].startswith("0.0900<br>")  # NoPE layers see the needle
    assert hybrid[4:6] == ["", ""] and hybrid[6].startswith("0.8300<br>")  # these see neither begin nor needle
    assert list(row(found[EIGHT], "rope<br><sub>8,192, n 16</sub>").values())[1:5] == ["–"] * 4  # no such layers
    assert list(row(found[EIGHT], "nope<br><sub>8,192, n 16</sub>").values())[5:] == ["–"] * 4
    theirs = tuple(row(found[EIGHT], "paper: RNoPE-10k-swa, 8k").values())[1:]
    assert theirs == paper.TABLE_8.row("8k", "RNoPE-10k-swa")[2:]
    blank = tuple(row(found["The paper's table 8 at 32k and 128k"], "paper: RNoPE-10k-swa, 128k").values())[5:]
    assert blank == ("",) * 4
    assert "rnope-swa 0.0900 in NoPE layers and out of reach in windowed RoPE layers" in markdown.splitlines()[4]


def test_table_4_is_table_8_at_32k() -> None:
    for line in paper.TABLE_4.rows:
        assert paper.TABLE_8.row("32k", line[0])[2:] == line[1:-1]


def test_full_and_windowed_layers_of_one_position_have_a_line_each(out: Path) -> None:
    found = page_of(made.results([made.model("gemma", ["rope-window", "rope"], window=512)], (8192,)), out)[1]
    assert [line["model and length"] for line in found[EIGHT]][:2] == [
        "gemma<br><sub>8,192, n 16</sub>", "gemma<br><sub>8,192, n 16, RoPE window 512</sub>"
    ]  # fmt: skip


def test_lengths_that_are_none_of_the_papers(out: Path) -> None:
    markdown, found = page_of(made.results([small()], (1024, 4096)), out)
    assert "(1,024 and 4,096) are none of the paper's" in markdown
    assert len(found["The paper's table 3"]) == 9 and len(found["The paper's table 8"]) == 18
    assert not any("paper" in line["model and length"] for line in found[THREE] + found[EIGHT])
    assert "paper's table 8" not in page_of(made.results([made.model("rope", ["rope"])], (1024,)), out)[0]


def test_entropy_both_ways_beside_table_9_and_its_bound(out: Path) -> None:
    found = page_of(made.results([small()], (8192, 131072)), out)[1]
    lines = found["Entropy (the paper's table 9)"]
    first, last = lines[0], lines[-1]
    assert (first["model"], first["of what"]) == ("rnope-swa<br><sub>all layers</sub>", "row entropy")
    assert first["8,192"] == "9.10<br><sub>±0.18</sub>"
    assert {line["model"] for line in lines[1:3]} == {
        "rnope-swa<br><sub>NoPE</sub>",
        "rnope-swa<br><sub>windowed RoPE</sub>",
    }
    mean = [line for line in lines if line["of what"] == "entropy of the mean"]
    assert mean[0]["8,192"].startswith("10.60<br>") and mean[-1]["model"] == "paper: QK-Norm"
    assert (mean[-1]["8,192"], mean[-1]["131,072"]) == ("10.71", "14.14") and mean[-2]["131,072"] == "7.62"
    assert (last["8,192"], last["131,072"]) == ("13.00", "17.00")
    assert found["The paper's table 9 at lengths that are not here"][0] == {"model": "paper: RoPE", "32k": "6.95"}


def test_extra_segments_have_columns_and_models_without_needle_a_page(out: Path) -> None:
    results = made.results([small()], (8192,), extra=("reference | one",))
    found = page_of(results, out)[1]
    assert list(found[THREE][0])[1:] == [*SEGMENTS, r"reference \| one"]
    assert list(row(found[THREE], "paper: RoPE, 8k").values())[-1] == ""
    lengths = tuple(
        replace(
            each,
            retrieval_heads=(),
            kinds=tuple(replace(kind, measures=replace(kind.measures, retrieval=None)) for kind in each.kinds),
        )
        for each in results.lengths
    )
    bare = replace(results, segments=("begin", "context", "qc"), lengths=lengths)
    markdown, found = page_of(bare, out)
    assert list(found[THREE][0])[1:] == ["begin", "context", "qc"] and "needle gets" not in markdown
    assert "The best retrieval heads, at the longest length" not in found


def test_notes_are_said_once_with_what_they_are_about(out: Path) -> None:
    models = [small(notes=("beta software",)), made.model("rope", ["rope"], notes=("beta software",))]
    results = made.results(models, (1024, 8192), notes={"rope": ("needle widened by 2 tokens (3 of 16 samples)",)})
    markdown = page_of(results, out)[0]
    assert "- rnope-swa and rope: beta software" in markdown
    assert "- rope at 1,024 and 8,192 tokens: needle widened by 2 tokens (3 of 16 samples)" in markdown
    assert "Read with care" not in page_of(made.results([small()], (1024,)), out)[0]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [({"tokenizer_sha256": "b" * 64}, "different tokenizers"), ({"begin_ids": ()}, "begin with different ids")],
)
def test_unlike_models_are_told(out: Path, changes: dict[str, object], warning: str) -> None:
    assert warning in page_of(made.results([small("a"), small("b", **changes)], (1024,)), out)[0]
    assert warning not in page_of(made.results([small("a"), small("b")], (1024,)), out)[0]


def test_a_model_that_lacks_a_length_and_one_sample(out: Path) -> None:
    whole = made.results([small("a"), small("b")], (1024, 8192), n=1)
    results = replace(whole, lengths=whole.lengths[:3])
    markdown, found = page_of(results, out)
    assert "do not have the same lengths and samples" in markdown and "there is no interval" in markdown
    assert "±" not in "".join(line["needle"] for line in found[THREE])
    assert [line["model and length"] for line in found[THREE] if line["model and length"].startswith("b")] == [
        "b<br><sub>1,024, n 1</sub>"
    ]
    assert "at 1,024 tokens" in markdown.splitlines()[4]  # the longest that all have


def test_nothing_yet(laid_out: Path) -> None:
    out = laid_out
    results = replace(made.results([small()], (1024,)), lengths=())
    markdown = page_of(results, out)[0]
    assert "No length is finished yet." in markdown and not (out / "figures").exists()


def test_memory_in_units_for_people(out: Path) -> None:
    markdown, found = page_of(made.results([made.model("rope", ["rope"] * 32, heads=32)], (131072,)), out)
    line = found["What eager attention would need, and what this used"][0]
    assert line["eager would need"] == "64 TiB" and line["seconds a sample"] == "66.5<br><sub>65.5–67.5</sub>"
    assert line["used<br><sub>at most</sub>"] == "536 MiB" and line["eager / used"] == "125,179×"
    assert "would need 64 TiB for one sample of 131,072 tokens" in markdown and "resident memory" in markdown


def test_best_heads_and_every_layer(out: Path) -> None:
    found = page_of(made.results([small()], (1024, 8192)), out)[1]
    best = found["The best retrieval heads, at the longest length"]
    assert len(best) == 1 and best[0]["layer.head"] == "3.1" and best[0]["layers"] == "NoPE"
    assert best[0]["retrieval score"] == "0.7000<br><sub>±0.0700</sub>"
    each = found["rnope-swa: every layer at 8,192 tokens"]
    kinds = ["windowed RoPE"] * 3 + ["NoPE"]
    assert [line["layer"] for line in each] == [f"{i}<br><sub>{kind}</sub>" for i, kind in enumerate(kinds)]
    assert each[0]["needle"] == "" and each[0]["sink"] == "" and each[3]["needle"].startswith("0.0900")
    assert each[3]["effective span, tokens"].startswith("6,554<br>")


def test_layer_tables_join_neighbours_that_are_alike() -> None:
    lines = layer_table(made.model("m", ["rope-window"] * 3 + ["nope"], window=512, heads=8).layers).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "0–2 rope-window window 512 8 heads, 2 key-value",
        "3 nope all tokens before 8 heads, 2 key-value",
        "4 layers: 1 nope, 3 rope-window",
    ]
