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

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, above, arguments, report, times
from kinds_networks import ADAMW, KINDS, Data, digits, friedman, kind, noisy, squared
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Curve, Family, base_of, curve_of, images, lowest, model_of, octaves, optimum, put, text, trained

import dagscale

WAYS: dict[str, dict[str, Any]] = {
    "own": {"init": "keep", "law": "none"},
    "one": {"law": "none"},
    "plain": {"width": "mup", "depth": "plain", "law": "none"},
    "measured": {"law": "short-run"},
    "both": {"law": "short-run", "width": "mup", "depth": "plain"},
}
MEASURED = ("measured", "both")
OCTAVES = (0, -1, 1, -2, 2)
SIZES = ("2x64", "4x64", "8x64", "16x64", "8x128")

Layer = Callable[[int], list[nn.Module]]


def perceptron(inputs: int, classes: int, after: Layer, depth: int, width: int) -> nn.Sequential:
    """Hidden layers of one width; ``after(width)``: what follows each of them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), *after(width)]
    return nn.Sequential(*layers, nn.Linear(width, classes))


class Window(nn.Module):
    """The next byte from the sixteen before it, by a perceptron over their embeddings [Bengio et al. 2003]."""

    BYTES, SIZE = 16, 16

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(256, self.SIZE)
        self.layers = perceptron(self.BYTES * self.SIZE, 256, lambda _: [nn.GELU()], depth, width)

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


def on_digits(*after: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    return lambda depth, width: perceptron(64, 10, lambda n: [layer(n) for layer in after], depth, width)


def act(layer: type[nn.Module]) -> Callable[[int], nn.Module]:
    return lambda _: layer()


def on_images(*after: Callable[[int], nn.Module]) -> Family:
    """Perceptrons on CIFAR-10, halved, cropped and flipped at random."""

    def recipe(steps: int) -> dagscale.Recipe:
        return dagscale.Recipe(
            images()[0], F.cross_entropy, ADAMW, steps=steps, batch_size=64, weight_decay=0.05,
            schedule=dagscale.cosine(warmup=0.05), clip=1.0,
        )  # fmt: skip

    def model(depth: int, width: int) -> nn.Module:
        return perceptron(768, 10, lambda n: [layer(n) for layer in after], depth, width)

    return Family(SIZES, 300, model, recipe, lambda: images()[1])


FRIEDMAN = kind(SIZES, 200, lambda d, w: perceptron(12, 1, lambda _: [nn.Tanh()], d, w), friedman, squared, 64, ADAMW)
FAMILIES: dict[str, Family] = {
    "digits, ReLU": kind(SIZES, 200, on_digits(act(nn.ReLU)), digits, F.cross_entropy, 64, ADAMW, warmup=0.05),
    "table, tanh": FRIEDMAN,
    "CIFAR-10, GELU": on_images(act(nn.GELU)),
    "CIFAR-10, layer norm": on_images(nn.LayerNorm, act(nn.ReLU)),
    "CIFAR-10, batch norm": on_images(nn.BatchNorm1d, act(nn.ReLU)),
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
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        family = FAMILIES[name]
        recipe = family.recipe(family.steps)
        own = known.setdefault(name, {})
        base = base_of(own, family, recipe)
        put(path, known)
        for size in (s for s in family.sizes if not sizes or s in sizes):
            for way in (w for w in ways if size != family.sizes[0] or w in ("own", "one")):  # the base is as it is
                plan = dagscale.plan(model_of(family, size), base=base, recipe=recipe, **WAYS[way])
                grid = octaves(partial(curve_of, own, way, size, ()), OCTAVES)
                for octave in grid if way not in MEASURED else (0,):
                    for seed in range(seeds):
                        key = f"{way}/{size}/{octave}/{seed}"
                        if key not in own and time.monotonic() < until:
                            trial = model_of(family, size, seed=seed)
                            own[key] = trained(trial, family, plan, recipe, plan.lr * 2.0**octave, seed)
                            put(path, known)


def grids(own: dict[str, Any], size: str) -> dict[str, Curve]:
    """Way → its curve, where that is complete."""
    found = {way: curve_of(own, way, size, OCTAVES) for way in WAYS}
    return {way: curve for way, curve in found.items() if curve}


def places(known: dict[str, Any]) -> Sheet:
    """Octaves from the base's rate to the best of each grid."""
    body = []
    for name, family in FAMILIES.items():
        for size in family.sizes:
            curves = grids(known.get(name, {}), size)
            if curves:
                found = [f"{optimum(curves[w]):+.1f}" if w in curves else "–" for w in ("own", "one", "plain")]
                body.append([name, times(size), *(place.replace("-", "−") for place in found)])
    return ["family", "network", "author's init", "one rate", "plain"], body


def lost(known: dict[str, Any]) -> Sheet:
    """By how much each way's loss is above the lowest of all grids, for every target."""
    body = []
    for name, family in FAMILIES.items():
        own = known.get(name, {})
        small = grids(own, family.sizes[0])
        for size in family.sizes[1:]:
            curves = grids(own, size)
            if not {"own", "one", "plain"} <= curves.keys():
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
    given = parser.parse_args()
    if given.command == "report":
        report(given.file, SHEETS.values())
    else:
        torch.set_num_threads(1)
        until = time.monotonic() + 60 * given.minutes
        run(given.file, given.families, given.sizes, given.ways, given.seeds, until)
