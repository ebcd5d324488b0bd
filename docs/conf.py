"""The documentation site: ``make docs`` builds it into ``docs/_build/html`` and fails on any warning."""

import importlib.metadata
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

try:
    release = importlib.metadata.version("dagscale")
except importlib.metadata.PackageNotFoundError:  # built from a checkout that is only on PYTHONPATH
    import dagscale

    release = dagscale.__version__

project = "dagscale"
author = "The dagscale authors"
copyright = "The dagscale authors, Apache-2.0"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

highlight_language = "none"  # blocks that name no language are commands and outputs
myst_enable_extensions = ["deflist", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"  # the notebooks are run at each build, and a cell that raises fails it
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell
nb_merge_streams = True

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes" as a list: autodoc describes the fields themselves

html_theme = "furo"
html_title = "dagscale"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False


def setup(app: Any) -> None:
    """Formulas as MathML, which every current browser shows by itself: no script, nothing fetched."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))


def _inline_math(writer: Any, node: Any) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _display_math(writer: Any, node: Any) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


html_math_renderer = "mathml"
