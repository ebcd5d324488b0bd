"""How sure a plan's rate is, from what, and what would make it surer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dagscale.laws.accuracy import BAND_SHARE, BASE, BASE_SIDE, SEARCH, Accuracy
from dagscale.laws.estimate import Estimate, Spread, half_width, spreads
from dagscale.planning.base import Base

AFFECTS_RESULTS = False

OCTAVE = math.log(2)
WORTH = 0.95
"""Share of the factor either way at which something is worth saying that would narrow the interval to it."""


@dataclass(frozen=True)
class Certainty:
    """How sure a rate is.

    Attributes:
        factor: the 95 % interval is the rate divided by it to the rate times it; None where nothing is known.
        errors: standard deviation in octaves by source: what the ``law`` gets wrong, the ``base``'s own rate, chance
            over the ``seeds`` of a measurement.
        notes: what would narrow it, or why there is no interval.
    """

    factor: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def interval(self, rate: float) -> tuple[float, float] | None:
        """That of a rate, lower and upper end."""
        return None if self.factor is None else (rate / self.factor, rate * self.factor)


def certainty(
    law: Accuracy | None, seeds: Sequence[Estimate], bases: Sequence[float], alone: Sequence[float] = ()
) -> Certainty:
    """Put together, in quadrature, what is known of the errors of a rate.

    The law's error is Student's t (`Accuracy`). Part of its variance, ``BASE_SIDE``, is the base's, and goes down as
    ``1/k`` with ``k`` bases. How far these are apart says how well the law does on this family: with ``d_i`` the
    distance of the i-th base's answer from the mean, in standard deviations of what it should be, the law's ``ν``
    degrees of freedom and scale ``s`` become ``ν + k - 1`` and ``s² (ν + Σ d_i²)/(ν + k - 1)``, as of any variance
    that is known with ``ν`` degrees of freedom and seen ``k - 1`` times more.

    Args:
        law: what is known of the law on such networks; None for nothing.
        seeds: the estimates whose chance over seeds enters the rate.
        bases: standard deviation of each base's rate, in octaves; empty for a law without a base.
        alone: the rate that each of several bases alone would give.
    """
    if law is None:
        return Certainty(notes=("no interval: how far the law is off on such networks was never measured",))
    chance = spreads(seeds)
    known = _law(law, bases, alone)
    factor = _factor(known, chance, bases)
    found = {
        "law": known.error / OCTAVE,
        "base": _of_mean(bases),
        "seeds": math.sqrt(sum(s.error**2 for s in chance)) / OCTAVE,
    }
    more = [*bases, fmean(bases) if bases else BASE]
    count = len(more)
    surer = (
        known._replace(error=known.error * math.sqrt(_share(count) / _share(count - 1)))
        if bases and known.error
        else None
    )
    options = {
        ("one more base" if count > 2 else "a second base"): surer and _factor(surer, chance, more),
        "many more seeds": _factor(known, [], bases) if chance else None,
    }
    said = [f"with {what} to {value:.2g}" for what, value in options.items() if value and value < WORTH * factor]
    notes = (f"sure to a factor of {factor:.2g} either way; would narrow {', '.join(said)}",) if said else ()
    return Certainty(factor, {name: value for name, value in found.items() if value}, notes)


def base_error(base: object) -> float:
    """Standard deviation of a base's rate, in octaves: that of a search with one seed, more where the band is wide,
    less with more seeds; of a rate that was given, what is usual."""
    if not isinstance(base, Base) or not base.curve:
        return BASE
    low, high = base.band
    return math.hypot(SEARCH, BAND_SHARE * math.log2(high / low) / 2) / math.sqrt(max(base.seeds, 1))


def _law(law: Accuracy, bases: Sequence[float], alone: Sequence[float]) -> Spread:
    """What the law gets wrong with these bases."""
    scale, freedom = law.octaves, law.freedom
    if len(alone) > 1:
        logs = [math.log2(rate) for rate in alone]
        apart = sum(
            (log - fmean(logs)) ** 2 / (BASE_SIDE * law.octaves**2 + base**2)
            for log, base in zip(logs, bases, strict=True)
        )
        freedom = law.freedom + len(alone) - 1
        scale = law.octaves * math.sqrt((law.freedom + apart) / freedom)
    return Spread(scale * math.sqrt(_share(len(bases))) * OCTAVE, freedom)


def _share(count: int) -> float:
    """Part of the variance of a law's error that is left with so many bases."""
    return 1 - BASE_SIDE + BASE_SIDE / max(count, 1)


def _factor(law: Spread, chance: Sequence[Spread], bases: Sequence[float]) -> float:
    return math.exp(half_width([law, *chance, Spread(_of_mean(bases) * OCTAVE, math.inf)]))


def _of_mean(bases: Sequence[float]) -> float:
    """Standard deviation of the mean of the bases' rates, in octaves; 0 without a base."""
    return math.sqrt(sum(b**2 for b in bases)) / max(len(bases), 1)
