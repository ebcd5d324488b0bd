"""Shows text from outside safely: names of modules, data sets and files are never taken for markup or commands."""

from __future__ import annotations

import io
import math
import random
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

AFFECTS_RESULTS = False

LONGEST = 600
"""Characters of a message at most; its middle is left out, since cause and mend stand at its ends."""

HIDDEN = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of what steers a terminal or is no text at all: controls, direction marks, half surrogates."""


def plain(text: str) -> str:
    """The text with every control character and half surrogate pair escaped, as ``\\x1b``; it has one line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in HIDDEN else c for c in text)


def line(text: str, longest: int = LONGEST) -> str:
    """The text as one line of at most ``longest`` characters."""
    text = plain(" ".join(text.split()))
    if len(text) <= longest:
        return text
    left = (longest - 3) // 2
    return f"{text[:left]} … {text[left + 3 - longest :]}"


def counted(number: int, thing: str) -> str:
    """So many of a thing, in words: ``1 run``, ``1,146 runs``."""
    return f"{number:,} {thing}{'s' * (number != 1)}"


def said(error: BaseException) -> str:
    """What an exception says: a user's own kind may raise when it is asked."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be had)"


def one_line(error: BaseException) -> str:
    """An exception on one line: its type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}" if said(error).strip() else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message alone."""
    lines = said(error).strip().splitlines()
    return lines[0].strip() if lines else "no message"


def reason(error: BaseException) -> str:
    """The first line of an exception's message, cut short, or its type where it has none."""
    text = said(error).strip()
    return line(text.splitlines()[0], 200) if text else type(error).__name__


def for_picture(text: str) -> str:
    """The text as matplotlib must get it to draw just this: a pair of ``$`` would begin a formula."""
    return plain(text).replace("$", r"\$")


def for_spreadsheet(text: str) -> str:
    """The text as a cell that no spreadsheet takes for a formula, since one that begins like one gets a ``'`` in front,
    and that steers no terminal on which the file is looked at."""
    return f"'{plain(text)}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else plain(text)


def cell(text: str) -> Text:
    """The text as rich prints it as it is."""
    load_rich()
    from rich.text import Text

    return Text("\n".join(map(plain, text.split("\n"))))


def load_rich() -> None:
    """Import rich: its import draws from Python's global random state, which stays as it was."""
    state = random.getstate()
    import rich.progress
    import rich.table  # noqa: F401

    random.setstate(state)


def rendered(value: RenderableType, html: bool = False, width: int = 100) -> str:
    """What rich prints, as text of so many columns, or as HTML."""
    load_rich()
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, record=True, force_jupyter=False)
    console.print(value)
    if html:
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


class Tabled:
    """Gives results that have a ``table`` to print the text of it, and its HTML in a notebook."""

    WIDTH = 100
    """Columns of the text."""

    def table(self) -> RenderableType:
        """To print with rich."""
        raise NotImplementedError

    def __str__(self) -> str:
        return rendered(self.table(), width=self.WIDTH)

    def _repr_html_(self) -> str:
        return rendered(self.table(), html=True, width=self.WIDTH)


def finite(value: Any) -> Any:
    """Plain data for JSON: None in place of each infinity and of what is no number, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
