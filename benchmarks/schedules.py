"""How short runs should see a recipe's schedule: not at all, compressed, or by its own first steps.

    python benchmarks/schedules.py run FILE.json [--families NAME …]     # resumable
    python benchmarks/schedules.py report FILE.json

Families of MLP DAGs and of transformers on scikit-learn's digits are trained for several hundred steps under a warm-up
and a cosine, at rates half an octave apart with two seeds: the middle of the band of good rates is what should have
been predicted. Law ``short-run`` then carries the base's over in each of the three ways. The report gives, over a
family's targets, the correlation and slope of log ratios, the rms distance in octaves at the power that laws take, and
what is lost against the best of the grid. Architectures are those of seed 7, on which nothing else is tuned.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rates import means, middle, regular
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load
from dagscale.bench.verify.suites import SUITES
from dagscale.models import targets
from dagscale.planning.make import starting_plan
from dagscale.planning.prepare import initialised, traced
from dagscale.training.engine import train

SHORT = importlib.import_module("dagscale.laws.short_run")
WAYS = ("constant", "compressed", "first")
SEEDS, SAMPLE = 2, 7


@dataclass(frozen=True)
class Family:
    """A suite's base and its targets under one recipe."""

    suite: str
    count: int
    grid: tuple[float, float]
    optimizer: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 224
    batch_size: int = 32
    warmup: float = 0.1


FAMILIES = {
    "mlp, nesterov": Family("mlp-dag", 10, (-9.0, 0.0), "nesterov"),
    "mlp, adamw": Family("mlp-dag", 10, (-12.0, -3.0), "adamw", {"weight_decay": 0.1}),
    "batch norm, nesterov": Family("mlp-dag-bn", 10, (-8.0, 2.0), "nesterov"),
    "transformer, adamw": Family("vit-depth", 4, (-12.0, -4.0), "adamw", {"weight_decay": 0.1, "clip": 1.0}),
}


def recipe_of(family: Family) -> dagscale.Recipe:
    data = load("digits")
    return dagscale.Recipe(
        (data.x, data.y), cross_entropy, family.optimizer, batch_size=family.batch_size, steps=family.steps,
        schedule=dagscale.cosine(warmup=family.warmup), **family.settings,
    )  # fmt: skip


def run(path: Path, families: list[str]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in families:
        family, suite = FAMILIES[name], SUITES[FAMILIES[name].suite]
        recipe = recipe_of(family)
        for target in (suite.base, *suite.members(family.count, SAMPLE)):
            if f"{name}/{target}" not in known:
                known[f"{name}/{target}"] = one(target, family, recipe)
                path.write_text(json.dumps(known, indent=0))


def one(target: str, family: Family, recipe: dagscale.Recipe) -> dict[str, Any]:
    """The curve of losses over rates, and the middles of the short runs' bands."""
    model, inputs = targets.load(target, data=load("digits"))
    network = initialised(traced(model, inputs, recipe, 0), "moments")
    plan = starting_plan(network, "moments")
    low, high = family.grid
    curve: dict[str, list[float]] = {}
    for k in range(round(2 * (high - low)) + 1):
        rate = 2.0 ** (low + k / 2)
        for seed in range(SEEDS):
            trial = network.copy.reset()
            plan.init_(trial, seed=seed)
            done = train(trial, recipe, plan.param_groups(trial, lr=rate), seed=seed, evaluate=1797)
            curve.setdefault(repr(rate), []).append(done.loss if math.isfinite(done.loss) else 1e9)
    short: dict[str, list[float]] = {}
    for way in WAYS:
        SHORT.SCHEDULE = way
        network.memo.clear()
        found = SHORT.known(network)
        short[way] = [found.log_rate / math.log(2), found.error / math.log(2), found.forwards]
    SHORT.SCHEDULE = "constant"
    return {"curve": curve, "short": short}


def report(path: Path) -> None:
    known = json.loads(path.read_text())
    print("| family | way | r | slope | rms octaves | above the best of the grid, mean (worst) | passes |")
    print("|---|---|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        base = known.get(f"{name}/{SUITES[family.suite].base}")
        others = {k: v for k, v in known.items() if k.startswith(f"{name}/") and v is not base}
        if base is None or not others:
            continue
        start, curves = middle(regular(base["curve"])), [regular(v["curve"]) for v in others.values()]
        for way in ("one rate", *WAYS):
            wanted = np.array([middle(curve) - start for curve in curves])
            if way == "one rate":
                ratio = np.zeros(len(others))
            else:
                ratio = np.array([v["short"][way][0] - base["short"][way][0] for v in others.values()])
            lost = [above(curve, p) for curve, p in zip(curves, start + SHORT.FADING * ratio, strict=True)]
            r = float(np.corrcoef(ratio, wanted)[0, 1]) if ratio.any() else math.nan
            slope = float((ratio * wanted).sum() / (ratio**2).sum()) if ratio.any() else math.nan
            rms = math.sqrt(fmean((SHORT.FADING * ratio - wanted) ** 2))
            passes = fmean(v["short"][way][2] for v in others.values()) if ratio.any() else 0
            print(
                f"| {name} | {way} | {r:.2f} | {slope:.2f} | {rms:.2f} | {100 * fmean(lost):.1f} % "
                f"({100 * max(lost):.1f} %) | {passes:,.0f} |"
            )


def above(one: dict[str, Any], exponent: float) -> float:
    """By how much the loss at a rate, between those of the grid, is above the best of the grid."""
    losses = means(one, 1e3)
    return float(np.interp(exponent, one["exponents"], losses)) / min(losses) - 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("file", type=Path)
    runs.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    commands.add_parser("report").add_argument("file", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.file, given.families) if given.command == "run" else report(given.file)
