"""One run of a retraining: what the sweep's workers execute."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

import dagscale
from dagscale.bench.data import Dataset, load
from dagscale.bench.data.augment import Augment, padding
from dagscale.bench.data.places import check, place
from dagscale.bench.nas.recipes import SCHEDULES, Recipe
from dagscale.bench.sweep import Run
from dagscale.errors import DagscaleError, DataError
from dagscale.laws import LAWS
from dagscale.models import targets
from dagscale.network import Network, Role
from dagscale.planning.make import plan
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import about, initialised, traced
from dagscale.training.engine import train


def execute(run: Run) -> dict[str, Any]:
    """A training run's final training loss, with the test accuracy where it counts; or a law's factor."""
    if run.options["kind"] == "factor":
        return _factor(run)
    recipe = _recipe(run)
    data = read(run.data, run.limit, run.options["side"], "train")
    model, _ = targets.load(run.architecture, data=data, seed=run.seed)
    made = _start(run.architecture, run.options["base"], recipe, run.data, run.limit, run.options["side"])
    made.init_(model, seed=run.seed)
    done = train(
        nn.Sequential(Augment(recipe.augment, padding(data.shape[1])), model), _training(recipe, data),
        made.param_groups(model, lr=run.lr, weight_decay=recipe.weight_decay), seed=run.seed,
    )  # fmt: skip
    result = {"loss": done.loss, "steps": done.steps}
    if run.options["kind"] == "train":
        test = read(run.options["test"], run.limit, run.options["side"], "test")
        result["test_acc"] = 100 / test.classes if done.diverged else accuracy(model, test.x, test.y)
    return result


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers in percent, in eval mode: norms use their running statistics."""
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x[rows]).argmax(1) == y[rows]).sum())
            for rows in torch.arange(len(y)).tensor_split(len(y) // 512 + 1)
        )
    return 100 * right / len(y)


def _factor(run: Run) -> dict[str, Any]:
    recipe, side = _recipe(run), run.options["side"]
    law = LAWS[recipe.law]
    try:
        base, target = (
            _network(a, recipe, run.data, run.limit, side, run.seed, role)
            for a, role in ((run.options["base"], "base"), (run.architecture, "target"))
        )
        factor = math.prod(law.carry({"base": base}, target, about).factors.values())
        forwards = sum(part.forwards for part in law(target).values()) if law.measured else 0
    except DataError:
        raise  # no fault of the architecture
    except DagscaleError as error:
        return {"factor": None, "why": str(error), "forwards": 0}
    return {"factor": factor, "forwards": forwards}


def _training(recipe: Recipe, data: Dataset) -> dagscale.Recipe:
    """As dagscale runs it; weight decay comes with the groups."""
    return dagscale.Recipe(
        (data.x, data.y), cross_entropy, torch.optim.SGD, momentum=recipe.momentum, nesterov=recipe.nesterov,
        schedule=SCHEDULES[recipe.schedule], epochs=recipe.epochs, batch_size=recipe.batch_size,
    )  # fmt: skip


def _recipe(run: Run) -> Recipe:
    return Recipe(**{**run.options["recipe"], "augment": tuple(run.options["recipe"]["augment"])})


@lru_cache(maxsize=2)
def read(source: str, limit: int | None, side: int | None, split: str) -> Dataset:
    """A split, averaged down; test images are normalised as the train images under the same limit."""
    data = check(load(place(source), split=split, limit=limit), source)
    if side is None or side == data.shape[1]:
        return data
    if data.shape[1] % side or data.shape[1] != data.shape[2]:
        raise DataError(f"{data.name}: images of {data.shape[1]}×{data.shape[2]} cannot be averaged to side {side}")
    return Dataset(data.name, adaptive_avg_pool2d(data.x, side), data.y, data.classes)


@lru_cache(maxsize=4)
def _start(target: str, base: str | None, recipe: Recipe, source: str, limit: int | None, side: int | None) -> Plan:
    """Init and relative rates, without a law."""
    data = read(source, limit, side, "train")
    model, inputs = targets.load(target, data=data)
    return plan(
        model, inputs, base=None if base is None else targets.load(base, data=data), base_lr=1.0, law="none",
        init=recipe.init, width=recipe.width, optimizer=_named(recipe), data=(data.x, data.y), loss=cross_entropy,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _network(
    target: str, recipe: Recipe, source: str, limit: int | None, side: int | None, seed: int, role: Role
) -> Network:
    """What a law looks at; a base's is kept, so that it is measured once."""
    data = read(source, limit, side, "train")
    model, inputs = targets.load(target, data=data, seed=seed)
    measured = dagscale.Recipe((data.x, data.y), cross_entropy, _named(recipe), batch_size=recipe.batch_size)
    return initialised(traced(model, inputs, measured, seed, role=role), recipe.init)


def _named(recipe: Recipe) -> str:
    return "momentum" if recipe.momentum else recipe.optimizer
