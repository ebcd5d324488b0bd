"""Which init trains best, on networks that no init was chosen on, and whether the plan's rates hold under each.

    python benchmarks/which_init.py run [FILE.json] --data PATH/cifar10 [--families NAME …]     # resumable
    python benchmarks/which_init.py report [FILE.json] [--write]

Every network (sample 57) is trained under ``moments``, ``damped`` and its author's own init, at rates an octave apart,
as far below and above the best as the loss stays near it, with two seeds. Laws measure on it, too; what is kept is what
`benchmarks/rates.py` keeps. The report holds all losses against the lowest that any of the inits reached on the same
network: at the best rate of each init, and at the rate that ``short-run`` and one rate for all carry over from the base
under the same init. A second table takes, in each family, the init under which the *base* trains best, of ``moments``
and ``damped`` and of all three.
"""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from rates import COSINE, Family, keep, means, middle, one
from recorded import Sheet, study

from dagscale.laws.base import FADING

INITS = ("moments", "damped", "keep")
DIVERGED = 1e3
"""Taken for the loss where training diverged, between whose rate and the next one losses are interpolated."""

EPOCH: dict[str, Any] = {"limit": 20_000, "steps": 400, "batch_size": 50, "inits": INITS, "sample": 57}
SHORT: dict[str, Any] = {"limit": 9600, "steps": 300, "batch_size": 32, "inits": INITS, "sample": 57}

FAMILIES = {
    "MLP DAGs, SGD": Family("mlp-dag", "sgd", count=11, **EPOCH),
    "MLP depth, SGD": Family("mlp-depth", "sgd", count=7, **EPOCH),
    "MLP DAGs, AdamW, cosine": Family(
        "mlp-dag", "adamw", count=9, **EPOCH, settings={**COSINE, "weight_decay": 0.05}
    ),
    "MLP DAGs, GELU, SGD": Family("mlp-dag-gelu", "sgd", count=7, **EPOCH),
    "MLP DAGs, momentum, cosine": Family("mlp-dag", "momentum", count=7, **EPOCH, settings=COSINE),
    "CNN DAGs, SGD": Family("cnn-dag", "sgd", "downsample=4", count=7, **SHORT),
    "CNN DAGs, AdamW, cosine": Family(
        "cnn-dag", "adamw", "downsample=4", count=5, **SHORT, settings={**COSINE, "weight_decay": 0.05}
    ),
    "residual CNNs, SGD": Family("resnet-depth", "sgd", "stride=4", count=4, **SHORT),
    "digits, MLP DAGs, SGD": Family(
        "mlp-dag", "sgd", data="digits", limit=1797, steps=224, batch_size=32, count=7, inits=INITS,
        sample=57,
    ),
}  # fmt: skip


def run(path: Path, names: list[str], folder: str) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    turns = ((i, name) for i in range(max(FAMILIES[name].count for name in names) + 1) for name in names)
    for i, name in turns:  # so that a study that is stopped has something of every family
        family = FAMILIES[name]
        source = folder if family.data == "cifar10" else family.data
        for network, init in product(family.networks[i : i + 1], family.inits):
            base = known.get(f"{name}/{init}/{family.networks[0]}")
            expected = family.start if base is None else round(middle(base))
            if (key := f"{name}/{init}/{network}") not in known:
                known[key] = one(network, family, init, source, expected)
                keep(path, known)
                print(key, round(middle(known[key]), 2), round(min(means(known[key])), 4), flush=True)


def at(one: dict[str, Any], exponent: float) -> float:
    """The loss at a rate, between those tried."""
    return float(np.interp(exponent, one["exponents"], means(one, DIVERGED)))


def tables(known: dict[str, Any]) -> dict[str, Sheet]:
    rows, chosen = [], []
    for name, family in FAMILIES.items():
        networks = [n for n in family.networks if all(f"{name}/{init}/{n}" in known for init in INITS)]
        if len(networks) < 3:
            continue
        found = {init: [known[f"{name}/{init}/{n}"] for n in networks] for init in INITS}
        lows = {init: [min(means(own)) for own in found[init]] for init in INITS}
        lowest = [min(each) for each in zip(*lows.values(), strict=True)]
        ways = {}
        for init in INITS:
            at_best = above(lows[init], lowest)
            ways[init] = {
                "best": at_best[1:], "plan": above(carried(found[init], FADING), lowest[1:]),
                "alike": above(carried(found[init], 0.0), lowest[1:]),
            }  # fmt: skip
            rows.append({
                "family": name, "networks": str(len(networks)), "init": f"`{init}`", "its best rate": percent(at_best),
                "worst": f"{max(at_best):.1f} %", "law short-run": percent(ways[init]["plan"]),
                "one rate for all": percent(ways[init]["alike"]),
            })  # fmt: skip
        row = {"family": name, "targets": str(len(networks) - 1)}
        for title, among in (("of two", INITS[:2]), ("of three", INITS)):
            best = min(among, key=lambda init: lows[init][0])
            row |= {f"choice {title}": f"`{best}`", f"loss, {title}": percent(ways[best]["best"])}
        chosen.append(row)
    return {"which-init": rows, "which-init-chosen": chosen}


def carried(found: list[dict[str, Any]], power: float) -> list[float]:
    """The losses of all but the first at its rate, times the power of what the short runs say of them."""
    base, *targets = found
    losses = []
    for own in targets:
        measured = [fmean(one["short"][:2]) for one in (own, base) if not isinstance(one["short"], str)]
        factor = power * (measured[0] - measured[1]) if len(measured) == 2 else 0.0
        losses.append(at(own, middle(base) + factor))
    return losses


def above(losses: list[float], lowest: list[float]) -> list[float]:
    """Percent above the lowest, network by network."""
    return [100 * (a / b - 1) for a, b in zip(losses, lowest, strict=True)]


def percent(values: list[float]) -> str:
    if not values:
        return "–"
    if max(values) > DIVERGED:
        return "diverged"
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{fmean(values):.1f} % ± {error:.1f}"


if __name__ == "__main__":
    study(__doc__, "which-init", FAMILIES, run, tables)
