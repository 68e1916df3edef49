"""A tiny model, and made-up benchmarks in the shapes that the real ones go round in. For tests of what reads them."""

import csv
import gzip
import json
from pathlib import Path

import torch

from rnope.evals.models.ours import EngineModel
from rnope.evals.standard.suite import Standard
from rnope.evals.standard.tasks import harness_folder
from rnope.hf.folder import save
from rnope.testing import tiny_model
from rnope.tokenizer import Tokenizer

TEXT = "Question: What is in the hay? Answer: the red apple. def f(x): return x + 1\nassert f(1) == 2 #### 42\n"
TOKENIZER = Tokenizer.train([TEXT * 20], vocab_size=512)
ADD = "def add(a, b):\r\n    return a + b"


def model(folder: Path, context_tokens: int = 4096) -> EngineModel:
    """With weights that make it prefer one answer to another."""
    made = tiny_model("rnope-swa", 0, vocab_size=512)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    save(made, folder, TOKENIZER, context_tokens=context_tokens)
    return EngineModel(folder, name="tiny")


def suite(data: Path, *tasks: str, limit=None, shots=None, context_tokens=None, run_code=False, seed=42) -> Standard:
    return Standard(
        TOKENIZER, tasks=tasks, data=data, limit=limit, shots=shots, context_tokens=context_tokens, run_code=run_code,
        seed=seed,
    )  # fmt: skip


def subjects() -> list[str]:
    return [path.stem.removeprefix("mmlu_") for path in sorted((harness_folder() / "mmlu/default").glob("mmlu_*.yaml"))]


def _agieval(n: int, options=("(A)2", "(B)4", "(C)9", "(D)10")) -> dict:
    return {"passage": "A cat. " * (n % 2), "question": f"What is {n}?", "options": list(options), "label": "ABCD"[n % 4],
            "other": {"solution": ""}}  # fmt: skip


def rows(count: int = 5) -> dict[str, list[dict]]:
    """File -> rows."""
    arc = [
        {"query": f"Question: Which is {n}?", "choices": [f"one {n}", "two", "three", "four apples"], "gold": n % 4}
        for n in range(count)
    ]
    mmlu = [
        {"subject": subject, "question": f" Which {n} of {subject}? ", "choices": ["a", "b", "c", "d"], "answer": n % 4}
        for subject in subjects()
        for n in range(2)
    ]
    word = [{"label": letter, "text": f"place {letter}"} for letter in "ABCDE"]
    mbpp = [
        {"text": "Add two numbers.", "code": ADD, "task_id": n, "test_setup_code": "", "challenge_test_list": [],
         "test_list": [f"assert add({n}, {i}) == {n + i}" for i in range(3)]}
        for n in [*range(1, 14), 511]
    ]  # fmt: skip
    return {
        "arc_easy_test": arc,
        "arc_challenge_test": arc,
        "hellaswag_val": [
            {"query": f"Hay: A man {n} sits. he", "label": n % 4, "endings": [f"eats {n}", "sleeps", "runs", "is a cat"]}
            for n in range(count)
        ],
        "winogrande_xl_dev": [
            {"context_options": [f"Ada met Bob {n} so Ada", f"Ada met Bob {n} so Bob"], "continuation": "left.", "gold": n % 2}
            for n in range(count)
        ],
        "commonsenseqa_dev": [
            {"answerKey": "ABCDE"[n % 5], "id": f"{n}",
             "question": {"question_concept": "hay", "choices": word, "stem": f"Where is needle {n}? "}}
            for n in range(count)
        ],
        "gsm8k_test": [{"question": f"What is {n} and {n}?", "answer": f"It is so.\n#### {2 * n}"} for n in range(count)],
        "gsm8k_train_first64": [{"question": f"Is it {n}?", "answer": f"It is.\n#### {n}"} for n in range(12)],
        "mbpp_prompt_test_validation": mbpp,
        "mmlu_test": mmlu,
        "mmlu_dev": [{**row, "question": f"Shown: {row['question']}"} for row in mmlu for _ in range(3)],
        "agieval_v1_sat-en": [_agieval(n) for n in range(count)],
        "agieval_v1_sat-math": [_agieval(n) for n in range(count)],
    }  # fmt: skip


def write_data(folder: Path, count: int = 5) -> Path:
    """All ten, one of them packed, some in a folder below."""
    for number, (name, lines) in enumerate(rows(count).items()):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        place = folder / "below" if number % 2 else folder
        place.mkdir(parents=True, exist_ok=True)
        if number % 3:
            (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
        else:
            (place / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    with (folder / "agieval_few_shot_prompts.csv").open("w", encoding="utf-8-sig", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["", "sat-math", "sat-en"])
        for n in range(2):
            lines.writerow([f"sample {n + 1}", repr(_agieval(n + 50)), repr(_agieval(n + 60))])
            lines.writerow([f"explanation {n + 1}", "since so", "since so"])
        lines.writerow(["sample 3", repr(_agieval(70)), ""])
    return folder
