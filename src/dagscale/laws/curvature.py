"""The learning rate from the loss's curvature, measured."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from dagscale.errors import PlanError
from dagscale.laws.base import LAWS, SGD, Law
from dagscale.laws.seeds import Measured, once, over_seeds
from dagscale.probe import Cost, Probe, leading_eigenpair
from dagscale.subject import Subject

STEPS = 32
"""Length of the short run before the curvature is read."""

ROUGHLY = 0.1
"""Growth of the eigenvalue at which it is good enough for the short run's own rate."""

WARM_UP = 32
"""Steps at rate 0 that fill the state of an adaptive optimiser.

With fewer, or after a short run, λ is that of parameters whose gradient happens to be small, and differs e-fold
between seeds.
"""


def curvature(subject: Subject, steps: int = STEPS) -> Measured:
    """Largest Gauss–Newton eigenvalue λ after ``steps`` steps at the rate ``1/(2λ)``, λ measured on the way.

    For adaptive optimisers at initialisation, preconditioned as their steps are.
    """
    steps = 0 if subject.optimizer not in SGD else steps if subject.steps is None else min(steps, subject.steps)
    return over_seeds(lambda seed, cost: measure(subject, seed, steps, cost), subject.seed)


def measure(subject: Subject, seed: int, steps: int, cost: Cost) -> float:
    """λ for one seed, preconditioned by the optimiser's own scaling of each step."""
    probe = Probe(subject, seed, cost)
    probe.model.train()
    optimizer = probe.optimizer()
    if subject.optimizer not in SGD:
        _descend(probe, optimizer, lambda: 0.0, WARM_UP)

    vector: list[Tensor] = []

    def steepest(tolerance: float = 0.01) -> float:
        nonlocal vector
        value, vector = leading_eigenpair(  # it turns slowly in a short run
            probe, probe.scaling(optimizer), start=vector, tolerance=tolerance
        )
        if not 0 < value < float("inf"):
            raise PlanError(
                f"the curvature at initialisation is {value}: the output does not depend on the parameters, the loss "
                "is piecewise linear in it, or it overflows; check the loss and the init (init 'moments' keeps "
                "signals finite)"
            )
        return value

    if steps:
        _descend(probe, optimizer, lambda: 0.5 / steepest(ROUGHLY), steps)
    return steepest()


def _descend(probe: Probe, optimizer: Optimizer, step: Callable[[], float], steps: int, every: int = 8) -> None:
    """Train the probe's copy for ``steps`` steps, the rate asked for again every ``every`` steps."""
    for k in range(steps):
        if k % every == 0:
            lr = step()
            for group, ratio in zip(optimizer.param_groups, probe.ratios, strict=True):
                group["lr"] = lr * ratio
        x, y = probe.batch(probe.subject.batch_size)
        optimizer.zero_grad()
        probe.loss(probe.output(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        probe.cost.forwards += 3


def factors(base: Subject, target: Subject) -> dict[str, float]:
    """``η ∝ 1/λ``, λ the largest eigenvalue of the loss's Gauss–Newton matrix after a short run.

    Gradient descent on a quadratic of curvature λ is stable up to ``η = 2/λ`` [LeCun et al. 1998; Cohen et al.
    2021]. At initialisation λ still changes quickly, and by how much depends on the architecture; a few steps
    well below the stable rate take it past that, without letting the step size shape it as the edge of
    stability would.
    """
    return {"curvature": known(base).value / known(target).value}


@once
def known(subject: Subject) -> Measured:
    """:func:`curvature` after a short run of the usual length."""
    return curvature(subject)


LAWS.add("curvature")(Law(factors, measured=known))
