"""SCROLLS: the harness's tasks and prompts, without what no longer loads around them.

The harness's module imports a part of transformers that version 5 dropped, and its metric is a script fetched from the
hub. Here the one function of the former that it uses is put in place while it loads, and F1 and ROUGE are computed by
their definitions. Only validation is read, the split that the harness judges by; training texts are gigabytes.
"""

import contextlib
import re
import string
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rnope.evals.standard.local import Copy

FOLDERS = {
    "scrolls_contractnli": "contract_nli",
    "scrolls_govreport": "gov_report",
    "scrolls_narrativeqa": "narrative_qa",
    "scrolls_qasper": "qasper",
    "scrolls_qmsum": "qmsum",
    "scrolls_quality": "quality",
    "scrolls_summscreenfd": "summ_screen_fd",
}
"""The harness's name -> the folder in SCROLLS' own zip file."""
ALTERED = "F1 and ROUGE are computed here by their definitions, not by SCROLLS' own script"


def copy_of(name: str) -> Copy:
    """The file of a task, as its zip file holds it."""
    return Copy(
        files=(f"{FOLDERS[name]}/validation",),
        splits=lambda rows: {
            "validation": [{key: row[key] for key in ("id", "pid", "input", "output")} for row in rows]
        },
        examples=False,
        altered=ALTERED,
    )


def scrolls_task(path: Path, rows: Sequence[dict[str, Any]] | None) -> Any:
    """A task of the harness, from these rows or by download."""
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    with _squad_metrics():
        config = load_yaml(path, resolve_func=True)
    base = config["class"]
    drop_duplicates = base.download.__globals__["_drop_duplicates_in_input"]  # its module is not among sys.modules

    class Task(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            ConfigurableTask.__init__(self, config={"task": config["task"], "metadata": {"version": base.VERSION}})

        def download(self, *args: Any, **kwargs: Any) -> None:
            if rows is not None:
                found = datasets.Dataset.from_list(list(rows))
            else:
                zipped = self.ZIP_URL.format(path=self.DATASET_PATH, name=self.DATASET_NAME)
                files = {"validation": f"zip://{self.DATASET_NAME}/validation.jsonl::{zipped}"}
                found = datasets.load_dataset("json", data_files=files)["validation"]
            self.dataset = {"validation": drop_duplicates(found)}

        def has_training_docs(self) -> bool:
            return False

        def fewshot_docs(self) -> None:
            """None: a question must not be shown as its own example."""

    return Task()


def document_score(metric: str, prediction: str, references: Sequence[str]) -> float:
    """F1 of words, or ROUGE, with the best of the references, 0 to 1."""
    if metric == "f1":
        return max(_f1(prediction, reference) for reference in references)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([metric], use_stemmer=False)
    return max(float(scorer.score(reference, prediction)[metric].fmeasure) for reference in references)


def normalize_answer(text: str) -> str:
    """As SQuAD compares answers: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _f1(prediction: str, reference: str) -> float:
    given, wanted = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


@contextlib.contextmanager
def _squad_metrics() -> Iterator[None]:
    """`transformers.data.metrics.squad_metrics` for as long as the harness's module is loaded."""
    package = "transformers.data.metrics"
    squad: Any = ModuleType(f"{package}.squad_metrics")
    squad.normalize_answer = normalize_answer
    metrics: Any = ModuleType(package)
    metrics.squad_metrics = squad
    before = {name: sys.modules.get(name) for name in (package, squad.__name__)}
    sys.modules |= {package: metrics, squad.__name__: squad}
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
