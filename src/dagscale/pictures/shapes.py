"""Shapes of vertices: circles for sums, products and forks, boxes for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dagscale.graph import Graph, Vertex
from dagscale.pictures.style import DOT, RADIUS, SMALL, TEXT, Point, elide, text_width


@dataclass(frozen=True, slots=True)
class Shape:
    """What a vertex looks like.

    Attributes:
        text, caption: what is written in it and under it.
        width, height: its own, without the caption.
        radius: of a circle; 0 for a box.
    """

    text: str
    caption: str
    width: float
    height: float
    radius: float

    @property
    def room(self) -> Point:
        """Width and height that it needs; its middle stays in the middle."""
        if not self.caption:
            return self.width, self.height
        return max(self.width, text_width(self.caption, SMALL)), self.height + 0.36

    def rim(self, port: float) -> Point:
        """Where an edge meets the rim: the distance right or left of the middle, and above it.

        Args:
            port: the height above the middle, from -1 to 1.
        """
        if self.radius == DOT:
            return 0.0, 0.0
        if self.radius:
            return self.radius * math.sqrt(1 - port * port), self.radius * port
        return self.width / 2, (self.height / 2 - 0.06) * port


def shape(graph: Graph, vertex: Vertex) -> Shape:
    """The vertex's shape, with room on its rim for every arrow."""
    arrows = len(graph.in_edges[vertex.id])
    match vertex.kind:
        case "fork":
            return _circle("", DOT)
        case "sum" | "product":
            text = "×" if vertex.kind == "product" else f"Σ{graph.in_degree[vertex.id]}"
            return _circle(text, min(max(RADIUS, 0.04 * arrows), 0.45))
        case _:
            text = "concat" if vertex.kind == "concat" else elide(vertex.label or vertex.kind)
            caption = "×".join(map(str, vertex.shape)) if vertex.kind in ("input", "output") else ""
            width = max(text_width(text, TEXT, True) + 0.22, 0.5)
            return Shape(text, caption, width, min(max(0.28, 0.1 + 0.06 * arrows), 1.0), 0.0)


def _circle(text: str, radius: float) -> Shape:
    return Shape(text, "", 2 * radius, 2 * radius, radius)
