"""Two predictions of one rate, averaged: measured over the first steps, and derived for the first one."""

from __future__ import annotations

from dagscale.errors import GraphError
from dagscale.graph import Graph
from dagscale.inits import INITS
from dagscale.laws.base import law
from dagscale.laws.covariance import covariance
from dagscale.laws.estimate import Estimate
from dagscale.laws.short_run import rate, short_run
from dagscale.network import Network

OUTSIDE = frozenset({"norm", "unknown"})
"""Kinds of operations that the covariance law has no picture of."""


def pictured(graph: Graph) -> bool:
    """Whether the covariance law has a picture of all of it: layers and sums of them, no norms and no products (gates,
    attention)."""
    return not any(op.kind in OUTSIDE for edge in graph.edges for op in edge.ops) and not any(
        vertex.kind == "product" for vertex in graph.vertices
    )


def described(network: Network) -> bool:
    """Whether the covariance law is for this network: gradient-like steps, layers drawn by the init with signals at one
    level, and a graph that it has a picture of."""
    rule = INITS.get(network.init)
    return (
        network.recipe.optimizer.step == "gradient"
        and (rule is None or rule.level)
        and any(use.op.weight in network.fills for use in network.graph.layers)
        and pictured(network.graph)
    )


@law("combined", measured=True, averaged=True, absolute=rate)
def combined(network: Network) -> dict[str, Estimate]:
    """The geometric mean of what laws ``short-run`` and ``covariance`` say, where the second is for both networks and
    has an answer; else the first alone.

    One sees noise, saturation and how sharpness changes, in a few steps of a few seeds; the other the graph, exactly,
    at the first step. Their errors have little in common, so the mean has less of them than either [Bates and Granger
    1969].
    """
    measured = dict(short_run(network))
    if not described(network):
        return measured
    try:
        return {**measured, **covariance(network)}
    except GraphError:  # no hidden layer that trains, or too many vertices
        return measured
