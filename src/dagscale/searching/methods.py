"""Search methods: the registry of them, and the training runs that a method may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dagscale.planning.base import Point
from dagscale.registry import Registry


@dataclass(frozen=True)
class Trials:
    """Training runs that a method may ask for.

    Args:
        run: final training loss of a whole run, of (rate, number of the seed, from 0); ``inf`` if it diverged.
        glance: the loss after the first part of such a run with the first seed, of (rate).
        expect: says how many more runs will be asked for.
        seeds: runs that settle a rate.
        tolerance: relative width of the band in the loss.
        start: the loss before training, ``inf`` where nobody knows; asked for after the first run.
    """

    run: Callable[[float, int], float]
    glance: Callable[[float], float]
    expect: Callable[[int], None]
    seeds: int
    tolerance: float
    start: Callable[[], float] = lambda: math.inf


METHODS: Registry[Callable[[Trials, Sequence[float], int], tuple[list[Point], int]]] = Registry("search method")
"""Name → from trials, the grid (ascending) and the most widenings to a curve (ascending) and how many there were."""

WIDENING = 4
"""Rates that one widening adds on one side."""


def steps_at_ends(rates: Sequence[float]) -> tuple[float, float]:
    """Ratio of neighbouring rates at the lower, the upper end of a grid; half an octave for a single rate."""
    return (rates[1] / rates[0], rates[-1] / rates[-2]) if len(rates) > 1 else (2**0.5, 2**0.5)
