"""From the record of a forward to the graph: what does not reach an output goes, chains become edges."""

from __future__ import annotations

import heapq
from dataclasses import replace

from dagscale.graph import Edge, Graph, Op, OpKind, Parameter, ParamUse, Role, Vertex, VertexKind
from dagscale.tracing.memory import Region
from dagscale.tracing.recorder import Node

_MERGES = frozenset({"sum", "product", "concat", "select"})
_POINTWISE = frozenset({"activation", "pass", "pool", "norm", "sum", "product", "select"})
_MOVING = frozenset({"pass", "concat", "sum", "select", "product"})
_FOLD_LIMIT = 64
"""How many nodes a function of one signal may be written with before it is left unfolded."""


def reduce(nodes: list[Node], outputs: list[int], parameters: list[Parameter], notes: list[str]) -> Graph:
    """Reduce recorded nodes to a :class:`Graph`.

    1. Keep the nodes whose signal reaches an output.
    2. Read functions of one signal as what they are. A product all of whose factors are functions of one and
       the same signal (``x · sigmoid(x)``, tanh-GELU, ``x / rms(x)``) is an activation, or a norm if an
       average is taken; a signal's parts put together again (rotary embedding, ``cat([x2, x1])``) are that
       signal.
    3. A sum along the dimension of a ``stack`` is the sum of its parts; a sum whose only consumer is a sum
       melts into it, casts, dropout and constant factors in between notwithstanding. What is added up row by row, as
       the outputs of experts that rows are routed to, melts among its like alone: to a sum elsewhere it is one
       summand, however many experts there are, since a row has few of them.
    4. Vertices: inputs, merges of two or more signals, forks, outputs. All else is an op on an edge.
    """
    nodes = [replace(node) for node in nodes]
    live = _reaching(nodes, outputs)
    _fold_functions(nodes, live)
    live = _reaching(nodes, outputs)
    _melt_sums(nodes, outputs, live)
    live = _reaching(nodes, outputs)
    return _assemble(nodes, outputs, live, parameters, notes)


def _reaching(nodes: list[Node], outputs: list[int]) -> list[bool]:
    """For each node, whether its signal reaches an output."""
    live = [False] * len(nodes)
    for n in outputs:
        live[n] = nodes[n].signal
    for node in reversed(nodes):
        if live[node.id]:
            for parent in node.parents:
                live[parent] = True
    return live


def _fold_functions(nodes: list[Node], live: list[bool]) -> None:
    """Step 2, the outermost first, so that inner ones vanish with them."""
    for node in reversed(nodes):
        if not live[node.id] or len(node.parents) < 2:
            continue
        if node.kind in ("product", "select") and node.elementwise:
            found = _single_origin(nodes, node, _POINTWISE, same=True)
        elif node.kind in ("concat", "sum", "select"):
            found = _single_origin(nodes, node, _MOVING, same=False)
        else:
            continue
        if found is None:
            continue
        origin, inner = found
        if node.kind in ("concat", "sum") or (node.kind == "select" and not inner):
            parted = any(n.kind == "concat" or not all(n.whole) for n in (node, *inner))
            if not parted or any(n.params for n in (node, *inner)):
                continue
            node.kind, node.op = "pass", "rearrange"
            node.whole = (all(node.whole) and all(all(n.whole) for n in inner),)
        else:
            averaged = any(n.kind in ("pool", "norm") for n in inner)
            node.kind = "norm" if averaged else "activation"
            named = next((n.op for n in inner if n.kind == "activation"), node.op)
            node.op = "normalise" if averaged else ("square" if not inner else f"{named}-gate")
            node.whole = (not _partial(node, inner),)
        node.parents, node.parts = (origin,), ()
        params = [(p, r) for n in (node, *inner) for p, r in zip(n.params, n.places, strict=True)]
        node.params, node.places = tuple(p for p, _ in params), tuple(r for _, r in params)


def _single_origin(nodes: list[Node], exit_: Node, kinds: frozenset[str], same: bool) -> tuple[int, list[Node]] | None:
    """The one node of which ``exit_`` is a function through ``kinds`` of nodes alone, with those in between.

    Args:
        same: ask that every node in between reads all of its parents, but for the one node, of which all read one and
            the same part, or all of it.

    Returns:
        None if there is no such node within ``_FOLD_LIMIT`` steps.
    """
    heap = [-p for p in set(exit_.parents)]
    heapq.heapify(heap)
    inside: set[int] = set(heap)
    between: list[Node] = []
    while len(heap) > 1:
        node = nodes[-heapq.heappop(heap)]
        if (
            node.kind not in kinds
            or not node.parents
            or len(between) >= _FOLD_LIMIT
            or (node.kind == "product" and not (node.elementwise and (same or len(node.parents) == 1)))
        ):
            return None
        between.append(node)
        for parent in node.parents:
            if -parent not in inside:
                inside.add(-parent)
                heapq.heappush(heap, -parent)
    origin = -heap[0]
    partial = _partial(exit_, between)
    if same and partial:
        whole = any(p == origin and w for n in (exit_, *between) for p, w in zip(n.parents, n.whole, strict=True))
        if whole or len(partial) > 1 or partial - {(origin, part) for _, part in partial if part is not None}:
            return None
    return origin, between


def _partial(exit_: Node, between: list[Node]) -> set[tuple[int, Region | None]]:
    """The parents of which these nodes read a part, each with that part."""
    return {
        (parent, part)
        for node in (exit_, *between)
        for parent, all_read, part in zip(
            node.parents, node.whole, node.parts or (None,) * len(node.parents), strict=True
        )
        if not all_read
    }


def _consumers(nodes: list[Node], outputs: list[int], live: list[bool]) -> list[int]:
    """For each node, how many live reads of it there are; being an output is one."""
    count = [0] * len(nodes)
    for n in set(outputs):
        count[n] += 1
    for node in nodes:
        if live[node.id]:
            for parent in node.parents:
                count[parent] += 1
    return count


def _melt_sums(nodes: list[Node], outputs: list[int], live: list[bool]) -> None:
    """Step 3, in topological order, so that chains of sums melt into their last."""
    count = _consumers(nodes, outputs, live)
    for node in nodes:
        if not live[node.id]:
            continue
        if node.kind == "pool" and len(node.parents) == 1:
            stack = nodes[node.parents[0]]
            if stack.kind == "concat" and set(stack.axes) & set(node.axes) and count[stack.id] == 1 and all(node.whole):
                node.kind, node.op, node.elementwise = "sum", "sum", True
                node.parents, node.whole, node.via = stack.parents, stack.whole, stack.via
                node.params, node.places = stack.params, stack.places
        if node.kind == "sum" and len(node.parents) > 1:
            terms: list[tuple[int, bool, tuple[int, ...]]] = []
            for i, (parent, all_read) in enumerate(zip(node.parents, node.whole, strict=True)):
                way = node.via[i] if node.via else ()
                inner = nodes[parent]
                while _only_passes(inner) and count[inner.id] == 1 and all_read:
                    way = (inner.id, *way)
                    all_read = inner.whole[0]
                    inner = nodes[inner.parents[0]]
                melts = inner.kind == "sum" and (inner.elementwise or not node.elementwise)
                if melts and len(inner.parents) > 1 and count[inner.id] == 1 and all_read:
                    for j, (p, w) in enumerate(zip(inner.parents, inner.whole, strict=True)):
                        terms.append((p, w, (*(inner.via[j] if inner.via else ()), *way)))
                    node.params += inner.params
                    node.places += inner.places
                else:
                    terms.append((parent, node.whole[i], node.via[i] if node.via else ()))
            node.parents, node.whole, node.via = (tuple(t[k] for t in terms) for k in range(3))  # type: ignore[assignment]


def _only_passes(node: Node) -> bool:
    """Whether the node hands its one signal on as it is, up to a constant factor."""
    constant = node.kind == "pass" or (node.kind == "product" and node.elementwise)
    return constant and len(node.parents) == 1 and not node.params


def _parameters_of(nodes: list[Node], n: int, seen: dict[int, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of the parameters that the signal-free node ``n`` is computed from, the largest first."""
    if n not in seen:
        found: dict[str, int] = {}
        stack, visited = [n], {n}
        while stack:
            node = nodes[stack.pop()]
            if node.name and node.op == "parameter":
                found[node.name] = node.numel
            for parent in (*node.parents, *node.params):
                if parent not in visited:
                    visited.add(parent)
                    stack.append(parent)
        seen[n] = tuple(sorted(found, key=lambda name: -found[name]))
    return seen[n]


def _use(nodes: list[Node], name: str, role: Role, n: int) -> ParamUse:
    """A parameter as the signal-free node ``n`` gives it: itself, up to moves and constants; with a number added; or
    computed."""
    added, scaled = 0.0, False
    while (node := nodes[n]).op != "parameter":
        sources = (*node.parents, *node.params)
        scaled = scaled or node.kind == "product"
        adds = node.kind == "sum" and node.added != 0 and not added
        if len(sources) != 1 or not (adds or node.kind == "pass" or (node.kind == "product" and node.elementwise)):
            return ParamUse(name, role, False)
        added += node.added if adds else 0.0
        n = sources[0]
    return ParamUse(name, role, not added, 0.0 if scaled else added)


def _within(nodes: list[Node], name: str, n: int) -> Op | None:
    """The layer, the norm or the bias that a parameter is in what gives the signal-free node ``n``; a shift where it is
    no part of a layer but what layers read, as learned queries are.

    None where it is used as it is, or otherwise too, as a weight that is divided by a norm of its own.
    """
    found: list[Op | None] = []
    stack, seen = [n], {n}
    while stack:
        node = nodes[stack.pop()]
        for source, place in zip(node.params, node.places, strict=True):
            if _given(nodes, source).name == name and (node.kind != "pass" or node.layer is not None):
                found.append(_constant_op(nodes, node, name, source, place))
            if source not in seen:
                seen.add(source)
                stack.append(source)
    if found and None in found and _only_read(nodes, name, n):
        return Op("shift", nodes[n].op, nodes[n].module, (ParamUse(name, "shift"),))
    return found[0] if found and None not in found else None


def _only_read(nodes: list[Node], name: str, n: int) -> bool:
    """Whether a parameter comes to the signal-free node ``n`` through layers of other modules alone, as their data."""
    owner = name.rpartition(".")[0]
    stack, seen = [n], {n}
    while stack:
        node = nodes[stack.pop()]
        if node.op == "parameter" and node.name == name:
            return False
        weights = [s for s, place in zip(node.params, node.places, strict=True) if place in ("weight", "bias")]
        own = {_given(nodes, source).name.rpartition(".")[0] for source in weights}
        layer = node.kind == "weight" and "embedding" not in node.op and own == {node.module} != {owner}
        for source in weights if layer else (*node.parents, *node.params):
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return True


def _constant_op(nodes: list[Node], node: Node, name: str, source: int, place: str) -> Op | None:
    """What the signal-free ``node`` is to the parameter ``name`` that it reads from ``source``."""
    if node.kind == "norm" and place:
        return Op("norm", node.op, node.module, (ParamUse(name, "gain" if place == "weight" else "bias"),))
    if place == "bias" or (node.kind == "sum" and _is_bias(nodes, node, source)):
        return Op("shift", node.op, node.module, (ParamUse(name, "bias"),))
    if node.layer is None or "embedding" in node.op or (node.kind == "weight" and place != "weight"):
        return None
    if len(_given(nodes, source).shape) < 2:  # a number made of two vectors
        return None
    return Op("weight", _layer_name(node), node.module, (ParamUse(name, "weight"),), node.layer)


def _is_bias(nodes: list[Node], node: Node, source: int) -> bool:
    """Whether what a sum adds is the bias of the layer before it: one vector, or of stacked weights, as those of
    experts, a vector for each."""
    before = node.parents or tuple(n for n in node.params if n != source)
    layer = nodes[before[0]] if len(before) == 1 else node
    if layer.kind != "weight":
        return False
    shape = _given(nodes, source).shape
    stacks = (_given(nodes, n).shape for n, place in zip(layer.params, layer.places, strict=True) if place == "weight")
    return len(nodes[source].shape) <= 1 or any(len(s) == 3 and shape in (s[:2], s[::2]) for s in stacks)


def _given(nodes: list[Node], n: int) -> Node:
    """The parameter that a node hands on, a part of it or itself; the node itself where it is computed from others."""
    while (node := nodes[n]).kind == "pass" and node.layer is None and len((*node.parents, *node.params)) == 1:
        n = (*node.parents, *node.params)[0]
    return nodes[n]


def _op(nodes: list[Node], node: Node, seen: dict[int, tuple[str, ...]]) -> Op | None:
    """The op that ``node`` puts on an edge; None where nothing is worth naming."""
    uses: dict[str, ParamUse] = {}
    for source, place in zip(node.params, node.places, strict=True):
        for name in _parameters_of(nodes, source, seen):
            role: Role
            if node.kind == "norm" and place == "weight":
                role = "gain"
            elif place == "weight" or place == "bias":
                role = place
            elif node.kind == "sum":
                role = "bias" if _is_bias(nodes, node, source) else "shift"
            elif node.kind == "product":
                role = "gain"
            else:
                role = "other"
            use = _use(nodes, name, role, source)
            uses.setdefault(name, replace(use, within=_within(nodes, name, source)))
    kind: OpKind
    if node.kind in ("weight", "activation", "norm", "pool", "unknown"):
        kind = node.kind
    elif uses and node.kind == "sum":
        kind = "shift"
    elif uses and node.kind == "product":
        kind = "scale"
    else:
        kind = "pass"
        if not uses and node.op in (
            "add",
            "sub",
            "rsub",
            "clone",
            "_unsafe_view",
            "contiguous",
            "copy",
            "where",
        ):
            return None
    params = tuple(uses.values())
    if kind == "weight" and node.layer is not None:
        return Op("weight", _layer_name(node), node.module, params, node.layer)
    return Op(kind, node.op, node.module, params, factor=node.factor)


def _layer_name(node: Node) -> str:
    if node.layer is not None and node.layer.kernel:
        return f"conv{len(node.layer.kernel)}d"
    dense = ("addmm", "mm", "bmm", "baddbmm", "matmul", "_grouped_mm")
    return "linear" if node.op in dense else node.op


def _assemble(
    nodes: list[Node], outputs: list[int], live: list[bool], parameters: list[Parameter], notes: list[str]
) -> Graph:
    """Step 4."""
    count = _consumers(nodes, outputs, live)
    seen: dict[int, tuple[str, ...]] = {}
    vertices: list[Vertex] = []
    edges: list[Edge] = []
    pending: dict[int, tuple[int, tuple[Op, ...]]] = {}
    reached: set[str] = set()

    def vertex(kind: VertexKind, node: Node, label: str = "") -> int:
        vertices.append(Vertex(len(vertices), kind, label or node.op, node.shape))
        return len(vertices) - 1

    for node in nodes:
        if not live[node.id]:
            continue
        merge = len(node.parents) > 1
        ops: tuple[Op, ...] = ()
        op = None if node.kind == "source" else _op(nodes, node, seen)
        if op is not None:
            reached.update(use.name for use in op.params)
        if node.kind == "source":
            at = vertex("input", node, node.name)
        elif merge:
            kind: VertexKind = node.kind if node.kind in _MERGES else "concat"  # type: ignore[assignment]
            at = vertex(kind, node)
            for i, parent in enumerate(node.parents):
                src, before = pending[parent]
                way = [_op(nodes, nodes[n], seen) for n in (node.via[i] if node.via else ())]
                edges.append(Edge(src, at, (*before, *(op for op in way if op is not None))))
            ops = (op,) if op is not None and op.params else ()
        else:
            at, before = pending[node.parents[0]]
            ops = before if op is None else (*before, op)
        # A value read more than once is a place of its own, unless it already stands at a vertex.
        if count[node.id] > 1 and ops:
            fork = vertex("fork", node, "fork")
            edges.append(Edge(at, fork, ops))
            at, ops = fork, ()
        pending[node.id] = (at, ops)
    for i, n in enumerate(dict.fromkeys(outputs)):
        if live[n]:
            at, ops = pending[n]
            end = vertex("output", nodes[n], "output" if len(set(outputs)) == 1 else f"output {i}")
            edges.append(Edge(at, end, ops))
    known = tuple(replace(p, reached=p.name in reached) for p in parameters)
    return Graph(tuple(vertices), tuple(edges), known, tuple(notes))
