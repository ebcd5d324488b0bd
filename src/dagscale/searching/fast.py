"""``method="fast"``: only the rates and seeds of the grid that its answer needs.

The answer hangs on the best loss and on where the curve crosses `dagscale.rates.limit_of` it on either side. So: a
glance along the whole grid, two octaves apart, says where to begin; runs with one seed then surround the best rate and
close in on both ends of the band until they lie between neighbours of the grid; and the other seeds are run
only where the mean over them could move the best or an end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dagscale.planning.base import Point
from dagscale.rates import limit_of, narrowed
from dagscale.searching.methods import METHODS, WIDENING, Trials, steps_at_ends

APART = 4.0
"""Ratio of the rates that are glanced at: two octaves."""

CLEAR = 0.2
"""A rate whose loss exceeds the band's limit by more than this share of the best loss is outside: no seed is added."""

GUARD = 3
"""A rate so far below the best is run too: near the largest rates that train, a lucky one can hide the valley below."""


@METHODS.add("fast")
def fast(trials: Trials, rates: Sequence[float], widen: int) -> tuple[list[Point], int]:
    """Run what `next_rate` asks for, on the grid as widened as it may become."""
    first, last = steps_at_ends(rates)
    extra = WIDENING * widen
    down = [rate for k in range(extra, 0, -1) if (rate := rates[0] / first**k) > 0]
    up = [rate for k in range(1, extra + 1) if (rate := rates[-1] * last**k) < math.inf]
    lattice = [*down, *rates, *up]
    runs: dict[int, list[float]] = {}
    following: int | None = len(down) + _start(trials, rates)
    while following is not None:
        trials.expect(1)
        done = runs.setdefault(following, [])
        done.append(trials.run(lattice[following], len(done)))
        following = next_rate(runs, lattice, trials.seeds, trials.tolerance, trials.start())
    levels = estimates(runs, trials.seeds)
    beyond = max(len(down) - min(runs), max(runs) - len(down) - len(rates) + 1, 0)
    return [Point(lattice[i], tuple(runs[i]), levels[i]) for i in sorted(runs)], math.ceil(beyond / WIDENING)


def _start(trials: Trials, rates: Sequence[float]) -> int:
    """Where to begin: the best of rates two octaves apart after a part of a run; the highest if all diverge."""
    chosen: list[int] = []
    for i, rate in enumerate(rates):
        if not chosen or rate >= APART * rates[chosen[-1]] * (1 - 1e-9):
            chosen.append(i)
    if len(chosen) == 1:
        return len(rates) // 2
    trials.expect(len(chosen))
    losses = {i: trials.glance(rates[i]) for i in reversed(chosen)}
    return min(losses, key=losses.__getitem__)


def estimates(runs: Mapping[int, Sequence[float]], seeds: int) -> dict[int, float]:
    """Mean loss over all seeds at each rate, ``inf`` where one diverged.

    Initialisation and batches of a seed are the same at every rate. So a rate with fewer seeds is held against the
    best rate that has them all, on the seeds they share: its mean is that rate's mean plus the mean difference.
    """
    means = {i: sum(losses) / len(losses) for i, losses in runs.items()}
    whole = [i for i, losses in runs.items() if len(losses) == seeds and math.isfinite(means[i])]
    if whole:
        best = runs[min(whole, key=means.__getitem__)]
        offset = [sum(best) / seeds - sum(best[:n]) / n for n in range(1, seeds + 1)]
        means = {i: mean + offset[len(runs[i]) - 1] for i, mean in means.items()}
    return means


def next_rate(
    runs: Mapping[int, Sequence[float]], rates: Sequence[float], seeds: int, tolerance: float, start: float = math.inf
) -> int | None:
    """The number of the rate at which the next seed is to be run; None if the answer is settled.

    Args:
        runs: losses of the seeds run so far at each rate, at least one.
        rates: those that may be run, ascending.
        seeds: most runs at one rate.
        tolerance: relative width of the band.
        start: the loss before training.
    """
    levels = estimates(runs, seeds)
    best = min(levels, key=levels.__getitem__)
    if math.isinf(levels[best]):
        lowest = min(runs)
        return max(0, lowest - WIDENING) if lowest else None
    known = sorted(runs)
    tolerance = narrowed([rates[i] for i in known], [levels[i] for i in known], tolerance, start)
    limit = limit_of(levels[best], tolerance, start)
    matter, reach, split = [best], [], []
    for side in (1, -1):
        tried = sorted((i for i in runs if (i - best) * side >= 0), key=lambda i: abs(i - best))
        outer = next((i for i in tried if levels[i] > limit), None)
        inner = tried[-1] if outer is None else tried[tried.index(outer) - 1]
        if outer is None:  # twice as far as what is known to be inside, an octave at least
            further = min(max(inner + side * max(2, abs(inner - best)), 0), len(rates) - 1)
            reach += [further] if further != inner else []
        elif abs(outer - inner) > 1:
            split.append((inner + outer) // 2)
        matter += [inner] if outer is None else [inner, outer]
    if reach or split:
        return min(reach or split, key=lambda i: abs(i - best))
    around = (best - 1, best + 1, *([best - GUARD] if min(runs) > best - GUARD else []))
    if missing := [i for i in around if i not in runs and 0 <= i < len(rates)]:
        return missing[0]
    unsure = limit + CLEAR * abs(levels[best])
    return next((i for i in matter if len(runs[i]) < seeds and levels[i] <= unsure), None)
