"""The learning rate at which a short run learns best, measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

import torch

from dagscale.errors import BatchError, DagscaleError, PlanError
from dagscale.laws.base import FADING, law
from dagscale.laws.estimate import Estimate
from dagscale.laws.over_seeds import over_seeds
from dagscale.network import Network, remembered
from dagscale.rates import find_band
from dagscale.tracing import forward
from dagscale.training import engine
from dagscale.training.probe import Cost, Probe
from dagscale.training.recipe import Recipe, Scheduler
from dagscale.training.seeds import seeded

STEPS, LONGEST = 24, 192
"""Length of a run. It is doubled, up to the longest, while no rate takes LEAST of the loss away; never beyond the run
that the rate is for."""

LEAST = 0.02
"""Part of the loss by which the best rate must lower it in the mean over the run: less can be the batches' noise."""

SHARE = 0.15
"""The band: rates that lower the mean loss over the run by at least 1 - SHARE of what the best of them does."""

FAR = 0.5
"""A rate that loses this part of what the best of them gains is above the band, whatever the next one does."""

MANY, ALIKE = 4, 0.01
"""So many of the highest rates that change the loss alike, to within this part, have thrown away what was learnt."""

HOPELESS = 6
"""Steps after which a run is given up whose loss has risen by more than that of the best has fallen."""

SCHEDULE = "constant"
"""How short runs see the recipe's schedule: ``constant``, not at all; ``compressed``, stretched over the short run; or
``first``, its own first steps. See ``benchmarks/schedules.py``."""

SPACING = 2
"""Octaves between the rates that are tried. Those of every second seed lie midway between those of the others, so that
the mean over both is as precise as with rates an octave apart, at two thirds of the steps."""

NEAR = 1
"""Octaves below the rate that is expected at which to begin."""

PRECISION = 0.35
"""Standard error at which two seeds are enough: they are at most an octave apart. Half of that comes from where their
rates happen to lie, and cancels in their mean."""

LONG_RUN = 1.25
"""The best rate of a whole run over that of a short one, a mean over settings (``docs/evidence/without-a-base.md``).

Ratios of rates do not depend on it."""

NOTHING = 1e-5
"""Change of the loss, relative to it, that rounding alone can make: no reason to try lower rates, but higher ones."""

DRAWS = 3
"""So many draws of weights and batches are tried before it is said that no rate lowers the loss: in a run of a few
steps the batches' noise can be all there is to see."""

OTHER = 1 << 10
"""From one seed to that of the draw in its place; even, so that the rates tried stay those of its phase."""

LOWEST, HIGHEST = -40, 24
"""Exponents of 2 between which rates are tried."""


class NothingLearnt(PlanError):
    """Under one seed no rate lowers the loss of a short run."""


def measure(
    network: Network, seed: int, start: int, cost: Cost, *, steps: int = STEPS, least: float = 0.0
) -> float | None:
    """The geometric middle of the band of runs of one length and seed: the same weights and batches at every rate.

    Rates ``SPACING`` octaves apart are tried: from ``2**start``, or the first below it at which the loss falls, up to
    above the band, then down to below it. Coming from below finds the valley in which training descends. Beyond the
    rate at which it breaks there can be another, of networks that had their outputs thrown away. Above the band one
    rate settles it that loses ``FAR`` of what the best gains; else two in a row.

    Where outputs have a fixed size, high rates do not break the training: they leave a network that says the same of
    all examples, whatever the rate. If that is better than the start, what a rate gains counts from there.

    Returns:
        None if no rate lowers the loss by a part of ``least``, above 0.

    Raises:
        PlanError: if the loss at initialisation is not finite, no rate lowers it, every rate does, or all rates come to
            the same.
    """
    with network.probe(seed, cost) as probe:
        return middle_of_band(Runs(probe, steps), start, least)


def middle_of_band(run: Runs, start: int, least: float = 0.0) -> float | None:
    """See `measure`."""
    if not math.isfinite(run.before):
        raise PlanError(
            f"the loss at initialisation is {run.before} under init {run.probe.network.init!r}: {_another(run)}"
        )
    changes = {start: run(2.0**start)}
    nothing, ground = NOTHING * abs(run.before), 0.0

    def descends() -> bool:
        return min(changes.values()) < ground - nothing

    def outside(i: int, share: float = SHARE) -> bool:
        best = min(changes.values())
        return changes[i] > (best + share * (ground - best) if descends() else ground + nothing)

    def above() -> bool:
        top = max(changes)
        if not outside(top):
            return False
        two = [changes[top], changes.get(top - SPACING, math.inf)]
        if max(two) <= min(two) * (1 - ALIKE) < 0:
            return _settled(changes) < 0  # high rates may all come to this: two more would tell
        return (descends() and outside(top, FAR)) or (top - SPACING in changes and outside(top - SPACING))

    def below() -> bool:
        low = min(changes)
        return outside(low) and (descends() or outside(low + SPACING))

    def lower() -> None:
        changes[min(changes) - SPACING] = run(2.0 ** (min(changes) - SPACING))

    while min(changes) > LOWEST and changes[min(changes)] > nothing:
        lower()
    while (top := max(changes)) < HIGHEST and not above():
        changes[top + SPACING] = run(2.0 ** (top + SPACING))
    if (settled := _settled(changes)) < 0:
        ground, nothing = settled, ALIKE * abs(settled)
    while min(changes) > LOWEST and (descends() or ground < 0) and not below():
        lower()
    if min(changes.values()) < 0 and len(changes) > 3 and len(set(changes.values())) == 1:
        raise PlanError(
            f"short runs come to the same loss at every rate from 2^{min(changes)} to 2^{max(changes)}: a schedule or "
            "a training step sets its own rate, or the loss does not depend on the model"
        )
    if least and min(changes.values()) > ground - least * abs(run.before):
        return None
    if not descends() and ground < 0:
        raise NothingLearnt(
            f"no short run of {run.probe.recipe.optimizer.name} does better than high rates do, which throw away what "
            "the model says and all come to one loss: check the labels and the loss, or give longer runs"
        )
    if not descends():
        raise NothingLearnt(
            f"no short run of {run.probe.recipe.optimizer.name} lowers the loss, whatever its rate: check the init "
            f"({_another(run)}), the labels and {_objective(run.probe.recipe)}; a model that has learnt these data "
            f"already needs those that it is to be fine-tuned on{run.raised}"
        )
    if not outside(max(changes)):
        raise PlanError("the loss falls further the higher the rate is: it has no minimum to train towards; check it")
    tried = sorted(changes)
    low, high = find_band([2.0**i for i in tried], [changes[i] - ground for i in tried], SHARE, widest=math.inf)
    return math.sqrt(low * high)


def _settled(changes: Mapping[int, float]) -> float:
    """What the highest rates all come to, of those that do not diverge; 0 where they differ."""
    last = [changes[i] for i in sorted(changes) if math.isfinite(changes[i])][-MANY:]
    return max(last) if len(last) == MANY and max(last) - min(last) <= ALIKE * abs(max(last)) else 0.0


def _objective(recipe: Recipe) -> str:
    """What makes a training lower the loss."""
    if recipe.step is None:
        return "the loss"
    return "the training step, which must step the optimizer that it is given, on a loss of the model that it is given"


def _another(run: Runs) -> str:
    """Which other init to try."""
    if run.probe.network.init == "moments":
        return "init 'keep' has the weights that the model came with"
    return "init 'moments' keeps signals finite"


class Runs:
    """Short runs from the same weights on the same batches; a rate → by how much the loss over the run is below that
    of the weights it starts from (negative: it falls), ``inf`` if it diverged.

    In the shortest runs the mean scatters less from seed to seed than the end, which one batch can move.
    """

    def __init__(self, probe: Probe, steps: int) -> None:
        self.probe, self.steps = probe, steps
        self.best, self.raised = 0.0, ""
        recipe = probe.recipe
        self.batches = [probe.batch() for _ in range(steps * (1 if recipe.step is not None else recipe.accumulate))]
        if recipe.step is None:
            each = recipe.accumulate

            def run() -> list[float]:
                with seeded(probe.seed):
                    return [self._loss(i) for i in range(len(self.batches))]

            losses = forward.without_record(run)
            self.starts = [fmean(losses[i : i + each]) for i in range(0, len(losses), each)]
        else:  # a step of the user's own: its losses at a rate at which nothing moves
            self.starts = [0.0] * steps
            self.starts = self._losses(0.0) or [math.nan]
        self.before = fmean(self.starts)

    def _loss(self, i: int) -> float:
        self.probe.cost.forwards += 1
        return engine.batch_loss(self.probe.model, self.probe.recipe, self.batches[i].to(self.probe.model)).item()

    def _scheduler(self, optimizer: torch.optim.Optimizer) -> Scheduler | None:
        recipe = self.probe.recipe
        if SCHEDULE == "constant":
            return None
        return recipe.scheduler(optimizer, self.steps if SCHEDULE == "compressed" else recipe.total_steps)

    def __call__(self, rate: float) -> float:
        losses = self._losses(rate)
        if not losses:
            return math.inf
        change = fmean(losses) - fmean(self.starts[: len(losses)])
        self.best = min(self.best, change)
        return change

    def _losses(self, rate: float) -> list[float]:
        """Of each step, fewer where the run was given up; none where it diverged."""
        probe, recipe = self.probe, self.probe.recipe
        model = probe.copied.reset(probe.network.fills, probe.seed)
        optimizer = probe.optimizer(rate)
        scheduler = self._scheduler(optimizer)
        losses: list[float] = []
        batches = iter(self.batches)
        with seeded(probe.seed):
            while len(losses) < self.steps and not self._hopeless(losses):
                try:
                    losses.append(engine.step(model, optimizer, recipe, batches, losses[0] if losses else None))
                except DagscaleError as error:
                    if not losses or isinstance(error, BatchError):
                        raise
                    self.raised = f"; at rate {rate:.3g}: {error}"
                    return []
                probe.cost.forwards += 3 * recipe.accumulate
                if engine.exploded(losses[-1], losses[0]):
                    return []
                if scheduler is not None:
                    engine.of_user("schedule", scheduler.step)
        return losses

    def _hopeless(self, losses: list[float]) -> bool:
        """Whether the run can be given up: its loss has risen by more than that of the best run has fallen."""
        if len(losses) < HOPELESS or self.best >= 0:
            return False
        return fmean(losses) - fmean(self.starts[: len(losses)]) > -self.best


@remembered
def known(network: Network) -> Estimate:
    """:func:`measure` over seeds, with runs as long as they need to be; see ``LEAST``. Of the logarithm of the rate.

    Each seed looks first where the one before it found the band, and the first where the network's hint expects it.
    """
    recipe = network.recipe
    whole = recipe.total_steps if recipe.steps is not None or recipe.epochs is not None else LONGEST
    longest = max(2, min(LONGEST, whole))  # one step shows no effect
    start = recipe.optimizer.grid[0] if network.hint is None else math.log2(network.hint) - NEAR
    steps = min(STEPS, longest)

    def one(seed: int, cost: Cost) -> float:
        nonlocal start, steps
        first, draws = nearest(start, (seed - network.seed) % SPACING), 1
        while True:
            try:
                rate = measure(network, seed, first, cost, steps=steps, least=LEAST if steps < longest else 0.0)
            except NothingLearnt:
                if draws == DRAWS:
                    raise
                seed, draws = seed + OTHER, draws + 1
                continue
            if rate is not None:
                start = math.log2(rate) - NEAR
                return rate
            steps = min(2 * steps, longest)

    return over_seeds(one, network.seed, PRECISION)


def nearest(exponent: float, phase: int) -> int:
    """The exponent of 2 nearest to this one among ``phase``, ``phase ± SPACING``, …, within those that are tried."""
    kept = min(max(exponent, LOWEST + SPACING), HIGHEST - SPACING)
    return round((kept - phase) / SPACING) * SPACING + phase


def rate(network: Network) -> Estimate:
    """The learning rate itself, for plans without a base: the rate of a short run times ``LONG_RUN``."""
    found = known(network)
    return replace(found, log_rate=found.log_rate + math.log(LONG_RUN))


@law("short-run", measured=True, absolute=rate)
def short_run(network: Network) -> dict[str, Estimate]:
    """At which rates a run of 24 steps learns best. ``η ∝ r^p``, ``p = 3/4`` (``FADING``), ``r`` the middle of these
    rates.

    Short runs favour lower rates than long ones do [Wu et al. 2018]; what they favour too low is much the same for base
    and target and cancels in the ratio. Networks also differ more in them, hence the power. Unlike a quadratic model at
    initialisation they see how normalised weights grow, how sharpness changes, and how an optimiser's state builds up.
    """
    return {"short-run": known(network) * FADING}
