"""How near a rate comes that is measured on the network itself, with no base and no search.

    python benchmarks/base_free.py [--data PATH …] [--networks TARGET …] [--json FILE]

For every data set, network, batch size and optimiser: the middle of the 5 % band that a search finds, against the
rate of law ``short-run`` and 2/λ (law ``curvature``). None of these networks, nor the batch sizes,
were among those that the law's length and its factor to a whole run were chosen on.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.functional import cross_entropy

from dagscale.bench.data import load
from dagscale.laws import curvature, short_run
from dagscale.models import targets
from dagscale.planning.prepare import initialised, traced
from dagscale.searching import search
from dagscale.training.recipe import Recipe

NETWORKS = ("mlp:2_22?width=96", "mlp:1_20_202?width=96", "cnn:2_02?width=8")
BATCHES = (24, 96)
OPTIMIZERS = ("sgd", "adamw")
RATES = ("short-run", "2/λ")
STEPS, LIMIT = 100, 4000


def setting(source: str, network: str, batch: int, optimizer: str) -> dict[str, Any]:
    """What is found and what is measured in one setting."""
    data = load(source)
    data = data.subset(min(LIMIT, len(data)))
    model, inputs = targets.load(network, data=data)
    recipe = Recipe((data.x, data.y), cross_entropy, optimizer, steps=STEPS, batch_size=batch)
    found = search(model, recipe, seeds=2)
    drawn = initialised(traced(model, inputs, recipe.changed(steps=None), 0), "moments")
    asked = {"short-run": short_run.rate(drawn).log_rate, "2/λ": math.log(2) - curvature.known(drawn).log_rate}
    rates = {name: math.exp(log) for name, log in asked.items()}
    finite = [p for p in found.curve if math.isfinite(p.loss)]
    logs, losses = np.log2([p.lr for p in finite]), [p.loss for p in finite]
    beyond = max(p.lr for p in finite)
    return {
        "data": data.name, "network": network, "batch": batch, "optimizer": optimizer,
        "found": found.lr, "loss": found.loss, "rates": rates,
        "octaves": {name: math.log2(rate / found.lr) for name, rate in rates.items()},
        "regret": {
            name: float(np.interp(math.log2(rate), logs, losses)) / found.loss - 1 if rate <= beyond else math.inf
            for name, rate in rates.items()
        },
    }  # fmt: skip


def main() -> None:
    """Measure every setting and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["digits"], help="data sets, as for dagscale's commands")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="TARGETs")
    parser.add_argument("--json", type=Path, help="write the settings there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = [(d, n, b, o) for d in given.data for n in given.networks for b in BATCHES for o in OPTIMIZERS]
    console = Console(stderr=True)
    rows = [setting(*one) for one in track(asked, description="settings", console=console)]
    table = Table(title=f"{STEPS} steps; octaves from the rate found, and loss above the best found")
    for header in ("data", "network", "batch", "optimiser", "found", *(part for name in RATES for part in (name, ""))):
        table.add_column(header, justify="left" if header in ("data", "network") else "right")
    for row in rows:
        cells = [
            f(row[kind][name])
            for name in RATES
            for kind, f in (("octaves", "{:+.2f}".format), ("regret", "{:.1%}".format))
        ]
        table.add_row(row["data"], row["network"], str(row["batch"]), row["optimizer"], f"{row['found']:.3g}", *cells)
    shown = Console(width=120)
    shown.print(table)
    for optimizer in OPTIMIZERS:
        these = [row for row in rows if row["optimizer"] == optimizer]
        for name in RATES:
            octaves, regret = (np.array([row[kind][name] for row in these]) for kind in ("octaves", "regret"))
            rms = math.sqrt((octaves**2).mean())
            shown.print(
                f"{optimizer:6} {name:9} mean {octaves.mean():+.2f}, rms {rms:.2f} octaves; "
                f"loss above the best found: median {np.median(regret):.1%}, worst {regret.max():.1%}",
                highlight=False,
            )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1, default=str))


if __name__ == "__main__":
    main()
