"""The tables that let a reader check and repeat: trials, provenance, folders, and the paper's own numbers."""

from rnope.report import paper, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.gate import Gate
from rnope.report.tables import arm_cell


def folders(gate: Gate) -> Table | None:
    rows: list[list[Cell | str]] = [
        [arm_cell(gate, m.arm), str(m.seed), m.model_type, m.folder] for m in gate.results.models
    ]
    note = "Hugging Face folders, relative to the results file."
    return (
        table("Where the models lie", ["arm", "seed", "model_type", "folder"], rows, note, folded=True)
        if rows
        else None
    )


def trials(gate: Gate) -> Table | None:
    """Every trial of the sweep, and whether all arms had the same ones."""
    found = gate.results.trials
    rows: list[list[Cell | str]] = [
        [
            arm_cell(gate, t.arm, f"seed {t.seed}"),
            t.setting,
            words.score(t.score),
            words.score(10 * t.accuracy),
            "never" if t.steps_to_full_context is None else f"{t.steps_to_full_context:,}",
            Cell("✓ chosen", tone="shown") if t.chosen else "",
        ]
        for t in found
    ]
    if not rows:
        return None
    tried = {arm: sorted((t.setting, t.seed) for t in found if t.arm == arm) for arm in {t.arm for t in found}}
    alike = len({tuple(settings) for settings in tried.values()}) == 1
    each = f"Every arm had the same {len(rows) // len(tried)}." if alike else "Arms did not all have the same trials."
    head = ["arm and seed", "setting", "development needles", "running score", "steps to full context", ""]
    note = f"Every trial, failures included. {each} Development needles are not the evaluation's."
    return table("Sweep", head, rows, note, folded=len(rows) > 12)


def facts(caption: str, data: dict[str, object]) -> Table | None:
    """A block of plain values, a line each; where every value is a table, its keys are columns."""
    if not data:
        return None
    inner = [value for value in data.values() if isinstance(value, dict)]
    if len(inner) == len(data):
        columns = list(dict.fromkeys(key for value in inner for key in value))
        split = [
            [name, *(words.plain(value.get(key)) for key in columns)] for name, value in zip(data, inner, strict=True)
        ]
        return table(caption, ["", *columns], split, prose=True)
    return table(caption, ["", "value"], [[name, words.plain(value)] for name, value in data.items()], prose=True)


def paper_raw() -> Table:
    rows = [[name, *by_length.values()] for name, by_length in paper.RAW_SCORES.items()]
    return table("Paper, figures 1 and 2: raw NIAH scores", ["Model", "up to 128k", "up to 256k"], rows)


def paper_cost() -> Table:
    return table("Paper, section 5.3: RNope-SWA against the baseline", ["what", "as reported"], paper.EFFICIENCY)
