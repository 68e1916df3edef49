"""The page's order and its prose: results, through the gate, to sections of blocks."""

from collections.abc import Collection
from textwrap import dedent

from rnope.report import paper, records, tables, words
from rnope.report.blocks import Block, Items, Listing, Picture, Section, Text
from rnope.report.gate import THRESHOLD, Gate, arms

QUOTED = 4
"""As many claims are quoted in the first sentence; of more, the first."""


def answer(gate: Gate) -> str:
    """One sentence: which claims were shown, which not, which could not be tested."""
    verdicts = gate.verdicts()
    if not verdicts:
        return "No claim was judged in this run; what was measured follows."
    few = len(verdicts) <= QUOTED
    parts = []
    for verdict, text in (
        ("shown", "shown at this scale"), ("not shown", "not shown"), ("not testable", "not testable at this scale")
    ):  # fmt: skip
        claims = [f"“{v.claim.rstrip('. ')}”" for v in verdicts if v.verdict == verdict]
        if claims:
            quoted = f" ({', '.join(claims)})" if few else ""
            parts.append(f"{len(claims)} {'is' if len(claims) == 1 else 'are'} {text}{quoted}")
    total = f"Of {len(verdicts)} claims" if len(verdicts) > 1 else "Of one claim"
    first = "" if few else f" The first, “{verdicts[0].claim.rstrip('. ')}”: {verdicts[0].verdict}."
    return f"{total}, judged by rules fixed before the run, {words.listed(parts)}.{first}"


def sections(gate: Gate, figures: Collection[str]) -> tuple[Section, ...]:
    """Every section that has something to say, in the page's order.

    Args:
        figures: names of the figures that were drawn.
    """
    made = [
        _section("claims", "Claims and verdicts", [tables.verdicts(gate) if gate.results.verdicts else None,
                                                   tables.arm_list(gate)]),
        _length(gate, figures),
        _section("heat", "Needle by depth and length", [_heat(gate, figures), tables.raw(gate)]),
        _controls(gate),
        _learning(gate, figures),
        _failed(gate, figures),
        _attention(gate, figures),
        _cost(gate, figures),
        _layers(gate),
        _paper(),
        _scale(gate),
        _how(gate),
    ]  # fmt: skip
    return tuple(section for section in made if section.blocks)


def _section(key: str, title: str, blocks: list[Block | None]) -> Section:
    return Section(key=key, title=title, blocks=tuple(block for block in blocks if block is not None))


def _length(gate: Gate, figures: Collection[str]) -> Section:
    rule = (
        f"Only models that learned the task are compared: the lower 95 % bound of their score at the trained length is "
        f"at least {THRESHOLD} of 10."
    )
    blocks: list[Block | None] = [Text(rule)]
    if gate.failed():
        blocks.append(Text("Held back, since they did not learn the task: ", "withheld"))
        blocks.append(Items(tuple(f"{s.name}: {s.reason}." for s in gate.failed()), "withheld"))
    if "score" in figures:
        blocks.append(Picture(
            name="score",
            alt="Score of each competent arm and seed against context length",
            caption="Needles found against context length. Thin lines with markers: one seed each, with 95 % Wilson "
            "bars; thick: mean over seeds. Points are shifted sideways a little, so that arms at the same score stay "
            "visible. Grey bands: trained lengths.",
        ))  # fmt: skip
    else:
        blocks.append(Text("No model learned the task, so there is no score against length to show.", "withheld"))
    blocks += [tables.scores(gate), tables.differences(gate)]
    if gate.withheld():
        blocks += [Text("Differences held back:", "withheld"), Items(gate.withheld(), "withheld")]
    return _section("length", "Score against context length", blocks)


def _heat(gate: Gate, figures: Collection[str]) -> Block | None:
    if "heat" not in figures:
        return None
    return Picture(
        name="heat",
        alt="Heat maps of needle score by depth and context length, one per competent arm",
        caption="Score by depth of the needle (0 % is the start of the context) and context length, competent seeds "
        "together. Grey: not run. The black line stands after the arm's trained length.",
    )


def _controls(gate: Gate) -> Section:
    found = tables.side_rows(gate)
    text = (
        "Without the needle in the context the score must be near 0, and with the needle alone, without a haystack, "
        "near 10. Keys that training never showed are a separate, harder row."
    )
    return _section("controls", "Controls and unseen keys", [Text(text), found] if found else [])


def _learning(gate: Gate, figures: Collection[str]) -> Section:
    counts = "; ".join(f"{arm}: {gate.learned(arm)}" for arm in arms(gate.results))
    blocks: list[Block | None] = [Text(f"{counts}. Seeds that stayed on the plateau are counted, none is dropped.")]
    if "learning" in figures:
        blocks.append(Picture(
            name="learning",
            alt="Running score against training steps for every arm and seed, with the curriculum below",
            caption="Running score on the needles of the training rows against training steps. The strips below give "
            "the context length in tokens at each step, and a thin line marks each change; ✗: the seed did not learn "
            "the task.",
        ))  # fmt: skip
    blocks += [tables.learned(gate), tables.stages(gate)]
    return _section("learning", "Learning curves, and who learned", blocks if gate.standings else [])


def _failed(gate: Gate, figures: Collection[str]) -> Section:
    failed = gate.failed()
    blocks: list[Block | None] = []
    if failed:
        blocks.append(
            Text("These say nothing about longer contexts, and nothing beyond the trained length is printed of them.")
        )
        blocks.append(Items(tuple(f"{s.name} did not learn the task: {s.reason}." for s in failed)))
        if "not-learned" in figures:
            blocks.append(Picture(
                name="not-learned",
                alt="Learning curves of the seeds that did not learn the task",
                caption="Learning curves of the seeds that did not learn the task.",
            ))  # fmt: skip
    return _section("not-learned", "Did not learn the task", blocks)


def _attention(gate: Gate, figures: Collection[str]) -> Section:
    blocks: list[Block | None] = []
    if "attention" in figures:
        blocks.append(Picture(
            name="attention",
            alt="Stacked bars of attention mass by layer kind and context length, ours beside the paper's",
            caption="Where the question and completion look, by layer kind: ours (mean over competent seeds) beside "
            "the nearest model of the paper's tables 3 and 8. “Out of reach”: the window cannot see the needle, so that "
            "its mass is blank and not 0.",
        ))  # fmt: skip
    blocks.append(tables.needle_mass(gate))
    return _section("attention", "Attention mass beside the paper's", blocks)


def _cost(gate: Gate, figures: Collection[str]) -> Section:
    blocks: list[Block | None] = []
    if "cost" in figures:
        blocks.append(Picture(
            name="cost",
            alt="Cache bytes and prefill FLOPs against context length, on logarithmic axes",
            caption="Keys and values held, and FLOPs of a prefill, against context length. Arms that cost the same "
            "share a line.",
        ))  # fmt: skip
    return _section("cost", "What each arm costs", [*blocks, tables.costs(gate)])


def _layers(gate: Gate) -> Section:
    blocks: list[Block | None] = []
    for arm in arms(gate.results):
        model = next((m for m in gate.results.models if m.arm == arm), None)
        if model is not None:
            opens = "opens only with rnope" if model.model_type == "rnope" else "opens in transformers"
            title = f"{arm}: variant {model.variant}; model_type {model.model_type}, {opens}"
            blocks.append(Listing(title, dedent("\n".join(model.layers))))
    blocks.append(records.folders(gate))
    return _section("layers", "Layers of each arm", blocks)


def _paper() -> Section:
    text = (
        f"The paper's models have 8 billion parameters and 0.75 to 5 trillion training tokens; none of its numbers is "
        f"comparable with ours in size, only in direction. {paper.CITATION}."
    )
    chosen = (paper.TABLE_2, paper.TABLE_6, paper.TABLE_7, paper.TABLE_4)
    blocks: list[Block | None] = [Text(text), records.paper_raw(), *map(records.papers, chosen), records.paper_cost()]
    return _section("paper", "The paper's own long-context numbers", blocks)


def _scale(gate: Gate) -> Section:
    text = "How the paper's sizes were brought to this scale: ratios are kept where they can be."
    found = records.facts("", gate.results.scale)
    return _section("scale", "Scale map", [Text(text), found] if found else [])


STATISTICS = (
    "A score is ten times the share of needles found. Its interval is the 95 % Wilson interval, which stays honest "
    "near 0 and 10.",
    "The answers of one context are not independent, so a Wilson interval over answers is a floor on the true width. "
    "Paired differences are resampled over whole contexts instead.",
    "Answers are read off teacher-forced: the model predicts each value with the true question before it.",
    "Every arm meets the same contexts, independent ones at every length; seeds are shown one by one, since the spread "
    "between models is no sampling error of one model.",
    "The guess level is the score of answering any value that stands in the context.",
    f"A model is competent when the lower bound at its trained length is at least {THRESHOLD} of 10; nothing is "
    "claimed about the extrapolation of any other.",
)


def _how(gate: Gate) -> Section:
    results = gate.results
    blocks: list[Block | None] = []
    if results.notes:
        blocks += [Text("What a reader must know:"), Items(results.notes)]
    blocks += [Text("How the numbers are made:"), Items(STATISTICS)]
    blocks.append(records.trials(gate) or Text("No sweep was recorded: no trial is in the results file."))
    blocks.append(records.facts("Provenance", results.provenance))
    if results.recipe:
        blocks.append(Listing("The recipe as resolved", words.pretty(results.recipe), folded=True))
    return _section("how", "How it was obtained", blocks)
