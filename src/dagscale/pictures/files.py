"""Pictures in files: the same bytes for the same figure, and never half a file."""

from __future__ import annotations

import errno
import io
import math
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale import replacing
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


def check_path(path: str | Path) -> Path:
    """``path``, if a picture can be written there: asked before the work that leads to it.

    Raises:
        DagscaleError: if the suffix is unknown, matplotlib is missing, or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DagscaleError(f"cannot draw to {str(path)!r}: the suffix names the format, use one of {known}")
    if find_spec("matplotlib") is None:
        raise DagscaleError(MISSING)
    try:
        problem = (
            errno.EISDIR if path.is_dir()
            else errno.ENOENT if not path.parent.is_dir()
            else errno.EROFS if os.statvfs(path.parent).f_flag & os.ST_RDONLY
            else errno.EACCES if not os.access(path.parent, os.W_OK)
            else None
        )  # fmt: skip
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte in it
        raise _unwritable(path, str(error)) from None
    if problem is not None:
        raise _unwritable(path, os.strerror(problem))
    return path


MISSING = "drawing needs matplotlib: pip install dagscale[plot]"


def _unwritable(path: Path, cause: str) -> DagscaleError:
    return DagscaleError(
        f"cannot write {str(path)!r} ({cause}): name a file in a folder that exists and can be written"
    )


def save(make: Callable[[], Figure], path: str | Path) -> Path:
    """Make a figure and write it; its suffix, ``.svg``, ``.png`` or ``.pdf``, names the format.

    Raises:
        DagscaleError: as :func:`check_path`; no part of a file is left then, and an older one stays as it was.
    """
    path = check_path(path)
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise DagscaleError(MISSING) from error
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")  # of a name that the font has not: a box stands there
        content = render(make(), path.suffix.lower())
    write(path, content)
    return path


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
    try:
        replacing.write(path, content)
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error
