"""Folders of answers, made up and written line by line as a run writes them; no model and no suite is asked."""

import math
import random
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

from rnope.evals.results import ModelFacts
from rnope.evals.ruler.tasks import GROUPS
from rnope.evals.standard.scoring import TITLES
from rnope.evals.store import Identity, Store
from rnope.evals.suite import Cell, Prediction

PNG = b"\x89PNG"
FACTS = ("eat a pear", "ring the bell", "feed the goat")


def facts(name: str, **changes: object) -> ModelFacts:
    known = dict(
        name=name, kind="rnope", sha256=f"{len(name):064x}", tokenizer_sha256="c0ffee" + "0" * 58, begin_ids=(2,),
        dtype="float32", device="cpu", trained_tokens=4096, windows=(512,), model_type="cohere2", parameters=12_345_678,
    )  # fmt: skip
    return ModelFacts(**{**known, **changes})  # type: ignore[arg-type]


class Folder:
    """Writes predictions below `out`."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def begin(self, model: str, suite: str, settings: dict[str, object] | None = None, **changes: object) -> Store:
        (self.out / model / suite / "predictions").mkdir(parents=True)
        store = Store(self.out / model / suite)
        store.identify(
            Identity(suite=suite, model=facts(model, **changes), settings=settings or {"seed": 42}, batch=1,
                     versions={"rnope": "1.0", "torch": "2.12"})
        )  # fmt: skip
        store.log("start", command=f"rnope eval {suite} --model {model}", versions={}, cells=1)
        return store

    def cell(
        self,
        store: Store,
        name: str,
        context: int,
        lines: Sequence[dict[str, object]],
        samples: int = 0,
        **labels: object,
    ) -> None:
        """A cell with these lines; `samples` more than lines leave it unfinished."""
        cell = Cell(name=name, context_tokens=context, samples=samples or len(lines), max_new_tokens=8, labels=labels)  # type: ignore[arg-type]
        store.begin(cell)
        known = {"answer": "", "ended": "stop", "new_tokens": 4, "prompt_tokens": context - 8}
        made = [
            Prediction(
                **{**known, "cell": name, "index": i, "prompt_sha256": f"{hash((context, i)) % 16**8:064x}", **line}
            )  # type: ignore[arg-type]
            for i, line in enumerate(lines)
        ]
        store.add(cell, made)
        store.log("answers", cell=name, seconds=90.0, new_tokens=sum(line.new_tokens for line in made))

    def niah(
        self, model: str, score: Callable[[int, float, int], int], *, lengths: Sequence[int], depths: Sequence[float],
        samples: int, repeats: Callable[[int], float] = lambda length: 1.0, **changes: object,
    ) -> Store:  # fmt: skip
        """Needles: `score` of (length, depth, index) is how many of the three facts the answer has."""
        store = self.begin(model, "niah", {"seed": 42, "haystack": "d" * 16, "score": "rule-10"}, **changes)

        def line(found: int, length: int) -> dict[str, object]:
            answer = ", ".join(FACTS[:found]) + "."
            return {
                "answer": answer,
                "references": FACTS,
                "facts": {"town": "Orvel", "haystack_repeats": repeats(length)},
            }

        self.cell(store, "needle-only", 150, [line(3, 0)] * samples, row="needle-only")
        for length in lengths:
            self.cell(store, f"no-needle-{length}", length, [line(0, length)] * samples, row="no-needle")
            for depth in depths:
                lines = [line(score(length, depth, i), length) for i in range(samples)]
                self.cell(store, f"standard-{length}-d{depth:03.0f}", length, lines, row="standard", depth=depth)
        return store

    def perplexity(
        self,
        model: str,
        nats: Callable[[int, int, int], float],
        *,
        lengths: Sequence[int],
        samples: int,
        **changes: object,
    ) -> Store:
        """Windows: `nats` of (length, begin of the bucket, index) per token."""
        store = self.begin(model, "perplexity", {"seed": 42, "corpus": "e" * 64}, **changes)
        for length in lengths:
            edges = [0, *(2**i for i in range(4, length.bit_length() - 2)), length // 2, 3 * length // 4, length]
            spans = list(pairwise(edges))
            lines = []
            for i in range(samples):
                buckets = [
                    {"from": a, "to": b, "tokens": b - max(a, 1), "nats": (b - max(a, 1)) * nats(length, a, i)}
                    for a, b in spans
                ]
                lines.append({"facts": {"buckets": buckets, "bytes": 4 * (length - 1), "overlaps": 0}, "new_tokens": 0})
            self.cell(store, f"window-{length}", length, lines)
        return store

    def ruler(
        self, model: str, hit: Callable[[str, int, int], bool], *, lengths: Sequence[int], samples: int,
        tasks: Sequence[str] = (*GROUPS["retrieval"], *GROUPS["qa"]), settings: dict[str, object] | None = None,
        **changes: object,
    ) -> Store:  # fmt: skip
        """RULER: `hit` of (task, length, index) is whether the answer has the one reference; if so it says more, too."""
        store = self.begin(model, "ruler", settings or {"seed": 42}, **changes)
        for task in tasks:
            for length in lengths:
                lines = [
                    {
                        "answer": f" It is {i}{i}777, I think." if hit(task, length, i) else "",
                        "references": (f"{i}{i}777",),
                        "facts": {"repeats": length / 4096} if "qa" in task else {},
                    }
                    for i in range(samples)
                ]
                self.cell(store, f"{task}-{length}", length, lines, task=task, group="retrieval")
        return store

    def standard(
        self, model: str, tasks: dict[str, tuple[str, ...]], right: Callable[[str, int], float], *, samples: int,
        documents: int | None = None, altered: str = "", cut: int = 0, **changes: object,
    ) -> Store:  # fmt: skip
        """Benchmarks: `right` of (task and metric, index); of the harness's name to its metrics. MMLU has two subjects."""
        store = self.begin(model, "standard", {"seed": 42, "lm_eval": "0.4.13"}, **changes)
        for task, metrics in tasks.items():
            lines = []
            for i in range(samples):
                kept = {"metrics": {metric: right(task + metric, i) for metric in metrics}, "cut": int(i < cut)}
                lines.append({"facts": kept | ({"subject": f"s{i % 2}"} if task == "mmlu" else {})})
            self.cell(store, task, 700, lines, benchmark=TITLES.get(task, task), shots=5, documents=documents or samples,
                      altered=altered, comparable=not altered, source="download")  # fmt: skip
        return store


def whole(folder: Folder, name: str, **changes: object) -> None:
    """Every suite of one model."""
    folder.niah(
        name,
        lambda length, depth, i: 3 if length < 8192 else i % 3,
        lengths=(1024, 8192),
        depths=(0.0, 50.0),
        samples=4,
        **changes,
    )
    folder.standard(
        name, {"mmlu": ("acc",), "arc_easy": ("acc", "acc_norm")}, lambda task, i: float(i % 2), samples=4, **changes
    )
    folder.ruler(name, lambda task, length, i: i % 2 == 0, lengths=(1024, 8192), samples=4, **changes)
    folder.perplexity(name, smooth, lengths=(1024, 8192), samples=3, **changes)


class Balance(HTMLParser):
    """That tags close in order; what the page loads, and which sections its links name."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        known = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") for name in known)
        self.loads += [known["src"]] if "src" in known else []
        self.ids += [known["id"]] if "id" in known else []
        self.anchors += [known["href"][1:]] if known.get("href", "").startswith("#") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()


def parsed(page: str) -> Balance:
    balance = Balance()
    balance.feed(page)
    balance.close()
    assert not balance.open and balance.anchors == balance.ids
    assert all(load.startswith("data:image/png;base64,") for load in balance.loads)
    return balance


def read(out: Path) -> tuple[str, str]:
    """HTML and Markdown."""
    return (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")


def tables(markdown: str) -> dict[str, list[list[str]]]:
    """Caption -> rows, the head first, of the Markdown page."""
    found = re.findall(r"^\*\*(.+)\*\*\n\n((?:\|.*\n+)+)", markdown, re.M)
    return {
        caption: [_row(line) for line in body.splitlines() if line and "| --- |" not in line] for caption, body in found
    }


def _row(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def row(table: list[list[str]], *start: str) -> dict[str, str]:
    """The one row that begins so, by the names in the head."""
    (found,) = [line for line in table[1:] if tuple(cell.split("<br>")[0] for cell in line[: len(start)]) == start]
    return dict(zip(table[0], found, strict=True))


def value(cell: str) -> float:
    """The number of a cell without what stands below it."""
    return float(cell.split("<br>")[0].replace(",", ""))


def noise(*place: object) -> random.Random:
    return random.Random(repr(place))


def smooth(length: int, begin: int, index: int) -> float:
    """Nats that fall with position, and rise again beyond 4,096."""
    level = 3.1 - 0.12 * math.log2(begin + 8) + 0.05 * noise(length, begin, index).random()
    return level + (0.4 if begin >= 4096 else 0)
