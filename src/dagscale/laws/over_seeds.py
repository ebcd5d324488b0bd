"""A measured quantity over seeds and examples, as many of each as its precision needs."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from statistics import fmean, stdev

from dagscale.laws.estimate import Estimate
from dagscale.training.probe import Cost

PRECISION = 0.1
"""Standard error of the logarithm at which no further seed is measured: a seventh of an octave, half of what laws are
good to at their best."""

SEEDS = (2, 4)
"""Fewest and most seeds."""

SETTLED = 0.1
"""Change of the logarithm by twice the examples at which one seed has seen enough."""

BATCHES = 16
"""Most times ``BATCH`` examples for one seed."""


def over_seeds(measure: Callable[[int, Cost], float], seed: int, precision: float = PRECISION) -> Estimate:
    """``measure(seed, cost)``, a positive number, for ``seed``, ``seed + 1``, … until precise enough.

    Args:
        precision: standard error of the mean logarithm at which measuring stops.

    Returns:
        The mean of the logarithms.
    """
    cost = Cost()
    logs: list[float] = []
    while len(logs) < SEEDS[1]:
        logs.append(log(measure(seed + len(logs), cost)))
        if len(logs) >= SEEDS[0] and _error(logs) < precision:
            break
    return Estimate(fmean(logs), _error(logs), len(logs), cost.forwards)


def until_settled(measure: Callable[[int], float], most: int) -> float:
    """``measure(count)``, a positive number, for 1, 2, 4, … until twice as many change it little.

    Args:
        most: how many there are; no more than ``BATCHES`` are taken.
    """
    count, value = 1, measure(1)
    while 2 * count <= min(most, BATCHES):
        count, before, value = 2 * count, value, measure(2 * count)
        if abs(log(value / before)) < SETTLED:
            break
    return value


def _error(logs: list[float]) -> float:
    return stdev(logs) / sqrt(len(logs))
