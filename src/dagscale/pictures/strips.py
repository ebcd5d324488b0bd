"""Strips: a long chain of blocks is folded like lines of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from dagscale.pictures.places import Placed
from dagscale.pictures.style import Point

BETWEEN = 0.35
"""Inches between two strips."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The ranks ``first`` to ``last`` as one line of the picture, moved by (dx, dy); ``top`` is its upper rim."""

    first: int
    last: int
    dx: float
    dy: float
    top: float

    def at(self, placed: Placed, place: int) -> Point:
        x, y = placed.at(place)
        return x + self.dx, y + self.dy


def make_strips(placed: Placed) -> tuple[list[Strip], float, float]:
    """The strips with their places, and the picture's width and height without margins.

    Folds are where a rank holds one vertex and nothing else; that vertex ends one strip and begins the next.
    """
    if not placed.ranks:
        return [], 1.0, 0.2
    strips: list[Strip] = []
    top = width = 0.0
    begin = 0
    for end in _best_ends(placed):
        low, high = _extent(placed, begin, end)
        left = placed.x[begin] - placed.span[begin] / 2
        width = max(width, placed.x[end] + placed.span[end] / 2 - left)
        strips.append(Strip(begin, end, -left, top - high, top))
        top -= high - low + BETWEEN
        begin = end
    return strips, width, -top - BETWEEN


def _best_ends(placed: Placed) -> list[int]:
    """The last rank of each strip, for strips of about the same width and a picture not too long."""
    last = len(placed.ranks) - 1
    low, high = _extent(placed, 0, last)
    length = placed.x[-1] - placed.x[0]
    if length <= max(16, 4 * (high - low)) or any(len(route) == 2 for route in placed.routes):
        return [last]
    wide = 1.2 * max(12.0, math.sqrt(1.7 * length * (high - low + BETWEEN)))
    ends = _ends(placed, wide)
    while len(narrower := _ends(placed, wide := wide * 0.98)) == len(ends) > 1:
        ends = narrower
    return ends


def _ends(placed: Placed, wide: float) -> list[int]:
    """The last rank of each strip, where strips are filled one after the other up to ``wide``."""
    last = len(placed.ranks) - 1
    cuts = [r for r in range(2, last, 2) if len(placed.ranks[r]) == 1]
    ends, begin = [], 0
    for here, following in pairwise([*cuts, last]):
        if placed.x[following] - placed.x[begin] > wide:
            ends.append(here)
            begin = here
    return [*ends, last]


def _extent(placed: Placed, first: int, last: int) -> Point:
    """Lowest and highest point of the ranks ``first`` to ``last``."""
    inside = [p for rank in placed.ranks[first : last + 1] for p in rank]
    return (
        min(placed.y[p] - placed.height[p] / 2 for p in inside),
        max(placed.y[p] + placed.height[p] / 2 for p in inside),
    )
