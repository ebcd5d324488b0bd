"""How the tables of the evidence pages are written in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 2) -> str:
    """A table whose figures are to the right of so many columns of words."""
    align = ["---" if i < left else "---:" for i in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, align, *body))
