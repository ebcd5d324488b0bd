"""``dagscale retrain``: architectures of NAS-Bench-201 trained under several recipes, and how they compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dagscale.bench.bounds import check_count
from dagscale.bench.data import load
from dagscale.bench.data.places import placed
from dagscale.bench.nas.recipes import PRESETS, RECIPES, Preset, Recipe, differences
from dagscale.bench.nas.retrain_run import execute, read
from dagscale.bench.nas.tables import Floats
from dagscale.bench.sweep import Run, Store, sweep
from dagscale.errors import DagscaleError, DataError
from dagscale.models.nb201 import Nb201
from dagscale.rates import find_band
from dagscale.replacing import make_folder

REFERENCE = "benchmark"
TOLERANCE = 0.05
"""A base's rate is the middle of those whose training loss is within 5 % of the best."""


@dataclass(frozen=True)
class Base:
    """The search of a base's rate.

    Attributes:
        target: the network.
        lr: the rate found, by training loss.
        at_edge: the good rates reach an end of the grid; the true middle may be another.
        curve: (rate, mean final training loss over the seeds); None where a run diverged.
    """

    target: str
    lr: float
    at_edge: bool
    curve: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class LeftOut:
    """An architecture that was not trained, and why."""

    arch: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Retraining:
    """What was trained.

    Attributes:
        archs: the architectures.
        accuracies: recipe → test accuracy in percent, (architectures, seeds); of diverged runs chance.
        losses: recipe → final training loss, likewise; infinite where the run diverged.
        rates: recipe → each architecture's learning rate.
        bases: recipe → the search of its base; recipes with a given rate have none.
        forwards: recipe → forward passes that its law took on an architecture, on average.
    """

    data: str
    preset: str
    size: Preset
    seeds: tuple[int, ...]
    archs: tuple[Nb201, ...]
    accuracies: Mapping[str, Floats]
    losses: Mapping[str, Floats]
    rates: Mapping[str, tuple[float, ...]]
    bases: Mapping[str, Base]
    forwards: Mapping[str, float]
    left_out: tuple[LeftOut, ...]
    differences: tuple[str, ...]
    test_images: int

    @property
    def header(self) -> str:
        """Preset, sizes and data in one line."""
        return (
            f"preset {self.preset}: {self.size.describe()}; data {self.data}, accuracy on {self.test_images:,} test "
            f"images; {len(self.archs)} architectures × {len(self.accuracies)} recipes × {len(self.seeds)} seeds"
        )

    @property
    def diverged(self) -> dict[str, int]:
        """Recipe → runs that diverged."""
        return {recipe: int(np.isinf(losses).sum()) for recipe, losses in self.losses.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        return {
            "data": self.data,
            "preset": {"name": self.preset, **asdict(self.size)},
            "seeds": list(self.seeds),
            "test_images": self.test_images,
            "differences": list(self.differences),
            "recipes": {name: asdict(self.size.shorten(RECIPES[name])) for name in self.accuracies},
            "bases": {name: asdict(base) for name, base in self.bases.items()},
            "forwards": dict(self.forwards),
            "left_out": [asdict(one) for one in self.left_out],
            "diverged": self.diverged,
            "architectures": [
                {
                    "code": arch.code,
                    "kind": arch.kind,
                    "recipes": {
                        name: {
                            "lr": self.rates[name][i],
                            "test_acc": accuracies[i].tolist(),
                            "loss": [v if math.isfinite(v) else None for v in self.losses[name][i].tolist()],
                        }
                        for name, accuracies in self.accuracies.items()
                    },
                }
                for i, arch in enumerate(self.archs)
            ],
        }


def retrain(
    archs: Sequence[Nb201],
    *,
    data: str,
    recipes: Iterable[str] = (REFERENCE, "one-rate", "released", "plan"),
    preset: str = "short-12",
    size: Preset | None = None,
    seeds: int = 2,
    seed: int = 0,
    store: str | Path,
    jobs: int = -1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> Retraining:
    """Train every architecture under every recipe, all through one resumable sweep's store.

    A recipe without a given rate first has it searched on its base, under the recipe itself, by *training* loss: test
    images are looked at once, after the last step of the trainings that count. Its law then gives each
    architecture's factor.

    Args:
        archs: those without a path from input to output, or without a rate under some recipe, are left out, by name.
        data: a name or path for `dagscale.bench.data.load`, with a test split.
        recipes: names in ``RECIPES``; ``benchmark`` is added if it is missing.
        preset: name in ``PRESETS``: how much is trained.
        size: another size than the preset's own.
        seeds: runs of each architecture and recipe, at least 2; the base's search has as many.
        seed: the first one.
        store, jobs, scheduler, retry_failed, progress: see `dagscale.bench.sweep.sweep`.

    Raises:
        UnknownNameError: for an unknown recipe or preset.
        DataError: if the data have no test split, seeds or recipes are too few, or nothing can be trained.
        DagscaleError: if runs failed.
    """
    names = tuple(dict.fromkeys((REFERENCE, *recipes)))
    chosen = {name: RECIPES[name] for name in names}
    scale = PRESETS[preset] if size is None else size
    if len(names) < 2:
        raise DataError(f"a comparison needs another recipe than {REFERENCE}: name some of {', '.join(RECIPES)}")
    if seeds < 2:
        raise DataError(f"{seeds} seed: give 2 or more, since only they tell a change of the ranking from noise")
    check_count("seeds", seeds, 2, 1000)
    check_count("seed", seed, 0, 2**63)
    if scale.images is not None:
        check_count("limit", scale.images, 1, 10**9)
    # As it is now, since what was read before may have changed.
    test = read.__wrapped__(data, scale.images, scale.side, "test")
    names_of = {split: load(data, split=split, limit=scale.images).digest for split in ("train", "test")}
    study = _Study(
        names_of["train"], scale, tuple(range(seed, seed + seeds)), store, jobs, scheduler, progress,
        names_of["test"], dict.fromkeys(names_of.values(), data), retry_failed,
    )  # fmt: skip
    left = [LeftOut(a.code, a.kind, "nothing to train: no path") for a in archs if not a.graph.has_path]
    able = [arch for arch in archs if arch.graph.has_path]
    if not able:
        raise DataError("no architecture with a path from input to output: there is nothing to train")
    make_folder(Path(store).parent)
    bases = study.search({name: recipe for name, recipe in chosen.items() if recipe.base is not None})
    factors = study.factors(able, {name: recipe for name, recipe in chosen.items() if recipe.base is not None})
    for name, answers in factors.items():
        for arch, answer in zip(list(able), answers, strict=True):
            if answer["factor"] is None:
                left.append(LeftOut(arch.code, arch.kind, f"no rate under {name}: {answer['why']}"))
    lost = {one.arch for one in left}
    kept = tuple(arch for arch in able if arch.code not in lost)
    if not kept:
        raise DataError(f"no architecture can be trained under every recipe; the first: {left[0].reason}")
    rates = {
        name: tuple(
            recipe.lr if recipe.lr is not None else bases[name].lr * factors[name][i]["factor"]
            for i, arch in enumerate(able)
            if arch.code not in lost
        )
        for name, recipe in chosen.items()
    }
    results = study.train(kept, chosen, rates)
    return Retraining(
        data=test.name,
        preset=preset if size is None or size == PRESETS[preset] else f"{preset}, changed",
        size=scale,
        seeds=study.seeds,
        archs=kept,
        accuracies={name: np.array([[r["test_acc"] for r in runs] for runs in results[name]]) for name in names},
        losses={name: np.array([[r["loss"] for r in runs] for runs in results[name]]) for name in names},
        rates=rates,
        bases=bases,
        forwards={name: float(np.mean([answer["forwards"] for answer in factors[name]])) for name in factors},
        left_out=tuple(left),
        differences=tuple(differences(scale, test.shape[1])),
        test_images=len(test),
    )


@dataclass(frozen=True)
class _Study:
    """The runs of a retraining, and the sweep that executes them."""

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

    def search(self, recipes: Mapping[str, Recipe]) -> dict[str, Base]:
        """The rate of every recipe's base."""
        low, high = self.size.rates
        grid = [2.0**k for k in range(low, high + 1)]
        runs = {
            (name, lr): [self._run("search", self._base(recipe), recipe, lr, k) for k in self.seeds]
            for name, recipe in recipes.items()
            for lr in grid
        }
        results = self._execute(runs)
        found = {}
        for name, recipe in recipes.items():
            losses = [float(np.mean([r["loss"] for r in results[name, lr]])) for lr in grid]
            if not any(map(math.isfinite, losses)):
                raise DataError(f"recipe {name}: every rate from {grid[0]:g} to {grid[-1]:g} diverged on its base")
            ends = find_band(grid, losses, TOLERANCE)
            at_edge = ends[0] <= grid[0] or ends[1] >= grid[-1]
            curve = tuple((lr, v if math.isfinite(v) else None) for lr, v in zip(grid, losses, strict=True))
            found[name] = Base(self._base(recipe), math.sqrt(ends[0] * ends[1]), at_edge, curve)
        return found

    def factors(self, archs: Sequence[Nb201], recipes: Mapping[str, Recipe]) -> dict[str, list[Mapping[str, Any]]]:
        """Each architecture's factor on the base's rate, or why there is none."""
        runs = {
            (name, arch): [self._run("factor", self.size.target(arch.code), recipe, 1.0, self.seeds[0])]
            for name, recipe in recipes.items()
            for arch in archs
        }
        results = self._execute(runs)
        return {name: [results[name, arch][0] for arch in archs] for name in recipes}

    def train(
        self, archs: Sequence[Nb201], recipes: Mapping[str, Recipe], rates: Mapping[str, Sequence[float]]
    ) -> dict[str, list[list[Mapping[str, Any]]]]:
        """What each architecture's trainings came to, a list a seed."""
        runs = {
            (name, arch): [self._run("train", self.size.target(arch.code), recipe, lr, k) for k in self.seeds]
            for name, recipe in recipes.items()
            for arch, lr in zip(archs, rates[name], strict=True)
        }
        results = self._execute(runs)
        return {name: [results[name, arch] for arch in archs] for name in recipes}

    def _base(self, recipe: Recipe) -> str:
        assert recipe.base is not None
        return self.size.target(recipe.base, cells=1, narrower=recipe.narrower)

    def _run(self, kind: str, target: str, recipe: Recipe, lr: float, seed: int) -> Run:
        """A run, with nothing in it that its result does not depend on."""
        own = replace(self.size.shorten(recipe), lr=None, base=None, narrower=1)
        own = own if kind == "factor" else replace(own, law="none")
        own = replace(own, width="none") if kind == "search" else own
        scaled = recipe.base is not None and (kind == "factor" or own.width != "none")
        options = {
            "kind": kind,
            "side": self.size.side,
            "base": self._base(recipe) if scaled else None,
            "recipe": asdict(own),
        }
        options |= {"test": self.test} if kind == "train" else {}
        return Run(
            target, lr, recipe.init, recipe.optimizer, self.data, self.size.images, own.batch_size, own.epochs,
            seed=seed, options=options,
        )  # fmt: skip

    def _execute(self, asked: Mapping[Any, Sequence[Run]]) -> dict[Any, list[Mapping[str, Any]]]:
        runs = [run for group in asked.values() for run in group]
        sweep(
            runs, partial(placed, self.places, execute), self.store, jobs=self.jobs, scheduler=self.scheduler,
            retry_failed=self.retry_failed, progress=self.progress,
        )  # fmt: skip
        with Store(self.store) as book:
            results = dict(book.results(runs))
        failed = [run for run, result in results.items() if result is None]
        if failed:
            raise DagscaleError(
                f"{len(failed)} runs failed, the first {failed[0].architecture} (rate {failed[0].lr:g}): "
                f"see `dagscale sweep status {self.store}`; once it is mended, --retry-failed executes them again"
            )
        return {name: [results[run] for run in group] for name, group in asked.items()}
