"""The covariance law's rate factor for NAS-Bench-201, by tracing networks on meta.

    python benchmarks/nas_covariance.py [--cells 1] [--sample N] [--out FILE.csv]

The law needs no data, but a graph. Architectures with the same live edges are the same network, and traced once. Prints
the processor time of tracing and of the law, and a histogram of the factors relative to a base of one 3×3 convolution
per cell and one cell per stage, beside the path law's.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dagscale import trace
from dagscale.laws.covariance import update_moment
from dagscale.models.nb201 import NB201, Nb201, path_facts

BASE = ("0_00_300", 1)


def moment(arch: Nb201, cells: int) -> tuple[float, float, float]:
    """``E‖Δz‖²``, and the processor seconds of building and tracing, and of the law."""
    start = time.process_time()
    with torch.device("meta"):
        model = NB201(arch, cells=cells)
    graph = trace(model, torch.zeros(2, 3, 8, 8, device="meta"))
    traced = time.process_time()
    value = update_moment(graph)
    return value, traced - start, time.process_time() - traced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1)
    parser.add_argument("--sample", type=int, help="so many random networks instead of all")
    parser.add_argument("--out", type=Path, help="code, factor, factor of the path law")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        highlight=False,
    )
    able = [arch for arch in Nb201.enumerate() if arch.graph.has_path]
    networks: dict[object, list[Nb201]] = {}
    for arch in able:
        networks.setdefault(arch.graph.live, []).append(arch)
    console.print(f"{len(able):,} architectures with a path, {len(networks):,} networks (same live edges: the same)")
    chosen = list(networks.values())
    if options.sample is not None:
        chosen = random.Random(0).sample(chosen, options.sample)
    base = moment(Nb201.parse(BASE[0]), BASE[1])[0]
    base_facts = path_facts(Nb201.parse(BASE[0]), BASE[1])
    rows, tracing, solving = [], [], []
    for group in chosen:
        value, traced, solved = moment(group[0], options.cells)
        tracing.append(traced)
        solving.append(solved)
        factor = math.sqrt(base / value)
        path = path_facts(group[0], options.cells).factor(base_facts)
        rows += [(arch.code, factor, path) for arch in group]
    for name, taken in (("build and trace", tracing), ("law", solving)):
        console.print(
            f"{name}: {sum(taken):.1f} s of processor time, median {1e3 * statistics.median(taken):.2f} ms a network "
            f"(longest {1e3 * max(taken):.1f})", highlight=False,
        )  # fmt: skip
    octaves = {name: np.log2([row[i] for row in rows]) for i, name in ((1, "covariance"), (2, "paths"))}
    console.print(quantiles(octaves, options.cells))
    console.print(histogram(octaves["covariance"]))
    ranks = [np.argsort(np.argsort(values)) for values in octaves.values()]
    console.print(f"rank correlation of the two laws: {np.corrcoef(*ranks)[0, 1]:.3f}", highlight=False)
    if options.out is not None:
        with options.out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("code", "covariance", "paths"), *sorted(rows)])


def quantiles(octaves: dict[str, np.ndarray], cells: int) -> Table:
    table = Table(title=f"factor relative to nb201:{BASE[0]}?cells={BASE[1]}, {cells} per stage")
    shares = (0, 10, 25, 50, 75, 90, 100)
    for name in ("law", "architectures", *(f"{share} %" for share in shares)):
        table.add_column(name, justify="right")
    for name, values in octaves.items():
        table.add_row(name, f"{len(values):,}", *(f"{2**v:.2g}" for v in np.percentile(values, shares)))
    return table


def histogram(values: np.ndarray) -> Table:
    table = Table(title="covariance: factors in classes of equal width in octaves")
    for name in ("from", "to", "architectures", ""):
        table.add_column(name, justify="left" if not name else "right")
    counts, edges = np.histogram(values, bins=12)
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(f"{2**a:.2g}", f"{2**b:.2g}", f"{count:,}", "█" * round(40 * count / counts.max()))
    return table


if __name__ == "__main__":
    main()
