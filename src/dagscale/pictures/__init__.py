"""Pictures of graphs, and pictures in files."""

from dagscale.pictures.drawing import draw, layout

AFFECTS_RESULTS = False

__all__ = ["draw", "layout"]
