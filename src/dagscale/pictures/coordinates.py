"""Coordinates: heights inside the ranks, and the ranks from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from dagscale.pictures.order import sweeps
from dagscale.pictures.places import Placed, Ties
from dagscale.pictures.style import GAP, Point


def set_y(placed: Placed, ties: Ties) -> None:
    """Pull every place to its neighbours' height, rank by rank, as far as order and spacing allow."""
    before, after = ties
    gaps = [[_gap(placed, a, b) for a, b in pairwise(rank)] for rank in placed.ranks]
    y = [0.0] * len(placed.rank)

    def settle(r: int, wish: Sequence[float], weight: Sequence[float]) -> None:
        for place, at in zip(placed.ranks[r], _spread(wish, weight, gaps[r]), strict=True):
            y[place] = at

    for r, rank in enumerate(placed.ranks):
        settle(r, [0.0] * len(rank), [1.0] * len(rank))
    count = sweeps(placed, 60)
    for sweep in range(count):
        down = sweep % 2 == 0
        order = range(len(placed.ranks))
        for r in order if down else reversed(order):
            wish, weight = [], []
            for p in placed.ranks[r]:
                tied = before[p] if down else after[p]
                if sweep >= count // 3 or not tied:
                    tied = [*before[p], *after[p]]
                total = sum(w for _, w in tied)
                mean = sum(w * y[q] for q, w in tied) / total if total else y[p]
                wish.append(0.0 if p in placed.spine else mean)
                weight.append(1e9 if p in placed.spine else total or 1.0)
            settle(r, wish, weight)
    for _ in range(3):
        _level(placed, y)
    placed.y = [-at for at in y]


def set_x(placed: Placed) -> None:
    """Ranks as wide as what stands in them, and further apart where lines climb."""
    placed.span = [max((placed.width[p] for p in rank), default=0.0) for rank in placed.ranks]
    climb = [0.0] * len(placed.ranks)
    for route in placed.routes:
        if len(route) > 2:
            for a, b in pairwise(route):
                climb[placed.rank[a]] = max(climb[placed.rank[a]], abs(placed.y[a] - placed.y[b]))
    right = 0.0
    for span, steep in zip(placed.span, climb, strict=True):
        placed.x.append(right + span / 2)
        right += span + min(0.2 + 0.22 * steep, 1.1)


def _level(placed: Placed, y: list[float]) -> None:
    """Make long edges straight wherever their neighbours leave room for it."""
    at = {p: i for rank in placed.ranks for i, p in enumerate(rank)}

    def bounds(place: int) -> Point:
        rank = placed.ranks[placed.rank[place]]
        i = at[place]
        low = y[rank[i - 1]] + _gap(placed, rank[i - 1], place) if i else -math.inf
        high = y[rank[i + 1]] - _gap(placed, place, rank[i + 1]) if i + 1 < len(rank) else math.inf
        return low, high

    for route in sorted(placed.routes, key=len, reverse=True):
        rest = [p for p in route[1:-1] if p not in placed.spine]
        while rest:
            low, high, run = -math.inf, math.inf, 0
            for place in rest:
                lo, hi = bounds(place)
                if max(low, lo) > min(high, hi):
                    break
                low, high, run = max(low, lo), min(high, hi), run + 1
            run = max(run, 1)
            if run > 1:
                mean = sum(y[p] for p in rest[:run]) / run
                for p in rest[:run]:
                    y[p] = min(max(mean, low), high)
            rest = rest[run:]


def _gap(placed: Placed, a: int, b: int) -> float:
    """Least distance between the middles of two neighbours in a rank."""
    return (placed.height[a] + placed.height[b]) / 2 + GAP


def _spread(wish: Sequence[float], weight: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The heights nearest to ``wish`` in weighted least squares that keep order and ``gaps``.

    Less the sum of gaps so far, this is isotonic regression: pool adjacent violators.
    """
    offsets = list(accumulate(gaps, initial=0.0))
    pools: list[tuple[float, float, int]] = []
    for want, heavy, offset in zip(wish, weight, offsets, strict=False):
        mean, total, count = want - offset, heavy, 1
        while pools and pools[-1][0] > mean:
            m, t, c = pools.pop()
            mean, total, count = (m * t + mean * total) / (t + total), t + total, c + count
        pools.append((mean, total, count))
    level = [mean for mean, _, count in pools for _ in range(count)]
    return [at + offset for at, offset in zip(level, offsets, strict=False)]
