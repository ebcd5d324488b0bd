"""Attention in a traced graph: where queries meet keys, and what makes the queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dagscale.graph.ends import Fold, fold_before, fold_through, only_whole
from dagscale.graph.model import Graph


@dataclass(frozen=True, slots=True)
class Attention:
    """One product of queries and keys that a softmax follows.

    Attributes:
        scores: the product's vertex.
        head: channels of one head, as its values have them.
        queries: the parameters that multiply the scores by c if all of them are multiplied by ``c**power``: the
            queries' weight and bias, or the gain (and bias) of a norm on the queries.
        power: 1; ½ where one projection makes queries, keys and values.
        undone: parameters that then take ``1/c**power``: what reads the values that were multiplied too.
        note: why there are none such; "" mostly. ``queries`` are then those that come nearest.
    """

    scores: int
    head: int
    queries: tuple[str, ...]
    power: float = 1.0
    undone: tuple[str, ...] = ()
    note: str = ""


def find_attention(graph: Graph) -> tuple[Attention, ...]:
    """Every attention of a graph, in topological order.

    A product whose result passes a softmax and then meets values in a second product, or PyTorch's fused operator for
    all of it. The queries are the first operand, as every implementation that we know writes it.
    """
    places: dict[int, tuple[list[int], int]] = {}  # scores → edges of queries, keys and values, vertex where they meet
    for vertex in graph.vertices:
        entering = [e for e in graph.in_edges[vertex.id] if graph.live[e]]
        if vertex.kind != "product" or len(entering) < 2:
            continue
        if "dot_product" in vertex.label:
            places[vertex.id] = entering[:3], vertex.id
        elif (values := _values(graph, vertex.id)) is not None:
            weighed = [e for e in graph.in_edges[values] if graph.live[e] and not _softmax(graph, e)]
            places[vertex.id] = [*entering[:2], *weighed], values
    folds = {v: fold_before(graph, edges[:1]) for v, (edges, _) in places.items()}
    for v, fold in folds.items():
        if fold.reason and fold.ends:
            folds[v] = replace(fold, reason=f"what makes the queries makes more than them ({fold.reason})")
    folds = only_whole(graph, folds)
    shared = only_whole(graph, {v: fold_through(graph, *places[v]) for v in folds if folds[v].reason})
    found = []
    for v, (edges, met) in places.items():
        head = graph.vertices[met].shape[-1] if graph.vertices[met].shape else 0
        if v in shared and not shared[v].reason:
            undone = tuple(sorted({name for _, _, name in shared[v].undone}))
            found.append(Attention(v, head, _names(shared[v]), 0.5, undone))
        else:
            found.append(Attention(v, head, _names(folds[v]) or _behind(graph, edges[0]), note=folds[v].reason))
    return tuple(found)


def _names(fold: Fold) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, _, name in sorted(fold.ends)))


def _softmax(graph: Graph, e: int) -> bool:
    """Whether an edge delivers what a softmax gave, through whatever moves it."""
    edge = graph.edges[e]
    if any("softmax" in op.name for op in edge.ops):
        return True
    entering = [i for i in graph.in_edges[edge.src] if graph.live[i]]
    moved = graph.vertices[edge.src].kind in ("fork", "select") and not any(op.params for op in edge.ops)
    return moved and any(_softmax(graph, i) for i in entering)


def _behind(graph: Graph, e: int) -> tuple[str, ...]:
    """The first parameters on the way back along an edge."""
    while True:
        edge = graph.edges[e]
        names = next((tuple(p.name for p in op.params) for op in reversed(edge.ops) if op.params), ())
        entering = [i for i in graph.in_edges[edge.src] if graph.live[i]]
        if names or not entering:
            return names
        e = entering[0]


def _values(graph: Graph, product: int) -> int | None:
    """The product behind the softmax that a product's result passes; None if it passes none."""
    stack, softened = [(e, False) for e in graph.out_edges[product] if graph.live[e]], set()
    while stack:
        e, soft = stack.pop()
        edge = graph.edges[e]
        if (e, soft) in softened:
            continue
        softened.add((e, soft))
        if any(op.kind == "weight" for op in edge.ops):
            continue
        soft = soft or any("softmax" in op.name for op in edge.ops)
        kind = graph.vertices[edge.dst].kind
        if kind == "product" and soft:
            return edge.dst
        if kind in ("sum", "select", "fork", "concat"):
            stack += [(i, soft) for i in graph.out_edges[edge.dst] if graph.live[i]]
    return None
