"""How many examples the curvature needs: λ on 1, 2, 4, 8 and 16 batches of 256 against that on 16.

    python benchmarks/curvature.py --data PATH/cifar10

Octaves by which λ is above that on 16 batches, for two seeds, of small networks under ``moments``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from dagscale.bench.sweep import Run
from dagscale.bench.verify.runs import network_of
from dagscale.laws import curvature
from dagscale.laws.over_seeds import BATCHES
from dagscale.training.probe import BATCH, Cost

NETWORKS = (
    "mlp:2?width=64", "mlp:2_02_002_0002?width=64", "mlp:2_22_202_2222?width=64", "mlp:2_02_002?width=64&norm=batch",
    "cnn:2?width=12&downsample=4", "cnn:2_22_022?width=12&kernel=5&downsample=4", "vit:1?width=32", "vit:4?width=32",
)  # fmt: skip
EXAMPLES = BATCHES * BATCH + 1000
COUNTS = [2**k for k in range(int(math.log2(BATCHES)) + 1)]


def by_batches(target: str, optimizer: str, data: str, seed: int) -> list[float]:
    """λ for each of ``COUNTS``, where the law would stop at the first that settles."""
    run = Run(
        target, 1.0, "moments", optimizer=optimizer, data=data, limit=EXAMPLES, batch_size=64, options={"kind": "law"}
    )
    found: list[float] = []

    def all_of_them(measure: Callable[[int], float], most: int) -> float:
        found.extend(map(measure, COUNTS))
        return found[-1]

    with mock.patch.object(curvature, "until_settled", all_of_them):
        curvature.measure(network_of(run), seed, curvature.STEPS, Cost())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    table = Table(title=f"octaves of λ above that on {BATCHES * BATCH} examples, two seeds")
    for column in ("network", "optimiser", *(str(BATCH * count) for count in COUNTS[:-1])):
        table.add_column(column, justify="right")
    cells = [(network, optimizer) for optimizer in ("sgd", "adamw") for network in NETWORKS]
    for network, optimizer in track(cells, console=Console(stderr=True)):
        both = [by_batches(network, optimizer, options.data, seed) for seed in (0, 1)]
        above = [[f"{math.log2(value / values[-1]):+.2f}" for value in values[:-1]] for values in both]
        table.add_row(network, optimizer, *(" ".join(pair) for pair in zip(*above, strict=True)))
    Console(width=120).print(table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
