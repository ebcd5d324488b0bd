"""How large the factors of a dot product should start: a factorisation of ratings, by width.

    python benchmarks/products.py run FILE.json [--seeds 2] [--minutes 10]      # resumable
    python benchmarks/products.py report FILE.json

Ratings of 100 users for 100 items are half the dot product of four hidden numbers of each. The model has a row of
``width`` numbers for each user and item, their dot product, and a bias of each, and is trained by Adam at a constant
rate for 300 steps of 32 ratings under a squared error. Rates are an octave apart. Ways to start:

    author's    as ``nn.Embedding`` draws, N(0, 1)
    layers      each table with a second moment of 1, as ``moments`` draws other layers
    moments     as it draws these, for a second moment of 1 of the sum
    default     ``small-readout``, as plans take it under a squared error
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from kinds import Sheet, arguments, command
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import put

import dagscale
from dagscale.training.engine import train

WIDTHS, RATES = (4, 8, 16, 32, 64, 128), tuple(2.0**-k for k in range(3, 11))
INITS = {"author's": "keep", "layers": "keep", "moments": "moments", "default": None}


class Factorisation(nn.Module):
    """The dot product of two rows, and a bias of each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(100, width), nn.Embedding(100, width)
        self.likes, self.liked = nn.Embedding(100, 1), nn.Embedding(100, 1)

    def forward(self, x: Tensor) -> Tensor:
        user, item = x.unbind(1)
        dot = (self.user(user) * self.item(item)).sum(1)
        return dot + self.likes(user)[:, 0] + self.liked(item)[:, 0]


def ratings() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 100, (8192, 2), generator=g)
    user, item = (torch.randn(100, 4, generator=g) for _ in range(2))
    return x, (user[x[:, 0]] * item[x[:, 1]]).sum(1) / 2


def run(path: Path, seeds: int, until: float) -> None:
    known: dict[str, float | None] = json.loads(path.read_text()) if path.exists() else {}
    recipe = dagscale.Recipe(ratings(), F.mse_loss, "adam", steps=300, batch_size=32)
    for width in WIDTHS:
        for way, init in INITS.items():
            plan = dagscale.plan(Factorisation(width), recipe=recipe, init=init, law="none", base_lr=1.0)
            for k, rate in enumerate(RATES):
                for seed in range(seeds):
                    key = f"{way}/{width}/{k}/{seed}"
                    if key not in known and time.monotonic() < until:
                        loss = trained(width, way, plan, recipe, rate, seed)
                        known[key] = loss if math.isfinite(loss) else None
            put(path, known)


def trained(width: int, way: str, plan: dagscale.Plan, recipe: dagscale.Recipe, rate: float, seed: int) -> float:
    torch.manual_seed(seed)
    model = Factorisation(width)
    if way == "layers":
        for bias in (model.likes, model.liked):
            nn.init.normal_(bias.weight, 0.0, 3**-0.5)
    plan.init_(model, seed=seed)
    return train(model, recipe, plan.param_groups(model, lr=rate), seed=seed, evaluate=2048).loss


def lowest(known: dict[str, Any]) -> Sheet:
    """The lowest mean loss over rates of each way, and the rate; of the widths that are complete."""
    losses: dict[tuple[str, int, int], list[float]] = {}
    for key, loss in known.items():
        way, width, k, _ = key.split("/")
        losses.setdefault((way, int(width), int(k)), []).append(math.inf if loss is None else loss)
    body = []
    for width in WIDTHS:
        curves = [[losses.get((way, width, k)) for k in range(len(RATES))] for way in INITS]
        if not any(None in curve for curve in curves):
            bests = (min(zip(map(fmean, curve), RATES, strict=True)) for curve in curves)
            body.append([str(width), *(f"{loss:.3f} at {rate:.3g}" for loss, rate in bests)])
    return ["width", "author's", "each layer at 1", "`moments`", "by default"], body


SHEETS = {"lowest": lowest}


if __name__ == "__main__":
    parser, _ = arguments(__doc__)
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.seeds, until))
