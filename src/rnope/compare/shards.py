"""Shards of a comparison, an arm at a seed each: which of them are asked for, what they need, and finished work of others.

Work is found by its id, which says all that its result depends on: finished files may come from anywhere.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from rnope.compare.jobs import Job, job_file, read_result
from rnope.compare.plan import ArmJobs, TrialJobs, sweep_key
from rnope.config import Recipe
from rnope.errors import UserError, check, unknown
from rnope.files import beside, write_text

Shard = tuple[str, int]
"""Arm and seed."""
_ANOTHER = "Name the --out of a run of the same recipe on the same corpus."


def parse(recipe: Recipe, given: Sequence[str]) -> frozenset[Shard]:
    """``ARM:SEED``, or ``ARM`` for all its seeds, as shards; all of the recipe's where nothing is given.

    Raises:
        ConfigError: no such arm, or a seed that it does not have.
    """
    arms = {arm.name: arm for arm in recipe.arms}
    found: set[Shard] = set()
    for text in given or arms:
        name, colon, seed = text.partition(":")
        if name not in arms:
            raise unknown("--shard", name, "arm", arms)
        seeds = arms[name].seeds
        known = not colon or seed in map(str, seeds)
        check("--shard", text, known, f"{name} has the seeds {', '.join(map(str, seeds))}", "Use one of them.")
        found |= {(name, value) for value in seeds if not colon or str(value) == seed}
    return frozenset(found)


def trials_of(recipe: Recipe, shards: Iterable[Shard], trials: Sequence[TrialJobs]) -> list[TrialJobs]:
    """Those of the sweep's trials that choose for one of `shards`."""
    names = {name for name, _ in shards}
    subjects = {sweep_key(recipe, arm) for arm in recipe.arms if arm.name in names}
    return [trial for trial in trials if trial.subject in subjects]


def jobs_of(arm: ArmJobs) -> list[Job]:
    """Everything that one shard needs, the sweep aside."""
    return [*arm.training, *arm.questions]


def check_other(other: Path, out: Path) -> None:
    """Refuse to take over what is no other comparison.

    Raises:
        ConfigError: there is none in the folder `other`, or it is `out`.
    """
    check("--merge", str(other), (other / "jobs").is_dir(), "holds no comparison", _ANOTHER)
    check("--merge", str(other), other.resolve() != out.resolve(), "is the folder that is merged into", "Name another.")


def take_over(other: Path, out: Path, digest: str) -> int:
    """Copy finished jobs of the folder `other` that `out` has not, trainings with the folders of their stages.

    Nothing is overwritten, and what is damaged is left where it is: it is done again. Times are not taken over; they are
    this machine's.

    Args:
        digest: of the corpus that both must have been made of.

    Returns:
        how many were copied.

    Raises:
        ConfigError: there is no such comparison, or it is one of another corpus.
    """
    check_other(other, out)
    alike = (other / "data" / digest / "data.json").is_file()
    check("--merge", str(other), alike, "was made of another corpus or vocabulary", _ANOTHER)
    taken = set()
    try:
        for path in sorted((other / "jobs").glob("*.json")):
            result = read_result(path)
            if result is None or "training" in result or read_result(job_file(out, path.stem)) is not None:
                continue
            if "run" in result and not _copied_stage(other / "stages" / path.stem, out / "stages" / path.stem):
                continue
            write_text(job_file(out, path.stem), json.dumps(result))
            taken.add(path.stem)
        _copy_log(other, out, taken)
    except OSError as error:
        raise UserError(
            f"--merge {other}: cannot be copied to {out} ({error.strerror}). Mend it and run again."
        ) from None
    return len(taken)


def _copied_stage(source: Path, target: Path) -> bool:
    """Whether `target` is now what a finished training left; one that was begun in `out` is gone on with instead."""
    whole = (source / "checkpoint.pt").is_file() and (source / "model" / "config.json").is_file()
    if not whole or target.exists():
        return False
    with beside(target) as place:
        shutil.copytree(source, place)
    return True


def _copy_log(other: Path, out: Path, taken: set[str]) -> None:
    """Lines of ``run.jsonl``, so that the seconds of all work are counted; what a kill tore is left out."""
    path = other / "run.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("job") in taken:
            lines.append(line + "\n")
    with (out / "run.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(lines)
