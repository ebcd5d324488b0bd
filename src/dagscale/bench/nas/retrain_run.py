"""One run of a retraining: what the sweep's workers execute.

There are three kinds: the *search* of a base at several rates, the *factor* of a law on one architecture, and a
*piece*: one architecture trained under every recipe and seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy

import dagscale
from dagscale.bench.data import Dataset
from dagscale.bench.data.augment import Augment, padding
from dagscale.bench.data.places import load_named
from dagscale.bench.nas.recipes import SCHEDULES, Recipe
from dagscale.bench.nas.together import Member, outputs, train_together
from dagscale.bench.sweep import Run
from dagscale.errors import DagscaleError, DataError
from dagscale.laws import LAWS
from dagscale.models import targets
from dagscale.models.nb201 import NB201
from dagscale.network import Network, Role
from dagscale.planning.make import plan
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import about, initialised, traced
from dagscale.training.engine import Run as Trained
from dagscale.training.engine import train

HELD = 5
"""One of so many training images is held out of a base's search, which is judged by them."""

ELEMENTS = 1 << 21
"""Numbers in a stage's first activation, over all networks that are trained at once. With more of them the operations
themselves take the time, and starting them no longer does."""

MOST = 16
"""Networks trained at once."""

LAW_STEPS = 400
"""Steps of one network that a measured law takes on one architecture, about."""

GLANCE = 3
"""Steps that the time of a whole run is told from."""


def execute(run: Run) -> dict[str, Any]:
    """A search's losses on held-out images, a law's factor, or a piece's final training losses and test accuracies."""
    if run.options["kind"] == "factor":
        return _factor(run)
    data = _read(run, "train")
    if run.options["kind"] == "search":
        kept, held = split(data)
        losses: list[float] = []
        for members in _members(run, data):
            trained = _train(members, run, kept)
            found = [cross_entropy(logits, held.y).item() for logits in outputs([m.model for m in members], held.x)]
            losses += [math.inf if one.diverged else loss for one, loss in zip(trained, found, strict=True)]
        return {"losses": [loss if math.isfinite(loss) else math.inf for loss in losses]}
    test = read(run.options["test"], run.limit, run.options["side"], "test")
    results: list[dict[str, Any]] = []
    for members in _members(run, data):
        trained = _train(members, run, data)
        for one, logits in zip(trained, outputs([m.model for m in members], test.x), strict=True):
            right = 100 * int((logits.argmax(1) == test.y).sum()) / len(test)
            accuracy = 100 / test.classes if one.diverged else right
            results.append({"loss": one.loss, "steps": one.steps, "test_acc": accuracy})
    return {"runs": results}


def split(data: Dataset) -> tuple[Dataset, Dataset]:
    """Training images without, and with only, those that are held out for a base's search: always the same ones."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    held, kept = order[: max(1, len(data) // HELD)], order[max(1, len(data) // HELD) :]
    return data.rows(kept), data.rows(held)


def seconds(run: Run) -> float:
    """About how long a run takes on this machine, from a few of its steps."""
    data = _read(run, "train")
    if run.options["kind"] == "factor":
        setting = {"init": "keep", "width": "none", "base": None, "lr": 0.1, "decay": 0.0}
        _, step = _times([_member(run, data, setting, run.seed)], run, data)
        return 2 * LAW_STEPS * step
    members = next(_members(run, data))
    begun, step = _times(members, run, data)
    return math.ceil(len(_settings(run)) / len(members)) * (begun + _training(_recipe(run), data).total_steps * step)


def _times(members: Sequence[Member], run: Run, data: Dataset) -> tuple[float, float]:
    """Seconds of a training without its steps, and of one step."""
    taken = []
    for steps in (GLANCE, 2 * GLANCE):
        begun = time.perf_counter()
        _train(members, run, data, steps)
        taken.append(time.perf_counter() - begun)
    step = max(0.0, taken[1] - taken[0]) / GLANCE
    return max(0.0, taken[0] - GLANCE * step), step


def _settings(run: Run) -> list[tuple[Mapping[str, Any], int]]:
    """Setting and seed of every network of a run."""
    return [(setting, seed) for setting in run.options["members"] for seed in run.options["seeds"]]


def _members(run: Run, data: Dataset) -> Iterator[list[Member]]:
    """The run's networks, as many at a time as are trained at once."""
    settings = iter(_settings(run))
    at_once = 1
    while group := list(islice(settings, at_once)):
        members = [_member(run, data, setting, seed) for setting, seed in group]
        if at_once == 1:
            at_once = together(members[0].model, run.batch_size, data.shape[1])
            members += [_member(run, data, *one) for one in islice(settings, at_once - 1)]
        yield members


def together(model: nn.Module, batch: int, side: int) -> int:
    """How many networks like this one to train at once."""
    assert isinstance(model, NB201)
    channels = next(model.parameters()).shape[0]  # of the stem
    return min(MOST, max(1, ELEMENTS // (batch * side**2 * channels)))


def _member(run: Run, data: Dataset, setting: Mapping[str, Any], seed: int) -> Member:
    model, _ = targets.load(run.architecture, data=data, seed=seed)
    recipe = _recipe(run, init=setting["init"], width=setting["width"])
    made = _start(run.architecture, setting["base"], recipe, run.data, run.limit, run.options["side"])
    made.init_(model, seed=seed)
    model = model.to(_device(run))
    return Member(model, made.param_groups(model, lr=setting["lr"], weight_decay=setting["decay"]), seed)


def _train(members: Sequence[Member], run: Run, data: Dataset, steps: int | None = None) -> list[Trained]:
    """Train networks, for ``steps`` in place of the run's: all at once where there are several, else one by one."""
    own = _recipe(run)
    recipe = _training(own, data, _device(run))
    recipe = recipe if steps is None else recipe.changed(epochs=None, steps=steps)
    augment = Augment(own.augment, padding(data.shape[1])).to(_device(run))
    if len(members) > 1:
        return train_together(members, recipe, augment)
    (one,) = members
    # The faster layout for convolutions of one network, of the same numbers.
    model = nn.Sequential(augment, one.model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    return [train(model, recipe, one.groups, seed=one.seed)]


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


def _training(recipe: Recipe, data: Dataset, device: str = "cpu") -> dagscale.Recipe:
    """As dagscale runs it, the data on the device; weight decay comes with the groups."""
    tensors = (data.x.to(device), data.y.to(device))
    return dagscale.Recipe(
        tensors, cross_entropy, torch.optim.SGD, momentum=recipe.momentum, nesterov=recipe.nesterov,
        schedule=SCHEDULES[recipe.schedule], epochs=recipe.epochs, batch_size=recipe.batch_size,
    )  # fmt: skip


def _device(run: Run) -> str:
    return str(run.options.get("device", "cpu"))


def _recipe(run: Run, **more: Any) -> Recipe:
    return replace(Recipe.of(run.options["recipe"]), **more)


def _read(run: Run, split: str) -> Dataset:
    return read(run.data, run.limit, run.options["side"], split)


@lru_cache(maxsize=2)
def read(source: str, limit: int | None, side: int | None, split: str) -> Dataset:
    """A split, averaged down; test images are normalised as the train images under the same limit."""
    return averaged(load_named(source, split=split, limit=limit), side)


def averaged(data: Dataset, side: int | None) -> Dataset:
    """The data with their images averaged down to this side; as they are for None.

    Raises:
        DataError: if the images cannot be averaged so.
    """
    if side is None or side == data.shape[1]:
        return data
    if data.shape[1] % side or data.shape[1] != data.shape[2]:
        raise DataError(f"{data.name}: images of {data.shape[1]}×{data.shape[2]} cannot be averaged to side {side}")
    return Dataset(data.name, adaptive_avg_pool2d(data.x, side), data.y, data.classes)


@lru_cache(maxsize=8)
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
