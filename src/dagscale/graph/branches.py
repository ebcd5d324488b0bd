"""Residual branches, read from a traced graph.

At an addition, the operand that the others are computed from is the trunk, and the others are the branch. Where none of
them is passed on unchanged (a block that changes its shape), the trunk is the one operand without a nonlinearity: the
shortcut. ``docs/how/depth.md`` says what is recognised and what is not.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from dagscale.graph.ends import Fold, fold_before, only_whole, passes
from dagscale.graph.model import Graph
from dagscale.graph.repeats import pattern

BlockType = tuple[int, frozenset[str], bool]
Way = Literal["unchanged", "gated", "joined", "shortcut"]
_WAYS: tuple[Way, ...] = ("unchanged", "gated", "joined", "shortcut")


@dataclass(frozen=True, slots=True)
class Branch:
    """One residual addition: what is added to the trunk there.

    Attributes:
        addition: the vertex where it is added.
        origin: the trunk's vertex that it starts from.
        operands: the edges that deliver it; a parallel block has several.
        trunk: which trunk it is added to, from 0. An encoder and its decoder have one each, and so has a residual
            network inside a branch.
        ends: the parameters that multiply the branch by c if all of them are multiplied by c.
        undone: parameters that then take 1/c, so that nothing else changes: the first layer of a gate that reads the
            branch's end, for example.
        inside: its other parameters.
        edges: the edges that it consists of.
        kind: what it is made of: weight layers on its longest way, their operators, whether it has a product; without
            the branches inside it.
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
        joined: edges that add to a trunk what is not computed from it: an embedding of each layer, the first layer's
            signal again.
        begun: parameters outside all branches that are added to parameters, and those that make what is added to: the
            first block of a trunk that begins as learned queries, which has no signal yet.
        shared: trunk → parameters outside all branches whose signals go to several branches of this trunk, and not to
            the trunk itself: what modulates all branches of a block, or of all blocks.
    """

    branches: tuple[Branch, ...]
    unclear: tuple[int, ...] = ()
    joined: tuple[int, ...] = ()
    begun: tuple[str, ...] = ()
    shared: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    @property
    def additions(self) -> tuple[int, ...]:
        """Number of residual additions on each trunk."""
        count = Counter(branch.trunk for branch in self.branches)
        return tuple(count[trunk] for trunk in range(len(count)))


@dataclass(frozen=True, slots=True)
class _Addition:
    """A sum at ``vertex``: where the trunk that passes it comes from, how, the edges of its branch, and those of what
    is added and does not come from the trunk."""

    vertex: int
    origin: int
    operands: tuple[int, ...]
    beside: tuple[int, ...]
    way: Way


def find_branches(graph: Graph) -> Residuals:
    """The residual branches of a graph, with the parameters at their ends and inside."""
    above = _ancestors(graph)
    told: dict[int, _Addition] = {}
    unclear: list[int] = []
    readouts = frozenset(use.edge for use in graph.layers if use.readout)
    for vertex in graph.vertices:
        entering = [e for e in graph.in_edges[vertex.id] if graph.live[e]]
        last = vertex.id in graph.beside_inputs and any(_reads_out(graph, e, readouts) for e in entering)
        if vertex.kind == "sum" and len(entering) > 1 and not last and not _softened(graph, vertex.id):
            addition = _addition(graph, vertex.id, entering, above, _trunk_vertices(told))
            if addition is not None:
                told[vertex.id] = addition
            elif _share_nonlinear_origin(graph, entering, above):
                unclear.append(vertex.id)
    found = _residuals(graph, above, told, unclear)
    if by_name := _by_name(graph, above, found):
        told = dict(sorted((told | by_name).items()))
        found = _residuals(graph, above, told, [v for v in unclear if v not in by_name])
    return found


def _reads_out(graph: Graph, e: int, readouts: frozenset[int]) -> bool:
    """Whether an edge delivers the output of readouts, and not of a block."""
    before = () if graph.edges[e].layers else graph.in_edges[graph.edges[e].src]
    return e in readouts or any(_reads_out(graph, other, readouts) for other in before)


def _by_name(graph: Graph, above: list[int], found: Residuals) -> dict[int, _Addition]:
    """Additions of which no operand can be told to be the trunk, and all but one of which end as other branches do, in
    parameters whose names differ in numbers only: the first branch of several streams that one signal becomes."""
    ends = {pattern(name) for branch in found.branches for name in branch.ends}
    stop = frozenset(v for branch in found.branches for v in (branch.addition, branch.origin))
    told = {}
    for v in found.unclear if ends else ():
        entering = [e for e in graph.in_edges[v] if graph.live[e]]
        operands = tuple(e for e in entering if _last(graph, e, stop) & ends)
        trunk = [e for e in entering if e not in operands]
        if operands and len(trunk) == 1:
            origin = graph.edges[trunk[0]].src
            if all(above[graph.edges[e].src] >> origin & 1 for e in operands):
                told[v] = _Addition(v, origin, operands, (), "unchanged")
    return told


def _last(graph: Graph, e: int, stop: frozenset[int]) -> set[str]:
    """The places of the parameters that multiply what an edge delivers."""
    fold = fold_before(graph, (e,), stop)
    return set() if fold.reason else {pattern(name) for name, power in fold.powers().items() if power > 0}


def _residuals(graph: Graph, above: list[int], told: Mapping[int, _Addition], unclear: Sequence[int]) -> Residuals:
    """The branches of these additions, those apart that turn out to be none."""
    joined = tuple(e for a in told.values() for e in a.beside)
    carried = {v: a.origin for v, a in told.items() if not a.operands}  # a long skip: two points of one trunk
    told = {v: a for v, a in told.items() if a.operands}
    aside = _aside(graph, told, above)
    walks = {v: _edges(graph, a, above, frozenset(), aside) for v, a in told.items()}
    within = {graph.edges[e].dst for v, a in told.items() for e in walks[v] if e not in a.operands}
    stop = _trunk_vertices(told)
    loose = {v for v, a in told.items() if a.way == "gated" or fold_before(graph, a.operands, stop).reason}
    told = {v: a for v, a in told.items() if v not in within & loose}  # without: a recurrence inside a branch
    aside = _aside(graph, told, above)
    outer = _nests(graph, told, above, aside)
    trunks = _trunks(graph, told, outer, carried)
    stop = _trunk_vertices(told)
    folds = only_whole(graph, {v: fold_before(graph, a.operands, stop) for v, a in told.items()})
    edges = {}
    for v, addition in told.items():
        others = frozenset(w for w in told if trunks[w] != trunks[v] and v not in outer[w])
        edges[v] = _edges(graph, addition, above, others, aside)
    branches = []
    for v, addition in told.items():
        own = edges[v].difference(*(edges[w] for w in told if v in outer[w]))
        branches.append(_branch(graph, addition, trunks[v], folds[v], edges[v], _kind(graph, own)))
    inside = {name for branch in branches for name in (*branch.ends, *branch.inside)}
    begun = tuple(name for name in _begun(graph) if name not in inside)
    on = {trunk: [branch for branch in branches if branch.trunk == trunk] for trunk in trunks.values()}
    shared = {trunk: _shared(graph, own, told, aside) for trunk, own in on.items()}
    return Residuals(tuple(branches), tuple(v for v in unclear if v not in within), joined, begun, shared)


def _begun(graph: Graph) -> dict[str, None]:
    """Parameters of what is added to parameters, and those that these are computed from."""
    found: dict[str, None] = {}
    for edge, live in zip(graph.edges, graph.live, strict=True):
        for i, op in enumerate(edge.ops) if live else ():
            if op.kind == "shift" and any(p.role == "shift" for p in op.params):
                found.update(dict.fromkeys(p.name for before in edge.ops[:i] for p in before.params))
                found.update(dict.fromkeys(p.name for p in op.params if not p.own))
    return found


def _branch(
    graph: Graph, addition: _Addition, trunk: int, fold: Fold, edges: frozenset[int], kind: BlockType
) -> Branch:
    powers = {} if fold.reason else fold.powers()
    names = dict.fromkeys(
        p.name for e in sorted(edges) for op in graph.edges[e].ops for p in op.params if p.name in graph.parameter
    )
    return Branch(
        addition.vertex,
        addition.origin,
        addition.operands,
        trunk,
        tuple(name for name in names if powers.get(name, 0) > 0),
        tuple(name for name in powers if powers[name] < 0),
        tuple(name for name in names if powers.get(name, 0) <= 0),
        edges,
        kind,
        fold.reason,
    )


# --- trunk and operands ---------------------------------------------------------------------------------------


def _trunk_vertices(told: Mapping[int, _Addition]) -> frozenset[int]:
    return frozenset(told) | {a.origin for a in told.values()}


def _addition(
    graph: Graph, vertex: int, entering: list[int], above: list[int], stop: frozenset[int]
) -> _Addition | None:
    """Where the trunk passes a sum, and the edges of the branch; None if it cannot be told.

    Args:
        stop: vertices that are known to be the trunk's.
    """
    for way in _WAYS:
        starts = list(_starts(graph, vertex, entering, above, stop, way))
        if starts:
            first = min if way == "gated" else max  # a gate is computed from the trunk, and comes after it
            whole = [start for start in starts if not start[2]]  # where all that is added comes from the trunk
            origin, trunk, apart = first(whole or starts)
            branch = [i for i in entering if i != trunk and i not in apart]
            reached = {i: _reached(graph, i, "unchanged") & (stop | {origin}) for i in branch}
            operands = tuple(i for i in branch if not reached[i])
            return _Addition(vertex, max({origin}.union(*reached.values())), operands, apart, way)
    return None


def _starts(
    graph: Graph, vertex: int, entering: list[int], above: list[int], stop: frozenset[int], way: Way
) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Where the trunk that passes a sum may come from: its vertex, the edge that it passes, and the edges of what is
    added and does not come from it."""
    for e in entering:
        others = [i for i in entering if i != e]
        for v in _reached(graph, e, way):
            fed = [i for i in others if above[graph.edges[i].src] >> v & 1]
            beside = tuple(i for i in others if i not in fed)
            if any(above[graph.edges[i].src] & ~above[v] for i in beside) or not _fits(graph, v, vertex):
                continue
            if way == "joined":
                told = v in stop and not fed
            elif way == "shortcut":
                told = bool(fed) and not beside and _is_shortcut(graph, v, e, others)
                told = told and not any(_is_modulated(graph, v, i, above) for i in fed)
            else:
                told = any(_is_read(graph, v, i, above) for i in fed)
            if told:
                yield v, e, beside


def _reached(graph: Graph, e: int, way: Way) -> set[int]:
    """The vertices whose signal an edge delivers: unchanged (moved, averaged, times a constant), as one factor of a
    product (``gated``), times gains (``joined``), or by linear layers and norms (``shortcut``). A sum is where another
    signal begins."""
    through = ("fork", "select", "product") if way == "gated" else ("fork", "select")
    kinds = _KINDS[way]
    found: set[int] = set()
    stack = [e]
    while stack:
        edge = graph.edges[stack.pop()]
        if edge.src in found or not all(op.kind in kinds and "softmax" not in op.name for op in edge.ops):
            continue
        if way != "shortcut" and not all(passes(op) or op.kind == "scale" for op in edge.ops):
            continue
        found.add(edge.src)
        if graph.vertices[edge.src].kind in through:
            stack += [i for i in graph.in_edges[edge.src] if graph.live[i]]
    return found


_KINDS: dict[Way, tuple[str, ...]] = {
    "unchanged": ("pass", "pool"),
    "gated": ("pass", "pool"),
    "joined": ("pass", "pool", "scale"),
    "shortcut": ("pass", "pool", "weight", "norm", "shift", "scale"),
}
"""Kinds of ops that the trunk may pass, for each way to tell it."""


def _is_shortcut(graph: Graph, origin: int, e: int, others: list[int]) -> bool:
    """Whether edge ``e`` of a sum is what a block that changes its shape adds its branch to.

    Not where a recurrent network reads its input at every step, through one layer for all of them.
    """
    names = {p.name for op in graph.edges[e].ops for p in op.params}
    uses = sum(p.name in names for edge in graph.edges for op in edge.ops for p in op.params)
    return uses == len(names) and all(_nonlinear(graph, origin, i) for i in others)


def _is_read(graph: Graph, origin: int, e: int, above: list[int]) -> bool:
    """Whether something on the way from ``origin`` along edge ``e`` reads its signal, and does not only move it or
    multiply another with it, as FiLM does with the half that is its gain [Perez et al. 2018]."""
    stack, seen = [e], set()
    while stack:
        edge = graph.edges[i := stack.pop()]
        if i in seen or not above[edge.src] >> origin & 1:
            continue
        seen.add(i)
        if any(
            op.params or op.kind not in ("pass", "pool", "scale", "shift") or "softmax" in op.name for op in edge.ops
        ):
            return True
        if edge.src != origin:
            stack += [j for j in graph.in_edges[edge.src] if graph.live[j]]
    return False


def _is_modulated(graph: Graph, origin: int, e: int, above: list[int]) -> bool:
    """Whether edge ``e`` delivers a signal from elsewhere times a gain that is linear in what ``origin`` holds, as with
    FiLM, whose shift is linear in it too."""

    def elsewhere(v: int) -> bool:
        return any(
            above[v] >> u & 1 and not above[u] >> origin & 1 and not above[origin] >> u & 1
            for u in range(len(graph.vertices))
        )

    for v in _reached(graph, e, "unchanged"):
        if graph.vertices[v].kind == "product":
            factors = [i for i in graph.in_edges[v] if graph.live[i]]
            gains = [i for i in factors if origin in _reached(graph, i, "shortcut")]
            if gains and any(elsewhere(graph.edges[i].src) for i in factors if i not in gains):
                return True
    return False


def _fits(graph: Graph, origin: int, vertex: int) -> bool:
    """Whether the signal at a sum can be the whole of the one at ``origin``: not one step out of a sequence."""
    start, end = graph.vertices[origin].shape, graph.vertices[vertex].shape
    return len(start) == len(end) or prod(start) == prod(end)


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


def _softened(graph: Graph, v: int) -> bool:
    """Whether what stands at a vertex is attention's scores, which are no trunk, even where they are summed.

    Their readers are a softmax whose shares then weigh something, and sums with other scores. A trunk is read by other
    things too (a layer, a norm, a gate), and the softmax that reads its end makes an output.
    """
    softened = False
    for e in graph.out_edges[v]:
        if not graph.live[e]:
            continue
        edge = graph.edges[e]
        first = next((op for op in edge.ops if op.kind != "pass"), None)
        kind = graph.vertices[edge.dst].kind
        if first is not None and "softmax" in first.name:
            softened = softened or kind == "product"
        elif first is not None or kind == "product":
            return False
    return softened


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


def _nests(
    graph: Graph, told: Mapping[int, _Addition], above: list[int], aside: frozenset[int]
) -> dict[int, frozenset[int]]:
    """For each addition, those whose branches it is inside of."""
    outer: dict[int, frozenset[int]] = {v: frozenset() for v in told}
    for v, addition in told.items():
        edges = _edges(graph, addition, above, frozenset(), aside) - set(addition.operands)
        for w in {graph.edges[e].dst for e in edges} & told.keys():
            if above[w] >> addition.origin & 1:
                outer[w] |= {v}
    return outer


def _trunks(
    graph: Graph, told: Mapping[int, _Addition], outer: Mapping[int, frozenset[int]], carried: Mapping[int, int]
) -> dict[int, int]:
    """Which trunk each addition is on: that of the last addition before it, inside the same branches, that every path
    to its origin passes or whose signal its origin holds, unchanged and maybe beside others.

    Args:
        carried: sums that a trunk passes without a branch → where it comes from.
    """
    dominator = _dominators(graph)
    trunks: dict[int, int] = {}
    for v, addition in told.items():
        at, seen = [addition.origin], set()
        before = -1
        while at:
            w = at.pop()
            if w in seen or w <= before:
                continue
            seen.add(w)
            if w in trunks and outer[w] == outer[v]:
                before = w
                continue
            at.append(dominator[w])
            at += [carried[w]] if w in carried else _parts(graph, w)
        trunks[v] = trunks[before] if before >= 0 else len(set(trunks.values()))
    return trunks


def _parts(graph: Graph, v: int) -> list[int]:
    """The vertices whose signals a fork, a selection or a concatenation hands on unchanged."""
    if graph.vertices[v].kind not in ("fork", "select", "concat"):
        return []
    entering = (graph.edges[e] for e in graph.in_edges[v] if graph.live[e])
    return [edge.src for edge in entering if all(op.kind == "pass" and passes(op) for op in edge.ops)]


def _aside(graph: Graph, told: Mapping[int, _Addition], above: list[int]) -> frozenset[int]:
    """The vertices from which a signal comes to outputs alone that no trunk ends in, as a router's does to an auxiliary
    loss."""
    leads: set[int] = set()  # to additions
    found: set[int] = set()
    onward = [{graph.edges[e].dst for e in edges if graph.live[e]} for edges in graph.out_edges]
    for v in reversed(range(len(graph.vertices))):
        if onward[v] & (leads | told.keys()):
            leads.add(v)
    ends = sum(1 << v for v in told if v not in leads)
    for v in reversed(range(len(graph.vertices))):
        if v not in told and not above[v] & ends and (onward[v] or graph.vertices[v].kind == "output"):
            found |= {v} if onward[v] <= found else set()
    return frozenset(found)


def _edges(
    graph: Graph, addition: _Addition, above: list[int], elsewhere: frozenset[int], aside: frozenset[int]
) -> frozenset[int]:
    """The edges of a branch: those whose signal goes nowhere else but to vertices ``aside``, back to the trunk, or to
    additions ``elsewhere``."""
    edges = set(addition.operands)
    heap = [-graph.edges[e].src for e in edges]
    heapq.heapify(heap)
    seen: set[int] = set()
    while heap:
        v = -heapq.heappop(heap)
        if v in seen or above[addition.origin] >> v & 1 or v in elsewhere:
            continue
        seen.add(v)
        if _inside(graph, v, edges, aside):
            for e in graph.in_edges[v]:
                if graph.live[e]:
                    edges.add(e)
                    heapq.heappush(heap, -graph.edges[e].src)
    return frozenset(edges)


def _inside(graph: Graph, v: int, edges: Collection[int], aside: frozenset[int]) -> bool:
    """Whether the signal at a vertex goes along these edges, or aside."""
    return all(e in edges or graph.edges[e].dst in aside for e in graph.out_edges[v] if graph.live[e])


def _shared(
    graph: Graph, branches: Sequence[Branch], told: Mapping[int, _Addition], aside: frozenset[int]
) -> tuple[str, ...]:
    """Parameters outside the branches of a trunk whose signals go to these alone."""
    own = {e for branch in branches for e in branch.edges}
    edges = set(own)
    for v in reversed(range(len(graph.vertices))):
        if graph.out_edges[v] and v not in told and v not in aside and _inside(graph, v, edges, aside):
            edges.update(e for e in graph.in_edges[v] if graph.live[e])
    uses: dict[str, set[bool]] = {}
    for e, edge in enumerate(graph.edges):
        for name in (p.name for op in edge.ops if graph.live[e] for p in op.params):
            uses.setdefault(name, set()).add(e in edges and e not in own)
    return tuple(name for name, found in uses.items() if found == {True} and name in graph.parameter)


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


__all__ = ["Branch", "Residuals", "find_branches"]
