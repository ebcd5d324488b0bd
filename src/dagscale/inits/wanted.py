"""The second moments that the output of each layer should have."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from statistics import fmean

from dagscale.graph import Graph, LayerUse
from dagscale.graph.roles import log_scales, lookup_factors, output_factors

Wanted = Mapping[frozenset[str], float]
"""All parameters that a layer's weight is computed from → the second moment wanted of its output."""

GAIN = 0.25
"""What is left of a signal at the end of the longest path under init ``damped``, and in the outputs under
``small-readout``."""

SCALE = 1 / 16
"""Root mean square that the logarithm of what a signal is multiplied by begins with."""


def wanted_moments(graph: Graph) -> dict[str, float]:
    """Weight name → second moment wanted of its layer's output: ``1/d_in``, the smallest over its uses."""
    return single(graph, by_parameters(graph))


def damped_moments(graph: Graph) -> dict[str, float]:
    """The same under init ``damped``."""
    return single(graph, damped_by_parameters(graph))


def single(graph: Graph, wanted: Wanted) -> dict[str, float]:
    """By the weight's own name, of weights that are a parameter; of what is only looked up, before the number that the
    model multiplies it by."""
    shared = {use.op.weight for use in graph.layers if not use.op.looks_up}
    factors = {name: factor for name, factor in lookup_factors(graph).items() if name not in shared}
    found = {name: moment for names, moment in wanted.items() if len(names) == 1 for name in names}
    return {name: moment / factors.get(name, 1.0) ** 2 for name, moment in found.items()}


def by_parameters(graph: Graph) -> dict[frozenset[str], float]:
    """The wanted moments of init ``moments``: ``1/d_in``, and ``SCALE`` squared at most for logarithms of scales."""
    return _least(graph, [1.0] * len(graph.layers))


def damped_by_parameters(graph: Graph) -> dict[frozenset[str], float]:
    """The wanted moments of init ``damped``: ``1/d_in``, times what the layers up to there leave of the signal.

    Each of the `unnormalised` layers leaves the ``n``-th root of ``GAIN``, where ``n`` is their number on the path that
    has the most. Where signals are added, the second moments that are left are averaged, as the in-degree has it; where
    they are multiplied, they multiply; behind a norm all is left.
    """
    free = unnormalised(graph)
    longest, levels = [0] * len(graph.vertices), [1.0] * len(graph.vertices)
    for v, edges in enumerate(graph.in_edges):
        counts = [
            longest[graph.edges[e].src] + sum(id(op) in free for op in graph.edges[e].ops)
            for e in edges if graph.live[e]
        ]  # fmt: skip
        longest[v] = max(counts, default=0)
    share = GAIN ** (2 / max(1, *longest))
    left: dict[int, float] = {}
    for v, edges in enumerate(graph.in_edges):
        arriving = []
        for edge in (graph.edges[e] for e in edges if graph.live[e]):
            level = levels[edge.src]
            for op in edge.ops:
                level = 1.0 if op.kind == "norm" else level * (share if id(op) in free else 1.0)
                left[id(op)] = level
            arriving.append(level)
        if arriving:
            levels[v] = prod(arriving) if graph.vertices[v].kind == "product" else fmean(arriving)
    return _least(graph, [left[id(use.op)] for use in graph.layers])


def quieter_moments(graph: Graph) -> dict[str, float]:
    """The same under init ``small-readout``."""
    return single(graph, quieter_by_parameters(graph))


def quieter_by_parameters(graph: Graph) -> dict[frozenset[str], float]:
    """The wanted moments of init ``small-readout``: ``1/d_in``, of a readout times the square of ``GAIN``; outputs that
    are products of several are set as a whole (`dagscale.inits.products`)."""
    factors = output_factors(graph)
    return _least(
        graph, [GAIN**2 if use.readout and not factors.keys() & _weights(use) else 1.0 for use in graph.layers]
    )


def unnormalised(graph: Graph) -> set[int]:
    """``id`` of the weight ops, readouts apart, from which a path leads to an output of the model through no norm."""
    open_ = [vertex.kind == "output" for vertex in graph.vertices]
    found: set[int] = set()
    for v in reversed(range(len(graph.vertices))):
        for e in graph.out_edges[v]:
            passed = open_[graph.edges[e].dst]
            for op in reversed(graph.edges[e].ops):
                if passed and op.layer is not None:
                    found.add(id(op))
                passed = passed and op.kind != "norm"
            open_[v] = open_[v] or passed
    return found - {id(use.op) for use in graph.layers if use.readout}


def _least(graph: Graph, left: list[float]) -> dict[frozenset[str], float]:
    """``1/d_in`` times what is left at each use, at most ``SCALE`` squared for logarithms of scales; of several uses of
    a weight, the least."""
    wanted: dict[frozenset[str], float] = {}
    logs = log_scales(graph)
    for use, share in zip(graph.layers, left, strict=True):
        names = _weights(use)
        share = min(share, SCALE**2) if names & logs else share
        wanted[names] = min(share / use.in_degree, wanted.get(names, 1.0))
    return wanted


def _weights(use: LayerUse) -> frozenset[str]:
    return frozenset(p.name for p in use.op.params if p.role == "weight")
