"""transformers with our weights, in memory: prefill under sdpa or compiled FlexAttention, decode over its two caches."""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rnope.bench.ours import WARM_TOKENS, random_keys_values
from rnope.bench.plan import Plan
from rnope.bench.timing import Contestant, Sample, sync
from rnope.errors import ConfigError
from rnope.hf.mapping import tensor_names, to_hf
from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig

SPARE_TOKENS = 512
"""Room in a static cache behind the context, for warm-up and samples."""


def hf_config(config: ModelConfig, dtype: str, context_tokens: int) -> Any:
    """The configuration of `config` in its class of transformers.

    Raises:
        ConfigError: no class of transformers has these layers.
    """
    import transformers

    raw = to_hf(config, dtype=dtype, context_tokens=context_tokens)
    kind = raw.pop("model_type")
    if kind == "rnope":
        raise ConfigError("variant", "rnope", "no class of transformers has these layers", "Leave transformers out.")
    del raw["rnope"]
    return transformers.AutoConfig.for_model(kind, **raw)


def hf_model(model: Decoder, attention: str, context_tokens: int) -> Any:
    """`model` as transformers has it, its weights copied."""
    import transformers

    weight = model.embedding.weight
    config = hf_config(model.config, str(weight.dtype).removeprefix("torch."), context_tokens)
    with weight.device:
        other = transformers.AutoModelForCausalLM.from_config(config, dtype=weight.dtype, attn_implementation=attention)
    theirs = other.state_dict()
    with torch.no_grad():
        for ours, name in tensor_names(model.config).items():
            theirs[name].copy_(model.get_parameter(ours))
    assert other.get_output_embeddings().weight is other.get_input_embeddings().weight
    return other.eval().requires_grad_(False)


class Prefill(Contestant):
    """Reading a prompt at once, and writing some tokens behind it with the cache that the class makes."""

    def __init__(self, model: Decoder, ids: Tensor, attention: str, new_tokens: int = 0) -> None:
        super().__init__()
        self.model = hf_model(model, attention, len(ids) + new_tokens)
        self.ids = ids.to(model.embedding.weight.device)[None]
        self.new_tokens = new_tokens
        self.compiled = attention == "flex_attention"

    def warm_up(self) -> None:
        # A compiled kernel is made for a shape, so it is warmed up with the shape that is measured.
        self._run(self.ids if self.compiled else self.ids[:, :WARM_TOKENS])

    def _run(self, ids: Tensor) -> Any:
        with torch.no_grad():
            return self.model(ids, use_cache=True, logits_to_keep=1)

    def measure(self) -> Sample:
        device = self.ids.device
        sync(device)
        started = time.perf_counter()
        out = self._run(self.ids)
        sync(device)
        prefill = time.perf_counter() - started
        self.logits = out.logits[0, -1].float().cpu()
        started = time.perf_counter()
        for _ in range(self.new_tokens - 1):
            with torch.no_grad():
                out = self.model(
                    out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1
                )
        sync(device)
        decode = time.perf_counter() - started if self.new_tokens > 1 else 0.0
        return Sample(prefill + decode, {"prefill": prefill, "decode": decode})

    def close(self) -> None:
        self.model = None


class Decode(Contestant):
    """Token after token behind a cache filled with random numbers, ``dynamic`` or ``static``."""

    def __init__(self, model: Decoder, plan: Plan, tokens: int, kind: str) -> None:
        super().__init__()
        self.ours, self.tokens, self.count, self.kind = model.config, tokens, plan.decoded_tokens, kind
        self.spare = SPARE_TOKENS + (plan.repeats + 1) * plan.decoded_tokens
        self.model = hf_model(model, "sdpa", tokens + self.spare)
        self.cache: Any = None

    def warm_up(self) -> None:
        weight = self.model.get_input_embeddings().weight
        self.cache = empty_cache(self.model.config, self.kind, self.tokens + self.spare)
        fill(self.cache, self.ours, self.tokens, weight)
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=weight.device)
        self._step()
        for _ in range(2):
            self.token.fill_(1)
            self._step()

    def _step(self) -> Tensor:
        with torch.inference_mode():
            out = self.model(self.token.clone(), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        if self.logits is None:
            self.logits = out.logits[0, -1].float().cpu()
        return out.logits[0, -1]

    def measure(self) -> Sample:
        times, token = [], 1
        for _ in range(self.count):
            started = time.perf_counter()
            self.token.fill_(token)
            token = int(self._step().argmax())
            times.append(time.perf_counter() - started)
        return Sample(median(times), {"tokens": times})

    def close(self) -> None:
        self.model = self.cache = None


def empty_cache(config: Any, kind: str, tokens: int) -> Any:
    """A cache of transformers: ``dynamic``, or ``static`` with room for `tokens`."""
    import transformers

    if kind == "dynamic":
        return transformers.DynamicCache(config=config)
    return transformers.StaticCache(config=config, max_cache_len=tokens)


def fill(cache: Any, config: ModelConfig, tokens: int, like: Tensor) -> None:
    """Put random keys and values of `tokens` tokens into every layer, as a prefill at once does."""
    with torch.inference_mode():
        for index in range(len(config.layers)):
            cache.update(*random_keys_values(config, tokens, index, like.dtype, like.device), index)


def held_bytes(cache: Any, config: ModelConfig) -> dict[str, int]:
    """Memory behind a cache's keys and values by our layer kinds: whole storages, also where a view shows less."""
    found: dict[str, int] = {}
    for spec, layer in zip(config.layers, cache.layers, strict=True):
        held = sum(x.untyped_storage().nbytes() for x in (layer.keys, layer.values))
        found[spec.kind] = found.get(spec.kind, 0) + held
    return found
