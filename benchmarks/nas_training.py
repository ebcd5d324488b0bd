"""How long it takes to retrain NAS-Bench-201 on one core: measured images a second, and arithmetic from there.

    python benchmarks/nas_training.py [--sample N] [--batch N]

Training steps (forward, backward, update) of random distinct architectures at the benchmark's size, C = 16, N = 5,
32×32 images, in processor time of one thread. Multiply-adds are counted, not measured.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from dagscale.bench.nas.recipes import RECIPES
from dagscale.bench.nas.samples import distinct, draw
from dagscale.models.cells import CELL_OPS
from dagscale.models.nb201 import NB201, Nb201

EPOCHS, IMAGES = 200, 50_000
EDGE = 15 * 16 * 16 * 32 * 32
"""Multiply-adds of a 1×1 convolution in all 15 cells: the same in every stage."""
OUTSIDE = 27 * 16 * 1024 + 2 * (9 * 16 * 32 * 256 + 9 * 32 * 32 * 256 + 16 * 32 * 256) + 64 * 10
"""Of stem, reductions and readout."""
STEPS = 3


def multiply_adds(arch: Nb201) -> int:
    """Of one image's forward pass."""
    return OUTSIDE + EDGE * sum(k * k for _, _, op in arch.graph.live for k in CELL_OPS[op].kernels)


def seconds(arch: Nb201, batch: int) -> float:
    """Processor seconds a training image."""
    model = NB201(arch)
    recipe = RECIPES["benchmark"]
    made = torch.optim.SGD(model.parameters(), 0.1, momentum=recipe.momentum, nesterov=recipe.nesterov)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        made.zero_grad()
        cross_entropy(model(x), y).backward()
        made.step()

    step()
    start = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - start) / STEPS / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=24)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    able = [arch for arch in distinct(Nb201.enumerate()) if arch.graph.has_path]
    every = np.mean([multiply_adds(arch) for arch in able])
    drawn = draw(options.sample, once=True)
    taken = np.array([seconds(arch, options.batch) for arch in drawn])
    counts = np.array([multiply_adds(arch) for arch in drawn])
    rng = np.random.default_rng(0)
    means = taken[rng.integers(0, len(taken), (2000, len(taken)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    rate = f"{1e3 * taken.mean():.2f} ms an image ({1e3 * low:.2f}–{1e3 * high:.2f}), {1 / taken.mean():.0f} images/s"
    print(f"measured, {len(drawn)} architectures: {rate}; fastest {1 / taken.min():.0f}, slowest {1 / taken.max():.0f}")
    print(
        f"counted: {every / 1e6:.1f} million multiply-adds a forward over the {len(able):,} distinct architectures, "
        f"{counts.mean() / 1e6:.1f} over the sample"
    )
    print(f"both: {3 * 2 * counts.sum() / taken.sum() / 1e9:.1f} GFLOP/s, a backward counted as two forwards")
    hours = taken.mean() * EPOCHS * IMAGES / 3600
    print(
        f"arithmetic: one training ({EPOCHS} epochs of {IMAGES:,} images) {hours:.1f} core hours; all {len(able):,} "
        f"once {hours * len(able) / 8766:.1f} core years"
    )
    flops = 3 * 2 * every * EPOCHS * IMAGES
    print(f"from multiply-adds: one training {flops / 1e15:.2f} PFLOP, all {flops * len(able) / 1e18:.1f} EFLOP")


if __name__ == "__main__":
    main()
