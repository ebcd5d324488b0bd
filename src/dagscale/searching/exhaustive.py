"""``method="grid"``: every rate of the grid, every seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dagscale.planning.base import Point, sides
from dagscale.searching.methods import METHODS, WIDENING, Trials, steps_at_ends


@METHODS.add("grid")
def grid(trials: Trials, rates: Sequence[float], widen: int) -> tuple[list[Point], int]:
    """Run all rates; while the band, or the answer where all diverged, reaches an end of the grid, add rates there."""

    def points(rates: Sequence[float]) -> list[Point]:
        trials.expect(len(rates) * trials.seeds)
        runs = [(rate, tuple(trials.run(rate, k) for k in range(trials.seeds))) for rate in rates]
        return [Point(rate, losses, sum(losses) / trials.seeds) for rate, losses in runs]

    curve, widened = points(rates), 0
    while widened < widen and (more := _beyond(curve, trials.tolerance, trials.start())):
        curve = sorted(curve + points(more), key=lambda point: point.lr)
        widened += 1
    return curve, widened


def _beyond(curve: Sequence[Point], tolerance: float, start: float) -> list[float]:
    """Rates to add, in the grid's own spacing at that end; none if the band lies inside."""
    rates = [point.lr for point in curve]
    below, above = sides(curve, tolerance, start)
    first, last = steps_at_ends(rates)
    down = [rates[0] / first**k for k in range(WIDENING, 0, -1)] if below else []
    up = [rates[-1] * last**k for k in range(1, WIDENING + 1)] if above else []
    return [rate for rate in down + up if 0 < rate < math.inf]
