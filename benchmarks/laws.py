"""The closed-form laws against simulated updates of one SGD step.

    python benchmarks/laws.py [--dags 200] [--seeds 240] [--sample 1]

Random ReLU DAGs of 4 to 7 vertices, half of them with identity edges, at widths 64, 128 and 256, ``--seeds`` draws of
the weights each. Simulated are the mean over draws, and what one draw typically gives, the geometric mean. For each
law: Pearson r, slope of predicted on simulated and rms error, all of log2 of the update's second moment, the mean
difference taken out (laws are ratios) and given.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable
from functools import partial
from statistics import fmean, geometric_mean

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dagscale
from dagscale.bench import simulation
from dagscale.laws.covariance import update_moment
from dagscale.laws.walk import weighted_cubes
from dagscale.models import Dag, targets

LAWS: dict[str, Callable[[dagscale.Graph], float]] = {
    "paths (Σ L³)": lambda graph: float(dagscale.path_sums(graph).depth_cubed),
    "walk (Σ w L³)": weighted_cubes,
    "covariance": update_moment,
    "covariance, finite width": partial(update_moment, finite_width=True),
}
SIMULATED = {"mean": fmean, "typical": geometric_mean}

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
    parser.add_argument("--sample", type=int, default=1, help="seed of the DAGs")
    options = parser.parse_args()
    console = Console()
    console.print(f"{platform.machine()}, torch {torch.__version__}, {options.dags} DAGs, {options.seeds} seeds each")
    predicted: dict[str, list[float]] = {name: [] for name in LAWS}
    found: dict[str, list[float]] = {kind: [] for kind in SIMULATED}
    chosen = sample(options.dags, np.random.default_rng(options.sample))
    for dag, width in track(chosen, console=Console(stderr=True)):
        model, x = simulation.network(dag, width)
        graph = dagscale.trace(model, x)
        for name, law in LAWS.items():
            predicted[name].append(math.log2(law(graph)))
        updates = simulation.updates(model, x, seeds=options.seeds)
        for kind, mean in SIMULATED.items():
            found[kind].append(math.log2(mean(updates)))
    identity = np.array([any(op == 1 for *_, op in dag.live_edges) for dag, _ in chosen])
    widths = np.array([width for _, width in chosen])
    rows = {"all": identity | True, "with identity edges": identity, "without": ~identity}
    rows |= {f"width {width}": widths == width for width in WIDTHS}
    for kind, values in found.items():
        table = Table(title=f"log2 of the update's second moment: predicted against simulated, {kind} of the draws")
        for column in ("law", "DAGs", "r", "slope", "rms octaves", "mean octaves"):
            table.add_column(column, justify="right")
        for name in LAWS:
            for label, these in rows.items():
                p, f = np.array(predicted[name])[these], np.array(values)[these]
                r, slope = np.corrcoef(p, f)[0, 1], np.polyfit(f, p, 1)[0]
                cells = (f"{r:.4f}", f"{slope:.3f}", f"{np.std(p - f):.3f}", f"{np.mean(p - f):+.3f}")
                table.add_row(name, f"{label} ({these.sum()})", *cells)
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
