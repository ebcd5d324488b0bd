"""What each method came to for the steps that it took: trainings of every target, in order, and the steps before them.

Steps are counted until there is a trained network: what the base's search took, what was measured on the target, and
every training of it. So a search on the target itself pays for each of its trainings, and a plan for its one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from dagscale.shown import finite

AFFECTS_RESULTS = False


@dataclass(frozen=True)
class Trial:
    """One training of a target.

    Attributes:
        lr: its rate, per optimiser step; None where the method has none.
        loss: final training loss; ``inf`` if it diverged.
        valid: loss on examples held out; ``inf`` likewise.
        accuracy: on those; None likewise.
        steps: optimiser steps that it took.
    """

    lr: float | None
    loss: float
    valid: float
    accuracy: float | None
    steps: int


@dataclass(frozen=True)
class Score:
    """What a method came to within some steps, over targets and seeds. Losses are relative: 0.01 is 1 % higher.

    Attributes:
        loss, loss_worst: mean and worst final training loss above the lowest of all grids of that target.
        cross_validated: the mean above what the grids come to on a seed at the rate that is best on the other seeds;
            None with one seed. The lowest of a grid is lucky, and this is not.
        valid, valid_worst: the same of the loss on examples held out, of the training that had the lowest training
            loss.
        accuracy: mean accuracy on examples held out; None where one training diverged.
    """

    loss: float
    loss_worst: float
    cross_validated: float | None
    valid: float
    valid_worst: float
    accuracy: float | None


@dataclass(frozen=True)
class Entry:
    """One method on all targets.

    Attributes:
        method: its name.
        base: optimiser steps on the base, once for all targets.
        measured: mean optimiser steps on a target before it was trained.
        trials: for each target, each seed's trainings in order.
    """

    method: str
    base: int
    measured: float
    trials: Mapping[str, tuple[tuple[Trial, ...], ...]]

    @property
    def count(self) -> int:
        """Trainings of one target."""
        return min(len(row) for rows in self.trials.values() for row in rows)

    def spent(self, targets: int = 1, count: int | None = None) -> float:
        """Mean steps for one target after so many of its trainings, all by default.

        Args:
            targets: how many share the base's search.
        """
        rows = [row[:count] for rows in self.trials.values() for row in rows]
        return self.base / targets + self.measured + fmean(sum(trial.steps for trial in row) for row in rows)

    def best(self, target: str, count: int | None = None) -> Iterator[Trial]:
        """For each seed, the training with the lowest training loss among the first so many."""
        for row in self.trials[target]:
            yield min(row[:count], key=lambda trial: trial.loss)


@dataclass(frozen=True)
class Contest:
    """Methods on the targets of a suite under a recipe that people use, against one another by steps.

    Attributes:
        suite, base, recipe: names.
        training: the recipe as plain data.
        data: what the networks were trained on.
        steps: optimiser steps of one training.
        entries: the methods; those whose name begins with ``grid`` are searches over the whole grid.
        plan: the method that rivals have as many steps as.
        notes: what a reader should know.
        searched: init → what the search on the base found under it: ``lr``, ``band`` and ``steps``.
    """

    suite: str
    base: str
    recipe: str
    training: Mapping[str, Any]
    data: str
    steps: int
    entries: tuple[Entry, ...]
    plan: str
    notes: tuple[str, ...] = ()
    searched: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The networks that methods were held against one another on."""
        return tuple(self.entries[0].trials)

    @property
    def seeds(self) -> int:
        """Trainings of each target at a rate."""
        return len(self.entries[0].trials[self.targets[0]])

    def entry(self, method: str) -> Entry:
        """The entry of a method."""
        return next(entry for entry in self.entries if entry.method == method)

    def lowest(self, target: str, seed: int, metric: str) -> float:
        """The lowest ``loss`` or ``valid`` of a seed in all grids."""
        grids = [entry for entry in self.entries if entry.method.startswith("grid")]
        lowest: float = min(getattr(trial, metric) for entry in grids for trial in entry.trials[target][seed])
        return lowest

    def chosen_by_others(self, target: str, seed: int) -> float | None:
        """The training loss of a seed at the rate of all grids whose mean over the other seeds is lowest."""
        rows = [entry.trials[target] for entry in self.entries if entry.method.startswith("grid")]
        found = []
        for grid in rows:
            losses = [{trial.lr: trial.loss for trial in row} for row in grid]
            others = [row for k, row in enumerate(losses) if k != seed]
            found += [
                (fmean(row.get(lr, math.inf) for row in others), loss) for lr, loss in losses[seed].items() if others
            ]
        return min(found)[1] if found else None

    def score(self, entry: Entry, count: int | None = None) -> Score:
        """What the first so many trainings of each target came to, all by default."""
        chosen = [(a, k, trial) for a in self.targets for k, trial in enumerate(entry.best(a, count))]
        found = {
            metric: [getattr(trial, metric) / self.lowest(a, k, metric) - 1 for a, k, trial in chosen]
            for metric in ("loss", "valid")
        }
        apart = [(trial.loss, self.chosen_by_others(a, k)) for a, k, trial in chosen]
        above = [loss / other - 1 for loss, other in apart if other is not None]
        rates = [trial.accuracy for _, _, trial in chosen]
        known = [rate for rate in rates if rate is not None]
        return Score(
            fmean(found["loss"]), max(found["loss"]), fmean(above) if above else None,
            fmean(found["valid"]), max(found["valid"]),
            fmean(known) if len(known) == len(rates) else None,
        )  # fmt: skip

    def budgets(self) -> dict[str, int]:
        """Trainings of a target that the plan's steps are worth: its base's search shared by all targets, or alone;
        and those of dagscale by itself, shared."""
        plan = self.entry(self.plan)
        own = [entry for entry in self.entries if entry.method.partition(" / ")[0] == "dagscale"]
        return {
            "shared": affordable(plan.spent(len(self.targets)), self.steps),
            **{entry.method: affordable(entry.spent(len(self.targets)), self.steps) for entry in own},
            "alone": affordable(plan.spent(), self.steps),
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; what diverged has no loss."""
        own = asdict(self)
        for entry in own["entries"]:
            entry["trials"] = {
                a: [[finite([*trial.values()]) for trial in row] for row in rows] for a, rows in entry["trials"].items()
            }
        return own

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Contest:
        """What `to_dict` wrote."""
        entries = tuple(
            Entry(
                one["method"], one["base"], one["measured"],
                {a: tuple(tuple(map(_trial, row)) for row in rows) for a, rows in one["trials"].items()},
            )
            for one in document["entries"]
        )  # fmt: skip
        return cls(**{**document, "entries": entries, "notes": tuple(document["notes"])})


def affordable(steps: float, length: int) -> int:
    """Whole trainings of ``length`` steps that so many steps are worth, at least one."""
    return max(1, math.floor(steps / length))


def _trial(values: Sequence[Any]) -> Trial:
    lr, loss, valid, accuracy, steps = values
    return Trial(lr, math.inf if loss is None else loss, math.inf if valid is None else valid, accuracy, steps)
