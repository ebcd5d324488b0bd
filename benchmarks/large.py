"""What a plan costs for a language model of 6.7 billion parameters that is never given any memory.

    python benchmarks/large.py [--layers 32 --width 4096]

A Llama of transformers is made on the ``meta`` device (shapes without values) and planned from a base of 2 layers of
width 256 with rules for width and depth. Prints seconds and peak memory of each part, and the plan's table.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import dagscale
from dagscale.models.targets import load


def llama(layers: int, width: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """Heads of 128 channels, the MLP of Llama's proportions, rounded up to 256."""
    inner = -(-8 * width // 3 // 256) * 256
    heads = width // 128
    return load(f"hf:llama?layers={layers}&width={width}&heads={heads}&kv_heads={heads}&mlp={inner}")


def peak() -> float:
    """Largest memory that the process has held, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = peak()
    began = time.perf_counter()
    base, (model, ids) = llama(2, 256), llama(given.layers, given.width)
    made = time.perf_counter()
    recipe = dagscale.Recipe(optimizer=torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1)
    plan = dagscale.plan(
        model, ids, base=base, base_lr=2**-7, recipe=recipe, law="none", width="mup", depth="completep"
    )
    done = time.perf_counter()
    plan_text = str(plan)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e9:.2f} billion parameters, {len(plan.parameters)} tensors")
    print(f"models on meta {made - began:.1f} s, plan {done - made:.1f} s, table {time.perf_counter() - done:.1f} s")
    print(f"memory of the process {start:.0f} MB before, {peak():.0f} MB at most\n")
    print(plan_text)
