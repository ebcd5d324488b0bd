"""The computational graph as an immutable value: vertices where signals meet or part, edges that carry ops."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from dagscale.arguments import checked
from dagscale.errors import GraphError
from dagscale.frozen import FrozenMapping
from dagscale.typed import check_types

VertexKind = Literal["input", "fork", "sum", "product", "concat", "select", "output"]
OpKind = Literal["weight", "activation", "norm", "pool", "shift", "scale", "pass", "unknown"]
Role = Literal["weight", "bias", "gain", "shift", "other"]


@dataclass(frozen=True, slots=True)
class Layer:
    """The sizes of a weight layer.

    Attributes:
        fan_in: number of inputs that one output unit sums over (patch positions included).
        fan_out: number of outputs that one input unit feeds, as PyTorch counts them.
        kernel: spatial kernel size per dimension; ``()`` for dense layers and embeddings.
        groups: number of convolution groups.
    """

    fan_in: int
    fan_out: int
    kernel: tuple[int, ...] = ()
    groups: int = 1

    @property
    def kernel_size(self) -> float:
        """Square root of the number of taps: 3 for 3×3, √7 for 1×7 and for 7 in one dimension, 1 for dense.

        In two dimensions it is the side of the paper's Eq. 9; that taps count, and not sides, is measured in
        ``docs/how/kernels.md``.
        """
        return math.sqrt(math.prod(self.kernel))


@dataclass(frozen=True, slots=True)
class ParamUse:
    """One parameter, and the part that it plays in an op.

    Attributes:
        own: whether the op uses the parameter itself, up to a constant factor; False for what is computed from it, such
            as a gain ``1 + w`` or a standardised weight.
        offset: the number that the model adds to it and uses in its place, as the 1 of a gain ``1 + w``; 0 mostly.
        within: where the op uses what is computed from it without any signal, the layer or norm that the parameter
            itself is there: the projection of a table of positions, whose output attention's queries then meet.
    """

    name: str
    role: Role
    own: bool = True
    offset: float = 0.0
    within: Op | None = None

    def at(self, op: Op) -> tuple[Op, ParamUse]:
        """What it is used by itself, and how: ``op``, whose use this is, or the layer or norm within."""
        return (op, self) if self.within is None else (self.within, self.within.params[0])

    @property
    def scales(self) -> bool:
        """Whether a factor can be put into the parameter: into itself, or into it and its offset."""
        return self.own or self.offset != 0


@dataclass(frozen=True, slots=True)
class Op:
    """One operation that a signal passes on an edge, such as a linear layer or a ReLU.

    Attributes:
        kind: what it means for a signal; only ``activation`` adds to a path's depth.
        name: the operator, for example ``linear``, ``conv2d``, ``relu``.
        module: qualified name of the module that ran it, ``""`` for the model itself.
        params: the parameters it uses, the weight first.
        layer: fan and kernel, for ``weight`` ops only.
        factor: the number that the signal is multiplied by, where it is one that the model says; 0 where it is
            multiplied by what is no such number, as dropout's mask; 1 mostly.
    """

    kind: OpKind
    name: str
    module: str = ""
    params: tuple[ParamUse, ...] = ()
    layer: Layer | None = None
    factor: float = 1.0

    @property
    def looks_up(self) -> bool:
        """Whether it looks up rows of a table, as an embedding does."""
        return self.layer is not None and "embedding" in self.name

    @property
    def normalises(self) -> bool:
        """Whether it is a norm, and no softmax."""
        return self.kind == "norm" and "softmax" not in self.name

    @property
    def label(self) -> str:
        """The name a reader knows it by: the layer's for weights, else the operator's."""
        return self.layer_name if self.layer is not None else self.name

    @property
    def weight(self) -> str:
        """Name of the first parameter; ``""`` where there is none."""
        return self.params[0].name if self.params else ""

    @property
    def layer_name(self) -> str:
        """Qualified name of the layer: the weight's parameter name without a trailing ``.weight``."""
        return self.weight.removesuffix(".weight") if self.params else self.module


@dataclass(frozen=True, slots=True)
class Vertex:
    """A place where signals enter, meet, part or leave.

    Attributes:
        id: its index in ``Graph.vertices``, which is a topological order.
        shape: the example's shape here, batch dimension included; ``()`` if unknown.
        label: the operator or the input's name.
    """

    id: int
    kind: VertexKind
    label: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Edge:
    """A directed edge ``src`` → ``dst`` (vertex ids) and the ops a signal passes on it, in order."""

    src: int
    dst: int
    ops: tuple[Op, ...] = ()

    @property
    def depth(self) -> int:
        """Number of activations on the edge: its share of the paper's ``L_p``."""
        return sum(op.kind == "activation" for op in self.ops)

    @property
    def layers(self) -> tuple[Op, ...]:
        """The weight ops on the edge."""
        return tuple(op for op in self.ops if op.layer is not None)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One distinct parameter of the model; tied ones stand once.

    Attributes:
        name: the first of its qualified names.
        aliases: its other qualified names, where it is tied.
        reached: whether it acts on some input→output path.
        trainable: ``requires_grad`` at tracing time.
    """

    name: str
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    reached: bool = True
    trainable: bool = True

    @property
    def numel(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n


@dataclass(frozen=True, slots=True)
class LayerUse:
    """One application of a weight layer: the op, where it stands, and the in-degree it feeds."""

    op: Op
    edge: int
    in_degree: int
    readout: bool

    @property
    def name(self) -> str:
        return self.op.layer_name

    @property
    def layer(self) -> Layer:
        if self.op.layer is None:
            raise GraphError(f"op {self.op.name!r} is no weight layer")
        return self.op.layer


@checked(GraphError)
@dataclass(frozen=True, repr=False)
class Graph:
    """An immutable directed acyclic multigraph; parallel edges are distinct paths.

    Args:
        vertices: in topological order, ``vertices[i].id == i``.
        edges: every edge runs from a lower to a higher vertex id.
        parameters: the model's distinct parameters.
        notes: what the tracer wants a reader to know.

    Raises:
        GraphError: if ids are not positions, or an edge does not run forward.
    """

    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    parameters: tuple[Parameter, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for i, vertex in enumerate(self.vertices):
            if vertex.id != i:
                raise GraphError(f"vertex {vertex.id} stands at position {i}: number vertices 0, 1, 2, …")
        for edge in self.edges:
            if not 0 <= edge.src < edge.dst < len(self.vertices):
                raise GraphError(f"edge {edge.src}→{edge.dst} does not run forward between two vertices")

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; :meth:`from_dict` reads it back to an equal graph."""
        return {
            "format": 1,
            "vertices": [[v.kind, v.label, list(v.shape)] for v in self.vertices],
            "edges": [[e.src, e.dst, [_op_to_dict(op) for op in e.ops]] for e in self.edges],
            "parameters": [{**asdict(p), "shape": list(p.shape), "aliases": list(p.aliases)} for p in self.parameters],
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Graph:
        """The graph that :meth:`to_dict` wrote.

        Raises:
            GraphError: if it is no such data, or of a later format.
        """
        if raw.get("format") != 1:
            raise GraphError(f"a graph of format {raw.get('format')!r} cannot be read here: upgrade dagscale")
        try:
            graph = cls(
                tuple(Vertex(i, kind, label, tuple(shape)) for i, (kind, label, shape) in enumerate(raw["vertices"])),
                tuple(Edge(src, dst, tuple(map(_op_from_dict, ops))) for src, dst, ops in raw["edges"]),
                tuple(
                    Parameter(**{**p, "shape": tuple(p["shape"]), "aliases": tuple(p["aliases"])})
                    for p in raw["parameters"]
                ),
                tuple(raw["notes"]),
            )
            check_types(graph)
            layers = [op.layer for edge in graph.edges for op in edge.ops if op.layer is not None]
            sizes = [n for layer in layers for n in (layer.fan_in, layer.fan_out, layer.groups, *layer.kernel)]
            shapes = [*(v.shape for v in graph.vertices), *(p.shape for p in graph.parameters)]
            lengths = [n for shape in shapes for n in shape]
            if min(sizes, default=1) < 1 or min(lengths, default=0) < 0:
                raise ValueError("a size in it is not positive")
            return graph
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise GraphError(f"this is no graph ({error})") from None

    def to_json(self) -> str:
        """One JSON document; :meth:`from_json` reads it back to an equal graph."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Graph:
        """The graph that :meth:`to_json` wrote.

        Raises:
            GraphError: if the text is no such document.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GraphError(f"this is no graph ({error})") from None
        if not isinstance(raw, dict):
            raise GraphError(f"this is no graph (a JSON {type(raw).__name__})")
        return cls.from_dict(raw)

    @classmethod
    def from_edges(cls, edges: Iterable[tuple[int, int] | Edge], vertices: int | None = None) -> Graph:
        """A bare graph from vertex pairs: vertex 0 is the input, the last the output, the rest sums.

        Raises:
            GraphError: if one is no pair, or no graph comes of them.
        """
        try:
            listed = tuple(e if isinstance(e, Edge) else Edge(*e) for e in edges)
        except TypeError:
            raise GraphError("edges are pairs of vertices, (source, destination), or of class Edge") from None
        n = vertices if vertices is not None else 1 + max((e.dst for e in listed), default=0)
        if not 1 <= n <= 10**7:
            raise GraphError(f"a graph has one vertex at least and ten million at most, not {n}")
        kinds: list[VertexKind] = ["sum"] * n
        kinds[0] = "input"
        if n > 1:
            kinds[-1] = "output"
        return cls(tuple(Vertex(i, kind) for i, kind in enumerate(kinds)), listed)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Ids of the input vertices."""
        return tuple(v.id for v in self.vertices if v.kind == "input")

    @property
    def outputs(self) -> tuple[int, ...]:
        """Ids of the output vertices."""
        return tuple(v.id for v in self.vertices if v.kind == "output")

    @cached_property
    def in_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each vertex, the indices of the edges that enter it."""
        lists: list[list[int]] = [[] for _ in self.vertices]
        for i, edge in enumerate(self.edges):
            lists[edge.dst].append(i)
        return tuple(map(tuple, lists))

    @cached_property
    def out_edges(self) -> tuple[tuple[int, ...], ...]:
        """For each vertex, the indices of the edges that leave it."""
        lists: list[list[int]] = [[] for _ in self.vertices]
        for i, edge in enumerate(self.edges):
            lists[edge.src].append(i)
        return tuple(map(tuple, lists))

    @cached_property
    def live(self) -> tuple[bool, ...]:
        """For each edge, whether it lies on some input→output path."""
        forward = [v.kind == "input" for v in self.vertices]
        for v in range(len(self.vertices)):
            forward[v] = forward[v] or any(forward[self.edges[e].src] for e in self.in_edges[v])
        backward = [v.kind == "output" for v in self.vertices]
        for v in reversed(range(len(self.vertices))):
            backward[v] = backward[v] or any(backward[self.edges[e].dst] for e in self.out_edges[v])
        return tuple(forward[e.src] and backward[e.dst] for e in self.edges)

    @cached_property
    def in_degree(self) -> tuple[int, ...]:
        """For each vertex, its number of live incoming edges."""
        degree = [0] * len(self.vertices)
        for edge, alive in zip(self.edges, self.live, strict=True):
            degree[edge.dst] += alive
        return tuple(degree)

    @cached_property
    def layers(self) -> tuple[LayerUse, ...]:
        """Every application of a weight layer on a live edge, in topological order of where it feeds.

        ``in_degree`` is Eq. 12's ``d_in``: the number of live summands at the first sum that the layer's
        output reaches; 1 if it reaches a weight layer, a product, a fork (a vertex with one incoming edge)
        or an output first. Concatenations are looked through. ``readout`` marks a layer whose output
        reaches outputs of the model through neither another weight layer nor a sum, but for those `behind_readouts`.
        """
        uses = []
        for i in sorted(range(len(self.edges)), key=lambda i: (self.edges[i].dst, i)):
            edge = self.edges[i]
            if not self.live[i]:
                continue
            weights = edge.layers
            for op in weights:
                last = op is weights[-1]
                reads_out = last and self._ends(edge, self.behind_readouts)
                uses.append(LayerUse(op, i, self._fed_by(edge.dst) if last else 1, reads_out))
        return tuple(uses)

    @cached_property
    def weightless(self) -> tuple[bool, ...]:
        """For each edge, whether what it delivers is made of the inputs without any parameter."""
        found = [False] * len(self.edges)
        for vertex in self.vertices:
            entering = [found[e] for e in self.in_edges[vertex.id] if self.live[e]]
            here = all(entering) if entering else vertex.kind == "input"
            for e in self.out_edges[vertex.id]:
                found[e] = here and not any(op.params for op in self.edges[e].ops)
        return tuple(found)

    @cached_property
    def beside_inputs(self) -> frozenset[int]:
        """The sums and products that only put functions of the model's inputs to its outputs, such as ``x + net(x)``
        and ``net(x) * std + mean``."""
        return frozenset(v for v in range(len(self.vertices)) if self._puts_inputs_to(v))

    def _puts_inputs_to(self, vertex: int) -> bool:
        if self.vertices[vertex].kind not in ("sum", "product"):
            return False
        entering = [e for e in self.in_edges[vertex] if self.live[e]]
        onward = [self.edges[e] for e in self.out_edges[vertex] if self.live[e]]
        made = [e for e in entering if not self.weightless[e]]
        if len(made) != 1 or len(entering) < 2 or len(onward) != 1 or onward[0].layers:
            return False
        return self.vertices[onward[0].dst].kind == "output" or self._puts_inputs_to(onward[0].dst)

    @cached_property
    def behind_readouts(self) -> frozenset[int]:
        """The vertices where nothing but outputs of the last layers and functions of the model's inputs come together
        on the way to its outputs: those `beside_inputs`, and sums of several heads, as of a dueling network's two.
        Layers that are used elsewhere too, as a recurrence's are, are no heads."""
        found: set[int] = set()
        for vertex in reversed(self.vertices):
            if vertex.kind not in ("input", "output") and self._leads_out(vertex.id, found):
                found.add(vertex.id)
        while wrong := {v for v in found if not (self._leads_out(v, found) and self._only_heads_enter(v, found))}:
            found -= wrong
        return frozenset(found)

    def _leads_out(self, vertex: int, found: Set[int]) -> bool:
        """Whether all ways on are to outputs or to what is ``found``, past no layer."""
        onward = [self.edges[e] for e in self.out_edges[vertex] if self.live[e]]
        return bool(onward) and all(self._ends(edge, found) and not edge.layers for edge in onward)

    def _ends(self, edge: Edge, found: Set[int]) -> bool:
        """Whether it leads to an output or to what is ``found``."""
        return self.vertices[edge.dst].kind == "output" or edge.dst in found

    def _only_heads_enter(self, vertex: int, found: Set[int]) -> bool:
        """Whether nothing but heads, functions of the inputs and what is ``found`` is put together there."""
        kind = self.vertices[vertex].kind
        if kind not in ("sum", "product") or vertex in self.beside_inputs:
            return True
        return kind == "sum" and all(
            self.weightless[e] or self._is_head(self.edges[e], found) or self.edges[e].src in found
            for e in self.in_edges[vertex]
            if self.live[e]
        )

    def _is_head(self, edge: Edge, found: Set[int]) -> bool:
        """Whether a layer is the last on it that is used for nothing but outputs."""
        names = {p.name for op in edge.layers[-1:] for p in op.params}
        return bool(names) and all(self._ends(self.edges[e], found) for name in names for e in self._used_on[name])

    @cached_property
    def _used_on(self) -> Mapping[str, list[int]]:
        """The edges that a layer's parameter is used on."""
        found: dict[str, list[int]] = {}
        for e, edge in enumerate(self.edges):
            for name in {p.name for op in edge.layers for p in op.params}:
                found.setdefault(name, []).append(e)
        return found

    def _fed_by(self, vertex: int) -> int:
        """In-degree at the first sum reached from ``vertex``."""
        while self.vertices[vertex].kind != "sum":
            onward = [self.edges[e] for e in self.out_edges[vertex] if self.live[e]]
            through = self.vertices[vertex].kind in ("concat", "select") or vertex in self.beside_inputs
            if not through or len(onward) != 1 or onward[0].layers:
                return 1
            vertex = onward[0].dst
        return self.in_degree[vertex]

    @cached_property
    def parameter(self) -> Mapping[str, Parameter]:
        """A mapping from every qualified name, aliases included, to its parameter."""
        table = {alias: p for p in self.parameters for alias in (p.name, *p.aliases)}
        return FrozenMapping(table)

    def __repr__(self) -> str:
        return f"Graph({len(self.vertices)} vertices, {len(self.edges)} edges, {len(self.parameters)} parameters)"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def __str__(self) -> str:
        """One line a vertex, one indented line an incoming edge."""
        lines = []
        for v in self.vertices:
            shape = f" {v.shape}" if v.shape else ""
            label = f" {v.label}" if v.label and v.label != v.kind else ""
            degree = f"  in-degree {self.in_degree[v.id]}" if v.kind == "sum" else ""
            lines.append(f"v{v.id} {v.kind}{label}{shape}{degree}")
            for e in self.in_edges[v.id]:
                ops = " → ".join(op.label for op in self.edges[e].ops) or "identity"
                dead = "" if self.live[e] else "  (dead)"
                lines.append(f"    ← v{self.edges[e].src}: {ops}{dead}")
        return "\n".join(lines)


def _op_to_dict(op: Op) -> dict[str, Any]:
    layer = None if op.layer is None else {**asdict(op.layer), "kernel": list(op.layer.kernel)}
    return {
        "kind": op.kind, "name": op.name, "module": op.module, "params": [_use_to_list(p) for p in op.params],
        "layer": layer, **({} if op.factor == 1 else {"factor": op.factor}),
    }  # fmt: skip


def _use_to_list(use: ParamUse) -> list[Any]:
    rest: list[Any] = [use.offset, *([_op_to_dict(use.within)] if use.within is not None else [])]
    return [use.name, use.role, use.own, *(rest if any(rest) else [])]


def _use_from_list(name: str, role: Role, own: bool, offset: float = 0.0, within: Any = None) -> ParamUse:
    return ParamUse(name, role, own, offset, None if within is None else _op_from_dict(within))


def _op_from_dict(raw: Mapping[str, Any]) -> Op:
    layer = raw["layer"]
    return Op(
        raw["kind"], raw["name"], raw["module"], tuple(_use_from_list(*use) for use in raw["params"]),
        None if layer is None else Layer(**{**layer, "kernel": tuple(layer["kernel"])}), raw.get("factor", 1.0),
    )  # fmt: skip
