"""The runs of a retraining, and the sweep that executes them as far as the time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from dagscale.bench.data.places import placed
from dagscale.bench.nas.isomorphism import representative
from dagscale.bench.nas.recipes import RECIPES, REFERENCE, Preset, Recipe
from dagscale.bench.nas.results import Base, Row
from dagscale.bench.nas.retrain_run import execute, seconds
from dagscale.bench.sweep import Run, Store, sweep
from dagscale.errors import DagscaleError, DataError
from dagscale.models.nb201 import Nb201
from dagscale.rates import find_band

TOLERANCE = 0.05
"""A base's rate is the middle of those whose loss is within 5 % of the best."""

Runs = Mapping[Any, Sequence[Run]]
Found = dict[Any, list[Mapping[str, Any]]]


@dataclass
class Study:
    """The runs of a retraining, and the sweep that executes them.

    Attributes:
        executed: runs executed so far.
        needed: seconds that the next run takes, where there was no time for it.
        longest: kind of run → seconds of the longest so far, which is better than an estimate.
    """

    data: str
    size: Preset
    seeds: tuple[int, ...]
    store: str | Path
    jobs: int
    scheduler: str | None
    progress: bool
    test: str | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    retry_failed: bool = False
    until: float | None = None
    device: str = "cpu"
    executed: int = 0
    needed: float = 0.0
    longest: dict[str, float] = field(default_factory=dict)

    def search(self, recipes: Mapping[str, Recipe]) -> dict[str, Base] | None:
        """The rate, and the decay where it is searched, of every recipe's base; None if the time was up before."""
        low, high = self.size.rates
        grid = [2.0**k for k in range(low, high + 1)]
        decays = {name: recipe.decays or (recipe.weight_decay,) for name, recipe in recipes.items()}
        runs = {
            (name, decay): [
                self._run("search", self._base(recipe), recipe, [self._setting(recipe, lr, decay) for lr in grid], [k])
                for k in self.seeds
            ]
            for name, recipe in recipes.items()
            for decay in decays[name]
        }
        results = self._execute(runs)
        if set(results) != set(runs):
            return None
        return {
            name: base_of(
                name, self._base(recipe), grid,
                {decay: np.mean([one["losses"] for one in results[name, decay]], axis=0) for decay in decays[name]},
            )
            for name, recipe in recipes.items()
        }  # fmt: skip

    def factors(self, archs: Sequence[Nb201], recipes: Mapping[str, Recipe]) -> Found:
        """(recipe, architecture) → the factor on the base's rate, or why there is none; those that there was time for.

        One architecture of each group that computes the same is measured.
        """
        measured = [representative(arch) for arch in archs]
        runs = {
            (name, arch): [self._run("factor", self.size.target(arch.code), recipe, [], [self.seeds[0]])]
            for name, recipe in recipes.items()
            for arch in dict.fromkeys(measured)
        }
        found = self._execute(runs)
        return {
            (name, arch): found[name, own]
            for name in recipes
            for arch, own in zip(archs, measured, strict=True)
            if (name, own) in found
        }

    def rows(self, archs: Sequence[Nb201], recipes: Mapping[str, Recipe], bases: Mapping[str, Base]) -> list[Row]:
        """What is to be said of each architecture, of those that there was time for."""
        searched = {name: recipe for name, recipe in recipes.items() if recipe.base is not None}
        factors = self.factors(archs, searched)
        done: dict[Nb201, Row] = {}
        chosen: dict[Nb201, dict[str, dict[str, Any]]] = {}
        for arch in archs:
            answers = {name: factors[name, arch][0] for name in searched if (name, arch) in factors}
            if len(answers) < len(searched):
                continue
            why = [f"no rate under {n}: {answer['why']}" for n, answer in answers.items() if answer["factor"] is None]
            if why:
                done[arch] = {"code": arch.code, "kind": arch.kind, "left_out": why[0]}
                continue
            chosen[arch] = {
                name: {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "forwards": 0}
                if recipe.lr is not None
                else {
                    "lr": bases[name].lr * answers[name]["factor"],
                    "weight_decay": bases[name].weight_decay,
                    "forwards": answers[name]["forwards"],
                }
                for name, recipe in recipes.items()
            }
        results = self._execute({arch: [self._piece(arch, recipes, own)] for arch, own in chosen.items()})
        for arch, (result,) in results.items():
            runs, told = iter(result["runs"]), {}
            for name, own in chosen[arch].items():
                group = list(islice(runs, len(self.seeds)))
                told[name] = {**own, **{key: [run[key] for run in group] for key in ("loss", "test_acc")}}
            done[arch] = {"code": arch.code, "kind": arch.kind, "recipes": told}
        return [done[arch] for arch in archs if arch in done]

    def _piece(self, arch: Nb201, recipes: Mapping[str, Recipe], chosen: Mapping[str, Mapping[str, Any]]) -> Run:
        """The training of one architecture under every recipe, with the rates and decays that were chosen for it."""
        members = [
            self._setting(recipe, chosen[name]["lr"], chosen[name]["weight_decay"], scaled=True)
            for name, recipe in recipes.items()
        ]
        return self._run("piece", self.size.target(arch.code), recipes[REFERENCE], members, self.seeds)

    def _base(self, recipe: Recipe) -> str:
        assert recipe.base is not None
        return self.size.target(recipe.base, cells=1, narrower=recipe.narrower)

    def _setting(self, recipe: Recipe, lr: float | None, decay: float, *, scaled: bool = False) -> dict[str, Any]:
        """What one network is trained with, of what recipes differ in; ``scaled`` by how it has grown from its base."""
        width = recipe.width if scaled else "none"
        base = self._base(recipe) if width != "none" else None
        return {"init": recipe.init, "width": width, "base": base, "lr": lr, "decay": decay}

    def _run(
        self, kind: str, target: str, recipe: Recipe, members: Sequence[Mapping[str, Any]], seeds: Sequence[int]
    ) -> Run:
        """A run, with nothing in it that its result does not depend on."""
        shared = replace(self.size.shorten(RECIPES[REFERENCE]), lr=None)
        own = replace(shared, init=recipe.init, law=recipe.law) if kind == "factor" else shared
        options: dict[str, Any] = {
            "kind": kind, "side": self.size.side, "recipe": asdict(own), "members": list(members), "seeds": list(seeds)
        }  # fmt: skip
        options |= {"base": self._base(recipe)} if kind == "factor" else {}
        options |= {"test": self.test} if kind == "piece" else {}
        options |= {"device": self.device} if self.device != "cpu" else {}
        return Run(
            target, 1.0, own.init, own.optimizer, self.data, self.size.images, own.batch_size, own.epochs,
            seed=seeds[0], options=options,
        )  # fmt: skip

    def _seconds(self, run: Run) -> float:
        known = self.longest.get(str(run.options["kind"]))
        return float(placed(self.places, seconds, run)) if known is None else known

    def _execute(self, asked: Runs) -> Found:
        """The results of each group of runs that is complete; all of them, unless the time was up."""
        runs = [run for group in asked.values() for run in group]
        if self.executed and self.until is not None and monotonic() > self.until:
            return {}
        done = sweep(
            runs, partial(placed, self.places, execute), self.store, jobs=self.jobs, scheduler=self.scheduler,
            retry_failed=self.retry_failed, progress=self.progress, until=self.until,
            estimate=self._seconds,
        )  # fmt: skip
        if done.executed:
            kind = str(runs[0].options["kind"])
            self.longest[kind] = max(done.longest, self.longest.get(kind, 0.0))
        self.executed += done.executed
        self.needed = done.longest if not done.executed else self.needed
        with Store(self.store) as book:
            results = dict(book.results(runs))
        if done.failed:
            raise DagscaleError(
                f"{done.failed} runs failed: see `dagscale sweep status {self.store}`; once it is mended, "
                "--retry-failed executes them again"
            )
        whole = {name: [results[run] for run in group] for name, group in asked.items()}
        return {name: group for name, group in whole.items() if all(result is not None for result in group)}


def base_of(name: str, target: str, grid: list[float], curves: Mapping[float, Any]) -> Base:
    """The decay whose best loss is lowest, and the middle of its band of rates."""
    finite = {decay: losses for decay, losses in curves.items() if np.isfinite(losses).any()}
    if not finite:
        raise DataError(f"recipe {name}: every rate from {grid[0]:g} to {grid[-1]:g} diverged on its base")
    decay = min(finite, key=lambda one: float(np.min(finite[one])))
    ends = find_band(grid, [float(loss) for loss in finite[decay]], TOLERANCE)
    at_edge = ends[0] <= grid[0] or ends[1] >= grid[-1] or (len(curves) > 1 and decay in (min(curves), max(curves)))
    curve = tuple(
        (own, lr, float(loss) if math.isfinite(loss) else None)
        for own, losses in curves.items()
        for lr, loss in zip(grid, losses, strict=True)
    )
    return Base(target, math.sqrt(ends[0] * ends[1]), decay, at_edge, curve)
