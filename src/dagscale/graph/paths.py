"""Exact sums over all input→output paths, without enumerating them.

A vertex carries the moments of the depths of all paths that end in it. Walking an edge of depth ℓ shifts every
``L`` to ``L + ℓ``, and the moments of a shifted variable are binomial sums of the old ones, so one pass in
topological order gives the exact integers, whatever the number of paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dagscale.arguments import checked
from dagscale.errors import GraphError
from dagscale.graph.model import Graph

_KERNEL_UNIT = 1 << 20
"""Kernel sizes enter the pass as integer multiples of 2⁻²⁰, so that sums stay exact."""


@dataclass(frozen=True, slots=True)
class PathSums:
    """Sums over all input→output paths ``p`` of powers of the depth ``L_p`` (activations on ``p``).

    Attributes:
        paths: ``Σ_p 1``.
        depth, depth_squared, depth_cubed: ``Σ_p L_p``, ``Σ_p L_p²``, ``Σ_p L_p³`` (Eq. 8's sum).
        min_depth, max_depth: extremes of ``L_p``; 0 where there is no path.
    """

    paths: int
    depth: int
    depth_squared: int
    depth_cubed: int
    min_depth: int
    max_depth: int

    @property
    def mean_depth(self) -> float:
        """Mean of ``L_p`` over paths; 0 where there is no path."""
        return self.depth / self.paths if self.paths else 0.0


@checked(GraphError)
def path_sums(graph: Graph) -> PathSums:
    """All of :class:`PathSums` in one pass, linear in the number of edges.

    Source: the sum ``Σ_p L_p³`` is that of Chen et al. 2024, Eq. 8.
    """
    n = len(graph.vertices)
    s0, s1, s2, s3 = [0] * n, [0] * n, [0] * n, [0] * n
    shortest: list[int | None] = [None] * n
    longest = [0] * n
    for v in graph.inputs:
        s0[v], shortest[v] = 1, 0
    edges = graph.edges
    for v, incoming in enumerate(graph.in_edges):
        for e in incoming:
            edge = edges[e]
            u, step = edge.src, edge.depth
            near = shortest[u]
            if near is None:
                continue
            a, b, c, d = s0[u], s1[u], s2[u], s3[u]
            if step:
                d += step * (3 * c + step * (3 * b + step * a))
                c += step * (2 * b + step * a)
                b += step * a
            s0[v] += a
            s1[v] += b
            s2[v] += c
            s3[v] += d
            known = shortest[v]
            shortest[v] = near + step if known is None else min(known, near + step)
            longest[v] = max(longest[v], longest[u] + step)
    ends = [v for v in graph.outputs if shortest[v] is not None]
    return PathSums(
        paths=sum(s0[v] for v in ends),
        depth=sum(s1[v] for v in ends),
        depth_squared=sum(s2[v] for v in ends),
        depth_cubed=sum(s3[v] for v in ends),
        min_depth=min((near for v in ends if (near := shortest[v]) is not None), default=0),
        max_depth=max((longest[v] for v in ends), default=0),
    )


@checked(GraphError)
def kernel_size(graph: Graph) -> float:
    """The network's one effective kernel size ``q`` for Eq. 9.

    Eq. 9 is derived for a single kernel size, which multiplies the update of every layer on a path, so that a
    path's ``L·L²·q²`` stands where Eq. 8 has ``L³``. With several sizes the natural reading replaces ``L q`` by
    the sum of the kernel sizes along the path::

        q² = Σ_p (Σ_(l on p) q_l)²  /  Σ_p (Σ_(l on p) 1)²

    ``l`` runs over the weight layers of the path except readouts, which Eq. 9 leaves out; a dense layer and a
    1×1 convolution have ``q_l`` = 1, embeddings are not counted, a non-square kernel counts with its geometric
    mean. A network with one kernel size has exactly that ``q``; one without counted layers has 1.
    """
    readouts = {id(use.op) for use in graph.layers if use.readout}
    weight = [0] * len(graph.edges)
    count = [0] * len(graph.edges)
    for i, edge in enumerate(graph.edges):
        for op in edge.layers:
            if op.layer is not None and op.name != "embedding" and id(op) not in readouts:
                weight[i] += round(op.layer.kernel_size * _KERNEL_UNIT)
                count[i] += 1
    numerator, denominator = _square_sum(graph, weight), _square_sum(graph, count)
    if not denominator:
        return 1.0
    scale = _KERNEL_UNIT**2 * denominator
    # Exact where the ratio is a perfect square of an integer; path counts may exceed a float's range.
    whole, rest = divmod(numerator, scale)
    return math.sqrt(whole + rest / scale)


def _square_sum(graph: Graph, weight: list[int]) -> int:
    """``Σ_p (Σ_(e on p) weight[e])²`` over all input→output paths."""
    n = len(graph.vertices)
    s0, s1, s2 = [0] * n, [0] * n, [0] * n
    for v in graph.inputs:
        s0[v] = 1
    for v, incoming in enumerate(graph.in_edges):
        for e in incoming:
            u, w = graph.edges[e].src, weight[e]
            a, b = s0[u], s1[u]
            s0[v] += a
            s1[v] += b + w * a
            s2[v] += s2[u] + w * (2 * b + w * a)
    return sum(s2[v] for v in graph.outputs)


def effective_depth(graph: Graph) -> int:
    """Length of the shortest input→output path, counting weight layers and additions.

    A vertex at which two or more live signals are added counts 1, and so does every weight layer: a residual block
    whose skip is the identity adds 1, whatever is in its branch. Activations, norms, products and concatenations
    count nothing. A layer that is used twice on a path counts twice.

    Source: arXiv 2602.07494, where the best learning rate falls like the power -3/2 of it.

    Raises:
        GraphError: if no path leads from an input to an output.
    """
    shortest: list[int | None] = [0 if v.kind == "input" else None for v in graph.vertices]
    for v, incoming in enumerate(graph.in_edges):
        added = graph.vertices[v].kind == "sum" and graph.in_degree[v] > 1
        for e in incoming:
            before, known = shortest[graph.edges[e].src], shortest[v]
            if graph.live[e] and before is not None:
                length = before + len(graph.edges[e].layers) + added
                shortest[v] = length if known is None else min(known, length)
    ends = [near for v in graph.outputs if (near := shortest[v]) is not None]
    if not ends:
        raise GraphError("no path leads from an input to an output: the graph has no effective depth")
    return min(ends)
