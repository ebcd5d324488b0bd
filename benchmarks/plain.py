"""Depth of plain networks, layers behind one another without residual branches, under Adam.

    python benchmarks/plain.py run FILE.json [--families digits …] [--sizes 8x64 …] [--ways plain …] [--seeds 2]
    python benchmarks/plain.py report FILE.json

Each family has one base of two hidden layers, which is searched once under ``moments``, and targets of up to eight
times its depth (sizes are hidden layers × width). Every size is trained at five rates, an octave apart around the
base's, and at more where the best is at an end, in three ways:

    own      the author's init, one rate for all parameters
    one      ``moments``, one rate
    plain    ``moments``, with ``plan(width="mup", depth="plain")``

and at one rate as ``measured``: that of law ``short-run`` under ``moments``, which measures on the target; and on
request (``--ways both``) as ``both``: measured with the rule's factors on. The last families are those of
``benchmarks/kinds.py`` that are plain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, above, arguments, command, grids, place, times, trains
from kinds_networks import ADAMW, KINDS, Data, digits, friedman, kind, noisy, squared
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Family, curve_of, images, lowest, model_of, studies, text

import dagscale

WAYS: dict[str, dict[str, Any]] = {
    "own": {"init": "keep", "law": "none"},
    "one": {"init": "moments", "law": "none"},
    "plain": {"init": "moments", "width": "mup", "depth": "plain", "law": "none"},
    "measured": {"init": "moments", "law": "short-run"},
    "both": {"init": "moments", "law": "short-run", "width": "mup", "depth": "plain"},
}
GRIDS, MEASURED = ("own", "one", "plain"), ("measured", "both")
SIZES = ("2x64", "4x64", "8x64", "16x64", "8x128")

Norm = Callable[[int], nn.Module]


def perceptron(
    inputs: int, classes: int, depth: int, width: int, act: type[nn.Module], norm: Norm | None = None
) -> nn.Sequential:
    """Hidden layers of one width, each with an activation behind it, and perhaps a norm between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), *([norm(width)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Window(nn.Module):
    """The next byte from the sixteen before it, by a perceptron over their embeddings [Bengio et al. 2003]."""

    BYTES, SIZE = 16, 16

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(256, self.SIZE)
        self.layers = perceptron(self.BYTES * self.SIZE, 256, depth, width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.token(x))
        return out


@cache
def windows() -> tuple[Data, Data]:
    """The first sixteen bytes of each window of the standard library's sources, and the byte that follows."""
    (x, _), (held, _) = text()
    return (x[:, :16], x[:, 16]), (held[:, :16], held[:, 16])


def denoiser(depth: int, width: int) -> nn.Sequential:
    """3 × 3 convolutions with SiLU between them."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else 2, width, 3, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))


def on_images(act: type[nn.Module], norm: Norm | None = None) -> Family:
    """Perceptrons on CIFAR-10, halved, cropped and flipped at random."""

    def recipe(steps: int) -> dagscale.Recipe:
        return dagscale.Recipe(
            images()[0], F.cross_entropy, ADAMW, steps=steps, batch_size=64, weight_decay=0.05,
            schedule=dagscale.cosine(warmup=0.05), clip=1.0,
        )  # fmt: skip

    return Family(SIZES, 300, lambda d, w: perceptron(768, 10, d, w, act, norm), recipe, lambda: images()[1])


FAMILIES: dict[str, Family] = {
    "digits, ReLU": kind(
        SIZES, 200, lambda d, w: perceptron(64, 10, d, w, nn.ReLU), digits, F.cross_entropy, 64, ADAMW, warmup=0.05
    ),
    "table, tanh": kind(SIZES, 200, lambda d, w: perceptron(12, 1, d, w, nn.Tanh), friedman, squared, 64, ADAMW),
    "CIFAR-10, GELU": on_images(nn.GELU),
    "CIFAR-10, layer norm": on_images(nn.ReLU, nn.LayerNorm),
    "CIFAR-10, batch norm": on_images(nn.ReLU, nn.BatchNorm1d),
    "bytes, GELU": kind(SIZES, 300, Window, windows, F.cross_entropy, 64, ADAMW, weight_decay=0.1),
    "noise, convolutions": kind(
        ("2x8", "4x8", "8x8", "8x16"), 200, denoiser, noisy, squared, 16, torch.optim.Adam, constant=True
    ),
    **{
        name: replace(KINDS[name], sizes=KINDS[name].sizes[:2])
        for name in ("tabular", "actor-critic", "cnn", "gin", "dlrm")
    },
}
"""The rule was chosen on networks like the first two; on the others nothing was."""


def run(path: Path, names: list[str], sizes: list[str], ways: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: FAMILIES[name] for name in names}, until):
        family = study.family
        for size in (s for s in family.sizes if not sizes or s in sizes):
            for way in (w for w in ways if size != family.sizes[0] or w in ("own", "one")):  # the base is as it is
                plan = dagscale.plan(model_of(family, size), base=study.base, recipe=study.recipe, **WAYS[way])
                trains(study, way, size, plan, seeds)


def places(known: dict[str, Any]) -> Sheet:
    """Octaves from the base's rate to the best of each grid."""
    body = []
    for name, family in FAMILIES.items():
        for size in family.sizes:
            curves = grids(known.get(name, {}), size, GRIDS)
            if curves:
                body.append([name, times(size), *(place(curves[way]) if way in curves else "–" for way in GRIDS)])
    return ["family", "network", "author's init", "one rate", "plain"], body


def lost(known: dict[str, Any]) -> Sheet:
    """By how much each way's loss is above the lowest of all grids, for every target."""
    body = []
    for name, family in FAMILIES.items():
        own = known.get(name, {})
        small = grids(own, family.sizes[0], GRIDS)
        for size in family.sizes[1:]:
            curves = grids(own, size, GRIDS)
            if len(curves) < len(GRIDS):
                continue
            least = min(min(curve.values()) for curve in curves.values())
            losses = [
                curves["plain"][0], min(curves["plain"].values()),
                *(curve_of(own, way, size, ()).get(0) for way in MEASURED),
                curves["one"][0], min(curves["one"].values()),
                curves["own"].get(lowest(small["own"]), math.inf), min(curves["own"].values()),
            ]  # fmt: skip
            body.append([name, times(size), *(above(loss, least) for loss in losses)])
    heads = ["plain", "its grid", "measured", "both", "one rate", "its grid", "author's init", "its grid"]
    return ["family", "target", *heads], body


SHEETS = {"places": places, "lost": lost}

if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    runs.add_argument("--sizes", nargs="+", default=[])
    runs.add_argument("--ways", nargs="+", default=[w for w in WAYS if w != "both"], choices=list(WAYS))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.sizes, a.ways, a.seeds, until))
