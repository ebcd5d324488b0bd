"""Learned tables that are added to a signal, such as those of positions."""

from __future__ import annotations

from dagscale.graph.model import Graph


def tables(graph: Graph) -> set[str]:
    """Parameters of two or more grown dimensions that are only ever added to a signal, and not to attention's scores.

    Biases are none of them, nor is what is added before a softmax, nor a layer that projects fixed positions.
    """
    added: dict[str, bool] = {}
    for edge, live in zip(graph.edges, graph.live, strict=True):
        for i, op in enumerate(edge.ops if live else ()):
            scores = any("softmax" in later.name for later in edge.ops[i + 1 :])
            for use in op.params:
                summand = op.kind == "shift" and use.role == "shift" and use.within is None and not scores
                added[use.name] = summand and added.get(use.name, True)
    shapes = {p.name: p.shape for p in graph.parameters}
    return {name for name, only in added.items() if only and sum(n > 1 for n in shapes.get(name, ())) > 1}
