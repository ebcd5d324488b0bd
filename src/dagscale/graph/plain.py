"""Plain networks: layers behind one another, without residual branches, read from a traced graph."""

from __future__ import annotations

from dataclasses import dataclass

from dagscale.errors import GraphError
from dagscale.graph.model import Graph


@dataclass(frozen=True, slots=True)
class Plain:
    """A network of which every path passes equally many layers.

    Attributes:
        depth: the number of weight layers before the readouts; 2 for a multilayer perceptron of two hidden layers.
        inner: the parameters of all layers but the first ones and the readouts, with what follows each before the next
            (its bias, a norm's gain); those that are used elsewhere too are left out.
    """

    depth: int
    inner: frozenset[str]


def find_plain(graph: Graph) -> Plain:
    """The layers of a plain network ("plain" as opposed to residual [He et al. 2016, arXiv 1512.03385, Section 3.3]).

    Several towers beside one another, experts, and gates whose factors have passed equally many layers are plain.

    Raises:
        GraphError: if two paths that meet, or end, have passed different numbers of layers, as in residual blocks,
            recurrent networks and where layers are skipped; or if there is no layer.
    """
    passed: dict[int, int] = dict.fromkeys(graph.inputs, 0)
    at: dict[str, set[int]] = {}
    for vertex in graph.vertices:
        counts = set()
        for i in graph.in_edges[vertex.id]:
            if not graph.live[i]:
                continue
            edge = graph.edges[i]
            count = passed[edge.src]
            for op in edge.ops:
                count += op.layer is not None
                for param in op.params:
                    at.setdefault(param.name, set()).add(count)
            counts.add(count)
        if len(counts) > 1:
            raise _unlike(counts)
        passed[vertex.id] = counts.pop() if counts else passed.get(vertex.id, 0)
    ends = {passed[v] for v in graph.outputs}
    if len(ends) != 1:
        raise _unlike(ends)
    (last,) = ends
    if last == 0:
        raise GraphError("there is no layer on a path from the input to the output")
    inner = (name for name, places in at.items() if min(places) > 1 and max(places) < last)
    return Plain(last - 1, frozenset(inner))


def _unlike(counts: set[int]) -> GraphError:
    few, most = min(counts, default=0), max(counts, default=0)
    return GraphError(f"paths that meet in it have passed {few} and {most} layers")


__all__ = ["Plain", "find_plain"]
