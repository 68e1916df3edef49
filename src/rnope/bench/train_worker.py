"""Steps of training in a process of their own: ``python -m rnope.bench.train_worker``, asked through pipes.

A step is forward, loss, backward, clipping and AdamW. The learning rate is 0, so that every step is the same work on the
same weights, and every loss the same.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rnope.bench.limits import set_threads
from rnope.bench.peak import now_bytes
from rnope.bench.plan import DTYPES, Plan, full_attention
from rnope.bench.timing import timed
from rnope.bench.transformers_peer import hf_model
from rnope.bench.worker import serve
from rnope.config.training import AdamW
from rnope.kernels import IGNORED
from rnope.model.decoder import Decoder
from rnope.parallel.apply import Precision, apply
from rnope.parallel.mesh import Mesh
from rnope.train.metrics import memory_bytes
from rnope.train.optim import build_optimizer, step_if_finite

PRECISIONS: dict[str, Precision] = {"plain": "fp32", "mixed": "bf16", "fp8": "fp8"}
SETTINGS = AdamW()


class Trainer:
    """One model, its optimizer, and a row of random tokens; each public method is a request, arguments plain data."""

    def open(
        self, *, plan: dict[str, Any], who: str, way: str, layout: str, dtype: str, tokens: int, threads: int
    ) -> None:
        """Make them. `who` is ``ours`` or ``transformers``; without a `way` that says otherwise, weights are `dtype`."""
        set_threads(threads)
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in plan.items()}
        chosen = Plan(**values)
        self.device, kind = torch.device(chosen.device), getattr(torch, DTYPES[dtype])
        self.base = now_bytes(self.device)
        config = chosen.config if layout == "hybrid" else full_attention(chosen.config)
        mesh = Mesh(rank=0, ranks=1, degree=1, device=self.device, devices=None)
        generator = torch.Generator().manual_seed(chosen.seed + 1)
        self.ids = torch.randint(0, config.vocab_size, (1, tokens), generator=generator).to(self.device)
        self.ours: Decoder | None = None
        if who == "ours":
            self.ours = apply(
                config, mesh, seed=chosen.seed, precision=PRECISIONS[way],
                checkpoint_activations=chosen.checkpoint, compile_blocks=chosen.compiled,
            )  # fmt: skip
            self.model: nn.Module = self.ours.to(kind) if way == "plain" else self.ours
            self.optimizer = build_optimizer(self.ours, SETTINGS)
            return
        source = Decoder(config, seed=chosen.seed).to(self.device, kind)
        self.theirs: Any = hf_model(source, "sdpa", tokens).train().requires_grad_(True)
        self.theirs.config.use_cache = False
        if chosen.checkpoint:
            self.theirs.gradient_checkpointing_enable()
        if chosen.compiled:
            self.theirs = torch.compile(self.theirs)
        self.model = self.theirs
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, betas=(SETTINGS.betas[0], SETTINGS.betas[1]), eps=SETTINGS.eps,
            weight_decay=SETTINGS.weight_decay, fused=True,
        )  # fmt: skip

    def step(self, *, tokens: int) -> dict[str, Any]:
        """One step over the first `tokens`: seconds of its parts, mean loss, norm of the gradient, peak memory."""
        ids, losses, norms = self.ids[:, :tokens], list[Tensor](), list[float]()
        parts = {
            "forward": timed(lambda: losses.append(self._loss(ids)), self.device),
            "backward": timed(lambda: losses[0].backward(), self.device),
            "optimizer": timed(lambda: norms.append(self._update(losses[0], tokens - 1)), self.device),
        }
        loss = float(losses[0].detach()) / (tokens - 1 if self.ours is not None else 1)
        memory = {"peak_bytes": memory_bytes(self.device), "base_bytes": self.base}
        return {"parts": parts, "loss": loss, "gradient_norm": norms[0], "memory": memory}

    def _loss(self, ids: Tensor) -> Tensor:
        """The sum over all targets, as `rnope train` has it; or the mean, as transformers has it."""
        if self.ours is None:
            loss: Tensor = self.theirs(ids, labels=ids).loss
            return loss
        targets = torch.full_like(ids, IGNORED)
        targets[:, :-1] = ids[:, 1:]
        return self.ours.loss(ids, targets)[0]

    def _update(self, loss: Tensor, targets: int) -> float:
        if self.ours is not None:
            return step_if_finite(
                self.ours, self.optimizer, loss=float(loss.detach()), targets=targets, rate=0.0,
                clip_norm=SETTINGS.clip_norm,
            )  # fmt: skip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), SETTINGS.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)


if __name__ == "__main__":
    serve(Trainer)
