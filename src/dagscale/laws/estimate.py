"""An estimate of a learning rate: its logarithm, how sure that is, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a law says of one network's learning rate.

    The difference of two networks' estimates is the logarithm of the factor between their learning rates. A constant
    that all networks share may be left out of an estimate, since it cancels in the difference.

    Attributes:
        log_rate: natural logarithm of the rate, up to a constant that the law's networks share.
        error: its standard error by chance over seeds; 0 where nothing is drawn at random.
        seeds: how many seeds it is a mean over.
        forwards: what it cost, in passes of a batch through the network; a backward counts as two.
    """

    log_rate: float
    error: float = 0.0
    seeds: int = 0
    forwards: float = 0.0

    def __sub__(self, other: Estimate) -> Estimate:
        """The estimate of the factor that leads from ``other``'s learning rate to this one's."""
        return self + other * -1.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.log_rate + other.log_rate,
            math.hypot(self.error, other.error),
            min((n for n in (self.seeds, other.seeds) if n), default=0),
            self.forwards + other.forwards,
        )

    def __mul__(self, factor: float) -> Estimate:
        """The estimate of the rate raised to the power ``factor``."""
        return replace(self, log_rate=self.log_rate * factor, error=self.error * abs(factor))


def half_width(estimates: Iterable[Estimate]) -> float:
    """Half the width of the 95 % interval of a sum of independent estimates, in the logarithm [Welch 1947].

    It holds chance over seeds alone, and not what the law itself gets wrong.
    """
    from scipy.stats import t

    variances = [(e.error**2, e.seeds - 1) for e in estimates if e.error]
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / n for variance, n in variances)
    return float(t.ppf(0.975, freedom)) * math.sqrt(total)
