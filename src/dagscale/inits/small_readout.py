"""The init ``moments`` with readouts that start small."""

from __future__ import annotations

from dagscale.inits.base import init
from dagscale.inits.moments import measured
from dagscale.inits.wanted import GAIN, quieter_by_parameters, quieter_moments
from dagscale.network import Network
from dagscale.training.draws import Fill


@init("small-readout", measured=True, moments=quieter_moments)
def small_readout(network: Network) -> dict[str, Fill]:
    """As ``moments``, but readouts are drawn a quarter as large, so that outputs start at a quarter of their size.

    Training then need not first undo large outputs. Hidden layers get a gradient that is a quarter as large, until the
    readout has grown. Under momentum and Adam that takes a few steps; under plain SGD hidden layers may lag for long.
    Measured in ``docs/evidence/which-init.md``.

    Raises:
        PlanError: if the model is on ``meta``, or the example inputs are all 0, so that nothing can be measured.
    """
    return measured(network, quieter_by_parameters(network.graph), GAIN**2)
