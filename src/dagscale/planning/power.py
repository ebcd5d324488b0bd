"""What the known rates of several bases say of a law: how far its factors are to be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from dagscale.laws.accuracy import BASE_SIDE, POWER_SPREAD, Accuracy
from dagscale.laws.base import Carried
from dagscale.planning.certainty import OCTAVE


def fitted_power(carried: Carried, rates: Sequence[float], law: Accuracy | None, errors: Sequence[float]) -> float:
    """The power to which a law's factors are raised; 1 takes them as they are.

    Between bases, whose rates ``r_i`` are known, let ``log r_i = a + p x_i + e_i`` with ``x_i`` what the law says. With
    normal errors of variance ``v``, the law's at a base and the base's own, and the prior ``p ~ N(1, τ²)``, ``τ`` the
    spread over recorded families (``POWER_SPREAD``), the posterior is normal with the mean ::

        p = (1/τ² + Σ x_i y_i / v) / (1/τ² + Σ x_i² / v)        (x, y: from their means)

    Bases that the law takes to be alike say nothing, and it stays 1. Where they contradict the law outright it is 0,
    and the target gets the mean of their rates.

    Args:
        carried: what the law says of the target against each base.
        rates: the bases' rates.
        law: what is known of the law's error; None for nothing, and then the power is 1.
        errors: of the bases' rates, in octaves.
    """
    names = {frozenset(parts) for parts in carried.each}
    if len(rates) < 2 or law is None or len(names) != 1 or not next(iter(names)):
        return 1.0
    said = [-math.log(carried.alone(i)) for i in range(len(rates))]
    known = [math.log(rate) for rate in rates]
    x, y = ([value - fmean(values) for value in values] for values in (said, known))
    v = (BASE_SIDE * law.octaves**2 + fmean(error**2 for error in errors)) * OCTAVE**2
    prior = 1 / POWER_SPREAD**2
    fitted = (prior + sum(a * b for a, b in zip(x, y, strict=True)) / v) / (prior + sum(a * a for a in x) / v)
    return max(fitted, 0.0)
