"""What was seen of a training, and a fault of it, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dagscale.planning.plans import Plan
from dagscale.training.optimizers import Optimizer
from dagscale.watching.measure import StepFacts
from dagscale.watching.planned import Planned
from dagscale.watching.rates import Rates

What = Literal["missing", "frozen", "init", "rate", "decay", "eps", "gradient", "clipping", "step", "signal"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and why in words, with what to do about it.

    Attributes:
        what: the kind of fault.
        where: the layers, or ``""`` for the training as a whole.
        cause: in one sentence.
    """

    what: What
    where: str
    cause: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}" if self.where else self.cause


@dataclass(frozen=True)
class Seen:
    """All that was seen of a training.

    Attributes:
        parameters: what is trained, by name.
        frozen: names of the plan's parameters that were frozen when the watch began.
        steps: the observed steps' facts, by parameter name.
        groups: parameter name → its group of the optimiser, as it is now.
        drawn: faults of the initial weights.
        touched: names that had a gradient other than zero in some observed step.
        observed: number of observed steps.
        known: what is known of the plan's optimiser.
        signals: ``|ΔW x| / |W x|`` by name, as the same layers of the base moved; empty where its report is not given.
    """

    plan: Plan
    parameters: Mapping[str, Planned]
    frozen: tuple[str, ...]
    rates: Rates
    steps: Sequence[Mapping[str, StepFacts]]
    groups: Mapping[str, Mapping[str, Any]]
    drawn: tuple[Fault, ...]
    touched: frozenset[str]
    observed: int
    known: Optimizer | None
    signals: Mapping[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> dict[str, str]:
        """Parameter name → its kind."""
        return {name: own.kind for name, own in self.parameters.items()}


Found = Iterator["Fault | str"]
"""Faults, and notes on what is none."""
