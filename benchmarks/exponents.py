"""How large layers should start whose output is an exponent: logarithms of scales, of rates, of densities.

    python benchmarks/exponents.py run FILE.json [--families coupling …] [--seeds 2] [--minutes 10]     # resumable
    python benchmarks/exponents.py report FILE.json

An exponential of a signal of second moment 1 has the second moment e² = 7.4. A flow multiplies the one of each of its
couplings by that of the next. Each family here has such layers, one base, its smallest size, and a deeper and a wider
target (couplings, layers or blocks × width). All are trained over a grid of rates an octave apart, as in
``benchmarks/kinds.py``, in four ways, without rules for width and depth:

    own      the author's init
    whole    the init that is the default under the loss, with these layers as large as any other
    quarter  the same with these layers a quarter as large
    small    the same with a sixteenth, as that init draws them where a signal is multiplied by the exponential

On ``coupling`` the question was raised. Which layers count, and the sixteenth, were settled when all families but
``linear attention`` had been seen.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from default_init import Variational, evidence, pictures
from kinds import Sheet, arguments, command, grids, times, trains
from kinds_networks import ADAMW, Data, digits, friedman, kind, mlp, rollouts, short, source, split, squared
from regression import counts, pendula, standard
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import model_of, next_byte, studies

import dagscale
from dagscale.graph.roles import log_scales
from dagscale.inits import wanted
from dagscale.planning.base import Base

TIMES = {"whole": 1.0, "quarter": 0.25, "small": wanted.SCALE}
GRIDS = ("own", *TIMES)


# --- networks ---------------------------------------------------------------------------------------------------


def likelihood(out: tuple[Tensor, Tensor], _: Tensor) -> Tensor:
    """Negative, per dimension, of a flow's ``(z, log |dz/dx|)`` under a normal distribution, in nats."""
    z, log_volume = out
    return (0.5 * z.square() + 0.5 * math.log(2 * math.pi)).flatten(1).mean() - log_volume.mean() / z[0].numel()


class Coupling(nn.Module):
    """Half of the dimensions scale and shift the other half, in turns [RealNVP, Dinh et al. 2017]."""

    def __init__(self, depth: int, width: int, size: int = 6) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(size // 2, width, width, size) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, 1)
            log_scale, shift = net(a).chunk(2, 1)
            x, volume = torch.cat([b * log_scale.exp() + shift, a], 1), volume + log_scale.sum(1)
        return x, volume


class Masked(nn.Module):
    """Each dimension is scaled and shifted by those before it, through masked layers [MAF, Papamakarios et al. 2017];
    the order is turned round from one to the next."""

    def __init__(self, depth: int, width: int, size: int = 6) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(size, width) for _ in range(depth))
        self.last = nn.ModuleList(nn.Linear(width, 2 * size) for _ in range(depth))
        hidden, place = torch.arange(width) % (size - 1), torch.arange(size)
        self.register_buffer("into", (hidden[:, None] >= place).float())
        self.register_buffer("out", (place[:, None] > hidden).float().repeat(2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for first, last in zip(self.first, self.last, strict=True):
            h = F.silu(F.linear(x, first.weight * self.into, first.bias))
            log_scale, shift = F.linear(h, last.weight * self.out, last.bias).chunk(2, 1)
            x, volume = ((x - shift) * (-log_scale).exp()).flip(1), volume - log_scale.sum(1)
        return x, volume


class Images(nn.Module):
    """Couplings of an image's channels by convolutions, behind rotations of the channels that are not trained [Glow,
    Kingma et al. 2018]; pixels are put into channels by fours."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mixes", torch.linalg.qr(torch.randn(depth, 4, 4))[0])
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU(),
                          nn.Conv2d(width, 4, 3, padding=1))
            for _ in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pixel_unshuffle(x, 2)
        volume = torch.zeros(len(x))
        for mix, net in zip(self.mixes, self.nets, strict=True):
            x = torch.einsum("oc,bchw->bohw", mix, x)
            a, b = x.chunk(2, 1)
            log_scale, shift = net(a).chunk(2, 1)
            x = torch.cat([a, b * log_scale.exp() + shift], 1)
            volume = volume + log_scale.flatten(1).sum(1)
        return x, volume


class Uncertain(nn.Module):
    """Mean and standard deviation, by one head each, of what follows."""

    def __init__(self, inputs: int, outputs: int, depth: int, width: int) -> None:
        super().__init__()
        self.body = mlp(inputs, *[width] * depth)
        self.mean, self.log_std = nn.Linear(width, outputs), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.body(x))
        return self.mean(h), self.log_std(h).clamp(-7, 4).exp()


def gaussian(out: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """Negative log likelihood in nats, above that of a standard deviation of a thousandth."""
    mean, std = out
    return (0.5 * ((target - mean) / std).square() + std.log()).mean() + math.log(1000)


class Actor(Uncertain):
    """Draws squashed actions, with their log likelihood [SAC, Haarnoja et al. 2018]."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().forward(x)
        noise = torch.randn_like(mean)
        raw = mean + std * noise
        log_density = -0.5 * noise.square() - std.log() - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), log_density


def soft(out: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    """A quadratic cost of the action and its entropy, as an actor's loss has them; above 0."""
    action, log_density = out
    return (5 * (action - target.tanh()).square() + 0.1 * log_density).mean() + 1


class Rates(nn.Module):
    """The rate of a Poisson process, as an exponential."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = mlp(6, *[width] * depth, 1, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).exp()


def deviance(rate: Tensor, target: Tensor) -> Tensor:
    return 2 * (rate - target + torch.special.xlogy(target, target) - torch.special.xlogy(target, rate)).mean()


class Rays(nn.Module):
    """Points along rays → density, as an exponential, and brightness → what is seen along each ray [Müller et al. 2022]
    of a slice through a volume."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.body = mlp(4 * WAVES, *[width] * depth)
        self.density, self.colour = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        at = x[:, None, :2] + x[:, None, 2:] * torch.linspace(0, 1, POINTS)[:, None]
        waves = (at[..., None] * math.pi * 2.0 ** torch.arange(WAVES)).flatten(2)
        h = F.relu(self.body(torch.cat([waves.sin(), waves.cos()], 2)))
        passed = (-self.density(h)[..., 0].exp() * (4 / POINTS)).exp()
        before = torch.cat([torch.ones_like(passed[:, :1]), passed.cumprod(1)[:, :-1]], 1)
        return (before * (1 - passed) * self.colour(h)[..., 0].sigmoid()).sum(1)


class Exponential(nn.Module):
    """Causal linear attention with exponentials as features [Choromanski et al. 2021, Zhang et al. 2024], pre-norm."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token, self.head, self.norm = nn.Embedding(256, width), nn.Linear(width, 256), nn.LayerNorm(width)
        self.norms, self.after = (nn.ModuleList(nn.LayerNorm(width) for _ in range(depth)) for _ in range(2))
        self.query, self.key, self.value, self.out = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(4)
        )
        self.mlps = nn.ModuleList(mlp(width, 2 * width, width, act=nn.GELU) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        past = torch.ones(x.shape[1], x.shape[1]).tril()
        for i, norm in enumerate(self.norms):
            n = norm(h)
            q, k = self.query[i](n).exp(), self.key[i](n).exp()
            weight = (q @ k.transpose(1, 2)) * past
            h = h + self.out[i]((weight / weight.sum(2, keepdim=True)) @ self.value[i](n))
            h = h + self.mlps[i](self.after[i](h))
        return self.head(self.norm(h))


# --- data -------------------------------------------------------------------------------------------------------

WAVES, POINTS = 3, 12


@cache
def swings() -> tuple[Data, Data]:
    """Speeds of double pendula, and what has changed a fifth of a second later, for a density of six numbers."""
    (x, y), (held, kept) = pendula()
    both = torch.cat([torch.cat([kept, y]), torch.cat([held, x])[:, 4:]], 1)
    return split(standard(both), both)


@cache
def smooth() -> tuple[Data, Data]:
    """Digits with noise of a sixteenth, standardised as a whole, for a density."""
    x = digits()[0][0]
    x = x + torch.randn(x.shape, generator=source()) / 16
    x = (x - x.mean()) / x.std()
    return split(x, x)


@cache
def spread() -> tuple[Data, Data]:
    """Friedman's function with noise that grows from 0.02 to 1 with one of the inputs."""
    (x, y), (held, kept) = friedman()
    x, y = torch.cat([held, x]), torch.cat([kept, y])
    noise = torch.randn(y.shape, generator=source()) * (0.02 * 50 ** x[:, :1].sigmoid()).view_as(y)
    return split(x, (y + noise).view(len(x), 1))


@cache
def controls() -> tuple[Data, Data]:
    """States of a pendulum and what to do there."""
    (x, _), (held, _) = rollouts()
    x = torch.cat([held, x])
    return split(x, (3 * x[:, :1] * x[:, 1:2] - x[:, 2:3]))


@cache
def seen() -> tuple[Data, Data]:
    """Rays through a cloud of balls, and how bright each is."""
    g = source()
    balls, radii = 2 * torch.rand(6, 2, generator=g) - 1, 0.1 + 0.2 * torch.rand(6, generator=g)
    light = torch.rand(6, generator=g)
    start, way = 2 * torch.rand(6000, 2, generator=g) - 1, torch.randn(6000, 2, generator=g)
    x = torch.cat([start, way], 1)
    steps = torch.linspace(0, 1, 8 * POINTS)
    at = start[:, None] + way[:, None] * steps[:, None]
    inside = ((at[:, :, None] - balls).norm(dim=3) < radii).float()
    density, colour = 8 * inside.amax(2), (inside * light).amax(2)
    passed = (-4 * density / len(steps)).exp()
    before = torch.cat([torch.ones(len(x), 1), passed.cumprod(1)[:, :-1]], 1)
    return split(x, (before * (1 - passed) * colour).sum(1))


SIZES = ("2x32", "6x32", "2x128")

FAMILIES = {
    "coupling": kind(("4x16", "12x16", "4x64"), 300, Coupling, swings, likelihood, 64, clip=5.0),
    "masked": kind(("2x32", "6x32", "2x128"), 300, Masked, swings, likelihood, 64, clip=5.0),
    "images": kind(("3x16", "9x16", "3x64"), 200, Images, smooth, likelihood, 32, clip=5.0),
    "uncertain": kind(SIZES, 300, lambda d, w: Uncertain(12, 1, d, w), spread, gaussian, 64, clip=5.0),
    "actor": kind(SIZES, 300, lambda d, w: Actor(3, 1, d, w), controls, soft, 64),
    "rates": kind(SIZES, 300, Rates, counts, deviance, 64),
    "variational": kind(("1x32", "3x32", "1x128"), 300, Variational, pictures, evidence, 64),
    "rays": kind(SIZES, 300, Rays, seen, squared, 64),
    "linear attention": kind(("1x32", "4x32", "1x128"), 150, Exponential, short, next_byte, 16, ADAMW,
                             warmup=0.1, clip=1.0, weight_decay=0.01),
}  # fmt: skip


EXPONENTS = {
    "coupling": r"nets\.\d+\.4\.weight",
    "masked": r"last\.\d+\.weight",
    "images": r"nets\.\d+\.4\.weight",
    "uncertain": r"log_std\.weight",
    "actor": r"log_std\.weight",
    "rates": r"layers\.(4|12)\.weight",
    "variational": r"encoder\.(2|6)\.weight",
    "rays": r"density\.weight",
    "linear attention": r"(query|key)\.\d+\.weight",
}
"""Family → its layers of which an exponential is taken."""


def planned(name: str, size: str, base: Base, recipe: dagscale.Recipe, way: str) -> dagscale.Plan:
    """One rate, under the init of one way."""
    family = FAMILIES[name]
    model, init = model_of(family, size), "keep" if way == "own" else None
    with patch.object(wanted, "SCALE", TIMES.get(way, 1.0)):
        plan = dagscale.plan(model, base=base, recipe=recipe, law="none", width="none", depth="none", init=init)
    if way == "own":
        return plan
    drawn, done = dict(plan.parameters), log_scales(dagscale.trace(model, family.held()[0][:8]))
    names = {n for n in drawn if re.fullmatch(EXPONENTS[name], n)}
    assert names, f"no exponents in {name}"
    for n in names - done:
        drawn[n] = replace(drawn[n], init_std=TIMES[way] * drawn[n].init_std)
    return replace(plan, parameters=drawn)


def run(path: Path, names: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: FAMILIES[name] for name in names}, until, init=None):
        for size in study.family.sizes:
            for way in GRIDS:
                trains(study, way, size, planned(study.name, size, study.base, study.recipe, way), seeds)


# --- report -----------------------------------------------------------------------------------------------------


def lowest_losses(known: dict[str, Any]) -> Sheet:
    """The lowest loss over rates under each init, of every network whose grids are complete."""
    body = []
    for name, family in FAMILIES.items():
        for size in family.sizes:
            curves = grids(known.get(name, {}), size, GRIDS)
            if curves.keys() == set(GRIDS):
                lows = (min(curves[way].values()) for way in GRIDS)
                body.append([name, times(size), *(f"{low:.3f}" if low < math.inf else "diverged" for low in lows)])
    return ["family", "network", "author's init", "as any other", "a quarter", "a sixteenth"], body


SHEETS = {"lowest": lowest_losses}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.seeds, until))
