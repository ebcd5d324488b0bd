"""The legend: only what the picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from dagscale.graph import Graph
from dagscale.pictures.marks import draw_box, draw_circle, draw_text
from dagscale.pictures.style import DOT, PALE, PLAIN_ROW, ROW_COLOURS, THIN, VERTEX_COLOURS, Point, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.22
"""Height of a row of the legend."""


class Item(NamedTuple):
    """One entry, ``width`` in inches."""

    kind: str
    text: str
    width: float


def legend_items(graph: Graph) -> list[Item]:
    kinds = {v.kind for v in graph.vertices}
    ops = {"weight" if op.layer is not None else op.kind for e in graph.edges for op in e.ops}
    words = (
        ("weight", "weight layer", "weight" in ops),
        ("activation", "activation", "activation" in ops),
        ("norm", "normalisation", "norm" in ops),
        ("other", "other operation", bool(ops - ROW_COLOURS.keys())),
        ("unknown", "unknown operation", "unknown" in ops),
        ("sum", "sum and its in-degree", "sum" in kinds),
        ("product", "product", "product" in kinds),
        ("fork", "fork", "fork" in kinds),
        ("identity", "identity", any(not e.ops for e in graph.edges)),
        ("dead", "on no input→output path", not all(graph.live)),
    )
    return [Item(kind, text, 0.45 + text_width(text, 7)) for kind, text, there in words if there]


def legend_rows(items: Sequence[Item], width: float) -> list[list[Item]]:
    """The items in rows of at most ``width``."""
    rows: list[list[Item]] = []
    for item in items:
        if rows and sum(i.width for i in rows[-1]) + item.width <= width:
            rows[-1].append(item)
        else:
            rows.append([item])
    return rows


def draw_legend(axes: Axes, rows: Sequence[Sequence[Item]], at: Point) -> None:
    """Draw the legend; its first item begins at ``at``."""
    for line, row in enumerate(rows):
        x, y = at[0], at[1] - LINE * line
        for item in row:
            _draw_sign(axes, item.kind, x, y)
            draw_text(axes, (x + 0.26, y), item.text, 7, THIN, ha="left")
            x += item.width


def _draw_sign(axes: Axes, kind: str, x: float, y: float) -> None:
    middle = (x + 0.1, y)
    match kind:
        case "sum" | "product" | "fork":
            line, fill = VERTEX_COLOURS[kind]
            draw_circle(axes, middle, DOT if kind == "fork" else 0.08, fill, line, 0.8, 3)
            draw_text(axes, middle, {"sum": "Σ", "product": "×", "fork": ""}[kind], 6, line, bold=True)
        case "identity":
            axes.plot([x, x + 0.2], [y, y], linestyle="-", color=THIN, linewidth=0.7)
        case "dead":
            axes.plot([x, x + 0.2], [y, y], linestyle="--", color=PALE, linewidth=1.0)
        case _:
            draw_box(axes, middle, 0.2, 0.12, ROW_COLOURS.get(kind, PLAIN_ROW)[1], THIN, 0.025, 3)
