"""Grids of rates, and the band around the best one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dagscale.errors import SearchError

if TYPE_CHECKING:
    from dagscale.training.optimizers import Optimizer

AFFECTS_TRAINING = False


def default_grid(optimizer: Optimizer) -> tuple[float, ...]:
    """The rates tried for an optimiser: half an octave apart, ascending."""
    return rates_between(*optimizer.grid)


def rates_between(low: float, high: float, spacing: float = 0.5) -> tuple[float, ...]:
    """The rates from ``2^low`` to ``2^high``, ascending, so many octaves apart.

    Raises:
        SearchError: if they run downwards, or an exponent is beyond 100.
    """
    if not low < high:
        raise SearchError(f"the grid runs from 2^{low:g} to 2^{high:g}: give the lower exponent first")
    for end in (low, high):
        if not -100 <= end <= 100:
            raise SearchError(f"the grid's exponent must be -100 to 100, got {end:g}")
    return tuple(2.0 ** (low + k * spacing) for k in range(round((high - low) / spacing) + 1))


def limit_of(best: float, tolerance: float, start: float = math.inf) -> float:
    """The highest loss inside of the band: ``best + tolerance · |best|``, and no more than halfway back from the best
    to the loss before training, so that rates at which next to nothing is learned are not in it.

    Args:
        best: the lowest mean loss.
        tolerance: relative, as 0.05.
        start: the loss before training; ``inf`` where nobody knows.
    """
    return min(best + tolerance * abs(best), max(best, (best + start) / 2))


WIDEST = 4.0
"""Octaves that a band is wide at most, but for rates of the very same loss. Where more rates are within the tolerance,
the loss hardly depends on the rate, as in runs that learn little, and the middle of all these rates says nothing
(``docs/notebook.md``)."""


def find_band(
    rates: Sequence[float], losses: Sequence[float], tolerance: float, start: float = math.inf, widest: float = WIDEST
) -> tuple[float, float]:
    """Lower and upper end of the rates around the best one whose loss is at most `limit_of` the best.

    The band is contiguous. Between its last rate and the next one, the end is interpolated, the loss taken as linear in
    the logarithm of the rate; where the next loss is infinite, or there is no next rate, it is the last rate itself.

    Args:
        rates: ascending.
        losses: mean loss at each, ``inf`` where diverged; at least one finite.
        tolerance, start: as for `limit_of`.
        widest: octaves; a band that would be wider is that of a smaller tolerance, see `narrowed`.
    """
    return _ends(rates, losses, narrowed(rates, losses, tolerance, start, widest), start)


def narrowed(
    rates: Sequence[float], losses: Sequence[float], tolerance: float, start: float = math.inf, widest: float = WIDEST
) -> float:
    """The tolerance at which the band is at most so many octaves wide: the one that is given, or the largest below it.

    0 where even rates of the very same loss are further apart.
    """

    def fits(tolerance: float) -> bool:
        low, high = _ends(rates, losses, tolerance, start)
        return math.log2(high / low) <= widest + 1e-9  # rates of a lattice are exact up to rounding

    if fits(tolerance):
        return tolerance
    low, high = 0.0, tolerance
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


HALVINGS = 30
"""Of the interval that a narrowed tolerance lies in."""


def _ends(rates: Sequence[float], losses: Sequence[float], tolerance: float, start: float) -> tuple[float, float]:
    """Both ends of the band, however wide it is."""
    best = min(range(len(losses)), key=losses.__getitem__)
    limit = limit_of(losses[best], tolerance, start)
    return _end(rates, losses, best, -1, limit), _end(rates, losses, best, 1, limit)


def _end(rates: Sequence[float], losses: Sequence[float], start: int, step: int, limit: float) -> float:
    """The lower end of the band if ``step`` is −1, its upper end if ``step`` is 1."""
    last = start
    while 0 <= last + step < len(rates) and losses[last + step] <= limit:
        last += step
    beyond = last + step
    if not 0 <= beyond < len(rates) or math.isinf(losses[beyond]):
        return rates[last]
    share = (limit - losses[last]) / (losses[beyond] - losses[last])
    return math.exp((1 - share) * math.log(rates[last]) + share * math.log(rates[beyond]))


def check_grid(grid: Iterable[float]) -> list[float]:
    """The grid ascending, without repetitions.

    Raises: SearchError if it is empty or a rate is not a positive number.
    """
    try:
        rates = sorted({float(rate) for rate in grid})
    except (TypeError, ValueError) as error:
        raise SearchError(f"the grid must hold numbers: {error}") from error
    if not rates:
        raise SearchError("the grid is empty: give at least one learning rate")
    bad = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
    if bad:
        raise SearchError(f"learning rates in the grid must be positive numbers, got {bad[0]}")
    return rates
