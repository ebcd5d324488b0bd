"""What the paper's released code computes, for comparison."""

from dataclasses import replace

from dagscale.graph import Edge, Graph, Op
from dagscale.graph.paths import kernel_size, path_sums
from dagscale.laws.base import GRADIENT, inverse, inverse_root, law
from dagscale.laws.estimate import Estimate
from dagscale.network import Network


def by_layers(graph: Graph, extra: int) -> int:
    """``Σ_p (W_p + extra)³``, ``W_p`` the number of weight layers on path ``p``."""
    step = Op("activation", "layer")

    def counted(edge: Edge) -> Edge:
        own = extra if graph.vertices[edge.dst].kind == "output" else 0
        return replace(edge, ops=(step,) * (len(edge.layers) + own))

    return path_sums(replace(graph, edges=tuple(counted(e) for e in graph.edges))).depth_cubed


@law("released", steps=GRADIENT, own_init="released")
def released(network: Network) -> dict[str, Estimate]:
    """What the paper's released code computes, to compare with.

    ``η_base · sqrt(Σ_base W_p³ / Σ_target (W_p + 1)³) · q_base/q``.

    The released code counts weight layers instead of activations, stem and readout among them: 3 for its base
    (stem, one hidden layer, readout), and for a target the hidden layers of a path plus 3, so that a target
    equal to the base gets another rate. The kernel enters as ``3/k`` [repository
    VITA-Group/principled_scaling_lr_init, ``main.py``].
    """
    return {
        "depth": inverse_root(by_layers(network.graph, int(network.role == "target")), "Σ_p W_p³"),
        "kernel": inverse(kernel_size(network.graph)),
    }
