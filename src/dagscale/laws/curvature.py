"""The learning rate from the loss's curvature, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.optim import Optimizer

from dagscale.errors import PlanError
from dagscale.laws.base import law
from dagscale.laws.estimate import Estimate
from dagscale.laws.gauss_newton import leading_eigenpair
from dagscale.laws.over_seeds import over_seeds, until_settled
from dagscale.network import Network, remembered
from dagscale.training import engine
from dagscale.training.batches import Batch
from dagscale.training.probe import Cost, Probe
from dagscale.training.seeds import seeded

STEPS = 32
"""Length of the short run before the curvature is read."""

ROUGHLY = 0.1
"""Growth of the eigenvalue at which it is good enough for the short run's own rate."""

WARM_UP = 32
"""Steps at rate 0 that fill the state of an adaptive optimiser.

After a short run λ is that of parameters whose gradient has become small, and differs e-fold between seeds.
"""


def curvature_after(network: Network, steps: int = STEPS) -> Estimate:
    """Estimate the logarithm of the largest Gauss–Newton eigenvalue λ after ``steps`` steps at the rate ``1/(2λ)``, λ
    measured on the way.

    For optimisers that scale each gradient by its size, at initialisation, preconditioned as their steps are.

    Raises:
        OptimizerError: if nobody knows how the optimiser scales a gradient.
    """
    network.recipe.optimizer.known("scaling", "law 'curvature'")
    steps = steps if network.recipe.steps is None else min(steps, network.recipe.steps)
    return over_seeds(lambda seed, cost: measure(network, seed, steps, cost), network.seed)


def measure(network: Network, seed: int, steps: int, cost: Cost) -> float:
    """λ for one seed, preconditioned by the optimiser's own scaling of each step."""
    with network.probe(seed, cost) as probe, seeded(seed):
        return _after(probe, steps) if network.recipe.optimizer.step == "gradient" else _adaptive(probe)


def _after(probe: Probe, steps: int, every: int = 8) -> float:
    """λ after some steps at ``1/(2λ)``, measured again every ``every`` of them."""
    optimizer = probe.optimizer()
    vector: list[Tensor] = []
    for k in range(steps):
        if k % every == 0:
            value, vector = _steepest(probe, probe.ratios, start=vector, tolerance=ROUGHLY)  # it turns slowly
            for group, ratio in zip(optimizer.param_groups, probe.ratios, strict=True):
                group["lr"] = 0.5 / value * ratio
        _step(probe, optimizer)
    return _settled(probe, lambda: probe.ratios, start=vector)


def _adaptive(probe: Probe) -> float:
    """λ at initialisation. The optimiser's state has seen the examples that λ is measured on, as it has in training
    when it steps on them: no parameter that they move is taken for one with next to no gradient."""
    optimizer = probe.optimizer()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(WARM_UP):
        _step(probe, optimizer)
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
    taken = 0

    def value(count: int) -> float:
        nonlocal vector, taken
        while taken < count:
            for batch in probe.measuring():
                batches.append(batch)
                see(batch)
            taken += 1
        found, vector = _steepest(probe, scale(), start=vector, batches=batches)
        return found

    return until_settled(value, probe.most)


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


def _step(probe: Probe, optimizer: Optimizer, batch: Batch | None = None) -> None:
    batch = probe.batch().to(probe.model) if batch is None else batch
    optimizer.zero_grad()
    probe.loss(probe.output(batch), batch).backward()  # type: ignore[no-untyped-call]
    engine.of_user(f"step of {probe.recipe.optimizer.name}", optimizer.step)
    probe.cost.forwards += 3


@remembered
def known(network: Network) -> Estimate:
    """:func:`curvature_after` a short run of the usual length."""
    return curvature_after(network)


@law("curvature", measured=True)
def curvature(network: Network) -> dict[str, Estimate]:
    """How steep the loss is after a short run. ``η ∝ 1/λ``, λ the largest eigenvalue of the loss's Gauss–Newton matrix
    after a short run.

    Gradient descent on a quadratic of curvature λ is stable up to ``η = 2/λ`` [LeCun et al. 1998; Cohen et al.
    2021]. At initialisation λ still changes quickly, and by how much depends on the architecture; a few steps
    well below the stable rate take it past that, without letting the step size shape it as the edge of
    stability would.
    """
    return {"curvature": known(network) * -1.0}
