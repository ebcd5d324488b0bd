"""The largest eigenvalue of the loss's Gauss–Newton matrix, by power iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dagscale.errors import PlanError
from dagscale.shown import one_line
from dagscale.training.batches import Batch, logits
from dagscale.training.probe import Probe
from dagscale.training.seeds import seeded


def gauss_newton(probe: Probe, batch: Batch) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """``v ↦ G v``, ``G`` the Gauss–Newton matrix of the loss on a batch; a tensor a parameter.

    ``G = Jᵀ H J`` with ``J`` the output's Jacobian in the parameters and ``H`` the loss's Hessian in the output
    [Schraudolph 2002]. ``J v`` is had as the derivative of ``u ↦ Jᵀ u``, two reverse passes, so no operator needs
    forward-mode differentiation. The parameters must not change between products.
    """
    parameters = list(probe.parameters.values())
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        out = logits(probe.output(batch))
    if not isinstance(out, Tensor):
        raise PlanError(
            f"the model returns {type(out).__name__}: curvature needs a tensor, or "
            ".logits; law 'short-run' takes whatever the loss does"
        )
    top = out.detach().requires_grad_()
    gradient = torch.autograd.grad(probe.loss(top, batch), top, create_graph=True)[0]
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
        rounding = 1e-5 * float(moved.double().square().sum())  # a saturated example has next to no curvature
        if abs(dot(v, pulled_back) - energy) > 0.05 * abs(energy) + rounding:
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
        batches: by default the next to measure on.

    Raises:
        PlanError: if the model or the loss cannot be differentiated twice.
    """
    try:
        return _power_iteration(probe, scale, tolerance, most, start, batches or probe.measuring())
    except (RuntimeError, NotImplementedError) as error:
        raise PlanError(f"the curvature cannot be measured, {one_line(error)}; use law 'short-run'") from error


def _power_iteration(
    probe: Probe,
    scale: Sequence[Tensor | float],
    tolerance: float,
    most: int,
    start: Sequence[Tensor],
    batches: Sequence[Batch],
) -> tuple[float, list[Tensor]]:
    roots = [d.sqrt() if isinstance(d, Tensor) else math.sqrt(d) for d in scale]
    product = gauss_newton(probe, batches[0]) if len(batches) == 1 else _mean_product(probe, batches)
    generator = torch.Generator().manual_seed(probe.seed)
    v = list(start) or [
        torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p) for p in probe.parameters.values()
    ]
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
        examples = sum(batch.size for batch in batches)
        for i, batch in enumerate(batches):
            with seeded(probe.seed + i):
                for t, part in zip(total, gauss_newton(probe, batch)(v), strict=True):
                    t += part * (batch.size / examples)
        return total

    return product


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors of the same shapes; of complex ones, that of their real numbers."""
    wide = [[t.to(torch.promote_types(t.dtype, torch.float64)) for t in tensors] for tensors in (a, b)]
    return sum(float((s.conj() * t).real.sum()) for s, t in zip(*wide, strict=True))
