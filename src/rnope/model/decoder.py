"""The decoder: parallel blocks between a tied embedding and its head. Single-device and pure: no mesh, no globals."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rnope.errors import ConfigError
from rnope.kernels import check_backend, cross_entropy, swiglu
from rnope.model.attention import Attention, LayerMemory, LayerNorm, Memory, RotaryTables, Rows, at_rows
from rnope.model.rope import rotary_table
from rnope.model.spec import LayerSpec, ModelConfig


class _Undrawn(TorchFunctionMode):
    """PyTorch's modules without weights of its own choice: `init_weights` draws them, and on the meta device drawing imports
    SymPy, two seconds for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.kaiming_uniform_, nn.init.normal_):
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate(x), self.up(x)))


class Block(nn.Module):
    """``x + attention(norm(x)) + feed_forward(norm(x))``, one norm for both."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, spec)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        tables: RotaryTables,
        *,
        starts: Tensor | None = None,
        rows: Rows | None = None,
        memory: LayerMemory | None = None,
    ) -> Tensor:
        normal = self.norm(x)
        mixed = self.attention(normal, tables, starts=starts, rows=rows, memory=memory)
        if rows is not None:
            x, normal = at_rows(x, rows), at_rows(normal, rows)
        return (x + mixed).add_(self.feed_forward(normal))


class Decoder(nn.Module):
    """A causal language model with the layers of `config`.

    Built under ``torch.device("meta")`` it holds no memory and `init_weights` must not be called.

    Args:
        config: the architecture.
        seed: of the fresh weights.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with _Undrawn():
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            self.layers = nn.ModuleList(Block(config, spec) for spec in config.layers)
        self.norm = LayerNorm(config.width, eps=config.norm_eps)
        if not self.embedding.weight.is_meta:
            self.init_weights(torch.Generator(self.embedding.weight.device).manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw fresh weights: norms 1, embedding and matrices as `ModelConfig.init` says."""
        init = self.config.init
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=init.matrix_gain * module.in_features**-0.5, generator=generator)
            elif isinstance(module, LayerNorm):
                module.weight.fill_(1.0)
        embedding = self.embedding.weight
        embedding.normal_(std=init.embedding_std, generator=generator)
        shared = torch.empty_like(embedding[0]).normal_(std=init.embedding_shared_std, generator=generator)
        embedding.add_(shared)
        if init.tie_query_key:
            last = self.blocks[-1].attention
            group = self.config.heads // self.config.kv_heads
            by_head = last.query.weight.unflatten(0, (self.config.heads, self.config.head_size))
            last.key.weight.copy_(by_head[::group].flatten(0, 1))

    @property
    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return list(self.layers)  # type: ignore[arg-type]

    def use_backend(self, name: str) -> None:
        """Compute attention by the backend `name` of `rnope.kernels`, or ``"auto"``.

        Raises:
            ConfigError: there is no such backend.
        """
        check_backend(name)
        for block in self.blocks:
            block.attention.backend = name

    def rotary_tables(self, positions: Tensor) -> RotaryTables:
        """Cosines and sines for `positions` [t] or [b, t], one pair per theta in use."""
        places = positions if positions.dim() == 1 else positions[:, None]  # b 1 t: the same for all heads
        return {theta: rotary_table(places, self.config.head_size, theta) for theta in self.config.thetas}

    def hidden(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        starts: Tensor | None = None,
        rows: Rows | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Final, normed states [b, t, width] of token `ids` [b, t].

        Args:
            ids: token ids; every id must be below ``vocab_size``.
            positions: [t], where in the sequence they stand, for a rank that holds a share of it; from 0 without.
            starts: [b, t], the first position that each token may see: left padding and document bounds.
            rows: the positions that are wanted, [r], or how many of the last. The last layer then computes only those
                queries (and keys and values for all), so that a hybrid whose last layer is full reads long contexts in
                linear time.
            memory: what is kept of the tokens before `ids`; these are added to it. It excludes `starts` and [r] `rows`.

        Raises:
            ConfigError: an id outside the vocabulary (looked for on the CPU only; a GPU would have to wait for it).
        """
        if ids.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_ids(ids)
        assert memory is None or (starts is None and not isinstance(rows, Tensor))
        length, blocks = ids.shape[1], self.blocks
        if positions is None:
            positions = torch.arange(length, device=ids.device) if memory is None else memory.positions(length)
        tables = self.rotary_tables(positions)
        kept: Sequence[LayerMemory | None] = [None] * len(blocks) if memory is None else memory.layers
        x = self.embedding(ids)
        for block, layer in zip(blocks[:-1], kept, strict=False):
            x = block(x, tables, starts=starts, memory=layer)
        if rows is not None and starts is not None:
            starts = at_rows(starts[..., None], rows)[..., 0]
        return self.norm(blocks[-1](x, tables, starts=starts, rows=rows, memory=kept[-1]))

    def _check_ids(self, ids: Tensor) -> None:
        low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
        if low < 0 or high >= self.config.vocab_size:
            raise ConfigError(
                "ids",
                low if low < 0 else high,
                f"is outside the vocabulary of {self.config.vocab_size:,} tokens",
                "Use the tokenizer that the model was trained with.",
            )

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits [..., vocab] of final `states` [..., width]."""
        return F.linear(states, self.embedding.weight) * self.config.logit_scale

    def loss(
        self, ids: Tensor, targets: Tensor, *, positions: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats of `targets` [b, t] behind `ids` [b, t]; never holds all logits at once.

        Args:
            targets: int64; `rnope.kernels.IGNORED` where nothing is to be predicted.
            positions, starts: as for `hidden`.

        Returns:
            the sum over all targets, to differentiate, and each position's loss [b, t], float32 and detached, 0 where
            it is ignored.
        """
        states = self.hidden(ids, positions=positions, starts=starts)
        total, each = cross_entropy(
            states.flatten(0, 1), self.embedding.weight, targets.flatten(), scale=self.config.logit_scale
        )
        return total, each.view(targets.shape)

    def forward(self, ids: Tensor, *, starts: Tensor | None = None, rows: Rows | None = None) -> Tensor:
        """Logits [b, t, vocab] (or [b, r, vocab] for `rows`); see `hidden`."""
        return self.logits(self.hidden(ids, starts=starts, rows=rows))
