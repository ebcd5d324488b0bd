"""The path sum, each path with the weight that the initialisation gives it."""

from __future__ import annotations

from dagscale.errors import GraphError
from dagscale.graph import Graph
from dagscale.graph.paths import kernel_size
from dagscale.laws.base import GRADIENT, inverse, inverse_root, law
from dagscale.laws.estimate import Estimate
from dagscale.laws.mean_field import mean_field
from dagscale.network import Network

Moments = tuple[float, ...]
"""``Σ w L^k`` over paths, k = 0 … 3."""
_NONE: Moments = (0.0, 0.0, 0.0, 0.0)


def weighted_cubes(graph: Graph) -> float:
    """``Σ_p w_p L_p³``, ``Σ_p w_p = 1``, in one pass over the edges.

    A vertex's second moment ``m_v`` is the sum of what its summands bring: ``1/d_v`` for a weight edge, ``m_u`` for
    an identity edge from ``u``. Walking back from the output and choosing each summand with the probability
    of its share, ``w_p`` is the probability of path ``p``. Without identity edges ``w_p = Π 1/d_v``.

    Raises:
        GraphError: if it is zero, so that the law says nothing.
    """
    dag = mean_field(graph)
    incoming: list[list[tuple[int, float, int]]] = [[] for _ in range(dag.size)]
    for edge in dag.weights:
        incoming[edge.dst].append((edge.src, 1 / dag.degree[edge.dst], edge.depth))
    for u, v, depth in dag.identities:
        incoming[v].append((u, -1.0, depth))
    moment = [0.0] * dag.size
    sums: list[Moments] = [_NONE] * dag.size
    for v in range(dag.size):
        stem = dag.stem_count[v] / dag.degree[v]
        shares = [(u, share if share >= 0 else moment[u], depth) for u, share, depth in incoming[v]]
        moment[v] = stem + sum(share for _, share, _ in shares)
        total = _shift((stem, 0.0, 0.0, 0.0), dag.begins[v])
        for u, share, depth in shares:
            total = _add(total, _shift(sums[u], depth), share)
        sums[v] = _add(_NONE, total, 1 / moment[v]) if moment[v] else total
    at_end = _NONE
    for end in dag.ends:
        at_end = _add(at_end, _shift(sums[end.vertex], end.depth), 1 / len(dag.ends))
    if not at_end[3] > 0:
        raise GraphError("no path passes an activation: law 'walk' has no rate for this network; use law 'none'")
    return at_end[3]


def _shift(m: Moments, step: int) -> Moments:
    """The moments of all depths after ``step`` activations were added to each."""
    a, b, c, d = m
    return a, b + step * a, c + step * (2 * b + step * a), d + step * (3 * c + step * (3 * b + step * a))


def _add(total: Moments, more: Moments, share: float) -> Moments:
    return tuple(have + share * new for have, new in zip(total, more, strict=True))


@law("walk", steps=GRADIENT)
def walk(network: Network) -> dict[str, Estimate]:
    """The paper's sum, each path weighted by its share of the signal. ``η ∝ (Σ_p w_p L_p³)^(-1/2) q^(-1)``.

    Eq. 26 of the paper averages over incoming edges and then sums over paths without that average's weight;
    with it, a path counts by the share of the signal it carries.
    """
    return {
        "walk": inverse_root(weighted_cubes(network.graph), "Σ_p w_p L_p³"),
        "kernel": inverse(kernel_size(network.graph)),
    }
