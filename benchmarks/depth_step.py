"""How far the output moves in three steps of the branches' parameters, against depth: the tables of docs/how/depth.md.

``python benchmarks/depth_step.py`` takes about five minutes on one core.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import dagscale
from dagscale.graph.branches import find_branches
from dagscale.graph.roles import roles
from dagscale.scaling.depth import DepthScaling, depth_scaling
from dagscale.training.optimizers import resolve

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fixtures.residual import Mlp, Transformer, example

DEPTHS = (2, 4, 8, 16, 32, 64)
FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "residual MLP without norms": lambda depth: Mlp(depth, 48),
    "pre-norm transformer": lambda depth: Transformer("pre", depth, 48, head=12),
}
RATES = {"sgd": 0.1, "momentum": 0.1, "adam": 2e-3, "muon": 2e-3}


def moved(make: Callable[[int], nn.Module], depth: int, optimizer: str, alpha: float | None, seed: int) -> float:
    """Root mean square change of the output; without factors where ``alpha`` is None."""
    torch.manual_seed(seed)
    base, model, record = make(DEPTHS[0]), make(depth), resolve(optimizer)
    x, y = example(model, 32, seed=5)
    graph = dagscale.trace(model, x)
    found = depth_scaling(dagscale.trace(base, x), graph, record, alpha=alpha) if alpha else {}
    kinds = roles(graph)
    branches = {name for branch in find_branches(graph).branches for name in (*branch.ends, *branch.inside)}
    groups = []
    for name, p in model.named_parameters():
        factors = found.get(name, DepthScaling()).factors
        with torch.no_grad():
            if p.dim() > 1 and "embed" not in name:
                p.normal_(0, p[0].numel() ** -0.5)
            elif name.endswith("bias"):
                p.zero_()
            p.mul_(factors.init)
        p.requires_grad_(name in branches)
        group = {"params": [p], "lr": RATES[optimizer] * factors.lr, "weight_decay": 0.0}
        matrix = {"matrix": kinds[name] == "hidden" and p.dim() > 1} if optimizer == "muon" else {}
        groups.append({**group, **matrix})
    before = model(x).detach()
    made = record.make([g for g in groups if g["params"][0].requires_grad])
    for _ in range(3):
        made.zero_grad()
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()  # type: ignore[no-untyped-call]
        made.step()
    return float((model(x).detach() - before).square().mean().sqrt())


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 2 seeds; blocks: {', '.join(map(str, DEPTHS))}")
    for family, make in FAMILIES.items():
        for optimizer in RATES:
            for alpha in (0.5, 1.0, None):
                row = [sum(moved(make, depth, optimizer, alpha, seed) for seed in range(2)) / 2 for depth in DEPTHS]
                slope = math.log(row[-1] / row[1]) / math.log(DEPTHS[-1] / DEPTHS[1])
                figures = "  ".join(f"{value:10.4g}" for value in row)
                print(f"{family:28}{optimizer:10}α {alpha or '–'!s:5}{figures}  slope {slope:+.2f}", flush=True)


if __name__ == "__main__":
    main()
