"""Records what plans are held against: each network's losses over rates, and what the laws measure on it.

    python benchmarks/rates.py FILE.json --data PATH/cifar10 [--families NAME …]     # resumable
    python benchmarks/rates.py FILE.json --list

Families of small networks, of other architectures than those of the pages on evidence (the sample's seed is 33), under
recipes that no constant was chosen by. A network is trained at rates an octave apart, as far below and above
the best as the loss stays below ``FAR`` times its. On the same network laws ``short-run`` and ``covariance`` say what
they have to say, the first with ``COUNT`` seeds, each kept by itself. The file holds, by ``family/init/network``:

    exponents   of the rates that were tried, ascending, as powers of 2
    losses      the final training losses there, one for each seed; null where training diverged
    short       log2 of the short runs' middles, a seed each, or what refused
    forwards    what each of these seeds cost
    covariance  log2 of the closed form's rate, up to a constant that the family shares; null where it has no answer

``benchmarks/intervals.py`` makes tables of it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load
from dagscale.bench.verify.suites import SUITES
from dagscale.errors import DagscaleError
from dagscale.laws import covariance, short_run
from dagscale.laws.base import FADING
from dagscale.laws.combined import described
from dagscale.laws.estimate import Estimate
from dagscale.models import targets
from dagscale.network import Network
from dagscale.planning.make import starting_plan
from dagscale.planning.prepare import initialised, traced
from dagscale.rates import find_band
from dagscale.replacing import write
from dagscale.training.engine import train
from dagscale.training.probe import Cost

SAMPLE = 33
"""Seed of the sample of architectures."""

SEEDS, COUNT, FAR, EVALUATED = 2, 4, 1.15, 1024
BELOW = 3
"""Octaves below the expected rate at which the grid begins: beyond the rate at which training breaks there can be
a second valley, which a grid that begins there would take for the first."""


@dataclass(frozen=True)
class Family:
    """A suite's base and some targets under one recipe."""

    suite: str
    optimizer: str
    options: str = ""
    count: int = 5
    data: str = "cifar10"
    limit: int = 4000
    steps: int = 80
    batch_size: int = 50
    spacing: float = 1.0
    inits: tuple[str, ...] = ("moments",)
    settings: dict[str, Any] = field(default_factory=dict)
    sample: int = SAMPLE

    @property
    def networks(self) -> tuple[str, ...]:
        """The base first."""
        suite = SUITES[self.suite].adapted(self.options)
        return suite.base, *suite.members(self.count, self.sample)

    @property
    def start(self) -> float:
        """Exponent of the rate in the middle of the suite's grid."""
        rates = SUITES[self.suite].rates(self.optimizer)
        return round(math.log2(rates[len(rates) // 2]))


BOTH: dict[str, Any] = {"inits": ("moments", "keep")}
SMALL: dict[str, Any] = {"limit": 3000, "steps": 90, "batch_size": 32}
COSINE: dict[str, Any] = {"schedule": dagscale.cosine(warmup=0.1)}

FAMILIES = {
    "mlp, sgd": Family("mlp-dag", "sgd", count=8, **BOTH),
    "mlp, norm, sgd": Family("mlp-dag-bn", "sgd", count=8, **BOTH),
    "mlp, adamw": Family("mlp-dag", "adamw", **BOTH),
    "vit, adamw": Family("vit-depth", "adamw", "width=24", **SMALL),
    "cnn, sgd": Family("cnn-dag", "sgd", "downsample=4", **SMALL),
    "resnet, norm, sgd": Family("resnet-depth-bn", "sgd", "stride=4", **SMALL),
    "resnet, sgd": Family("resnet-depth", "sgd", "stride=4", **SMALL),
    "mlp, momentum": Family("mlp-dag", "momentum"),
    "mlp, norm, adamw": Family("mlp-dag-bn", "adamw"),
    "cnn, adamw": Family("cnn-dag", "adamw", "downsample=4", **SMALL),
    "mlp depth, sgd": Family("mlp-depth", "sgd", **BOTH),
    "mlp, gelu, sgd": Family("mlp-dag-gelu", "sgd"),
    "digits, mlp, nesterov, cosine": Family(
        "mlp-dag", "nesterov", data="digits", limit=1797, steps=224, batch_size=32, settings=COSINE
    ),
    "digits, mlp, norm, adamw, cosine": Family(
        "mlp-dag-bn", "adamw", data="digits", limit=1797, steps=224, batch_size=32,
        settings={**COSINE, "weight_decay": 0.1},
    ),
    "vit, sgd": Family("vit-depth", "sgd", "width=24", **SMALL),
    "resnet, norm, adamw": Family("resnet-depth-bn", "adamw", "stride=4", **SMALL),
    "vit, adamw, cosine": Family(
        "vit-depth", "adamw", "width=24", **SMALL, settings={**COSINE, "weight_decay": 0.1, "clip": 1.0}
    ),
    "cnn, momentum": Family("cnn-dag", "momentum", "downsample=4", **SMALL),
}  # fmt: skip


@cache
def images(source: str, limit: int) -> Any:
    return load(source, limit=limit)


def recipe_of(family: Family, source: str) -> dagscale.Recipe:
    data = images(source, family.limit)
    return dagscale.Recipe(
        (data.x, data.y), cross_entropy, family.optimizer, batch_size=family.batch_size, steps=family.steps,
        **family.settings,
    )  # fmt: skip


def one(name: str, family: Family, init: str, source: str, expected: float) -> dict[str, Any]:
    """What is kept of one network; ``expected``: exponent of the rate near which its best one is expected."""
    model, inputs = targets.load(name, data=images(source, family.limit))
    network = initialised(traced(model, inputs, recipe_of(family, source), 0), init)
    curve = curve_of(network, init, expected - BELOW, family.spacing)
    network = replace(network, hint=2.0**expected)
    short, forwards = seeds_of(network)
    closed = None
    if described(network):
        try:
            closed = round(covariance.covariance(network)["covariance"].log_rate / FADING / math.log(2), 5)
        except DagscaleError:
            closed = None
    return {**kept(curve), "short": short, "forwards": forwards, "covariance": closed}


def kept(curve: dict[float, list[float]]) -> dict[str, Any]:
    """What the file holds of a curve."""
    exponents = sorted(curve)
    losses = [[round(x, 6) if math.isfinite(x) else None for x in curve[k]] for k in exponents]
    return {"exponents": exponents, "losses": losses}


def curve_of(network: Network, init: str, start: float, spacing: float) -> dict[float, list[float]]:
    """Exponent of the rate → the final losses of its seeds."""
    plan, trial = starting_plan(network, init), network.copy
    curve: dict[float, list[float]] = {}

    def tried(exponent: float) -> float:
        losses = curve.setdefault(exponent, [])
        for seed in range(SEEDS):
            model = trial.reset()
            plan.init_(model, seed=seed)
            groups = plan.param_groups(model, lr=2.0**exponent)
            losses.append(train(model, network.recipe, groups, seed=seed, evaluate=EVALUATED).loss)
        return fmean(losses)

    def outside(exponent: float) -> bool:
        best = min(map(fmean, curve.values()))
        return math.isfinite(best) and fmean(curve[exponent]) > FAR * best

    tried(start)
    while not outside(max(curve)) and max(curve) < 20 and math.isfinite(fmean(curve[max(curve)])):
        tried(max(curve) + spacing)
    while not outside(min(curve)) and min(curve) > -30:
        tried(min(curve) - spacing)
    trial.give_back()
    return curve


def seeds_of(network: Network) -> tuple[list[float] | str, list[float]]:
    """Log2 of the rate that short runs of each seed like best, and what each cost in forward passes."""
    logs: list[float] = []
    costs: list[float] = []

    def all_seeds(measure: Any, seed: int, precision: float) -> Estimate:
        for k in range(COUNT):
            cost = Cost()
            logs.append(round(math.log2(measure(seed + k, cost)), 5))
            costs.append(cost.forwards)
        return Estimate(fmean(logs) * math.log(2))

    usual, short_run.over_seeds = short_run.over_seeds, all_seeds
    try:
        short_run.known(network)
    except DagscaleError as error:
        return str(error), costs
    finally:
        short_run.over_seeds = usual
        network.give_back()
    return logs, costs


def means(one: Mapping[str, Any], diverged: float = math.inf) -> list[float]:
    """A network's mean loss at each rate, ``diverged`` where a run of it was."""
    return [diverged if None in row else fmean(row) for row in one["losses"]]


def regular(curve: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """A curve of ``schedules.json``, rate → losses (1e9 where training diverged), as this script's file holds it."""
    losses = [[None if x > 1e8 else x for x in row] for row in curve.values()]
    return {"exponents": [math.log2(float(rate)) for rate in curve], "losses": losses}


def band_of(one: Mapping[str, Any], tolerance: float = 0.05) -> tuple[float, float]:
    """Ends of the band of a network's rates within so much of the best."""
    return find_band([2.0**k for k in one["exponents"]], means(one), tolerance)


def of_seed(one: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A network with one seed's losses alone."""
    return {**one, "losses": [[row[seed]] for row in one["losses"]]}


def middle(one: Mapping[str, Any], tolerance: float = 0.05) -> float:
    """Log2 of the middle of that band."""
    low, high = band_of(one, tolerance)
    return math.log2(low * high) / 2


def keep(path: Path, known: dict[str, Any]) -> None:
    """Write all that is known, a network a line; killed meanwhile, the file is as it was."""
    write(path, (json.dumps(known, separators=(",", ":")).replace('},"', '},\n"') + "\n").encode())


def run(path: Path, names: list[str], folder: str) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        family = FAMILIES[name]
        source = folder if family.data == "cifar10" else family.data
        for init in family.inits:
            for network in family.networks:
                key, base = f"{name}/{init}/{network}", known.get(f"{name}/{init}/{family.networks[0]}")
                if key not in known:
                    expected = family.start if base is None else round(middle(base))
                    known[key] = one(network, family, init, source, expected)
                    keep(path, known)
                    print(key, round(middle(known[key]), 2), known[key]["short"], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("\n".join(FAMILIES)) if given.list else run(given.file, given.families, given.data)
