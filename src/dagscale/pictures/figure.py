"""The figure: strips of vertices, edges and cards, a title above and the legend below."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from dagscale.graph import Graph
from dagscale.pictures.legend import LINE, draw_legend, legend_items, legend_rows
from dagscale.pictures.marks import draw_box, draw_circle, draw_text
from dagscale.pictures.places import Placed
from dagscale.pictures.strips import BETWEEN, Strip, make_strips
from dagscale.pictures.style import (
    INK,
    MARGIN,
    PALE,
    PLAIN_ROW,
    ROW_COLOURS,
    SMALL,
    TEXT,
    THIN,
    VERTEX_COLOURS,
    Point,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Ports = dict[tuple[int, bool], float]


def make_figure(graph: Graph, placed: Placed, title: str) -> Figure:
    from matplotlib.figure import Figure

    strips, inner, height = make_strips(placed)
    side = 0.2 if len(strips) > 1 else 0.0
    head = 0.35 if title else 0.0
    items = legend_items(graph)
    width = max(inner + 2 * side, text_width(title, 11, True), min(sum(i.width for i in items), 6.5))
    rows = legend_rows(items, width)
    foot = LINE * len(rows) + 0.22
    figure = Figure(figsize=(width + 2 * MARGIN, height + head + foot + 2 * MARGIN), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-MARGIN - side, width - side + MARGIN)
    axes.set_ylim(-height - foot - MARGIN, head + MARGIN)
    if title:
        draw_text(axes, (-side, head), title, 11, INK, bold=True, ha="left", va="center")
    ports = _ports(graph, placed)
    for strip in strips:
        _draw_strip(axes, graph, placed, strip, ports)
    for upper, lower in pairwise(strips):
        _draw_fold(axes, placed, upper, lower, inner)
    draw_legend(axes, rows, (-side, -height - foot + LINE * len(rows) - 0.11))
    return figure


def _ports(graph: Graph, placed: Placed) -> _Ports:
    """(edge, at its end?) → how far above the vertex's middle the edge meets it, in half heights.

    What comes level meets the middle; the others spread over the rest, in order.
    """
    ports: _Ports = {}
    for vertex in graph.vertices:
        for end, listed in ((True, graph.in_edges[vertex.id]), (False, graph.out_edges[vertex.id])):
            climb = {e: placed.y[placed.routes[e][-2 if end else 1]] - placed.y[vertex.id] for e in listed}
            for sign in (1, -1):
                off = sorted((e for e in listed if sign * climb[e] > 0.03), key=lambda e: sign * climb[e])
                for i, e in enumerate(off):
                    ports[e, end] = sign * 0.75 * (i + 1) / len(off) if len(listed) > 1 else 0.0
    return ports


def _draw_strip(axes: Axes, graph: Graph, placed: Placed, strip: Strip, ports: _Ports) -> None:
    inside = [i for i, e in enumerate(graph.edges) if strip.first <= placed.rank[e.src] < strip.last]
    for i in inside:
        _draw_edge(axes, graph, placed, strip, i, ports)
    for i in inside:
        for place in placed.routes[i]:
            if place in placed.cards:
                _draw_card(axes, placed, strip, place, graph.live[i])
    for rank in range(strip.first, strip.last + 1):
        for place in placed.ranks[rank]:
            if place < len(graph.vertices):
                touching = [*graph.in_edges[place], *graph.out_edges[place]]
                dead = bool(touching) and not any(graph.live[e] for e in touching)
                again = 0 < rank == strip.first
                _draw_vertex(axes, graph, placed, strip, place, pale=dead or again)


def _draw_edge(axes: Axes, graph: Graph, placed: Placed, strip: Strip, index: int, ports: _Ports) -> None:
    from matplotlib.patches import PathPatch, Polygon
    from matplotlib.path import Path

    edge, live = graph.edges[index], graph.live[index]
    colour = PALE if not live else INK if edge.ops else THIN
    thick = 1.5 if live and edge.layers else 1.0 if edge.ops else 0.7
    style: Literal["solid", "dashed"] = "solid" if live else "dashed"

    def at(place: int, side: float, up: float = 0.0) -> Point:
        x, y = placed.at(place)
        return x + side + strip.dx, y + up + strip.dy

    def half(place: int) -> float:
        return placed.span[placed.rank[place]] / 2

    points: list[Point] = []
    codes: list[int] = []

    def level(to: Point) -> None:
        points.append(to)
        codes.append(int(Path.LINETO if codes else Path.MOVETO))

    def bend(to: Point) -> None:
        x, y = points[-1]
        middle = (x + to[0]) / 2
        points.extend([(middle, y), (middle, to[1]), to])
        codes.extend([int(Path.CURVE4)] * 3)

    right, up = placed.shapes[edge.src].rim(ports.get((index, False), 0.0))
    level(at(edge.src, right, up))
    level(at(edge.src, half(edge.src), up))
    for place in placed.routes[index][1:-1]:
        bend(at(place, -half(place)))
        level(at(place, half(place)))
    left, up = placed.shapes[edge.dst].rim(ports.get((index, True), 0.0))
    bend(at(edge.dst, -half(edge.dst) - 0.06, up))
    x, y = at(edge.dst, -left, up)
    arrow = graph.vertices[edge.dst].kind != "fork"
    level((x - 0.05, y) if arrow else (x, y))
    curve = Path(points, codes)
    axes.add_patch(PathPatch(curve, fill=False, edgecolor=colour, lw=thick, linestyle=style, zorder=1))
    if arrow:
        head = [(x, y), (x - 0.085, y + 0.033), (x - 0.085, y - 0.033)]
        axes.add_patch(Polygon(head, closed=True, facecolor=colour, edgecolor="none", zorder=2))


def _draw_card(axes: Axes, placed: Placed, strip: Strip, place: int, live: bool) -> None:
    x, y = strip.at(placed, place)
    width, height = placed.width[place], placed.height[place]
    draw_box(axes, (x, y), width, height, "white", THIN if live else PALE, 0.045, 3)
    for i, row in enumerate(placed.cards[place]):
        ink, fill = ROW_COLOURS.get(row.kind, PLAIN_ROW) if live else (THIN, PLAIN_ROW[1])
        middle = (x, y + height / 2 - 0.03 - placed.line * (i + 0.5))
        draw_box(axes, middle, width - 0.06, placed.line - 0.02, fill, "none", 0.025, 4)
        draw_text(axes, middle, row.text, placed.text, ink, bold=row.kind == "weight")


def _draw_vertex(axes: Axes, graph: Graph, placed: Placed, strip: Strip, place: int, pale: bool) -> None:
    kind, shape = graph.vertices[place].kind, placed.shapes[place]
    x, y = strip.at(placed, place)
    line, fill = VERTEX_COLOURS[kind]
    if pale:
        line, fill = THIN, THIN if kind == "fork" else "white"
    if shape.radius:
        draw_circle(axes, (x, y), shape.radius, fill, line, 1.2, 5)
    else:
        rounding = 0.13 if kind in ("input", "output") else 0.03
        draw_box(axes, (x, y), shape.width, shape.height, fill, line, rounding, 5)
    if shape.text:
        draw_text(axes, (x, y), shape.text, 10 if kind == "product" else TEXT, line, bold=True)
    if shape.caption:
        draw_text(axes, (x, y - shape.height / 2 - 0.08), shape.caption, SMALL, THIN)


def _draw_fold(axes: Axes, placed: Placed, upper: Strip, lower: Strip, width: float) -> None:
    """A dotted line from the end of a strip to the same vertex at the beginning of the next."""
    (place,) = placed.ranks[lower.first]
    x0, y0 = upper.at(placed, place)
    x1, y1 = lower.at(placed, place)
    between = lower.top + BETWEEN / 2
    xs = [x0, width + 0.2, width + 0.2, -0.2, -0.2, x1]
    axes.plot(xs, [y0, y0, between, between, y1, y1], color=THIN, linewidth=0.8, linestyle=":", zorder=0)
