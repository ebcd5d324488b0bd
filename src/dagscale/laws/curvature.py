"""The learning rate from the loss's curvature, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from dagscale.errors import PlanError
from dagscale.laws.base import LAWS, SGD, Law
from dagscale.laws.over_seeds import Measured, once, over_seeds, settled
from dagscale.network import Subject
from dagscale.training.engine import seeded
from dagscale.training.probe import BATCH, Batch, Cost, Probe, leading_eigenpair

STEPS = 32
"""Length of the short run before the curvature is read."""

ROUGHLY = 0.1
"""Growth of the eigenvalue at which it is good enough for the short run's own rate."""

WARM_UP = 32
"""Steps at rate 0 that fill the state of an adaptive optimiser.

After a short run λ is that of parameters whose gradient has become small, and differs e-fold between seeds.
"""


def curvature(subject: Subject, steps: int = STEPS) -> Measured:
    """Largest Gauss–Newton eigenvalue λ after ``steps`` steps at the rate ``1/(2λ)``, λ measured on the way.

    For adaptive optimisers at initialisation, preconditioned as their steps are.
    """
    steps = steps if subject.steps is None else min(steps, subject.steps)
    return over_seeds(lambda seed, cost: measure(subject, seed, steps, cost), subject.seed)


def measure(subject: Subject, seed: int, steps: int, cost: Cost) -> float:
    """λ for one seed, preconditioned by the optimiser's own scaling of each step."""
    probe = Probe(subject, seed, cost)
    probe.model.train()
    with seeded(seed):
        return _adaptive(probe) if subject.optimizer not in SGD else _after(probe, steps)


def _after(probe: Probe, steps: int, every: int = 8) -> float:
    """λ after some steps at ``1/(2λ)``, measured again every ``every`` of them."""
    optimizer = probe.optimizer()
    vector: list[Tensor] = []
    for k in range(steps):
        if k % every == 0:
            value, vector = _steepest(probe, probe.ratios, start=vector, tolerance=ROUGHLY)  # it turns slowly
            for group, ratio in zip(optimizer.param_groups, probe.ratios, strict=True):
                group["lr"] = 0.5 / value * ratio
        _step(probe, optimizer, probe.batch(probe.subject.batch_size))
    return _settled(probe, lambda: probe.ratios, start=vector)


def _adaptive(probe: Probe) -> float:
    """λ at initialisation. The optimiser's state has seen the examples that λ is measured on, as it has in training
    when it steps on them: no parameter that they move is taken for one with next to no gradient."""
    optimizer = probe.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(WARM_UP):
        _step(probe, optimizer, probe.batch(probe.subject.batch_size))
    return _settled(probe, lambda: probe.scaling(optimizer), see=lambda batch: _step(probe, optimizer, batch))


def _settled(
    probe: Probe,
    scale: Callable[[], Sequence[Tensor | float]],
    *,
    start: Sequence[Tensor] = (),
    see: Callable[[Batch], None] = lambda batch: None,
) -> float:
    """λ of the mean over as many batches as it needs; ``see`` is called with each before."""
    batches: list[Batch] = []
    vector = list(start)

    def value(count: int) -> float:
        nonlocal vector
        while len(batches) < count:
            batches.append(probe.batch(BATCH))
            see(batches[-1])
        found, vector = _steepest(probe, scale(), start=vector, batches=batches)
        return found

    return settled(value, len(probe.order) // BATCH)


def _steepest(
    probe: Probe,
    scale: Sequence[Tensor | float],
    *,
    start: Sequence[Tensor] = (),
    tolerance: float = 0.01,
    batches: Sequence[Batch] = (),
) -> tuple[float, list[Tensor]]:
    """`leading_eigenpair`, refusing what is no curvature."""
    value, vector = leading_eigenpair(probe, scale, start=start, tolerance=tolerance, batches=batches)
    if not 0 < value < float("inf"):
        raise PlanError(
            f"the curvature at initialisation is {value}: the output does not depend on the parameters, the loss "
            "is piecewise linear in it, or it overflows; check the loss and the init (init 'moments' keeps "
            "signals finite)"
        )
    return value, vector


def _step(probe: Probe, optimizer: Optimizer, batch: Batch) -> None:
    x, y = batch
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
