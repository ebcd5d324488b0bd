"""What each parameter is to its network: embedding, input, hidden, readout, norm, bias, or another vector."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
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
    model's input; ``readout`` one whose output is the model's, through neither another layer nor a sum, but for sums
    with the model's input and with other readouts; ``hidden`` a weight between them. ``norm`` is a norm's gain or bias,
    ``bias`` what a layer adds to its output, ``vector`` anything else: gains of branches, position tables, depthwise
    kernels, and what is on no input→output path.

    A hidden *matrix*, which is what Muon is for, has the role ``hidden`` and at least two dimensions.
    """
    found: dict[str, ParameterRole] = {}
    for use, name, position in positions(graph):
        if use.op.looks_up:
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
    """Weights and biases of layers, readouts apart, that only sines and cosines read, through sums and factors at most:
    their sizes are frequencies and phases, as in SIREN [Sitzmann et al. 2020] and in learned Fourier features."""
    only = [False] * len(graph.vertices)  # whether what leaves here meets sines alone
    found: dict[str, list[bool]] = {}
    readouts = {id(use.op) for use in graph.layers if use.readout}
    for v in reversed(range(len(graph.vertices))):
        onward = []
        for e in (e for e in graph.out_edges[v] if graph.live[e]):
            sines = only[graph.edges[e].dst]
            for op in reversed(graph.edges[e].ops):
                moves = op.kind in ("pass", "scale", "shift")
                reads = moves or (op.layer is not None and id(op) not in readouts)
                for param in op.params:
                    found.setdefault(param.name, []).append(sines and reads)
                sines = sines if moves else op.kind == "activation" and op.name in PERIODIC
            onward.append(sines)
        only[v] = graph.vertices[v].kind in ("fork", "sum", "product") and bool(onward) and all(onward)
    return {name for name, uses in found.items() if all(uses)}


EXPONENTIALS = ("exp", "exp2", "expm1")
BOUNDS = ("clamp", "clamp_min", "clamp_max", "hardtanh", "tanh")


def log_scales(graph: Graph) -> set[str]:
    """Weights of layers by the exponential of whose output another signal is multiplied, as in the couplings of a
    normalising flow [Dinh et al. 2017]. Between the two there may be sums, factors and bounds, as of ``clamp``."""
    multiplies = [False] * len(graph.vertices)  # whether what leaves here enters a product as it is
    raised = [False] * len(graph.vertices)  # and whether it does as an exponent
    found: set[str] = set()
    for v in reversed(range(len(graph.vertices))):
        for e in (e for e in graph.out_edges[v] if graph.live[e]):
            edge, kind = graph.edges[e], graph.vertices[graph.edges[e].dst].kind
            enters, exponent = kind == "product" or multiplies[edge.dst], kind != "product" and raised[edge.dst]
            for op in reversed(edge.ops):
                if op.layer is not None and exponent:
                    found |= {p.name for p in op.params if p.role == "weight"}
                moves = op.kind in ("pass", "scale", "shift")
                exponential = op.kind == "activation" and op.name in EXPONENTIALS
                exponent = (exponent and (moves or op.name in BOUNDS)) or (enters and exponential)
                enters = enters and moves
            multiplies[v] = multiplies[v] or (enters and graph.vertices[v].kind == "fork")
            raised[v] = raised[v] or exponent
    return found


def output_factors(graph: Graph) -> dict[str, float]:
    """Weights of layers from whose output the model's is computed by products or sums over elements, with no further
    layer, norm or activation that would set its size: the two tables of a factorisation, whose rows are multiplied and
    summed; the layer that gives each node's share of a sum over nodes. A weight whose output goes elsewhere too, to
    another layer or to an output as it is, is none.

    Returns:
        The weight's name → the part of the output's second moment that is due to it: 1 over the in-degree of each
        vertex on the way where signals are added.
    """
    clear = [vertex.kind == "output" for vertex in graph.vertices]  # all ways on lead to outputs, past none of these
    moved = [False] * len(graph.vertices)  # and all of them meet a product or a sum over elements
    part = [1.0] * len(graph.vertices)
    found: dict[str, list[float]] = {}
    for v in reversed(range(len(graph.vertices))):
        onward = []
        for e in (e for e in graph.out_edges[v] if graph.live[e]):
            edge = graph.edges[e]
            kind, due = graph.vertices[edge.dst].kind, part[edge.dst]
            due = due / graph.in_degree[edge.dst] if kind == "sum" else due
            on, through = clear[edge.dst], moved[edge.dst] or kind == "product"
            for op in reversed(edge.ops):
                for param in op.params if op.layer is not None else ():
                    if param.role == "weight":
                        found.setdefault(param.name, []).append(due if on and through else 0.0)
                on = on and op.kind in ("pass", "pool", "scale", "shift")
                through = through or op.kind == "pool"
            onward.append((on, through, due))
        if onward:
            ways, meets, dues = zip(*onward, strict=True)
            clear[v], moved[v], part[v] = all(ways), all(meets), min(dues)
    return {name: min(dues) for name, dues in found.items() if min(dues) > 0}


def lookup_factors(graph: Graph) -> dict[str, float]:
    """Embedding's weight → the number that the model multiplies what it looks up by, the same at each lookup; such as
    the √width of the first Transformer [Vaswani et al. 2017, Sec. 3.4]."""
    found: dict[str, set[float]] = {}
    for edge in graph.edges:
        for i, op in enumerate(edge.ops):
            if not op.looks_up:
                continue
            behind = takewhile(lambda after: after.kind == "pass" and after.factor, edge.ops[i + 1 :])
            found.setdefault(op.weight, set()).add(prod(abs(after.factor) for after in behind))
    return {name: min(values) for name, values in found.items() if len(values) == 1 and values != {1.0}}


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
