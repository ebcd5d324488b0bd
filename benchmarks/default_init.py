"""Which init should be taken where nobody names one, as its base and its targets tell?

    python benchmarks/default_init.py run FILE.json [--families siren …] [--seeds 2] [--minutes 10]     # resumable
    python benchmarks/default_init.py report FILE.json

Each family has one base, its smallest size, that is searched under up to three inits: the default (``moments``, or
``small-readout`` under a squared error); ``keep``, the author's own; and ``damped`` where no norms stand between the
layers. Targets are three or four times as deep, and four times as wide (sizes are layers or blocks × width). They are
trained in these ways, each at the one rate that it comes to:

    default     ``plan(target, base=…)`` from the base under the default init, with nothing else said
    damped      the same from the base under ``damped``
    measured    law ``short-run`` or ``combined``, from the base under ``keep``
    carried     the rules for width and depth, as far as there are any, from the base under ``keep``

None of these networks had a part in ``benchmarks/kinds.py``, ``regression.py`` or ``which_init.py``, on whose results
the question was raised. Data of families on photographs lie where ``benchmarks/transfer.py`` has them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, arguments, command, folded, times
from kinds_networks import (
    ADAMW,
    NODES,
    Data,
    clicks,
    digits,
    friedman,
    kind,
    mlp,
    molecules,
    noisy,
    short,
    source,
    split,
    squared,
    unpacked,
)  # fmt: skip
from regression import lorenz, montage, standard
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Family, curve_of, images, model_of, put, trained

import dagscale
from dagscale.planning.base import Base
from dagscale.planning.defaults import init_for
from dagscale.planning.prepare import traced

SGD = torch.optim.SGD
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("default", {}),
    "damped": ("damped", {}),
    "measured": ("keep", {"width": "none"}),
    "carried": ("keep", {"law": "none", "width": "mup", "depth": "completep"}),
}
"""Way → the init that its base is searched under, and what is said to ``plan()``."""


# --- networks ---------------------------------------------------------------------------------------------------


class TextConvolutions(nn.Module):
    """Bytes → an embedding, convolutions of three, the maximum over time, the next byte [Kim 2014]; no norms."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(256, width)
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x).transpose(1, 2)
        for layer in self.layers:
            h = F.relu(layer(h))
        out: Tensor = self.head(h.amax(2))
        return out


class Points(nn.Module):
    """A perceptron of each point, the maximum or the sum over points, a perceptron [Qi et al. 2017; Zaheer et al.]."""

    def __init__(self, depth: int, width: int, norm: bool) -> None:
        super().__init__()
        self.norm, widths = norm, [3, *[width] * depth]
        self.each = nn.ModuleList(nn.Conv1d(a, b, 1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) if norm else nn.Identity() for _ in range(depth))
        self.head = mlp(width, width, len(SHAPES))

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        for layer, norm in zip(self.each, self.norms, strict=True):
            h = F.relu(norm(layer(h)))
        out: Tensor = self.head(h.amax(2) if self.norm else h.sum(2) / math.sqrt(h.shape[2]))
        return out


class Variational(nn.Module):
    """Encoder → mean and log variance of a code, decoder of a draw → logits of pixels, then the two; a VAE."""

    def __init__(self, depth: int, width: int, code: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, *[width] * depth, 2 * code), mlp(code, *[width] * depth, 64)

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return torch.cat([self.decoder(drawn), mean, log_variance], 1)


class MinGRU(nn.Module):
    """A language model of pre-norm residual blocks, whose gates do not see the state [Feng et al. 2024]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))
        self.gates, self.states, self.ends = (
            nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x)
        for norm, gate, state, end in zip(self.norms, self.gates, self.states, self.ends, strict=True):
            n = norm(h)
            opened, fresh = gate(n).sigmoid(), state(n)
            memory, seen = torch.zeros_like(h[:, 0]), []
            for t in range(h.shape[1]):
                memory = memory + opened[:, t] * (fresh[:, t] - memory)
                seen.append(memory)
            h = h + end(torch.stack(seen, 1))
        out: Tensor = self.head(h)
        return out


class Next(nn.Module):
    """Depthwise 7×7, layer norm, two pointwise layers, each branch times a learnt 10⁻² [Liu et al. 2022, ConvNeXt]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width), nn.Linear(width, 10)
        self.depthwise = nn.ModuleList(nn.Conv2d(width, width, 7, padding=3, groups=width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.points = nn.ModuleList(mlp(width, 4 * width, width, act=nn.GELU) for _ in range(depth))
        self.scales = nn.ParameterList(nn.Parameter(torch.full((width,), 1e-2)) for _ in range(depth))
        for layer in (m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))):
            nn.init.trunc_normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm, point, scale in zip(self.depthwise, self.norms, self.points, self.scales, strict=True):
            x = x + (scale * point(norm(conv(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        out: Tensor = self.head(self.norm(x.mean((2, 3))))
        return out


class VGG(nn.Module):
    """3×3 convolutions behind one another, pooled once, with batch norm or without."""

    def __init__(self, depth: int, width: int, norm: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, 2, 1), nn.Linear(width, 10)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity(),
                            nn.ReLU()) for _ in range(depth))
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(F.relu(self.stem(x))).amax((2, 3)))
        return out


class Inverted(nn.Module):
    """Wide depthwise 3×3 between thin ends, batch norm after each [Sandler et al. 2018]; drawn as torchvision's."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()

        def part(a: int, b: int, kernel: int, groups: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(a, b, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(b)]

        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6())
        self.blocks = nn.ModuleList(
            nn.Sequential(*part(width, 4 * width, 1), nn.ReLU6(), *part(4 * width, 4 * width, 3, 4 * width), nn.ReLU6(),
                          *part(4 * width, width, 1))
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(width, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class Siren(nn.Module):
    """Coordinates → sines of sines → brightness, drawn as its authors say [Sitzmann et al. 2020]."""

    def __init__(self, depth: int, width: int, speed: float = 30.0) -> None:
        super().__init__()
        self.speed, widths = speed, [2, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(width, 1)
        for i, layer in enumerate([*self.layers, self.head]):
            bound = 1 / 2 if i == 0 else math.sqrt(6 / layer.in_features) / speed
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = (self.speed * layer(x)).sin()
        out: Tensor = self.head(x)
        return out


class Towers(nn.Module):
    """The upper and the lower half of a digit, a tower each → how alike they are, each with each of the batch."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.upper, self.lower = (mlp(32, *[width] * depth, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        one, other = x.flatten(1).chunk(2, 1)
        return 10 * F.normalize(self.upper(one), dim=1) @ F.normalize(self.lower(other), dim=1).T


class Sage(nn.Module):
    """``h ← relu(W h + V mean of the neighbours' h)`` [Hamilton et al. 2017], the mean over nodes; no norms."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(8, width)
        self.own, self.others = (nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(2))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kinds, here, there = unpacked(x)
        h = self.kind(kinds)
        count = torch.zeros(len(h)).index_add(0, there, torch.ones(len(there))).clamp(min=1)[:, None]
        for own, others in zip(self.own, self.others, strict=True):
            h = F.relu(own(h) + others(torch.zeros_like(h).index_add(0, there, h[here]) / count))
        out: Tensor = self.head(h.view(len(x), NODES, -1).mean(1))
        return out


class ReZero(nn.Module):
    """Blocks ``x + α f(x)`` with α = 0 at first, without norms [Bachlechner et al. 2021]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(mlp(width, 2 * width, width) for _ in range(depth))
        self.scales = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block, scale in zip(self.blocks, self.scales, strict=True):
            x = x + scale * block(x)
        out: Tensor = self.head(x)
        return out


class Diffusion(nn.Module):
    """Residual blocks with group norm and a shift by the noise level, ends of branches and of the network 0, as ADM."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.level = mlp(1, 2 * width, width, act=nn.SiLU)
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in range(2 * depth))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2 * depth))
        self.shifts = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for layer in (self.head, *self.convs[1::2]):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        level = F.silu(self.level(x[:, 1, 0, :1]))
        h = self.stem(x[:, :1])
        for i, shift in enumerate(self.shifts):
            part = self.convs[2 * i](F.silu(self.norms[2 * i](h))) + shift(level)[..., None, None]
            h = h + self.convs[2 * i + 1](F.silu(self.norms[2 * i + 1](part)))
        out: Tensor = self.head(h)
        return out


class Rows(nn.Module):
    """A digit row by row through stacked LSTM layers → its class."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.core, self.head = nn.LSTM(8, width, depth, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.core(x[:, 0])[0][:, -1])
        return out


class Mixture(nn.Module):
    """A past window → mixture of four normal densities of what is next, by a perceptron [Bishop 1994]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = mlp(24, *[width] * depth, 12, act=nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x.flatten(1))
        return out


# --- data and losses --------------------------------------------------------------------------------------------

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "helix", "plane", "cross")


@cache
def clouds() -> tuple[Data, Data]:
    """48 points on one of eight shapes, turned about the upright, stretched, with noise → which shape."""
    g, count, n = source(), 6000, 48
    a, b = torch.rand(2, count, n, generator=g)
    turn, height = 2 * math.pi * a, 2 * b - 1
    ball = (1 - height.square()).clamp(min=0).sqrt()
    side = torch.randint(6, (count, n), generator=g)
    flat = torch.stack([2 * a - 1, height, torch.where(side % 2 == 0, 1.0, -1.0)], -1)
    cube = torch.stack([flat.roll(k, -1) for k in range(3)])[side // 2, torch.arange(count)[:, None], torch.arange(n)]
    zero = torch.zeros_like(a)
    made = [
        torch.stack([ball * turn.cos(), ball * turn.sin(), height], -1),
        cube,
        torch.stack([turn.cos(), turn.sin(), height], -1),
        torch.stack([b * turn.cos(), b * turn.sin(), 1 - 2 * b], -1),
        torch.stack([(1 + 0.4 * (6.3 * b).cos()) * turn.cos(), (1 + 0.4 * (6.3 * b).cos()) * turn.sin(),
                     0.4 * (6.3 * b).sin()], -1),
        torch.stack([(2 * turn).cos(), (2 * turn).sin(), 2 * a - 1], -1),
        torch.stack([2 * a - 1, height, zero], -1),
        torch.where((side % 2 == 0)[..., None], torch.stack([2 * a - 1, zero, height], -1),
                    torch.stack([zero, 2 * a - 1, height], -1)),
    ]  # fmt: skip
    y = torch.randint(len(SHAPES), (count,), generator=g)
    x = torch.stack(made)[y, torch.arange(count)]
    angle = 2 * math.pi * torch.rand(count, generator=g)
    c, s, o, i = angle.cos(), angle.sin(), torch.zeros(count), torch.ones(count)
    spin = torch.stack([torch.stack([c, -s, o], -1), torch.stack([s, c, o], -1), torch.stack([o, o, i], -1)], 1)
    x = x * (0.7 + 0.6 * torch.rand(count, 1, 3, generator=g))
    return split(x @ spin + 0.1 * torch.randn(count, n, 3, generator=g), y)


@cache
def last_byte() -> tuple[Data, Data]:
    """Windows of 32 bytes and the one byte that follows."""
    train, held = ((x, y[:, -1]) for x, y in short())
    return train, held


@cache
def next_state() -> tuple[Data, Data]:
    """Eight states of a chaotic path → the first coordinate of the next."""
    (x, y), (a, b) = lorenz()
    return (x[:, -8:], y[:, -1, :1]), (a[:, -8:], b[:, -1, :1])


@cache
def pictures() -> tuple[Data, Data]:
    """Digits → their own pixels, from 0 to 1."""
    (x, _), (held, _) = digits()
    low, high = float(x.min()), float(x.max())
    return (x, (x.flatten(1) - low) / (high - low)), (held, (held.flatten(1) - low) / (high - low))


@cache
def tables() -> tuple[Data, Data]:
    """The dense and coded features of clicks as one table, standardised."""
    (x, y), (held, kept) = clicks()
    both = standard(torch.cat([held, x]))
    return (both[len(held) :], y.long()), (both[: len(held)], kept.long())


@cache
def photographs() -> tuple[Data, Data]:
    """CIFAR-10 at 16×16 without shifts or flips."""
    train, held = images()
    return (train.x[:, :, 2:-2, 2:-2], train.y), held


def evidence(out: Tensor, target: Tensor) -> Tensor:
    """The negative lower bound on the evidence, per example."""
    pixels, mean, log_variance = out.split([64, 8, 8], 1)
    fit = F.binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(1)
    away = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
    return (fit + away).mean() / 10


def surprise(out: Tensor, target: Tensor) -> Tensor:
    """The negative logarithm of the mixture's density, plus 4 so that it stays positive."""
    share, mean, log_scale = out.chunk(3, 1)
    log_scale = log_scale.clamp(-4, 4)
    each = share.log_softmax(1) - log_scale - 0.5 * ((target - mean) * (-log_scale).exp()).square() - 0.919
    return 4 - each.logsumexp(1).mean()


def pairs(out: Tensor, target: Tensor) -> Tensor:
    """Each upper half has its own lower half among those of the batch."""
    return F.cross_entropy(out, torch.arange(len(out)))


def every_byte(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


# --- families ---------------------------------------------------------------------------------------------------

SIZES, SMALL = ("2x32", "6x32", "2x128"), ("2x8", "6x8", "2x32")
HEAVY: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def perceptron(depth: int, width: int) -> nn.Sequential:
    return mlp(16, *[width] * depth, 2)


def with_norm(depth: int, width: int) -> nn.Sequential:
    """Layer norm before every activation."""
    sizes = pairwise([12, *[width] * depth])
    layers = [nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU()) for a, b in sizes]
    return nn.Sequential(*layers, nn.Linear(width, 1))


FAMILIES = {
    "text, convolutions": kind(SIZES, 200, TextConvolutions, last_byte, F.cross_entropy, 32, clip=1.0),
    "points, batch norm": kind(SIZES, 200, partial(Points, norm=True), clouds, F.cross_entropy, 32),
    "points, sum": kind(SIZES, 200, partial(Points, norm=False), clouds, F.cross_entropy, 32),
    "variational": kind(("1x32", "3x32", "1x128"), 300, Variational, pictures, evidence, 64, constant=True),
    "minGRU": kind(("1x32", "4x32", "1x128"), 120, MinGRU, short, every_byte, 16, ADAMW, warmup=0.1, clip=1.0,
                   weight_decay=0.1),
    "ConvNeXt": kind(("2x16", "6x16", "2x64"), 150, Next, photographs, F.cross_entropy, 32, ADAMW, warmup=0.1,
                     weight_decay=0.05),
    "VGG": kind(SMALL, 200, partial(VGG, norm=False), photographs, F.cross_entropy, 32),
    "VGG, batch norm, momentum": kind(SMALL, 200, partial(VGG, norm=True), photographs, F.cross_entropy, 32, SGD,
                                      **HEAVY),
    "inverted residuals, momentum": kind(SMALL, 150, Inverted, photographs, F.cross_entropy, 32, SGD, **HEAVY),
    "siren": kind(SIZES, 300, Siren, montage, squared, 256, constant=True),
    "two towers": kind(SIZES, 200, Towers, digits, pairs, 64),
    "GraphSAGE": kind(SIZES, 200, Sage, molecules, squared, 32),
    "ReZero": kind(SIZES, 150, ReZero, digits, F.cross_entropy, 32, ADAMW, weight_decay=0.01),
    "diffusion": kind(SMALL, 200, Diffusion, noisy, squared, 16, ADAMW, warmup=0.1, clip=1.0, weight_decay=0.01),
    "rows, LSTM": kind(("1x32", "3x32", "1x128"), 150, Rows, digits, F.cross_entropy, 32, clip=1.0),
    "mixture density": kind(SIZES, 300, Mixture, next_state, surprise, 64, clip=1.0),
    "table, layer norm": kind(SIZES, 300, with_norm, friedman, squared, 64, ADAMW, weight_decay=0.01),
    "clicks, momentum": kind(SIZES, 300, perceptron, tables, F.cross_entropy, 64, SGD, momentum=0.9),
    "clicks, plain": kind(SIZES, 300, perceptron, tables, F.cross_entropy, 64, SGD),
    "VGG, plain": kind(SMALL, 200, partial(VGG, norm=False), photographs, F.cross_entropy, 32, SGD),
    "text, plain": kind(SIZES, 200, TextConvolutions, last_byte, F.cross_entropy, 32, SGD),
    "mixture, plain": kind(SIZES, 300, Mixture, next_state, surprise, 64, SGD, clip=1.0),
    "points, plain": kind(SIZES, 200, partial(Points, norm=False), clouds, F.cross_entropy, 32, SGD),
}  # fmt: skip

UNNORMED = (
    "text, convolutions", "points, sum", "variational", "VGG", "two towers", "GraphSAGE", "ReZero", "rows, LSTM",
    "mixture density", "clicks, momentum", "clicks, plain", "VGG, plain", "text, plain", "mixture, plain",
    "points, plain",
)  # fmt: skip
"""Families without norms."""


def run(path: Path, names: list[str], seeds: int, until: float) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        family, own = FAMILIES[name], known.setdefault(name, {})
        recipe = family.recipe(family.steps)
        about = own.setdefault("base", {"laws": {}})
        for init in ("default", "keep", *(["damped"] if name in UNNORMED else [])):
            if init not in about and time.monotonic() < until:
                about[init] = searched(family, recipe, init)
                put(path, known)
        for size in family.sizes[1:]:
            for way, (init, said) in WAYS.items():
                if init not in about:
                    continue
                missing = [seed for seed in range(seeds) if f"{way}/{size}/0/{seed}" not in own]
                if not missing or time.monotonic() > until:
                    continue
                plan = planned(family, size, recipe, about[init], said)
                about["laws"][f"{way}/{size}"] = plan.law
                for seed in missing:
                    run = trained(model_of(family, size, seed=seed), family, plan, recipe, plan.lr, seed)
                    own[f"{way}/{size}/0/{seed}"] = run
                put(path, known)


def searched(family: Family, recipe: dagscale.Recipe, init: str) -> dict[str, Any]:
    """What is found for the base under one init."""
    small = model_of(family, family.sizes[0])
    named = init_for(traced(small, None, recipe, 0)) if init == "default" else init
    found = dagscale.search(small, recipe, init=named, seeds=2)
    return {"init": found.init, "lr": found.lr, "loss": found.loss, "steps": found.steps}


def planned(
    family: Family, size: str, recipe: dagscale.Recipe, found: dict[str, Any], said: dict[str, Any]
) -> dagscale.Plan:
    """The plan of one way for a target."""
    base = Base.given(traced(model_of(family, family.sizes[0]), None, recipe, 0, role="base"), found["lr"])
    return folded(model_of(family, size), base=base, recipe=recipe, init=found["init"], **said)


# --- report -----------------------------------------------------------------------------------------------------


Losses = dict[str, float | None]


def targets(known: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Losses]]]:
    """Each target: its family, its size, and losses of the base and of the target, by way."""
    for name, family in FAMILIES.items():
        about = known.get(name, {}).get("base", {})
        if not {"default", "keep"} <= about.keys():
            continue
        for size in family.sizes[1:]:
            at_target = {way: curve_of(known[name], way, size, ()).get(0) for way in WAYS}
            at_base = {way: about[init]["loss"] if init in about else None for way, (init, _) in WAYS.items()}
            if at_target["carried"] is not None:
                yield name, size, {"base": at_base, "target": at_target}


def compared(known: dict[str, Any], ways: Sequence[str]) -> list[list[str]]:
    """Families whose bases were searched in these ways: how far base and targets end from the default."""
    body = []
    for name, size, losses in targets(known):
        if losses["target"][ways[0]] is not None:
            init = known[name]["base"]["default"]["init"]
            cells = [percent(losses["base"], ways[0]), *(percent(losses["target"], way) for way in ways)]
            body.append([name, f"`{init}`", times(size), *cells])
    return body


def own(known: dict[str, Any]) -> Sheet:
    """The author's init against the default."""
    heads = ["family", "default init", "target", "base", "target, carried over", "target, measured"]
    return heads, compared(known, ("carried", "measured"))


def faded(known: dict[str, Any]) -> Sheet:
    """Init ``damped`` against the default, on families without norms."""
    return ["family", "default init", "target", "base", "target"], compared(known, ("damped",))


CHANCE = 0.02
"""Losses that are no further apart than this part of them are counted as even."""


def counted(known: dict[str, Any]) -> Sheet:
    """How many targets end lower or higher than the default's, by what has grown, and by what the base says."""
    body = []
    for way, title in (
        ("carried", "author's, carried over"),
        ("measured", "author's, measured"),
        ("damped", "`damped`"),
    ):
        for grown, place in (("deeper", 0), ("wider", 1)):
            for says in ("lower", "even", "higher"):
                found = [
                    verdict(losses["target"], way)
                    for name, size, losses in targets(known)
                    if losses["target"][way] is not None
                    and FAMILIES[name].sizes[1:].index(size) == place
                    and verdict(losses["base"], way) == says
                ]
                body.append([title, grown, says, *(str(found.count(one)) for one in ("lower", "even", "higher"))])
    return ["init", "targets", "its base ends", "targets lower", "even", "higher"], body


def verdict(losses: Losses, way: str) -> str:
    """Whether a way ends lower than the default or higher."""
    found, default = (losses[w] or math.inf for w in (way, "default"))
    if found == default or abs(found - default) <= CHANCE * default < math.inf:
        return "even"
    return "lower" if found < default else "higher"


def percent(losses: Losses, way: str) -> str:
    """By how much a way ends above the default."""
    found, default = losses[way], losses["default"]
    if default is None or not math.isfinite(default):
        return "the default diverged"
    if found is None or not math.isfinite(found):
        return "diverged"
    return f"{100 * (found / default - 1):+.1f} %".replace("-", "−")


SHEETS = {"counted": counted, "own": own, "faded": faded}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.seeds, until))
