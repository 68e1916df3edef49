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
START_SECONDS = 10.0
"""Of a process."""
WARM_TOKENS = 2048
"""A process first takes a step of at most so many tokens where nothing is compiled for a length."""


class Step(Contestant):
    """A step of a model in a process of its own for each measurement: two models might not fit into memory together,
    and its peak is then this step's."""

    def __init__(self, plan: Plan, who: str, way: str, layout: str, dtype: str, tokens: int, threads: int) -> None:
        super().__init__()
        self.job = {"plan": asdict(plan), "who": who, "way": way, "layout": layout, "dtype": dtype}
        self.tokens, self.threads = tokens, threads
        self.warm_tokens = tokens if plan.compiled or plan.device != "cpu" else min(tokens, WARM_TOKENS)

    def warm_up(self) -> None:
        """Every process warms itself up."""

    def measure(self) -> Sample:
        worker = Worker("rnope.bench.train_worker", self.threads)
        try:
            worker.ask("open", tokens=self.tokens, threads=self.threads, **self.job)
            worker.ask("step", tokens=self.warm_tokens)
            seen = worker.ask("step", tokens=self.tokens)
        finally:
            worker.close()
        self.logits = torch.tensor([seen["loss"]])
        self.facts |= {name: seen[name] for name in ("loss", "gradient_norm", "memory")}
        return Sample(sum(seen["parts"].values()), seen["parts"])


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
        before = START_SECONDS + took * min(1.0, WARM_TOKENS / tokens)
        entries.append(Entry(who=who, how=how, layout=layout, dtype=dtype, make=make, flops=flops,
                             expected_seconds=before + took))  # fmt: skip

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
