"""The init ``moments`` with learned tables, such as positions, as large as what they are added to."""

from __future__ import annotations

from dagscale.graph.model import Graph
from dagscale.inits.base import init
from dagscale.inits.moments import measured
from dagscale.inits.wanted import by_parameters, wanted_moments
from dagscale.network import Network
from dagscale.training.draws import Fill


@init("placed", measured=True, moments=wanted_moments)
def placed(network: Network) -> dict[str, Fill]:
    """As ``moments``, and learned tables that are added to a signal, such as those of positions, are N(0, 1).

    ``moments`` leaves such tables as their authors draw them, beside embeddings of second moment 1. Drawn N(0, 0.02²),
    as BERT and ViT draw both, positions are then a fiftieth of what they are added to, where their authors have them
    equal; and without a causal mask nothing else tells tokens apart. Measured in ``docs/evidence/kinds.md``.

    Raises:
        PlanError: if the model is on ``meta``, or the example inputs are all 0, so that nothing can be measured.
    """
    return measured(network, by_parameters(network.graph), dict.fromkeys(tables(network.graph), Fill(0.0, 1.0)))


def tables(graph: Graph) -> set[str]:
    """Parameters of two or more grown dimensions that are only ever added to a signal, and not to attention's scores.

    Biases are none of them, nor is what is added before a softmax.
    """
    added: dict[str, bool] = {}
    for edge, live in zip(graph.edges, graph.live, strict=True):
        for i, op in enumerate(edge.ops if live else ()):
            scores = any("softmax" in later.name for later in edge.ops[i + 1 :])
            for use in op.params:
                summand = op.kind == "shift" and use.role == "shift" and not scores
                added[use.name] = summand and added.get(use.name, True)
    shapes = {p.name: p.shape for p in graph.parameters}
    return {name for name, only in added.items() if only and sum(n > 1 for n in shapes.get(name, ())) > 1}
