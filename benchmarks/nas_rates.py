"""Architectures of NAS-Bench-201 at several rates and inits: what a rate of each one's own could gain at the most.

    python benchmarks/nas_rates.py run --data PATH/cifar10 --settings 0.05,0.2,0.4,moments:0.2 --results FILE.jsonl
    python benchmarks/nas_rates.py report FILE.jsonl [--init keep]

``run`` trains the first architectures of the published list (``docs/evidence/results/nas-list.txt``) at the benchmark's
rate and at each of ``--settings``, a rate or ``INIT:RATE``, and goes on at the next call as ``dagscale retrain`` does.
``report`` compares one shared setting with each architecture's own best, chosen by one seed and judged by the other.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dagscale.bench.nas import samples
from dagscale.bench.nas.recipes import BENCHMARK, PRESETS, RECIPES, Recipe
from dagscale.bench.nas.results import Retraining, read_results
from dagscale.bench.nas.retrain import retrain
from dagscale.bench.nas.settings import Settings, Shared, compare_settings
from dagscale.bench.nas.settings_page import legend, rows

LIST = Path(__file__).parents[1] / "docs" / "evidence" / "results" / "nas-list.txt"


def recipe(setting: str) -> Recipe:
    """The benchmark's own at another rate: ``0.2``, or under another init: ``moments:0.2``."""
    init, _, lr = setting.rpartition(":")
    return replace(BENCHMARK, init=init or BENCHMARK.init, lr=float(lr))


def name(own: Recipe) -> str:
    """``PyTorch's init at 0.1``, or ``init moments at 0.2``."""
    init = "PyTorch's init" if own.init == "keep" else f"init {own.init}"
    return f"{init} at {own.lr:g}"


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    archs = samples.read(str(LIST))[: options.count]
    settings = options.settings.split(",")
    with RECIPES.temporarily():
        for setting in settings:
            RECIPES.add(setting)(recipe(setting))
        found = retrain(
            archs, data=options.data, recipes=settings, preset=options.preset, store=options.store, jobs=1,
            results=options.results, until=time.monotonic() + 60 * options.minutes,
        )  # fmt: skip
    print(f"{found.progress}; they are in {options.results}")


def compared(found: Retraining, init: str | None = None) -> Shared:
    """One shared setting against each architecture's own best, of the settings under one init or of all."""
    chosen = [label for label, own in found.recipes.items() if init in (None, own.init)]
    return compare_settings(Settings(
        found.data, f"test accuracy, {found.preset}", tuple(arch.code for arch in found.archs),
        tuple(name(found.recipes[label]) for label in chosen),
        np.stack([found.accuracies[label] for label in chosen], 1),
    ), bootstrap=1000)  # fmt: skip


def report(options: argparse.Namespace) -> None:
    found = read_results(options.results)
    print(found.header)
    for label, values in found.accuracies.items():
        print(f"{name(found.recipes[label])}: {values.mean():.2f} %")
    shared = compared(found, options.init)
    for line in legend(shared):
        print(line)
    for title, head, body in rows(shared):
        print(f"\n{title}", *(" | ".join(cells) for cells in (head, *body)), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.set_defaults(do=run)
    running.add_argument("--data", required=True)
    running.add_argument("--preset", default="micro-4", choices=list(PRESETS))
    running.add_argument("--settings", default="0.05,0.2,0.4,moments:0.05,moments:0.1,moments:0.2,moments:0.4")
    running.add_argument("--count", type=int, default=150)
    running.add_argument("--minutes", type=float, default=60)
    running.add_argument("--results", type=Path, required=True)
    running.add_argument("--store", type=Path, default=Path("out/nas-rates.sqlite"))
    reporting = commands.add_parser("report")
    reporting.set_defaults(do=report)
    reporting.add_argument("results", type=Path)
    reporting.add_argument("--init")
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
