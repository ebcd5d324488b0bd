"""Table and picture of a retraining from its file of results: gains by published accuracy, and what is measured.

    python benchmarks/nas_study.py nas.jsonl --benchmark TABLE \
        --table nas.csv --picture nas.svg

It prints how large the interaction of architecture and recipe is for each two recipes. ``dagscale retrain --report``
prints all other figures of the same file.
"""

from __future__ import annotations

import argparse
import csv
from itertools import combinations, cycle
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dagscale.bench.nas.comparison import published_values
from dagscale.bench.nas.components import components
from dagscale.bench.nas.results import Retraining, read_results
from dagscale.bench.nas.tables import read_table

COLOURS = ("#1c7ed6", "#e8590c", "#2f9e44", "#862e9c", "#868e96", "#c2255c")


def table(found: Retraining, known: np.ndarray, path: Path) -> None:
    """One line an architecture and recipe."""
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["code", "published", "recipe", "lr", *(f"test_acc_{k}" for k in found.seeds)])
        for i, arch in enumerate(found.archs):
            for name, values in found.accuracies.items():
                own = [f"{value:.2f}" for value in values[i]]
                lines.writerow([arch.code, f"{known[i]:.2f}", name, f"{found.rates[name][i]:.4g}", *own])


def picture(found: Retraining, known: np.ndarray, path: Path) -> None:
    """Gain over the reference of every architecture, with what two seeds of the reference differ by."""
    reference, *others = found.accuracies
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    own = found.accuracies[reference]
    spread = float(np.abs(own[:, 1] - own[:, 0]).mean())
    axes.axhspan(-spread, spread, color="#dee2e6", label=f"mean difference of two seeds of {reference}")
    axes.axhline(0, color="black", linewidth=0.8)
    for name, colour in zip(others, cycle(COLOURS), strict=False):
        gain = found.accuracies[name].mean(1) - own.mean(1)
        axes.plot(known, gain, "o", color=colour, markersize=5, label=f"{name}: {gain.mean():+.2f} on average")
    axes.set_xlabel("published test accuracy after 200 epochs, %")
    axes.set_ylabel(f"gain over {reference}, points")
    axes.set_title(f"{len(known)} architectures, {found.preset}, means over {len(found.seeds)} seeds", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "dagscale"}):  # the same bytes from the same results
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--picture", type=Path, required=True)
    options = parser.parse_args()
    found = read_results(options.results)
    known = published_values(read_table(options.benchmark).select(options.dataset, partial=True), found.archs)
    table(found, known, options.table)
    picture(found, known, options.picture)
    print(found.header)
    for first, second in combinations(found.accuracies, 2):
        parts = components(np.stack([found.accuracies[first], found.accuracies[second]], 1))
        if parts is not None:
            i, p = parts.interaction, parts.p
            print(f"{first}, {second}: interaction {i.value:.2f} ({i.low:.2f}…{i.high:.2f}) points, p {p:.2g}")


if __name__ == "__main__":
    main()
