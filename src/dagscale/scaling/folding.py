"""The folding lemma: a multiplier inside a model, had by the settings of the layer that it multiplies.

``y = c (W x + b)`` trained with rate η, eps ε and decay λ is, step for step, ``y = W' x + b'`` with ``W' = c W``,
``b' = c b``, trained with other settings. With a gradient g at W, the gradient at W' is ``g/c``, and W' has to move by
c times what W moves by:

    step         what it does                         rate       eps      decay, decoupled    decay, coupled
    sign         η g/(√v + ε): no size of g in it     × c        ÷ c      ÷ c                 ÷ c²
    spectral     likewise, a whole matrix             × c        ÷ c      ÷ c                 –
    gradient     η g                                  × c²       –        ÷ c²                ÷ c²
    relative     η ‖W‖ (g without its size)           as it is   ÷ c      as it is            ÷ c²

A decoupled decay takes ``rate × decay`` off a weight, and keeps that product; a coupled one stands beside the gradient,
``g/c + λ' c W``, and must have its proportion. Under a relative step the known ones are LARS, whose decay is coupled,
and LAMB, which adds it after the gradient's size is gone, ``g/|g| + λ' c W``: ÷ c.
"""

from __future__ import annotations

from dataclasses import dataclass

from dagscale.errors import OptimizerError
from dagscale.training.optimizers import Optimizer

_POWERS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("sign", "decoupled"): (1, -1, -1),
    ("sign", "coupled"): (1, -1, -2),
    ("spectral", "decoupled"): (1, -1, -1),
    ("gradient", "decoupled"): (2, 0, -2),
    ("gradient", "coupled"): (2, 0, -2),
    ("relative", "decoupled"): (0, -1, 0),
    ("relative", "coupled"): (0, -1, -2),
    ("relative", "normalised"): (0, -1, -1),
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


@dataclass(frozen=True, slots=True)
class Carried:
    """A multiplier that one parameter carries in its settings.

    Attributes:
        factors: on init, rate, eps and weight decay.
        fold: the multiplier; 1 where none can be folded in.
        note: what a reader should know of it.
    """

    factors: Factors
    fold: float
    note: str


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
            f"{optimizer.name} has a weight decay of kind {decay!r} and a step of kind {step!r}, and for that there is "
            "no folding rule: use an optimizer with decoupled decay, or none of depth= and head scaling"
        )
    lr, eps, weight_decay = powers
    return Factors(c, c**lr, c**eps if optimizer.eps else 1.0, c**weight_decay)


__all__ = ["Carried", "Factors", "fold"]
