"""From the figure to the file: the same bytes for the same figure, and never half a file."""

from __future__ import annotations

import io
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.errors import DagscaleError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
STYLE: Any = {
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
"""Settings of matplotlib that would show in the picture, held fixed."""
_MAX_SIDE, _MAX_PIXELS = 30_000, 50e6
"""Of a PNG; what would be larger gets fewer dots per inch."""


def render(figure: Figure, suffix: str) -> bytes:
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


def write(path: Path, content: bytes) -> None:
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
