"""The learning rate at which one optimiser step lowers the expected loss the most, measured."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from dagscale.errors import PlanError
from dagscale.laws.base import LAWS, SGD, Law
from dagscale.laws.seeds import Measured, once, over_seeds
from dagscale.probe import Cost, Probe, dot, gauss_newton, short_run
from dagscale.subject import Subject

BATCH = 1024
"""Examples that stand for the expected loss."""

AVERAGED = 8
"""Optimiser steps, each from the same point on a batch of its own, that numerator and denominator are averaged over."""

RUN = 32
"""Length of SGD's short run; the rate is measured anew every eight steps of it."""

LONG_RUN = {"sgd": 3.7, "momentum": 0.37, "adam": 1.0, "adamw": 1.0}
"""What the rate of a whole run is, relative to that of one step: for SGD a mean over the settings in ``docs/laws.md``,
with momentum 0.9 a tenth of it, since ten steps add up. Ratios of rates do not depend on it."""


def measure(subject: Subject, seed: int, cost: Cost) -> float:
    """The rate for one seed: at initialisation; for SGD the median over a short run at half of it."""
    plain = subject.optimizer in SGD  # momentum's steps add up to those of SGD, which is measured for both
    probe = Probe(replace(subject, optimizer="sgd") if plain else subject, seed, cost)
    probe.model.train()
    rates: list[float] = []

    def half() -> float:
        rate = _rate(probe)
        if 0 < rate < math.inf:
            rates.append(rate)
        elif not rates:
            raise PlanError(
                f"no step of {subject.optimizer} lowers the loss at initialisation (best rate {rate:.3g}): check the "
                "init (init 'moments' keeps signals finite), the labels and the loss"
            )
        return 0.5 * rates[-1]

    if plain:
        short_run(probe, half, RUN)
    half()
    return median(rates)


def _rate(probe: Probe) -> float:
    """``-⟨∇L, d⟩ / ⟨d, G d⟩``, both averaged over first steps ``d`` that are taken and taken back."""
    parameters = list(probe.parameters.values())
    start = [p.detach().clone() for p in parameters]
    x, y = probe.batch(BATCH)
    gradient = _gradient(probe, x, y)
    steps = []
    for _ in range(AVERAGED):
        _gradient(probe, *probe.batch(probe.subject.batch_size))
        probe.optimizer().step()
        with torch.no_grad():
            steps.append([p - before for p, before in zip(parameters, start, strict=True)])
            for p, before in zip(parameters, start, strict=True):
                p.copy_(before)
    product = gauss_newton(probe, x, y)
    slope = -sum(dot(gradient, d) for d in steps)
    bend = sum(dot(d, product(d)) for d in steps)
    return slope / bend if bend > 0 else math.nan


def _gradient(probe: Probe, x: Tensor, y: Tensor) -> list[Tensor]:
    """The loss's gradient on a batch; left in the parameters too."""
    probe.model.zero_grad()
    probe.loss(probe.output(x), y).backward()  # type: ignore[no-untyped-call]
    probe.cost.forwards += 3
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in probe.parameters.values()]


@once
def known(subject: Subject) -> Measured:
    """:func:`measure` over seeds."""
    return over_seeds(lambda seed, cost: measure(subject, seed, cost), subject.seed)


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝ -E⟨∇L, d⟩ / E⟨d, G d⟩``, ``d`` the optimiser's step per unit of rate on one batch.

    The rate at which one step lowers the expected loss the most, to second order: gradient noise counts, since a noisy
    ``d`` has more curvature than slope [Schaul et al. 2013, Eq. 8; McCandlish et al. 2018, Eq. 2.6]. ``G`` is the
    Gauss-Newton matrix. It holds for any optimiser whose step is proportional to its rate.
    """
    return {"descent": known(target).value / known(base).value}


def absolute(subject: Subject) -> float:
    """The rate without a base: that of one step times ``LONG_RUN``."""
    return known(subject).value * LONG_RUN[subject.optimizer]


LAWS.add("descent")(Law(factors, cost=lambda subject: known(subject).forwards, absolute=absolute))
