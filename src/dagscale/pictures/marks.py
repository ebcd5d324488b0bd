"""Marks on the page: rounded boxes, circles, text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dagscale.pictures.style import Point
from dagscale.shown import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_box(
    axes: Axes, at: Point, width: float, height: float, fill: str, line: str, rounding: float, zorder: int
) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (at[0] - width / 2, at[1] - height / 2)
    style = f"round,pad=0,rounding_size={rounding}"
    box = FancyBboxPatch(corner, width, height, style, facecolor=fill, edgecolor=line, linewidth=0.8, zorder=zorder)
    axes.add_patch(box)


def draw_circle(axes: Axes, at: Point, radius: float, fill: str, line: str, linewidth: float, zorder: int) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle(at, radius, facecolor=fill, edgecolor=line, linewidth=linewidth, zorder=zorder))


def draw_text(
    axes: Axes,
    at: Point,
    text: str,
    size: float,
    colour: str,
    *,
    bold: bool = False,
    ha: Literal["left", "center"] = "center",
    va: Literal["center", "center_baseline"] = "center_baseline",
) -> None:
    weight = "bold" if bold else "normal"
    text = "".join(c if c.isprintable() else " " for c in text)  # XML has no way to write control characters
    axes.text(*at, plain(text), fontsize=size, color=colour, weight=weight, ha=ha, va=va, zorder=6, parse_math=False)
