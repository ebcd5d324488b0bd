"""A network to measure on: drawn under a seed, with its batches, its optimiser and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.network import Network
from dagscale.tracing.wrappers import known_names
from dagscale.training import engine
from dagscale.training.batches import Batch
from dagscale.training.copies import WorkingCopy
from dagscale.training.groups import Relative, parameter_groups
from dagscale.training.recipe import Recipe

AFFECTS_TRAINING = False

BATCH = 256
"""Examples a measurement begins with, and passes through the network at once, where the recipe's batches allow it."""


@dataclass
class Cost:
    """Passes of up to ``BATCH`` examples through the network so far; a backward counts as two forwards."""

    forwards: float = 0.0


@dataclass
class Probe:
    """An initialised working copy of a network with batches to measure it on.

    Attributes:
        network: what it is of.
        copied: its working copy, drawn under ``seed``.
        seed: of the weights and of the batches.
        cost: what was spent on it.
    """

    network: Network
    copied: WorkingCopy
    seed: int
    cost: Cost = field(default_factory=Cost)

    @property
    def model(self) -> nn.Module:
        """The copy, in train mode."""
        return self.copied.model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its trainable parameters, by name."""
        return self.copied.parameters

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return self.network.recipe

    @cached_property
    def _batches(self) -> Iterator[Batch]:
        return self.recipe.source.batches(self.seed)

    def batch(self) -> Batch:
        """The next batch that training would see under this seed."""
        return next(self._batches)

    @cached_property
    def _measuring(self) -> Iterator[Batch]:
        size = self.recipe.batch_size
        return self.recipe.source.batches(self.seed, BATCH if size is None else min(BATCH, size))

    def measuring(self) -> list[Batch]:
        """The next ``BATCH`` examples to measure on, where the data are, in batches no larger than training's."""
        batches: list[Batch] = []
        known = self.recipe.source.examples
        while sum(batch.size for batch in batches) < (BATCH if known is None else min(BATCH, known)):
            batches.append(next(self._measuring))
        return batches

    @property
    def most(self) -> int:
        """How many times ``BATCH`` examples there are, one at least."""
        known = self.recipe.source.examples
        return 1 << 30 if known is None else max(1, known // BATCH)

    @property
    def ratios(self) -> list[float]:
        """Each parameter's learning rate relative to the network's."""
        return [self.network.relative.get(name, Relative()).lr for name in self.parameters]

    def optimizer(self, rate: float = 1.0) -> torch.optim.Optimizer:
        """The recipe's optimiser, fresh, a group a parameter, at an overall rate."""
        recipe = self.recipe
        known = known_names([p.name for p in self.network.graph.parameters], self.model)
        groups = parameter_groups(
            self.parameters, self.network.relative, recipe.optimizer, lr=rate, weight_decay=recipe.weight_decay,
            no_decay=recipe.no_decay, known=known, apart=True,
        )  # fmt: skip
        return recipe.optimizer.make(groups, rate)

    def scaling(self, optimizer: torch.optim.Optimizer) -> list[Tensor | float]:
        """What the optimiser multiplies each parameter's gradient by in its next step, at an overall rate of 1.

        Raises:
            OptimizerError: if nobody knows.
        """
        scale = self.recipe.optimizer.known("scaling", "this measurement")
        scales: list[Tensor | float] = []
        for parameter, ratio, group in zip(self.parameters.values(), self.ratios, optimizer.param_groups, strict=True):
            try:
                scales.append(ratio * scale(optimizer.state[parameter], group))
            except KeyError:  # it has had no gradient
                scales.append(ratio)
        return scales

    def output(self, batch: Batch) -> Any:
        """What the model makes of a batch, wherever that lies."""
        return engine.batch_output(self.model, self.recipe, batch.to(self.model))

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """The loss on an output."""
        return engine.output_loss(self.recipe, output, batch.to(self.model))
