"""Two predictions of one rate, averaged: measured over the first steps, and derived for the first one."""

from __future__ import annotations

from collections.abc import Mapping

from dagscale.errors import GraphError
from dagscale.laws import covariance, short_run
from dagscale.laws.base import FADING, LAWS, SGD, Law
from dagscale.network import Subject

OUTSIDE = frozenset({"norm", "unknown"})
"""Kinds of operations that the covariance law has no picture of."""


def described(subject: Subject) -> bool:
    """Whether the covariance law is for this network: SGD, layers drawn by the init, sums of them, no norms and no
    products (gates, attention)."""
    graph = subject.graph
    return (
        subject.optimizer in SGD
        and any(use.op.params[0].name in subject.fills for use in graph.layers)
        and not any(op.kind in OUTSIDE for edge in graph.edges for op in edge.ops)
        and not any(vertex.kind == "product" for vertex in graph.vertices)
    )


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """The geometric mean of what laws ``short-run`` and ``covariance`` say, where the second is for both networks and
    has an answer; else the first alone.

    One sees noise, saturation and how sharpness changes, in a few steps of a few seeds; the other the graph, exactly,
    at the first step. Their errors have little in common, so the mean has less of them than either [Bates and Granger
    1969].
    """
    measured = short_run.factors(base, target)
    if not (described(base) and described(target)):
        return measured
    try:
        both = measured | covariance.factors(base, target)
    except GraphError:  # no hidden layer that trains, or too many vertices
        return measured
    return {name: factor**0.5 for name, factor in both.items()}


def power(factors: Mapping[str, float]) -> float:
    """Of the ratio of the short runs' rates."""
    return FADING / len(factors)


LAWS.add("combined")(Law(factors, measured=short_run.known, power=power, absolute=short_run.absolute))
