"""How much the law ``short-run`` depends on its length and on the share that bounds its band.

    python benchmarks/short_run.py [--data PATH] [--architectures 12] [--seeds 4]

MLP DAGs with and without batch norm, plain SGD, other architectures than those that ``docs/results.md`` reports: their
sample's seed is 31. For each length and share: root mean square of the octaves between predicted and found, and the
mean loss above the best of the grid, over two groups of seeds.
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from statistics import fmean

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dagscale.laws.short_run import measure
from dagscale.probe import Cost
from dagscale.search import GRIDS
from dagscale.studies.methods import KINDS, subject_of
from dagscale.studies.suites import SUITES
from dagscale.studies.truth import Truth
from dagscale.sweep import Run

LENGTHS = (1, 8, 16, 24, 32)
SHARES = (0.05, 0.15, 0.3)
GRID = {"mlp-dag": (-8.0, 1.0), "mlp-dag-bn": (-7.0, 2.0)}


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--architectures", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=4, help="of the law, in two groups")
    given = parser.parse_args()
    torch.set_num_threads(1)
    common = {"data": given.data, "limit": 5000, "batch_size": 64}
    octaves: dict[tuple[str, int, float], list[float]] = {}
    regrets: dict[tuple[str, int, float], list[float]] = {}
    for suite, grid in GRID.items():
        family = SUITES[suite]
        names = (family.base, *family.members(given.architectures, 31))
        rates = family.rates("sgd", grid)
        truths, rate = {}, {}
        for name in track(names, description=suite, console=Console(stderr=True)):
            runs = [
                [Run(name, lr, "moments", seed=k, options={"kind": "train"}, **common) for k in (0, 1)] for lr in rates
            ]
            truths[name] = Truth(rates, tuple(tuple(KINDS["train"](run)["loss"] for run in row) for row in runs))
            subject = subject_of(Run(name, 1.0, "moments", **common))
            for steps, share, seed in product(LENGTHS, SHARES, range(100, 100 + given.seeds)):
                found = measure(subject, seed, round(GRIDS["sgd"][0]), Cost(), steps=steps, share=share)
                rate[name, steps, share, seed] = found.rate
        half = given.seeds // 2
        for steps, share, first in product(LENGTHS, SHARES, (100, 100 + half)):
            logs = {
                name: fmean(math.log2(rate[name, steps, share, seed]) for seed in range(first, first + half))
                for name in names
            }
            for name in names[1:]:
                chosen = truths[family.base].middle * 2.0 ** (logs[name] - logs[family.base])
                octaves.setdefault((suite, steps, share), []).append(math.log2(chosen / truths[name].middle))
                regret = truths[name].regret(truths[name].at(chosen))
                regrets.setdefault((suite, steps, share), []).append(regret)
    table = Table(title="octaves rms, and loss above the best of the grid, mean")
    for header in ("suite", "steps", *(f"share {share:g}" for share in SHARES)):
        table.add_column(header)
    for suite, steps in product(GRID, LENGTHS):
        rows = [(octaves[suite, steps, share], regrets[suite, steps, share]) for share in SHARES]
        cells = [f"{math.sqrt(fmean(o * o for o in off)):.2f}, {fmean(lost):.1%}" for off, lost in rows]
        table.add_row(suite, str(steps), *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
