"""How large readouts should start where a network is trained on a regression, by its lowest loss over rates.

    python benchmarks/regression.py run FILE.json [--families forecast …] [--seeds 2] [--minutes 10]     # resumable
    python benchmarks/regression.py report FILE.json

On ``benchmarks/kinds.py`` init ``small-readout`` was better than ``moments`` where the loss is a squared error. The
families here had no part in that: other data, other networks, and beside the squared error the Huber, the quantile and
the Poisson loss, and momentum beside Adam; and three whose targets are not standardised. Each has one base, its
smallest size, that is searched once under ``moments`` (sizes are layers or blocks × width), and is trained over a grid
of rates an octave apart, as in ``benchmarks/kinds.py``, in three ways:

    own      the author's init, one rate for all parameters
    folded   ``moments``, with the rules for width and depth, as far as there are any
    small    the same with init ``small-readout``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, above, arguments, command, grids, planned, signed, times, trains
from kinds_networks import ADAMW, Data, Recurrent, digits, kind, mlp, rollouts, source, split, squared
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Curve, Family, lowest, optimum, studies

GRIDS = ("own", "folded", "small")
ADAM, SGD = torch.optim.Adam, torch.optim.SGD
SIZES = ("2x32", "6x32", "2x128")


# --- networks ---------------------------------------------------------------------------------------------------


class PreNormMlp(nn.Module):
    """Blocks ``x + W₂ gelu(W₁ norm(x))``, and a norm before the readout."""

    def __init__(self, inputs: int, outputs: int, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(mlp(width, 2 * width, width, act=nn.GELU) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        out: Tensor = self.head(x)
        return out


class Forecaster(nn.Module):
    """Pre-norm causal transformer over states; predicts the next one at every place."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(3, width)
        layer = nn.TransformerEncoderLayer(width, width // 16, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.core = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.core(self.stem(x), mask=self.mask, is_causal=True))
        return out


class RecurrentForecaster(Recurrent):
    """The same with a GRU, from states in place of bytes."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__(nn.GRU, depth, width)
        self.token, self.head = nn.Linear(3, width), nn.Linear(width, 3)  # type: ignore[assignment]


class Dilated(nn.Module):
    """Residual causal convolutions over time, each twice as far apart as the one before [Bai et al. 2018, TCN]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(3, width, 1), nn.Conv1d(width, 3, 1)
        self.first = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2 ** (i % 3)) for i in range(depth))
        self.second = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.transpose(1, 2))
        for first, second in zip(self.first, self.second, strict=True):
            h = h + second(F.relu(first(F.pad(F.relu(h), (2 * first.dilation[0], 0)))))
        out: Tensor = self.head(h).transpose(1, 2)
        return out


class Field(nn.Module):
    """Coordinates → sines and cosines of them → a perceptron → brightness [Tancik et al. 2020]."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = mlp(4 * OCTAVE_COUNT, *[width] * depth, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = (x[..., None] * math.pi * 2.0 ** torch.arange(OCTAVE_COUNT)).flatten(1)
        out: Tensor = self.layers(torch.cat([waves.sin(), waves.cos()], 1))
        return out


class Restorer(nn.Module):
    """Convolutions with batch norm in residual blocks; predicts an image from one with patches blacked out."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()

        def conv(a: int, b: int) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3, padding=1)

        self.stem, self.head = conv(1, width), conv(width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), nn.BatchNorm2d(width), nn.ReLU(),
                          conv(width, width))
            for _ in range(depth)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.head(F.relu(x))
        return out


# --- data -------------------------------------------------------------------------------------------------------

LENGTH, OCTAVE_COUNT = 24, 5


def standard(x: Tensor) -> Tensor:
    """Mean 0 and second moment 1, column by column."""
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


@cache
def lorenz() -> tuple[Data, Data]:
    """Windows of a chaotic path and what comes next, with noise on what is seen [Lorenz 1963]."""
    g = source()
    state, path = torch.randn(256, 3, generator=g, dtype=torch.float64), []

    def speed(s: Tensor) -> Tensor:
        x, y, z = s.T
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)

    for step in range(2000):
        half = state + 0.005 * speed(state)
        state = state + 0.01 * speed(half)
        if step >= 500 and step % 12 == 0:
            path.append(state)
    states = standard(torch.stack(path, 1).float().flatten(0, 1)).view(256, -1, 3)
    windows = states.unfold(1, LENGTH + 1, LENGTH).flatten(0, 1).transpose(1, 2)
    windows = windows[torch.randperm(len(windows), generator=g)]
    seen = windows + 0.1 * torch.randn(windows.shape, generator=g)
    return split(seen[:, :-1], windows[:, 1:])


@cache
def pixels() -> tuple[Data, Data]:
    """Digits → themselves, every pixel standardised."""
    (x, _), (held, _) = digits()
    both = standard(torch.cat([held, x]).flatten(1))
    return split(both, both)


@cache
def masked_digits() -> tuple[Data, Data]:
    """Digits with a patch of 4×4 gone → the whole."""
    g = source()
    x = digits()[0][0].repeat(4, 1, 1, 1)
    rows, columns = torch.randint(0, 5, (2, len(x), 1), generator=g)
    at = torch.arange(8)
    inside = ((at >= rows) & (at < rows + 4))[:, None, :, None] & ((at >= columns) & (at < columns + 4))[:, None, None]
    return split(x.masked_fill(inside, 0.0), x)


@cache
def montage(raw: bool = False) -> tuple[Data, Data]:
    """Coordinates in a picture of 100 digits → brightness; ``raw``: 255 times as large."""
    x = digits()[0][0][:100, 0].view(10, 10, 8, 8).transpose(1, 2).reshape(80, 80)
    line = torch.linspace(-1, 1, 80)
    places = torch.cartesian_prod(line, line)
    mix = torch.randperm(len(places), generator=source())
    y = x.reshape(-1, 1)
    return split(places[mix], (255 * y if raw else standard(y))[mix])


@cache
def patients(raw: bool = False) -> tuple[Data, Data]:
    """The progress of diabetes in 442 patients from ten measurements [Efron et al. 2004]; ``raw``: from 25 to 346."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    mix = torch.randperm(len(x), generator=source())
    return split(standard(x)[mix], (y[:, None] if raw else standard(y[:, None]))[mix])


@cache
def pendula(raw: bool = False) -> tuple[Data, Data]:
    """State of a double pendulum → how it has changed after a fifth of a second; ``raw``: in degrees and degrees a
    second."""
    g = source()
    angles = math.pi * (2 * torch.rand(8000, 2, generator=g, dtype=torch.float64) - 1)
    state = torch.cat([angles, 2 * torch.randn(8000, 2, generator=g, dtype=torch.float64)], 1)

    def speed(s: Tensor) -> Tensor:
        a, b, v, w = s.T
        turn, free = (a - b), 3 - (2 * (a - b)).cos()
        first = -3 * 9.8 * a.sin() - 9.8 * (a - 2 * b).sin() - 2 * turn.sin() * (w**2 + v**2 * turn.cos())
        second = 2 * turn.sin() * (2 * v**2 + 2 * 9.8 * a.cos() + w**2 * turn.cos())
        return torch.stack([v, w, first / free, second / free], 1)

    later = state
    for _ in range(40):
        later = later + 0.005 * speed(later + 0.0025 * speed(later))
    seen = torch.cat([state[:, :2].sin(), state[:, :2].cos(), state[:, 2:] / 2], 1)
    change = (later - state).float()
    return split(seen.float(), change.rad2deg() if raw else standard(change))


@cache
def values() -> tuple[Data, Data]:
    """States of a pendulum and the discounted return that followed."""
    (x, y), (held, kept) = rollouts()
    return (x, y[:, 1:]), (held, kept[:, 1:])


@cache
def counts() -> tuple[Data, Data]:
    """Six features → a count, Poisson with a rate of about one to ten."""
    g = source()
    x = torch.randn(8000, 6, generator=g)
    rate = (1 + 0.6 * x[:, 0] * x[:, 1] + 0.5 * (2 * x[:, 2]).sin() + 0.4 * x[:, 3].abs()).clamp(-2, 3).exp()
    return split(x, torch.poisson(rate[:, None], generator=g))


# --- losses -----------------------------------------------------------------------------------------------------


def huber(out: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(out, target)


def quantile(out: Tensor, target: Tensor) -> Tensor:
    """Of 90 %."""
    off = target - out
    return torch.maximum(0.9 * off, -0.1 * off).mean()


def poisson(out: Tensor, target: Tensor) -> Tensor:
    """The deviance, of the logarithm of the rate, so that 0 is a perfect fit."""
    at_best = target - torch.special.xlogy(target, target)
    return 2 * (F.poisson_nll_loss(out, target, reduction="none") - at_best).mean()


def autoencoder(depth: int, width: int) -> nn.Sequential:
    return mlp(64, *[width] * depth, 8, *[width] * depth, 64, act=nn.Tanh)


SCALED: dict[str, tuple[Callable[..., tuple[Data, Data]], Callable[[Callable[[], tuple[Data, Data]]], Family]]] = {
    "patients": (patients, lambda data: kind(SIZES, 200, lambda d, w: mlp(10, *[w] * d, 1, act=nn.SiLU), data, squared,
                                             64, ADAMW, weight_decay=0.01)),
    "field": (montage, lambda data: kind(SIZES, 300, Field, data, squared, 128, constant=True)),
    "pendula": (pendula, lambda data: kind(SIZES, 300, lambda d, w: PreNormMlp(6, 4, d, w), data, squared, 64, ADAMW,
                                           warmup=0.05, weight_decay=0.01)),
}  # fmt: skip
"""Families that are trained on their targets standardised and as they are → their data, and what these make."""

RAW = {f"{name}, raw": name for name in SCALED}
"""Families whose targets are left as they are → those with the same standardised."""

FAMILIES = {
    "patients": SCALED["patients"][1](patients),
    "autoencoder": kind(("1x32", "3x32", "1x128"), 200, autoencoder, pixels, squared, 32),
    "forecast": kind(SIZES, 200, Forecaster, lorenz, squared, 32, ADAMW, warmup=0.1, clip=1.0, weight_decay=0.05),
    "gru forecast": kind(("1x32", "3x32", "1x128"), 150, RecurrentForecaster, lorenz, squared, 32, clip=1.0),
    "tcn": kind(SIZES, 200, Dilated, lorenz, squared, 32, clip=1.0),
    "field": SCALED["field"][1](montage),
    "pendula": SCALED["pendula"][1](pendula),
    "restorer": kind(("2x8", "6x8", "2x32"), 150, Restorer, masked_digits, squared, 32, ADAMW, weight_decay=0.01),
    "autoencoder, momentum": kind(("1x32", "3x32", "1x128"), 200, autoencoder, pixels, squared, 32, SGD,
                                  momentum=0.9),
    "pendula, momentum": kind(SIZES, 300, lambda d, w: mlp(6, *[w] * d, 4), pendula, squared, 64, SGD, momentum=0.9),
    "restorer, momentum": kind(("2x8", "6x8", "2x32"), 150, Restorer, masked_digits, squared, 32, SGD, momentum=0.9,
                               nesterov=True, weight_decay=5e-4),
    "values, Huber": kind(SIZES, 300, lambda d, w: mlp(3, *[w] * d, 1), values, huber, 64, eps=1e-5),
    "pendula, 90 %": kind(SIZES, 300, lambda d, w: PreNormMlp(6, 4, d, w), pendula, quantile, 64, ADAMW, warmup=0.05),
    "counts, Poisson": kind(SIZES, 300, lambda d, w: mlp(6, *[w] * d, 1, act=nn.GELU), counts, poisson, 64),
    **{raw: SCALED[name][1](partial(SCALED[name][0], raw=True)) for raw, name in RAW.items()},
    "autoencoder, sgd": kind(("1x32", "3x32", "1x128"), 200, autoencoder, pixels, squared, 32, SGD),
    "pendula, sgd": kind(SIZES, 300, lambda d, w: mlp(6, *[w] * d, 4), pendula, squared, 64, SGD, constant=True),
}  # fmt: skip


def run(path: Path, names: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: FAMILIES[name] for name in names}, until):
        for size in study.family.sizes:
            for way in GRIDS:
                trains(study, way, size, planned(study.family, size, study.base, study.recipe, way), seeds)


# --- report -----------------------------------------------------------------------------------------------------


def complete(known: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Curve], dict[str, Curve]]]:
    """Each network whose grids are complete: the family, the size, its curves and, of a target, those of its base;
    families of ``RAW`` apart."""
    for name, family in FAMILIES.items():
        if name in RAW:
            continue
        bases = grids(known.get(name, {}), family.sizes[0], GRIDS)
        for size in family.sizes:
            curves = grids(known.get(name, {}), size, GRIDS)
            if curves.keys() == bases.keys() == set(GRIDS):
                yield name, size, curves, bases if size != family.sizes[0] else {}


def readouts(known: dict[str, Any]) -> Sheet:
    """Lowest losses against those under ``moments``; and of targets, losses at the rate that is the base's best under
    the same init, above the lowest of all grids."""
    body = []
    for name, size, curves, bases in complete(known):
        low = {way: min(curve.values()) for way, curve in curves.items()}
        changes = [above(low[way], low["folded"]) for way in ("small", "own")]
        ways = ("folded", "small") if bases else ()
        carried = [above(curves[way].get(lowest(bases[way])), min(low.values())) for way in ways] or ["–", "–"]
        body.append([name, times(size), *changes, *carried])
    heads = ["`small-readout`", "author's init", "`moments`, carried over", "`small-readout`, carried over"]
    return ["family", "network", *heads], body


def moved(known: dict[str, Any]) -> Sheet:
    """Octaves from the best rate of the base to that of the target, under either init."""
    body = []
    for name, size, curves, bases in complete(known):
        if bases:
            body.append(
                [name, times(size), *(signed(optimum(curves[w]) - optimum(bases[w])) for w in ("folded", "small"))]
            )
    return ["family", "target", "`moments`", "`small-readout`"], body


def unscaled(known: dict[str, Any]) -> Sheet:
    """Lowest losses under ``moments`` over the variance of the targets, and the rate that was searched on the base, of
    standardised targets and of the same as they are."""
    body = []
    for raw, name in RAW.items():
        for size in FAMILIES[name].sizes:
            curves = [grids(known.get(one, {}), size, ("folded",)) for one in (name, raw)]
            if not all(curves):
                continue
            variances = [SCALED[name][0](raw=own)[0][1].var(0).mean().item() for own in (False, True)]
            lows = [min(curve["folded"].values()) / v for curve, v in zip(curves, variances, strict=True)]
            rates = [f"{known[one]['base']['lr']:.2g}" for one in (name, raw)]
            first = size == FAMILIES[name].sizes[0]
            body.append([name, times(size), *(f"{low:.3f}" for low in lows), *(rates if first else ("–", "–"))])
    heads = ["loss, standardised", "loss, as they are", "base's rate, standardised", "base's rate, as they are"]
    return ["family", "network", *heads], body


SHEETS = {"readouts": readouts, "moved": moved, "unscaled": unscaled}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.seeds, until))
