"""Later work's answer to the paper's question: one length of a network, its shortest path."""

from math import log

from dagscale.errors import GraphError
from dagscale.graph.paths import effective_depth as shortest
from dagscale.laws.base import law
from dagscale.laws.estimate import Estimate
from dagscale.network import Network


@law("effective-depth")
def effective_depth(network: Network) -> dict[str, Estimate]:
    """From the graph alone, the length of its shortest path from input to output.

    ``η ∝ L^(-3/2)``, ``L`` the layers and residual additions on that path.

    Asked for by arithmetic-mean μP [arXiv 2510.04327; 2602.07494] of CNNs, ResNets and transformers alike, with no
    regard to the optimiser.

    Raises:
        GraphError: if no path passes a layer.
    """
    length = shortest(network.graph)
    if length <= 0:
        raise GraphError(
            "its shortest path passes no layer, so law 'effective-depth' has no rate for it: use law 'none'"
        )
    return {"effective-depth": Estimate(-1.5 * log(length))}
