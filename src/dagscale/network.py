"""What a law or an init may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagscale.graph import Graph
from dagscale.training.batches import Inputs
from dagscale.training.draws import Fill

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Subject:
    """One network under consideration, the base or the target; compared by identity.

    Attributes:
        graph: its traced graph.
        model, inputs: the module and its example inputs, for what must be measured; never modified.
        data: examples ``(x, y)``, if the user gave any.
        loss: ``loss(output, y)`` → scalar.
        optimizer: the optimiser's name, as in ``dagscale.training.OPTIMIZERS``.
        seed: seed of everything random.
        batch_size: examples in a training step.
        steps: optimiser steps of the run that the rate is for; None if unknown, and long.
        fills: how the init draws each parameter; what it does not name keeps the model's values.
        multipliers: learning rate of each parameter relative to the plan's, where not 1.
    """

    graph: Graph
    model: nn.Module | None = None
    inputs: Any = None
    data: tuple[Inputs, Tensor] | None = None
    loss: Callable[..., Tensor] | None = None
    optimizer: str = "sgd"
    seed: int = 0
    batch_size: int = 128
    steps: int | None = None
    fills: Mapping[str, Fill] = field(default_factory=dict)
    multipliers: Mapping[str, float] = field(default_factory=dict)
