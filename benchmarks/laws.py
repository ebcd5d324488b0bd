"""The closed-form laws against simulated updates of one SGD step.

    python benchmarks/laws.py [--dags 200] [--seeds 240]

Random ReLU DAGs of 4 to 7 vertices, half of them with identity edges, at widths 64, 128 and 256; each is the mean of
``--seeds`` draws of the weights. For each law: Pearson r, slope of predicted on simulated and rms error, all of log2
of the update's second moment, the mean difference taken out (laws are ratios).
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dagscale
from dagscale.laws.covariance import update_moment
from dagscale.laws.walk import weighted_cubes
from dagscale.spaces import Dag, targets
from dagscale.studies import simulation

LAWS: dict[str, Callable[[dagscale.Graph], float]] = {
    "paths (Σ L³)": lambda graph: float(dagscale.path_sums(graph).depth_cubed),
    "walk (Σ w L³)": weighted_cubes,
    "covariance": update_moment,
}

WIDTHS = [64, 128, 256]


def sample(count: int, rng: np.random.Generator) -> list[tuple[Dag, int]]:
    """Distinct DAGs with at least one live layer, and a width each."""
    chosen: dict[str, tuple[Dag, int]] = {}
    while len(chosen) < count:
        ops = (0, 2) if len(chosen) % 2 else (0, 1, 2)
        dag = Dag.sample(int(rng.integers(4, 8)), int(rng.integers(1 << 30)), ops=ops)
        if any(op == 2 for *_, op in dag.live_edges):
            chosen.setdefault(str(dag), (dag, int(rng.choice(WIDTHS))))
    return list(chosen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dags", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=240)
    options = parser.parse_args()
    console = Console()
    console.print(f"{platform.machine()}, torch {torch.__version__}, {options.dags} DAGs, {options.seeds} seeds each")
    predicted: dict[str, list[float]] = {name: [] for name in LAWS}
    found: list[float] = []
    identity: list[bool] = []
    widths: list[int] = []
    for dag, width in track(sample(options.dags, np.random.default_rng(1)), console=Console(stderr=True)):
        model, x = simulation.network(dag, width)
        graph = dagscale.trace(model, x)
        for name, law in LAWS.items():
            predicted[name].append(math.log2(law(graph)))
        found.append(math.log2(simulation.update_moment(model, x, seeds=options.seeds)))
        identity.append(any(op == 1 for *_, op in dag.live_edges))
        widths.append(width)
    table = Table(title="log2 of the update's second moment: predicted against simulated")
    for column in ("law", "DAGs", "r", "slope", "rms octaves"):
        table.add_column(column, justify="right")
    with_identity, width_of = np.array(identity), np.array(widths)
    by_width = [(f"width {width}", width_of == width) for width in WIDTHS]
    for name, values in predicted.items():
        kinds = [("all", with_identity | True), ("identity", with_identity), ("none", ~with_identity)]
        for label, rows in [*kinds, *by_width]:
            p, f = np.array(values)[rows], np.array(found)[rows]
            rms = float(np.std(p - f))
            r = float(np.corrcoef(p, f)[0, 1])
            table.add_row(name, f"{label} ({rows.sum()})", f"{r:.4f}", f"{np.polyfit(f, p, 1)[0]:.3f}", f"{rms:.3f}")
    console.print(table)
    chains = Table(title="chains of n layers: exponent of the update's rms in n+1, between n and 2n")
    chains.add_column("n")
    chains.add_column("covariance")
    for n in (2, 4, 8, 16, 32, 64):
        a, b = (update_moment(chain(k)) for k in (n, 2 * n))
        chains.add_row(str(n), f"{math.log(b / a) / 2 / math.log((2 * n + 1) / (n + 1)):.3f}")
    console.print(chains)


def chain(n: int) -> dagscale.Graph:
    code = "_".join("0" * v + "2" for v in range(n))
    return dagscale.trace(*targets.load(f"mlp:{code}?order=pre&width=64"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
