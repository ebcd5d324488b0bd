"""The learning rate at which a short run learns best, measured."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from torch import Tensor

from dagscale.errors import PlanError
from dagscale.laws.base import FADING, LAWS, Law
from dagscale.laws.over_seeds import Measured, once, over_seeds
from dagscale.network import Subject
from dagscale.rates import GRIDS, find_band
from dagscale.training.batches import Inputs
from dagscale.training.engine import exploded, seeded
from dagscale.training.probe import Cost, Probe

STEPS, LONGEST = 24, 192
"""Length of a run. It is doubled, up to the longest, while no rate takes LEAST of the loss away; never beyond the run
that the rate is for."""

LEAST = 0.02
"""Part of the loss by which the best rate must lower it in the mean over the run: less can be the batches' noise."""

SHARE = 0.15
"""The band: rates that lower the mean loss over the run by at least 1 - SHARE of what the best of them does."""

LONG_RUN = 1.25
"""What the rate of a whole run is, relative to that of a short one: a mean over settings, see ``docs/laws.md``.

Ratios of rates do not depend on it."""

NOTHING = 1e-5
"""Change of the loss, relative to it, that rounding alone can make: no reason to try lower rates, but higher ones."""

LOWEST, HIGHEST = -40, 24
"""Exponents of 2 between which rates are tried."""


def measure(
    subject: Subject, seed: int, start: int, cost: Cost, *, steps: int = STEPS, least: float = 0.0
) -> float | None:
    """The geometric middle of the band of runs of one length and seed: the same weights and batches at every rate.

    Rates an octave apart are tried: from ``2**start`` down to below the band, then up to above it. Coming from below
    finds the valley in which training descends. Beyond the rate at which it breaks there can be another, of networks
    that had their outputs thrown away.

    Returns:
        None if no rate lowers the loss by a part of ``least``, above 0.

    Raises:
        PlanError: if the loss at initialisation is not finite, no rate lowers it, or every rate does.
    """
    run = _Runs(Probe(subject, seed, cost), steps)
    if not math.isfinite(run.before):
        raise PlanError(
            f"the loss at initialisation is {run.before}: check the init (init 'moments' keeps signals finite)"
        )
    changes = {start: run(2.0**start)}
    nothing = NOTHING * abs(run.before)

    def descends() -> bool:
        return min(changes.values()) < -nothing

    def outside(i: int) -> bool:
        best = min(changes.values())
        return changes[i] > (best + SHARE * abs(best) if descends() else nothing)

    while (bottom := min(changes)) > LOWEST and (changes[bottom] > nothing or (descends() and not outside(bottom))):
        changes[bottom - 1] = run(2.0 ** (bottom - 1))
    while (top := max(changes)) < HIGHEST and not (outside(top) and outside(top - 1)):
        changes[top + 1] = run(2.0 ** (top + 1))
    if least and min(changes.values()) > -least * abs(run.before):
        return None
    if not descends():
        raise PlanError(
            f"no short run of {subject.optimizer} lowers the loss, whatever its rate: check the init (init 'moments' "
            "keeps signals finite), the labels and the loss"
        )
    if not outside(max(changes)):
        raise PlanError("the loss falls further the higher the rate is: it has no minimum to train towards; check it")
    tried = sorted(changes)
    low, high = find_band([2.0**i for i in tried], [changes[i] for i in tried], SHARE)
    return math.sqrt(low * high)


class _Runs:
    """Short runs from the same weights on the same batches; a rate → by how much the loss over the run is below that
    of the weights it starts from (negative: it falls), ``inf`` if it diverged.

    In the shortest runs the mean scatters less from seed to seed than the end, which one batch can move.
    """

    def __init__(self, probe: Probe, steps: int) -> None:
        self.probe = probe
        probe.model.train()
        self.batches = [probe.batch(probe.subject.batch_size) for _ in range(steps)]
        state = (*probe.model.parameters(), *probe.model.buffers())
        self.start = [(tensor, tensor.detach().clone()) for tensor in state]
        with torch.no_grad(), seeded(probe.seed):
            self.before = fmean(self._loss(x, y).item() for x, y in self.batches)

    def __call__(self, rate: float) -> float:
        probe = self.probe
        with torch.no_grad():
            for tensor, before in self.start:
                tensor.copy_(before)
        optimizer = probe.optimizer()
        for group in optimizer.param_groups:
            group["lr"] *= rate
        losses: list[float] = []
        with seeded(probe.seed):
            for x, y in self.batches:
                optimizer.zero_grad()
                value = self._loss(x, y)
                losses.append(value.item())
                if exploded(losses[-1], losses[0]):
                    return math.inf
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                probe.cost.forwards += 2
        return fmean(losses) - self.before

    def _loss(self, x: Inputs, y: Tensor) -> Tensor:
        self.probe.cost.forwards += 1
        return self.probe.loss(self.probe.output(x), y)


@once
def known(subject: Subject) -> Measured:
    """:func:`measure` over seeds, each looking first where the one before it found the band, with runs as long as it
    needed; see ``LEAST``."""
    longest = LONGEST if subject.steps is None else max(2, min(LONGEST, subject.steps))  # one step shows no effect
    start, steps = round(GRIDS[subject.optimizer][0]), min(STEPS, longest)

    def one(seed: int, cost: Cost) -> float:
        nonlocal start, steps
        while True:
            rate = measure(subject, seed, start, cost, steps=steps, least=LEAST if steps < longest else 0.0)
            if rate is not None:
                start = min(max(round(math.log2(rate)) - 2, LOWEST + 1), HIGHEST - 1)
                return rate
            steps = min(2 * steps, longest)

    return over_seeds(one, subject.seed)


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝ r^p``, ``p = 3/4`` (``FADING``), ``r`` the middle of the rates at which a short run learns best.

    Short runs favour lower rates than long ones do [Wu et al. 2018]; what they favour too low is much the same for base
    and target and cancels in the ratio. Networks also differ more in them, hence the power. Unlike a quadratic model at
    initialisation they see how normalised weights grow, how sharpness changes, and how an optimiser's state builds up.
    """
    return {"short-run": (known(target).value / known(base).value) ** FADING}


def absolute(subject: Subject) -> float:
    """The rate without a base: that of a short run times ``LONG_RUN``."""
    return known(subject).value * LONG_RUN


LAWS.add("short-run")(Law(factors, measured=known, power=lambda factors: FADING, absolute=absolute))
