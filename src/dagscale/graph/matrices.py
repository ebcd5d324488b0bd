"""Which hidden weights are several matrices in one: experts in a stack, queries, keys and values in one projection."""

from __future__ import annotations

from dataclasses import dataclass

from dagscale.graph.attention import find_attention
from dagscale.graph.model import Graph
from dagscale.graph.roles import positions, roles


@dataclass(frozen=True, slots=True)
class Matrices:
    """How a hidden weight is made up.

    Attributes:
        shape: of one of its matrices; of a convolution the whole shape, which is flattened to ``out × (in · kernel)``.
        split: into how many parts of equally many rows it falls.
        stacked: whether its first dimension counts matrices.
        transposed: whether it is written ``in × out``, as GPT-2's layers are; ``shape`` is ``out × in`` all the same,
            and its parts have equally many columns.
    """

    shape: tuple[int, ...]
    split: int = 1
    stacked: bool = False
    transposed: bool = False


WHOLE = Matrices(())
"""Default for parameters that are not hidden matrices."""


def hidden_matrices(graph: Graph) -> dict[str, Matrices]:
    """Every hidden weight of two dimensions or more, by its first name.

    A stack is a weight of three dimensions that no kernel slides over. Queries, keys and values are in one projection
    where one weight, with three times as many outputs as inputs, makes both the queries and the keys of an attention;
    grouped keys are fewer, and stay one matrix.
    """
    role = roles(graph)
    shapes = {p.name: p.shape for p in graph.parameters if role[p.name] == "hidden" and len(p.shape) > 1}
    sliding = {name for use, name, _ in positions(graph) if use.layer.kernel}
    fan_in = {name: use.layer.fan_in for use, name, _ in positions(graph)}
    fused = _fused(graph)
    found = {}
    for name, shape in shapes.items():
        if name in sliding:
            found[name] = Matrices(shape)
            continue
        stacked = len(shape) == 3
        own = shape[1:] if stacked else shape
        transposed = len(own) == 2 and own[1] != own[0] == fan_in.get(name)
        if transposed:
            own = own[::-1]
        split = 3 if name in fused and len(own) == 2 and own[0] == 3 * own[1] else 1
        found[name] = Matrices((own[0] // split, *own[1:]), split, stacked, transposed)
    return found


def _fused(graph: Graph) -> set[str]:
    """The weights that make both the queries and the keys of an attention."""
    found = set()
    for one in find_attention(graph):
        queries, keys = [e for e in graph.in_edges[one.scores] if graph.live[e]][:2]
        weight = _weight_behind(graph, queries)
        if weight is not None and weight == _weight_behind(graph, keys):
            found.add(weight)
    return found


def _weight_behind(graph: Graph, e: int) -> str | None:
    """The first weight on the way back along an edge: gains and biases of norms are passed."""
    while True:
        edge = graph.edges[e]
        weights = (p.name for op in reversed(edge.ops) if op.kind == "weight" for p in op.params if p.role == "weight")
        entering = [i for i in graph.in_edges[edge.src] if graph.live[i]]
        if (weight := next(weights, None)) is not None or not entering:
            return weight
        e = entering[0]
