"""An estimate of a learning rate: its logarithm, how sure that is, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple


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


class Spread(NamedTuple):
    """One source of error of the logarithm of a rate, independent of the others.

    Attributes:
        error: standard deviation (the scale of Student's t), of the natural logarithm.
        freedom: degrees of freedom that it is known with; ``inf`` for one that is known.
    """

    error: float
    freedom: float


def spreads(estimates: Iterable[Estimate]) -> list[Spread]:
    """What each estimate is off by chance over its seeds; those in which nothing is drawn are left out."""
    return [Spread(e.error, e.seeds - 1) for e in estimates if e.error]


def half_width(sources: Iterable[Spread], confidence: float = 0.95) -> float:
    """Half the width of the interval of a sum of independent errors, in the logarithm [Welch 1947]."""
    from scipy.stats import t

    variances = [(source.error**2, source.freedom) for source in sources if source.error]
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    rest = sum(variance**2 / freedom for variance, freedom in variances)
    return float(t.ppf((1 + confidence) / 2, total**2 / rest if rest else math.inf)) * math.sqrt(total)
