"""The learning rate that lowers the loss best over a short run, measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

import torch

from dagscale.band import GRIDS, find_band
from dagscale.errors import PlanError
from dagscale.laws.base import LAWS, Law
from dagscale.laws.seeds import Measured, once, over_seeds
from dagscale.probe import Cost, Probe
from dagscale.subject import Subject
from dagscale.train import exploded, seeded

STEPS, LONGEST = 24, 192
"""Length of a run. It is doubled, up to the longest, until the best rate has LEARNT enough."""

LEARNT = 0.1
"""By how much less the loss is with the examples' own labels than with each other's. Before a network tells its
examples apart, a run only shows how fast the outputs shrink to what is best for all of them."""

EXAMPLES = 512
"""Examples that stand for the loss; they are the same at every rate."""

SHARE = 0.15
"""The band: rates that lower the loss by at least 1 - SHARE of what the best of them does."""

LONG_RUN = 1.25
"""What the rate of a whole run is, relative to that of a short one: a mean over settings, see ``docs/laws.md``.

Ratios of rates do not depend on it."""

LOWEST, HIGHEST = -40, 24
"""Exponents of 2 between which rates are tried."""


@dataclass(frozen=True)
class Middle:
    """The geometric middle of the band, and what the best rate has learnt; see ``LEARNT``."""

    rate: float
    learnt: float


def measure(subject: Subject, seed: int, start: int, cost: Cost, *, steps: int = STEPS, share: float = SHARE) -> Middle:
    """The middle of the band of runs of one length and seed: the same weights and batches at every rate.

    Rates an octave apart are tried: from ``2**start`` down to below the band, then up to above it. Coming from below
    finds the valley in which training descends. Beyond the rate at which it breaks there can be another, of networks
    that had their outputs thrown away.

    Raises:
        PlanError: if the loss at initialisation is not finite, no rate lowers it, or every rate does.
    """
    run = _Runs(Probe(subject, seed, cost), steps)
    if not math.isfinite(run.before):
        raise PlanError(
            f"the loss at initialisation is {run.before}: check the init (init 'moments' keeps signals finite)"
        )
    changes = {start: run(2.0**start)}

    def outside(i: int) -> bool:
        best = min(changes.values())
        return changes[i] > best + share * abs(best)

    while min(changes) > LOWEST and (min(changes.values()) >= 0 or not outside(min(changes))):
        changes[min(changes) - 1] = run(2.0 ** (min(changes) - 1))
    if min(changes.values()) >= 0:
        raise PlanError(
            f"no short run of {subject.optimizer} lowers the loss, whatever its rate: check the init (init 'moments' "
            "keeps signals finite), the labels and the loss"
        )
    while max(changes) < HIGHEST and not (outside(max(changes)) and outside(max(changes) - 1)):
        changes[max(changes) + 1] = run(2.0 ** (max(changes) + 1))
    if not outside(max(changes)):
        raise PlanError("the loss falls further the higher the rate is: it has no minimum to train towards; check it")
    tried = sorted(changes)
    low, high = find_band([2.0**i for i in tried], [changes[i] for i in tried], share)
    return Middle(math.sqrt(low * high), run.learnt[2.0 ** min(changes, key=changes.__getitem__)])


class _Runs:
    """Short runs from the same weights on the same batches; a rate → the change of the loss, ``inf`` if it diverged."""

    def __init__(self, probe: Probe, steps: int) -> None:
        self.probe = probe
        probe.model.train()
        size = probe.subject.batch_size
        x, y = probe.batch(EXAMPLES)
        pieces = math.ceil(len(x) / size)  # of nearly one size: no batch statistics come from a lone last example
        self.held = [*zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True)]
        self.batches = [probe.batch(size) for _ in range(steps)]
        state = (*probe.model.parameters(), *probe.model.buffers())
        self.start = [(tensor, tensor.detach().clone()) for tensor in state]
        self.learnt: dict[float, float] = {}
        self.before, _ = self.losses()

    def __call__(self, rate: float) -> float:
        probe = self.probe
        self.restore()
        optimizer = probe.optimizer()
        for group in optimizer.param_groups:
            group["lr"] *= rate
        first = None
        with seeded(probe.seed):
            for x, y in self.batches:
                optimizer.zero_grad()
                value = probe.loss(probe.output(x), y)
                first = value.item() if first is None else first
                probe.cost.forwards += 1
                if exploded(value.item(), first):
                    return math.inf
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                probe.cost.forwards += 2
        after, strange = self.losses()
        self.learnt[rate] = (strange - after) / abs(strange) if strange else 0.0
        return after - self.before if math.isfinite(after) else math.inf

    def losses(self) -> tuple[float, float]:
        """On the held examples, as training sees it: with their own labels, and each with its neighbour's."""
        probe = self.probe
        probe.cost.forwards += len(self.held)
        own, strange = [], []
        with torch.no_grad(), seeded(probe.seed):
            for x, y in self.held:
                out = probe.output(x)
                own.append(probe.loss(out, y).item())
                strange.append(probe.loss(out, y.roll(1, 0)).item())
        return fmean(own), fmean(strange)

    def restore(self) -> None:
        """Weights and statistics as they were before any run."""
        with torch.no_grad():
            for tensor, before in self.start:
                tensor.copy_(before)


@once
def known(subject: Subject) -> Measured:
    """:func:`measure` over seeds, each with runs at least as long as those before it; see ``LEARNT``."""
    start, steps = round(GRIDS[subject.optimizer][0]), STEPS

    def one(seed: int, cost: Cost) -> float:
        nonlocal start, steps
        while True:
            found = measure(subject, seed, start, cost, steps=steps)
            start = min(max(round(math.log2(found.rate)) - 2, LOWEST + 1), HIGHEST - 1)
            if found.learnt >= LEARNT or steps >= LONGEST:
                return found.rate
            steps *= 2

    return over_seeds(one, subject.seed)


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝`` the middle of the rates at which a short run lowers the loss.

    Short runs favour lower rates than long ones do [Wu et al. 2018]; what they favour too low is much the same for base
    and target, and cancels in the ratio. Unlike a quadratic model at initialisation they see how normalised weights
    grow, how sharpness changes, and how an optimiser's state builds up.
    """
    return {"short-run": known(target).value / known(base).value}


def absolute(subject: Subject) -> float:
    """The rate without a base: that of a short run times ``LONG_RUN``."""
    return known(subject).value * LONG_RUN


LAWS.add("short-run")(Law(factors, measured=known, absolute=absolute))
