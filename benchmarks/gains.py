"""Whether the scale of an init, and of its readout and biases, decides how well a network trains.

    python benchmarks/gains.py run [FILE.json] --data PATH/cifar10 [--families NAME …]     # resumable
    python benchmarks/gains.py report [FILE.json] [--write]

Networks of ``benchmarks/rates.py`` under ``moments``, with the standard deviation of every hidden and input weight
times one gain and that of the readout times another, each at rates an octave apart around its own best, two seeds. A
letter ``b`` after the gains: biases N(0, 1/(3n)), as PyTorch's have it, in place of 0. A letter ``s``: the readout is
scaled so that the outputs are as large as without the gain on the hidden weights. A letter ``w``: the gain is that of
the longest path as a whole, each of its ``n`` hidden layers has the ``n``-th root of it.

The report compares lowest losses. A gain that the *base* chooses is the one with its lowest loss; what its targets then
lose or gain, against a gain of 1, says whether a search over gains would carry over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rates import FAMILIES, Family, curve_of, images, keep, kept, means, middle, recipe_of
from recorded import TABLES, Sheet, read_results, read_table, study

from dagscale.graph.paths import path_sums
from dagscale.graph.roles import roles
from dagscale.models import targets
from dagscale.network import Network
from dagscale.planning.make import starting_plan
from dagscale.planning.prepare import initialised, traced
from dagscale.training.draws import Fill
from dagscale.training.seeds import seeded


@dataclass(frozen=True)
class Gain:
    """Factors on the standard deviations of hidden and input weights, and of readouts."""

    hidden: float = 1.0
    readout: float = 1.0
    biases: bool = False
    same: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.hidden:g}, {self.readout:g}{'b' * self.biases}{'s' * self.same}{'w' * self.whole}"


HALF, ROOT = 0.5, round(math.sqrt(0.5), 3)
FEW = (Gain(), Gain(ROOT), Gain(HALF), Gain(0.25, whole=True))
SMALL = Gain(1, 0.25)  # as init small-readout
MANY = (*FEW, Gain(round(1 / ROOT, 3)), Gain(1, 0.5), Gain(1, 2), Gain(HALF, same=True), Gain(HALF, biases=True))
WHOLE = (Gain(), *(Gain(gain, whole=True) for gain in (0.5, 0.25, 0.125)))
NORMED = (Gain(), Gain(0.7), Gain(0.5), Gain(0.35))
TRIED: dict[str, tuple[tuple[Gain, ...], tuple[int, ...]]] = {
    "mlp, sgd": (MANY, (0, 1, 2, 3)),
    "mlp depth, sgd": (FEW, (0, 3, 5)),
    "mlp, adamw": ((*WHOLE, SMALL), (0, 1, 2, 3, 4)),
    "mlp, norm, sgd": ((*NORMED, SMALL), (0, 1, 2, 3, 4)),
    "mlp, norm, adamw": ((*NORMED, SMALL), (0, 1, 2, 3)),
    "resnet, norm, sgd": ((Gain(), SMALL), (0, 1, 2)),
    "vit, adamw, cosine": ((Gain(), SMALL), (0, 1, 2)),
}
"""Family → gains, and which of its networks, the base among them."""


def scaled(network: Network, gain: Gain) -> Network:
    """The network with its weights' standard deviations times the gain."""
    role, fills = roles(network.graph), dict(network.fills)
    hidden = gain.hidden ** (1 / path_sums(network.graph).max_depth) if gain.whole else gain.hidden
    fan_in = {use.op.params[0].name: use.layer.fan_in for use in network.graph.layers}
    for name, fill in network.fills.items():
        if role[name] in ("hidden", "input", "embedding"):
            fills[name] = Fill(fill.mean, fill.std * hidden)
        elif role[name] == "readout":
            fills[name] = Fill(fill.mean, fill.std * gain.readout)
        elif role[name] == "bias" and gain.biases:
            weight = fan_in.get(name.removesuffix("bias") + "weight")
            fills[name] = fill if weight is None else Fill(0.0, (3 * weight) ** -0.5)
    made = replace(network, fills=fills)
    if not gain.same:
        return made
    factor = output(network) / output(made)
    return replace(
        made, fills={n: Fill(f.mean, f.std * factor) if role[n] == "readout" else f for n, f in fills.items()}
    )


def output(network: Network) -> float:
    """Root mean square of the outputs at the start."""
    model = starting_plan(network, "moments").init_(network.copy.reset(), seed=0)
    with torch.no_grad(), seeded(0):
        batch = network.recipe.example.first(64)
        return float(model(batch.inputs).square().mean().sqrt())


def run(path: Path, names: Sequence[str], source: str) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        gains, which = TRIED[name]
        for network in (FAMILIES[name].networks[i] for i in which):
            start: float | None = None
            for gain in gains:
                if (key := f"{name}/{gain}/{network}") not in known:
                    known[key] = one(network, FAMILIES[name], gain, source, start)
                    keep(path, known)
                    print(key, round(middle(known[key]), 2), round(min(means(known[key])), 4), flush=True)
                start = round(middle(known[key]))


def one(name: str, family: Family, gain: Gain, source: str, start: float | None) -> dict[str, Any]:
    model, inputs = targets.load(name, data=images(source, family.limit))
    network = initialised(traced(model, inputs, recipe_of(family, source), 0), "moments")
    curve = curve_of(scaled(network, gain), "moments", (family.start if start is None else start) - 2, family.spacing)
    return kept(curve)


def tables(known: Mapping[str, Any]) -> dict[str, Sheet]:
    rows, carried = [], []
    for name, (gains, _) in TRIED.items():
        networks = [k.split("/")[2] for k in known if k.startswith(f"{name}/{gains[0]}/")]
        complete = [n for n in networks if all(f"{name}/{g}/{n}" in known for g in gains)]
        if len(complete) < 3:
            continue
        lows = {g: [min(means(known[f"{name}/{g}/{n}"])) for n in complete] for g in gains}
        for gain in gains[1:]:
            change = [100 * (a / b - 1) for a, b in zip(lows[gain], lows[gains[0]], strict=True)]
            error = stdev(change) / math.sqrt(len(change))
            rows.append({
                "family": name, "hidden": f"{gain.hidden:g}{' in all' * gain.whole}",
                "readout": "as large outputs" if gain.same else f"{gain.readout:g}",
                "biases": "as PyTorch's" if gain.biases else "0", "networks": str(len(change)),
                "lowest loss, change": f"{fmean(change):+.1f} % ± {error:.1f}", "worst": f"{max(change):+.1f} %",
                "better on": str(sum(c < 0 for c in change)),
            })  # fmt: skip
        chosen = min(gains, key=lambda g: lows[g][0])
        change = [100 * (a / b - 1) for a, b in zip(lows[chosen][1:], lows[gains[0]][1:], strict=True)]
        carried.append({
            "family": name, "the base's choice": str(chosen),
            "the base gains": f"{100 * (1 - lows[chosen][0] / lows[gains[0]][0]):.1f} %",
            "its targets, mean": f"{fmean(change):+.1f} %", "worst": f"{max(change):+.1f} %",
        })  # fmt: skip
    return {"inits-best": inits(), **({"gains": rows, "gains-carried": carried} if rows else {})}


def inits() -> Sheet:
    """By how much the lowest loss under ``moments`` is above that under PyTorch's own init, each at its best rate."""
    found = []
    for path in TABLES:
        middles = [row for row in read_table(path.stem) if row.get("rule") == "middle" and not row["width"]]
        lows = {r["init"]: (1 + _share(r["excess_percent"])) / (1 + _share(r["regret_mean_percent"])) for r in middles}
        if {"moments", "keep"} <= lows.keys():
            found.append((path.stem, "–", 100 * (lows["moments"] / lows["keep"] - 1), ""))
    lowest = {key: min(means(one)) for key, one in read_results("rates").items()}
    for name in (name for name, family in FAMILIES.items() if "keep" in family.inits):
        pairs = [(f"{name}/moments/{n}", f"{name}/keep/{n}") for n in FAMILIES[name].networks]
        change = [100 * (lowest[a] / lowest[b] - 1) for a, b in pairs if a in lowest and b in lowest]
        if len(change) > 2:
            error = f" ± {stdev(change) / math.sqrt(len(change)):.1f}"
            found.append((f"rates.json, {name}", str(len(change)), fmean(change), error))
    return [
        {"family": name, "networks": count, "`moments` above PyTorch's own": f"{change:+.1f}{error} %"}
        for name, count, change, error in sorted(found, key=lambda one: one[2])
    ]


def _share(percent: str) -> float:
    return float(percent) / 100


if __name__ == "__main__":
    study(__doc__, "gains", TRIED, run, tables)
