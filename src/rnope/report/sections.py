"""The page's order and its prose: results, through the gate, to sections of blocks."""

from collections.abc import Collection
from itertools import groupby

from rnope.report import balance, forms, losses, measures, paper, records, tables, tasks, who, words
from rnope.report.blocks import Block, Cell, Items, Listing, Picture, Section, Text, table
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
        _section("claims", "Claims and verdicts", [*tables.verdicts(gate),
                                                   *tables.arm_list(gate)]),
        _forms(gate),
        _length(gate, figures),
        _section("heat", "Needle by depth and length", [*_each(gate, figures, _HEAT), tables.raw(gate)]),
        _controls(gate),
        _learning(gate, figures),
        _failed(gate, figures),
        _attention(gate, figures),
        _loss(gate, figures),
        _tasks(gate),
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
    blocks += [*tables.scores(gate), tables.differences(gate)]
    if gate.withheld():
        blocks += [Text("Differences held back:", "withheld"), Items(gate.withheld(), "withheld")]
    return _section("length", "Score against context length", blocks)


_HEAT = Picture(
    name="heat",
    alt="Heat maps of needle score by depth and context length, one per competent arm",
    caption="Score by depth of the needle (0 % is the start of the context) and context length, competent seeds "
    "together. Grey: not run. The black line stands after the arm's trained length.",
)


def _each(gate: Gate, figures: Collection[str], one: Picture) -> list[Block]:
    """`one` for every group of arms that it was drawn for; what it shows is said once."""
    made: list[Block] = []
    for group in who.groups(gate.results):
        name = who.named(one.name, group.key)
        if name in figures:
            caption = " ".join(filter(None, [f"{group.title}." if group.title else "", "" if made else one.caption]))
            made.append(Picture(name=name, alt=who.titled(one.alt, group), caption=caption))
    return made


_TABLES = (
    "Each table of the paper in its own form: ours, then the paper's. The recipe says which arm stands for which of the "
    "paper's models; where it does not, the longest trained of a variant does. The paper's lengths are those at the same "
    "multiple of its pretraining length, 8,192 tokens. Its models have 8 billion parameters and 0.75 to 5 trillion training "
    "tokens: none of its numbers is comparable with ours in size, only in direction."
)
_TASKS = (
    "RULER's retrieval tasks that can be said in the words of the needles; the others are not in the language that these "
    "models were taught. Scores of 100, as RULER has them, only of models that learned the task."
)


def _forms(gate: Gate) -> Section:
    found = forms.tables(gate) if gate.results.models else []
    return _section("tables", "Tables 2 to 9, ours beside the paper's", [Text(_TABLES), *found] if found else [])


def _controls(gate: Gate) -> Section:
    found = tables.side_rows(gate)
    text = (
        "Without the needle in the context the score must be near 0, and with the needle alone, without a haystack, "
        "near 10. Keys that training never showed are a separate, harder row."
    )
    return _section("controls", "Controls and unseen keys", [Text(text), found] if found else [])


_LEARNING = Picture(
    name="learning",
    alt="Running score against training steps for every arm and seed, with the curriculum below",
    caption="Running score on the needles of the training rows against training steps. The strips below give the context "
    "length in tokens at each step, and a thin line marks each change; ✗: the seed did not learn the task.",
)


def _learning(gate: Gate, figures: Collection[str]) -> Section:
    counts = "; ".join(f"{arm}: {gate.learned(arm)}" for arm in arms(gate.results))
    blocks: list[Block | None] = [Text(f"{counts}. Seeds that stayed on the plateau are counted, none is dropped.")]
    blocks += _each(gate, figures, _LEARNING)
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


_ATTENTION = Picture(
    name="attention",
    alt="Stacked bars of attention mass by layer kind and context length, ours beside the paper's",
    caption="Where the question and completion look, by layer kind: ours (mean over competent seeds) beside the nearest "
    "model of the paper's tables 3 and 8. “Out of reach”: the window cannot see the needle, so that its mass is blank "
    "and not 0.",
)
_SPREAD = Picture(
    name="spread",
    alt="Attention over positions, the baseline against QK-Norm, a panel per context length",
    caption="Attention of the question's and completion's rows over positions, as the paper's figure 3 has it: the mean "
    "over samples, layers, heads and rows, without the first 10 tokens and the last 3 %, as a moving average of as many "
    "tokens as each panel says. Below, the same in logarithms. One seed of each arm.",
)
_SPREAD_KINDS = Picture(
    name="spread-kinds",
    alt="Attention over positions by layer kind, a row of panels per arm",
    caption="The same by layer kind, of arms that stand for the paper's models and have several. A line ends where a "
    "window ends.",
)


def _attention(gate: Gate, figures: Collection[str]) -> Section:
    drawn = [picture for picture in (_SPREAD, _SPREAD_KINDS) if picture.name in figures]
    blocks: list[Block | None] = [
        *_each(gate, figures, _ATTENTION),
        *drawn,
        measures.uniform(gate),
        *measures.tables(gate),
    ]
    return _section("attention", "Attention mass beside the paper's", blocks)


def _loss(gate: Gate, figures: Collection[str]) -> Section:
    blocks: list[Block | None] = []
    if "loss" in figures:
        blocks.append(Picture(
            name="loss",
            alt="Loss on held-out text against the position in the context, a panel per group of arms",
            caption="Loss on held-out text against position, in windows of the longest length asked. Grey bands: trained "
            "lengths. Shaded: the 95 % interval over windows, of arms with one seed.",
        ))  # fmt: skip
    return _section("loss", "Loss by position", [*blocks, *losses.tables(gate)])


def _tasks(gate: Gate) -> Section:
    found = tasks.tables(gate)
    return _section("tasks", "RULER's tasks", [Text(_TASKS), *found] if found else [])


def _cost(gate: Gate, figures: Collection[str]) -> Section:
    blocks: list[Block | None] = []
    if "cost" in figures:
        blocks.append(Picture(
            name="cost",
            alt="Cache bytes and prefill FLOPs against context length, on logarithmic axes",
            caption="Keys and values held, and FLOPs of a prefill, against context length. Arms that cost the same "
            "share a line.",
        ))  # fmt: skip
    return _section("cost", "What each arm costs", [*blocks, *balance.tables(gate)])


def _layers(gate: Gate) -> Section:
    rows: list[list[Cell | str]] = []
    for arm in arms(gate.results):
        model = who.model(gate.results, arm)
        if model is not None:
            opens = "only with rnope" if model.model_type == "rnope" else "in transformers"
            runs = [(line.strip(), len(list(same))) for line, same in groupby(model.layers)]
            text = "; ".join(line if count == 1 else f"{count} × {line}" for line, count in runs)
            rows.append([tables.arm_cell(gate, arm), model.variant, f"{model.model_type}: opens {opens}", text])
    found = table("", ["arm", "variant", "model_type", "layers, first to last"], rows, prose=True) if rows else None
    return _section("layers", "Layers of each arm", [found, records.folders(gate)])


def _paper() -> Section:
    text = f"What else the paper gives, beside its tables 2 to 9 above: {paper.CITATION}."
    return _section(
        "paper", "The paper's raw scores and costs", [Text(text), records.paper_raw(), records.paper_cost()]
    )


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
        blocks.append(
            Listing(
                "The recipe as resolved; what all arms have alike in a stage stands under stages",
                words.recipe(results.recipe),
                folded=True,
            )
        )
    return _section("how", "How it was obtained", blocks)
