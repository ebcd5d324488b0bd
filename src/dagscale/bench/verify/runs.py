"""Runs: what the truth and the predictions of methods are made of, each kind a function of one `Run`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dagscale.bench.data import Dataset
from dagscale.bench.data.places import load_named
from dagscale.bench.data.text import Text
from dagscale.bench.sweep import Run
from dagscale.bench.verify.recipes import HELD, RECIPES, named_examples
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.models import targets
from dagscale.network import Network, Role
from dagscale.planning.make import plan, scaled_by
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import about, initialised, traced
from dagscale.registry import Registry
from dagscale.scaling.together import scaling
from dagscale.searching import search
from dagscale.training.engine import train
from dagscale.training.optimizers import Groups
from dagscale.training.recipe import Recipe

KINDS: Registry[Callable[[Run], dict[str, Any]]] = Registry("kind of run")

BY_ITSELF = "default"
"""In place of an init's name: the one that a search takes where nobody names one."""


def execute(run: Run) -> dict[str, Any]:
    """What a run comes to, by its kind."""
    from dagscale.bench.verify import peers, rivals  # noqa: F401  # their kinds, in a process that has just begun

    return KINDS[run.options["kind"]](run)


@KINDS.add("train")
def training(run: Run) -> dict[str, Any]:
    """Train at the run's rate under its init."""
    model = built(run)
    groups = planned(run).param_groups(model, lr=run.lr)
    return trained(run, model, groups)


@KINDS.add("law")
def law(run: Run) -> dict[str, Any]:
    """A law's factor from base to target. A measured law's passes count as steps of three passes each."""
    base, target = networks(run, run.options["base"], bool(run.options.get("scaled")))
    entry = LAWS[run.options["law"]]
    carried = entry.carry({"base": base}, target, about)
    own = sum(part.forwards for part in entry(target).values()) if entry.measured else 0.0
    return {"factor": math.prod(carried.factors.values()), "steps": round(own / 3)}


@KINDS.add("base")
def base_rate(run: Run) -> dict[str, Any]:
    """What a user's search finds on the base, its steps, and the init that it was left with."""
    model, _ = targets.load(run.architecture, data=dataset(run), seed=run.seed)
    init = None if run.init == BY_ITSELF else run.init.split(",")
    found = search(model, recipe_of(run), init=init, seeds=run.options["seeds"], seed=run.seed, progress=False)
    return {"lr": found.lr, "band": list(found.band), "steps": found.steps, "init": found.init}


@KINDS.add("plan")
def default_plan(run: Run) -> dict[str, Any]:
    """Train as `dagscale.plan` says by itself, from the base's rate and init. What it measures costs steps of three
    passes each, on the base too."""
    data = dataset(run)
    model, inputs = targets.load(run.architecture, data=data, seed=run.seed)
    base, lr = targets.load(run.options["base"], data=data, seed=run.seed), run.options["lr"]
    made = plan(model, inputs, recipe=recipe_of(run), base=base, base_lr=lr, init=run.init)
    done = trained(run, made.init_(model, seed=run.seed), made.param_groups(model))
    return {**done, "steps": done["steps"] + round(made.forwards / 3)}


# --- what they share ----------------------------------------------------------------------------------------


def built(run: Run) -> nn.Module:
    """The run's network, initialised."""
    model, _ = targets.load(run.architecture, data=dataset(run), seed=run.seed)
    return planned(run).init_(model, seed=run.seed)


def networks(run: Run, base: str, scaled: bool = False) -> tuple[Network, Network]:
    """What a law looks at: base and target under the run's init; the target as it is, or with its layers scaled."""
    origin, target = network_of(replace(run, architecture=base), "base"), network_of(run)
    if not scaled:
        return origin, target
    rule = INITS[run.init].width
    parts = scaling(
        origin.graph, target.graph, target.recipe.optimizer, width="mup", depth=run.options.get("depth", "none"),
        mean_field=rule == "mean-field",
    )  # fmt: skip
    return replace(origin, by_layer=True), scaled_by(target, parts)


def network_of(run: Run, role: Role = "target") -> Network:
    """The run's network under its init."""
    return _network(run.architecture, run.init, _training(run), role)


def trained(
    run: Run,
    model: nn.Module,
    params: Groups,
    optimizer: Any = None,
    *,
    after: Callable[[], int] = lambda: 0,
    **changes: Any,
) -> dict[str, Any]:
    """Train the network for the run's length; the run's optimiser unless another is given.

    Under a recipe with a name the answer holds the loss and the accuracy on examples held out too.

    Args:
        after: what is done between training and validation; it returns the forward passes that it took.
        changes: to the recipe, where an optimiser is given.
    """
    recipe = recipe_of(run) if optimizer is None else recipe_of(run).changed(optimizer=optimizer, **changes)
    if "recipe" not in run.options:
        done = train(model, recipe, params, seed=run.seed)
        return {"loss": done.loss, "steps": done.steps}
    done = train(model, recipe, params, seed=run.seed, evaluate=HELD)
    passes = 0 if done.diverged else after()
    return {"loss": done.loss, "steps": done.steps + round(passes / 3), **validated(run, model, done.diverged)}


def validated(run: Run, model: nn.Module, diverged: bool = False) -> dict[str, Any]:
    """Loss and accuracy on the examples held out, in evaluation mode; no accuracy where training diverged."""
    held = named_examples(run.data, run.limit).held
    if diverged:
        return {"valid": math.inf, "accuracy": None}
    model.eval()
    with torch.no_grad():
        output = torch.cat([model(part) for part in torch.split(held.x, 256)])
    model.train()
    loss = held.loss(output, held.y) if isinstance(held, Text) else cross_entropy(output, held.y)
    return {"valid": loss.item(), "accuracy": (output.argmax(-1) == held.y).double().mean().item()}


def decaying(run: Run, model: nn.Module) -> Groups:
    """Parameter groups for an optimiser of others: under a named recipe with and without weight decay, as it says."""
    if "recipe" not in run.options:
        return [{"params": list(model.parameters())}]
    groups = planned(run).param_groups(model, lr=run.lr)
    return [{name: group[name] for name in ("params", "weight_decay") if name in group} for group in groups]


class Training(NamedTuple):
    """All that says how a run trains, and on what, for caches of a process; ``recipe``: the name of one, or None."""

    recipe: str | None
    optimizer: str
    data: str
    limit: int | None
    batch_size: int
    epochs: int | None
    steps: int | None

    @property
    def examples(self) -> Dataset | Text:
        """What is trained on, read once a process."""
        if self.recipe is None:
            return _dataset(self.data, self.limit)
        return named_examples(self.data, self.limit).train


def _training(run: Run) -> Training:
    recipe = run.options.get("recipe")
    return Training(recipe, run.optimizer, run.data, run.limit, run.batch_size, run.epochs, run.steps)


def recipe_of(run: Run) -> Recipe:
    """How the run trains."""
    return _recipe(_training(run))


@cache
def _recipe(how: Training) -> Recipe:
    data = how.examples
    if how.recipe is not None:
        practice = RECIPES[how.recipe]
        return practice.recipe(data, how.steps or practice.steps, how.batch_size)
    return Recipe((data.x, data.y), cross_entropy, how.optimizer, batch_size=how.batch_size, epochs=how.epochs or 1)


def dataset(run: Run) -> Dataset | Text:
    """The run's training data, read once a process."""
    return _training(run).examples


@cache
def _dataset(source: str, limit: int | None) -> Dataset:
    return load_named(source, limit=limit)


def planned(run: Run) -> Plan:
    """The run's init and relative rates, without a law."""
    scaled_from, depth = run.options.get("scaled_from"), run.options.get("depth", "none")
    return _plan(run.architecture, run.init, _training(run), scaled_from, depth)


@cache
def _plan(architecture: str, init: str, how: Training, scaled_from: str | None, depth: str) -> Plan:
    data = how.examples
    if how.recipe is None:
        said: dict[str, Any] = {"optimizer": how.optimizer, "data": (data.x, data.y), "loss": cross_entropy}
    else:
        said = {"recipe": _recipe(how)}
    model, inputs = targets.load(architecture, data=data)
    return plan(
        model, inputs, base=None if scaled_from is None else targets.load(scaled_from, data=data), base_lr=1.0,
        law="none", init=init, width="none" if scaled_from is None else "mup",
        depth="none" if scaled_from is None else depth, **said,
    )  # fmt: skip


@cache
def _network(architecture: str, init: str, how: Training, role: Role) -> Network:
    model, inputs = targets.load(architecture, data=how.examples)
    return initialised(traced(model, inputs, _recipe(how), 0, role=role), init)
