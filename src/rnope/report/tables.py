"""The tables of the report: rows of the results, formatted, each score with its n, seed and interval."""

from collections.abc import Iterable, Sequence

from rnope.intervals import wilson
from rnope.report import paper, who, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.curves import offsets
from rnope.report.gate import THRESHOLD, Gate
from rnope.results import NeedleRow

ROW_NAMES = {
    "no-needle": "no needle in the context: must be near 0",
    "needle-only": "needle without a haystack: must be near 10",
    "unseen-keys": "keys never seen in training: harder",
}


MANY = 24
"""Longer tables of single seeds are closed until a reader opens them."""


def arm_cell(gate: Gate, arm: str, small: str = "") -> Cell:
    return Cell(arm, small, colour=who.styles(gate.results).get(arm, ("#777777", ""))[0])


def _score_cell(row: NeedleRow) -> Cell:
    return Cell(words.score(row.score), _spread(row), f"s{min(10, max(0, round(row.score)))}")


def _spread(row: NeedleRow) -> str:
    return f"{words.interval(row.low, row.high)}\nn {row.n:,}"


def seeds_said(seeds: Iterable[int]) -> str:
    """seed 0; seeds 0, 1, 2"""
    found = sorted(set(seeds))
    return f"seed{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def folded_score(rows: Sequence[NeedleRow]) -> Cell:
    """One length of one arm: of one seed its score with its interval, of several their mean and range."""
    if not rows:
        return Cell("")
    if len(rows) == 1:
        return _score_cell(rows[0])
    scores = [row.score for row in rows]
    value = sum(scores) / len(scores)
    small = f"seeds {words.bounds(scores, 2)}\nn {sum(row.n for row in rows):,}"
    return Cell(words.score(value), small, f"s{min(10, max(0, round(value)))}")


def verdicts(gate: Gate) -> list[Table]:
    """Every claim with its rule and reason; where there are many, first a short list."""
    marks = {"shown": "✓ shown", "not shown": "✗ not shown", "not testable": "– not testable"}
    lines = [
        (
            Cell(v.claim),
            Cell(v.rule),
            Cell(marks.get(v.verdict, v.verdict), tone=v.verdict.replace(" ", "-") if v.verdict in marks else ""),
            Cell(v.because),
        )
        for v in gate.verdicts()
    ]
    if not lines:
        return []
    head = ["claim", "rule, fixed before the run", "verdict", "because"]
    if len(lines) <= MANY:
        return [table("", head, lines, prose=True)]
    return [
        table("", ["claim", "verdict"], [(claim, verdict) for claim, _, verdict, _ in lines], prose=True),
        table("Every claim with its rule and what was found", head, lines, prose=True, folded=True),
    ]


def arm_list(gate: Gate) -> list[Table]:
    """What each arm is, a table per group."""
    return [
        table(
            found.title or "The arms",
            ["arm", "what it is", "seeds"],
            [[arm_cell(gate, arm), _described(gate, arm), gate.learned(arm)] for arm in found.arms],
            prose=True,
        )
        for found in who.groups(gate.results)
    ]


def _described(gate: Gate, arm: str) -> Cell:
    stands = [model for model, own in who.stands_for(gate.results).items() if own == arm]
    return Cell(gate.results.arms.get(arm, ""), f"stands for the paper's {stands[0]}" if stands else "")


def scores(gate: Gate) -> list[Table]:
    """Score at every length: a line per competent arm, its seeds folded, and then one per seed."""
    found = gate.needles()
    if not found:
        return []
    several = len({(row.arm, row.seed) for row in found}) > len({row.arm for row in found})
    tables = []
    for group in who.groups(gate.results) if several else ():
        own = [row for row in found if row.arm in group.arms]
        if own:
            head, note = _score_head(gate, own)
            rows = []
            for arm in dict.fromkeys(arm for arm in group.arms if gate.seeds(arm)):
                one = max(gate.trained[arm, seed] for seed in gate.seeds(arm))
                name = arm_cell(gate, arm, f"{seeds_said(gate.seeds(arm))}; 1× = {words.tokens(one)}")
                mine = [row for row in own if row.arm == arm]
                rows.append([name, *(folded_score([r for r in mine if r.context_tokens == n]) for n in head)])
            title = who.titled("Needles found, by context length", group)
            said = (
                f"Score of 10: the mean over seeds and their range, or one seed with its 95 % Wilson interval. {note}"
            )
            tables.append(table(title, ["arm", *head.values()], rows, said))
    head, note = _score_head(gate, found)
    at = {(row.arm, row.seed, row.context_tokens): row for row in found}
    rows = []
    for s in gate.standings:
        if s.competent:
            one = gate.trained[s.arm, s.seed]
            cells = [at.get((s.arm, s.seed, n)) for n in head]
            name = arm_cell(gate, s.arm, f"seed {s.seed}; 1× = {words.tokens(one)}")
            rows.append([name, *(Cell("") if row is None else _score_cell(row) for row in cells)])
    title = "Needles found, seed by seed" if several else "Needles found, by context length"
    note = f"Score of 10, then 95 % Wilson interval and number of answers. {note}"
    tables.append(table(title, ["arm and seed", *head.values()], rows, note, folded=several))
    return tables


def _score_head(gate: Gate, rows: Sequence[NeedleRow]) -> tuple[dict[int, Cell], str]:
    """Length -> head of its column; and what there is to say of the lengths."""
    base = min(gate.trained.values())
    head = {n: Cell(words.tokens(n), words.times(n / base)) for n in sorted({row.context_tokens for row in rows})}
    note = f"× counts {words.tokens(base)} tokens."
    repeats = sorted({(r.context_tokens, r.haystack_repeats) for r in rows if r.haystack_repeats > 1})
    if repeats:
        longest = f"{words.times(repeats[-1][1])} at {words.tokens(repeats[-1][0])} tokens"
        note += (
            f" Haystacks of {words.tokens(repeats[0][0])} tokens and more repeat the held-out text (up to {longest})."
        )
    return head, note


def differences(gate: Gate) -> Table | None:
    """Paired differences, a line per pair and seed; only of pairs that pass the gate."""
    found = gate.differences()
    if not found:
        return None
    lengths = sorted({d.context_tokens for d in found})
    at = {(d.a, d.b, d.seed, d.context_tokens): d for d in found}
    contexts = {(r.arm, r.seed, r.context_tokens): len(r.context_hits) for r in gate.needles()}
    rows = []
    for a, b, seed in dict.fromkeys((d.a, d.b, d.seed) for d in found):
        line = [Cell(f"{a} − {b}", f"seed {seed}", colour=arm_cell(gate, a).colour)]
        for n in lengths:
            d, paired = at.get((a, b, seed, n)), contexts.get((a, seed, n))
            counted = f", {paired} contexts" if paired else ""
            line.append(
                Cell("")
                if d is None
                else Cell(words.signed(d.difference), f"{words.signed_interval(d.low, d.high)}\n{d.multiple}×{counted}")
            )
        rows.append(line)
    pairs = gate.results.recipe.get("pairs", ())
    ends = sorted({multiple for pair in pairs for multiple in pair.get("multiples", (2, 16))})  # version 1 says none
    note = (
        "First arm minus second on the same contexts, then the 95 % bootstrap interval over contexts and the length in "
        "multiples of the longer of the two trained lengths."
    )
    if ends:
        note += f" The primary endpoints, named in advance, are {words.listed([words.times(n) for n in ends])}."
    head = ["pair", *(words.tokens(n) for n in lengths)]
    return table("Paired differences in score", head, rows, note, folded=len(rows) > MANY)


def raw(gate: Gate) -> Table | None:
    """The raw NIAH mean as the paper gives it, over lengths up to 1× and up to 2×."""
    rows: list[list[Cell | str]] = []
    for s in gate.standings:
        if not s.competent:
            continue
        own = [r for r in gate.needles() if (r.arm, r.seed) == (s.arm, s.seed)]
        line: list[Cell | str] = [
            arm_cell(gate, s.arm, f"seed {s.seed}; 1× = {words.tokens(gate.trained[s.arm, s.seed])}")
        ]
        for most in (1, 2):
            upto = [r for r in own if r.context_tokens <= most * gate.trained[s.arm, s.seed]]
            hits, n = sum(r.hits for r in upto), sum(r.n for r in upto)
            low, high = wilson(hits, n)
            reached = any(r.context_tokens == most * gate.trained[s.arm, s.seed] for r in upto)
            text = words.score(10 * hits / n) if n and reached else ""
            line.append(Cell(text, f"{words.interval(10 * low, 10 * high)}\nn {n:,}" if text else ""))
        kind = who.variant(gate.results, s.arm)
        longest = max(m.trained_tokens for m in gate.results.models if m.variant == kind)
        theirs = paper.raw_scores(kind) if gate.trained[s.arm, s.seed] == longest else None
        line += [Cell(theirs[1][x], theirs[0]) if theirs else "" for x in ("128k", "256k")]
        rows.append(line)
    if not rows:
        return None
    head = ["arm and seed", "ours, up to 1×", "ours, up to 2×", "paper, up to 128k (1×)", "paper, up to 256k (2×)"]
    note = (
        "Mean over all needles up to that length, as the raw scores of the paper's figures 1 and 2, which stand "
        "beside the arm of that layout with the longest training context: both of the paper's models were extended to 128k "
        "first."
    )
    return table("Raw needle scores", head, rows, note, folded=len(rows) > MANY)


def side_rows(gate: Gate) -> Table | None:
    """Controls and unseen keys: a line per arm and seed, a column per row and context length."""
    at: dict[tuple[str, int], dict[tuple[str, int], NeedleRow]] = {}
    for r in gate.side_rows():
        at.setdefault((r.arm, r.seed), {})[r.row, r.context_tokens] = r
    columns = sorted({key for own_rows in at.values() for key in own_rows})
    rows: list[list[Cell | str]] = []
    for s in gate.standings:
        found = at.get((s.arm, s.seed))
        if found:
            line: list[Cell | str] = [
                arm_cell(gate, s.arm, f"seed {s.seed}" + ("" if s.competent else "; did not learn"))
            ]
            # No colours here: for a control, 0 can be what is wanted.
            line += [Cell(words.score(row.score), _spread(row)) if (row := found.get(key)) else "" for key in columns]
            rows.append(line)
    heads = [Cell(f"{row}, {words.tokens(length)}", ROW_NAMES.get(row, "")) for row, length in columns]
    guesses = sorted({words.score(r.guess) for r in gate.side_rows()})
    note = f"Score of 10, 95 % Wilson interval, number of answers. Guess level: {words.listed(guesses)}."
    if not rows:
        return None
    return table("Controls and harder rows", ["arm and seed", *heads], rows, note, folded=len(rows) > MANY)


def learned(gate: Gate) -> Table | None:
    """Every arm and seed with its score at 1×, learned or not."""
    rows: list[list[Cell | str]] = []
    for s in gate.standings:
        model = next((m for m in gate.results.models if (m.arm, m.seed) == (s.arm, s.seed)), None)
        stages = model.stages if model else ()
        rows.append(
            [
                arm_cell(gate, s.arm, f"seed {s.seed}"),
                Cell("✓ learned", tone="shown") if s.competent else Cell("✗ did not learn", tone="not-shown"),
                _score_cell(s.row) if s.row else "",
                words.score(s.row.guess) if s.row else "",
                f"{sum(stage.steps for stage in stages):,}",
                f"{sum(stage.tokens for stage in stages):,}",
                words.seconds(sum(stage.seconds for stage in stages)),
            ]
        )
    head = [
        "arm and seed",
        f"lower bound ≥ {THRESHOLD} at 1×",
        "score at 1×",
        "guess level",
        "steps",
        "tokens",
        "training",
    ]
    return table("Who learned the task", head, rows, folded=len(rows) > MANY) if rows else None


def stages(gate: Gate) -> Table | None:
    """Every stage as it was run."""
    rows: list[list[Cell | str]] = []
    for m in gate.results.models:
        before = offsets(gate.results, m.arm, m.seed)
        for stage in m.stages:
            reached = [
                f"{words.short_tokens(int(n))} at step {before[stage.name] + at:,}"
                for n, at in stage.promotions.items()
            ]
            rows.append(
                [
                    arm_cell(gate, m.arm, f"seed {m.seed}"),
                    stage.name,
                    words.tokens(stage.context_tokens),
                    words.listed([f"{theta:,.10g}" for theta in stage.thetas]) or "none",
                    f"{stage.steps:,}",
                    f"{stage.tokens:,}",
                    words.seconds(stage.seconds),
                    f"{stage.loss:.3f}" if stage.steps else "",
                    words.score(10 * stage.accuracy) if stage.steps else "",
                    "; ".join(reached),
                    "; ".join(f"{name} {value:.3f}" for name, value in stage.validation.items()),
                ]
            )
    head = [
        "arm and seed", "stage", "context", "θ", "steps", "tokens", "time", "last loss", "running score",
        "curriculum: length reached", "held-out loss, nats a token",
    ]  # fmt: skip
    return table("Every stage as it was run", head, rows, folded=True) if rows else None
