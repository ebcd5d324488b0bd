"""Rate and decay together: the pair that a small network's search finds, carried over, against each target's own grid.

    python benchmarks/transfer_pairs.py run FILE.json [--families resnet vit]     # resumable
    python benchmarks/transfer_pairs.py report FILE.json

Families, data and recipes are those of ``transfer.py``. The base is searched for its rate alone, under the recipe's
decay, and for the pair, both by validation loss. Targets are planned with width="mup" and depth="completep" and trained
at both, and on a grid of five decays, four times apart, and rates an octave apart.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from transfer import FAMILIES, model_of, put, trained

import dagscale
from dagscale.planning.base import Base
from dagscale.planning.prepare import traced

SIZES = {"resnet": ("8x8", "20x8", "8x16"), "vit": ("2x32", "8x32", "2x64")}
DECAYS, OCTAVES = (-4, -2, 0, 2, 4), (-3, -2, -1, 0, 1, 2)


def run(path: Path, names: list[str]) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        family, own = FAMILIES[name], known.setdefault(name, {})
        recipe = family.recipe(family.steps)
        small = model_of(family, SIZES[name][0])
        if "base" not in own:
            for label, more in (("rate", {}), ("pair", {"decay": True})):
                found = dagscale.search(small, recipe, seeds=1, validation=family.held(), **more)
                own["base" if label == "pair" else "base, rate alone"] = {
                    "lr": found.lr, "decay": found.recipe["weight_decay"], "steps": found.steps, "loss": found.loss,
                    "pairs": [[p.weight_decay, p.lr, p.loss] for p in found.pairs],
                }  # fmt: skip
            put(path, known)
        start = own["base, rate alone"]
        points = {f"grid/{d}/{o}": (start["decay"] * 2.0**d, start["lr"] * 2.0**o) for d in DECAYS for o in OCTAVES}
        points |= {label: (own[label]["decay"], own[label]["lr"]) for label in ("base", "base, rate alone")}
        for size in SIZES[name]:
            for label, (decay, lr) in points.items():
                key = f"{size}/{label}"
                if key in own:
                    continue
                under = recipe.changed(weight_decay=decay)
                base = Base.given(traced(small, None, under, 0, role="base"), lr)
                plan = dagscale.plan(
                    model_of(family, size), base=base, recipe=under, law="none", width="mup", depth="completep"
                )
                own[key] = trained(model_of(family, size), family, plan, under, plan.lr, 0) | {"decay": decay}
                put(path, known)


def report(path: Path) -> None:
    known = json.loads(path.read_text())
    print(
        "| network | base's rate, recipe's decay | base's pair | best of the grid at the recipe's decay | best pair |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, own in known.items():
        for size in SIZES[name]:
            grid = {k: v for k, v in own.items() if k.startswith(f"{size}/grid/")}
            if len(grid) < len(DECAYS) * len(OCTAVES) or f"{size}/base" not in own:
                continue
            best, same = (_best(grid, part) for part in ("/grid/", "/grid/0/"))
            cells = [_of(own[f"{size}/base, rate alone"]), _of(own[f"{size}/base"]), same, best]
            print(f"| {name} {size} | {' | '.join(f'{c:.3f}' for c in cells)} |")
        for label in ("base, rate alone", "base"):
            b = own[label]
            print(f"\n{name}, {label}: rate {b['lr']:.4g}, decay {b['decay']:.3g}, {b['steps']:,} steps", end="")
        print("\n")


def _of(value: dict[str, Any]) -> float:
    return math.inf if value["valid"] is None else float(value["valid"])


def _best(grid: dict[str, Any], part: str) -> float:
    return min(_of(v) for k, v in grid.items() if part in k)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--families", nargs="+", default=list(SIZES), choices=list(SIZES))
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(1)
        run(given.file, given.families)
    else:
        report(given.file)
