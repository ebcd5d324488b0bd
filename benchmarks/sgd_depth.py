"""Residual networks of growing depth under SGD: is the base's rate carried over, or is the rate measured?

    python benchmarks/sgd_depth.py run FILE.json [--families noise …] [--seeds 2] [--minutes 10]     # resumable
    python benchmarks/sgd_depth.py report FILE.json

Each family has one base, its smallest size, that is searched once under the init that a search takes by itself, and
targets that are four times as deep, and twice as wide besides (sizes are blocks × width). They are trained in these
ways, all under the base's init:

    folded      as ``plan(width="mup", depth="completep")`` starts them, over a grid of rates an octave apart
    measured    at one rate, by the law that plans take by default: ``short-run``, which measures on the target; under
                plain SGD ``combined``, the mean of that and a closed form

On ResNets with batch norm (``benchmarks/transfer.py``, ``dagscale verify resnet``) the folded plan was better where the
depth grows. The networks here are others. The data of families that begin with CIFAR-10 lie where
``benchmarks/transfer.py`` has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, above, arguments, command, grids, place, times, trains
from kinds_networks import ResidualDenoiser, ResidualMlp, friedman, kind, noisy, squared
from regression import Dilated, Forecaster, PreNormMlp, Restorer, lorenz, masked_digits, pendula
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Family, curve_of, image_recipe, images, model_of, studies

import dagscale

WAYS: dict[str, dict[str, Any]] = {
    "folded": {"width": "mup", "depth": "completep", "law": "none"},
    "measured": {"width": "none"},
}
SIZES = ("2x32", "8x32", "8x64")
SGD = torch.optim.SGD

Norm = Callable[[int], nn.Module]


class PreActivation(nn.Module):
    """Blocks of norm, ReLU and convolution at one resolution, two 3×3 or a bottleneck of three [He et al. 2016b]."""

    def __init__(self, depth: int, width: int, norm: Norm, bottleneck: bool = False) -> None:
        super().__init__()
        inner = width // 2 if bottleneck else width

        def part(a: int, b: int, kernel: int) -> nn.Sequential:
            return nn.Sequential(norm(a), nn.ReLU(), nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False))

        def block() -> nn.Sequential:
            if bottleneck:
                return nn.Sequential(part(width, inner, 1), part(inner, inner, 3), part(inner, width, 1))
            return nn.Sequential(part(width, width, 3), part(width, width, 3))

        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm, self.head = norm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(F.relu(self.norm(x)).mean((2, 3)))
        return out


def in_groups(width: int) -> nn.GroupNorm:
    """Groups of four channels."""
    return nn.GroupNorm(width // 4, width)


def on_images(model: Callable[[int, int], nn.Module], momentum: float = 0.9) -> Family:
    """200 steps of 64 augmented images of CIFAR-10, decay 5e-4 on everything."""

    def recipe(steps: int) -> dagscale.Recipe:
        return image_recipe(
            steps, optimizer=SGD, momentum=momentum, nesterov=momentum > 0, weight_decay=5e-4, no_decay=(),
            schedule=dagscale.cosine(),
        )  # fmt: skip

    return Family(("2x16", "8x16", "8x32"), 200, model, recipe, lambda: images()[1])


def pre_norm(depth: int, width: int) -> nn.Module:
    return PreNormMlp(6, 4, depth, width)


HEAVY: dict[str, Any] = {"momentum": 0.9}
FAMILIES = {
    "table, norm behind the sum": kind(SIZES, 300, partial(ResidualMlp, norm=nn.LayerNorm), friedman, squared, 64, SGD,
                                       warmup=0.1, **HEAVY),
    "table, no norm": kind(SIZES, 300, partial(ResidualMlp, norm=nn.Identity), friedman, squared, 64, SGD, warmup=0.1,
                           **HEAVY),
    "pendula, pre-norm": kind(SIZES, 300, pre_norm, pendula, squared, 64, SGD, warmup=0.05, **HEAVY),
    "noise, no norm": kind(("2x8", "8x8", "8x16"), 200, ResidualDenoiser, noisy, squared, 16, SGD, **HEAVY),
    "masked digits, batch norm": kind(("2x8", "8x8", "8x16"), 150, Restorer, masked_digits, squared, 32, SGD,
                                      nesterov=True, weight_decay=5e-4, **HEAVY),
    "forecast, transformer": kind(SIZES, 200, Forecaster, lorenz, squared, 32, SGD, warmup=0.1, clip=1.0, **HEAVY),
    "forecast, convolutions": kind(SIZES, 200, Dilated, lorenz, squared, 32, SGD, clip=1.0, **HEAVY),
    "CIFAR-10, group norm": on_images(partial(PreActivation, norm=in_groups)),
    "CIFAR-10, bottlenecks": on_images(partial(PreActivation, norm=nn.BatchNorm2d, bottleneck=True)),
    "CIFAR-10, batch norm, plain": on_images(partial(PreActivation, norm=nn.BatchNorm2d), momentum=0.0),
    "CIFAR-10, no norm, plain": on_images(partial(PreActivation, norm=nn.Identity), momentum=0.0),
    "pendula, pre-norm, plain": kind(SIZES, 300, pre_norm, pendula, squared, 64, SGD, warmup=0.05),
    "noise, no norm, plain": kind(("2x8", "8x8", "8x16"), 200, ResidualDenoiser, noisy, squared, 16, SGD),
    "table, no norm, plain": kind(SIZES, 300, partial(ResidualMlp, norm=nn.Identity), friedman, squared, 64, SGD),
}  # fmt: skip


def run(path: Path, names: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: FAMILIES[name] for name in names}, until, init=None):
        init = study.own["base"]["init"]
        for size in study.family.sizes:
            for way in WAYS if size != study.family.sizes[0] else ("folded",):
                plan = dagscale.plan(
                    model_of(study.family, size), base=study.base, recipe=study.recipe, init=init, **WAYS[way]
                )
                trains(study, way, size, plan, seeds)


# --- report -----------------------------------------------------------------------------------------------------


def compared(known: dict[str, Any]) -> Sheet:
    """Losses at the base's rate and at the measured one, above the lowest of the grid, and where that lies."""
    body = []
    for name, family in FAMILIES.items():
        own = known.get(name, {})
        small = grids(own, family.sizes[0], ("folded",))
        for size in family.sizes[1:]:
            curve, measured = grids(own, size, ("folded",)).get("folded"), curve_of(own, "measured", size, ()).get(0)
            if not small or not curve or measured is None:
                continue
            least = min(*curve.values(), measured)
            carried = curve.get(0, math.inf)
            losses = (above(loss, least) for loss in (carried, measured, min(curve.values())))
            body.append([name, times(size), own["base"]["init"], *losses, place(small["folded"]), place(curve)])
    heads = ["carried over", "measured", "best of the grid", "best rate, base", "target"]
    return ["family", "target", "init", *heads], body


SHEETS = {"compared": compared}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.seeds, until))
