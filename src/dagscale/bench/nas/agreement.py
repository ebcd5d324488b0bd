"""How far two columns of accuracies agree: Kendall's τ over the top, gains, pairs, each beside a noise floor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dagscale.bench.nas.isomorphism import groups
from dagscale.bench.nas.tables import MEAN, Column, Floats
from dagscale.models.nb201 import Nb201

V = TypeVar("V")
Ints = npt.NDArray[np.int64]
SeedPair = tuple[str, Column, Column]
"""A label, and two single-seed columns of the benchmark over the same architectures."""

KS = tuple(range(100, 0, -1))
INTERVAL_KS = (100, 75, 50, 40, 30, 25, 20, 15, 10, 7, 5, 3, 2, 1)
"""The K for which intervals are bootstrapped."""
SMALLEST = 5
"""A τ over fewer architectures is not given."""
TOPS = (100, 10, 1)
GAPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 100.0)
"""Edges, in points of accuracy, of the classes of pairs."""
PAIRS = 200_000
TWIN_DRAWS = 20


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % bootstrap interval over architectures; None where there were too few for one."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """Kendall's τ over the top K %, the top taken by the first of the two columns.

    Attributes:
        taus: K → τ; K with fewer than five architectures are left out.
        n: the number of architectures at K = 100.
    """

    label: str
    taus: Mapping[int, Estimate]
    n: int


@dataclass(frozen=True)
class Gain:
    """Mean change of accuracy in points, over the top K % by one of the columns.

    Attributes:
        noise: the same number between two seeds of the benchmark: what choosing the lucky ones gives without any
            change; None where the benchmark has no two seeds.
    """

    top: int
    chosen_by: str
    gain: Estimate
    noise: float | None


@dataclass(frozen=True)
class GapClass:
    """Pairs of architectures by their distance in the benchmark, and the share that changes order.

    Attributes:
        noise: that share between two seeds of the benchmark.
    """

    top: int
    low: float
    high: float
    pairs: int
    flipped: float | None
    noise: float | None


# --- Kendall's τ ----------------------------------------------------------------------------------


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's τ-b; NaN where one side is constant."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def top(x: Floats, percent: int) -> Ints:
    """Indices of the top ``percent`` % by ``x``, the best first; ties in the order they stand."""
    count = max(1, round(len(x) * percent / 100))
    return np.argsort(-x, kind="stable")[:count]


def _curve(x: Floats, y: Floats, ks: Sequence[int]) -> dict[int, float]:
    order = top(x, 100)
    found = {}
    for k in ks:
        best = order[: round(len(x) * k / 100)]
        if len(best) >= SMALLEST:
            value = kendall(x[best], y[best])
            if not np.isnan(value):
                found[k] = value
    return found


def taus(x: Floats, y: Floats, bootstrap: int, rng: np.random.Generator, ks: Sequence[int] = KS) -> dict[int, Estimate]:
    """τ at every K of ``ks``, with intervals at ``INTERVAL_KS``. The top K % is chosen anew in each resample."""
    some = [k for k in INTERVAL_KS if k in ks]
    _, drawn = _resampled(lambda rows: _curve(x[rows], y[rows], some), len(x), bootstrap, rng)
    points = _curve(x, y, ks)
    return {k: estimate(v, drawn.get(k, ()), round(len(x) * k / 100)) for k, v in points.items()}


def _resampled(
    values: Callable[[Any], dict[int, V]], count: int, bootstrap: int, rng: np.random.Generator
) -> tuple[dict[int, V], dict[int, list[V]]]:
    """K → what ``values`` gives of all ``count`` rows, and of resamples of them."""
    points = values(slice(None))
    drawn: dict[int, list[V]] = {k: [] for k in points}
    for _ in range(bootstrap):
        for k, value in values(rng.integers(0, count, count)).items():
            if k in drawn:
                drawn[k].append(value)
    return points, drawn


Three = tuple[dict[int, Estimate], dict[int, Estimate], dict[int, Estimate]]


def matched(a: Floats, b: Floats, bootstrap: int, rng: np.random.Generator, ks: Sequence[int] = INTERVAL_KS) -> Three:
    """τ by single seeds between two recipes, within them, and the difference within - between, at every K of ``ks``.

    ``a`` and ``b`` are (architectures, seeds). Both sides of every τ are single runs of different seeds, so that
    between and within carry the same noise; the top is chosen by the first of the two. Means over all pairs of
    seeds, within also over the two recipes.
    """
    seeds = [(i, j) for i in range(a.shape[1]) for j in range(b.shape[1]) if i != j]

    def values(rows: Any) -> dict[int, tuple[float, float]]:
        between: dict[int, list[float]] = {}
        within: dict[int, list[float]] = {}
        for i, j in seeds:
            for found, x, y in ((between, a, b), (between, b, a), (within, a, a), (within, b, b)):
                for k, value in _curve(x[rows, i], y[rows, j], ks).items():
                    found.setdefault(k, []).append(value)
        return {k: (float(np.mean(v)), float(np.mean(within[k]))) for k, v in between.items() if k in within}

    points, drawn = _resampled(values, len(a), bootstrap, rng)
    n = {k: round(len(a) * k / 100) for k in points}
    return (
        {k: estimate(v[0], [p[0] for p in drawn[k]], n[k]) for k, v in points.items()},
        {k: estimate(v[1], [p[1] for p in drawn[k]], n[k]) for k, v in points.items()},
        {k: estimate(v[1] - v[0], [p[1] - p[0] for p in drawn[k]], n[k]) for k, v in points.items()},
    )


def excess(
    x: Floats, y: Floats, one: Column, other: Column, archs: Sequence[Nb201], bootstrap: int, rng: np.random.Generator
) -> dict[int, Estimate]:
    """τ between seeds minus τ between benchmark and against, over the same architectures, resampled together."""
    place = {arch: i for i, arch in enumerate(archs)}
    rows = np.array([place[arch] for arch in one.archs])
    x, y, a, b = x[rows], y[rows], one.values, other.values

    def difference(s: Any) -> dict[int, float]:
        floor, own = _curve(a[s], b[s], INTERVAL_KS), _curve(x[s], y[s], INTERVAL_KS)
        return {k: floor[k] - own[k] for k in floor if k in own}

    points, drawn = _resampled(difference, len(x), bootstrap, rng)
    return {k: estimate(v, drawn[k], round(len(x) * k / 100)) for k, v in points.items()}


def twins(column: Column, rng: np.random.Generator) -> tuple[Curve, float] | None:
    """The noise floor from architectures that compute the same: (its curve, standard deviation within groups).

    In each draw, every group of two or more gives two of its members at random, one as x and one as y. Groups
    without convolution are left out: the largest, and all alike. The interval is that over draws.
    """
    value = dict(zip(column.archs, column.values, strict=True))
    alike = [np.array([value[a] for a in g]) for g in groups(column.archs) if g[0].kind == "convolutional"]
    alike = [g for g in alike if len(g) > 1]
    if len(alike) < 2 * SMALLEST:
        return None
    drawn: dict[int, list[float]] = {}
    for _ in range(TWIN_DRAWS):
        x, y = np.array([rng.choice(g, 2, replace=False) for g in alike]).T
        for k, tau in _curve(x, y, KS).items():
            drawn.setdefault(k, []).append(tau)
    taus = {k: estimate(float(np.mean(v)), v, round(len(alike) * k / 100)) for k, v in sorted(drawn.items())[::-1]}
    variance = sum(float(np.var(g)) * len(g) for g in alike) / sum(len(g) - 1 for g in alike)
    label = f"isomorphic architectures, {column.column} {'' if column.seed == MEAN else 'seed '}{column.seed}"
    return Curve(label, taus, len(alike)), variance**0.5


def estimate(value: float, drawn: Sequence[float], n: int) -> Estimate:
    """A value with the 95 % interval of what resampling drew."""
    if len(drawn) < 20:
        return Estimate(value, None, None, n)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


# --- gains and pairs ------------------------------------------------------------------------------


def mean_change(change: Floats, rng: np.random.Generator) -> Estimate:
    """The mean over architectures, from five on with an interval."""
    n = len(change)
    means = change[rng.integers(0, n, (1000, n))].mean(axis=1) if n >= SMALLEST else ()
    return estimate(float(change.mean()), tuple(means), n)


def mean_gain(k: int, chosen_by: str, best: Ints, change: Floats, luck: Floats, rng: np.random.Generator) -> Gain:
    """The mean of ``change`` over the rows ``best``; that of ``luck`` is the noise."""
    return Gain(k, chosen_by, mean_change(change[best], rng), float(luck[best].mean()))


def gains(x: Floats, y: Floats, pair: SeedPair | None, rng: np.random.Generator) -> tuple[Gain, ...]:
    found = []
    for chosen_by, by in (("benchmark", x), ("against", y)):
        for k in TOPS:
            if k == 100 and chosen_by == "against":
                continue
            best = top(by, k)
            change = (y - x)[best]
            means = change[rng.integers(0, len(change), (1000, len(change)))].mean(axis=1) if len(change) > 1 else ()
            noise = None
            if pair is not None:
                a, b = pair[1].values, pair[2].values
                noise = float((b - a)[top(a if chosen_by == "benchmark" else b, k)].mean())
            found.append(Gain(k, chosen_by, estimate(float(change.mean()), tuple(means), len(best)), noise))
    return tuple(found)


def gaps(x: Floats, y: Floats, pair: SeedPair | None, rng: np.random.Generator) -> tuple[GapClass, ...]:
    found = []
    for k in (100, 10):
        best = top(x, k)
        own = _flips(x[best], y[best], rng)
        noise = None
        if pair is not None:
            lucky = top(pair[1].values, k)
            noise = _flips(pair[1].values[lucky], pair[2].values[lucky], rng)
        for i, (low, high) in enumerate(itertools.pairwise(GAPS)):
            count, share = own[i]
            found.append(GapClass(k, low, high, count, share, noise[i][1] if noise else None))
    return tuple(found)


def _flips(x: Floats, y: Floats, rng: np.random.Generator) -> list[tuple[int, float | None]]:
    """For each class of ``GAPS``: how many pairs were looked at, and the share that changes order.

    All pairs, or ``PAIRS`` random ones. Pairs equal in x are left out, pairs equal in y count half.
    """
    n = len(x)
    if n * (n - 1) // 2 <= PAIRS:
        i, j = np.triu_indices(n, 1)
    else:
        i, j = rng.integers(0, n, PAIRS), rng.integers(0, n, PAIRS)
    dx, dy = x[i] - x[j], y[i] - y[j]
    flipped = np.where(dy == 0, 0.5, (dx * dy < 0).astype(float))
    found: list[tuple[int, float | None]] = []
    for low, high in itertools.pairwise(GAPS):
        inside = (np.abs(dx) > low) & (np.abs(dx) <= high)
        count = int(inside.sum())
        found.append((count, float(flipped[inside].mean()) if count else None))
    return found
