"""One step of training, hybrid against full attention and against transformers: tokens a second and peak memory."""

from dataclasses import asdict
from functools import partial

import torch

from rnope.bench import limits
from rnope.bench.kit import Kit
from rnope.bench.plan import Plan
from rnope.bench.timing import Contestant, Entry, Row, Sample
from rnope.bench.worker import Worker
from rnope.model.accounting import training_flops

SHARES = {"ours": 0.5, "transformers": 0.25}
"""Shares of the matmul rate, guessed, for estimates."""
WARM_TOKENS = 512
"""A warm-up takes at most so many tokens where nothing is compiled for a length."""


class Step(Contestant):
    """A model in training, in a process of its own; on a GPU the process lasts for one measurement, since two models
    would have to share the memory."""

    def __init__(self, plan: Plan, who: str, way: str, layout: str, dtype: str, tokens: int, threads: int) -> None:
        super().__init__()
        self.job = {"plan": asdict(plan), "who": who, "way": way, "layout": layout, "dtype": dtype}
        self.tokens, self.threads, self.alone = tokens, threads, plan.device != "cpu"
        self.warm_tokens = tokens if plan.compiled or self.alone else min(tokens, WARM_TOKENS)
        self.worker: Worker | None = None

    def warm_up(self) -> None:
        if not self.alone:
            self._start()

    def _start(self) -> Worker:
        self.worker = Worker("rnope.bench.train_worker", self.threads)
        self.worker.ask("open", tokens=self.tokens, threads=self.threads, **self.job)
        self.worker.ask("step", tokens=self.warm_tokens)
        return self.worker

    def measure(self) -> Sample:
        seen = (self.worker or self._start()).ask("step", tokens=self.tokens)
        self.logits = torch.tensor([seen["loss"]])
        self.facts |= {name: seen[name] for name in ("loss", "gradient_norm", "memory")}
        if self.alone:
            self.close()
        return Sample(sum(seen["parts"].values()), seen["parts"])

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def rows(plan: Plan, kit: Kit) -> list[Row]:
    """A row for each number of threads, dtype and length."""
    return [
        _row(plan, kit, tokens, dtype, threads)
        for threads in plan.threads
        for dtype in plan.dtypes
        for tokens in sorted(plan.lengths)
    ]


def _row(plan: Plan, kit: Kit, tokens: int, dtype: str, threads: int) -> Row:
    entries: list[Entry] = []

    def add(who: str, how: str, way: str, layout: str) -> None:
        flops = training_flops(kit.models.configs[layout], tokens)
        took = kit.expected(flops, dtype, threads, SHARES[who])
        make = partial(Step, plan, who, way, layout, dtype, tokens, threads)
        warm = 10 + took * min(1.0, WARM_TOKENS / tokens)
        entries.append(Entry(who=who, how=how, layout=layout, dtype=dtype, make=make, flops=flops,
                             expected_seconds=took, warm_seconds=warm))  # fmt: skip

    ways = [way for way in plan.ways if way == "plain" or dtype == "bf16"]
    for i, way in enumerate(ways):
        add("ours", "" if way == "plain" else way, way, "hybrid")
        if "full" in plan.peers and i == 0:
            add("ours", "" if way == "plain" else way, way, "full")
    if "transformers" in plan.peers and tokens <= plan.transformers_tokens:
        for layout in ("hybrid", "full") if "full" in plan.peers else ("hybrid",):
            add("transformers", "sdpa", "plain", layout)
    entries += limits.matmuls(plan, dtype, kit.rate(dtype, threads))
    return Row(tokens=tokens, threads=threads, dtype=dtype, entries=entries)
