"""The paper's initialisation [Chen et al. 2024, Eq. 12]."""

from __future__ import annotations

from math import sqrt

from dagscale.graph import LayerUse
from dagscale.inits.base import fill_weights, init
from dagscale.network import Network
from dagscale.training.draws import Fill


def hidden_std(use: LayerUse) -> float:
    """``sqrt(2 / (d_in n))``, ``n`` the fan-in."""
    return sqrt(2 / (use.in_degree * use.layer.fan_in))


@init("in-degree", width="mean-field")
def in_degree(network: Network) -> dict[str, Fill]:
    """Weights ``N(0, C/n)``, ``C = 2/d_in``; readouts ``N(0, 2/n²)``; biases 0, norm gains 1.

    With ``z_v = Σ_(u→v) W_uv ReLU(z_u)``, ``n`` the fan-in and ``d_in(v)`` the number of summands at ``v``::

        E z_v² = Σ_u n Var(W_uv) E ReLU(z_u)² = Σ_u (2/d_in(v)) ½ E z_u² = mean over u of E z_u²

    so every pre-activation has the second moment of the first. ``E ReLU(z)² = ½ E z²`` needs a symmetric
    ``z``: sums of pre-activations have it, sums of activations and identity edges do not. The readout's
    mean-field scale lets the output start at O(1/√n) [Chen et al. 2024, Sec. 3.1 and Eq. 12].
    """
    return fill_weights(network.graph, lambda use: sqrt(2) / use.layer.fan_in if use.readout else hidden_std(use))


@init("in-degree-standard")
def in_degree_standard(network: Network) -> dict[str, Fill]:
    """As ``in-degree``, with the readout in standard parametrisation: ``N(0, 2/n)``, so outputs start at O(1)."""
    return fill_weights(network.graph, hidden_std)
