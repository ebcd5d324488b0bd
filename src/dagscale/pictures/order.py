"""The order of places inside each rank: few crossings, then balance around the spine."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence

from dagscale.pictures.places import Placed, Ties
from dagscale.pictures.style import GAP


def set_order(placed: Placed, ties: Ties) -> None:
    """Order each rank by barycentres of its neighbour, down and up; keep the order with fewest crossings."""
    ranks = placed.ranks
    at = [0.0] * len(placed.rank)
    for rank in ranks:
        _number(rank, at)
    best, fewest = ranks, math.inf
    for sweep in range(sweeps(placed, 14)):
        down = sweep % 2 == 1
        tied = ties.before if down else ties.after
        for rank in ranks if down else reversed(ranks):
            mean = {p: sum(at[q] for q, _ in tied[p]) / len(tied[p]) if tied[p] else at[p] for p in rank}
            rank.sort(key=lambda p: mean[p])
            _number(rank, at)
        crossings = sum(_crossings(rank, ties, at) for rank in ranks)
        if crossings < fewest:
            best, fewest = [list(r) for r in ranks], crossings
    placed.ranks = best
    _take_sides(placed, ties)


def sweeps(placed: Placed, wanted: int) -> int:
    """Fewer sweeps over large graphs."""
    return max(4, min(wanted, 200_000 // (len(placed.rank) + 1)))


def _take_sides(placed: Placed, ties: Ties) -> None:
    """Move single edges above or below the spine or to the rim, for fewer crossings and then for balance."""
    routes = sorted((r for r in placed.routes if placed.spine.isdisjoint(r[1:-1]) and len(r) > 2), key=len)
    if len(routes) * (len(placed.rank) + sum(map(len, ties.after))) > 400_000:
        return
    at = [0.0] * len(placed.rank)
    for rank in placed.ranks:
        _number(rank, at)

    def arrange(order: dict[int, list[int]]) -> None:
        for r, rank in order.items():
            placed.ranks[r] = rank
            _number(rank, at)

    for route in routes * 2:
        inner = {placed.rank[p]: p for p in route[1:-1]}
        best = {r: placed.ranks[r] for r in inner}
        rest = {r: [q for q in placed.ranks[r] if q != p] for r, p in inner.items()}
        least = _cost(placed, inner, ties, at)
        for where in ("top", "above", "below", "bottom"):
            tried = {}
            for r, place in inner.items():
                spine = next((i for i, p in enumerate(rest[r]) if p in placed.spine), len(rest[r]))
                i = {"top": 0, "above": spine, "below": spine + 1, "bottom": len(rest[r])}[where]
                tried[r] = [*rest[r][:i], place, *rest[r][i:]]
            arrange(tried)
            if (found := _cost(placed, inner, ties, at)) < least:
                best, least = tried, found
        arrange(best)


def _cost(placed: Placed, ranks: Iterable[int], ties: Ties, at: Sequence[float]) -> tuple[int, float]:
    """Crossings right before and after ``ranks``, and how unevenly they lie around the spine."""
    crossings, tilt = 0, 0.0
    for r in sorted({r + d for r in ranks for d in (-1, 0)}):
        rank = placed.ranks[r]
        crossings += _crossings(rank, ties, at)
        middle = next((at[p] for p in rank if p in placed.spine), None)
        if middle is not None:
            tilt += abs(sum(math.copysign(placed.height[p] + GAP, at[p] - middle) for p in rank if at[p] != middle))
    return crossings, round(tilt, 6)


def _number(rank: Sequence[int], at: list[float]) -> None:
    """Write into ``at`` where in its rank each place stands."""
    for i, place in enumerate(rank):
        at[place] = float(i)


def _crossings(rank: Sequence[int], ties: Ties, at: Sequence[float]) -> int:
    """How many lines cross between this rank and the next."""
    seen: list[float] = []
    crossings = 0
    for place in rank:
        ends = sorted(at[q] for q, _ in ties.after[place])
        crossings += sum(len(seen) - bisect_right(seen, end) for end in ends)
        for end in ends:
            insort(seen, end)
    return crossings
