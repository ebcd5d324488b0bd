"""The learning rate from how far one optimiser step moves the network's function, measured."""

from __future__ import annotations

from math import sqrt
from statistics import fmean

from torch import Tensor
from torch.utils._pytree import tree_leaves

from dagscale.errors import PlanError
from dagscale.laws.base import law
from dagscale.laws.estimate import Estimate
from dagscale.laws.over_seeds import over_seeds, until_settled
from dagscale.network import Network, remembered
from dagscale.tracing import forward
from dagscale.tracing.calls import LayerCalls
from dagscale.tracing.recorder import tensors_in
from dagscale.training.batches import Batch, logits
from dagscale.training.probe import Cost, Probe
from dagscale.training.seeds import seeded

STEP = 1e-4
"""The probing rate for SGD, relative to 1/‖gradient‖², and for Adam in absolute terms: small enough to be linear."""


def relative_change(probe: Probe, count: int = 1) -> float:
    """Root mean square over layers of ``rms(Δz) / rms(z)``, per unit of learning rate, for one optimiser step.

    The step is along the mean gradient of ``count`` times ``BATCH`` examples; pre-activations of all layers, readouts
    included, are looked at on the first batch.
    """
    batches = [batch for _ in range(count) for batch in probe.measuring()]
    examples = sum(batch.size for batch in batches)
    before = _forward(probe, batches[0])
    optimizer = probe.optimizer()
    for batch in batches:
        value = probe.loss(probe.output(batch), batch) * (batch.size / examples)
        value.backward()  # type: ignore[no-untyped-call]
    squared = sum(
        float(p.grad.abs().double().square().sum()) * ratio
        for p, ratio in zip(probe.parameters.values(), probe.ratios, strict=True)
        if p.grad is not None
    )
    if not 0 < squared < float("inf"):
        raise PlanError(f"the gradient at initialisation has squared norm {squared}: no step to measure")
    kind = probe.recipe.optimizer.known("step", "law 'function-change'")
    rate = STEP / squared if kind == "gradient" else STEP
    for group in optimizer.param_groups:
        group["lr"] *= rate
    optimizer.step()
    after = _forward(probe, batches[0])
    probe.cost.forwards += 2 + 3 * len(batches)
    changes = []
    for a, b in zip(before, after, strict=True):
        size = float(a.abs().double().square().mean())
        if size > 0:
            changes.append(float((b - a).abs().double().square().mean()) / size)
    return sqrt(fmean(changes)) / rate


def _forward(probe: Probe, batch: Batch) -> list[Tensor]:
    """The pre-activations of all layers, in order, and the outputs."""

    def run() -> list[Tensor]:
        seen: list[Tensor] = []
        calls = LayerCalls(probe.model, after=lambda use, out: seen.append(next(tensors_in(out)).detach()))
        with seeded(probe.seed), calls:
            out = logits(probe.output(batch))
        return [*seen, *(t.detach() for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point())]

    return forward.without_record(run)


@remembered
def change(network: Network) -> Estimate:
    """Estimate the logarithm of :func:`relative_change`, averaged over seeds."""

    def one(seed: int, cost: Cost) -> float:
        def over(count: int) -> float:
            with network.probe(seed, cost) as probe, seeded(seed):
                return relative_change(probe, count)

        with network.probe(seed, cost) as probe:
            most = probe.most
        return until_settled(over, most)

    return over_seeds(one, network.seed)


@law("function-change", measured=True)
def function_change(network: Network) -> dict[str, Estimate]:
    """How far one optimiser step moves all pre-activations. ``η ∝ 1 / (‖Δz‖/‖z‖ per unit of rate)``.

    The paper's principle — one step changes every pre-activation by Θ(1) — measured instead of derived, and
    relative to the pre-activation's own size, so that it asks the same of networks whose signals differ in scale.
    """
    return {"function-change": change(network) * -1.0}
