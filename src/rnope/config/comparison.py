"""What a comparison's recipe says: which models are trained, in which stages, and what is measured, with every rule."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from rnope.config.measured import Costs, Losses, Tasks, check_lengths
from rnope.errors import ConfigError, check, unknown
from rnope.model.spec import SIZES, Init, ModelConfig
from rnope.strict import from_plain

Plain = dict[str, Any]
_TAKEN = {"data", "figures", "jobs", "stages", "report.html", "report.md", "results.json", "run.jsonl"}
"""What a comparison writes beside the folders of its arms."""


def check_name(value: str) -> None:
    """Names become names of files."""
    ok = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value) is not None and value not in _TAKEN
    rule = (
        "names a file or folder: at most 64 letters, digits, '.', '_' and '-', and none that a comparison writes itself"
    )
    check("name", value, ok, rule, "Choose another name.")


def _check_seeds(seeds: tuple[int, ...]) -> None:
    check("seeds", seeds, len(set(seeds)) == len(seeds) > 0, "must be distinct", "Write [0, 1].")
    check("seeds", seeds, all(0 <= s < 2**31 for s in seeds), "must lie in 0 … 2^31", "Write [0, 1].")


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """How weights move. The same for every variant of a comparison."""

    name: Literal["adamw", "muon"] = "adamw"
    """``muon``: torch's Muon for the layers' matrices, AdamW for embedding and norms."""
    learning_rate: float = 3e-3
    """AdamW's peak rate."""
    embedding_learning_rate: float | None = None
    """Another peak rate for the embedding; None: `learning_rate`."""
    muon_learning_rate: float = 0.02
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    """On matrices of the layers; never on norms and embedding."""
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "muon_learning_rate", "clip_norm"):
            value = getattr(self, name)
            check(name, value, 0 < value < 1e3, "must lie in 0 … 1000", "Usual rates are 1e-4 to 2e-2.")
        value = self.embedding_learning_rate
        ok = value is None or 0 < value < 1e3
        check("embedding_learning_rate", value, ok, "must lie in 0 … 1000", "Usual rates are 1e-4 to 2e-2.")
        ok = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        check("betas", self.betas, ok, "must be two numbers in 0 … 1", "Write [0.9, 0.95].")
        check("weight_decay", self.weight_decay, 0 <= self.weight_decay < 1, "must lie in 0 … 1", "Usual: 0 to 0.1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Where and how jobs are computed. Weights, their gradients and moments are float32 anywhere."""

    device: Literal["cpu", "cuda"] = "cpu"
    """``cuda``: one job at a time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of products; models are asked with weights of this precision."""
    save_seconds: float = 0.0
    """Least time between two checkpoints of a stage, where its steps are fast."""

    def __post_init__(self) -> None:
        ok = 0 <= self.save_seconds < 1e6
        check("save_seconds", self.save_seconds, ok, "must lie in 0 … 10^6", "60 is a minute of work lost at most.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stretch of training. Everything it does not change carries over from the stage before (SPEC T5)."""

    name: str
    steps: int
    """Zero, in a stage with a `variant`: the model changes, and is asked as it is."""
    batch_tokens: int
    context_tokens: int
    """Length of the long rows."""
    facts: tuple[int, ...] = (2, 25)
    """Fewest and most facts per row at full length."""
    curriculum: tuple[int, ...] = ()
    """Shorter row lengths to begin with, ascending."""
    promote_accuracy: float = 0.95
    """A curriculum length is left when the running needle accuracy exceeds this."""
    short_context_tokens: int | None = None
    """Length of the short rows that are interleaved with the long ones."""
    short_batches: int = 3
    """Short batches for every long one (the paper's 3:1; that the unit is batches is our assumption)."""
    variant: str | None = None
    """From here on the layers are those of this variant, their weights as they are: `ModelConfig.converted`, to `window`."""
    theta: float | None = None
    """New rotary base of every RoPE layer; None keeps it."""
    window: int | None = None
    """New window of every windowed layer; None keeps it."""
    rope_window: int | None = None
    """Window of every RoPE layer from here on, also of those that saw everything (the paper's RNoPE-10k-swa)."""
    warmup_window: int | None = None
    """In the first curriculum length, every layer but the last sees at most this many tokens. The same for all variants."""
    learning_rate_scale: float = 1.0
    """Of the optimizer's peak rates."""
    warmup_steps: int = 0
    decay: Literal["linear", "cosine"] = "linear"
    decay_steps: int = 0
    """The last steps of the stage, in which the rate falls to `final_scale` of the peak; before them it is constant."""
    final_scale: float = 0.0
    reset_optimizer: bool = False
    accumulate: int = 1
    """Micro-batches per step; `batch_tokens` counts all of them."""
    text_weight: float = 0.3
    """Weight of the loss on text; answers have 1. Zero: completions only."""
    text_share: float = 0.15
    """Share of text positions that are put through the head and the loss."""

    def __post_init__(self) -> None:
        check_name(self.name)
        small = "Use a positive whole number."
        ok = (1 if self.variant is None else 0) <= self.steps < 2**40
        check("steps", self.steps, ok, "must be at least 1, or 0 in a stage with a variant", small)
        for name in ("batch_tokens", "context_tokens", "accumulate"):
            check(name, getattr(self, name), 1 <= getattr(self, name) < 2**40, "must be at least 1", small)
        for name in ("warmup_steps", "decay_steps", "short_batches"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < 2**40, "must not be negative", small)
        for name in ("window", "rope_window", "warmup_window"):
            value = getattr(self, name)
            ok = value is None or 1 <= value < 2**31
            check(name, value, ok, "counts the current token: at least 1, below 2^31", "Use 1 or more.")
        ok = self.window is None or self.rope_window is None
        check("rope_window", self.rope_window, ok, "is given beside window", "Give one of them.")
        ok = self.theta is None or 1 < self.theta < 1e30
        check("theta", self.theta, ok, "the rotary base must exceed 1", "The paper uses 10000 and more.")
        ok = self.warmup_steps + self.decay_steps <= self.steps
        check("decay_steps", self.decay_steps, ok, "warm-up and decay exceed the stage's steps", "Shorten one of them.")
        ok = len(self.facts) == 2 and 1 <= self.facts[0] <= self.facts[1]
        check("facts", self.facts, ok, "must be [fewest, most]", "Write [2, 25].")
        lengths = (*self.curriculum, self.context_tokens)
        ok = all(a < b for a, b in pairwise(lengths))
        check("curriculum", self.curriculum, ok, "must ascend and stay below context_tokens", "Write [32, 64, 128].")
        short = self.short_context_tokens
        ok = short is None or 20 <= short < self.context_tokens
        rule = "must have at least 20 tokens and stay below context_tokens"
        check("short_context_tokens", short, ok, rule, "Use the pretraining length.")
        check("short_context_tokens", short, not (short and self.curriculum), "excludes a curriculum", "Drop one.")
        for length in self.row_lengths:
            check("context_tokens", length, length >= 20, "a row of needles has at least 20 tokens", "Use 32 or more.")
            share = self.batch_tokens // self.accumulate
            check(
                "batch_tokens",
                self.batch_tokens,
                share % length == 0 and self.batch_tokens % self.accumulate == 0,
                f"each of {self.accumulate} micro-batches must be whole rows of {length} tokens",
                f"Use a multiple of {length * self.accumulate}.",
            )
        for name in ("promote_accuracy", "text_share", "final_scale"):
            value = getattr(self, name)
            check(name, value, 0 <= value <= 1, "must lie in 0 … 1", "It is a share.")
        ok = 0 <= self.text_weight < 1e3
        check("text_weight", self.text_weight, ok, "must lie in 0 … 1000", "Use 0 for completions only.")
        ok = self.text_share > 0 or self.text_weight == 0
        check("text_share", self.text_share, ok, "leaves no text to weigh", "Set text_weight = 0 for completions only.")
        ok = 0 < self.learning_rate_scale < 1e3
        check("learning_rate_scale", self.learning_rate_scale, ok, "must be positive", "1 keeps the peak rates.")

    def changed(self, config: ModelConfig) -> ModelConfig:
        """`config` with the layers that it has in this stage: those of another variant, another theta, other windows (T5).

        Raises:
            ConfigError: as `ModelConfig.converted`.
        """
        if self.variant is not None:
            config = config.converted(self.variant, window=self.window)
        return config.staged(theta=self.theta, window=self.window, rope_window=self.rope_window)

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """Every row length of the stage, ascending."""
        return tuple(sorted({*self.curriculum, *filter(None, [self.short_context_tokens]), self.context_tokens}))

    def facts_at(self, row_tokens: int) -> tuple[int, int]:
        """Fewest and most facts in a row: those of the stage at its full length, and in the curriculum as many as make
        the row a tenth to a third facts."""
        if row_tokens in self.curriculum:
            return max(2, row_tokens // 21), max(3, row_tokens // 10)
        return self.facts[0], self.facts[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One side of the comparison: a variant and the stages it goes through, resolved."""

    name: str
    variant: str
    summary: str
    model: Plain = field(default_factory=dict)
    """Changes to the recipe's model that make this arm what it is."""
    stages: tuple[Stage, ...]
    seeds: tuple[int, ...]
    paper: Literal[
        "", "RoPE", "QK-Norm", "NoPE", "RNoPE-10k", "RNoPE-100k", "RNoPE-2M", "RNoPE-4M", "RNoPE-10k-swa", "RNope-SWA"
    ] = ""
    """The model of the paper's tables that this arm stands for; the report sets it beside."""

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_seeds(self.seeds)
        names = [stage.name for stage in self.stages]
        check("stages", names, len(set(names)) == len(names) > 0, "must be distinct", 'Write ["pretrain"].')

    @property
    def trained_tokens(self) -> int:
        """The longest context of any stage: 1× of this arm."""
        return max(stage.context_tokens for stage in self.stages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Needles:
    """The evaluation (SPEC E1)."""

    depths: int = 11
    """Needles per context, evenly from 0 to 100 %."""
    contexts: int = 16
    """Contexts per length, each with its own seed, haystack and needles: the repetitions of every (length, depth) cell."""
    context_tokens: tuple[int, ...] = ()
    """Lengths for every arm."""
    far_tokens: tuple[int, ...] = ()
    """Further lengths, for `far_arms` only."""
    far_arms: tuple[str, ...] = ()
    control_tokens: tuple[int, ...] = ()
    """Lengths of the rows without needles, and of the row with keys never seen in training."""
    seed: int = 20250130
    """Of the prompts: the same for every arm, independent between lengths."""

    def __post_init__(self) -> None:
        check("depths", self.depths, 2 <= self.depths <= 12, "must lie in 2 … 12", "The paper's figures have about 11.")
        check("contexts", self.contexts, 1 <= self.contexts < 2**20, "must be at least 1", "The paper uses 16.")
        rule = f"{self.depths} needles and their questions need {self.least_tokens} tokens"
        for name in ("context_tokens", "far_tokens", "control_tokens"):
            check_lengths(name, getattr(self, name), self.least_tokens, rule)
        check("seed", self.seed, 0 <= self.seed < 2**31, "must lie in 0 … 2^31", "Use 0.")

    @property
    def least_tokens(self) -> int:
        """The shortest context that holds the needles and their questions."""
        return 1 + 8 * self.depths


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One choice of what is tuned."""

    learning_rate: float = 1.0
    """Multiplier of all the optimizer's rates."""
    tie_query_key: bool | None = None
    """Whether the last layer's keys start as its queries; None: as the size says."""

    def __post_init__(self) -> None:
        ok = 0 < self.learning_rate < 1e3
        check("learning_rate", self.learning_rate, ok, "must be a positive multiplier", "1 keeps the recipe's rates.")

    def __str__(self) -> str:
        tied = {None: "", True: ", keys start as queries", False: ", keys and queries start apart"}[self.tie_query_key]
        return f"rates × {self.learning_rate:g}{tied}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What every variant may choose from, by development needles, before it is judged."""

    settings: tuple[Setting, ...] = (Setting(),)
    """Of equals the first is taken. One entry: no sweep."""
    seed: int = 100

    def __post_init__(self) -> None:
        check("settings", self.settings, bool(self.settings), "needs an entry", "Write [[sweep.settings]].")
        check("seed", self.seed, 0 <= self.seed < 2**31, "must lie in 0 … 2^31", "Use 100.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two arms that are judged against each other."""

    a: str
    """The arm that is claimed to be better."""
    b: str
    claim: str
    """In one sentence, which the report prints beside its verdict."""
    margin: float | None = None
    """Given: not that `a` is better is claimed, but that the two differ by less than this, of 10."""
    multiples: tuple[int, ...] = (2, 16)
    """Of the longer of their trained lengths: where they are judged (SPEC R)."""

    def __post_init__(self) -> None:
        ok = len(set(self.multiples)) == len(self.multiples) > 0 and all(1 < m < 2**20 for m in self.multiples)
        check("multiples", self.multiples, ok, "must be distinct whole numbers above 1", "SPEC R has [2, 16].")
        ok = self.margin is None or 0 < self.margin <= 10
        check("margin", self.margin, ok, "must lie in 0 … 10", "0.5 is a twentieth of the scale.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """Something measured of an arm, at every length at which it was."""

    arm: str
    of: Literal[
        "begin",
        "needle",
        "context",
        "qc",
        "row_entropy",
        "mean_entropy",
        "effective_span",
        "sink",
        "score",
        "validation",
    ]
    """A segment's attention mass, another measure of attention, the needles' score, or the validation loss."""
    kind: Literal["", "nope", "rope", "nope-window", "rope-window"] = ""
    """Of attention: of which layers; QK-Norm makes no kind of its own."""

    def __post_init__(self) -> None:
        attention = self.of not in ("score", "validation")
        rule = "names a kind of layer where attention is meant, and nothing elsewhere"
        check("kind", self.kind, bool(self.kind) == attention, rule, 'Write kind = "nope".')

    def __str__(self) -> str:
        return f"{self.of} of {self.arm}" + (f" ({self.kind} layers)" if self.kind else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A claim on what was measured inside: one quantity above another, or falling with length."""

    claim: str
    a: Quantity
    b: Quantity | None = None
    """What lies below `a` at every length; None: `a` falls from the shortest length to the longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A comparison, complete."""

    name: str
    summary: str
    size: str
    model: Plain = field(default_factory=dict)
    """Overrides of the size."""
    vocab_size: int = 1024
    seeds: tuple[int, ...]
    optimizer: Optimizer = field(default_factory=Optimizer)
    execution: Execution = field(default_factory=Execution)
    arms: tuple[Arm, ...]
    needles: Needles = field(default_factory=Needles)
    sweep: Sweep = field(default_factory=Sweep)
    attention_tokens: tuple[int, ...] = ()
    attention_samples: int = 8
    tasks: Tasks = field(default_factory=Tasks)
    losses: Losses = field(default_factory=Losses)
    costs: Costs = field(default_factory=Costs)
    baseline: str
    """The arm that cost and attention are set against."""
    pairs: tuple[Pair, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    scale: dict[str, dict[str, str]] = field(default_factory=dict)
    """How the paper's sizes were mapped: what -> ``paper`` and ``here``; printed as it stands."""

    def __post_init__(self) -> None:
        check_name(self.name)
        _check_seeds(self.seeds)
        ok = 300 <= self.vocab_size <= 2**20
        check("vocab_size", self.vocab_size, ok, "must lie in 300 … 2^20", "Use 1024 or more.")
        names = [arm.name for arm in self.arms]
        for i, arm in enumerate(self.arms):
            config = self.model_config(arm)
            for j, stage in enumerate(arm.stages):
                try:
                    config = stage.changed(config)
                except ConfigError as error:
                    raise error.inside(f"arms[{i}].stages[{j}]") from None
        check("arms", names, len(set(names)) == len(names) > 0, "must have distinct names", "Rename one.")
        named = [("baseline", self.baseline)]
        named += [(f"needles.far_arms[{i}]", name) for i, name in enumerate(self.needles.far_arms)]
        named += [(f"tasks.arms[{i}]", name) for i, name in enumerate(self.tasks.arms)]
        for i, pair in enumerate(self.pairs):
            named += [(f"pairs[{i}].a", pair.a), (f"pairs[{i}].b", pair.b)]
            check(f"pairs[{i}].b", pair.b, pair.a != pair.b, "an arm is not judged against itself", "Name another.")
        for i, pattern in enumerate(self.patterns):
            named += [(f"patterns[{i}].{at}.arm", q.arm) for at, q in (("a", pattern.a), ("b", pattern.b)) if q]
        for where, name in named:
            if name not in names:
                raise unknown(where, name, "arm", names)
        for arm in self.arms:
            least, longest = self.needles.least_tokens, arm.trained_tokens
            rule = f"arm {arm.name!r} is asked at its longest context, {longest} tokens, and that many needles need {least}"
            check("needles.depths", self.needles.depths, least <= longest, rule, "Use fewer depths or longer contexts.")
        check_lengths("attention_tokens", self.attention_tokens, 20, "a needle and its question need 20 tokens")
        timed = self.costs.context_tokens
        ok = not timed or self.execution.device == "cpu"
        check("costs.context_tokens", timed, ok, "times are taken on a processor", "Leave it out on a GPU.")
        samples = self.attention_samples
        check("attention_samples", samples, 1 <= samples < 2**20, "must be at least 1", "Use 8.")

    def model_config(self, arm: Arm, setting: Setting | None = None) -> ModelConfig:
        """The model that `arm` starts from (as tuned), before any stage changed theta or window."""
        tables = (("model", self.model), (f"arms.{arm.name}.model", arm.model))
        config = build_model(arm.variant, self.size, tables, arm.name, vocab_size=self.vocab_size)
        if setting is None or setting.tie_query_key is None:
            return config
        return replace(config, init=replace(config.init, tie_query_key=setting.tie_query_key))


def build_model(
    variant: str, size: str, tables: Iterable[tuple[str, Plain]], arm: str, **vocabulary: int
) -> ModelConfig:
    """`variant` at `size` with the overrides of `tables`, each with its place in the recipe, the later over the earlier.

    Args:
        arm: whose model it is, for errors.
        vocabulary: ``vocab_size``, where the recipe says it.

    Raises:
        ConfigError: a key that no model has, or a value that does not fit.
    """
    chosen: Plain = {}
    places: dict[str, str] = {}
    for where, table in tables:
        for key, value in table.items():
            places[key] = f"{where}.{key}"
            chosen[key] = _model_value(places[key], key, value)
    try:
        return ModelConfig.variant(variant, size, **chosen, **vocabulary)
    except ConfigError as error:
        place = "size" if error.field == "size" else places.get(error.field, f"arms.{arm}.{error.field}")
        raise ConfigError(place, error.value, error.rule, error.remedy) from None


def _model_value(where: str, key: str, value: Any) -> Any:
    """An override of the size, of the type that the size has."""
    sizes = SIZES["8b"]
    if key == "vocab_size":
        raise ConfigError(where, value, "belongs to the recipe itself", "Write vocab_size at the top, outside [model].")
    if key not in sizes:
        raise unknown(where, key, "key of a model", sizes.keys() - {"vocab_size"})
    if key == "init":
        return from_plain(Init, value, where)
    if isinstance(sizes[key], float):
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and -1e30 < value < 1e30
        check(where, value, ok, "must be a number below 1e30", "Change it.")
        return float(value)
    check(where, value, type(value) is int and abs(value) < 2**31, "must be a whole number below 2^31", "Change it.")
    check(where, value, key != "num_layers" or value <= 1024, "a recipe has at most 1024 layers", "Use fewer.")
    return value
