"""No transfer: the base's rate for every architecture."""

from dagscale.laws.base import law
from dagscale.laws.estimate import Estimate
from dagscale.network import Network


@law("none", needs_base=False)
def none(network: Network) -> dict[str, Estimate]:
    """The base's rate for all networks, as most comparisons of architectures have it."""
    return {}
