"""How large the factors of a dot product should start: a factorisation of ratings, by width.

    python benchmarks/products.py run FILE.json [--seeds 2]
    python benchmarks/products.py report FILE.json

Ratings of 100 users for 100 items are half the dot product of four hidden numbers of each. The model has a row of
``width`` numbers for each user and item, their dot product, and a bias of each, and is trained by Adam at a constant
rate for 300 steps of 32 ratings under a squared error. Rates are an octave apart. Ways to start:

    author's    as ``nn.Embedding`` draws, N(0, 1)
    layers      what init ``moments`` made of each table before it looked at products: a second moment of 1
    moments     as it draws them now, for a second moment of 1 of the sum
    default     ``small-readout``, as plans take it under a squared error
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def run(path: Path, seeds: int) -> None:
    known: dict[str, float | None] = json.loads(path.read_text()) if path.exists() else {}
    recipe = dagscale.Recipe(ratings(), F.mse_loss, "adam", steps=300, batch_size=32)
    for width in WIDTHS:
        for way, init in INITS.items():
            plan = dagscale.plan(Factorisation(width), recipe=recipe, init=init, law="none", base_lr=1.0)
            for k, rate in enumerate(RATES):
                for seed in range(seeds):
                    key = f"{way}/{width}/{k}/{seed}"
                    if key not in known:
                        loss = trained(width, way, plan, recipe, rate, seed)
                        known[key] = loss if math.isfinite(loss) else None
            path.write_text(json.dumps(known, indent=0) + "\n")


def trained(width: int, way: str, plan: dagscale.Plan, recipe: dagscale.Recipe, rate: float, seed: int) -> float:
    torch.manual_seed(seed)
    model = Factorisation(width)
    if way == "layers":
        for bias in (model.likes, model.liked):
            nn.init.normal_(bias.weight, 0.0, 3**-0.5)
    plan.init_(model, seed=seed)
    return train(model, recipe, plan.param_groups(model, lr=rate), seed=seed, evaluate=2048).loss


def lowest(known: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The lowest mean loss over rates of each way, and the rate."""
    body = []
    for width in WIDTHS:
        cells = []
        for way in INITS:
            curve = [
                fmean(
                    math.inf if loss is None else loss
                    for key, loss in known.items()
                    if key.startswith(f"{way}/{width}/{k}/")
                )
                for k in range(len(RATES))
            ]
            best = min(range(len(RATES)), key=curve.__getitem__)
            cells.append(f"{curve[best]:.3f} at {RATES[best]:.3g}")
        body.append([str(width), *cells])
    return ["width", "author's", "each layer at 1", "`moments`", "by default"], body


SHEETS = {"lowest": lowest}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "run":
        run(given.file, given.seeds)
    else:
        heads, rows = lowest(json.loads(given.file.read_text()))
        print("\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)))
