"""The path law's rate factor for all of NAS-Bench-201, without building or tracing a network.

    python benchmarks/nas_paths.py [--picture FILE.png]

Prints the time for all 15,625 architectures, a histogram of the factors relative to a base of one 3×3 convolution
per cell and one cell per stage, the time that building and tracing take for a sample, and the numbers of distinct
architectures by each rule.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dagscale import path_sums, trace
from dagscale.bench.nas.isomorphism import RULES, groups
from dagscale.graph.paths import kernel_size
from dagscale.models.nb201 import COUNT, NB201, Nb201, _macro, path_facts

BASE = ("0_00_300", 1)
CELLS = (1, 5)
SAMPLE = 12
REPEATS = 3


def seconds(work: Callable[[], object]) -> list[float]:
    taken = []
    for _ in range(REPEATS):
        _macro.cache_clear()
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def spread(taken: list[float]) -> str:
    return f"{statistics.median(taken):.3g} ({min(taken):.3g}–{max(taken):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path)
    picture = parser.parse_args().picture
    torch.set_num_threads(1)
    console = Console(width=110)
    console.print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}",
        highlight=False,
    )
    archs = tuple(Nb201.enumerate())
    base = path_facts(Nb201.parse(BASE[0]), BASE[1])
    octaves: dict[int, np.ndarray] = {}
    timing = Table(title="seconds (min–max)")
    for name in ("cells per stage", f"path sums of {COUNT:,}", f"build and trace {SAMPLE}", "ratio per network"):
        timing.add_column(name, justify="right")
    for cells in CELLS:
        ours = seconds(lambda cells=cells: [path_facts(arch, cells) for arch in archs])
        facts = {arch: path_facts(arch, cells) for arch in archs}
        factors = [f.factor(base) for f in facts.values() if f.depth_cubed]
        octaves[cells] = np.log2(factors)
        able = [arch for arch in archs if arch.graph.has_path]
        drawn = random.Random(0).sample(able, SAMPLE)
        example = torch.randn(2, 3, 32, 32)
        start = time.perf_counter()
        for arch in drawn:
            graph = trace(NB201(arch, cells=cells), example)
            sums, own = path_sums(graph), facts[arch]
            assert (own.paths, own.depth_cubed) == (sums.paths, sums.depth_cubed)
            assert math.isclose(own.kernel, kernel_size(graph))
        theirs = time.perf_counter() - start
        ratio = (theirs / SAMPLE) / (statistics.median(ours) / COUNT)
        timing.add_row(str(cells), spread(ours), f"{theirs:.2f}", f"{ratio:,.0f}")
    console.print(timing)
    for cells, values in octaves.items():
        console.print(histogram(cells, values))
    distinct = Table(title="distinct architectures")
    for name in ("rule", "distinct", "largest group", "seconds (min–max)"):
        distinct.add_column(name, justify="left" if name == "rule" else "right")
    for rule in RULES:
        taken = seconds(lambda rule=rule: groups(rule=rule))
        found = groups(rule=rule)
        distinct.add_row(rule, f"{len(found):,}", f"{max(map(len, found)):,}", spread(taken))
    console.print(distinct)
    if picture is not None:
        draw(octaves, picture)


def histogram(cells: int, values: np.ndarray) -> Table:
    """Factors in classes of equal width in octaves."""
    low, *_, high = np.percentile(values, [0, 50, 100])
    q = {p: float(np.percentile(values, p)) for p in (0, 10, 25, 50, 75, 90, 100)}
    quantiles = ", ".join(f"{p} %: {2**v:.3g}" for p, v in q.items())
    table = Table(
        title=f"factor relative to nb201:{BASE[0]}?cells={BASE[1]}, for {cells} per stage ({len(values):,} networks)",
        caption=f"quantiles {quantiles}; max/min {2 ** (q[100] - q[0]):.3g}; 90 %/10 % {2 ** (q[90] - q[10]):.3g}",
    )
    for name in ("factor from", "to", "architectures", ""):
        table.add_column(name, justify="left" if not name else "right")
    counts, edges = np.histogram(values, bins=12, range=(float(low), float(high)))
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        table.add_row(f"{2**a:.3g}", f"{2**b:.3g}", f"{count:,}", "█" * round(40 * count / counts.max()))
    return table


def draw(octaves: dict[int, np.ndarray], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for cells, values in octaves.items():
        axes.hist(values, bins=80, histtype="stepfilled", alpha=0.6, label=f"{cells} cell{'s' * (cells > 1)} per stage")
    axes.set_xlabel(f"log2 of the rate, relative to nb201:{BASE[0]}?cells={BASE[1]}")
    axes.set_ylabel("architectures")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
