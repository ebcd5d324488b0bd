"""No transfer: the base's rate for every architecture."""

from dagscale.laws.base import LAWS, Law
from dagscale.network import Subject


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """One rate for all, as most comparisons of architectures do."""
    return {}


LAWS.add("none")(Law(factors, needs_base=False))
