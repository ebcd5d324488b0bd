"""The best rate of each network under each recipe, from runs at several rates.

Through the costs of the runs near the best one goes a parabola in the logarithm of the rate. Straight lines between
neighbouring rates, as the band of ``dagscale.rates.find_band`` has its ends, miss a left-out run by a little more, and
parabolas through wider windows by much more, because costs rise like a cliff at high rates (:func:`left_out` measures
all three). Lines have one more fault here: their lowest point is always one of the runs, the luckiest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dagscale.bench.replay.runs import Metric, Run, Setting

Floats = npt.NDArray[np.float64]
Kind = Literal["inner", "edge", "unclear"]

WINDOW = 1.75
"""Octaves around the best rate whose runs the parabola goes through."""


@dataclass(frozen=True)
class Curve:
    """Cost against the logarithm of the rate: a parabola near its lowest point, straight lines elsewhere.

    Attributes:
        levels: log2 of the rates, ascending, with the mean cost of the runs at each; ``inf`` where one diverged.
        parabola: coefficients, highest power first, about ``centre``; None if there were too few runs near the best.
        fitted: lowest and highest log2 rate that the parabola goes through.
    """

    levels: tuple[tuple[float, float], ...]
    centre: float
    parabola: tuple[float, float, float] | None
    fitted: tuple[float, float]

    def at(self, rate: float) -> float:
        """The cost at a rate; beyond the lowest rate that was tried, the cost there; ``inf`` beyond the highest that
        did not diverge, if one diverged above it."""
        x = math.log2(rate)
        if self.parabola is not None and self.fitted[0] <= x <= self.fitted[1]:
            return float(np.polyval(self.parabola, x - self.centre))
        finite = [(a, b) for a, b in self.levels if math.isfinite(b)]
        if self.levels[-1] != finite[-1] and x > finite[-1][0]:
            return math.inf
        return float(np.interp(x, [a for a, _ in finite], [b for _, b in finite]))

    def covers(self, rate: float) -> bool:
        """Whether such a rate lies between the lowest and the highest that was tried."""
        return self.levels[0][0] <= math.log2(rate) <= self.levels[-1][0]


@dataclass(frozen=True)
class Optimum:
    """The best rate of one setting.

    Attributes:
        kind: ``inner``: the parabola's lowest point, between rates that are worse. ``edge``: the best run stands at
            the end of the grid, or next to rates that diverge. ``unclear``: no lowest point among the runs near the
            best one. Only inner ones are scored.
        rate: that point; for the others the best run's rate.
        cost: there.
    """

    setting: Setting
    kind: Kind
    rate: float
    cost: float
    curve: Curve


def optima(runs: Iterable[Run], metric: Metric) -> list[Optimum]:
    """Of every setting that was tried at three rates at least, at one of which no run diverged."""
    tried: dict[Setting, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if metric.name in run.costs:
            tried[run.setting].append((run.rate, run.costs[metric.name]))
    return [
        find(setting, points, metric.cliff)
        for setting, points in tried.items()
        if len({rate for rate, _ in points}) >= 3
        and {rate for rate, _ in points} - {rate for rate, cost in points if math.isinf(cost)}
    ]


def find(setting: Setting, points: Sequence[tuple[float, float]], cliff: float, window: float = WINDOW) -> Optimum:
    """The best rate from ``(rate, cost)`` of runs; at one rate at least none diverged."""
    curve = fit(points, cliff, window)
    finite = [level for level in curve.levels if math.isfinite(level[1])]
    best, cost = min(finite, key=lambda level: level[1])
    if best in (finite[0][0], finite[-1][0]):
        return Optimum(setting, "edge", 2.0**best, cost, curve)
    if curve.parabola is not None and curve.parabola[0] > 0:
        a, b, _ = curve.parabola
        lowest = curve.centre - b / (2 * a)
        if curve.fitted[0] < lowest < curve.fitted[1]:
            return Optimum(setting, "inner", 2.0**lowest, curve.at(2.0**lowest), curve)
    return Optimum(setting, "unclear", 2.0**best, cost, curve)


def fit(points: Sequence[tuple[float, float]], cliff: float, window: float = WINDOW) -> Curve:
    """The curve through runs, as ``(rate, cost)``."""
    repeats: dict[float, list[float]] = defaultdict(list)
    for rate, cost in points:
        repeats[math.log2(rate)].append(cost)
    levels = tuple((x, float(np.mean(repeats[x]))) for x in sorted(repeats))
    means = dict(levels)
    centre, best = min(levels, key=lambda level: level[1])
    near = [
        (math.log2(rate), cost)
        for rate, cost in points
        if abs(math.log2(rate) - centre) <= window and cost <= best + cliff and math.isfinite(means[math.log2(rate)])
    ]
    xs, ys = (np.array(values, float) for values in zip(*near, strict=True)) if near else (np.empty(0), np.empty(0))
    if apart(xs) < 3:
        return Curve(levels, centre, None, (centre, centre))
    a, b, c = map(float, np.polyfit(xs - centre, ys, 2))
    return Curve(levels, centre, (a, b, c), (float(xs.min()), float(xs.max())))


def apart(xs: Iterable[float]) -> int:
    """How many of some log2 rates stand half an octave apart: nearer ones do not bend a parabola, only noise does."""
    count, last = 0, -math.inf
    for x in sorted(xs):
        if x - last >= 0.5:
            count, last = count + 1, x
    return count


@dataclass(frozen=True)
class LeftOut:
    """How far curves miss runs that they have not seen: ``count`` runs within an octave of the best one."""

    way: str
    count: int
    rms: float
    median: float


def left_out(runs: Iterable[Run], metric: Metric) -> list[LeftOut]:
    """Leave out each run within an octave of the best rate in turn, and predict it from the others, in several ways."""
    ways = {"parabola, ±1.75 octaves": WINDOW, "parabola, ±3.5 octaves": 2 * WINDOW, "straight lines": 0.0}
    missed: dict[str, list[float]] = {way: [] for way in ways}
    tried: dict[Setting, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if math.isfinite(run.costs.get(metric.name, math.inf)):
            tried[run.setting].append((run.rate, run.costs[metric.name]))
    for points in tried.values():
        for point, rest in _held_out(points, metric.cliff):
            curves = {way: fit(rest, metric.cliff, window) for way, window in ways.items()}
            if all(curve.parabola is not None or not ways[way] for way, curve in curves.items()):
                for way, curve in curves.items():
                    missed[way].append(abs(curve.at(point[0]) - point[1]))
    return [
        LeftOut(way, len(far), float(np.sqrt(np.mean(np.square(far)))), float(np.median(far)))
        for way, far in missed.items()
        if far
    ]


def _held_out(
    points: Sequence[tuple[float, float]], cliff: float
) -> Iterator[tuple[tuple[float, float], list[tuple[float, float]]]]:
    """Each run near an inner best one, with all others of its setting."""
    curve = fit(points, cliff)
    ends = curve.levels[0][0], curve.levels[-1][0]
    for i, point in enumerate(points):
        rest = [*points[:i], *points[i + 1 :]]
        if curve.centre not in ends and abs(math.log2(point[0]) - curve.centre) <= 1 and len({r for r, _ in rest}) > 3:
            yield point, rest


def by_kind(found: Sequence[Optimum]) -> Mapping[Kind, int]:
    """How many there are of each kind."""
    return {kind: sum(o.kind == kind for o in found) for kind in ("inner", "edge", "unclear")}
