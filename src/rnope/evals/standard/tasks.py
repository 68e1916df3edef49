"""The harness's tasks, made ready: by download or from local files, with how many examples, and which metrics are kept."""

import contextlib
import copy
import difflib
import importlib
import importlib.util
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnope.errors import ConfigError, UserError, unknown
from rnope.evals.standard.local import COPIES, MBPP_EXAMPLES, Copy, Local, find, longbench
from rnope.evals.standard.sandbox import run_tests
from rnope.evals.standard.scrolls import ALTERED, FOLDERS, copy_of, document_score, scrolls_task

INSTALL = 'Install it: pip install "rnope[eval]".'
PAPER = (
    "mmlu", "hellaswag", "commonsense_qa", "arc_easy", "arc_challenge", "agieval_sat_en", "agieval_sat_math", "gsm8k",
    "winogrande", "mbpp",
)  # fmt: skip
"""Those of the paper's tables 2 and 5, by the harness's names."""
_FILES = {
    "mmlu": "mmlu/default/mmlu_*.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "agieval_sat_en": "agieval/sat-en.yaml",
    "agieval_sat_math": "agieval/sat-math.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "winogrande": "winogrande/default.yaml",
    "mbpp": "mbpp/mbpp.yaml",
}
"""Where the harness keeps them; for others all its thousands of files must be read."""
RATIOS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
"""Metrics that are no means over documents, but follow from the sum of log-likelihoods and of weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What becomes one cell."""

    name: str
    tasks: tuple[Any, ...]
    """Of the harness, by name; several where a benchmark has subjects."""
    source: str
    """``download``, or the SHA-256 of local files."""
    altered: str
    """Why its figures cannot be compared with others'; nothing where they can."""

    @property
    def shots(self) -> int:
        """Examples before each question."""
        return max(task.config.num_fewshot or 0 for task in self.tasks)


def harness_folder() -> Path:
    """Where the harness keeps its tasks.

    Raises:
        UserError: it is not installed.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise UserError(f"lm-evaluation-harness is not installed. {INSTALL}")
    return Path(found.origin).parent / "tasks"


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """Benchmarks by the harness's names; ``paper``, ``longbench`` and ``scrolls`` are those of that group.

    Raises:
        UserError: the harness is not installed.
    """
    groups = {"paper": PAPER, "longbench": _longbench_names(), "scrolls": tuple(FOLDERS)}
    return tuple(dict.fromkeys(each for name in names for each in groups.get(name, (name,))))


def load(names: Sequence[str], *, data: Path | None, shots: int | None) -> list[Benchmark]:
    """The benchmarks of these names.

    Args:
        data: a folder with local files; without one they are downloaded.
        shots: examples before each question; each task's own number if None.

    Raises:
        ConfigError: no such benchmark, or one that cannot be read from local files or be scored.
        UserError: its data cannot be had.
    """
    harness_folder()
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if data is None:
        _go_offline_without_network()
    found = [_local(name, data, shots) if data is not None else _downloaded(name, shots) for name in names]
    for benchmark in found:
        for task in benchmark.tasks:
            _check(task, benchmark.name)
    return found


def kept_metrics(task: Any, values: Mapping[str, Any], filter_name: str) -> tuple[dict[str, float], dict[str, float]]:
    """What is kept of one document's metrics: those whose mean counts, and the parts of those that are ratios.

    A metric behind a filter is named as the harness names it, ``exact_match,strict-match``.
    """
    means, parts = dict[str, float](), dict[str, float]()
    for metric, value in values.items():
        name = metric if filter_name == "none" else f"{metric},{filter_name}"
        kind = _kind(task, metric)
        if kind == "mean":
            means[name] = float(value)
        elif kind == "document":
            means[name] = document_score(metric, *value)
        elif kind == "percent":
            means[name] = float(value) / 100
        elif kind == "ratio":
            log_likelihood, weight = value if isinstance(value, tuple) else (value, 1)
            parts |= {f"{metric} log-likelihood": float(log_likelihood), f"{metric} weight": float(weight)}
    return means, parts


def ratio(metric: str, log_likelihood: float, weight: float) -> float:
    """One of `RATIOS` from sums, or means, of its parts."""
    each = -log_likelihood / weight
    return each / math.log(2) if metric == "bits_per_byte" else math.exp(each)


def _kind(task: Any, metric: str) -> str | None:
    from lm_eval.api.metrics import mean

    aggregate = task.aggregation().get(metric, mean)
    if task.config.task in FOLDERS:
        return "document" if metric not in ("acc", "acc_norm", "em") else "percent" if metric == "em" else "mean"
    if aggregate is mean:
        return "mean"
    return "ratio" if metric in RATIOS else None


def _check(task: Any, name: str) -> None:
    if getattr(task, "UNSAFE_CODE", False) and name != "mbpp":
        rule = "runs code that the model writes, in the harness's own way"
        raise ConfigError("--tasks", name, rule, "Only mbpp is run behind walls here: leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise ConfigError("--tasks", name, "asks about more than text", "Leave it out.")
    metrics = list(task.aggregation())
    if not any(_kind(task, metric) for metric in metrics):
        rule = f"is scored over the whole corpus ({', '.join(metrics)}); only means over documents and perplexities are kept"
        raise ConfigError(
            "--tasks", name, rule, "Leave it out, or run it with the harness (rnope.evals.standard.harness)."
        )


def _local(name: str, data: Path, shots: int | None) -> Benchmark:
    from datasets import Dataset
    from datasets.table import InMemoryTable

    form = _copy_of(name)
    found = find(data, name, form)
    tasks = []
    for path in _yaml_files(name):
        splits = _of_subject(found, path) if name == "mmlu" else found.splits
        tables = {  # a name of its own spares it the making of one
            split: Dataset(InMemoryTable.from_pylist(rows), fingerprint=f"{found.sha256[:16]}-{split}")
            for split, rows in splits.items()
        }
        changes = {
            "dataset_path": None, "dataset_name": None, "dataset_kwargs": None,
            "custom_dataset": lambda tables=tables, **_: tables,
        }  # fmt: skip
        with _building(name):
            scrolls = name in FOLDERS
            tasks.append(
                scrolls_task(path, found.splits["validation"]) if scrolls else _task(path, found.config | changes)
            )
    set_shots(tasks, shots)
    showing = max(task.config.num_fewshot or 0 for task in tasks) > 0
    if showing and not form.examples:
        raise _no_examples(name, shots)
    altered = "; ".join(filter(None, [form.altered, form.altered_examples if showing else ""]))
    return Benchmark(name=name, tasks=_by_name(tasks), source=found.sha256, altered=altered)


def _downloaded(name: str, shots: int | None) -> Benchmark:
    with _building(name):
        paths = _yaml_files(name)
        if name in FOLDERS:
            tasks = [scrolls_task(paths[0], None)]
        elif paths:
            tasks = [_task(path, {}) for path in paths]
        else:
            from lm_eval.tasks import TaskManager

            manager = TaskManager()
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=5)  # of thousands
                raise unknown("--tasks", name, "task of the harness", [*near, "paper", "longbench", "scrolls"])
            tasks = list(manager.load([name])["tasks"].values())
    set_shots(tasks, shots)
    if name in FOLDERS and shots:
        raise _no_examples(name, shots)
    return Benchmark(name=name, tasks=_by_name(tasks), source="download", altered=ALTERED if name in FOLDERS else "")


def _no_examples(name: str, shots: int | None) -> ConfigError:
    return ConfigError("--shots", shots, f"{name}: there are no examples to show", "Give --shots 0.")


def set_shots(tasks: Sequence[Any], shots: int | None) -> None:
    """As the harness does: a task that says 0 of itself keeps that."""
    for task in tasks:
        own = task.config.num_fewshot
        task.set_config("num_fewshot", own or 0 if shots is None or own == 0 else shots)


def _task(path: Path, changes: Mapping[str, Any]) -> Any:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    random.seed(0)  # some tasks shuffle as they are made; the harness seeds with the same
    is_mbpp = path.name == "mbpp.yaml"
    # The functions of mbpp fetch a metric that runs code in this process: they are not even imported.
    config = copy.deepcopy(load_yaml(path, resolve_func=not is_mbpp)) | (_MBPP if is_mbpp else {}) | dict(changes)
    for name in ("tag", "group", "task_list"):
        config.pop(name, None)
    config["metadata"] = config.get("metadata") or {}
    task = config["class"](config=config) if "class" in config else ConfigurableTask(config=config)
    task.config.task = config["task"]
    return task


def pass_at_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Whether the program passes its tests, as the harness joins them."""
    return float(run_tests(f"{predictions[0]}\n{references[0]}") == "passed")


def _mbpp_examples(rows: Any) -> list[dict[str, Any]]:
    return [{**row, "is_fewshot": True} for row in rows if row["task_id"] in MBPP_EXAMPLES]


_MBPP = {
    "metric_list": [{"metric": pass_at_1, "aggregation": "mean", "higher_is_better": True}],
    "fewshot_config": {"sampler": "first_n", "split": "prompt", "process_docs": _mbpp_examples},
}
"""The harness's own three examples, from the data set where they stand; and the tests behind walls."""


def _copy_of(name: str) -> Copy:
    if name in COPIES:
        return COPIES[name]
    if name in FOLDERS:
        return copy_of(name)
    if name in _longbench_names():
        return longbench(name.removeprefix("longbench_"))
    remedy = f"Leave out --data, so that the harness downloads it. Local: {', '.join(COPIES)}, longbench, scrolls."
    raise ConfigError("--tasks", name, "has no form that is read from local files", remedy)


def _yaml_files(name: str) -> list[Path]:
    root = harness_folder()
    if name in _FILES:
        return sorted(root.glob(_FILES[name]))
    path = root / name.split("_")[0] / f"{name.removeprefix('longbench_')}.yaml"
    return [path] if name in (*_longbench_names(), *FOLDERS) else []


def _of_subject(found: Local, path: Path) -> dict[str, list[dict[str, Any]]]:
    subject = path.stem.removeprefix("mmlu_")
    splits = {name: [row for row in rows if row["subject"] == subject] for name, rows in found.splits.items()}
    if not all(splits.values()):
        raise UserError(f"mmlu: the local files hold nothing of the subject {subject}. Fetch all 57.")
    return splits


def _longbench_names() -> tuple[str, ...]:
    paths = sorted((harness_folder() / "longbench").glob("[!_]*.yaml"))
    return tuple(f"longbench_{path.stem}" for path in paths if not path.stem.endswith("_e"))


def _by_name(tasks: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(sorted(tasks, key=lambda task: task.config.task))


@contextlib.contextmanager
def _building(name: str) -> Iterator[None]:
    """Whatever the harness and the libraries below it raise, as one line."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        remedy = 'Install what it needs: pip install "lm_eval[longbench]".' if "longbench" in name else "Install it."
        raise UserError(f"{name}: needs a package that is not here ({error}). {remedy}") from None
    except Exception as error:
        raise UserError(
            f"{name}: its data cannot be had ({type(error).__name__}: {str(error)[:300]}). "
            "Connect to the network, or give local files (--data FOLDER)."
        ) from None


def _go_offline_without_network() -> None:
    """See whether the data's host answers; where not, only what was downloaded before is used, and nothing waits for it."""
    import datasets
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        importlib.import_module("huggingface_hub.utils").get_session().head(
            huggingface_hub.constants.ENDPOINT, timeout=10
        )
    except Exception:  # of a kind that depends on the version of the library
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
