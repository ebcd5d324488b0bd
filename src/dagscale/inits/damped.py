"""The init ``moments`` with signals that fade along the way, where no norm would undo it."""

from __future__ import annotations

from dagscale.inits.base import init
from dagscale.inits.moments import measured
from dagscale.inits.wanted import GAIN, damped_by_parameters, damped_moments
from dagscale.network import Network
from dagscale.training.draws import Fill


@init("damped", measured=True, moments=damped_moments, level=False)
def damped(network: Network) -> dict[str, Fill]:
    """As ``moments``, but a signal keeps a quarter of its size over the longest path without norms.

    Of the layers before a readout, those count from which some path leads to an output through no norm. With ``n`` the
    most of them on one path, each has a standard deviation of ``¼^(1/n)`` of what ``moments`` asks for. So outputs
    start small, and training need not first undo large ones; and these layers move faster beside the readout than they
    do under ``moments``. Networks whose every layer is followed by a norm are drawn as by ``moments``. Measured in
    ``docs/evidence/which-init.md``.

    Raises:
        PlanError: if the model is on ``meta``, or the example inputs are all 0, so that nothing can be measured.
    """
    return measured(network, damped_by_parameters(network.graph), GAIN**2)
