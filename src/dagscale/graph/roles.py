"""What each parameter is to its network: embedding, input, hidden, readout, norm, bias, or another vector."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from dagscale.graph.model import Graph, LayerUse, Op

Position = Literal["input", "inner", "readout"]
ParameterRole = Literal["embedding", "input", "hidden", "readout", "norm", "bias", "vector"]

_WEIGHTS: dict[Position, ParameterRole] = {"input": "input", "inner": "hidden", "readout": "readout"}


def positions(graph: Graph) -> Iterator[tuple[LayerUse, str, Position]]:
    """Every use of a layer, its weight (the largest ones, where it is computed from several), and where it stands.

    Weights of layers that make a weight from what is fixed are ``inner``, each in the layer that is its own.
    """
    fresh = [v.kind == "input" for v in graph.vertices]  # whether what stands there has passed no weight layer
    for v, entering in enumerate(graph.in_edges):
        live = [graph.edges[e] for e in entering if graph.live[e]]
        fresh[v] = fresh[v] or (bool(live) and all(fresh[e.src] and not e.layers for e in live))
    for use in graph.layers:
        weights = [
            p.name for p in use.op.params if p.role == "weight" and p.within is None and p.name in graph.parameter
        ]
        if weights:
            edge = graph.edges[use.edge]
            reads = fresh[edge.src] and use.op is edge.layers[0]
            position: Position = "readout" if use.readout else "input" if reads else "inner"
            most = max(graph.parameter[name].numel for name in weights)
            yield from ((use, name, position) for name in weights if graph.parameter[name].numel == most)
    for e, edge in enumerate(graph.edges):
        for param in (p for op in edge.ops if graph.live[e] for p in op.params if p.name in graph.parameter):
            if param.within is not None and param.within.layer is not None:
                yield LayerUse(param.within, e, 1, False), param.name, "inner"


def roles(graph: Graph) -> dict[str, ParameterRole]:
    """The role of every parameter, by its first name.

    ``embedding`` is a table that is looked up in, tied to the readout or not; ``input`` another layer that reads the
    model's input; ``readout`` one whose output is the model's, through neither a sum nor another layer; ``hidden`` a
    weight between them. ``norm`` is a norm's gain or bias, ``bias`` what a layer adds to its output, ``vector``
    anything else: gains of branches, position tables, depthwise kernels, and what is on no input→output path.

    A hidden *matrix*, which is what Muon is for, has the role ``hidden`` and at least two dimensions.
    """
    found: dict[str, ParameterRole] = {}
    for use, name, position in positions(graph):
        if "embedding" in use.op.name:
            found[name] = "embedding"
        elif use.layer.groups > 1 and graph.parameter[name].shape[1:2] == (1,):
            found.setdefault(name, "vector")
        elif name not in found or (position == "readout" and found[name] != "embedding"):
            found[name] = _WEIGHTS[position]
    for edge, live in zip(graph.edges, graph.live, strict=True):
        after: Op | None = None
        for op in edge.ops if live else ():
            for param in op.params:
                if param.name in graph.parameter:
                    where, own = param.at(op)
                    role = _other(where, own.role, after if where is op else None)
                    shape = graph.parameter[param.name].shape
                    thin = role == "hidden" and prod(shape) <= max(shape, default=1)
                    found.setdefault(param.name, "vector" if thin else role)
            after = after if op.kind in ("pass", "scale", "shift") else op
    return {p.name: next((found[n] for n in (p.name, *p.aliases) if n in found), "vector") for p in graph.parameters}


PERIODIC = ("sin", "cos")


def frequencies(graph: Graph) -> set[str]:
    """Weights and biases of layers that only sines and cosines read, through sums and factors at most: their sizes are
    frequencies and phases, as in SIREN [Sitzmann et al. 2020] and in learned Fourier features."""
    found: dict[str, list[bool]] = {}
    for use in graph.layers:
        ops = graph.edges[use.edge].ops
        after = ops[next(i for i, op in enumerate(ops) if op is use.op) + 1 :]
        only = _only_sines(graph, use.edge, after)
        for param in use.op.params:
            found.setdefault(param.name, []).append(only)
    return {name for name, uses in found.items() if all(uses)}


def _only_sines(graph: Graph, edge: int, ops: tuple[Op, ...]) -> bool:
    """Whether a signal meets sines alone, behind these operations of an edge and beyond it."""
    for op in ops:
        if op.kind not in ("pass", "scale", "shift"):
            return op.kind == "activation" and op.name in PERIODIC
    end = graph.edges[edge].dst
    onward = [e for e in graph.out_edges[end] if graph.live[e]]
    through = graph.vertices[end].kind in ("fork", "sum", "product")
    return through and bool(onward) and all(_only_sines(graph, e, graph.edges[e].ops) for e in onward)


def offsets(graph: Graph) -> dict[str, float]:
    """Parameter → the number that the model adds to it wherever it is used, as the 1 of a gain ``1 + w``."""
    found: dict[str, set[float]] = {}
    for edge in graph.edges:
        for op in edge.ops:
            for use in op.params:
                found.setdefault(use.name, set()).add(use.offset)
    return {name: min(values) for name, values in found.items() if len(values) == 1 and values != {0.0}}


def _other(op: Op, role: str, after: Op | None) -> ParameterRole:
    """The role of what is no layer's weight: op uses it, after another op on the same edge."""
    if op.kind == "norm" or (op.kind in ("scale", "shift") and after is not None and after.kind == "norm"):
        return "norm"
    if op.kind == "weight":
        return "hidden" if role == "weight" else "bias"
    return "bias" if role == "bias" else "vector"
