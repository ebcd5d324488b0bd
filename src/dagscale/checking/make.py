"""Does a plan hold what it promises as the model grows? Measured over a family of models, with a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dagscale.checking.causes import find_faults
from dagscale.checking.family import Family, Member, growth, members, wanted
from dagscale.checking.measure import (
    STABLE,
    Observation,
    Task,
    attempt,
    lower_share,
    observe,
    started,
    steepness,
    too_high,
)
from dagscale.checking.report import Report
from dagscale.checking.verdict import Evidence, Fault, Fit, Level, fits, levels, surely_worse, too_sharp
from dagscale.errors import CheckError, DagscaleError, SearchError
from dagscale.inits import INITS, Fill
from dagscale.network import Subject
from dagscale.planning.make import plan as make_plan
from dagscale.planning.plans import Plan
from dagscale.training.batches import Data, Inputs, check_finite, checked
from dagscale.training.engine import OPTIMIZERS, Loss

ADAPTIVE_LR = 2.0**-9
"""Base rate where none is given and curvature does not tell one."""

SHARP = 2
"""Seeds of each member whose curvature is measured; it varies little between seeds."""

CONFIRMED = 4
"""Seeds at most that are trained at the rate and at a lower one."""

Plans = Sequence[Plan] | Callable[[nn.Module, Any], Plan]


def check(
    family: Family,
    *,
    data: Data | None = None,
    loss: Loss = cross_entropy,
    plans: Plans | None = None,
    init: str | None = None,
    law: str | None = None,
    optimizer: str = "sgd",
    base_lr: float | None = None,
    width: str | None = None,
    sizes: Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
    steps: int = 4,
    seeds: int = 8,
    seed: int = 0,
    batch_size: int = 64,
    centred: bool = True,
) -> Report:
    """Measure signals and updates over a family of models, and judge whether they stay as the family grows.

    Every member is initialised and trained for a few steps as its plan says, on a copy. At the output ``z`` of every
    weight layer two things are measured: the second moment at initialisation, against what is wanted there, and
    the rms change ``Δz`` over the steps. Both are to be flat in the size. A verdict is a fault only where a
    whole confidence interval lies outside its tolerance; ``docs/check.md`` gives both.

    Args:
        family: two or more (model, inputs), smallest first; or a function of the size that makes them.
        data: examples to train on, a `dagscale.bench.data.Dataset` or ``(x, y)``.
        loss: ``loss(output, y)``, a scalar that is a mean over the batch.
        plans: one for each member, or a function (model, inputs) → plan. By default they are made with ``init``,
            ``law``, ``optimizer``, ``base_lr`` and ``width``, the first member being the base.
            ``init="keep", law="none"`` checks the models as they are.
        init, law, width: as for `dagscale.plan`, and with its defaults.
        base_lr: the rate of the first member. By default half of what curvature calls stable, or 2⁻⁹ for Adam.
        sizes: arguments of ``family`` if it is a function; or each member's size, a number, in place of what is
            found by itself: width, mean depth of the paths, number of layers or of parameters.
        labels: names of the members.
        steps: optimiser steps.
        seeds: runs of each member, with their own weights and batches.
        batch_size: examples in a step.
        centred: measure updates on ``f(x) - f_0(x)``, ``f_0`` the network at initialisation; set it to False for a
            loss that takes no output around 0.

    Raises:
        CheckError: if the request cannot be served.
        DagscaleError: as tracing and planning raise.
    """
    task, examples = _task(data, loss, optimizer, steps, batch_size, seeds, centred)
    family_, notes = members(family, sizes, labels, seed)
    numbers = sizes if sizes is not None and all(isinstance(s, (int, float)) for s in sizes) else None
    axis, found_sizes = growth(family_, numbers)
    for member in family_:
        attempt(member.make(seed), task)
    given = {"optimizer": optimizer, "init": init, "law": law, "width": width}
    planner = _Planner(family_, plans, {k: v for k, v in given.items() if v is not None}, examples, task, base_lr, seed)
    notes += planner.notes
    seen = [
        [
            observe(m.make(seed + k), m.graph, planner.plan(i, k), task, seed + k, sharpness=k < SHARP)
            for k in range(seeds)
        ]
        for i, m in enumerate(family_)
    ]
    first = planner.plans[0]
    evidence = Evidence(
        family_, axis, found_sizes, seen, [wanted(m, p.init) for m, p in zip(family_, planner.plans, strict=True)],
        [_set_by(m, p) for m, p in zip(family_, planner.plans, strict=True)],
        redrawn=callable(family) or first.init != "keep", open_level=first.init != "moments", optimizer=first.optimizer,
    )  # fmt: skip
    hot = {}
    for i, m in enumerate(family_):
        ratio = too_sharp(evidence, i)
        if ratio is not None and all(o.finite for o in seen[i]):
            ratios = [
                too_high(m.make(seed + k), planner.plan(i, k), task, seed + k, lower_share(ratio))
                for k in range(min(seeds, CONFIRMED))
            ]
            if surely_worse(ratios, len(family_)):
                hot[i] = ratio
    judged, slopes = levels(evidence), fits(evidence)
    faults = find_faults(evidence, judged, slopes, hot, planner.plans)
    return Report(
        axis, tuple(m.label for m in family_), found_sizes, tuple(p.lr for p in planner.plans), tuple(judged),
        tuple(slopes), tuple(faults), tuple(_sharp(s) for s in seen), first.optimizer, first.init, first.law,
        steps, seeds, tuple(dict.fromkeys(notes)),
    )  # fmt: skip


class _Planner:
    """The plan of each member; for a made one, with an init that is worked out anew under every seed."""

    def __init__(
        self,
        family: Sequence[Member],
        plans: Plans | None,
        options: dict[str, Any],
        examples: tuple[Inputs, Tensor],
        task: Task,
        base_lr: float | None,
        seed: int,
    ) -> None:
        self.family, self.seed, self.notes = family, seed, list[str]()
        self.made = plans is None
        self.known: dict[tuple[int, int], dict[str, Fill]] = {}
        self.fixed: dict[str, Any] = {"data": examples, "loss": task.loss, "batch_size": task.batch_size}
        self.options = options
        self.base = (family[0].make(seed), family[0].inputs)
        if plans is not None:
            listed = [plans(m.make(seed), m.inputs) for m in family] if callable(plans) else list(plans)
            if len(listed) != len(family):
                raise CheckError(f"{len(listed)} plans for {len(family)} members: give one each")
            self.plans = listed
            return
        self.lr = self._base_lr(task) if base_lr is None else base_lr
        self.plans = [self._make(m, options.get("law"), seed) for m in family]

    def plan(self, member: int, k: int) -> Plan:
        """For the k-th seed."""
        main = self.plans[member]
        if not self.made or k == 0 or main.init != "moments":
            return main
        first, now = self._fills(member, 0), self._fills(member, k)
        parameters = dict(main.parameters)
        for name, own in main.parameters.items():
            if own.init_std and name in now and first[name].std:
                parameters[name] = replace(own, init_std=own.init_std * now[name].std / first[name].std)
        return replace(main, parameters=parameters, seed=self.seed + k)

    def _fills(self, member: int, k: int) -> dict[str, Fill]:
        """What the init alone says under the k-th seed, worked out once."""
        if (member, k) not in self.known:
            m = self.family[member]
            subject = Subject(
                m.graph, m.make(self.seed + k), m.inputs, data=self.fixed["data"], loss=self.fixed["loss"],
                seed=self.seed + k,
            )  # fmt: skip
            self.known[member, k] = INITS[self.plans[member].init](subject)
        return self.known[member, k]

    def _make(self, member: Member, law: str | None, seed: int) -> Plan:
        chosen = self.options | ({} if law is None else {"law": law})
        try:
            return make_plan(
                member.make(seed), member.inputs, base=self.base, base_lr=self.lr, seed=seed, **chosen, **self.fixed
            )
        except DagscaleError as error:
            error.args = (f"{member.label}: {error}",)
            raise

    def _base_lr(self, task: Task) -> float:
        """Half of the largest stable rate of the first member."""
        self.lr = 1.0
        first = self.family[0]
        optimizer = self.options["optimizer"]
        if optimizer not in STABLE:
            self.notes.append(f"no base_lr given: 2⁻⁹ = {ADAPTIVE_LR:.3g}")
            return ADAPTIVE_LR
        unit = self._make(first, "none", self.seed)
        value = steepness(started(first.make(self.seed), unit, self.seed), first.graph, unit, task, self.seed)
        if not (math.isfinite(value) and value > 0):
            raise CheckError(f"the first member's curvature is {value}: give base_lr")
        lr = STABLE[optimizer] / 2 / value
        self.notes.append(f"no base_lr given: {lr:.3g}, half of what the first member's curvature calls stable")
        return lr


def _task(
    data: Data | None,
    loss: Loss,
    optimizer: str,
    steps: int,
    batch_size: int,
    seeds: int,
    centred: bool,
) -> tuple[Task, tuple[Inputs, Tensor]]:
    if data is None:
        raise CheckError("a check trains for a few steps and needs data=(x, y), or --data: 'digits' is built in")
    try:
        x, y = checked(data)
        check_finite(x, y)
    except SearchError as error:
        raise CheckError(str(error)) from None
    for name, value in (("steps", steps), ("seeds", seeds), ("batch_size", batch_size)):
        if value < 1:
            raise CheckError(f"{name} must be at least 1, got {value}")
    OPTIMIZERS[optimizer]
    return Task(x, y, loss, optimizer, steps, batch_size, centred), (x, y)


def _set_by(member: Member, plan: Plan) -> frozenset[str]:
    """Layers whose second moment the init answers for; all trainable ones of a model that is taken as it is."""
    found = set()
    for layer in member.layers:
        own = plan.parameters.get(layer.weight)
        if layer.trainable and own is not None and (plan.init == "keep" or own.init_std is not None):
            found.add(layer.name)
    return frozenset(found)


def _sharp(seen: Sequence[Observation]) -> float | None:
    values = [o.sharpness for o in seen if o.sharpness is not None]
    return fmean(values) if values else None


__all__ = ["CheckError", "Evidence", "Fault", "Fit", "Level", "Report", "check"]
