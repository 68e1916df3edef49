"""The tables of the report: rows of the results, formatted, each score with its n, seed and interval."""

from rnope import units
from rnope.report import draw, paper, words
from rnope.report.blocks import Cell, Table, table
from rnope.report.curves import offsets
from rnope.report.gate import THRESHOLD, Gate, arms
from rnope.report.masses import groups, variant
from rnope.results import SEGMENTS, NeedleRow, wilson

ROW_NAMES = {
    "no-needle": "no needle in the context: must be near 0",
    "needle-only": "needle without a haystack: must be near 10",
    "unseen-keys": "keys never seen in training: harder",
}


def arm_cell(gate: Gate, arm: str, small: str = "") -> Cell:
    return Cell(arm, small, colour=draw.styles(arms(gate.results)).get(arm, ("#777777", ""))[0])


def _score_cell(row: NeedleRow) -> Cell:
    return Cell(words.score(row.score), _spread(row), f"s{min(10, max(0, round(row.score)))}")


def _spread(row: NeedleRow) -> str:
    return f"{words.interval(row.low, row.high)}\nn {row.n:,}"


def verdicts(gate: Gate) -> Table:
    marks = {"shown": "✓ shown", "not shown": "✗ not shown", "not testable": "– not testable"}
    rows = [
        [
            Cell(v.claim),
            Cell(v.rule),
            Cell(marks.get(v.verdict, v.verdict), tone=v.verdict.replace(" ", "-") if v.verdict in marks else ""),
            Cell(v.because),
        ]
        for v in gate.verdicts()
    ]
    return table("", ["claim", "rule, fixed before the run", "verdict", "because"], rows, prose=True)


def arm_list(gate: Gate) -> Table:
    rows: list[list[Cell | str]] = [
        [arm_cell(gate, arm), gate.results.arms.get(arm, ""), gate.learned(arm)] for arm in arms(gate.results)
    ]
    return table("The arms", ["arm", "what it is", "seeds"], rows, prose=True)


def scores(gate: Gate) -> Table | None:
    """Score at every length, a line per competent arm and seed."""
    found = gate.needles()
    if not found:
        return None
    lengths = sorted({row.context_tokens for row in found})
    at = {(row.arm, row.seed, row.context_tokens): row for row in found}
    rows = []
    for s in gate.standings:
        if s.competent:
            one = gate.trained[s.arm, s.seed]
            cells = [at.get((s.arm, s.seed, n)) for n in lengths]
            name = arm_cell(gate, s.arm, f"seed {s.seed}; 1× = {words.tokens(one)}")
            rows.append([name, *(Cell("") if row is None else _score_cell(row) for row in cells)])
    base = min(gate.trained.values())
    head = [Cell("arm and seed"), *(Cell(words.tokens(n), words.times(n / base)) for n in lengths)]
    repeats = sorted({(r.context_tokens, r.haystack_repeats) for r in found if r.haystack_repeats > 1})
    note = f"Score of 10, then 95 % Wilson interval and number of answers. × counts {words.tokens(base)} tokens."
    if repeats:
        longest = f"{words.times(repeats[-1][1])} at {words.tokens(repeats[-1][0])} tokens"
        note += (
            f" Haystacks of {words.tokens(repeats[0][0])} tokens and more repeat the held-out text (up to {longest})."
        )
    return table("Needles found, by context length", head, rows, note)


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
    note = (
        "First arm minus second on the same contexts, then the 95 % bootstrap interval over contexts and the length in "
        "multiples of the longer of the two trained lengths. The primary endpoints, named in advance, are 2× and 16×."
    )
    return table("Paired differences in score", ["pair", *(words.tokens(n) for n in lengths)], rows, note)


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
        kind = variant(gate, s.arm)
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
    return table("Raw needle scores", head, rows, note)


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
    return table("Controls and harder rows", ["arm and seed", *heads], rows, note) if rows else None


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
    return table("Who learned the task", head, rows) if rows else None


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
                    f"{stage.loss:.3f}",
                    words.score(10 * stage.accuracy),
                    "; ".join(reached),
                    "; ".join(f"{name} {value:.3f}" for name, value in stage.validation.items()),
                ]
            )
    head = [
        "arm and seed", "stage", "context", "θ", "steps", "tokens", "time", "last loss", "running score",
        "curriculum: length reached", "held-out loss, nats a token",
    ]  # fmt: skip
    return table("Every stage as it was run", head, rows, folded=True) if rows else None


def needle_mass(gate: Gate) -> Table | None:
    """Needle mass per layer kind and length: ours, its uniform share, and the paper's at the same place."""
    trained = {m.arm: m.trained_tokens for m in gate.results.models}
    rows: list[list[Cell | str]] = []
    for (arm, kind), lengths in groups(gate).items():
        theirs = [paper.mass(variant(gate, arm), kind, length) for length in paper.LENGTHS]
        for place, (length, seeds) in enumerate(lengths.items()):
            other = theirs[place] if len(lengths) == len(theirs) else None
            for row in seeds:
                needle, uniform = row.mass.get("needle"), row.uniform.get("needle")
                fold = "" if needle is None or not uniform else f"{needle / uniform:,.1f} times uniform"
                rows.append(
                    [
                        arm_cell(gate, arm, f"seed {row.seed}; n {row.n}"),
                        kind,
                        Cell(words.tokens(length), words.times(length / trained[arm])),
                        *(Cell(words.share(row.mass.get(s)), words.share(row.uniform.get(s))) for s in SEGMENTS),
                        fold if needle is not None else "out of reach",
                        f"{row.best_head_needle:.3f}" if needle is not None else "",
                        Cell(
                            f"{other['needle']:.4f}", f"{paper.counterpart(variant(gate, arm))}, {paper.LENGTHS[place]}"
                        )
                        if other
                        else "",
                    ]
                )
    head = [
        "arm and seed", "layers", "context, tokens", *SEGMENTS, "needle against uniform", "needle, best head",
        "needle, paper",
    ]  # fmt: skip
    note = (
        "Mass of the question's and completion's rows; below each, the uniform share (segment length over context "
        "length). Blank where a window cannot reach. The paper's lengths (8k, 32k, 128k) stand at 1×, 4× and 16× of "
        "its pretraining context. It prints no masses for RNope-SWA; RNoPE-10k-swa is its nearest model."
    )
    return table("Attention mass in numbers", head, rows, note, folded=True) if rows else None


def costs(gate: Gate) -> Table | None:
    """What each arm costs; the same for each of its seeds but for time."""
    lengths = sorted({int(n) for m in gate.results.models for n in m.cache_bytes})
    picked = [lengths[0], lengths[len(lengths) // 2], lengths[-1]] if len(lengths) > 3 else lengths
    rows: list[list[Cell | str]] = []
    for arm in arms(gate.results):
        models = [m for m in gate.results.models if m.arm == arm]
        if not models:
            continue
        model = models[0]
        spent = [f"{sum(stage.seconds for stage in m.stages):.0f}" for m in models]
        line: list[Cell | str] = [arm_cell(gate, arm, model.model_type), f"{model.parameters:,}"]
        for n in map(str, picked):
            cache, prefill = model.cache_bytes.get(n), model.prefill_flops.get(n)
            line.append(
                Cell("" if cache is None else units.size(cache), "" if prefill is None else units.flops(prefill))
            )
        line.append(Cell(" / ".join(spent), "seeds " + ", ".join(str(m.seed) for m in models)))
        line.append(model.setting)
        rows.append(line)
    head: list[Cell | str] = [
        "arm", "parameters", *(Cell(f"at {words.tokens(n)} tokens", "cache, then prefill") for n in picked),
        "training, seconds", "setting, from the sweep",
    ]  # fmt: skip
    note = "Cache: keys and values per sequence at 2 bytes a value. Both are counted from the layers, not measured."
    return table("Cost of each arm", head, rows, note) if rows else None
