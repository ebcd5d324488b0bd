"""How the learning rate goes with the kernel size: searched, by curvature, and by the update of one step.

    python benchmarks/kernels.py run [--cifar PATH] [--only REGEX]   # resumable; appends to out/kernels.jsonl
    python benchmarks/kernels.py report                              # the tables of docs/evidence/kernels.md

Nets of three convolutions (12 channels, ReLU, stride 1, zero padding, one kernel size 1, 3, 5 or 7), global average
pooling and a linear readout, on digits and CIFAR-10 as 1-d and 2-d signals, under the inits ``moments`` and
``in-degree``. At 6 seeds: the largest Gauss–Newton eigenvalue at initialisation, that of the convolutions'
parameters alone, and after a short run. At 24: the root mean square of what one infinitesimal SGD step changes at
the last convolution and at the output. Searched, on digits: the band of rates whose loss after 150 steps of batch 32
is within 5 % of the best (exhaustive grid, half an octave, one search a seed). Each row of the report is the exponent
of the rate that a quantity asks for: ``η ∝ k^-a``.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import exp, log, nan, sqrt
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

import dagscale
from dagscale.bench import data
from dagscale.laws.curvature import measure
from dagscale.laws.gauss_newton import leading_eigenpair
from dagscale.network import Network
from dagscale.planning.prepare import initialised, traced
from dagscale.training.probe import BATCH, Cost

OUT = Path("out/kernels.jsonl")
KERNELS = (1, 3, 5, 7)
INIT_NAMES = ("moments", "in-degree")
WIDTH, LAYERS = 12, 3
STEPS, BATCH_SIZE, EXAMPLES = 150, 32, 2000
UPDATES, SEEDS, SEARCHES = 24, 6, 3
"""Seeds of the updates, of the curvatures and of the searches."""
ASKED = ("middle", "edge", "λ", "λ of convolutions", "λ after 32 steps", "Δz last convolution", "Δz output")


# --- nets and signals -------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Convolutions with ReLU at full resolution, global average pooling, a linear readout.

    ``x: (batch, channels, *positions)`` → logits ``(batch, 10)``.
    """

    def __init__(self, channels: int, dims: int, kernel: int) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        sizes = [channels] + [WIDTH] * LAYERS
        self.convs = nn.ModuleList(conv(a, b, kernel, padding=kernel // 2) for a, b in pairwise(sizes))
        self.readout = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x).relu()
        out: Tensor = self.readout(x.flatten(2).mean(2))
        return out


def signals(cifar: str | None) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Name → examples ``(n, channels, *positions)`` and labels."""

    def digits() -> tuple[Tensor, Tensor]:
        found = data.load("digits")
        return found.x, found.y

    def small_cifar() -> tuple[Tensor, Tensor]:
        assert cifar is not None
        found = data.load(cifar, limit=EXAMPLES)
        x = avg_pool2d(found.x, 2)
        return x / x.std(), found.y

    def shaped(load: Callable[[], tuple[Tensor, Tensor]], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        x, y = load()
        return x.reshape(len(x), *shape), y

    made: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "digits 1-d, 64 long": lambda: shaped(digits, (1, 64)),
        "digits 1-d, 8 rows × 8 long": lambda: shaped(digits, (8, 8)),
        "digits 2-d, 8×8": digits,
    }
    if cifar is not None:
        made["CIFAR-10 1-d, 256 long"] = lambda: shaped(small_cifar, (3, 256))
        made["CIFAR-10 2-d, 16×16"] = small_cifar
    return made


# --- measuring --------------------------------------------------------------------------------------------


def searched(model: nn.Module, examples: tuple[Tensor, Tensor], init: str, around: float) -> dict[str, list[float]]:
    """Middle and edge of the band for each seed; ``around`` only places the grid."""
    x, y = examples
    plan = dagscale.plan(model, x[:2], base_lr=1.0, law="none", init=init, data=(x[:BATCH], y[:BATCH]))
    grid = [around * 2 ** (i / 2) for i in range(-5, 5)]
    options: dict[str, Any] = {"grid": grid, "steps": STEPS, "batch_size": BATCH_SIZE, "seeds": 1, "method": "grid"}
    found = [dagscale.search(model, examples, plan=plan, seed=seed, **options) for seed in range(SEARCHES)]
    return {"middle": [f.lr for f in found], "edge": [f.edge for f in found], "loss": [f.loss for f in found]}


def curvature(network: Network) -> dict[str, list[float]]:
    """The three eigenvalues at each seed."""
    found: dict[str, list[float]] = {name: [] for name in ("λ", "λ of convolutions", "λ after 32 steps")}
    for seed in range(SEEDS):
        with network.probe(seed) as probe:
            examples = probe.measuring()
            convolutions = [float(name.startswith("convs")) for name in probe.parameters]
            for name, scale in (("λ", [1.0] * len(convolutions)), ("λ of convolutions", convolutions)):
                found[name].append(leading_eigenpair(probe, scale, batches=examples)[0])
        found["λ after 32 steps"].append(measure(network, seed, 32, Cost()))
    return found


def updates(network: Network) -> dict[str, list[float]]:
    """:func:`update` at each seed."""
    last, out = zip(*(update(network, seed) for seed in range(UPDATES)), strict=True)
    return {"Δz last convolution": list(last), "Δz output": list(out)}


def update(network: Network, seed: int) -> tuple[float, float]:
    """Root mean square of the change per unit of rate at the last convolution and at the output.

    One SGD step on the batch it is read on, in float64, so small that it is linear.
    """
    with network.probe(seed) as probe:
        model = copy.deepcopy(probe.model).double()
    batch = next(network.recipe.source.batches(seed, BATCH))
    x, y = batch.inputs, batch.target
    seen: list[Tensor] = []
    model.convs[-1].register_forward_hook(lambda module, args, out: seen.append(out.detach()))  # type: ignore
    out = model(x.double())
    cross_entropy(out, y).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-7 * p.grad
        after = model(x.double())
    last, end = (float((b - a).detach().square().mean().sqrt()) / 1e-7 for a, b in ((seen[0], seen[1]), (out, after)))
    return last, end


# --- the run and the report -------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []


def run(cifar: str | None, only: str) -> None:
    """Everything that has no row yet: updates, curvatures, then the searches."""
    OUT.parent.mkdir(exist_ok=True)
    known: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows():
        known.setdefault((row["signal"], row["init"], row["kernel"]), {}).update(row)
    loaded = {signal: load() for signal, load in signals(cifar).items()}
    cases = [(s, i, k) for i in INIT_NAMES for s in loaded for k in KERNELS if re.search(only, f"{s}, {i}, {k}")]
    for part in ("Δz output", "λ", "middle"):
        for case in cases:
            signal, init, kernel = case
            so_far = known.setdefault(case, {})
            if part in so_far or (part == "middle" and not signal.startswith("digits")):
                continue
            torch.manual_seed(0)
            x, y = loaded[signal]
            model = Chain(x.shape[1], x.dim() - 2, kernel)
            row = {"signal": signal, "init": init, "kernel": kernel, "shape": list(x.shape[1:])}
            if part == "middle":
                row |= searched(model, (x, y), init, 2 / mean(so_far["λ after 32 steps"]))
            else:
                recipe = dagscale.Recipe((x, y), cross_entropy, batch_size=BATCH_SIZE)
                network = initialised(traced(model, x[:2], recipe, 0), init)
                row |= curvature(network) if part == "λ" else updates(network)
            so_far |= row
            with OUT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            values = ", ".join(f"{name} {mean(row[name]):.3g}" for name in (*ASKED, "loss") if name in row)
            print(f"{signal}, {init}, k = {kernel}: {values}", flush=True)


def mean(values: list[float]) -> float:
    return exp(statistics.fmean(map(log, values)))


def taps(kernel: int, shape: Iterable[int]) -> float:
    """Mean number, per dimension, of a kernel's taps that lie inside the signal (geometric mean)."""
    inside = [kernel - (kernel**2 - 1) / (4 * n) if kernel // 2 < n else n for n in shape]
    return mean(inside)


def exponent(group: list[dict[str, Any]], name: str, size: Callable[[dict[str, Any]], float]) -> tuple[float, float]:
    """``a`` of ``η ∝ size^-a`` and half its 95 % interval: a least-squares slope a seed, Student's t over them."""
    sign = -1.0 if name in ("middle", "edge") else 1.0
    xs = [log(size(row)) for row in group]
    middle = statistics.fmean(xs)
    slopes = []
    for seed in range(len(group[0][name])):
        ys = [sign * log(row[name][seed]) for row in group]
        slopes.append(sum((a - middle) * b for a, b in zip(xs, ys, strict=True)) / sum((a - middle) ** 2 for a in xs))
    return statistics.fmean(slopes), float(t.ppf(0.975, len(slopes) - 1)) * statistics.stdev(slopes) / sqrt(len(slopes))


def report() -> None:
    """The exponents, then the values behind them."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows():
        groups.setdefault((row["signal"], row["init"]), {}).setdefault(row["kernel"], {}).update(row)
    sizes: dict[str, tuple[int, Callable[[dict[str, Any]], float]]] = {
        "k = 1, 3, 5, 7": (1, lambda row: float(row["kernel"])),
        "k = 3, 5, 7": (3, lambda row: float(row["kernel"])),
        "k = 1, 3, 5, 7, counting the taps inside the signal": (1, lambda row: taps(row["kernel"], row["shape"][1:])),
    }
    for title, (least, size) in sizes.items():
        print(f"\nη ∝ k^-a, {title}\n\n| signal | init | {' | '.join(ASKED)} |\n|---|---|{'---|' * len(ASKED)}")
        for (signal, init), group in groups.items():
            chosen = [group[k] for k in sorted(group) if k >= least]
            cells = []
            for name in ASKED:
                a, half = exponent(chosen, name, size) if all(name in row for row in chosen) else (nan, nan)
                cells.append(f"{a:.2f} ± {half:.2f}" if a == a else "–")
            print(f"| {signal} | {init} | {' | '.join(cells)} |")
    shown = (*ASKED, "loss")
    print(f"\ngeometric means\n\n| signal | init | k | {' | '.join(shown)} |\n|---|---|---|{'---|' * len(shown)}")
    for (signal, init), group in groups.items():
        for k in sorted(group):
            cells = [f"{mean(group[k][name]):.3g}" if name in group[k] else "–" for name in shown]
            print(f"| {signal} | {init} | {k} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("--cifar", help="a folder with CIFAR-10, as --data takes it; without it digits alone")
    parser.add_argument("--only", default="", help="regular expression on 'signal, init, kernel'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "run":
        run(options.cifar, options.only)
    else:
        report()


if __name__ == "__main__":
    main()
