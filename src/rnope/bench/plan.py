"""What is to be measured, as plain values: parsed from the command line and checked before anything is built. No torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rnope.errors import check, unknown
from rnope.model.spec import LayerSpec, ModelConfig

KINDS = ("attention", "prefill", "decode", "memory", "train")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Short name -> torch's."""
PEERS = ("full", "transformers", "flex", "llama")
"""``full`` is our own model with full attention in every layer; ``flex`` is compiled FlexAttention."""
WAYS = ("plain", "compiled", "int8")
"""How our decode runs; int8 is compiled, too."""
TRAIN_WAYS = ("plain", "mixed", "fp8")
"""How our training runs: weights and optimizer in the row's dtype, or in float32 with products in bf16, or in float8."""
TRAIN_DTYPES = ("fp32", "bf16")
PEAKS = ("model", "thin", "none")
TOKENS_MOST = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One run of ``rnope bench``."""

    what: str
    """One of `KINDS`."""
    lengths: tuple[int, ...]
    """Context tokens of the rows."""
    dtypes: tuple[str, ...] = ("bf16",)
    """Names of `DTYPES`."""
    threads: tuple[int, ...] = (1,)
    repeats: int = 3
    peers: tuple[str, ...] = PEERS
    variant: str = "rnope-swa"
    size: str = "100m"
    window: int | None = None
    """In place of the size's own."""
    layers: int | None = None
    """In place of the size's own."""
    seed: int = 0
    """Of weights and tokens."""
    device: str = "cpu"
    chunk_tokens: int = 2048
    """Of our prefill."""
    compiled: bool = False
    """Decode of `prefill` with new tokens, and training, through `torch.compile`; the decode benchmark has both anyway."""
    checkpoint: bool = False
    """Training keeps the inputs of blocks only, and computes the rest again."""
    new_tokens: tuple[int, ...] = ()
    """Tokens written behind each of `lengths`: the time is then end to end."""
    decoded_tokens: int = 24
    """Tokens of one sample of the decode benchmark."""
    ways: tuple[str, ...] = WAYS
    """Of `WAYS`, in the decode benchmark; of `TRAIN_WAYS`, in that of training."""
    transformers_tokens: int = 16384
    """No row of transformers beyond this length."""
    llama_tokens: int = 8192
    """No row of llama.cpp beyond this length."""
    kv_heads: int | None = None
    """Of the attention benchmark; None for as many as query heads."""
    peak: str = "model"
    """The peak memory of the memory benchmark: of this model, of a `thin` one with the same caches, or of none."""
    peak_tokens: int = 131072
    quick: bool = False
    """Small limits and buffers: to try the commands, not to measure."""

    def __post_init__(self) -> None:
        if self.what not in KINDS:
            raise unknown("what", self.what, "benchmark", KINDS)
        training = self.what == "train"
        for name in self.dtypes:
            if name not in (TRAIN_DTYPES if training else DTYPES):
                raise unknown("dtype", name, "dtype", TRAIN_DTYPES if training else DTYPES)
        for name in self.peers:
            if name not in PEERS:
                raise unknown("peers", name, "peer", PEERS)
        for name in self.ways:
            if name not in (TRAIN_WAYS if training else WAYS):
                raise unknown(
                    "ways", name, f"way to {'train' if training else 'decode'}", TRAIN_WAYS if training else WAYS
                )
        ok = not training or "plain" in self.ways or "fp32" not in self.dtypes
        check("ways", self.ways, ok, "is of bf16, and there is a row of fp32", "Add plain.")
        for length in self.lengths if training else ():
            check("lengths", length, length > 1, "training needs a token to predict", "Use 2k.")
        if self.peak not in PEAKS:
            raise unknown("peak", self.peak, "choice", PEAKS)
        lists = ("lengths", "dtypes", "threads", "ways")
        for name in lists:
            given: tuple[object, ...] = getattr(self, name)
            check(name, given, bool(given), "there is nothing in it", "Give at least one.")
            check(name, given, len(set(given)) == len(given), "names one twice", "Give each once.")
        for name in ("repeats", "chunk_tokens", "decoded_tokens", "peak_tokens"):
            value = getattr(self, name)
            check(name, value, 1 <= value <= TOKENS_MOST, f"must lie in 1 … {TOKENS_MOST:,}", "Use a whole number.")
        for number in self.threads:
            check("threads", number, 1 <= number <= 1024, "must lie in 1 … 1,024", "Use 1.")
        for length in (*self.lengths, *self.new_tokens):
            check("lengths", length, 1 <= length <= TOKENS_MOST, f"must lie in 1 … {TOKENS_MOST:,}", "Use 8k.")
        if self.new_tokens:
            rule = f"there are {len(self.lengths)} lengths"
            check("new_tokens", self.new_tokens, len(self.new_tokens) == len(self.lengths), rule, "Give one for each.")
        remedy = "Use cpu, cuda or cuda:N."
        check("device", self.device, bool(re.fullmatch(r"cpu|cuda(:\d+)?", self.device)), "no such device", remedy)
        heads, kv = self.config.heads, self.kv_heads
        rule = f"must divide the {heads} query heads"
        check("kv_heads", kv, kv is None or (kv > 0 and heads % kv == 0), rule, "Leave it out for as many.")

    @property
    def config(self) -> ModelConfig:
        """The model that is measured."""
        given = {"window": self.window, "num_layers": self.layers}
        overrides = {name: value for name, value in given.items() if value is not None}
        return ModelConfig.variant(self.variant, self.size, **overrides)

    def pairs(self) -> list[tuple[int, int]]:
        """(context tokens, new tokens) of the rows, shortest first."""
        return sorted(zip(self.lengths, self.new_tokens or (0,) * len(self.lengths), strict=True))

    def identity(self) -> dict[str, object]:
        """What two runs must share to stand in one file: all but which rows, peers and repeats are wanted."""
        names = ("what", "variant", "size", "window", "seed", "device", "chunk_tokens", "compiled", "kv_heads", "quick")
        more = [name for name in ("layers", "checkpoint") if getattr(self, name)]  # Older files have neither.
        return {name: getattr(self, name) for name in (*names, *more)}


def full_attention(config: ModelConfig) -> ModelConfig:
    """The same model with RoPE over the full span in every layer: the paper's baseline, sizes and weights unchanged."""
    theta = config.thetas[0] if config.thetas else 1e4
    layers = tuple(LayerSpec(position="rope", theta=theta, qk_norm=spec.qk_norm) for spec in config.layers)
    return config.with_layers(layers)


def listed(text: str) -> tuple[str, ...]:
    """``"a, b"`` -> ``("a", "b")``; ``"none"`` and the empty text are nothing."""
    return tuple(part.strip() for part in text.split(",") if part.strip() and part.strip() != "none")


def dtypes(text: str) -> tuple[str, ...]:
    """Short names of dtypes; torch's own names are taken as well."""
    short = {long: name for name, long in DTYPES.items()}
    return tuple(short.get(part, part) for part in listed(text))


def numbers(text: str, field: str) -> tuple[int, ...]:
    """``"1,2"`` -> ``(1, 2)``.

    Raises:
        ConfigError: something that is no number.
    """
    parts: Sequence[str] = listed(text)
    for part in parts:
        check(field, part, part.isdecimal() and len(part) < 10, "is no whole number", "Write 1,2.")
    return tuple(int(part) for part in parts)
