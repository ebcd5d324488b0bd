"""What the paper's released code does, for comparison."""

from __future__ import annotations

from math import sqrt

from dagscale.graph import LayerUse
from dagscale.inits.base import fill_weights, init
from dagscale.network import Network
from dagscale.training.draws import Fill


@init("released", width="own")
def released(network: Network) -> dict[str, Fill]:
    """Weights ``N(0, 2/(d n_out))``, ``n_out`` the fan-out, ``d`` the in-degree of the *source* vertex.

    Eq. 12 divides by the in-degree of the vertex that an edge feeds; the released code takes the vertex that
    the edge leaves, and PyTorch's ``fan_out``. The readout gets ``std = 2/n_out``: 0.2 for 10 classes,
    whatever the width. Differences that a traced graph cannot show: dead summands, which the released code
    counts, are not part of a graph [repository VITA-Group/principled_scaling_lr_init, ``models/``].
    """
    graph = network.graph

    def std(use: LayerUse) -> float:
        if use.readout:
            return 2 / use.layer.fan_out
        source = graph.edges[use.edge].src
        degree = graph.in_degree[source] if graph.vertices[source].kind == "sum" else 1
        return sqrt(2 / (degree * use.layer.fan_out))

    return fill_weights(graph, std)
