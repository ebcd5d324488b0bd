"""Does a plan hold what it promises as the model grows? Measured over a family of models, with a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from dagscale.arguments import checked, whole_number
from dagscale.checking.causes import find_faults
from dagscale.checking.family import Family, Member, growth, members, wanted
from dagscale.checking.measure import Observation, Task, attempt, lower_share, observe, started, steepness, too_high
from dagscale.checking.report import Report
from dagscale.checking.verdict import Evidence, fits, levels, surely_worse, too_sharp
from dagscale.errors import CheckError, DagscaleError, PlanError
from dagscale.inits import INITS, Fill
from dagscale.planning.base import Base
from dagscale.planning.defaults import init_for
from dagscale.planning.make import plan as make_plan
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import initialised, traced
from dagscale.progress import Progress, shown
from dagscale.tracing.make import listed
from dagscale.training.copies import all_put_back
from dagscale.training.recipe import Loss, Recipe
from dagscale.typed import PLAN, must_be

ADAPTIVE_LR = 2.0**-9
"""Base rate where none is given and curvature does not tell one."""

SHARP = 2
"""Seeds of each member whose curvature is measured; it varies little between seeds."""

CONFIRMED = 4
"""Seeds at most that are trained at the rate and at a lower one."""

Plans = Sequence[Plan] | Callable[[nn.Module, Any], Plan]


@checked(CheckError)
def check(
    family: Family,
    plan: Plan | None = None,
    *,
    recipe: Recipe | None = None,
    data: Any = None,
    loss: Loss | None = None,
    plans: Plans | None = None,
    init: str | None = None,
    law: str | None = None,
    optimizer: Any = None,
    base_lr: float | None = None,
    width: str | None = None,
    sizes: Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
    steps: int = 4,
    seeds: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
    centred: bool = True,
    progress: bool | None = None,
) -> Report:
    """Measure signals and updates over a family of models, and judge whether they stay as the family grows.

    Every member is initialised and trained for a few steps as its plan says, on a copy. At the output ``z`` of every
    weight layer two things are measured: the second moment at initialisation, against what is wanted there, and
    the rms change ``Δz`` over the steps. Both are to be flat in the size. A verdict is a fault only where a
    whole confidence interval lies outside its tolerance; ``docs/guide/check.md`` gives both.

    Args:
        family: two or more models, smallest first, or (model, inputs) pairs; or a function of the size that makes them.
        plan: what `dagscale.plan` gave for the last member from the first one: its recipe, law, init and base's rate
            are those of the check.
        recipe: how all members are trained; or in a few words ``data``, ``loss`` (cross-entropy), ``optimizer``
            (``sgd``) and ``batch_size`` (64).
        plans: one for each member, or a function (model, inputs) → plan. By default they are made with ``init``,
            ``law``, the recipe, ``base_lr`` and ``width``, the first member being the base.
            ``init="keep", law="none"`` checks the models as they are.
        init, law, width: as for `dagscale.plan`, and with its defaults.
        base_lr: the rate of the first member. By default half of what curvature calls stable, or 2⁻⁹ where nobody knows
            what is.
        sizes: arguments of ``family`` if it is a function; or each member's size, a number, in place of what is
            found by itself: width, mean depth of the paths, number of layers or of parameters.
        labels: names of the members.
        steps: optimiser steps.
        seeds: runs of each member, with their own weights and batches.
        centred: measure updates on ``f(x) - f_0(x)``, ``f_0`` the network at initialisation; set it to False for a
            loss that takes no output around 0.
        progress: show progress on stderr; by default where stderr is a terminal.

    Raises:
        CheckError: if the request cannot be served.
        DagscaleError: as tracing and planning raise.
    """
    if plan is not None:
        must_be(plan, Plan, PLAN, CheckError)
    steps, seeds = whole_number("steps", steps, CheckError), whole_number("seeds", seeds, CheckError)
    seed = whole_number("seed", seed, CheckError, 0)
    recipe, given = _said(plan, recipe, data, loss, optimizer, batch_size, init, law, width)
    base_lr = plan.base_lr if plan is not None and base_lr is None else base_lr
    task = Task(recipe, steps, centred)
    with all_put_back(), shown("checking", progress) as bar:
        family_, notes = members(family, sizes, labels, seed, recipe)
        numbers = sizes if sizes is not None and all(isinstance(s, (int, float)) for s in sizes) else None
        axis, found_sizes = growth(family_, numbers)
        for member in family_:
            notes += attempt(member.network(recipe, seed))
        bar.say("planning")
        planner = _Planner(family_, plans, given, task, base_lr, seed)
        notes += planner.notes
        bar.say("training")
        bar.expect(len(family_) * seeds)
        seen = [[_observed(m, planner, i, k, task, seed, bar) for k in range(seeds)] for i, m in enumerate(family_)]
        family_ = [_always_run(m, observations, notes) for m, observations in zip(family_, seen, strict=True)]
        last, rule = planner.plans[-1], INITS.get(planner.plans[0].init)
        evidence = Evidence(
            family_, axis, found_sizes, seen,
            [wanted(m, p.init) for m, p in zip(family_, planner.plans, strict=True)],
            [_set_by(m, p) for m, p in zip(family_, planner.plans, strict=True)],
            redrawn=callable(family) or rule is None or rule.draws,
            open_level=rule is None or not rule.draws or rule.moments is None, stable=recipe.optimizer.stable,
        )  # fmt: skip
        hot = {}
        for i, m in enumerate(family_):
            ratio = too_sharp(evidence, i)
            if ratio is not None and all(o.finite for o in seen[i]):
                ratios = [
                    too_high(m.network(recipe, seed + k), planner.plan(i, k), seed + k, lower_share(ratio))
                    for k in range(min(seeds, CONFIRMED))
                ]
                if surely_worse(ratios, len(family_)):
                    hot[i] = ratio
    judged, slopes = levels(evidence), fits(evidence)
    faults = find_faults(evidence, judged, slopes, hot, planner.plans)
    return Report(
        axis, tuple(m.label for m in family_), found_sizes, tuple(p.lr for p in planner.plans), tuple(judged),
        tuple(slopes), tuple(faults), tuple(_sharp(s) for s in seen), recipe.optimizer.name, last.init, last.law,
        steps, seeds, tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _observed(member: Member, planner: _Planner, i: int, k: int, task: Task, seed: int, bar: Progress) -> Observation:
    network = member.network(task.recipe, seed + k)
    seen = observe(network, planner.plan(i, k), task, seed + k, sharpness=k < SHARP)
    bar.advance()
    return seen


def _always_run(member: Member, seen: Sequence[Observation], notes: list[str]) -> Member:
    """The member with those layers that ran in each of its runs: of one that is dropped at random, or chosen by values,
    there is not always something to see.

    Raises:
        CheckError: if no layer did.
    """
    layers = tuple(layer for layer in member.layers if all(layer.name in one.signals for one in seen))
    if not layers:
        raise CheckError(f"{member.label}: no layer runs in every forward, so that there is nothing to compare")
    if left := [layer.name for layer in member.layers if layer not in layers]:
        notes.append(f"{member.label}: not judged, since not every forward runs it: {listed(left)}")
    return replace(member, layers=layers)


def _said(
    plan: Plan | None,
    recipe: Recipe | None,
    data: Any,
    loss: Loss | None,
    optimizer: Any,
    batch_size: int | None,
    init: str | None,
    law: str | None,
    width: str | None,
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe, and what plans are made with."""
    words = {"data": data, "loss": loss, "optimizer": optimizer, "batch_size": batch_size}
    words = {name: value for name, value in words.items() if value is not None}
    if plan is not None and recipe is None and not words:
        recipe = plan.live
    if recipe is not None and words:
        raise CheckError(f"{', '.join(words)}: say it in the recipe, as one is given")
    if recipe is None:
        recipe = Recipe(**{"loss": cross_entropy, **words}) if data is not None else Recipe()
        recipe = recipe if batch_size is not None else recipe.sized(64)
    if recipe.data is None:
        raise CheckError("a check trains for a few steps and needs data=(x, y), or --data: 'digits' is built in")
    of_plan = {} if plan is None else {"init": plan.init, "law": plan.law, "width": plan.width}
    given = {"init": init, "law": law, "width": width}
    return recipe, {**of_plan, **{name: value for name, value in given.items() if value is not None}}


class _Planner:
    """The plan of each member; for a made one, with an init that is worked out anew under every seed."""

    def __init__(
        self,
        family: Sequence[Member],
        plans: Plans | None,
        options: dict[str, Any],
        task: Task,
        base_lr: float | None,
        seed: int,
    ) -> None:
        self.family, self.seed, self.notes = family, seed, list[str]()
        self.recipe, self.options = task.recipe, options
        self.made = plans is None
        self.known: dict[tuple[int, int], Mapping[str, Fill]] = {}
        if plans is not None:
            listed = [plans(m.make(seed), m.inputs) for m in family] if callable(plans) else list(plans)
            if len(listed) != len(family):
                raise CheckError(f"{len(listed)} plans for {len(family)} members: give one each")
            self.plans = listed
            return
        network = traced(family[0].make(seed), family[0].inputs, task.recipe, seed, role="base")
        if options.get("init") is None:  # one for all members
            options = self.options = {**options, "init": init_for(network)}
        self.base = Base.given(network, 1.0)
        if base_lr is None:
            base_lr = self._base_lr(task)
        self.base = Base.given(network, base_lr)
        self.plans = [self._make(m, options) for m in family]

    def plan(self, member: int, k: int) -> Plan:
        """The member's plan for the k-th seed."""
        main = self.plans[member]
        if not self.made or k == 0 or not INITS[main.init].measured:
            return main
        first, now = self._fills(member, 0), self._fills(member, k)
        parameters = dict(main.parameters)
        for name, own in main.parameters.items():
            if own.init_std and name in now and first[name].std:
                parameters[name] = replace(own, init_std=own.init_std * now[name].std / first[name].std)
        return replace(main, parameters=parameters, seed=self.seed + k)

    def _fills(self, member: int, k: int) -> Mapping[str, Fill]:
        """What the init alone says under the k-th seed, worked out once."""
        if (member, k) not in self.known:
            m = self.family[member]
            network = replace(m.network(self.recipe, self.seed + k), seed=self.seed + k)
            self.known[member, k] = initialised(network, self.plans[member].init).fills
        return self.known[member, k]

    def _make(self, member: Member, options: dict[str, Any]) -> Plan:
        try:
            return make_plan(
                member.make(self.seed), member.inputs, base=self.base, recipe=self.recipe, seed=self.seed, **options
            )
        except DagscaleError as error:
            error.args = (f"{member.label}: {error}",)
            raise

    def _base_lr(self, task: Task) -> float:
        """Half of the largest stable rate of the first member."""
        first, stable = self.family[0], task.recipe.optimizer.stable
        if stable is None:
            self.notes.append(f"no base_lr given: 2⁻⁹ = {ADAPTIVE_LR:.3g}")
            return ADAPTIVE_LR
        unit = self._make(first, {**self.options, "law": "none"})
        try:
            with started(first.network(self.recipe, self.seed), unit, self.seed) as model:
                value = steepness(model, first.graph, unit, task, self.seed)
        except PlanError as error:
            raise CheckError(
                f"no base_lr is given, and the first member's curvature is not to be had: {error}"
            ) from error
        if not (math.isfinite(value) and value > 0):
            raise CheckError(f"the first member's curvature is {value}: give base_lr")
        lr = stable / 2 / value
        self.notes.append(f"no base_lr given: {lr:.3g}, half of what the first member's curvature calls stable")
        return lr


def _set_by(member: Member, plan: Plan) -> frozenset[str]:
    """Layers whose second moment the init answers for; all trainable ones of a model that is taken as it is."""
    found = set()
    for layer in member.layers:
        own = plan.parameters.get(layer.weight)
        if layer.trainable and own is not None and (own.init_std is not None or not INITS[plan.init].draws):
            found.add(layer.name)
    return frozenset(found)


def _sharp(seen: Sequence[Observation]) -> float | None:
    values = [o.sharpness for o in seen if o.sharpness is not None]
    return fmean(values) if values else None
