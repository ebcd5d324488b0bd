"""How networks of a NAS benchmark are trained: recipes, which differ in each network's start and rate, and presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dagscale.bench.data.augment import padding
from dagscale.bench.nas import paper_code as released
from dagscale.registry import Registry
from dagscale.shown import counted
from dagscale.training.recipe import MakeSchedule


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Attributes:
        lr: learning rate at the start, per optimiser step; None where it is found on the base and carried over.
        init, law, width: as `dagscale.plan` takes them.
        base: code of the cell, one a stage, of the network whose rate is searched, under this very recipe.
        decays: weight decays that are searched with the rate; by default the recipe's own alone.
        narrower: the base has the target's channels divided by this.
    """

    optimizer: str
    lr: float | None
    momentum: float
    nesterov: bool
    weight_decay: float
    batch_size: int
    epochs: int
    schedule: str
    augment: tuple[str, ...]
    init: str = "keep"
    law: str = "none"
    width: str = "none"
    base: str | None = None
    decays: tuple[float, ...] = ()
    narrower: int = 1

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Recipe:
        """From plain data, as ``json`` reads what `dataclasses.asdict` gave."""
        return cls(**{**fields, "augment": tuple(fields["augment"]), "decays": tuple(fields["decays"])})

    def describe(self) -> str:
        """Start and rate, in words."""
        start = "PyTorch's init" if self.init == "keep" else f"init {self.init}"
        if self.base is None:
            return f"{start}, rate {self.lr:g} for all"
        carried = "for all" if self.law == "none" else f"times law {self.law}"
        if self.width != "none":
            carried = f"times {self.width}'s factor of each layer"
        width = "" if self.narrower == 1 else f", with 1/{self.narrower} of the channels"
        found = "rate and weight decay" if self.decays else "rate"
        return f"{start}, {found} found on {self.base} (one cell a stage{width}), the rate {carried}"

    def trained(self) -> str:
        """What all recipes share, in words."""
        return (
            f"{self.optimizer.upper()}, {'Nesterov ' if self.nesterov else ''}momentum {self.momentum}, weight decay "
            f"of all parameters ({self.weight_decay} where none is searched), batch {self.batch_size}, "
            f"{self.schedule} over {counted(self.epochs, 'epoch')}, {' and '.join(self.augment)}"
        )


RECIPES: Registry[Recipe] = Registry("recipe")
REFERENCE = "benchmark"
"""What every retraining trains, and others are held against."""

# As published [Dong & Yang 2020, Table 1].
BENCHMARK = Recipe("sgd", 0.1, 0.9, True, 5e-4, 256, 200, "cosine", ("flip", "crop"))
SEARCHED = replace(BENCHMARK, lr=None, base="0_00_300")
DECAYS = tuple(BENCHMARK.weight_decay * 4.0**k for k in (-1, 0, 1, 2))
RECIPES.add(REFERENCE)(BENCHMARK)
# What a searched rate gains without any look at the architecture, and what a decay searched with it does.
RECIPES.add("one-rate")(SEARCHED)
RECIPES.add("tuned")(replace(SEARCHED, decays=DECAYS))
# μP: a narrower base's rate; at equal width this would be ``tuned``.
RECIPES.add("mup")(replace(SEARCHED, decays=DECAYS, width="mup", narrower=2))
# As the paper's released code: its base has skip connections only.
RECIPES.add("released")(replace(SEARCHED, init=released.NAME, law=released.NAME, base="1_01_001"))
# dagscale's own defaults with data, and the pair of rate and decay. The base is as wide as the targets, and a cell's
# sums have no trunk that a depth rule could tell: neither width nor depth has anything to fold.
RECIPES.add("plan")(replace(SEARCHED, decays=DECAYS, init="moments", law="short-run"))
# The same on the author's init, which keeps the scale that normalised weights were given.
RECIPES.add("plan-kept")(replace(SEARCHED, decays=DECAYS, law="short-run"))
# The other half of the same question: that init without a law.
RECIPES.add("tuned-moments")(replace(SEARCHED, decays=DECAYS, init="moments"))


@dataclass(frozen=True)
class Preset:
    """How much is trained.

    Attributes:
        channels, cells: of the networks; the benchmark has 16 and 5.
        images: at most so many of each split; None for all.
        side: images are averaged down to this side; None leaves them as they are.
        rates: exponents of 2, lowest and highest, an octave apart, that a base's rate is searched among.
    """

    epochs: int
    batch_size: int
    channels: int
    cells: int
    images: int | None = None
    side: int | None = None
    rates: tuple[int, int] = (-8, 2)

    def target(self, code: str, *, cells: int | None = None, narrower: int = 1) -> str:
        """The TARGET of a cell at this size."""
        channels = max(1, self.channels // narrower)
        return f"nb201:{code}?channels={channels}&cells={self.cells if cells is None else cells}"

    def shorten(self, recipe: Recipe) -> Recipe:
        """The recipe at this length."""
        return replace(recipe, epochs=self.epochs, batch_size=self.batch_size)

    def describe(self) -> str:
        """All of it, in words."""
        images = "all images" if self.images is None else f"{self.images:,} images"
        side = "" if self.side is None else f" averaged down to {self.side}×{self.side}"
        return (
            f"{counted(self.epochs, 'epoch')} on {images}{side}, batch {self.batch_size}, "
            f"C={self.channels}, N={self.cells}"
        )


PRESETS: Registry[Preset] = Registry("preset")
PRESETS.add("full")(Preset(200, 256, 16, 5))
PRESETS.add("short-12")(Preset(12, 256, 16, 5))
PRESETS.add("small-6")(Preset(6, 64, 4, 1, images=3000, side=16))
PRESETS.add("micro-4")(Preset(4, 125, 8, 1, images=3000, side=8, rates=(-6, 1)))
PRESETS.add("mini-5")(Preset(5, 125, 8, 1, images=5000, side=16, rates=(-6, 1)))
PRESETS.add("tiny-1")(Preset(1, 32, 4, 1, images=200, rates=(-4, 0)))


def differences(preset: Preset, side: int) -> list[str]:
    """Where a retraining at this preset departs from the published recipe, a phrase each.

    Args:
        side: of the images as they are trained on.
    """
    full = PRESETS["full"]
    found = [
        f"{what} {ours}, published {published}"
        for what, ours, published in (
            ("epochs", preset.epochs, full.epochs),
            ("batch", preset.batch_size, full.batch_size),
            ("C", preset.channels, full.channels),
            ("N", preset.cells, full.cells),
            ("side of the images", side, 32),
            ("padding of the crop", padding(side), 4),
        )
        if ours != published
    ]
    if preset.images is not None:
        found.append(f"at most {preset.images:,} images a split, published all")
    return [
        *found,
        "cosine lowered at every step, in the published code once an epoch",
        "operations that read a vertex without signal are not run",
    ]


SCHEDULES: Registry[MakeSchedule] = Registry("schedule")
SCHEDULES.add("cosine")(lambda made, steps: torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=steps))
