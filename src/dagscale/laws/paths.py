"""The paper's learning-rate law [Chen et al. 2024, Eq. 8 and 9]."""

from dagscale.graph.paths import kernel_size, path_sums
from dagscale.laws.base import LAWS, SGD, Law, root_ratio
from dagscale.network import Subject


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝ (Σ_p L_p³)^(-1/2) q^(-1)``.

    One SGD step changes a pre-activation by ``Δz = -η Σ_weights ∂z/∂w ∂loss/∂w``. On one path of ``L``
    activations, ``E (Δz)²`` at depth ``l`` sums over pairs of weights up to ``l``: O(l²) pairs each O(1); the
    sum of ``l²`` over the path's ``L`` vertices gives ``η² L³``. The paper adds this up over all paths and asks
    that it be Θ(1): ``η² Σ_p L_p³ = const`` (Eq. 8). A convolution's weight is shared by the positions of its
    output, and the paper finds each update grows with the kernel size ``q``, hence ``q^(-1)`` (Eq. 9).
    Several kernel sizes: see :func:`dagscale.graph.paths.kernel_size`.
    """
    return {
        "depth": root_ratio(path_sums(base.graph).depth_cubed, path_sums(target.graph).depth_cubed, "Σ_p L_p³"),
        "kernel": kernel_size(base.graph) / kernel_size(target.graph),
    }


LAWS.add("paths")(Law(factors, SGD))
