"""Methods: ways to choose a rate, and the kinds of run that they and the truth are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dagscale.data import Dataset, load
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.plan import Plan, plan
from dagscale.registry import Registry
from dagscale.spaces import targets
from dagscale.subject import Subject
from dagscale.sweep import Run
from dagscale.trace import trace
from dagscale.train import Groups, train


def plainly(target: str, base: str) -> Mapping[str, Any]:
    """Options of a training run that the init says all about."""
    return {"kind": "train"}


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


def law_method(law: str, init: str) -> Method:
    """A law under an init.

    Raises:
        UnknownNameError: for an unknown law or init.
    """
    INITS[init]
    return Method(f"{law} / {init}", init, {"kind": "law", "law": law}, optimizers=LAWS[law].optimizers)


def law_methods() -> Iterator[Method]:
    """Every law under the inits that dagscale offers, the released rule under its own."""
    own = "released"
    for init in ("moments", "in-degree"):
        yield from (law_method(law, init) for law in LAWS if law != own)
    yield law_method(own, own)


# --- kinds of run -------------------------------------------------------------------------------------------

KINDS: Registry[Callable[[Run], dict[str, Any]]] = Registry("kind of run")


@KINDS.add("train")
def training(run: Run) -> dict[str, Any]:
    """Train at the run's rate under its init."""
    model = built(run)
    return trained(run, model, _plan(run.architecture, run.init, run.data, run.limit).param_groups(model, lr=run.lr))


@KINDS.add("law")
def law(run: Run) -> dict[str, Any]:
    """A law's factor from base to target. A measured law's passes count as steps of three passes each."""
    base, target = (_subject(a, run.init, run.optimizer, run.data, run.limit, run.batch_size)
                    for a in (run.options["base"], run.architecture))  # fmt: skip
    entry = LAWS[run.options["law"]]
    factor = math.prod(entry.factors(base, target).values())
    return {"factor": factor, "steps": 0 if entry.cost is None else round(entry.cost(target) / 3)}


def built(run: Run) -> nn.Module:
    """The run's network, initialised."""
    model, _ = targets.load(run.architecture, data=dataset(run), seed=run.seed)
    return _plan(run.architecture, run.init, run.data, run.limit).init_(model, seed=run.seed)


def trained(
    run: Run, model: nn.Module, params: Groups, optimizer: str | Callable[[Groups], Optimizer] | None = None
) -> dict[str, Any]:
    """Train the network for the run's length; the run's optimiser unless another is given."""
    data = dataset(run)
    done = train(
        model, data.x, data.y, params=params, optimizer=optimizer or run.optimizer, epochs=run.epochs or 1,
        batch_size=run.batch_size, seed=run.seed,
    )  # fmt: skip
    return {"loss": done.loss, "steps": done.steps}


def dataset(run: Run) -> Dataset:
    """The run's data, read once a process."""
    return _dataset(run.data, run.limit)


@cache
def _dataset(source: str, limit: int | None) -> Dataset:
    return load(source, limit=limit)


@cache
def _plan(architecture: str, init: str, source: str, limit: int | None) -> Plan:
    data = _dataset(source, limit)
    model, inputs = targets.load(architecture, data=data)
    return plan(model, inputs, base_lr=1.0, law="none", init=init, data=(data.x, data.y), loss=cross_entropy)


@cache
def _subject(architecture: str, init: str, optimizer: str, source: str, limit: int | None, batch_size: int) -> Subject:
    data = _dataset(source, limit)
    model, inputs = targets.load(architecture, data=data)
    subject = Subject(
        trace(model, inputs), model, inputs, (data.x, data.y), cross_entropy, optimizer, batch_size=batch_size
    )
    return replace(subject, fills=INITS[init](subject))
