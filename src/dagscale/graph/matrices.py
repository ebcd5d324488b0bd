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
    """

    shape: tuple[int, ...]
    split: int = 1
    stacked: bool = False


WHOLE = Matrices(())
"""What is one matrix, or none."""


def hidden_matrices(graph: Graph) -> dict[str, Matrices]:
    """Every hidden weight of two dimensions or more, by its first name.

    A stack is a weight of three dimensions that no kernel slides over. Queries, keys and values are in one projection
    where one weight, with three times as many rows as columns, makes the queries of an attention and more; grouped keys
    have fewer rows, and stay one matrix.
    """
    role = roles(graph)
    shapes = {p.name: p.shape for p in graph.parameters if role[p.name] == "hidden" and len(p.shape) > 1}
    sliding = {name for use, name, _ in positions(graph) if use.layer.kernel}
    fused = {name for one in find_attention(graph) if one.note for name in one.queries}
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 3 and name not in sliding:
            found[name] = Matrices(shape[1:], stacked=True)
        elif name in fused and len(shape) == 2 and shape[0] == 3 * shape[1]:
            found[name] = Matrices((shape[1], shape[1]), split=3)
        else:
            found[name] = Matrices(shape)
    return found


__all__ = ["WHOLE", "Matrices", "hidden_matrices"]
