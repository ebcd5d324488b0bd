"""Repeated blocks shown once: ``layers.0–31 ×32``, in tables and in pictures."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from dagscale.graph.model import Edge, Graph, Op, Vertex

_MAX_PERIOD = 24
"""The longest pattern, in segments between cut vertices, that is looked for in a graph."""
_MAX_HUBS = 8
"""How many of the most read vertices are tried as hubs: what all blocks of a stretch read."""


@lru_cache(maxsize=1 << 14)
def pattern(name: str) -> str:
    """The name with every number left open: the place of a parameter in its block."""
    return re.sub(r"\d+", "*", name)


# --- rows of a table --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Folded:
    """Several rows as one.

    Attributes:
        name: the common name, with ranges for the numbers that differ: ``layers.0–31.mlp``.
        times: how many rows it stands for.
        index: the position of the first of them.
    """

    name: str
    times: int
    index: int


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    figures: Hashable
    times: int
    index: int


def fold_rows(names: Sequence[str], figures: Sequence[Hashable]) -> list[Folded]:
    """Rows whose names differ in one running number, and whose blocks have the same figures, as one.

    A block is what follows a number in the name (``layers.7.`` …). Blocks with consecutive numbers fold if
    they have the same rows in the same order; then blocks inside blocks do.

    Args:
        names: dotted names in the order of the table.
        figures: what else a row shows; rows fold only if it is equal.
    """
    rows = [_Row(name, f, 1, i) for i, (name, f) in enumerate(zip(names, figures, strict=True))]
    return [Folded(row.name, row.times, row.index) for row in _fold_level(rows, 0)]


def _fold_level(rows: list[_Row], start: int) -> list[_Row]:
    """Fold at the first number at or after character ``start`` of the names, then within."""
    blocks: list[tuple[str, int | None, list[_Row]]] = []
    for row in rows:
        match = re.compile(r"(?:(?<=\.)|^)(\d+)(?=\.|$)").search(row.name, start)
        head, number = (row.name[: match.start()], int(match[1])) if match else (row.name, None)
        if blocks and number is not None and blocks[-1][:2] == (head, number):
            blocks[-1][2].append(row)
        else:
            blocks.append((head, number, [row]))
    out: list[_Row] = []
    i = 0
    while i < len(blocks):
        head, number, block = blocks[i]
        if number is None:
            out += block
            i += 1
            continue
        tails = _tails(head, number, block)
        n = 1
        while (
            i + n < len(blocks)
            and blocks[i + n][:2] == (head, number + n)
            and _tails(head, number + n, blocks[i + n][2]) == tails
        ):
            n += 1
        label = str(number) if n == 1 else f"{number}–{number + n - 1}"
        inner = [
            replace(row, name=head + label + row.name[len(head) + len(str(number)) :], times=row.times * n)
            for row in block
        ]
        out += _fold_level(inner, len(head) + len(label))
        i += n
    return out


def _tails(head: str, number: int, block: list[_Row]) -> list[tuple[str, Hashable]]:
    cut = len(head) + len(str(number))
    return [(row.name[cut:], row.figures) for row in block]


# --- graphs -----------------------------------------------------------------------------------------------


def fold(graph: Graph) -> Graph:
    """A smaller graph to look at: of repeated stretches between cut vertices only the first is kept.

    A cut vertex is one that no edge passes by; a residual network has one behind each block. Where a pattern
    of such stretches repeats, with the same ops and shapes, one copy stays, its layers named by range
    (``layers.0–31.mlp``) and its last vertex marked ``×32``. What every block of a decoder reads, the encoder's
    output, is not held against it. Path counts are those of what is shown, so take them from ``graph`` itself.
    A graph without repetition comes back as it is.
    """
    hubs: set[int] = set()
    cuts = _cut_vertices(graph, hubs)
    often = sorted(graph.vertices, key=lambda v: -len(graph.out_edges[v.id]))[:_MAX_HUBS]
    for vertex in often:
        more = _cut_vertices(graph, hubs | {vertex.id})
        if len(graph.out_edges[vertex.id]) >= 4 and len(more) >= len(cuts) + 4:
            hubs, cuts = hubs | {vertex.id}, more
    segments = [_segment(graph, a, b) for a, b in pairwise(cuts)]
    kept: list[tuple[int, int, int]] = []  # first segment, period, times
    i = 0
    while i < len(segments):
        period, times = _repetition(segments, i)
        kept.append((i, period, times))
        i += period * times
    if all(times == 1 for _, _, times in kept):
        return graph
    return _rebuild(graph, cuts, kept)


def _cut_vertices(graph: Graph, hubs: set[int]) -> list[int]:
    """The vertices that no edge passes by, those from ``hubs`` aside; hubs are among them."""
    reach, cuts = 0, [0] if graph.vertices else []
    for vertex in graph.vertices[1:]:
        v = vertex.id
        if v - 1 not in hubs:
            reach = max(reach, *(graph.edges[e].dst for e in graph.out_edges[v - 1]), 0)
        if (reach <= v and graph.in_edges[v]) or v in hubs:
            cuts.append(v)
    return cuts


def _segment(graph: Graph, a: int, b: int) -> Hashable:
    """What the stretch after cut vertex ``a`` up to ``b`` looks like, names left out."""
    vertices = tuple((v.kind, v.shape) for v in graph.vertices[a + 1 : b + 1])
    edges = tuple(
        (
            edge.src - a if edge.src >= a else -1 - edge.src,
            edge.dst - a,
            graph.live[e],
            tuple((op.kind, op.name, op.layer) for op in edge.ops),
        )
        for v in range(a + 1, b + 1)
        for e in graph.in_edges[v]
        for edge in (graph.edges[e],)
    )
    return vertices, edges


def _repetition(segments: list[Hashable], i: int) -> tuple[int, int]:
    """The pattern that starts at ``i`` and covers most: its period and how often it comes."""
    best = (1, 1)
    for period in range(1, min(_MAX_PERIOD, (len(segments) - i) // 2) + 1):
        pattern, times = segments[i : i + period], 1
        while segments[i + times * period : i + (times + 1) * period] == pattern:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _rebuild(graph: Graph, cuts: list[int], kept: list[tuple[int, int, int]]) -> Graph:
    old = [*range(cuts[0] + 1)]
    marks: dict[int, str] = {}
    renamed: dict[int, tuple[Op, ...]] = {}  # old edge → its ops, names as ranges
    follows: dict[int, int] = {}  # end of the last copy → end of the first
    for first, period, times in kept:
        a, b = cuts[first], cuts[first + period]
        old += range(a + 1, b + 1)
        if times > 1:
            marks[b] = f"×{times}"
            last = cuts[first + (times - 1) * period]
            follows[cuts[first + times * period]] = b
            for v in range(a + 1, b + 1):
                for e, twin in zip(graph.in_edges[v], graph.in_edges[v - a + last], strict=True):
                    pairs = zip(graph.edges[e].ops, graph.edges[twin].ops, strict=True)
                    renamed[e] = tuple(_as_range(op, other) for op, other in pairs)
    old += range(cuts[-1] + 1, len(graph.vertices))
    new = {v: i for i, v in enumerate(old)}
    vertices = tuple(
        Vertex(i, graph.vertices[v].kind, " ".join(filter(None, (graph.vertices[v].label, marks.get(v)))),
               graph.vertices[v].shape)
        for i, v in enumerate(old)
    )  # fmt: skip
    edges = tuple(
        Edge(new[follows.get(edge.src, edge.src)], new[v], renamed.get(e, edge.ops))
        for v in old
        for e in graph.in_edges[v]
        for edge in (graph.edges[e],)
    )
    return Graph(vertices, edges, graph.parameters, graph.notes)


def _as_range(op: Op, last: Op) -> Op:
    """``op`` of the first copy under the names of the first and last together."""
    params = tuple(replace(p, name=_range(p.name, q.name)) for p, q in zip(op.params, last.params, strict=False))
    return replace(op, module=_range(op.module, last.module), params=params)


def _range(first: str, last: str) -> str:
    """``layers.0.a``, ``layers.31.a`` → ``layers.0–31.a``; the first name where they differ otherwise."""
    one, other = first.split("."), last.split(".")
    if len(one) != len(other):
        return first
    differ = [i for i, (x, y) in enumerate(zip(one, other, strict=True)) if x != y]
    if len(differ) != 1 or not (one[differ[0]].isdigit() and other[differ[0]].isdigit()):
        return first
    i = differ[0]
    return ".".join([*one[:i], f"{one[i]}–{other[i]}", *one[i + 1 :]])
