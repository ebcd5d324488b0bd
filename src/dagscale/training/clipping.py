"""Clipping of gradients by their global norm, as the model without folded multipliers would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import torch
from torch import Tensor

from dagscale.arguments import checked, positive_number
from dagscale.errors import OptimizerError
from dagscale.tracing.wrappers import is_sharded


@checked(OptimizerError)
def clip_grad_norm_(
    optimizer: torch.optim.Optimizer | Iterable[tuple[Tensor, float]], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Clip gradients by their global norm as the model with the multipliers in its code would.

    A parameter that carries a folded multiplier c has the gradient ``g/c`` of the edited model's, so its part of the
    norm is weighed by c. With all c = 1 it is ``torch.nn.utils.clip_grad_norm_``.

    Under FSDP2 and its like, where each process holds shards of the gradients, the norm is that of the whole gradients,
    a plain tensor, the same in every process; every process must call it. Under DDP each process holds the whole
    gradients, and nothing is exchanged.

    Args:
        optimizer: the optimiser, whose groups say ``"fold"`` where a multiplier is folded in, as those of a plan do; or
            (parameter, c) for each parameter. Those without gradient are left out.
        max_norm: the largest norm, of the edited model's gradients.
        norm_type: which norm; ``inf`` for the largest entry.

    Raises:
        OptimizerError: if it is given parameters, which do not say what is folded, or a norm that is none.

    Returns:
        The edited model's norm before clipping, a scalar.
    """
    max_norm, norm_type = (
        value if value == inf else positive_number(name, value, OptimizerError, zero=name == "max_norm")
        for name, value in (("max_norm", max_norm), ("norm_type", norm_type))
    )
    given = _folded(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    pairs = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise OptimizerError("what is to be clipped is (parameter, c) pairs, or an optimizer, whose groups say c")
    held = [(p, p.grad.detach(), float(c)) for p, c in pairs if p.grad is not None]
    if not held:
        return torch.tensor(0.0)
    alike: dict[Any, list[Tensor]] = {}
    for _, g, c in held:
        alike.setdefault((c, g.device, *_placed(g)), []).append(g)
    device = held[0][1].device
    norms = [c * _norm(gradients, norm_type).to(device) for (c, *_), gradients in alike.items()]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for p, g, _ in held:
        if g.is_sparse:  # whose product in place is not the gradient's own
            p.grad = g * scale.to(g.device)
            continue
        own = local(g)
        own.mul_(scale.to(own.device))
    return total


def _norm(gradients: list[Tensor], norm_type: float) -> Tensor:
    """The norm of gradients that lie alike; of shards over all processes, in one exchange between them."""
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(entries(g), norm_type) for g in gradients]), norm_type
    )
    return norm.full_tensor() if is_sharded(norm) else norm  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """What of it lies here, of a sharded one."""
    found: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return found


def entries(gradient: Tensor) -> Tensor:
    """Its entries; of a sparse one, as an embedding may have, those that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _placed(gradient: Tensor) -> tuple[Any, ...]:
    """On which processes a gradient lies, and how it is cut up among them."""
    shard: Any = gradient
    return (shard.device_mesh, shard.placements) if is_sharded(gradient) else ()


def _folded(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, float]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield parameter, group.get("fold", 1.0)
