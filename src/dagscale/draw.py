"""A picture of a graph: layers from left to right, edges that carry their ops as cards.

A layered drawing [Sugiyama et al. 1981]. Every edge gets a place of its own in each rank it passes, also
between two neighbouring layers, and its ops stand in one of those places. So what orders and spaces vertices
keeps labels, long edges and parallel edges apart too: lines bend only between ranks, and inside a rank only
their own card or vertex lies on them.
"""

from __future__ import annotations

import io
import math
import os
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dagscale.errors import DagscaleError
from dagscale.graph import Edge, Graph, Op, Vertex

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
_Item = tuple[str, str, float]

_SUFFIXES = (".svg", ".png", ".pdf")
_MAX_BENDS = 20_000
"""Beyond so many bends the longest edges are drawn straight: a dense graph has cubically many."""
_MAX_SIDE, _MAX_PIXELS = 30_000, 50e6
"""Of a PNG; what would be larger gets fewer dots per inch."""

# Lengths are inches, font sizes points.
_MARGIN = 0.3
_BEND = 0.09
_RADIUS = 0.17
_DOT = 0.045
_TEXT = 8.0
_SMALL = 6.5
_MAX_NAME = 22

_INK = "#25303b"
_PALE = "#b4bcc4"
_THIN = "#7b8794"
_ROW_COLOURS = {  # kind of op: text, background
    "weight": ("#0b3d78", "#d3e5fa"),
    "activation": ("#8a4300", "#fde6cc"),
    "norm": ("#1c5c3a", "#dff2e6"),
    "unknown": ("#a01c1c", "#fbdcdc"),
}
_PLAIN_ROW = ("#5b6670", "#f3f5f7")
_VERTEX_COLOURS = {  # kind of vertex: line, fill
    "input": ("#25303b", "#e6eaee"),
    "output": ("#25303b", "#e6eaee"),
    "sum": ("#25303b", "#ffffff"),
    "product": ("#6b2d8b", "#f2e4f9"),
    "concat": ("#0d6670", "#dbf1f3"),
    "select": ("#8a6d00", "#fbf3d0"),
    "fork": ("#25303b", "#25303b"),
}


def draw(graph: Graph, path: str | Path, *, title: str = "") -> Path:
    """Write a picture of ``graph`` and return its path.

    Args:
        path: where to; the suffix ``.svg``, ``.png`` or ``.pdf`` names the format. The same graph gives the
            same bytes (for one version of matplotlib).
        title: stands above the picture.

    Raises:
        DagscaleError: if the suffix is another one, matplotlib is missing, or the file cannot be written; no
            part of a file is left then, and an older file stays as it was.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise DagscaleError(f"cannot draw to {str(path)!r}: the suffix names the format, use one of {known}")
    try:
        import matplotlib
    except ImportError as error:
        raise DagscaleError("drawing needs matplotlib: pip install dagscale[plot]") from error
    fixed: Any = {
        "font.family": ["sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "text.usetex": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "dagscale",
        "pdf.fonttype": 42,
        "path.sketch": None,
        "path.effects": [],
        "savefig.bbox": None,
        "savefig.transparent": False,
    }
    with matplotlib.rc_context(fixed):
        picture = _render(_figure(graph, title), suffix)
    _write(path, picture)
    return path


def layout(graph: Graph) -> dict[int, Point]:
    """Where each vertex stands, in inches: vertex id → (x to the right, y upward).

    Vertices of one layer share ``x``; along every edge ``x`` grows. A vertex's layer is its longest path from
    the inputs; what starts elsewhere stands right before the first vertex it feeds.
    """
    placed = _place(graph)
    return {v.id: (placed.x[placed.rank[v.id]], placed.y[v.id]) for v in graph.vertices}


# Text


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a card."""

    text: str
    kind: str = "pass"


def _short_names(graph: Graph) -> dict[str, str]:
    """Each layer's name → its last parts, as few as tell it from every other layer."""
    names = {op.layer_name for edge in graph.edges for op in edge.layers}
    ending = Counter(tail for name in names for tail in _tails(name))
    return {name: next((t for t in _tails(name) if ending[t] == 1), name) for name in names}


def _tails(name: str) -> list[str]:
    """``a.b.c`` → ``c``, ``b.c``, ``a.b.c``; a bare number never stands alone."""
    parts = name.split(".")
    tails = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
    return [t for t in tails if not t.isdecimal()] or [name]


def _elide(text: str) -> str:
    """At most :data:`_MAX_NAME` characters, the middle left out; of a dotted name whole words, no number."""
    if len(text) <= _MAX_NAME:
        return text
    head, *middle, tail = text.split(".") if "." in text else (text, text)
    head = ".".join([head, *filter(str.isdecimal, middle)])
    if len(head) + 1 + len(tail) <= _MAX_NAME:
        return f"{head}…{tail}"
    keep = _MAX_NAME - 1
    return f"{text[: keep // 3]}…{text[keep // 3 - keep :]}"


def _card(edge: Edge, short: dict[str, str], limit: int) -> tuple[_Row, ...]:
    """What an edge's card says, in at most ``limit`` rows; the least telling ops go first."""
    rows: list[_Row] = []
    repeats: list[int] = []
    for op in edge.ops:
        is_layer = op.layer is not None
        row = _Row(_elide(short[op.layer_name]), "weight") if is_layer else _Row(_op_name(op), op.kind)
        if rows and rows[-1] == row:
            repeats[-1] += 1
        else:
            rows.append(row)
            repeats.append(1)
    rows = [r if n == 1 else _Row(f"{r.text} ×{n}", r.kind) for r, n in zip(rows, repeats, strict=True)]
    if len(rows) <= limit:
        return tuple(rows)
    rank = {"weight": 0, "activation": 1, "unknown": 2, "norm": 3, "pool": 4}
    kept = sorted(sorted(range(len(rows)), key=lambda i: rank.get(rows[i].kind, 5))[: max(limit - 1, 0)])
    return (*(rows[i] for i in kept), _Row(f"+{len(rows) - len(kept)} more")) if limit else ()


def _op_name(op: Op) -> str:
    name = op.name.strip("_")
    for prefix in ("native_", "cudnn_"):
        name = name.removeprefix(prefix)
    return _elide(name or op.kind)


def _width(text: str, size: float, bold: bool = False) -> float:
    """Width in inches of ``text`` in DejaVu Sans, by classes of characters: good to about a tenth."""
    em = 0.0
    for c in text:
        em += 0.34 if c in "ijl.,:;'|!I() " else 0.44 if c in "frt-/" else 0.95 if c in "mwMW@…" else 0.63
    return em * size / 72 * (1.1 if bold else 1.0)


def _vertex_text(graph: Graph, vertex: Vertex) -> str:
    match vertex.kind:
        case "sum":
            return f"Σ{graph.in_degree[vertex.id]}"
        case "product":
            return "×"
        case "fork":
            return ""
        case "concat":
            return "concat"
        case _:
            return _elide(vertex.label or vertex.kind)


def _box_width(text: str) -> float:
    """Of a vertex drawn as a box."""
    return max(_width(text, _TEXT, True) + 0.22, 0.5)


def _box_height(graph: Graph, vertex: Vertex) -> float:
    """Of a vertex drawn as a box, with room on its side for every arrow."""
    return min(max(0.28, 0.1 + 0.06 * len(graph.in_edges[vertex.id])), 1.0)


def _caption(vertex: Vertex) -> str:
    """The shape, under inputs and outputs."""
    return "×".join(map(str, vertex.shape)) if vertex.kind in ("input", "output") else ""


def _radius(graph: Graph, vertex: Vertex) -> float:
    """Of a vertex drawn as a circle, with room on its rim for every arrow; 0 for the others."""
    match vertex.kind:
        case "fork":
            return _DOT
        case "sum" | "product":
            return min(max(_RADIUS, 0.04 * len(graph.in_edges[vertex.id])), 0.45)
        case _:
            return 0.0


# Places


@dataclass
class _Placed:
    """Vertices, cards and bends with their positions. Places 0, 1, … are the vertices, in order.

    Attributes:
        rank: of each place; vertices have even ranks.
        routes: for each edge the places it passes, its two vertices included.
        cards: place → what stands there.
        x, span: of each rank, its centre and its width.
        straight: the indices of edges that got no bends, for want of room.
        spine: the places on one longest path, which run level through the picture.
    """

    rank: list[int] = field(default_factory=list)
    width: list[float] = field(default_factory=list)
    height: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    routes: list[list[int]] = field(default_factory=list)
    cards: dict[int, tuple[_Row, ...]] = field(default_factory=dict)
    ranks: list[list[int]] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    span: list[float] = field(default_factory=list)
    straight: set[int] = field(default_factory=set)
    spine: frozenset[int] = frozenset()
    text: float = _TEXT

    def add(self, rank: int, width: float, height: float) -> int:
        self.rank.append(rank)
        self.width.append(width)
        self.height.append(height)
        return len(self.rank) - 1

    @property
    def line(self) -> float:
        """Height of a row of a card."""
        return self.text * 0.0205


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


def _place(graph: Graph) -> _Placed:
    many = len(graph.edges)
    limit = 8 if many <= 150 else 4 if many <= 600 else 1 if many <= 1500 else 0
    placed = _Placed(text=_TEXT if many <= 600 else _SMALL)
    for vertex, layer in zip(graph.vertices, _layers(graph), strict=True):
        text = _vertex_text(graph, vertex)
        radius = _radius(graph, vertex)
        size = (2 * radius, 2 * radius) if radius else (_box_width(text), _box_height(graph, vertex))
        caption = _caption(vertex)
        if caption:  # the line through the box's middle must stay in the middle of the place
            size = (max(size[0], _width(caption, _SMALL)), size[1] + 0.36)
        placed.add(2 * layer, *size)
    _add_routes(graph, placed, limit)
    placed.spine = _spine(graph, placed)
    placed.ranks = [[] for _ in range(1 + max(placed.rank, default=-1))]
    for place, rank in enumerate(placed.rank):
        placed.ranks[rank].append(place)
    _order(placed)
    _settle_y(placed)
    _set_x(placed)
    return placed


def _add_routes(graph: Graph, placed: _Placed, limit: int) -> None:
    """Give each edge its places, and its card the one where it is least in the way."""
    short = _short_names(graph)
    spans = [placed.rank[e.dst] - placed.rank[e.src] for e in graph.edges]
    placed.routes = [[] for _ in spans]
    load = [0.0] * (1 + max(placed.rank, default=0))
    bends = 0
    for i in sorted(range(len(spans)), key=lambda i: (spans[i], i)):
        edge = graph.edges[i]
        first, last = placed.rank[edge.src], placed.rank[edge.dst]
        bends += spans[i]
        if bends > _MAX_BENDS and spans[i] > 2:
            placed.straight.add(i)
            placed.routes[i] = [edge.src, edge.dst]
            continue
        rows = _card(edge, short, limit)
        between = range(first + 1, last, 2)
        home = min(between, key=lambda r: (load[r], abs(2 * r - first - last), r))
        load[home] += len(rows) + 1
        route = [edge.src]
        for rank in range(first + 1, last):
            if rank == home and rows:
                wide = max(_width(r.text, placed.text, r.kind == "weight") for r in rows) + 0.14
                place = placed.add(rank, wide, placed.line * len(rows) + 0.06)
                placed.cards[place] = rows
            else:
                place = placed.add(rank, 0.0, _BEND)
            route.append(place)
        placed.routes[i] = [*route, edge.dst]


def _spine(graph: Graph, placed: _Placed) -> frozenset[int]:
    """The places on one longest path from layer to layer; live edges count first, then layers and ops."""
    n = len(graph.vertices)
    best = [(0, 0, 0, 0)] * n
    came: list[int | None] = [None] * n
    for v in range(n):
        for i in graph.in_edges[v]:
            edge = graph.edges[i]
            if len(placed.routes[i]) == 3:
                live, steps, layers, ops = best[edge.src]
                live += graph.live[i]
                score = (live, steps + 1, layers + len(edge.layers), ops + len(edge.ops))
                if score > best[v]:
                    best[v], came[v] = score, i
    spine: list[int] = []
    at: int | None = max(range(n), key=lambda v: best[v], default=None)
    while at is not None:
        spine.append(at)
        e = came[at]
        if e is not None:
            spine.append(placed.routes[e][1])
        at = None if e is None else graph.edges[e].src
    return frozenset(spine)


def _neighbours(placed: _Placed) -> tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]]:
    """For each place, those it is tied to in the rank before and the rank after, with how tightly.

    Bends hold on to each other so that long edges run level, and short edges are the spine.
    """
    before: list[list[tuple[int, float]]] = [[] for _ in placed.rank]
    after: list[list[tuple[int, float]]] = [[] for _ in placed.rank]
    n = next((i for i, rank in enumerate(placed.rank) if rank % 2), len(placed.rank))
    for i, route in enumerate(placed.routes):
        if i in placed.straight:
            continue
        for a, b in pairwise(route):
            tight = 3.0 if len(route) == 3 else 8.0 if a >= n and b >= n else 1.0
            after[a].append((b, tight))
            before[b].append((a, tight))
    return before, after


def _order(placed: _Placed) -> None:
    """Order each rank by barycentres of its neighbour, down and up; keep the order with fewest crossings."""
    before, after = _neighbours(placed)
    ranks = placed.ranks
    at = [0.0] * len(placed.rank)
    best, fewest = [list(r) for r in ranks], math.inf
    for sweep in range(_sweeps(placed, 14)):
        down = sweep % 2 == 1
        for rank in ranks if down else reversed(ranks):
            for i, place in enumerate(rank):
                at[place] = float(i)
            tied = before if down else after
            mean = {p: sum(at[q] for q, _ in tied[p]) / len(tied[p]) if tied[p] else at[p] for p in rank}
            rank.sort(key=lambda p: mean[p])
            for i, place in enumerate(rank):
                at[place] = float(i)
        crossings = sum(_crossings(rank, after, at) for rank in ranks)
        if crossings < fewest:
            best, fewest = [list(r) for r in ranks], crossings
    placed.ranks = best
    _take_sides(placed, after)


def _take_sides(placed: _Placed, after: Sequence[Sequence[tuple[int, float]]]) -> None:
    """Move single edges above or below the spine or to the rim, for fewer crossings and then for balance."""
    routes = sorted((r for r in placed.routes if placed.spine.isdisjoint(r[1:-1]) and len(r) > 2), key=len)
    at = [0.0] * len(placed.rank)
    size = len(placed.rank) + sum(map(len, after))

    def cost(ranks: Iterable[int]) -> tuple[int, float]:
        """Crossings right before and after ``ranks``, and how unevenly they lie around the spine."""
        crossings, tilt = 0, 0.0
        for rank in sorted({r + d for r in ranks for d in (-1, 0)}):
            crossings += _crossings(placed.ranks[rank], after, at)
            middle = next((at[p] for p in placed.ranks[rank] if p in placed.spine), None)
            if middle is not None:
                signed = ((placed.height[p] + 0.11) * _sign(at[p] - middle) for p in placed.ranks[rank])
                tilt += abs(sum(signed))
        return crossings, round(tilt, 6)

    def arrange(order: dict[int, list[int]]) -> None:
        placed.ranks = [order.get(r, rank) for r, rank in enumerate(placed.ranks)]
        for rank in order.values():
            for i, place in enumerate(rank):
                at[place] = float(i)

    arrange(dict(enumerate(placed.ranks)))
    if len(routes) * size > 400_000:
        return
    for route in routes * 2:
        ranks = [placed.rank[p] for p in route[1:-1]]
        best = {r: placed.ranks[r] for r in ranks}
        least = cost(ranks)
        for where in ("top", "above", "below", "bottom"):
            tried = {}
            for place, r in zip(route[1:-1], ranks, strict=True):
                rest = [p for p in placed.ranks[r] if p != place]
                spine = next((i for i, p in enumerate(rest) if p in placed.spine), len(rest))
                i = {"top": 0, "above": spine, "below": spine + 1, "bottom": len(rest)}[where]
                tried[r] = [*rest[:i], place, *rest[i:]]
            arrange(tried)
            if (found := cost(ranks)) < least:
                best, least = tried, found
        arrange(best)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _sweeps(placed: _Placed, wanted: int) -> int:
    """Fewer sweeps over large graphs."""
    return max(4, min(wanted, 200_000 // (len(placed.rank) + 1)))


def _crossings(rank: Sequence[int], after: Sequence[Sequence[tuple[int, float]]], at: Sequence[float]) -> int:
    seen: list[float] = []
    crossings = 0
    for place in rank:
        ends = sorted(at[q] for q, _ in after[place])
        crossings += sum(len(seen) - bisect_right(seen, end) for end in ends)
        for end in ends:
            insort(seen, end)
    return crossings


def _settle_y(placed: _Placed) -> None:
    """Pull every place to its neighbours' height, rank by rank, as far as order and spacing allow."""
    before, after = _neighbours(placed)
    y = [0.0] * len(placed.rank)
    for rank in placed.ranks:
        stacked = _spread([0.0] * len(rank), [1.0] * len(rank), _gaps(placed, rank))
        for place, at in zip(rank, stacked, strict=True):
            y[place] = at
    sweeps = _sweeps(placed, 60)
    for sweep in range(sweeps):
        down = sweep % 2 == 0
        for rank in placed.ranks if down else reversed(placed.ranks):
            wish, weight = [], []
            for p in rank:
                tied = before[p] if down else after[p]
                if sweep >= sweeps // 3 or not tied:
                    tied = [*before[p], *after[p]]
                total = sum(w for _, w in tied)
                mean = sum(w * y[q] for q, w in tied) / total if total else y[p]
                wish.append(0.0 if p in placed.spine else mean)
                weight.append(1e9 if p in placed.spine else total or 1.0)
            for p, at in zip(rank, _spread(wish, weight, _gaps(placed, rank)), strict=True):
                y[p] = at
    for _ in range(3):
        _level(placed, y)
    placed.y = [-at for at in y]


def _level(placed: _Placed, y: list[float]) -> None:
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


def _gaps(placed: _Placed, rank: Sequence[int]) -> list[float]:
    """Least distances between the middles of consecutive places."""
    return [_gap(placed, a, b) for a, b in pairwise(rank)]


def _gap(placed: _Placed, a: int, b: int) -> float:
    return (placed.height[a] + placed.height[b]) / 2 + 0.11


def _spread(wish: Sequence[float], weight: Sequence[float], gaps: Sequence[float]) -> list[float]:
    """The heights nearest to ``wish`` in weighted least squares that keep order and ``gaps``.

    Less the sum of gaps so far, this is isotonic regression: pool adjacent violators.
    """
    offsets = [0.0]
    for gap in gaps:
        offsets.append(offsets[-1] + gap)
    pools: list[tuple[float, float, int]] = []
    for want, heavy, offset in zip(wish, weight, offsets, strict=False):
        mean, total, count = want - offset, heavy, 1
        while pools and pools[-1][0] > mean:
            m, t, c = pools.pop()
            mean, total, count = (m * t + mean * total) / (t + total), t + total, c + count
        pools.append((mean, total, count))
    level = [mean for mean, _, count in pools for _ in range(count)]
    return [at + offset for at, offset in zip(level, offsets, strict=False)]


def _set_x(placed: _Placed) -> None:
    """Ranks as wide as what stands in them, and further apart where lines climb."""
    placed.span = [max((placed.width[p] for p in rank), default=0.0) for rank in placed.ranks]
    climb = [0.0] * len(placed.ranks)
    for i, route in enumerate(placed.routes):
        if i not in placed.straight:
            for a, b in pairwise(route):
                climb[placed.rank[a]] = max(climb[placed.rank[a]], abs(placed.y[a] - placed.y[b]))
    right = 0.0
    for span, steep in zip(placed.span, climb, strict=True):
        placed.x.append(right + span / 2)
        right += span + min(0.2 + 0.22 * steep, 1.1)


# Strips: a long chain of blocks is folded like lines of text


@dataclass(frozen=True, slots=True)
class _Strip:
    """The ranks ``first`` to ``last`` as one line of the picture, moved by (dx, dy)."""

    first: int
    last: int
    dx: float
    dy: float


def _fold(placed: _Placed) -> tuple[list[_Strip], float, float]:
    """The strips with their places, and the picture's width and height without margins.

    Folds are where a rank holds one vertex and nothing else; that vertex ends one strip and begins the next.
    """
    ranks = len(placed.ranks)
    if not ranks:
        return [], 1.0, 0.2
    low, high = _extent(placed, 0, ranks - 1)
    length = placed.x[-1] - placed.x[0]
    gap = 0.35
    ends = [ranks - 1]
    if length > 16 and length > 4 * (high - low) and not placed.straight:
        wide = 1.2 * max(12.0, math.sqrt(1.7 * length * (high - low + gap)))
        ends = _ends(placed, wide)
        while len(shorter := _ends(placed, wide := wide * 0.98)) == len(ends) > 1:
            ends = shorter
    strips: list[_Strip] = []
    top = width = 0.0
    begin = 0
    for end in ends:
        low, high = _extent(placed, begin, end)
        left = placed.x[begin] - placed.span[begin] / 2
        width = max(width, placed.x[end] + placed.span[end] / 2 - left)
        strips.append(_Strip(begin, end, -left, top - high))
        top -= high - low + gap
        begin = end
    return strips, width, -top - gap


def _ends(placed: _Placed, wide: float) -> list[int]:
    """The last rank of each strip, where strips are filled one after the other up to ``wide``."""
    last = len(placed.ranks) - 1
    cuts = [r for r in range(2, last, 2) if len(placed.ranks[r]) == 1]
    ends, begin = [], 0
    for here, following in pairwise([*cuts, last]):
        if placed.x[following] - placed.x[begin] > wide:
            ends.append(here)
            begin = here
    return [*ends, last]


def _extent(placed: _Placed, first: int, last: int) -> Point:
    """Lowest and highest point of the ranks ``first`` to ``last``."""
    inside = [p for rank in placed.ranks[first : last + 1] for p in rank]
    return (
        min(placed.y[p] - placed.height[p] / 2 for p in inside),
        max(placed.y[p] + placed.height[p] / 2 for p in inside),
    )


# Drawing


def _figure(graph: Graph, title: str) -> Figure:
    from matplotlib.figure import Figure

    placed = _place(graph)
    strips, inner, height = _fold(placed)
    side = 0.2 if len(strips) > 1 else 0.0
    head = 0.35 if title else 0.0
    legend = _legend(graph)
    legend_width = sum(w for *_, w in legend)
    width = max(inner + 2 * side, _width(title, 11, True), min(legend_width, 6.5))
    foot = 0.22 * _legend_lines(legend, width) + 0.22
    figure = Figure(figsize=(width + 2 * _MARGIN, height + head + foot + 2 * _MARGIN), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-_MARGIN - side, width - side + _MARGIN)
    axes.set_ylim(-height - foot - _MARGIN, head + _MARGIN)
    if title:
        _text(axes, (-side, head), title, 11, _INK, bold=True, ha="left", va="center")
    for strip in strips:
        _draw_strip(axes, graph, placed, strip)
    for upper, lower in pairwise(strips):
        _draw_fold(axes, placed, upper, lower, inner)
    _draw_legend(axes, legend, (-side, -height - foot + 0.22 * _legend_lines(legend, width) - 0.11), width)
    return figure


def _draw_strip(axes: Axes, graph: Graph, placed: _Placed, strip: _Strip) -> None:
    ports = _ports(graph, placed)
    for i, edge in enumerate(graph.edges):
        if strip.first <= placed.rank[edge.src] < strip.last:
            _draw_edge(axes, graph, placed, strip, i, ports)
    for i, edge in enumerate(graph.edges):
        if strip.first <= placed.rank[edge.src] < strip.last:
            for place in placed.routes[i]:
                if place in placed.cards:
                    _draw_card(axes, placed, strip, place, graph.live[i])
    for rank in range(strip.first, strip.last + 1):
        for place in placed.ranks[rank]:
            if place < len(graph.vertices):
                at = (placed.x[rank] + strip.dx, placed.y[place] + strip.dy)
                touching = [*graph.in_edges[place], *graph.out_edges[place]]
                dead = bool(touching) and not any(graph.live[e] for e in touching)
                again = 0 < rank == strip.first
                _draw_vertex(axes, graph, graph.vertices[place], at, pale=dead or again)


def _ports(graph: Graph, placed: _Placed) -> dict[tuple[int, bool], float]:
    """(edge, at its end?) → how far above the vertex's middle the edge meets it, in half heights.

    What comes level meets the middle; the others spread over the rest, in order.
    """
    ports: dict[tuple[int, bool], float] = {}
    for vertex in graph.vertices:
        for end, listed in ((True, graph.in_edges[vertex.id]), (False, graph.out_edges[vertex.id])):
            climb = {e: placed.y[placed.routes[e][-2 if end else 1]] - placed.y[vertex.id] for e in listed}
            for sign in (1, -1):
                off = sorted((e for e in listed if sign * climb[e] > 0.03), key=lambda e: sign * climb[e])
                for i, e in enumerate(off):
                    ports[e, end] = sign * 0.75 * (i + 1) / len(off) if len(listed) > 1 else 0.0
    return ports


def _rim(graph: Graph, vertex: Vertex, port: float) -> Point:
    """Where an edge meets the rim: the distance right or left of the middle, and above it."""
    if vertex.kind == "fork":
        return 0.0, 0.0
    if radius := _radius(graph, vertex):
        return radius * math.sqrt(1 - port * port), radius * port
    return _box_width(_vertex_text(graph, vertex)) / 2, (_box_height(graph, vertex) / 2 - 0.06) * port


def _draw_edge(
    axes: Axes, graph: Graph, placed: _Placed, strip: _Strip, index: int, ports: dict[tuple[int, bool], float]
) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path as Curve

    edge, route, live = graph.edges[index], placed.routes[index], graph.live[index]
    source, target = graph.vertices[edge.src], graph.vertices[edge.dst]
    colour = _PALE if not live else _INK if edge.ops else _THIN
    thick = 1.5 if live and edge.layers else 1.0 if edge.ops else 0.7

    def at(place: int, side: float, up: float = 0.0) -> Point:
        rank = placed.rank[place]
        return placed.x[rank] + side + strip.dx, placed.y[place] + up + strip.dy

    right, up = _rim(graph, source, ports.get((index, False), 0.0))
    points, codes = [at(edge.src, right, up)], [int(Curve.MOVETO)]

    def level(to: Point) -> None:
        points.append(to)
        codes.append(int(Curve.LINETO))

    def bend(to: Point) -> None:
        x, y = points[-1]
        middle = (x + to[0]) / 2
        points.extend([(middle, y), (middle, to[1]), to])
        codes.extend([int(Curve.CURVE4)] * 3)

    level(at(edge.src, placed.span[placed.rank[edge.src]] / 2, up))
    for place in route[1:-1]:
        half = placed.span[placed.rank[place]] / 2
        bend(at(place, -half))
        level(at(place, half))
    left, up = _rim(graph, target, ports.get((index, True), 0.0))
    bend(at(edge.dst, -placed.span[placed.rank[edge.dst]] / 2 - 0.06, up))
    arrow = target.kind != "fork"
    tip = at(edge.dst, -left, up)
    level((tip[0] - 0.05, tip[1]) if arrow else tip)
    style: Literal["solid", "dashed"] = "solid" if live else "dashed"
    curve = Curve(points, codes)
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, lw=thick, linestyle=style, zorder=1))
    if arrow:
        head = [tip, (tip[0] - 0.085, tip[1] + 0.033), (tip[0] - 0.085, tip[1] - 0.033)]
        axes.add_patch(Polygon(head, closed=True, facecolor=colour, edgecolor="none", zorder=2))


def _draw_card(axes: Axes, placed: _Placed, strip: _Strip, place: int, live: bool) -> None:
    rows = placed.cards[place]
    x, y = placed.x[placed.rank[place]] + strip.dx, placed.y[place] + strip.dy
    width, height = placed.width[place], placed.height[place]
    _box(axes, (x, y), width, height, "white", _THIN if live else _PALE, 0.045, 3)
    for i, row in enumerate(rows):
        ink, fill = _ROW_COLOURS.get(row.kind, _PLAIN_ROW) if live else (_THIN, "#f3f5f7")
        middle = (x, y + height / 2 - 0.03 - placed.line * (i + 0.5))
        _box(axes, middle, width - 0.06, placed.line - 0.02, fill, "none", 0.025, 4)
        _text(axes, middle, row.text, placed.text, ink, bold=row.kind == "weight")


def _draw_vertex(axes: Axes, graph: Graph, vertex: Vertex, at: Point, pale: bool) -> None:
    from matplotlib.patches import Circle

    line, fill = _VERTEX_COLOURS[vertex.kind]
    if pale:
        line, fill = _THIN, _THIN if vertex.kind == "fork" else "white"
    text = _vertex_text(graph, vertex)
    if radius := _radius(graph, vertex):
        axes.add_patch(Circle(at, radius, facecolor=fill, edgecolor=line, linewidth=1.2, zorder=5))
    else:
        round_ = 0.13 if vertex.kind in ("input", "output") else 0.03
        _box(axes, at, _box_width(text), _box_height(graph, vertex), fill, line, round_, 5)
    if text:
        _text(axes, at, text, 10 if vertex.kind == "product" else _TEXT, line, bold=True)
    if caption := _caption(vertex):
        _text(axes, (at[0], at[1] - _box_height(graph, vertex) / 2 - 0.08), caption, _SMALL, _THIN)


def _draw_fold(axes: Axes, placed: _Placed, upper: _Strip, lower: _Strip, width: float) -> None:
    """A dotted line from the end of a strip to the same vertex at the beginning of the next."""
    end, begin = placed.ranks[upper.last][0], placed.ranks[lower.first][0]
    x0, y0 = placed.x[upper.last] + upper.dx, placed.y[end] + upper.dy
    x1, y1 = placed.x[lower.first] + lower.dx, placed.y[begin] + lower.dy
    _, top = _extent(placed, lower.first, lower.last)
    between = top + lower.dy + 0.175
    xs = [x0, width + 0.2, width + 0.2, -0.2, -0.2, x1]
    axes.plot(xs, [y0, y0, between, between, y1, y1], color=_THIN, linewidth=0.8, linestyle=":", zorder=0)


def _box(
    axes: Axes, at: Point, width: float, height: float, fill: str, line: str, rounding: float, zorder: int
) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (at[0] - width / 2, at[1] - height / 2)
    style = f"round,pad=0,rounding_size={rounding}"
    axes.add_patch(
        FancyBboxPatch(
            corner,
            width,
            height,
            boxstyle=style,
            facecolor=fill,
            edgecolor=line,
            linewidth=0.8,
            zorder=zorder,
        )
    )


def _text(
    axes: Axes,
    at: Point,
    text: str,
    size: float,
    colour: str,
    *,
    bold: bool = False,
    ha: Literal["left", "center", "right"] = "center",
    va: Literal["center", "center_baseline"] = "center_baseline",
) -> None:
    weight = "bold" if bold else "normal"
    text = "".join(c if c.isprintable() else " " for c in text)  # XML has no way to write control characters
    axes.text(*at, text, fontsize=size, color=colour, weight=weight, ha=ha, va=va, zorder=6, parse_math=False)


# Legend


def _legend(graph: Graph) -> list[_Item]:
    """What the picture shows: (kind, words, width in inches) of each item."""
    kinds = {v.kind for v in graph.vertices}
    ops = {"weight" if op.layer is not None else op.kind for e in graph.edges for op in e.ops}
    words: Iterable[tuple[str, str, bool]] = (
        ("weight", "weight layer", "weight" in ops),
        ("activation", "activation", "activation" in ops),
        ("norm", "normalisation", "norm" in ops),
        ("other", "other operation", bool(ops - {"weight", "activation", "norm", "unknown"})),
        ("unknown", "unknown operation", "unknown" in ops),
        ("sum", "sum and its in-degree", "sum" in kinds),
        ("product", "product", "product" in kinds),
        ("fork", "fork", "fork" in kinds),
        ("identity", "identity", any(not e.ops for e in graph.edges)),
        ("dead", "on no input→output path", not all(graph.live)),
    )
    return [(kind, text, 0.45 + _width(text, 7)) for kind, text, there in words if there]


def _legend_rows(legend: list[_Item], width: float) -> Iterator[list[_Item]]:
    row: list[_Item] = []
    for item in legend:
        if row and sum(w for *_, w in row) + item[2] > width:
            yield row
            row = []
        row.append(item)
    if row:
        yield row


def _legend_lines(legend: list[_Item], width: float) -> int:
    return sum(1 for _ in _legend_rows(legend, width))


def _draw_legend(axes: Axes, legend: list[_Item], at: Point, width: float) -> None:
    from matplotlib.patches import Circle

    for line, row in enumerate(_legend_rows(legend, width)):
        x, y = at[0], at[1] - 0.22 * line
        for kind, text, wide in row:
            middle = (x + 0.1, y)
            if kind in ("sum", "product", "fork"):
                edge, fill = _VERTEX_COLOURS[kind]
                radius = _DOT if kind == "fork" else 0.08
                circle = Circle(middle, radius, facecolor=fill, edgecolor=edge, linewidth=0.8, zorder=3)
                axes.add_patch(circle)
                mark = {"sum": "Σ", "product": "×", "fork": ""}[kind]
                _text(axes, middle, mark, 6, edge, bold=True)
            elif kind in ("identity", "dead"):
                style = ("-", _THIN, 0.7) if kind == "identity" else ("--", _PALE, 1.0)
                axes.plot([x, x + 0.2], [y, y], linestyle=style[0], color=style[1], linewidth=style[2])
            else:
                _box(axes, middle, 0.2, 0.12, _ROW_COLOURS.get(kind, _PLAIN_ROW)[1], _THIN, 0.025, 3)
            _text(axes, (x + 0.26, y), text, 7, _THIN, ha="left")
            x += wide


# File


def _render(figure: Figure, suffix: str) -> bytes:
    """The figure as bytes that depend on nothing but the figure."""
    buffer = io.BytesIO()
    match suffix:
        case ".svg":
            from matplotlib.backends.backend_svg import FigureCanvasSVG

            FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata={"Date": None})
        case ".pdf":
            from matplotlib.backends.backend_pdf import FigureCanvasPdf

            FigureCanvasPdf(figure).print_figure(buffer, format="pdf", metadata={"CreationDate": None})
        case _:
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            wide, high = figure.get_size_inches()
            dpi = min(160.0, _MAX_SIDE / wide, _MAX_SIDE / high, math.sqrt(_MAX_PIXELS / (wide * high)))
            FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    """Write beside ``path`` first, so that it is never half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        cause = error.strerror or str(error)
        raise DagscaleError(
            f"cannot write {str(path)!r} ({cause}): name a file in a folder that exists and can be written"
        ) from error
