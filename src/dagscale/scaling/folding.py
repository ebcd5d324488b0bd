"""The folding lemma: a multiplier inside a model, had by the settings of the layer that it multiplies.

``y = c (W x + b)`` trained with rate η, eps ε and decay λ is, step for step, ``y = W' x + b'`` with ``W' = c W``,
``b' = c b``, trained with other settings. With a gradient g at W, the gradient at W' is ``g/c``, and W' has to move by
c times what W moves by:

    step         what it does                         rate       eps      decay, decoupled    decay, coupled
    sign         η g/(√v + ε): no size of g in it     × c        ÷ c      ÷ c                 ÷ c²
    spectral     likewise, a whole matrix             × c        ÷ c      ÷ c                 ÷ c²
    gradient     η g                                  × c²       –        ÷ c²                ÷ c²
    relative     η ‖W‖ (g without its size)           as it is   ÷ c      as it is            refused

A decoupled decay takes ``rate × decay`` off a weight, and keeps that product; a coupled one stands beside the gradient,
``g/c + λ' c W``, and must have its proportion. Coupled decay under a relative step is refused, because the known ones
differ: LAMB adds it after the gradient's size is gone (÷ c), LARS before (÷ c²).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dagscale.errors import OptimizerError
from dagscale.training.optimizers import Optimizer

_POWERS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("sign", "decoupled"): (1, -1, -1),
    ("sign", "coupled"): (1, -1, -2),
    ("spectral", "decoupled"): (1, -1, -1),
    ("spectral", "coupled"): (1, -1, -2),
    ("gradient", "decoupled"): (2, -1, -2),
    ("gradient", "coupled"): (2, -1, -2),
    ("relative", "decoupled"): (0, -1, 0),
}
"""(step, decay) → powers of c on rate, eps and decay."""


@dataclass(frozen=True, slots=True)
class Factors:
    """What one parameter's settings are multiplied by; products are taken entry by entry.

    Attributes:
        init: its mean and standard deviation.
        lr: its learning rate.
        eps: the optimiser's eps for it; stays 1 where the optimiser has none that counts in units of the gradient.
        weight_decay: its weight decay.
    """

    init: float = 1.0
    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0

    def __mul__(self, other: Factors) -> Factors:
        return Factors(
            self.init * other.init,
            self.lr * other.lr,
            self.eps * other.eps,
            self.weight_decay * other.weight_decay,
        )


def fold(optimizer: Optimizer, c: float) -> Factors:
    """The settings that stand for a multiplier ``c > 0`` on a layer (its weight and bias, or a norm's gain and bias).

    Raises:
        OptimizerError: if the optimiser's kind of step or of decay is unknown, or there is no rule for the two.
    """
    step = optimizer.known("step", "folding a multiplier into the settings of a layer")
    decay = optimizer.known("decay", "folding a multiplier into the settings of a layer")
    powers = _POWERS.get((step, decay))
    if powers is None:
        raise OptimizerError(
            f"{optimizer.name} adds weight decay to a step of kind {step!r}, and for that there is no folding rule "
            "(LAMB's and LARS's differ): use an optimizer with decoupled decay, or none of depth= and head scaling"
        )
    lr, eps, weight_decay = powers
    return Factors(c, c**lr, c**eps if optimizer.eps else 1.0, c**weight_decay)


def clip_grad_norm_(parameters: Iterable[tuple[Tensor, float]], max_norm: float, norm_type: float = 2.0) -> Tensor:
    """Clip gradients by their global norm as the model with the multipliers in its code would.

    A parameter that carries a folded multiplier c has the gradient ``g/c`` of the edited model's, so its part of the
    norm is weighed by c. With all c = 1 it is ``torch.nn.utils.clip_grad_norm_``.

    Args:
        parameters: (parameter, c) for each; those without gradient are left out.
        max_norm: the largest norm, of the edited model's gradients.
        norm_type: which norm; ``inf`` for the largest entry.

    Returns:
        The edited model's norm before clipping, a scalar.
    """
    held = [(p.grad, float(c)) for p, c in parameters if p.grad is not None]
    if not held:
        return torch.tensor(0.0)
    device = held[0][0].device
    norms = [torch.linalg.vector_norm(g.detach(), norm_type).to(device) * c for g, c in held]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), norm_type)
    scale = torch.clamp(max_norm / (total + 1e-6), max=1.0)
    for g, _ in held:
        g.detach().mul_(scale.to(g.device))
    return total


__all__ = ["Factors", "clip_grad_norm_", "fold"]
