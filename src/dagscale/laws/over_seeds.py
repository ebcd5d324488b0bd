"""A measured quantity over seeds and examples, as many of each as its precision needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from math import exp, log, sqrt
from statistics import fmean, stdev
from weakref import WeakKeyDictionary

from dagscale.network import Subject
from dagscale.training.probe import Cost

PRECISION = 0.05
"""Standard error of the logarithm at which no further seed is measured."""

SEEDS = (2, 4)
"""Fewest and most seeds."""

SETTLED = 0.1
"""Change of the logarithm by twice the examples at which one seed has seen enough."""

BATCHES = 16
"""Most batches of examples for one seed."""


@dataclass(frozen=True)
class Measured:
    """A geometric mean over seeds, with its standard error in the logarithm and what it cost in forward passes."""

    value: float
    error: float
    seeds: int
    forwards: float


def half_width(measured: Sequence[Measured]) -> float:
    """Half of the 95 % interval of the logarithm of their product or ratio: Student's t [Welch 1947].

    Chance over seeds alone: not what the law itself gets wrong.
    """
    from scipy.stats import t

    variances = [(m.error**2, m.seeds - 1) for m in measured]
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / n for variance, n in variances)
    return float(t.ppf(0.975, freedom)) * sqrt(total)


def over_seeds(measure: Callable[[int, Cost], float], seed: int) -> Measured:
    """``measure(seed, cost)``, a positive number, for ``seed``, ``seed + 1``, … until precise enough."""
    cost = Cost()
    logs: list[float] = []
    while len(logs) < SEEDS[1]:
        logs.append(log(measure(seed + len(logs), cost)))
        if len(logs) >= SEEDS[0] and _error(logs) < PRECISION:
            break
    return Measured(exp(fmean(logs)), _error(logs), len(logs), cost.forwards)


def settled(measure: Callable[[int], float], most: int) -> float:
    """``measure(batches)``, a positive number, for 1, 2, 4, … batches until twice as many change it little.

    Args:
        most: batches there are; no more than ``BATCHES`` are taken.
    """
    count, value = 1, measure(1)
    while 2 * count <= min(most, BATCHES):
        count, before, value = 2 * count, value, measure(2 * count)
        if abs(log(value / before)) < SETTLED:
            break
    return value


def once(measure: Callable[[Subject], Measured]) -> Callable[[Subject], Measured]:
    """``measure``, run once a subject and remembered as long as the subject lives: a base serves many targets."""
    known: WeakKeyDictionary[Subject, Measured] = WeakKeyDictionary()

    @wraps(measure)
    def remembered(subject: Subject) -> Measured:
        if subject not in known:
            known[subject] = measure(subject)
        return known[subject]

    return remembered


def _error(logs: list[float]) -> float:
    return stdev(logs) / sqrt(len(logs))
