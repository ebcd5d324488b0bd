"""Networks of one architecture trained together against the plain trainer: networks an hour, and the same numbers.

    python benchmarks/nas_together.py [--data PATH] [--sample N] [--networks N] [--out FILE.json]

Of each architecture as many networks as a study trains of it (two seeds, several rates) are trained one by one by the
plain trainer, and together, in turn, in one process of one thread; processor time, evaluation of the final training
loss included. Accuracies of both are on the same test images.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data.augment import Augment, padding
from dagscale.bench.nas.recipes import PRESETS, RECIPES, SCHEDULES
from dagscale.bench.nas.retrain_run import read
from dagscale.bench.nas.samples import draw
from dagscale.bench.nas.together import Member, outputs, train_together
from dagscale.models.nb201 import NB201, Nb201
from dagscale.training.engine import train

RATES = (0.05, 0.1, 0.2, 0.4)


def members(arch: Nb201, preset: str, count: int, channels: int) -> list[Member]:
    found = []
    for k in range(count):
        torch.manual_seed(k % 2)
        model = NB201(arch, in_channels=channels, channels=PRESETS[preset].channels, cells=PRESETS[preset].cells)
        lr = RATES[k // 2 % len(RATES)]
        found.append(Member(model, [{"params": list(model.parameters()), "lr": lr, "weight_decay": 5e-4}], k % 2))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--preset", default="micro-4")
    parser.add_argument("--sample", type=int, default=6)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size, published = PRESETS[options.preset], RECIPES["benchmark"]
    side = size.side if options.data != "digits" else None
    data, test = (read.__wrapped__(options.data, size.images, side, split) for split in ("train", "test"))
    recipe = dagscale.Recipe(
        (data.x, data.y), cross_entropy, torch.optim.SGD, momentum=published.momentum, nesterov=published.nesterov,
        schedule=SCHEDULES["cosine"], steps=options.steps, batch_size=size.batch_size,
    )  # fmt: skip
    augment = Augment(published.augment, padding(data.shape[1]))
    rows = []
    for arch in draw(options.sample, once=True):
        taken: dict[str, float] = {}
        accuracies: dict[str, np.ndarray] = {}
        for way in ("one by one", "together"):
            networks = members(arch, options.preset, options.networks, data.shape[0])
            begun = time.process_time()
            if way == "together":
                train_together(networks, recipe, augment)
            else:
                for one in networks:
                    train(nn.Sequential(augment, one.model), recipe, one.groups, seed=one.seed)
            taken[way] = (time.process_time() - begun) / options.networks
            logits = torch.cat([outputs([one.model], test.x) for one in networks])
            accuracies[way] = 100 * (logits.argmax(2) == test.y).float().mean(1).numpy()
        between = accuracies["one by one"].reshape(-1, 2)
        rows.append({
            "architecture": arch.code,
            "networks an hour, one by one": 3600 / taken["one by one"],
            "networks an hour, together": 3600 / taken["together"],
            "times as fast": taken["one by one"] / taken["together"],
            "accuracy, largest difference": float(abs(accuracies["together"] - accuracies["one by one"]).max()),
            "accuracy, between seeds": float(abs(between[:, 0] - between[:, 1]).mean()),
        })  # fmt: skip
        print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in rows[-1].items()), flush=True)
    machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, one thread"
    ratios = np.array([row["times as fast"] for row in rows], dtype=float)
    print(f"{machine}; {options.preset}, {options.steps} steps, {options.networks} networks at once")
    print(f"times as fast: median {np.median(ratios):.2f}, {ratios.min():.2f} to {ratios.max():.2f}")
    if options.out is not None:
        asked = {name: Path(str(value)).name for name, value in vars(options).items() if name != "out"}
        options.out.write_text(json.dumps({"machine": machine, "asked": asked, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
