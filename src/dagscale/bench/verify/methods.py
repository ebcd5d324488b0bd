"""Methods: ways to choose a rate, and the kinds of run that they and the truth are made of."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from dagscale.bench.data import Dataset
from dagscale.bench.data.places import load_named
from dagscale.bench.sweep import Run
from dagscale.inits import INITS
from dagscale.laws import LAWS, Law
from dagscale.models import targets
from dagscale.network import Network, Role
from dagscale.planning.make import plan, scaled_by
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import about, initialised, traced
from dagscale.registry import Registry
from dagscale.scaling.together import scaling
from dagscale.training.engine import train
from dagscale.training.optimizers import OPTIMIZERS, Groups
from dagscale.training.recipe import Recipe


def plainly(target: str, base: str) -> Mapping[str, Any]:
    """Options of a training run for which the init's name alone says how it starts."""
    return {"kind": "train"}


def narrow(target: str, base: str) -> str:
    """The target at the base's width."""
    width = re.search(r"\bwidth=\d+", base)
    return re.sub(r"\bwidth=\d+", width[0], target) if width else target


def by_width(target: str, base: str) -> Mapping[str, Any]:
    """Training with each layer's init and rate scaled by how it has grown from the base."""
    return plainly(target, base) if narrow(target, base) == target else {"kind": "train", "scaled_from": base}


@dataclass(frozen=True)
class Method:
    """A way to choose a rate, or to train without one.

    Its prediction for an architecture is a run of its own, of the kind that ``options`` names. The run answers with
    ``steps``, what it cost in optimiser steps, and one of: ``factor``, on the middle of the base's band; ``lr``, a
    rate; ``loss``, what training came to.

    Attributes:
        name: what tables call it.
        init: the init that base and target get.
        options: of the prediction run.
        training: (target, base) → options of the training runs that it is judged by.
        truth: a name for these runs' curves; methods that share it share the runs.
        per_seed: one prediction run a seed, rather than one in all.
        optimizers: those that it is for; empty means any.
        package: what it needs beyond dagscale's own requirements, as pip and as Python name it.
    """

    name: str
    init: str
    options: Mapping[str, Any]
    training: Callable[[str, str], Mapping[str, Any]] = plainly
    truth: str = ""
    per_seed: bool = False
    optimizers: frozenset[str] = frozenset()
    package: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth", self.truth or self.init)

    def covers(self, optimizer: str) -> bool:
        """Whether it says something about this optimiser."""
        return not self.optimizers or optimizer in self.optimizers


def law_method(law: str, init: str, width: str = "none") -> Method:
    """A law under an init; ``width`` as for `dagscale.plan`.

    Raises:
        UnknownNameError: for an unknown law or init.
    """
    INITS[init]
    plain = Method(f"{law} / {init}", init, {"kind": "law", "law": law}, optimizers=_named(LAWS[law]))
    if width == "none":
        return plain
    name, truth = f"{plain.name} / {width}", f"{init} / {width}"
    return replace(plain, name=name, truth=truth, options={**plain.options, "scaled": True}, training=by_width)


def _named(law: Law) -> frozenset[str]:
    """The optimisers that a law is for, by name; empty for any."""
    if not law.steps:
        return frozenset()
    return frozenset(name for name in OPTIMIZERS if law.covers(OPTIMIZERS[name]))


def law_methods() -> Iterator[Method]:
    """Every law under the inits that dagscale offers, of those with an init of their own the released rule; and what
    is there for networks that keep their own init."""
    for init in ("moments", "in-degree"):
        yield from (law_method(law, init) for law in LAWS if not LAWS[law].own_init)
    yield law_method("released", "released")
    yield law_method("short-run", "keep")


# --- kinds of run -------------------------------------------------------------------------------------------

KINDS: Registry[Callable[[Run], dict[str, Any]]] = Registry("kind of run")


@KINDS.add("train")
def training(run: Run) -> dict[str, Any]:
    """Train at the run's rate under its init."""
    model = built(run)
    groups = planned(run).param_groups(model, lr=run.lr)
    return trained(run, model, groups)


@KINDS.add("law")
def law(run: Run) -> dict[str, Any]:
    """A law's factor from base to target. A measured law's passes count as steps of three passes each."""
    scaled = bool(run.options.get("scaled"))
    base, target = networks(run, run.options["base"], scaled)
    entry = LAWS[run.options["law"]]
    carried = entry.carry({"base": base}, target, about)
    own = sum(part.forwards for part in entry(target).values()) if entry.measured else 0.0
    return {"factor": math.prod(carried.factors.values()), "steps": round(own / 3)}


def built(run: Run) -> nn.Module:
    """The run's network, initialised."""
    model, _ = targets.load(run.architecture, data=dataset(run), seed=run.seed)
    return planned(run).init_(model, seed=run.seed)


def networks(run: Run, base: str, scaled: bool = False) -> tuple[Network, Network]:
    """What a law looks at: base and target under the run's init; the target as it is, or scaled by width."""
    origin, target = network_of(replace(run, architecture=base), "base"), network_of(run)
    if not scaled:
        return origin, target
    rule = INITS[run.init].width
    parts = scaling(origin.graph, target.graph, target.recipe.optimizer, width="mup", mean_field=rule == "mean-field")
    return replace(origin, by_layer=True), scaled_by(target, parts)


def network_of(run: Run, role: Role = "target") -> Network:
    """The run's network under its init."""
    return _network(
        run.architecture, run.init, run.optimizer, run.data, run.limit, run.batch_size, run.epochs or 1, role
    )


def trained(run: Run, model: nn.Module, params: Groups, optimizer: Any = None, **settings: Any) -> dict[str, Any]:
    """Train the network for the run's length; the run's optimiser unless another is given."""
    recipe = recipe_of(run) if optimizer is None else recipe_of(run).changed(optimizer=optimizer, **settings)
    done = train(model, recipe, params, seed=run.seed)
    return {"loss": done.loss, "steps": done.steps}


def recipe_of(run: Run) -> Recipe:
    """How the run trains."""
    return _recipe(run.optimizer, run.data, run.limit, run.batch_size, run.epochs or 1)


@cache
def _recipe(optimizer: str, source: str, limit: int | None, batch_size: int, epochs: int) -> Recipe:
    data = _dataset(source, limit)
    return Recipe((data.x, data.y), cross_entropy, optimizer, batch_size=batch_size, epochs=epochs)


def dataset(run: Run) -> Dataset:
    """The run's data, read once a process."""
    return _dataset(run.data, run.limit)


@cache
def _dataset(source: str, limit: int | None) -> Dataset:
    return load_named(source, limit=limit)


def planned(run: Run) -> Plan:
    """The run's init and relative rates, without a law."""
    scaled_from = run.options.get("scaled_from")
    return _plan(run.architecture, run.init, run.optimizer, run.data, run.limit, scaled_from)


@cache
def _plan(
    architecture: str, init: str, optimizer: str, source: str, limit: int | None, scaled_from: str | None
) -> Plan:
    data = _dataset(source, limit)
    model, inputs = targets.load(architecture, data=data)
    return plan(
        model, inputs, base=None if scaled_from is None else targets.load(scaled_from, data=data), base_lr=1.0,
        law="none", init=init, optimizer=optimizer, data=(data.x, data.y), loss=cross_entropy,
        width="none" if scaled_from is None else "mup",
    )  # fmt: skip


@cache
def _network(
    architecture: str,
    init: str,
    optimizer: str,
    source: str,
    limit: int | None,
    batch_size: int,
    epochs: int,
    role: Role,
) -> Network:
    model, inputs = targets.load(architecture, data=_dataset(source, limit))
    recipe = _recipe(optimizer, source, limit, batch_size, epochs)
    return initialised(traced(model, inputs, recipe, 0, role=role), init)
