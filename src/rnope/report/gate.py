"""The gate: which models may be compared at other lengths than the one they were trained at.

A model that did not learn the task at its trained length says nothing about extrapolation, so nothing about its
behaviour at other lengths is printed: not beside another arm, not as a difference, not as a verdict. It is still
counted and shown among those that did not learn. Every section of the page asks here; none decides for itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from rnope.intervals import wilson
from rnope.report import words
from rnope.results import Cell, LossRow, MassRow, NeedleRow, PairedDifference, Results, SpreadRow, TaskRow, Verdict

THRESHOLD = 9.5
"""What the lower 95 % Wilson bound must reach, of 10, at the trained length (SPEC R)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How one arm at one seed did at its trained length."""

    arm: str
    seed: int
    competent: bool
    row: NeedleRow | None
    """Its ``standard`` needles at 1×; None where there are none."""
    reason: str
    """One clause that says why, with the numbers."""

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"


def standing(results: Results, arm: str, seed: int) -> Standing:
    """Judge one arm at one seed."""
    trained = {model.trained_tokens for model in results.models if (model.arm, model.seed) == (arm, seed)}
    rows = [
        row
        for row in results.needles
        if (row.arm, row.seed, row.row) == (arm, seed, "standard") and row.context_tokens in trained
    ]
    if not rows:
        reason = "no model was trained" if not trained else "no needles were asked at its trained length"
        return Standing(arm=arm, seed=seed, competent=False, row=None, reason=reason)
    row = min(rows, key=lambda row: wilson(row.hits, row.n))
    low, high = (10 * bound for bound in wilson(row.hits, row.n))
    competent = low >= THRESHOLD
    reason = (
        f"{words.score(10 * row.hits / row.n if row.n else 0.0)} of 10 at {words.tokens(row.context_tokens)} tokens "
        f"(95 % interval {words.interval(low, high)}, n {row.n}, guess level {words.score(row.guess)}); "
        f"the lower bound {'reaches' if competent else 'does not reach'} {THRESHOLD}"
    )
    return Standing(arm=arm, seed=seed, competent=competent, row=row, reason=reason)


def standings(results: Results) -> tuple[Standing, ...]:
    """Every arm and seed that the results know of, in the order of `Results.arms`; none is dropped."""
    runs = {(model.arm, model.seed) for model in results.models}
    runs |= {(row.arm, row.seed) for row in results.needles} | {(point.arm, point.seed) for point in results.learning}
    return tuple(
        standing(results, arm, seed) for arm in arms(results) for seed in sorted(s for a, s in runs if a == arm)
    )


def arms(results: Results) -> tuple[str, ...]:
    """Arms in the order of `Results.arms`, then any that only a model or a row names."""
    named = [*results.arms, *(m.arm for m in results.models), *(r.arm for r in results.needles)]
    return tuple(dict.fromkeys([*named, *(p.arm for p in results.learning)]))


class Gate:
    """The standings of one results file, and what may be printed under them.

    Invariant: nothing that these methods hand out holds a number of a model that did not learn the task, but for
    its needles at 1×, its controls and its loss on text up to there.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.standings = standings(results)
        self.trained = {(m.arm, m.seed): m.trained_tokens for m in results.models}
        """(arm, seed) -> 1× of that model, in tokens."""
        self._open = {(s.arm, s.seed) for s in self.standings if s.competent}

    def open(self, arm: str, seed: int) -> bool:
        return (arm, seed) in self._open

    def both(self, a: str, b: str, seed: int) -> bool:
        """Whether `a` may be set against `b` at `seed`."""
        return self.open(a, seed) and self.open(b, seed)

    def seeds(self, arm: str) -> tuple[int, ...]:
        """Seeds at which `arm` learned the task."""
        return tuple(s.seed for s in self.standings if s.arm == arm and s.competent)

    def shared(self, *arms: str) -> tuple[int, ...]:
        """Seeds at which every one of `arms` learned the task."""
        return tuple(sorted(set.intersection(*(set(self.seeds(arm)) for arm in arms))))

    def failed(self) -> tuple[Standing, ...]:
        return tuple(s for s in self.standings if not s.competent)

    def learned(self, arm: str) -> str:
        """``2 of 2 seeds learned``"""
        total = sum(s.arm == arm for s in self.standings)
        return f"{len(self.seeds(arm))} of {total} seeds learned" if total else "no seed was run"

    def needles(self, row: str = "standard") -> tuple[NeedleRow, ...]:
        """Rows at every length, of competent models only."""
        return tuple(r for r in self.results.needles if r.row == row and self.open(r.arm, r.seed))

    def side_rows(self) -> tuple[NeedleRow, ...]:
        """Controls and harder rows: at every length of competent models, up to 1× of the others."""
        return tuple(
            r
            for r in self.results.needles
            if r.row != "standard"
            and (self.open(r.arm, r.seed) or r.context_tokens <= self.trained.get((r.arm, r.seed), 0))
        )

    def attention(self) -> tuple[MassRow, ...]:
        return tuple(r for r in self.results.attention if self.open(r.arm, r.seed))

    def spreads(self) -> tuple[SpreadRow, ...]:
        return tuple(r for r in self.results.spreads if self.open(r.arm, r.seed))

    def tasks(self) -> tuple[TaskRow, ...]:
        return tuple(r for r in self.results.tasks if self.open(r.arm, r.seed))

    def losses(self) -> tuple[LossRow, ...]:
        """Rows in full of competent models; of the others only positions up to 1×."""
        found = []
        for row in self.results.losses:
            most = row.context_tokens if self.open(row.arm, row.seed) else self.trained.get((row.arm, row.seed), 0)
            bins = tuple(one for one in row.bins if one.end <= most)
            if bins:
                found.append(replace(row, bins=bins))
        return tuple(found)

    def differences(self) -> tuple[PairedDifference, ...]:
        return tuple(d for d in self.results.differences if self.both(d.a, d.b, d.seed))

    def withheld(self) -> tuple[str, ...]:
        """One sentence for each pair and seed whose differences are not printed, naming the side that did not learn."""
        pairs = {(d.a, d.b, d.seed): None for d in self.results.differences if not self.both(d.a, d.b, d.seed)}
        return tuple(
            f"{a} against {b}, seed {seed}: {words.listed([side for side in (a, b) if not self.open(side, seed)])} "
            "did not learn the task, so no difference is printed."
            for a, b, seed in pairs
        )

    def verdicts(self) -> tuple[Verdict, ...]:
        """Verdicts as given, but ``not testable`` where no seed has every arm of `Verdict.arms` competent.

        Where only some seeds have, the reason says which.
        """
        return tuple(self._verdict(verdict) for verdict in self.results.verdicts)

    def _verdict(self, verdict: Verdict) -> Verdict:
        if not verdict.arms:
            return verdict
        open_seeds = set(self.shared(*verdict.arms))
        closed_seeds = {s.seed for s in self.standings if s.arm in verdict.arms} - open_seeds
        if open_seeds and not closed_seeds:
            return verdict
        if open_seeds:
            text = ", ".join(map(str, sorted(closed_seeds)))
            return replace(verdict, because=f"{verdict.because} (at seed {text} a side did not learn the task)")
        closed = [arm for arm in verdict.arms if not self.seeds(arm)]
        because = (
            f"{words.listed(closed)} did not learn the task at the trained length at any seed"
            if closed
            else "at no seed did every side learn the task at the trained length"
        )
        return replace(verdict, verdict="not testable", because=because)


def pooled(rows: Iterable[NeedleRow]) -> dict[tuple[int, float], Cell]:
    """(context tokens, depth) -> needles of all `rows` together."""
    cells: dict[tuple[int, float], Cell] = {}
    for row in rows:
        for cell in row.cells:
            key = row.context_tokens, round(cell.depth, 4)
            old = cells.get(key, Cell(depth=cell.depth, n=0, hits=0))
            cells[key] = Cell(depth=cell.depth, n=old.n + cell.n, hits=old.hits + cell.hits)
    return cells
