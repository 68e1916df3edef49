"""The architecture, and the only place that knows it: a model is a list of layers, a layer is four facts.

Kernels, caches, accounting, file formats and analysis all read `LayerSpec`s. No torch here, and nothing about how a
model is trained.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from rnope.errors import ConfigError, unknown

Position = Literal["rope", "nope"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """What one attention layer does: position, theta, window and QK-Norm, chosen independently."""

    position: Position
    """``"rope"`` rotates queries and keys over interleaved pairs; ``"nope"`` leaves them as they are."""
    theta: float | None = None
    """Base of the rotary frequencies; None exactly where there is no rotation."""
    window: int | None = None
    """How many keys a query sees, *itself included*: key j for query i iff ``0 <= i - j < window``. None: all before it."""
    qk_norm: bool = False
    """LayerNorm on queries and keys, per head, before the rotation (paper 2.1, variant 2)."""

    def __post_init__(self) -> None:
        if self.position not in ("rope", "nope"):
            raise unknown("position", self.position, "position", ("rope", "nope"))
        if self.position == "rope" and (self.theta is None or not 1 < self.theta < 1e30):
            raise ConfigError(
                "theta", self.theta, "a RoPE layer needs a base above 1", "The paper pretrains with 10000."
            )
        if self.position == "nope" and self.theta is not None:
            raise ConfigError("theta", self.theta, "a NoPE layer has no rotation", "Leave theta out.")
        if self.window is not None and self.window < 1:
            raise ConfigError(
                "window",
                self.window,
                "must be at least 1, since it counts the current token",
                "Use 1 or more, or leave it out for full attention.",
            )

    @property
    def kind(self) -> str:
        """Short name for tables: ``rope``, ``nope``, with ``-window`` and ``+qk-norm`` where they apply."""
        return self.position + ("-window" if self.window else "") + ("+qk-norm" if self.qk_norm else "")

    def __str__(self) -> str:
        span = "full" if self.window is None else f"window {self.window:,}"
        theta = "" if self.theta is None else f" θ {self.theta:,.10g}"
        return f"{self.position}{theta}, {span}{', QK-Norm' if self.qk_norm else ''}"

    def staged(self, *, theta: float | None, window: int | None, rope_window: int | None) -> "LayerSpec":
        """This layer after a stage (SPEC T5); None keeps what it has.

        Args:
            theta: of RoPE layers.
            window: of layers that have one.
            rope_window: of RoPE layers, also of those that saw everything before them.
        """
        seen = rope_window if rope_window and self.position == "rope" else window if self.window else None
        return replace(self, theta=theta if theta and self.theta else self.theta, window=seen or self.window)

    def visible(self, context_tokens: int) -> int:
        """Keys that the last of `context_tokens` queries sees, which is also what a cache must hold."""
        return context_tokens if self.window is None else min(self.window, context_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Init:
    """How a fresh model's weights are drawn (the paper does not say; see docs/LOG.md for what was tried)."""

    embedding_std: float = 0.02
    embedding_shared_std: float = 0.0
    """Standard deviation of one random vector that is added to every token's embedding."""
    matrix_gain: float = 1.0
    """Linear weights are normal with standard deviation ``matrix_gain / sqrt(fan_in)``."""
    tie_query_key: bool = False
    """Start the last layer's keys as its queries (per key-value head, its first query head): "mimetic" initialisation."""

    def __post_init__(self) -> None:
        for name in ("embedding_std", "embedding_shared_std", "matrix_gain"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ConfigError(name, getattr(self, name), "must lie in 0 … 1e6", "Most models use 0.02 to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A decoder of the Command R family: parallel blocks, one bias-free LayerNorm each, tied embedding (table 1)."""

    layers: tuple[LayerSpec, ...]
    width: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_width: int
    """Width of gate and of up, each; table 1 of the paper counts both together (28,672)."""
    vocab_size: int
    logit_scale: float = 1.0
    norm_eps: float = 1e-5
    init: Init = field(default_factory=Init)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ConfigError("layers", [], "a model needs at least one layer", "Add a layer.")
        for name in ("width", "heads", "kv_heads", "head_size", "ffn_width", "vocab_size"):
            if not 1 <= getattr(self, name) < 2**31:
                remedy = "See `rnope layers --size 8b` for an example."
                raise ConfigError(name, getattr(self, name), "must lie in 1 … 2^31", remedy)
        if self.heads % self.kv_heads:
            raise ConfigError(
                "kv_heads",
                self.kv_heads,
                f"must divide the number of query heads, {self.heads}",
                f"Use one of {', '.join(str(n) for n in range(1, min(self.heads, 4096) + 1) if self.heads % n == 0)}.",
            )
        if self.head_size % 2 and any(layer.position == "rope" for layer in self.layers):
            raise ConfigError(
                "head_size",
                self.head_size,
                "must be even where a layer is RoPE, which rotates pairs",
                "Add or take one.",
            )
        for name, value, end in (("logit_scale", self.logit_scale, 10**6), ("norm_eps", self.norm_eps, 1)):
            if not 0 < value < end:
                raise ConfigError(name, value, f"must lie between 0 and {end:,}", "See size 8b.")

    @classmethod
    def variant(cls, name: str, size: str = "8b", **overrides: Any) -> "ModelConfig":
        """A variant of the paper (SPEC V1 to V7) or a control (C1 to C3) at a named size.

        Args:
            name: one of `VARIANTS`.
            size: one of `SIZES`.
            overrides: any field of `ModelConfig` but ``layers``; and ``num_layers``, ``window``, ``theta``.

        Raises:
            ConfigError: an unknown name, or a number of layers that the variant's group does not divide.
        """
        if name not in VARIANTS:
            raise unknown("variant", name, "variant", VARIANTS)
        if size not in SIZES:
            raise unknown("size", size, "size", SIZES)
        chosen = SIZES[size] | {key: _override(SIZES[size], key, value) for key, value in overrides.items()}
        num_layers, window, theta = (chosen.pop(key) for key in ("num_layers", "window", "theta"))
        return cls(layers=VARIANTS[name].layers(name, num_layers, window=window, theta=theta), **chosen)

    def with_layers(self, layers: tuple[LayerSpec, ...]) -> "ModelConfig":
        """The same model with other layer facts: what a stage does when it changes theta or a window."""
        return replace(self, layers=layers)

    def staged(self, *, theta: float | None, window: int | None, rope_window: int | None) -> "ModelConfig":
        """The same model after a stage that changes so much of its layers: see `LayerSpec.staged`."""
        return self.with_layers(
            tuple(layer.staged(theta=theta, window=window, rope_window=rope_window) for layer in self.layers)
        )

    def converted(self, variant: str, *, window: int | None = None) -> "ModelConfig":
        """The same weights with the layers of another variant: where training goes on from RoPE to the hybrid.

        Every layer takes position and span from the variant, and θ where the variant's name states one. Its own θ and its
        QK-Norm stay otherwise: they belong to its weights.

        Args:
            variant: one of `VARIANTS`, whose group must divide the number of layers.
            window: of the windowed layers, which have exactly this one.

        Raises:
            ConfigError: an unknown variant, a window missing or without a layer that has one, or a layer that lacks what
                the variant wants of it: a θ, or the weights of QK-Norm.
        """
        if variant not in VARIANTS:
            raise unknown("variant", variant, "variant", VARIANTS)
        wanted = VARIANTS[variant]
        windowed = "swa" in wanted.group
        if (window is None) == windowed or (window is not None and not 1 <= window < 2**31):
            rule = f"variant {variant!r} " + ("has windowed layers" if windowed else "has no window")
            remedy = "Give a number of tokens, the current one counted." if windowed else "Leave it out."
            raise ConfigError("window", window, rule, remedy)
        layers = []
        new_layers = wanted.layers(variant, len(self.layers), window=1, theta=1e4)
        for i, (old, new) in enumerate(zip(self.layers, new_layers, strict=True)):
            theta = None if new.position == "nope" else wanted.theta or old.theta
            if new.position == "rope" and theta is None:
                rule = f"has RoPE in layer {i}, which is NoPE here and never saw a θ"
                raise ConfigError("variant", variant, rule, "Choose a variant with NoPE in that layer.")
            if new.qk_norm and not old.qk_norm:
                rule = f"has QK-Norm in layer {i}, which has no weights for it"
                raise ConfigError("variant", variant, rule, "Choose another variant, or train one with QK-Norm.")
            layers.append(replace(new, theta=theta, window=window if new.window else None, qk_norm=old.qk_norm))
        return self.with_layers(tuple(layers))

    @property
    def thetas(self) -> tuple[float, ...]:
        """The distinct rotary bases in use, ascending."""
        return tuple(sorted({layer.theta for layer in self.layers if layer.theta is not None}))

    def layer_table(self) -> str:
        """The layers by number, a repeated group written once; what the model card and ``--dry-run`` print."""
        count = len(self.layers)
        period = next(p for p in range(1, count + 1) if self.layers == self.layers[:p] * (count // p))
        if period == 1:
            return f"{_numbers(0, count):>7}  {self.layers[0]}"
        rows, at = [], 0
        for spec, run in groupby(self.layers[:period]):
            length = len(list(run))
            rows.append(f"{_numbers(at, at + length):>7}  {spec}")
            at += length
        if count > period:
            rows.append(f"{'…':>7}  the same again, {count // period} times in all, to layer {count - 1}")
        return "\n".join(rows)

    def kinds(self) -> dict[str, int]:
        """How many layers of each `LayerSpec.kind` there are."""
        return dict(Counter(layer.kind for layer in self.layers))


def _override(size: dict[str, Any], key: str, value: object) -> object:
    """`value` for the field `key` of a size, of the size's own type."""
    if key not in size:
        raise unknown(key, key, "override of a size", size)
    kind = type(size[key])
    if kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is not kind:
        wanted = "a whole number" if kind is int else "a number" if kind is float else "an Init"
        raise ConfigError(key, value, f"must be {wanted}", "Change its type.")
    return value


def _numbers(start: int, end: int) -> str:
    return str(start) if end - start == 1 else f"{start}–{end - 1}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A group of layer kinds, repeated; ``rope`` and ``nope`` see everything before them, ``swa`` is RoPE in a window."""

    group: tuple[Literal["rope", "nope", "swa"], ...]
    qk_norm: bool = False
    theta: float | None = None
    """A base that the variant's name states; None takes the size's."""
    window_ratio: int = 1
    """The variant's window over the size's: RNoPE-10k-swa has 8,192 where RNoPE-SWA has 4,096."""
    summary: str

    def layers(self, name: str, num_layers: int, *, window: int, theta: float) -> tuple[LayerSpec, ...]:
        if not 1 <= num_layers < 2**16 or num_layers % len(self.group):
            raise ConfigError(
                "num_layers",
                num_layers,
                f"variant {name!r} repeats a group of {len(self.group)} layers",
                f"Use a multiple of {len(self.group)}.",
            )
        base = theta if self.theta is None else self.theta
        kinds = {
            "rope": LayerSpec(position="rope", theta=base, qk_norm=self.qk_norm),
            "nope": LayerSpec(position="nope", qk_norm=self.qk_norm),
            "swa": LayerSpec(position="rope", theta=base, window=window * self.window_ratio, qk_norm=self.qk_norm),
        }
        return tuple(kinds[kind] for kind in self.group) * (num_layers // len(self.group))


VARIANTS: dict[str, Variant] = {
    "rope": Variant(group=("rope",), summary="every layer RoPE, full span: the paper's baseline"),
    "qk-norm": Variant(group=("rope",), qk_norm=True, summary="the baseline with LayerNorm on queries and keys"),
    "nope": Variant(group=("nope",), summary="no positional encoding, full span"),
    "rnope": Variant(group=("nope", "rope"), summary="NoPE and RoPE in turn, all full span"),
    "rnope-last": Variant(
        group=("rope", "nope"), summary="RNoPE the other way round: the NoPE layer last, as in RNoPE-SWA"
    ),
    "rnope-10k": Variant(group=("nope", "rope"), theta=1e4, summary="RNoPE fine-tuned with θ 10,000"),
    "rnope-100k": Variant(group=("nope", "rope"), theta=1e5, summary="RNoPE fine-tuned with θ 100,000"),
    "rnope-2m": Variant(group=("nope", "rope"), theta=2e6, summary="RNoPE fine-tuned with θ 2 million"),
    "rnope-4m": Variant(group=("nope", "rope"), theta=4e6, summary="RNoPE fine-tuned with θ 4 million"),
    "rnope-10k-swa": Variant(
        group=("nope", "swa"), window_ratio=2, summary="RNoPE-10k with its RoPE layers in a window"
    ),
    "rnope-swa": Variant(group=("swa", "swa", "swa", "nope"), summary="three windowed RoPE layers, then one full NoPE"),
    "rnope-swa-1to1": Variant(group=("swa", "nope"), summary="RNoPE-SWA with one windowed layer to a full one"),
    "rnope-swa-1to7": Variant(
        group=("swa",) * 7 + ("nope",), summary="RNoPE-SWA with seven windowed layers to a full one"
    ),
    "rnope-swa-full-first": Variant(group=("nope", "swa", "swa", "swa"), summary="RNoPE-SWA, its full layer first"),
    "swa-rope": Variant(
        group=("swa", "swa", "swa", "rope"), summary="control: RNoPE-SWA's windows, RoPE in the full layer"
    ),
    "swa-only": Variant(group=("swa",), summary="control: every layer windowed"),
    "rnope-1to3": Variant(group=("rope", "rope", "rope", "nope"), summary="control: RNoPE-SWA's ratio without windows"),
}

SIZES: dict[str, dict[str, Any]] = {
    # Table 1 of the paper; logit_scale and the initialisation are assumed (Command R7B has 0.25 and 0.02).
    "8b": dict(
        num_layers=32, width=4096, heads=32, kv_heads=8, head_size=128, ffn_width=14336, vocab_size=256_000,
        window=4096, theta=1e4, logit_scale=0.25, norm_eps=1e-5, init=Init(),
    ),
    # The comparison on two CPU cores. Cohere has no sqrt(width) on the embedding: a unit embedding and a logit scale
    # of 1/sqrt(width) say the same.
    "cpu": dict(
        num_layers=4, width=64, heads=2, kv_heads=2, head_size=32, ffn_width=128, vocab_size=2048,
        window=8, theta=1e4, logit_scale=0.125, norm_eps=1e-5,
        init=Init(embedding_std=1.0, embedding_shared_std=1.0, tie_query_key=True),
    ),
    # What the benchmarks of inference run on a CPU: 100 million parameters.
    "100m": dict(
        num_layers=12, width=768, heads=12, kv_heads=4, head_size=64, ffn_width=2048, vocab_size=32_000,
        window=512, theta=1e4, logit_scale=0.0625, norm_eps=1e-5, init=Init(embedding_std=0.5),
    ),
    # The comparison on one GPU: 75 million parameters in the proportions of table 1 (heads of 128, window half of the 4,096
    # tokens of pretraining, feed-forward 3.5 widths), two groups of four layers. Embedding and logits as in `cpu`.
    "h200": dict(
        num_layers=8, width=768, heads=6, kv_heads=2, head_size=128, ffn_width=2688, vocab_size=16_384,
        window=2048, theta=1e4, logit_scale=0.036, norm_eps=1e-5,
        init=Init(embedding_std=1.0, embedding_shared_std=1.0, tie_query_key=True),
    ),
    # For tests: grouped heads, both kinds of layer, and shapes that are all different.
    "tiny": dict(
        num_layers=4, width=32, heads=4, kv_heads=2, head_size=8, ffn_width=48, vocab_size=97,
        window=5, theta=1e4, logit_scale=0.5, norm_eps=1e-5, init=Init(embedding_std=0.5),
    ),
}  # fmt: skip
