"""Benchmarks from files that are here already, in the shapes that they go round in: into what the harness reads.

Where a copy still has the fields of the original, the harness's own prompts apply unchanged. Where somebody has reshaped
it, the prompt is restored as far as that goes, and the copy is marked: its figures cannot be compared with others'.
"""

import ast
import csv
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rnope.errors import ConfigError, UserError

Row = dict[str, Any]
Splits = dict[str, list[Row]]
_SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
_LETTERS = "ABCDE"
MBPP_EXAMPLES = (2, 3, 4)
"""Task ids of the programs that the harness shows before each question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Copy:
    """How a benchmark's files become splits that the harness's task can read."""

    files: tuple[str, ...]
    """Names without suffix."""
    splits: Callable[..., Splits]
    """Of the rows of each file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the harness's own configuration of the task."""
    altered: str = ""
    """Why figures cannot be compared with others'; nothing where they can."""
    altered_examples: str = ""
    """The same, for figures with examples before the question."""
    examples: bool = True
    """Whether there are examples to show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """A benchmark that was found."""

    splits: Splits
    config: dict[str, Any]
    copy: Copy
    sha256: str
    """Of its files."""


def find(folder: Path, benchmark: str, copy: Copy) -> Local:
    """The files of a benchmark, anywhere below `folder`.

    Raises:
        ConfigError: one is missing, or there are two of a name.
        UserError: one is not what its name says.
    """
    paths = [_path(folder, benchmark, name) for name in copy.files]
    digest = hashlib.sha256()
    rows = []
    for path in paths:
        try:
            digest.update(path.read_bytes())
            rows.append(list(_rows(path)))
        except (OSError, EOFError, ValueError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read ({error}). Fetch it again.") from None
    try:
        splits = copy.splits(*rows)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, SyntaxError) as error:
        rule = f"is not in the shape that {benchmark} is read from here ({type(error).__name__}: {error})"
        raise UserError(f"{paths[0]}: {rule}. See docs/evaluation.md.") from None
    named = {f"{split}_split": split if split in splits else None for split in ("training", "validation", "test")}
    return Local(splits=splits, config={**named, **copy.config}, copy=copy, sha256=digest.hexdigest())


def _path(folder: Path, benchmark: str, name: str) -> Path:
    if not folder.is_dir():
        raise ConfigError("--data", str(folder), "there is no such folder", "Give the folder of the benchmarks' files.")
    found = sorted(path for suffix in _SUFFIXES for path in folder.rglob(f"{name}{suffix}") if path.is_file())
    if len(found) == 1:
        return found[0]
    rule = f"holds {len(found) or 'no'} files {name}.jsonl (or .csv, or .gz), for {benchmark}"
    raise ConfigError("--data", str(folder), rule, "Give a folder with one, or leave the benchmark out of --tasks.")


def _rows(path: Path) -> Iterator[Row]:
    def opened() -> IO[str]:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")

    with opened() as file:
        if ".csv" in path.suffixes:
            yield from csv.DictReader(file)
        else:
            for line in file.read().split("\n"):  # and at nothing else: texts hold other line breaks
                if line.strip():
                    yield json.loads(line)


def _arc(rows: Sequence[Row]) -> Splits:
    return {
        "test": [
            {
                "question": row["query"].removeprefix("Question: "),
                "choices": {"text": row["choices"], "label": list(_LETTERS[: len(row["choices"])])},
                "answerKey": _LETTERS[row["gold"]],
            }
            for row in rows
        ]
    }


def _hellaswag(rows: Sequence[Row]) -> Splits:
    return {
        "validation": [{"query": row["query"], "choices": row["endings"], "label": int(row["label"])} for row in rows]
    }


def _winogrande(rows: Sequence[Row]) -> Splits:
    kept = ("context_options", "continuation", "gold")
    return {"validation": [{name: row[name] for name in kept} for row in rows]}


def _commonsense_qa(rows: Sequence[Row]) -> Splits:
    return {
        "validation": [
            {
                "question": row["question"]["stem"],
                "choices": {name: [each[name] for each in row["question"]["choices"]] for name in ("label", "text")},
                "answerKey": row["answerKey"],
            }
            for row in rows
        ]
    }


def _mmlu(test: Sequence[Row], dev: Sequence[Row]) -> Splits:
    kept = ("subject", "question", "choices", "answer")
    return {name: [{key: row[key] for key in kept} for row in rows] for name, rows in (("test", test), ("dev", dev))}


def _gsm8k(test: Sequence[Row], train: Sequence[Row]) -> Splits:
    kept = ("question", "answer")
    return {
        name: [{key: row[key] for key in kept} for row in rows] for name, rows in (("test", test), ("train", train))
    }


def _mbpp(rows: Sequence[Row]) -> Splits:
    kept = ("task_id", "text", "code", "test_list")
    tasks = [{name: row[name] for name in kept} for row in rows]
    return {
        "test": [task for task in tasks if 11 <= task["task_id"] <= 510],
        "prompt": [task for task in tasks if task["task_id"] <= 10],
    }


def _agieval(column: str) -> Callable[..., Splits]:
    def asked(row: Row) -> Row:
        # AGIEval's own rule of a question without examples.
        options = row["options"]
        last = _LETTERS[len(options) - 1]
        query = f"{row['passage'] or ''}Q: {row['question']} Answer Choices: {' '.join(options)}"
        query += f"\nA: Among A through {last}, the answer is"
        return {"query": query, "choices": options, "gold": [_LETTERS.index(row["label"])]}

    def splits(rows: Sequence[Row], shown: Sequence[Row]) -> Splits:
        # Its few-shot file: a column for each task; questions are Python literals, between them lines of explanation.
        texts = [row[column] for row in shown if row[""].startswith("sample") and row[column].strip()]
        return {"test": [asked(row) for row in rows], "shown": [asked(ast.literal_eval(text)) for text in texts]}

    return splits


def longbench(name: str) -> Copy:
    """LongBench's own file of a task: its `input` is what the harness's copy calls the question."""

    def splits(rows: Sequence[Row]) -> Splits:
        return {
            "test": [
                {
                    "context": row["context"],
                    "question": row["question"] if "question" in row else row["input"],
                    "answers": row["answers"],
                    "all_classes": row.get("all_classes") or [],
                }
                for row in rows
            ]
        }

    why = "LongBench's own files; the harness reads another copy, not compared with them"
    return Copy(files=(name,), splits=splits, examples=False, altered=why)


def _agieval_copy(task: str) -> Copy:
    return Copy(
        files=(f"agieval_v1_{task}", "agieval_few_shot_prompts"),
        splits=_agieval(task),
        # The harness cannot show examples of this benchmark: its answers are lists of numbers.
        config={"fewshot_config": {"sampler": "first_n", "split": "shown", "doc_to_target": "{{choices[gold[0]]}}"}},
        altered="AGIEval v1.0, its prompts made here by AGIEval's rule; not compared with the harness's copy",
    )


_ARC_WHY = "reshaped by others: every question has four choices, some were altered, ids are gone"
COPIES: dict[str, Copy] = {
    "mmlu": Copy(files=("mmlu_test", "mmlu_dev"), splits=_mmlu),
    "hellaswag": Copy(
        files=("hellaswag_val",),
        splits=_hellaswag,
        config={"process_docs": None},
        altered="cleaned by others: some contexts lack the capital that the harness gives their last part",
        examples=False,
    ),
    "commonsense_qa": Copy(files=("commonsenseqa_dev",), splits=_commonsense_qa, examples=False),
    "arc_easy": Copy(files=("arc_easy_test",), splits=_arc, examples=False, altered=_ARC_WHY),
    "arc_challenge": Copy(files=("arc_challenge_test",), splits=_arc, examples=False, altered=_ARC_WHY),
    "agieval_sat_en": _agieval_copy("sat-en"),
    "agieval_sat_math": _agieval_copy("sat-math"),
    "gsm8k": Copy(
        files=("gsm8k_test", "gsm8k_train_first64"),
        splits=_gsm8k,
        altered_examples="examples come from the first 64 training questions only",
    ),
    "winogrande": Copy(
        files=("winogrande_xl_dev",),
        splits=_winogrande,
        config={"doc_to_text": "gold", "doc_to_choice": "context_options", "doc_to_target": "continuation"},
        altered="reshaped by others into contexts and a continuation; not compared with the original",
        examples=False,
    ),
    "mbpp": Copy(files=("mbpp_prompt_test_validation",), splits=_mbpp),
}
"""The harness's name of a benchmark -> its files."""
