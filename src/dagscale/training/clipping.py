"""Clipping of gradients by their global norm, as the model without folded multipliers would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def clip_grad_norm_(
    optimizer: torch.optim.Optimizer | Iterable[tuple[Tensor, float]], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Clip gradients by their global norm as the model with the multipliers in its code would.

    A parameter that carries a folded multiplier c has the gradient ``g/c`` of the edited model's, so its part of the
    norm is weighed by c. With all c = 1 it is ``torch.nn.utils.clip_grad_norm_``.

    Args:
        optimizer: the optimiser, whose groups say ``"fold"`` where a multiplier is folded in, as those of a plan do; or
            (parameter, c) for each parameter. Those without gradient are left out.
        max_norm: the largest norm, of the edited model's gradients.
        norm_type: which norm; ``inf`` for the largest entry.

    Returns:
        The edited model's norm before clipping, a scalar.
    """
    pairs = _folded(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    held = [(p.grad, float(c)) for p, c in pairs if p.grad is not None]
    if not held:
        return torch.tensor(0.0)
    device = held[0][0].device
    norms = [torch.linalg.vector_norm(g.detach(), norm_type).to(device) * c for g, c in held]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for g, _ in held:
        g.detach().mul_(scale.to(g.device))
    return total


def _folded(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, float]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group.get("fold", 1.0)


__all__ = ["clip_grad_norm_"]
