"""How large learned tables, such as positions, should be drawn beside embeddings of second moment 1.

    python benchmarks/positions.py run FILE.json [--families bert …] [--scales 0.3 …] [--seeds 2] [--minutes 10]
    python benchmarks/positions.py report FILE.json

The init ``moments`` gives an embedding's output second moment 1. A table that is only added to it, as that of
positions, is drawn here N(0, s²) for several s; 0.02 is what authors of transformers draw. Everything else is as
``plan(width="mup", depth="completep")`` starts it, and every network is trained at three rates, an octave apart around
the base's, and at more where the best is at an end.

The families are those of ``benchmarks/kinds.py`` and ``benchmarks/transfer.py`` whose networks have such a table:
encoders, vision transformers and a transformer on tables, where every token sees every other, and decoders with a
causal mask. The table of ``ft`` is of features' biases; what it is added to, a learned vector times a feature's value,
is 0.15 in size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kinds import Sheet, arguments, command, folded
from kinds_networks import KINDS, WITH_POSITIONS
from torch import nn
from transfer import FAMILIES, Family, curve_of, model_of, studies

from dagscale.inits.positions import tables

AUTHORS = "0.02"
SCALES = (AUTHORS, "0.1", "0.3", "1", "2")
OCTAVES = (0, -1, 1)

STUDIED: Mapping[str, tuple[Family, tuple[str, ...]]] = {
    "bert": (KINDS["bert"], ("1x32", "4x32", "1x128")),
    "ft": (KINDS["ft"], ("1x16",)),
    "vit, digits": (WITH_POSITIONS["vit"], ("2x32",)),
    "vit": (FAMILIES["vit"], ("2x32", "8x32", "2x64")),
    "lm": (FAMILIES["lm"], ("2x64", "8x64", "2x128")),
    "lm, short": (WITH_POSITIONS["lm"], ("2x32",)),
}


def drawn(family: Family, size: str, scale: str, names: set[str], seed: int = 0) -> nn.Module:
    """A network with these tables N(0, scale²)."""
    model = model_of(family, size, seed=seed)
    with torch.no_grad():
        for name in sorted(names):
            model.get_parameter(name).normal_(0.0, float(scale))
    return model


def run(path: Path, families: list[str], scales: list[str], sizes: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: STUDIED[name][0] for name in families}, until):
        family = study.family
        listed = STUDIED[study.name][1]
        names = tables(study.base.network.graph)
        how = {"width": "mup", "depth": "completep", "law": "none", "keep": sorted(names)}
        for size in (s for s in listed if not sizes or s in sizes):
            for scale in scales:
                make = partial(drawn, family, size, scale, names)
                plan = folded(make(), base=study.base, recipe=study.recipe, **how)
                study.train(scale, size, plan, study.grid(scale, size, plan, OCTAVES), seeds, make)


def lowest_losses(known: dict[str, Any]) -> Sheet:
    """A row a network: the lowest loss of its grid at each scale, in percent above that at the authors'."""
    body = []
    for name, (_, sizes) in STUDIED.items():
        for size in sizes:
            curves = [curve_of(known.get(name, {}), scale, size, OCTAVES) for scale in SCALES]
            if any(curves[1:]) and curves[0]:
                least = min(curves[0].values())
                cells = [f"{100 * (min(c.values()) / least - 1):+.1f} %" if c else "–" for c in curves[1:]]
                body.append([name, size.replace("x", " × "), f"{least:.3f}", *(c.replace("-", "−") for c in cells)])
    return ["family", "network", f"loss at s = {AUTHORS}", *(f"s = {scale}" for scale in SCALES[1:])], body


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(STUDIED), choices=list(STUDIED))
    runs.add_argument("--scales", nargs="+", default=list(SCALES))
    runs.add_argument("--sizes", nargs="+", default=[])
    command(parser, [lowest_losses], lambda a, until: run(a.file, a.families, a.scales, a.sizes, a.seeds, until))
