"""The paper's learning-rate law [Chen et al. 2024, Eq. 8 and 9]."""

from dagscale.graph import kernel_size, path_sums
from dagscale.laws.base import GRADIENT, inverse, inverse_root, law
from dagscale.laws.estimate import Estimate
from dagscale.network import Network


@law("paths", steps=GRADIENT)
def paths(network: Network) -> dict[str, Estimate]:
    """The paper's law: a sum over all paths, and the kernel size. ``η ∝ (Σ_p L_p³)^(-1/2) q^(-1)``.

    One SGD step changes a pre-activation by ``Δz = -η Σ_weights ∂z/∂w ∂loss/∂w``. On one path of ``L``
    activations, ``E (Δz)²`` at depth ``l`` sums over pairs of weights up to ``l``: O(l²) pairs each O(1); the
    sum of ``l²`` over the path's ``L`` vertices gives ``η² L³``. The paper adds this up over all paths and asks
    that it be Θ(1): ``η² Σ_p L_p³ = const`` (Eq. 8). A convolution's weight is shared by the positions of its
    output, and the paper finds each update grows with the kernel size ``q``, hence ``q^(-1)`` (Eq. 9).
    Several kernel sizes: see :func:`dagscale.graph.paths.kernel_size`.
    """
    return {
        "depth": inverse_root(path_sums(network.graph).depth_cubed, "Σ_p L_p³"),
        "kernel": inverse(kernel_size(network.graph)),
    }
