"""Schedules: how the learning rate moves over a run, as values that can be compared, written down and read back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

from dagscale.errors import RecipeError

Shape = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """A warm-up that grows linearly to the whole rate, then a shape that ends at a share of it.

    Calling it, ``schedule(optimizer, total_steps)``, makes a ``torch`` scheduler that multiplies the rate of every
    group, so that groups keep their ratios. It is stepped after every optimiser step. A group that is added to the
    optimiser later is multiplied as the others are.

    Attributes:
        shape: ``constant``, ``linear`` or ``cosine`` [Loshchilov and Hutter 2017].
        warmup: share of the steps that the warm-up takes, or their number if it is 1 or more.
        final: the share of the rate that is left at the end.
    """

    shape: Shape
    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in ("constant", "linear", "cosine"):
            raise RecipeError(f"unknown shape {self.shape!r} of a schedule: constant, linear or cosine")
        if not (isinstance(self.warmup, (int, float)) and math.isfinite(self.warmup) and self.warmup >= 0):
            raise RecipeError(f"warmup must be a share of the steps, or a number of them, not {self.warmup!r}")
        if not (isinstance(self.final, (int, float)) and 0 <= self.final <= 1):
            raise RecipeError(f"final must be a share of the rate, from 0 to 1, not {self.final!r}")

    def factor(self, step: int, total: int) -> float:
        """What the rate is multiplied by in step ``step`` of ``total``, counted from 0."""
        warm = min(total, round(self.warmup * total) if self.warmup < 1 else int(self.warmup))
        if step < warm:
            return (step + 1) / (warm + 1)
        gone = (step - warm) / max(1, total - warm)
        left = {"constant": 1.0, "linear": 1 - gone, "cosine": (1 + math.cos(math.pi * min(1.0, gone))) / 2}[self.shape]
        return self.final + (1 - self.final) * left if self.shape != "constant" else 1.0

    def __call__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
        return _OfAllGroups(optimizer, lambda step: self.factor(step, total_steps))

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)


class _OfAllGroups(LambdaLR):
    """torch's, for groups too that are added after it was made, which torch refuses at the next step."""

    def get_lr(self) -> list[Any]:
        groups = self.optimizer.param_groups
        self.base_lrs += [group.setdefault("initial_lr", group["lr"]) for group in groups[len(self.base_lrs) :]]
        self.lr_lambdas += [self.lr_lambdas[0]] * (len(groups) - len(self.lr_lambdas))
        return super().get_lr()


def constant(warmup: float = 0.0) -> Schedule:
    """One rate throughout, after a warm-up; see `Schedule`."""
    return Schedule("constant", warmup)


def linear(warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """A rate that falls linearly to ``final`` of itself, after a warm-up; see `Schedule`."""
    return Schedule("linear", warmup, final)


def cosine(warmup: float = 0.0, final: float = 0.0) -> Schedule:
    """A rate that falls along half a cosine to ``final`` of itself, after a warm-up; see `Schedule`."""
    return Schedule("cosine", warmup, final)
