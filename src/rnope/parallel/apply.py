"""A decoder made ready for its ranks: sequence parallelism, float8, checkpointing of activations, compilation and FSDP2,
in this order, each around what came before. Weights keep their names and their values whatever is done.

Weights and gradients are float32, each rank holding an equal part of them; products are in the precision that is asked
for. Gradients are *sums* over all ranks, of the rows and of the shares of a row: whoever calls divides by the number of
target tokens, which alone weighs every token alike.

Of the `8b` size (8.03 billion weights) the first rank holds 32 GB on its machine's own memory while weights are drawn or
collected. Each rank gets them tensor by tensor, the largest of which, the embedding, has 4.2 GB; then it keeps 12 bytes
(weights and moments) and 4 more (gradients) a weight over the number of ranks, 16 GB on each of 8. In the forward and in
the backward pass it gathers one block at a time (0.4 GB in bfloat16, and the next one meanwhile), and gives it back after
each: to keep them would cost 14 GB a rank and save one gathering in three. The embedding, needed first and last, stays
(2.1 GB).
"""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, Literal, cast

import torch
import torch.compiler.config
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rnope.model.decoder import Decoder
from rnope.model.spec import ModelConfig
from rnope.parallel.float8 import use_float8
from rnope.parallel.mesh import Mesh
from rnope.parallel.sequence import share_rows

Precision = Literal["fp32", "bf16", "fp8"]
COMPILED = 64
"""Variants of a block's code: kinds of layers × row lengths × training and validation, of all stages. Beyond PyTorch's own 8
blocks would go on uncompiled, with no more than a warning."""


def apply(
    config: ModelConfig,
    mesh: Mesh,
    *,
    seed: int | None = 0,
    precision: Precision = "bf16",
    checkpoint_activations: bool = False,
    compile_blocks: bool = False,
    compiler: str | Callable[..., Any] = "inductor",
) -> Decoder:
    """A decoder over the ranks of `mesh`, with fresh weights; all of them call it together.

    What may be called is ``model.loss``, with this rank's rows, or its share of them and where that stands.

    Args:
        seed: of the weights, which are those of ``Decoder(config, seed=seed)`` on a CPU, whatever the ranks; None leaves
            them as memory happened to be, for whoever loads a checkpoint.
        precision: of products.
        checkpoint_activations: keep only the inputs of blocks for the backward pass, and compute the rest again.
        compile_blocks: compile every block, by torch.compile's backend `compiler`.

    Raises:
        ConfigError: heads that so many ranks cannot share; float8 that is not to be had.
    """
    with torch.device("meta"):
        model = Decoder(config)
    if mesh.degree > 1:
        share_rows(model, mesh)
    if precision == "fp8":
        use_float8(model, mesh.device)
    if checkpoint_activations:
        for block in model.blocks:
            # In place of the method, and not around the module, which would change the names of weights.
            block.forward = _checkpointed(block.forward)  # type: ignore[method-assign]
    if compile_blocks:
        torch.compiler.config.recompile_limit = max(COMPILED, torch.compiler.config.recompile_limit)
        for block in model.blocks:
            block.compile(backend=compiler)
    if mesh.devices is not None:
        _shard(model, mesh, precision)
    elif precision != "fp32":
        _cast(model)
    model.to_empty(device=mesh.device)
    if seed is not None:
        load_full_state(model, mesh, Decoder(config, seed=seed).state_dict() if mesh.rank == 0 else None)
    return model


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checkpointed(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return out

    return checkpointed


def _shard(model: Decoder, mesh: Mesh, precision: Precision) -> None:
    """FSDP2: a block is gathered when it is needed; embedding, which is also the head, and last norm are the root's."""
    policy = MixedPrecisionPolicy()
    if precision != "fp32":
        # Inputs are not cast: rotary tables must stay float32, and the embedding's output is bfloat16 already.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=mesh.flat, mp_policy=policy, reshard_after_forward=True)
    fully_shard(model, mesh=mesh.flat, mp_policy=policy, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # FSDP would divide by the ranks, shares of one row among them. Gloo cannot scale within a sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")
    gathered = model.loss

    def loss(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        sums = gathered(*args, **kwargs)
        if not torch.is_grad_enabled():
            # No backward pass will give the root's weights back, and whoever asks for them would get bfloat16 copies.
            cast(FSDPModule, model).reshard()
        return sums

    model.loss = loss  # type: ignore[method-assign]


def _cast(model: Decoder) -> None:
    """One process alone: weights are cast where they are used, the head's by `rnope.kernels.cross_entropy`. FSDP over one
    rank would copy all of them several times more."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = MethodType(_linear, module)  # type: ignore[method-assign]
    model.embedding.register_forward_hook(_halved)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, module.weight.to(x.dtype))


def _halved(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.to(torch.bfloat16)


@torch.no_grad()
def load_full_state(model: Decoder, mesh: Mesh, state: Mapping[str, Tensor] | None) -> None:
    """Give every rank its part of `state`, whole weights by name, which only the first rank needs to have."""
    assert mesh.rank or state is not None
    for name, weight in model.named_parameters():
        if state is not None:
            whole = state[name].detach().to(mesh.device, weight.dtype).contiguous()
        else:
            whole = torch.empty(weight.shape, dtype=weight.dtype, device=mesh.device)
        if isinstance(weight, DTensor):
            dist.broadcast(whole, src=0)
            whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.copy_(whole)


@torch.no_grad()
def full_state(model: Decoder, mesh: Mesh) -> dict[str, Tensor]:
    """Whole weights by name in the first rank's CPU memory, one tensor after another; empty on the others, which must
    call it too. On the CPU of one process alone these are the weights themselves."""
    state = {}
    for name, weight in model.named_parameters():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if mesh.rank == 0:
            state[name] = whole.detach().cpu()
    return state
