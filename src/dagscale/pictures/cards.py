"""Cards: what is written on an edge, one row an op."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby

from dagscale.graph import Edge, Graph, Op
from dagscale.pictures.style import elide

_TELLING = ("weight", "activation", "unknown", "norm", "pool")
"""Kinds of op, the most telling first."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a card."""

    text: str
    kind: str = "pass"


def card(edge: Edge, short: dict[str, str], limit: int) -> tuple[Row, ...]:
    """What an edge's card says, in at most ``limit`` rows; the least telling ops go first.

    Args:
        short: each layer's name → the name to show; see :func:`short_names`.
    """
    rows = []
    for row, same in groupby(_row(op, short) for op in edge.ops):
        times = len(list(same))
        rows.append(row if times == 1 else Row(f"{row.text} ×{times}", row.kind))
    if len(rows) <= limit:
        return tuple(rows)
    if not limit:
        return ()
    kept = sorted(sorted(range(len(rows)), key=lambda i: _rank(rows[i]))[: limit - 1])
    return (*(rows[i] for i in kept), Row(f"+{len(rows) - len(kept)} more"))


def short_names(graph: Graph) -> dict[str, str]:
    """Each layer's name → its last parts, as few as tell it from every other layer."""
    names = {op.layer_name for edge in graph.edges for op in edge.layers}
    ending = Counter(tail for name in names for tail in _tails(name))
    return {name: next((t for t in _tails(name) if ending[t] == 1), name) for name in names}


def _tails(name: str) -> list[str]:
    """``a.b.c`` → ``c``, ``b.c``, ``a.b.c``; a bare number never stands alone."""
    parts = name.split(".")
    tails = [".".join(parts[i:]) for i in reversed(range(len(parts)))]
    return [t for t in tails if not t.isdecimal()] or [name]


def _row(op: Op, short: dict[str, str]) -> Row:
    if op.layer is not None:
        return Row(elide(short[op.layer_name]), "weight")
    name = op.name.strip("_").removeprefix("native_").removeprefix("cudnn_")
    return Row(elide(name or op.kind), op.kind)


def _rank(row: Row) -> int:
    return _TELLING.index(row.kind) if row.kind in _TELLING else len(_TELLING)
