"""The fast search against the exhaustive grid, and replicas trained at once against one by one.

    python benchmarks/search.py [--data digits] [--limit N] [--models 20] [--json FILE]
    python benchmarks/search.py --replicas

The first trains 20 models: MLP and CNN DAGs of several widths and depths, with and without normalisation, and residual
networks; 14 with SGD, 3 with momentum, 3 with AdamW. For each it runs the fast search and the grid with seeds 0 to 2,
and the grid once more with seeds 3 to 5: how often the grid agrees with itself is the noise floor of any agreement.
Costs are ratios in one run, of optimiser steps and of CPU time. Regret is the relative excess of the loss at an answer
over the grid's best, on the first grid's own curve, interpolated in log rate.

The second compares ways to train 3 and 6 replicas of a model with plain SGD, one after the other or all at once with
``torch.func`` (functional_call, vmap, stack_module_state): CPU time, and the difference in the final loss.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import Dataset, load
from dagscale.models import sample, targets
from dagscale.planning.base import Base
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe


class Residual(nn.Module):
    """A stem, ``depth`` residual blocks of two linear layers, a readout; the input is flattened."""

    def __init__(self, inputs: int, classes: int, width: int, depth: int, norm: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm else nn.Identity(),
                nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width),
            ) for _ in range(depth)
        )  # fmt: skip
        self.readout = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return self.readout(x)  # type: ignore[no-any-return]


def models(data: Dataset) -> list[tuple[str, Callable[[], nn.Module], dict[str, Any]]]:
    """Name, how to make it, and options of the search."""
    mlps = list(sample("mlp", vertices=5, count=6, seed=7))
    cnns = list(sample("cnn", vertices=4, count=5, seed=8))
    one, two = {"epochs": 1, "batch_size": 32}, {"epochs": 2, "batch_size": 32}
    spaces: list[tuple[str, str, dict[str, Any]]] = [
        (f"{mlps[0]}?width=32", "sgd", one),
        (f"{mlps[1]}?width=64", "sgd", one),
        (f"{mlps[2]}?width=128", "sgd", {"epochs": 2, "batch_size": 64}),
        (f"{mlps[3]}?width=64&norm=batch", "sgd", one),
        (f"{mlps[4]}?width=64&norm=layer", "sgd", one),
        (f"{mlps[5]}?width=64", "momentum", one),
        (f"{mlps[0]}?width=64", "adamw", one),
        ("mlp:2?width=256", "sgd", one),
        ("mlp:2_02_002?width=64", "sgd", {"epochs": 3, "batch_size": 128}),
        ("mlp:2_02?width=48&depth=3", "sgd", one),
        ("mlp:2_12_012?width=64&depth=2", "momentum", one),
        (f"{cnns[0]}?width=8", "sgd", two),
        (f"{cnns[1]}?width=12&kernel=5", "sgd", one),
        (f"{cnns[2]}?width=8&norm=batch", "sgd", one),
        (f"{cnns[3]}?width=8&norm=layer", "sgd", one),
        (f"{cnns[4]}?width=8", "adamw", two),
        ("cnn:2?width=16", "momentum", one),
    ]
    residual: list[tuple[int, int, bool, str]] = [(32, 3, False, "sgd"), (48, 6, True, "sgd"), (32, 3, True, "adamw")]
    inputs = math.prod(data.shape)
    made: list[tuple[str, Callable[[], nn.Module], dict[str, Any]]] = [
        (f"{target} {optimizer}", lambda t=target: targets.load(t, data=data, seed=0)[0], {"optimizer": optimizer, **o})
        for target, optimizer, o in spaces
    ]
    for width, depth, norm, optimizer in residual:
        name = f"residual {depth}×{width}{' layer norm' if norm else ''} {optimizer}"
        make = lambda w=width, d=depth, n=norm: Residual(inputs, data.classes, w, d, n)  # noqa: E731
        made.append((name, make, {"optimizer": optimizer, **one}))
    return made


def timed(make: Callable[[], nn.Module], data: Dataset, **options: Any) -> tuple[Base, float]:
    """A search and its CPU seconds."""
    torch.manual_seed(0)
    model = make()
    start = time.process_time()
    found = dagscale.search(model, data, **options)
    return found, time.process_time() - start


def regret(grid: Base, rate: float) -> float:
    """Relative excess loss at ``rate`` on the grid's curve; ``inf`` next to a divergence."""
    logs, losses = [math.log(p.lr) for p in grid.curve], [p.loss for p in grid.curve]
    x = min(max(math.log(rate), logs[0]), logs[-1])
    i = next(k for k, at in enumerate(logs) if at >= x - 1e-9)
    share = 0.0 if abs(logs[i] - x) < 1e-9 else (logs[i] - x) / (logs[i] - logs[i - 1])
    value = losses[i] if share == 0 else (1 - share) * losses[i] + share * losses[i - 1]
    return value / grid.loss - 1


def compare(data: Dataset, count: int, console: Console) -> list[dict[str, Any]]:
    """One row a model."""
    rows = []
    for name, make, options in track(models(data)[:count], console=Console(stderr=True)):
        fast, fast_time = timed(make, data, method="fast", **options)
        grid, grid_time = timed(make, data, method="grid", **options)
        again, _ = timed(make, data, method="grid", seed=3, **options)
        row: dict[str, Any] = {
            "model": name, "steps": fast.steps / grid.steps, "cpu": fast_time / grid_time,
            "fast_steps": fast.steps, "grid_steps": grid.steps, "fast_cpu": fast_time, "grid_cpu": grid_time,
            "rates": {"fast": [fast.lr, fast.edge, fast.argmin], "grid": [grid.lr, grid.edge, grid.argmin]},
            "regret": {"fast": regret(grid, fast.lr), "again": regret(grid, again.lr), "grid": regret(grid, grid.lr)},
            "regret_argmin": {"fast": regret(grid, fast.argmin), "again": regret(grid, again.argmin)},
        }  # fmt: skip
        for what in ("lr", "edge", "argmin"):
            row[what] = {
                "fast": abs(math.log2(getattr(fast, what) / getattr(grid, what))),
                "again": abs(math.log2(getattr(again, what) / getattr(grid, what))),
            }
        rows.append(row)
    table = Table(title="each model: cost as a ratio, distance from the grid's answer in octaves, regret")
    for column in ("model", "steps", "CPU", "middle", "edge", "argmin", "regret", "grid again: middle", "regret"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in rows:
        fast_part = [f"{row[what]['fast']:.2f}" for what in ("lr", "edge", "argmin")]
        table.add_row(
            row["model"], f"{row['steps']:.2f}", f"{row['cpu']:.2f}", *fast_part, f"{row['regret']['fast']:.1%}",
            f"{row['lr']['again']:.2f}", f"{row['regret']['again']:.1%}",
        )  # fmt: skip
    console.print(table)
    return rows


def summary(rows: list[dict[str, Any]]) -> Table:
    """All models together."""
    table = Table(title=f"{len(rows)} models against the grid with seeds 0 to 2")
    for column in ("", "fast search", "grid, seeds 3 to 5"):
        table.add_column(column, justify="left" if not column else "right")
    steps = sum(row["fast_steps"] for row in rows) / sum(row["grid_steps"] for row in rows)
    cpu = sum(row["fast_cpu"] for row in rows) / sum(row["grid_cpu"] for row in rows)
    table.add_row("optimiser steps, all models together", f"{steps:.3f}", "")
    table.add_row("optimiser steps, largest of a model", f"{max(row['steps'] for row in rows):.3f}", "")
    table.add_row("CPU time, all models together", f"{cpu:.3f}", "")
    for what, name in (("lr", "middle"), ("edge", "edge"), ("argmin", "argmin")):
        parts = [[row[what][way] for row in rows] for way in ("fast", "again")]
        near = [f"{sum(d <= 0.5 + 1e-9 for d in part)} of {len(part)}" for part in parts]
        table.add_row(f"{name} within half an octave", *near)
        table.add_row(f"{name}, rms octaves", *(f"{math.sqrt(statistics.fmean(d * d for d in p)):.2f}" for p in parts))
    for key, name in (("regret", "middle"), ("regret_argmin", "argmin")):
        regrets = [[row[key][way] for row in rows] for way in ("fast", "again")]
        table.add_row(f"regret of the {name}, median", *(f"{statistics.median(part):.2%}" for part in regrets))
        table.add_row(f"regret of the {name}, worst", *(f"{max(part):.1%}" for part in regrets))
    table.add_row(
        "regret of the grid's own middle, median", "", f"{statistics.median(r['regret']['grid'] for r in rows):.2%}"
    )
    return table


def one_by_one(model: nn.Module, data: Dataset, count: int, batch: int, steps: int, lr: float) -> list[float]:
    """Final losses of replicas with their own initialisation and batches."""
    losses = []
    for replica, k in zip(replicas(model, count), range(count), strict=True):
        groups = [{"params": list(replica.parameters()), "lr": lr}]
        done = train(replica, Recipe((data.x, data.y), batch_size=batch, steps=steps), groups, seed=k)
        losses.append(done.loss)
    return losses


def at_once(model: nn.Module, data: Dataset, count: int, batch: int, steps: int, lr: float) -> list[float]:
    """As `one_by_one`, the replicas stacked."""
    params, buffers = stack_module_state(replicas(model, count))
    params = {name: value.detach() for name, value in params.items()}

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, (params, buffers), (x,)), y)

    step, n = vmap(grad_and_value(loss)), len(data.x)
    generators = [torch.Generator().manual_seed(k) for k in range(count)]
    for taken in range(steps):
        at = taken % (n // batch) * batch
        if at == 0:
            orders = torch.stack([torch.randperm(n, generator=generator) for generator in generators])
        rows = orders[:, at : at + batch]
        gradients, _ = step(params, buffers, data.x[rows], data.y[rows])
        for name, value in params.items():
            value.sub_(gradients[name], alpha=lr)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:4096]
    total = torch.zeros(count)
    with torch.no_grad():
        evaluate = vmap(loss, in_dims=(0, 0, None, None))
        for part in order.tensor_split(math.ceil(len(order) / batch)):
            total += evaluate(params, buffers, data.x[part], data.y[part]) * len(part)
    return (total / len(order)).tolist()


def replicas(model: nn.Module, count: int) -> list[nn.Module]:
    """Copies, each with its own normal noise on the parameters."""
    made = []
    for k in range(count):
        replica, generator = copy.deepcopy(model), torch.Generator().manual_seed(k)
        with torch.no_grad():
            for parameter in replica.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        made.append(replica)
    return made


def compare_replicas(data: Dataset) -> Table:
    """Gain of stacking, the smallest CPU time of three each."""
    table = Table(title="CPU time one by one / at once (44 steps of plain SGD)")
    for column in ("model", "batch", "3 replicas", "6 replicas", "largest difference in the final loss"):
        table.add_column(column, justify="left" if column == "model" else "right")
    names = [
        "mlp:2?width=64", "mlp:2_12_022_0212?width=64", "mlp:2_02_002_0002?width=128",
        "mlp:2_22_222?width=64&norm=layer", "cnn:2?width=12", "cnn:2_12_022?width=12",
        "cnn:2_12_022?width=12&norm=layer",
    ]  # fmt: skip
    for name in track(names, console=Console(stderr=True)):
        for batch in (32, 128):
            gains, apart = [], 0.0
            for count in (3, 6):
                times = []
                results = []
                for way in (one_by_one, at_once):
                    model, spent = targets.load(name, data=data, seed=0)[0].train(), []
                    way(model, data, count, batch, 3, 0.05)
                    for _ in range(3):
                        start = time.process_time()
                        losses = way(model, data, count, batch, 44, 0.05)
                        spent.append(time.process_time() - start)
                    times.append(min(spent))
                    results.append(losses)
                gains.append(times[0] / times[1])
                apart = max(apart, *(abs(a - b) for a, b in zip(*results, strict=True)))
            table.add_row(name, str(batch), *(f"{gain:.2f}" for gain in gains), f"{apart:.0e}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--replicas", action="store_true")
    options = parser.parse_args()
    console = Console(width=150)
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, one thread, torch {torch.__version__}, {options.data}"
    )
    data = load(options.data, limit=options.limit)
    if options.replicas:
        console.print(compare_replicas(data))
        return
    rows = compare(data, options.models, console)
    console.print(summary(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
