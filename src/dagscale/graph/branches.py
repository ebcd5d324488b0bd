"""Residual branches, read from a traced graph.

At an addition, the operand that the others are computed from is the trunk, and the others are the branch. Where none of
them is passed on unchanged (a block that changes its shape), the trunk is the one operand without a nonlinearity: the
shortcut. ``docs/depth.md`` says what is recognised and what is not.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from dagscale.graph.ends import Fold, Place, fold_before, passes
from dagscale.graph.model import Graph

BlockType = tuple[int, frozenset[str], bool]
Way = Literal["unchanged", "gated", "shortcut"]
_WAYS: tuple[Way, ...] = ("unchanged", "gated", "shortcut")


@dataclass(frozen=True, slots=True)
class Branch:
    """One residual addition: what is added to the trunk there.

    Attributes:
        addition: the vertex where it is added.
        origin: the trunk's vertex that it starts from.
        operands: the edges that deliver it; a parallel block has several.
        trunk: which trunk it is added to, from 0. An encoder and its decoder have one each.
        ends: the parameters that multiply the branch by c if all of them are multiplied by c.
        undone: parameters that then take 1/c, so that nothing else changes: the first layer of a gate that reads the
            branch's end, for example.
        inside: its other parameters.
        edges: the edges that it consists of.
        kind: what it is made of: weight layers on its longest way, their operators, whether it has a product.
        note: why nothing can multiply it; "" mostly. It then has no ends.
    """

    addition: int
    origin: int
    operands: tuple[int, ...]
    trunk: int
    ends: tuple[str, ...]
    undone: tuple[str, ...]
    inside: tuple[str, ...]
    edges: frozenset[int]
    kind: BlockType
    note: str = ""


@dataclass(frozen=True, slots=True)
class Residuals:
    """All residual branches of a graph.

    Attributes:
        branches: in topological order of their additions.
        unclear: additions outside any branch whose operands share an origin, at least one of them through a
            nonlinearity, and of which none can be told to be the trunk.
    """

    branches: tuple[Branch, ...]
    unclear: tuple[int, ...] = ()

    @property
    def additions(self) -> tuple[int, ...]:
        """Number of residual additions on each trunk."""
        count = Counter(branch.trunk for branch in self.branches)
        return tuple(count[trunk] for trunk in range(len(count)))


@dataclass(frozen=True, slots=True)
class _Found:
    addition: int
    origin: int
    operands: tuple[int, ...]
    fold: Fold
    edges: frozenset[int]


def find_branches(graph: Graph) -> Residuals:
    """The residual branches of a graph, with the parameters at their ends and inside."""
    above = _ancestors(graph)
    dominator = _dominators(graph)
    found: dict[int, _Found] = {}
    unclear: list[int] = []
    trunks: dict[int, int] = {}
    for vertex in graph.vertices:
        entering = [e for e in graph.in_edges[vertex.id] if graph.live[e]]
        if vertex.kind != "sum" or len(entering) < 2:
            continue
        told = _trunk(graph, entering, above, frozenset(found) | {f.origin for f in found.values()})
        if told is None:
            if _share_nonlinear_origin(graph, entering, above):
                unclear.append(vertex.id)
            continue
        origin, operands, fold = told
        if not operands:
            continue  # a long skip: two points of one trunk
        linked = _previous(origin, dominator, found)
        trunks[vertex.id] = trunks[linked] if linked is not None else len(set(trunks.values()))
        edges = _edges(graph, origin, operands, above, found, trunks, trunks[vertex.id])
        found[vertex.id] = _Found(vertex.id, origin, operands, fold, edges)
    folds = _only_whole(graph, {v: f.fold for v, f in found.items()})
    within = {graph.edges[e].dst for f in found.values() for e in f.edges if e not in f.operands}
    branches = tuple(_branch(graph, f, folds[v], trunks[v]) for v, f in found.items())
    return Residuals(branches, tuple(v for v in unclear if v not in within))


def _branch(graph: Graph, found: _Found, fold: Fold, trunk: int) -> Branch:
    powers = {} if fold.reason else fold.powers()
    names = dict.fromkeys(
        p.name for e in sorted(found.edges) for op in graph.edges[e].ops for p in op.params if p.name in graph.parameter
    )
    return Branch(
        found.addition,
        found.origin,
        found.operands,
        trunk,
        tuple(name for name in names if powers.get(name, 0) > 0),
        tuple(name for name in powers if powers[name] < 0),
        tuple(name for name in names if powers.get(name, 0) <= 0),
        found.edges,
        _kind(graph, found.edges),
        fold.reason,
    )


# --- trunk and operands ---------------------------------------------------------------------------------------


def _trunk(
    graph: Graph, entering: list[int], above: list[int], stop: frozenset[int]
) -> tuple[int, tuple[int, ...], Fold] | None:
    """Where the trunk passes an addition, and the edges of the branch; None if it cannot be told.

    Args:
        stop: vertices that are known to be the trunk's.
    """
    for way in _WAYS:
        told: list[tuple[int, int]] = []
        for e in entering:
            others = [i for i in entering if i != e]
            starts = [v for v in _reached(graph, e, way) if all(above[graph.edges[i].src] >> v & 1 for i in others)]
            if starts and (way != "shortcut" or all(_nonlinear(graph, max(starts), i) for i in others)):
                told.append((max(starts), e))
        if told:
            origin, trunk = max(told)
            stop |= {origin}
            reached = {e: _reached(graph, e, "unchanged") & stop for e in entering if e != trunk}
            branch = tuple(e for e in reached if not reached[e])
            later = max((v for e in reached for v in reached[e]), default=origin)
            return max(origin, later), branch, fold_before(graph, branch, stop)
    return None


def _reached(graph: Graph, e: int, way: Way) -> set[int]:
    """The vertices whose signal an edge delivers: unchanged (moved, averaged, times a constant), as one factor of a
    product (``gated``), or by linear layers and norms (``shortcut``). A sum is where another signal begins."""
    through = {"unchanged": ("fork", "select"), "gated": ("fork", "select", "product"), "shortcut": ("fork", "select")}
    kinds = ("pass", "pool", "weight", "norm", "shift", "scale") if way == "shortcut" else ("pass", "pool")
    found: set[int] = set()
    stack = [e]
    while stack:
        edge = graph.edges[stack.pop()]
        if edge.src in found or not all(op.kind in kinds and "softmax" not in op.name for op in edge.ops):
            continue
        if way != "shortcut" and not all(passes(op) for op in edge.ops):
            continue
        found.add(edge.src)
        if graph.vertices[edge.src].kind in through[way]:
            stack += [i for i in graph.in_edges[edge.src] if graph.live[i]]
    return found


def _nonlinear(graph: Graph, origin: int, e: int) -> bool:
    """Whether some way from ``origin`` along edge ``e`` passes an activation, a softmax or a product."""
    stack, seen = [e], set()
    while stack:
        i = stack.pop()
        edge = graph.edges[i]
        if any(op.kind == "activation" or "softmax" in op.name for op in edge.ops):
            return True
        if edge.src <= origin or i in seen:
            continue
        seen.add(i)
        if graph.vertices[edge.src].kind == "product":
            return True
        stack += [j for j in graph.in_edges[edge.src] if graph.live[j]]
    return False


def _share_nonlinear_origin(graph: Graph, entering: list[int], above: list[int]) -> bool:
    common = -1
    for e in entering:
        common &= above[graph.edges[e].src]
    if not common:
        return False
    origin = common.bit_length() - 1
    return any(_nonlinear(graph, origin, e) for e in entering)


# --- what stands where ----------------------------------------------------------------------------------------


def _ancestors(graph: Graph) -> list[int]:
    """For each vertex, itself and what it is computed from, as bits."""
    above: list[int] = []
    for v in range(len(graph.vertices)):
        bits = 1 << v
        for e in graph.in_edges[v]:
            if graph.live[e]:
                bits |= above[graph.edges[e].src]
        above.append(bits)
    return above


def _dominators(graph: Graph) -> list[int]:
    """For each vertex, the last one that every path to it passes; -1 where there is none."""
    found: list[int] = []
    for v in range(len(graph.vertices)):
        sources = [graph.edges[e].src for e in graph.in_edges[v] if graph.live[e]]
        at = sources[0] if sources else -1
        for other in sources[1:]:
            while at != other:
                if at > other:
                    at = found[at]
                else:
                    other = found[other]
        found.append(at)
    return found


def _previous(origin: int, dominator: list[int], found: dict[int, _Found]) -> int | None:
    """The residual addition that the trunk comes from at ``origin``."""
    at = origin
    while at >= 0:
        if at in found:
            return at
        at = dominator[at]
    return None


def _edges(
    graph: Graph,
    origin: int,
    operands: tuple[int, ...],
    above: list[int],
    found: dict[int, _Found],
    trunks: dict[int, int],
    trunk: int,
) -> frozenset[int]:
    """The edges of a branch: those whose signal goes nowhere else, back to the trunk, or to another one's additions."""
    edges = set(operands)
    heap = [-graph.edges[e].src for e in operands]
    heapq.heapify(heap)
    seen: set[int] = set()
    while heap:
        v = -heapq.heappop(heap)
        if v in seen or above[origin] >> v & 1 or (v in found and trunks[v] != trunk):
            continue
        seen.add(v)
        if all(e in edges for e in graph.out_edges[v] if graph.live[e]):
            for e in graph.in_edges[v]:
                if graph.live[e]:
                    edges.add(e)
                    heapq.heappush(heap, -graph.edges[e].src)
    return frozenset(edges)


def _kind(graph: Graph, edges: frozenset[int]) -> BlockType:
    """A branch's block type, which does not depend on its sizes."""
    longest: dict[int, int] = {}
    deepest = 0
    for e in sorted(edges, key=lambda e: (graph.edges[e].src, graph.edges[e].dst)):
        edge = graph.edges[e]
        depth = longest.get(edge.src, 0) + len(edge.layers)
        longest[edge.dst] = max(longest.get(edge.dst, 0), depth)
        deepest = max(deepest, depth)
    names = frozenset(op.name for e in edges for op in graph.edges[e].layers)
    return deepest, names, any(graph.vertices[graph.edges[e].src].kind == "product" for e in edges)


def _only_whole(graph: Graph, folds: dict[int, Fold]) -> dict[int, Fold]:
    """Folds whose parameters are used nowhere but at ends, with the same power of c; the others get a reason."""
    uses: dict[str, set[Place]] = {}
    for e, edge in enumerate(graph.edges):
        if graph.live[e]:
            for i, op in enumerate(edge.ops):
                for p in op.params:
                    uses.setdefault(p.name, set()).add((e, i, p.name))
    while True:
        taken: dict[tuple[str, int], set[Place]] = {}
        for fold in folds.values():
            for places, power in ((fold.ends, 1), (fold.undone, -1)) if not fold.reason else ():
                for place in places:
                    taken.setdefault((place[2], power), set()).add(place)
        shared = {
            v: name
            for v, fold in folds.items()
            if not fold.reason
            for places, power in ((fold.ends, 1), (fold.undone, -1))
            for _, _, name in places
            if taken[name, power] != uses[name]
        }
        if not shared:
            return folds
        folds = {
            v: replace(fold, reason=f"its end {shared[v]} is used elsewhere too") if v in shared else fold
            for v, fold in folds.items()
        }


__all__ = ["Branch", "Residuals", "find_branches"]
