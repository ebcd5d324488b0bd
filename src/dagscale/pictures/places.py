"""Places: what stands in which rank, and the places that each edge passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from dagscale.graph import Graph
from dagscale.pictures.cards import Row, card, short_names
from dagscale.pictures.shapes import Shape, shape
from dagscale.pictures.style import BEND, SMALL, TEXT, Point, text_width

MAX_BENDS = 20_000
"""Beyond so many bends the longest edges are drawn straight: a dense graph has cubically many."""


@dataclass
class Placed:
    """Vertices, cards and bends with their positions. Places 0, 1, … are the vertices, in order.

    Attributes:
        rank, width, height, y: of each place; vertices have even ranks.
        routes: for each edge the places it passes, its two vertices included; only these two if it is drawn
            straight, for want of room.
        shapes: of the vertices.
        cards: place → what stands there.
        spine: the places on one longest path, which run level through the picture.
        ranks: the places of each rank, from top to bottom.
        x, span: of each rank, its centre and its width.
        text: font size on the cards.
    """

    rank: list[int] = field(default_factory=list)
    width: list[float] = field(default_factory=list)
    height: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    routes: list[list[int]] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    cards: dict[int, tuple[Row, ...]] = field(default_factory=dict)
    spine: frozenset[int] = frozenset()
    ranks: list[list[int]] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    span: list[float] = field(default_factory=list)
    text: float = TEXT

    def add(self, rank: int, width: float, height: float) -> int:
        self.rank.append(rank)
        self.width.append(width)
        self.height.append(height)
        return len(self.rank) - 1

    def at(self, place: int) -> Point:
        return self.x[self.rank[place]], self.y[place]

    @property
    def line(self) -> float:
        """Height of a row of a card."""
        return self.text * 0.0205


class Ties(NamedTuple):
    """For each place, those it is tied to in the rank before and the rank after, with how tightly."""

    before: Sequence[Sequence[tuple[int, float]]]
    after: Sequence[Sequence[tuple[int, float]]]


def place_graph(graph: Graph) -> Placed:
    """Everything in its rank, in no order yet and without coordinates."""
    many = len(graph.edges)
    placed = Placed(text=TEXT if many <= 600 else SMALL)
    for vertex, layer in zip(graph.vertices, _layers(graph), strict=True):
        placed.shapes.append(shape(graph, vertex))
        placed.add(2 * layer, *placed.shapes[-1].room)
    _add_routes(graph, placed, limit=8 if many <= 150 else 4 if many <= 600 else 1 if many <= 1500 else 0)
    placed.spine = _spine(graph, placed.routes)
    placed.ranks = [[] for _ in range(1 + max(placed.rank, default=-1))]
    for place, rank in enumerate(placed.rank):
        placed.ranks[rank].append(place)
    return placed


def neighbours(placed: Placed) -> Ties:
    """Bends hold on to each other so that long edges run level, and short edges are the spine."""
    before: list[list[tuple[int, float]]] = [[] for _ in placed.rank]
    after: list[list[tuple[int, float]]] = [[] for _ in placed.rank]
    for route in placed.routes:
        if len(route) == 2:
            continue
        for a, b in pairwise(route):
            tight = 3.0 if len(route) == 3 else 1.0 if a == route[0] or b == route[-1] else 8.0
            after[a].append((b, tight))
            before[b].append((a, tight))
    return Ties(before, after)


def _layers(graph: Graph) -> list[int]:
    """For each vertex, its longest path from the inputs."""
    layer = [0] * len(graph.vertices)
    for edge in sorted(graph.edges, key=lambda e: e.src):
        layer[edge.dst] = max(layer[edge.dst], layer[edge.src] + 1)
    for v in graph.vertices:
        onward = [layer[graph.edges[e].dst] for e in graph.out_edges[v.id]]
        if v.kind != "input" and not graph.in_edges[v.id] and onward:
            layer[v.id] = min(onward) - 1
    return layer


def _add_routes(graph: Graph, placed: Placed, limit: int) -> None:
    """Give each edge its places, and its card the one where it is least in the way."""
    short = short_names(graph)
    spans = [placed.rank[e.dst] - placed.rank[e.src] for e in graph.edges]
    placed.routes = [[e.src, e.dst] for e in graph.edges]
    load = [0.0] * (1 + max(placed.rank, default=0))
    bends = 0
    for i in sorted(range(len(spans)), key=lambda i: spans[i]):
        edge = graph.edges[i]
        first, last = placed.rank[edge.src], placed.rank[edge.dst]
        bends += spans[i]
        if bends > MAX_BENDS and spans[i] > 2:
            break
        rows = card(edge, short, limit)
        home = min(range(first + 1, last, 2), key=lambda r: (load[r], abs(2 * r - first - last), r))
        load[home] += len(rows) + 1
        inner = []
        for rank in range(first + 1, last):
            if rank == home and rows:
                wide = max(text_width(r.text, placed.text, r.kind == "weight") for r in rows) + 0.14
                place = placed.add(rank, wide, placed.line * len(rows) + 0.06)
                placed.cards[place] = rows
            else:
                place = placed.add(rank, 0.0, BEND)
            inner.append(place)
        placed.routes[i][1:1] = inner


def _spine(graph: Graph, routes: Sequence[Sequence[int]]) -> frozenset[int]:
    """The places on one longest path from layer to layer; live edges count first, then layers and ops."""
    n = len(graph.vertices)
    best = [(0, 0, 0, 0)] * n
    came: list[int | None] = [None] * n
    for v in range(n):
        for i in graph.in_edges[v]:
            if len(routes[i]) == 3:
                edge = graph.edges[i]
                live, steps, layers, ops = best[edge.src]
                score = (live + graph.live[i], steps + 1, layers + len(edge.layers), ops + len(edge.ops))
                if score > best[v]:
                    best[v], came[v] = score, i
    at: int | None = max(range(n), key=lambda v: best[v], default=None)
    spine: set[int] = set() if at is None else {at}
    while at is not None and (back := came[at]) is not None:
        spine.update(routes[back])
        at = graph.edges[back].src
    return frozenset(spine)
