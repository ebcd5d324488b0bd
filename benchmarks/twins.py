"""Search and plan of awkward models, against those of a plain twin that computes the same.

    python benchmarks/twins.py [--csv docs/evidence/tables/awkward.csv]

The models are the tests' (`tests/fixtures/hostile.py`, `uncopyable.py`). Printed are octaves between the rates, or the
line in which the model was refused; and whether anything of the model was changed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import dagscale

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
import hostile
import oracle
import uncopyable

generator = torch.Generator().manual_seed(0)
X = torch.randn(96, 10, generator=generator)
Y = (X @ torch.randn(10, 4, generator=generator)).argmax(1)
WORDS: dict[str, Any] = {"steps": 16, "batch_size": 16}
CALLS: dict[str, Callable[[nn.Module], float]] = {
    "search": lambda m: dagscale.search(m, (X, Y), seeds=1, **WORDS).lr,
    "plan": lambda m: dagscale.plan(m, X[:4], data=(X, Y), loss=F.cross_entropy, **WORDS).lr,
    "plan, own init": lambda m: dagscale.plan(m, X[:4], data=(X, Y), loss=F.cross_entropy, init="keep", **WORDS).lr,
}


def pairs() -> dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]]:
    own = {**uncopyable.BORROWED, **uncopyable.COPYABLE}
    found = {name: (lambda make=make: make(uncopyable.Plain()), uncopyable.Plain) for name, make in own.items()}
    return {**found, **hostile.PAIRS}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return make()


def compared(name: str, awkward: Callable[[], nn.Module], plain: Callable[[], nn.Module]) -> list[Any]:
    row: list[Any] = [name]
    model = made(awkward)
    lazy = any(nn.parameter.is_lazy(p) for p in model.parameters())
    before = None if lazy else oracle.of_model(model)
    for call in CALLS.values():
        try:
            rate = call(model) / (4 if name == "slowed" else 1)  # a quarter of the gradient
        except dagscale.DagscaleError as error:
            row.append(f"refused: {error}")
        else:
            row.append(round(abs(math.log2(rate / call(made(plain)))), 2))
    return [*row, before is not None and oracle.of_model(model) != before]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name, (awkward, plain) in pairs().items():
        rows.append(compared(name, awkward, plain))
        print(*rows[-1], sep="; ", flush=True)
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["model", *(f"{name}, octaves apart" for name in CALLS), "changed"], *rows])
    octaves = [cell for row in rows for cell in row[1:-1] if isinstance(cell, float)]
    refused = sum(isinstance(row[1], str) for row in rows)
    print(f"{len(rows)} models, {refused} refused, largest difference {max(octaves)} octaves")


if __name__ == "__main__":
    main()
