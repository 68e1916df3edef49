"""The probe through transformers: any causal language model whose attention goes through transformers' own interface.

The model's code is untouched. While it reads, its attention implementation is one of ours, which hands over what a layer
attends with and computes what transformers would; behind that its own setting comes back. Nothing here knows a model by
its name: which layers attend, how, and whether position moves their keys is seen from what they do.
"""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rnope.analysis.probe import Layer, Take
from rnope.analysis.rows import Captured, rows_by_group
from rnope.errors import UserError, check
from rnope.evals.models.pretrained import quiet, rope_types
from rnope.generate.ids import token_ids
from rnope.hf.mapping import UNBOUNDED

EXAMPLES = ("Llama", "Mistral", "Qwen3", "Gemma3", "Cohere2", "Olmo3", "Phi3", "Granite", "SmolLM3", "GptOss")
"""Some of the many whose ``…ForCausalLM`` can be looked into."""
_NAME = "rnope_probe"
_BLOCK_SCORES = 2**25
"""Of attention that is computed here at a time: 128 MiB."""
_KEPT = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)
"""Caches of which every chunk goes on: recurrent states do not everywhere."""
_UNKNOWN = ("position_bias", "indices", "block_indices")
"""What a model may add to its attention, or pick its keys by, that is not followed here."""

_Attend = Callable[..., tuple[Tensor, None]]
_watched: "WeakKeyDictionary[nn.Module, _Attend]" = WeakKeyDictionary()
"""Module of a model that is being read -> who attends for it."""
_entering = threading.Lock()


class HubProbed:
    """A model of transformers as `rnope.analysis.probe.Probed`.

    The text is read in chunks where that is the same as reading it at once. It is not for recurrent layers, nor for RoPE
    whose frequencies depend on the length (``dynamic``, ``longrope``): such models read all of it at once. A layer that
    attends within chunks (Llama 4) is said to have a window of a chunk: the most that it sees.

    Args:
        model: a causal language model with its weights, in any dtype and on any device.
        chunk: tokens are read in chunks of so many, and handed over in pieces of as many rows.

    Raises:
        ConfigError: a chunk below 1.
        UserError: the model has no attention, or it is not behind transformers' attention interface, or attends by
            rules that are not followed here.
    """

    def __init__(self, model: PreTrainedModel, *, chunk: int = 2048) -> None:
        check("chunk", chunk, type(chunk) is int and chunk > 0, "must be at least 1", "Give a number such as 2048.")
        self.model, self.chunk = model, chunk
        self._config: Any = model.config.get_text_config(decoder=True)
        self._forward = inspect.signature(model.forward).parameters
        self._vocab_size: int = model.get_input_embeddings().num_embeddings
        self._ropes = set(rope_types(model.config.to_dict()))
        recurrent = any(type(kept) not in _KEPT for kept in DynamicCache(config=self._config).layers)
        self._goes_on = not recurrent and self._ropes.isdisjoint({"dynamic", "longrope"})
        self.layers = self._layers()
        try:  # whatever else stands in the way shows before work starts
            self.read([0, 0], rows_from=0, take=lambda found: None, new_tokens=2)
        except UserError:
            raise
        except Exception as error:  # whatever its many classes raise
            raise UserError(f"{_class(model)} cannot be read as a causal language model ({error}).") from error

    @torch.inference_mode()
    def read(self, ids: Sequence[int], *, rows_from: int, take: Take, new_tokens: int = 0) -> list[int]:
        """As `Probed.read`; stop ids are not looked at.

        Raises:
            ConfigError: ids outside the vocabulary.
        """
        tokens = token_ids(ids, "ids", self._vocab_size).to(self.model.device)
        if "dynamic" in self._ropes:  # it remembers the longest text so far, until it reads a short one
            self._logits(tokens[:1], 1, use_cache=False)
        cache = DynamicCache(config=self._config)
        reader = _Reader(take, rows_from, self.chunk)
        new: list[int] = []
        with _attending(self.model, reader):
            for piece in tokens.split(self._pieces(len(tokens), rows_from)):
                logits = self._step(piece, reader, cache)
            while len(new) < new_tokens:
                new.append(int(logits.argmax()))
                if len(new) < new_tokens:
                    logits = self._step(tokens.new_tensor(new[-1:]), reader, cache)
        return new

    def _pieces(self, tokens: int, rows_from: int) -> list[int]:
        """Sizes of what is read at once."""
        if not self._goes_on:
            return [tokens]
        parts = (rows_from, tokens - rows_from)
        return [min(self.chunk, part - begin) for part in parts for begin in range(0, part, self.chunk)]

    def _step(self, ids: Tensor, reader: "_Reader", cache: DynamicCache) -> Tensor:
        """Read `ids` [t] behind what `cache` has: logits of what comes next, [vocab]."""
        reader.begin, reader.end = reader.end, reader.end + len(ids)
        reader.seen = []
        # Given as a place, not as a number, no model leaves the other rows of some layers out.
        kept = 1 if reader.end <= reader.rows_from else torch.tensor([len(ids) - 1], device=ids.device)
        logits = self._logits(ids, kept, past_key_values=cache, use_cache=True)
        if reader.seen != [layer.index for layer in self.layers]:
            raise RuntimeError(f"{_class(self.model)} read with layers {reader.seen}: was it set otherwise meanwhile?")
        return logits

    def _logits(self, ids: Tensor, kept: "int | Tensor", **given: Any) -> Tensor:
        if "logits_to_keep" in self._forward:
            given["logits_to_keep"] = kept
        found: Tensor = self.model(input_ids=ids[None], **given).logits[0, -1]
        return found

    @torch.inference_mode()
    def _layers(self) -> tuple[Layer, ...]:
        """Seen from one token read at two places: it attends to itself alone, so that what comes after is the same, bit by
        bit, and keys differ where position made them."""
        embedding = self.model.get_input_embeddings().weight[:256]
        token = embedding.float().norm(dim=-1).argmax()[None].to(self.model.device)  # not padding, which may be zeros
        here, there = (self._alone(token, place) for place in (0, 5))
        if not here:
            raise UserError(f"{_class(self.model)} has no attention: none of its layers attends to tokens.")
        if "position_ids" not in self._forward:
            raise UserError(f"{_class(self.model)} takes no positions: how its layers tell them cannot be seen.")
        indices = [found.layer for found in here]
        if len(set(indices)) < len(indices):
            raise UserError(f"{_class(self.model)} attends more than once in a layer, which is not followed here.")
        kept = DynamicCache(config=self._config).layers
        return tuple(
            Layer(
                index=one.layer,
                position="nope" if torch.equal(one.keys, other.keys) else "rope",
                window=one.window if one.window is not None else _window(kept[one.layer]),
                heads=one.queries.shape[0],
                kv_heads=one.keys.shape[0],
            )
            for one, other in zip(here, there, strict=True)
        )

    def _alone(self, token: Tensor, place: int) -> list[Captured]:
        found: list[Captured] = []

        def see(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
        ) -> tuple[Tensor, None]:
            found.append(_captured(module, query, key, None, 1, given))
            group = query.shape[1] // value.shape[1]
            return value.repeat_interleave(group, dim=1).transpose(1, 2).contiguous(), None

        with _attending(self.model, see):
            given = {"position_ids": token.new_tensor([[place]])} if "position_ids" in self._forward else {}
            self._logits(token, 1, **given, use_cache=False)
        return found


class _Reader:
    """Attends for every layer of a model while it reads, and hands rows over."""

    def __init__(self, take: Take, rows_from: int, piece: int) -> None:
        self.take, self.rows_from, self.piece = take, rows_from, piece
        self.begin = self.end = 0
        """Of what is being read."""
        self.seen: list[int] = []
        """Layers that have attended."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        captured = _captured(module, query, key, attention_mask, self.end, given)
        self.seen.append(captured.layer)
        if self.end > self.rows_from:
            if query.shape[2] != self.end - self.begin:
                raise RuntimeError(f"layer {captured.layer} left rows out")
            for begin in range(max(self.rows_from - self.begin, 0), query.shape[2], self.piece):
                self.take(_part(captured, begin, begin + self.piece))
        return _attended(module, query, key, value, attention_mask, **given)


def _captured(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, end: int, given: dict[str, Any]
) -> Captured:
    """What `module` attends with: `query` [1, h, r, d] and `key` [1, kv, k, d], the last of which stand before `end`."""
    name = type(module).__name__
    if found := [each for each in _UNKNOWN if given.get(each) is not None]:
        raise UserError(f"{name} attends with `{found[0]}` beside queries and keys, which is not followed here.")
    if key.shape[2] > end:
        raise UserError(f"{name} attends to {key.shape[2]:,} keys of {end:,} tokens: which is whose is not known here.")
    if mask is None and query.shape[2] > 1 and not given.get("is_causal", getattr(module, "is_causal", True)):
        raise UserError(f"{name} lets tokens see later ones: it is no causal language model's.")
    window = given.get("sliding_window")
    scale = given.get("scaling")
    return Captured(
        layer=int(module.layer_idx),  # type: ignore[arg-type]  # a number that the module keeps
        queries=query[0],
        keys=key[0],
        positions=torch.arange(end - query.shape[2], end, device=query.device),
        first_key=end - key.shape[2],
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        window=None if window is None or window >= UNBOUNDED else int(window),
        mask=None if mask is None else mask[0, 0] if mask.shape[1] == 1 else mask[0],
        softcap=given.get("softcap"),
        sinks=given.get("s_aux"),
    )


def _part(captured: Captured, begin: int, end: int) -> Captured:
    """The queries [begin, end) of `captured`."""
    mask = None if captured.mask is None else captured.mask[..., begin:end, :]
    queries, positions = captured.queries[:, begin:end], captured.positions[begin:end]
    return replace(captured, queries=queries, positions=positions, mask=mask)


def _attended(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """What the layer's heads read, [1, r, h, d]: by torch's own attention, or by rows where that lacks what they use."""
    if given.get("softcap") is None and given.get("s_aux") is None:
        found: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **given)
        return found
    captured = _captured(module, query, key, attention_mask, key.shape[2], given)
    heads, rows, keys = query.shape[1], query.shape[2], key.shape[2]
    mixed = value.new_empty(heads, rows, value.shape[-1])
    size = max(_BLOCK_SCORES // (heads // key.shape[1] * keys), 1)
    for begin in range(0, rows, size):
        groups = rows_by_group(_part(captured, begin, begin + size))
        parts = [each.probabilities.to(value.dtype) @ own for each, own in zip(groups, value[0], strict=True)]
        mixed[:, begin : begin + size] = torch.cat(parts)
    return mixed.transpose(0, 1)[None].contiguous(), None


def _registered(module: nn.Module, *given: Any, **named: Any) -> tuple[Tensor, None]:
    """Also called for a model that shares its configuration with one that is being read: it attends as usual."""
    return _watched.get(module, _attended)(module, *given, **named)


AttentionInterface.register(_NAME, _registered)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def _attending(model: PreTrainedModel, attend: _Attend) -> Iterator[None]:
    """`attend` in place of the attention of all of the model's layers; evaluation mode."""
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    with _entering:
        if any(module in _watched for module in modules):
            raise RuntimeError(f"{_class(model)} is being read by another probe.")
        before = [(config, config._attn_implementation) for config in _configs(modules)]
        _watched.update(dict.fromkeys(modules, attend))
    try:
        with quiet():
            model.set_attn_implementation(_NAME)
        if model.config._attn_implementation != _NAME:
            raise UserError(
                f"{_class(model)} computes its attention in code of its own, not behind transformers' attention interface, "
                f"so that it cannot be looked into. Those that can are, among others: {', '.join(EXAMPLES)}."
            )
        model.eval()
        yield
    finally:
        with _entering:
            for module in modules:
                _watched.pop(module, None)
            for config, name in before:
                config._attn_implementation = name  # and of all its parts, whose own come later in the list
        for module in training:
            module.training = True


def _configs(modules: Sequence[nn.Module]) -> list[PreTrainedConfig]:
    """Every configuration of a model's parts once, outer ones first."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [module.config for module in modules if isinstance(module, PreTrainedModel)]
    while waiting:
        config = waiting.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            waiting += [part for name in config.sub_configs if (part := getattr(config, name, None)) is not None]
    return list(found.values())


def _window(kept: object) -> int | None:
    """Of a layer's cache."""
    window = kept.sliding_window if isinstance(kept, DynamicSlidingWindowLayer) else UNBOUNDED
    return None if window >= UNBOUNDED else int(window)


def _class(model: PreTrainedModel) -> str:
    return type(model).__name__
