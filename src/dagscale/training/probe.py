"""What can be measured on a copy of a network: curvature, the change of its function by one step, short runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.errors import PlanError
from dagscale.inits import padding_rows
from dagscale.network import Subject
from dagscale.tracing import forward
from dagscale.training.batches import Inputs, output, shapes, take, to_model, typed
from dagscale.training.draws import Fill
from dagscale.training.engine import OPTIMIZERS, seeded

AFFECTS_TRAINING = False

BATCH = 256
"""Examples a measurement begins with, and passes through the network at once."""

Batch = tuple[Inputs, Tensor]


@dataclass
class Cost:
    """Passes of up to ``BATCH`` examples through the network so far; a backward counts as two forwards."""

    forwards: float = 0.0


@dataclass
class Probe:
    """An initialised copy of a subject's network with data to measure it on. The user's model stays as it is.

    Args:
        subject: needs ``model``, ``data`` and ``loss``.
        seed: of the weights and of the batches.

    Raises:
        PlanError: if there is no data, the loss is no scalar, or the model cannot be measured.
    """

    subject: Subject
    seed: int
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        subject = self.subject
        if subject.model is None or subject.data is None or subject.loss is None:
            raise PlanError(
                "this law is measured and needs data=(x, y) and loss=… (--data); without data use law 'covariance', "
                "'walk' or 'paths'"
            )
        if any(p.is_meta for p in subject.model.parameters()):
            raise PlanError("this law is measured and the model is on meta: materialise it (model.to_empty) first")
        self.model = copy.deepcopy(subject.model)
        apply_fills(self.model, subject.fills, self.seed)
        self.parameters = {n: p for n, p in forward.plain_parameters(self.model).items() if p.requires_grad}
        self.x, self.y = (to_model(self.model, t) for t in subject.data)
        self.order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.seed))
        self._next = 0

    def batch(self, size: int) -> Batch:
        """The next ``size`` examples of a fixed shuffled order, around again at the end."""
        rows = [(self._next + i) % len(self.order) for i in range(min(size, len(self.order)))]
        self._next = (rows[-1] + 1) % len(self.order)
        chosen = self.order[rows]
        return take(self.x, chosen), take(self.y, chosen)

    @property
    def ratios(self) -> list[float]:
        """Each parameter's learning rate relative to the plan's."""
        return [self.subject.multipliers.get(name, 1.0) for name in self.parameters]

    def optimizer(self) -> torch.optim.Optimizer:
        """The subject's optimiser, fresh, a group a parameter, at an overall rate of 1."""
        groups = [{"params": [p], "lr": r} for p, r in zip(self.parameters.values(), self.ratios, strict=True)]
        return OPTIMIZERS[self.subject.optimizer](groups)

    def scaling(self, optimizer: torch.optim.Optimizer) -> list[Tensor | float]:
        """What the optimiser multiplies each parameter's gradient by in its next step, at an overall rate of 1.

        For Adam and its like ``1/(√v̂ + ε)`` elementwise [Kingma and Ba 2015, Algorithm 1]; a number where a parameter
        has no second moment, as under SGD.
        """
        scales: list[Tensor | float] = []
        for parameter, ratio, group in zip(self.parameters.values(), self.ratios, optimizer.param_groups, strict=True):
            state = optimizer.state.get(parameter, {})
            if "exp_avg_sq" in state:
                mean = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                scales.append(ratio / (mean.sqrt() + group["eps"]))
            else:
                scales.append(ratio)
        return scales

    def output(self, x: Inputs) -> Any:
        """What the loss is given, see `dagscale.training.batches.output`.

        Raises:
            ForwardError: if the forward raises; the original exception is ``__cause__``.
        """
        try:
            with forward.eagerly():
                return output(self.model, x)
        except Exception as error:
            failed = forward.forward_error(self.model, None, error, x)
            example = self.subject.inputs
            shown = f"; its example inputs are {shapes(example)}" if isinstance(example, Tensor) else ""
            failed.args = (f"{failed}, on data of shape {shapes(x)}{shown}",)
            raise failed from error

    def loss(self, out: Any, y: Tensor) -> Tensor:
        """The loss on an output.

        Raises:
            PlanError: if it raises, or is not one number.
        """
        assert self.subject.loss is not None
        try:
            value = self.subject.loss(out, y)
        except Exception as error:
            text = next(iter(str(error).strip().splitlines()), "")
            mend = ": class labels must be int64, y.long()" if "Long" in text else ""
            raise PlanError(
                f"the loss raised {type(error).__name__}: {text}, on output {typed(out)} and y {typed(y)}{mend}"
            ) from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PlanError(f"the loss must be one number and is {shape}: take its mean")
        return value


def apply_fills(model: nn.Module, fills: Mapping[str, Fill], seed: int) -> None:
    """Draw the trainable parameters that ``fills`` names; an embedding's padding row is 0."""
    padding = padding_rows(model)
    with torch.no_grad():
        for name, parameter in forward.plain_parameters(model).items():
            fill = fills.get(name)
            if fill is not None and parameter.requires_grad:
                parameter.copy_(fill.draw(name, tuple(parameter.shape), seed))
                if id(parameter) in padding:
                    parameter[padding[id(parameter)]] = 0


def gauss_newton(probe: Probe, x: Inputs, y: Tensor) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """``v ↦ G v``, ``G`` the Gauss–Newton matrix of the loss on the batch ``x``, ``y``; a tensor a parameter.

    ``G = Jᵀ H J`` with ``J`` the output's Jacobian in the parameters and ``H`` the loss's Hessian in the output
    [Schraudolph 2002]. ``J v`` is had as the derivative of ``u ↦ Jᵀ u``, two reverse passes, so no operator needs
    forward-mode differentiation. The parameters must not change between products.
    """
    parameters = list(probe.parameters.values())
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        out = probe.output(x)
    if not isinstance(out, Tensor):
        raise PlanError(
            f"the model returns {type(out).__name__}: curvature needs a tensor, or "
            ".logits; law 'short-run' takes whatever the loss does"
        )
    top = out.detach().requires_grad_()
    gradient = torch.autograd.grad(probe.loss(top, y), top, create_graph=True)[0]
    if not gradient.requires_grad:
        raise PlanError("the loss is linear in the model's output and has no curvature: use law 'function-change'")
    u = torch.zeros_like(out, requires_grad=True)
    pulled = torch.autograd.grad(out, parameters, u, create_graph=True, allow_unused=True)
    used = [i for i, g in enumerate(pulled) if g is not None and g.requires_grad]
    probe.cost.forwards += 5

    def product(v: Sequence[Tensor]) -> list[Tensor]:
        outputs = [g for i in used if (g := pulled[i]) is not None]
        moved = torch.autograd.grad(outputs, u, [v[i] for i in used], retain_graph=True)[0]
        bent = torch.autograd.grad(gradient, top, moved, retain_graph=True)[0]
        back = torch.autograd.grad(out, parameters, bent, retain_graph=True, allow_unused=True)
        probe.cost.forwards += 6
        pulled_back = [g if g is not None else torch.zeros_like(t) for g, t in zip(back, v, strict=True)]
        energy = float((moved.double() * bent.double()).sum())  # vᵀ Jᵀ H J v, from either side
        if abs(dot(v, pulled_back) - energy) > 0.05 * abs(energy):
            raise PlanError(
                "a backward in this model cannot itself be differentiated (torch.autograd.function.once_differentiable "
                "is one reason), so its curvature cannot be measured: use law 'short-run'"
            )
        return pulled_back

    return product


def leading_eigenpair(
    probe: Probe,
    scale: Sequence[Tensor | float],
    *,
    tolerance: float = 0.01,
    most: int = 60,
    start: Sequence[Tensor] = (),
    batches: Sequence[Batch] = (),
) -> tuple[float, list[Tensor]]:
    """Largest eigenvalue of ``D^½ G D^½`` and its vector, ``G`` the mean Gauss–Newton matrix of the loss on batches.

    Power iteration on :func:`gauss_newton`; one batch's graph is held at a time. Stops when the Rayleigh quotient's
    growth falls below ``tolerance`` twice in a row.

    Args:
        scale: ``D``'s diagonal, one tensor or number a parameter: relative learning rates.
        most: products at most.
        start: the vector to begin with, one tensor a parameter; by default a random one.
        batches: by default the probe's next ``BATCH`` examples.

    Raises:
        PlanError: if the model or the loss cannot be differentiated twice.
    """
    try:
        return _power_iteration(probe, scale, tolerance, most, start, batches or [probe.batch(BATCH)])
    except (RuntimeError, NotImplementedError) as error:
        text = next(iter(str(error).strip().splitlines()), "")
        raise PlanError(
            f"the curvature cannot be measured, {type(error).__name__}: {text}; use law 'short-run'"
        ) from error


def _power_iteration(
    probe: Probe,
    scale: Sequence[Tensor | float],
    tolerance: float,
    most: int,
    start: Sequence[Tensor],
    batches: Sequence[Batch],
) -> tuple[float, list[Tensor]]:
    roots = [d.sqrt() if isinstance(d, Tensor) else math.sqrt(d) for d in scale]
    product = gauss_newton(probe, *batches[0]) if len(batches) == 1 else _mean_product(probe, batches)
    generator = torch.Generator().manual_seed(probe.seed)
    v = list(start) or [torch.randn(p.shape, generator=generator).to(p) for p in probe.parameters.values()]
    value, calm = 0.0, 0
    for _ in range(most):
        norm = math.sqrt(dot(v, v))
        if not (math.isfinite(norm) and norm > 0):
            return norm, v
        v = [t / norm for t in v]
        moved = [r * t for r, t in zip(product([r * t for r, t in zip(roots, v, strict=True)]), roots, strict=True)]
        before, value = value, dot(v, moved)
        v = moved
        calm = calm + 1 if value - before <= tolerance * value else 0
        if calm == 2:
            break
    return value, v


def _mean_product(probe: Probe, batches: Sequence[Batch]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """`gauss_newton` of the mean over batches, each run again for each product, with the same random numbers."""

    def product(v: Sequence[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(t) for t in v]
        for i, batch in enumerate(batches):
            with seeded(probe.seed + i):
                for t, part in zip(total, gauss_newton(probe, *batch)(v), strict=True):
                    t += part / len(batches)
        return total

    return product


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors of the same shapes."""
    return sum(float((s.double() * t.double()).sum()) for s, t in zip(a, b, strict=True))
