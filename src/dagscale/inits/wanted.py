"""The second moments that the output of each layer should have."""

from __future__ import annotations

from dagscale.graph import Graph


def wanted_moments(graph: Graph) -> dict[str, float]:
    """Weight name → second moment wanted of its layer's output: ``1/d_in``, the smallest over its uses."""
    return {name: moment for names, moment in by_parameters(graph).items() if len(names) == 1 for name in names}


def by_parameters(graph: Graph) -> dict[frozenset[str], float]:
    """The wanted moments, keyed by all parameters that the layer's weight is computed from."""
    wanted: dict[frozenset[str], float] = {}
    for use in graph.layers:
        names = frozenset(p.name for p in use.op.params if p.role == "weight")
        wanted[names] = min(1 / use.in_degree, wanted.get(names, 1.0))
    return wanted
