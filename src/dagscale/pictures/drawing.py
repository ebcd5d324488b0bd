"""A picture of a graph: layers from left to right, edges that carry their ops as cards.

A layered drawing [Sugiyama et al. 1981]. Every edge gets a place of its own in each rank it passes, also
between two neighbouring layers, and its ops stand in one of those places. So what orders and spaces vertices
keeps labels, long edges and parallel edges apart too: lines bend only between ranks, and inside a rank only
their own card or vertex lies on them.
"""

from __future__ import annotations

from pathlib import Path

from dagscale.graph import Graph
from dagscale.pictures.coordinates import set_x, set_y
from dagscale.pictures.figure import make_figure
from dagscale.pictures.files import save
from dagscale.pictures.order import set_order
from dagscale.pictures.places import Placed, neighbours, place_graph
from dagscale.pictures.style import Point


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
    return save(lambda: make_figure(graph, _place(graph), title), path)


def layout(graph: Graph) -> dict[int, Point]:
    """Where each vertex stands, in inches: vertex id → (x to the right, y upward).

    Vertices of one layer share ``x``; along every edge ``x`` grows. A vertex's layer is its longest path from
    the inputs; what starts elsewhere stands right before the first vertex it feeds.
    """
    placed = _place(graph)
    return {v.id: placed.at(v.id) for v in graph.vertices}


def _place(graph: Graph) -> Placed:
    placed = place_graph(graph)
    ties = neighbours(placed)
    set_order(placed, ties)
    set_y(placed, ties)
    set_x(placed)
    return placed
