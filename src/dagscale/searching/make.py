"""The maximal learning rate of a model on its data, by training copies of it at several rates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

from torch import nn
from torch.nn.functional import cross_entropy

from dagscale.arguments import checked, positive_number, whole_number
from dagscale.errors import DagscaleError, PlanError, RecipeError, SearchError
from dagscale.inits import DEFAULT, INITS
from dagscale.network import Network
from dagscale.planning.base import Base, Pair, Point
from dagscale.planning.defaults import init_for, why_init
from dagscale.planning.examples import Examples
from dagscale.planning.make import starting_plan, trained_alike
from dagscale.planning.naming import Patterns
from dagscale.planning.plans import Plan
from dagscale.planning.prepare import about, initialised, keeping, traced
from dagscale.planning.validate import check_gradient, spoilt, unscaled
from dagscale.progress import Progress, shown
from dagscale.rates import check_grid, default_grid
from dagscale.searching import exhaustive, fast  # noqa: F401  (they register themselves)
from dagscale.searching.decay import check_decay, walk
from dagscale.searching.methods import METHODS, Trials
from dagscale.training.copies import all_put_back
from dagscale.training.engine import EVALUATE, final_loss, train
from dagscale.training.optimizers import Groups
from dagscale.training.recipe import Loss, MakeSchedule, Recipe, TrainStep
from dagscale.training.seeds import seeded

GLANCE = 0.2
"""Share of a run's steps after which the fast method looks along the grid for where to begin."""


SAME = 1e-6
"""Losses that differ by less than this part of them at all rates are one loss: rounding makes such differences."""

EVEN = 0.005
"""Inits whose lowest losses differ by less than this part of them are even: seeds differ by as much."""

BOTTOMLESS = 1000.0
"""A loss that falls by so many times its first value, or 1, below 0 is not one to train with."""


class Starter(Protocol):
    """The two methods of a plan that a search uses; `dagscale.Plan` has both."""

    def init_(self, model: nn.Module, *, seed: int) -> object:
        """Initialise in place."""

    def param_groups(self, model: nn.Module, *, lr: float) -> Groups:
        """Parameter groups at this overall rate."""


@checked(SearchError)
def search(
    model: nn.Module,
    data: Any,
    *,
    inputs: Any = None,
    plan: Starter | None = None,
    init: str | Sequence[str] | None = None,
    loss: Loss | None = None,
    optimizer: Any = None,
    grid: Iterable[float] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seeds: int = 3,
    seed: int = 0,
    tolerance: float = 0.05,
    widen: int = 4,
    decay: bool = False,
    validation: Any = None,
    method: str = "fast",
    train_step: TrainStep | None = None,
    schedule: MakeSchedule | None = None,
    only: Patterns = None,
    keep: Patterns = None,
    reset: Patterns = None,
    lr_scale: Mapping[str, float] | None = None,
    progress: bool | None = None,
    **training: Any,
) -> Base:
    """Find the good learning rates of ``model`` by training copies of it, and the one to recommend. ::

        found = dagscale.search(small, recipe)

    The answer is a band: all neighbouring rates whose final training loss is within ``tolerance`` of the best, and at
    least half as far below the loss before training (a model that is fine-tuned may begin within the tolerance). Where
    that is more than four octaves, the loss hardly depends on the rate: the tolerance is narrowed until they are four,
    and a note says so. The band's upper end is the maximal learning rate, and its geometric middle the rate to
    recommend.

    A copy of the model is initialised and trained for every rate and seed that is tried; ``model`` itself never
    changes. Where parameters have rates of their own, one overall rate is searched and the ratios stay. The grid is
    widened on a side where the band reaches its first or last rate, or where all rates diverge.

    ``method="grid"`` runs every rate of the grid with every seed. ``method="fast"`` runs only those that the answer
    depends on, about a quarter of the steps (docs/guide/search.md).

    Args:
        model: on any device.
        data: a `dagscale.Recipe`, which says all of the training; or data as a recipe takes them, and the rest of it
            as further arguments: ``loss`` (cross-entropy by default), ``optimizer`` (``sgd``), ``epochs`` (1),
            ``steps``, ``batch_size``, ``schedule``, ``train_step`` (the recipe's ``step``), ``clip``, ``select``, ….
        inputs: example inputs; by default those of the first batch.
        plan: says how the copies are initialised and how the parameters' rates relate; by default ``init`` and one rate
            for all parameters.
        init: name of the init where no plan is given, by default ``moments``, under a squared error ``small-readout``
            (:func:`dagscale.planning.defaults.init_for`); ``keep`` for the model's own weights. Of several, the search
            is made under each, and the base has the one whose lowest loss is the lowest; of those within half a percent
            of it, which is as much as seeds differ by, the first.
        grid: rates to try, per optimiser step; by default half an octave apart, by optimiser.
        seeds: training runs at each rate; with method ``fast``, at the rates that decide. Run ``k`` is initialised, and
            its batches are drawn, with the seed ``seed + k``, the same at every rate.
        seed: the seed of the first run.
        tolerance: relative width of the band in the loss, at most.
        widen: how often the grid may be widened; each time, four rates are added on each side that needs them.
        decay: look for the weight decay too, from the recipe's own on: what is carried over then is the pair
            (:mod:`dagscale.searching.decay`), and the base's recipe has the decay that was found.
        validation: data, as a recipe takes them, whose loss in evaluation mode runs are judged by, in place of the
            training loss. Needed with ``decay`` where a run passes over its data more than once.
        method: ``fast`` or ``grid``, see above.
        only, keep, reset, lr_scale: as for :func:`dagscale.plan`, for the default plan: fine-tuning is a search with
            ``init="keep"``, or ``reset="head"`` where the head is new.
        progress: show progress on stderr; by default where stderr is a terminal.

    Returns:
        The base: its band of good rates, the curve, the recipe, and the network that it is for.

    Raises:
        SearchError: if an argument or the data cannot be used, every run diverged, or the losses cannot be right.
        DagscaleError: as planning raises.
    """
    said = {
        "loss": loss, "optimizer": optimizer, "epochs": epochs, "steps": steps, "batch_size": batch_size,
        "schedule": schedule, "step": train_step, **training,
    }  # fmt: skip
    said = {name: value for name, value in said.items() if value is not None}
    if isinstance(data, Recipe) and said:
        raise SearchError(f"{', '.join(said)}: say it in the recipe, as one is given")
    recipe = data if isinstance(data, Recipe) else Recipe(data, **{"loss": cross_entropy, **said})
    if recipe.data is None:
        raise SearchError("a search trains, and needs data: give search(model, (x, y)), or a recipe with data")
    if recipe.steps is None and recipe.epochs is None:
        recipe = recipe.changed(epochs=1)
    rates = check_grid(default_grid(recipe.optimizer) if grid is None else grid)
    seeds, widen = whole_number("seeds", seeds, SearchError), whole_number("widen", widen, SearchError, 0)
    seed = whole_number("seed", seed, SearchError, 0)
    tolerance = positive_number("tolerance", tolerance, SearchError, zero=True)
    more = {"init": init, "only": only, "keep": keep, "reset": reset, "lr_scale": lr_scale}
    if plan is not None and (extra := [name for name, value in more.items() if value is not None]):
        raise SearchError(f"plan= brings its own init and rates: leave {', '.join(extra)} out")
    follow = METHODS[method]
    own_decay = check_decay(recipe, validation is not None) if decay else None
    held = None
    if validation is not None:
        with about("validation data"):
            held = Recipe(validation, recipe.loss, autocast=recipe.autocast, select=recipe.select, unpack=recipe.unpack)
            held = held.sized(recipe.batch_size or 64)
            held.example  # noqa: B018  (none is told of before anything is trained)
    names = [] if init is None else [init] if isinstance(init, str) else list(dict.fromkeys(init))
    if init is not None and not names:
        raise SearchError("init is an empty list: name at least one")
    for name in names:
        INITS[name]  # an unknown one is refused before anything is trained

    def under(network: Network, starter: Starter, name: str | None, bar: Progress) -> Base:
        """What is found under one init."""
        beside = check_gradient(network)
        runs = _Runs(network, starter, bar, held)
        bar.say(f"training, init {name}" if len(names) > 1 else "training")
        trials = Trials(runs.run, runs.glance, bar.expect, seeds, tolerance, lambda: runs.start)
        pairs: list[Pair] = []
        try:
            curve, widened = follow(trials, rates, widen)
            if own_decay is not None and any(math.isfinite(point.loss) for point in curve):
                bar.say("training under other decays")
                best = min(curve, key=lambda point: point.loss)
                pairs = walk(runs.under, own_decay, best.lr, best.losses[0])
                chosen = min(pairs, key=lambda pair: pair.loss)
                if chosen.weight_decay != own_decay:
                    runs.decay = chosen.weight_decay
                    curve, widened = follow(trials, [chosen.lr * 2 ** (k / 2) for k in range(-2, 3)], widen)
                    network = replace(network, recipe=recipe.changed(weight_decay=chosen.weight_decay))
            before = runs.start
        finally:
            network.give_back()
        _believable(curve, before, runs.raised, network)
        notes = (*getattr(starter, "notes", ()), *beside)
        if held is not None:
            notes = (*notes, "losses are those of the validation data")
        if min(point.loss for point in curve) == 0:
            notes = (*notes, ZERO)
        return Base.found(
            network, name, curve, tolerance, start=before, widened=widened, steps=runs.steps, seeds=seeds, notes=notes,
            method=method, pairs=pairs, data=Examples.of(recipe, network.graph),
        )  # fmt: skip

    with all_put_back(), shown("searching", progress) as bar:
        bar.say("tracing")
        network = traced(model, inputs, recipe, seed, role="base")
        if plan is not None:
            return under(*_start(network, plan), bar)
        why: tuple[str, ...] = ()
        if init is None:
            names = [init_for(keeping(network, DEFAULT, only, keep, reset)[0])]
            why = why_init(names[0])
        found: list[Base] = []
        refused: dict[str, DagscaleError] = {}
        for name in names:
            bar.say(f"init {name}")
            try:
                own, meant = keeping(network, name, only, keep, reset)
                own = initialised(own, name)
                starter = starting_plan(own, name, lr_scale=lr_scale, meant=meant)
                found.append(under(trained_alike(own, lr_scale), starter, name, bar))
            except (PlanError, RecipeError, SearchError) as error:
                refused[name] = error
    if not found:
        raise next(iter(refused.values()))
    one = _lowest(found, refused) if len(names) > 1 else found[0]
    return replace(one, notes=(*why, *one.notes))


ZERO = (
    "the lowest loss is exactly 0, with which no other can be compared: the band holds the rates that reach it; give "
    "the recipe fewer steps or more data, or a loss that does not end at 0, as that of one adversary of two does"
)


def _lowest(found: Sequence[Base], refused: Mapping[str, DagscaleError]) -> Base:
    """The base under the init that trains best, with the steps of all that train and a note on the others. Of those
    that are even, it is the first."""
    losses = [math.inf if base.loss is None else base.loss for base in found]
    even = min(losses) + EVEN * abs(min(losses))
    best = next(base for base, loss in zip(found, losses, strict=True) if loss <= even)
    others = [f"{base.loss:.4g} under {base.init}" for base in found if base is not best]
    others += [f"none under {name} ({error})" for name, error in refused.items()]
    note = f"init {best.init}: its lowest loss is {best.loss:.4g}; {', '.join(others)}"
    return replace(best, steps=sum(base.steps for base in found), notes=(note, *best.notes))


def _believable(curve: Sequence[Point], before: float, raised: str, network: Network) -> None:
    """Refuse a curve that cannot be right.

    Args:
        before: the loss before training.
        raised: what a run has raised, if one did.
        network: what was trained.

    Raises:
        SearchError: if every run diverged, the rate makes no difference, or no rate trains.
    """
    finite = [loss for point in curve for loss in point.losses[:1] if math.isfinite(loss)]
    if not finite:
        rates = f"every rate from {curve[0].lr:.3g} to {curve[-1].lr:.3g}"
        if bad := spoilt(network.recipe):
            raise SearchError(f"{rates} diverged: {bad}")
        if not math.isfinite(before):
            raise SearchError(f"{rates} diverged: the loss is not finite before any step, mend model, init or loss")
        lower = f"{unscaled(network.recipe)}try a grid of lower rates (grid=, --grid)"
        if raised:
            raise SearchError(
                f"{rates} ended in an error, {raised}: mend that, or if high rates bring it about, {lower}"
            )
        raise SearchError(
            f"{rates} diverged: {lower}, and see that the model's output at initialisation is finite and the weight "
            "decay not too large"
        )
    if len(finite) > 2 and max(finite) - min(finite) <= SAME * max(map(abs, finite)):
        raise SearchError(
            f"the loss is {finite[0]:.4g} at every rate from {curve[0].lr:.3g} to {curve[-1].lr:.3g}, so no rate "
            "reaches the training: a schedule or a training step sets its own (scale the rates of the groups "
            "instead), or the loss does not depend on the model"
        )
    lowest = min(curve, key=lambda point: point.loss)
    if lowest.losses[0] < -BOTTOMLESS * max(abs(before), 1.0):
        raise SearchError(
            f"the loss falls from {before:.4g} to {lowest.losses[0]:.4g}, at learning rate {lowest.lr:.3g}: it has "
            "no lower bound, as cross-entropy has none with targets that are no probabilities; check loss and targets"
        )
    if lowest.losses[0] >= before:
        raise SearchError(
            f"no rate trains: the loss is {before:.4g} before training, and {lowest.losses[0]:.4g} at the best "
            f"rate, {lowest.lr:.3g}: {unscaled(network.recipe)}give the recipe more steps or data, or a model that has "
            "something to learn"
        )


def _start(network: Network, plan: Starter) -> tuple[Network, Starter, str | None]:
    """The network as a given plan starts it, that plan, and the name of its init."""
    if isinstance(plan, Plan):
        fills = {name: fill for name, own in plan.parameters.items() if (fill := own.fill) is not None}
        return replace(network, fills=fills), plan, plan.init
    return network, plan, None


def _redecayed(groups: Groups, factor: float) -> None:
    """Weight decays times a factor, in place."""
    decayed = [group for group in groups if group.get("weight_decay")]
    if not decayed:
        raise SearchError("decay=True: no parameter group of the plan has a weight decay, so there is none to look for")
    for group in decayed:
        group["weight_decay"] *= factor


class _Runs:
    """Training runs of one working copy at any rate, each done once, and how many steps they took."""

    def __init__(self, network: Network, starter: Starter, bar: Progress, held: Recipe | None) -> None:
        self.network, self.starter, self.bar, self.held = network, starter, bar, held
        self.steps = 0
        self.raised = ""
        self.decay = network.recipe.weight_decay
        self.done: dict[tuple[float | None, float, int], float] = {}

    def run(self, rate: float, k: int) -> float:
        """The final loss at a rate, of the seed number ``k``."""
        key = (self.decay, round(math.log2(rate), 6), k)
        if key not in self.done:
            self.done[key] = self._run(rate, k, self.network.recipe.total_steps, EVALUATE)
        return self.done[key]

    def under(self, decay: float, rate: float) -> float:
        """The final loss of the first seed under a weight decay."""
        own, self.decay = self.decay, decay
        self.bar.expect(1)
        try:
            return self.run(rate, 0)
        finally:
            self.decay = own

    @cached_property
    def start(self) -> float:
        """The loss of the first seed before training; ``inf`` where it is the training step's own."""
        network, recipe = self.network, self.held or self.network.recipe
        if recipe.step is not None and recipe.loss is None:
            return math.inf
        trial = network.copy.reset()
        self.starter.init_(trial, seed=network.seed)
        if self.held is not None:
            trial.eval()
        with seeded(network.seed):
            loss = final_loss(trial, recipe, EVALUATE)
        return loss if math.isfinite(loss) else math.inf

    def glance(self, rate: float) -> float:
        """The loss after the first part of a run, under a schedule as short as that."""
        return self._run(rate, 0, math.ceil(GLANCE * self.network.recipe.total_steps), EVALUATE // 8)

    def _run(self, rate: float, k: int, steps: int, evaluate: int) -> float:
        network, seed = self.network, self.network.seed + k
        trial = network.copy.reset()
        self.starter.init_(trial, seed=seed)
        try:
            groups = self.starter.param_groups(trial, lr=rate)
            if self.decay != network.recipe.weight_decay:
                _redecayed(groups, (self.decay or 0.0) / (network.recipe.weight_decay or 1.0))
            done = train(trial, network.recipe, groups, rate, seed=seed, steps=steps, evaluate=evaluate)
            loss = done.loss
            if self.held is not None and math.isfinite(loss):
                trial.eval()
                with about("validation data"):
                    loss = final_loss(trial, self.held, evaluate)
                trial.train()
        except DagscaleError as error:
            error.args = (f"at learning rate {rate:.3g}: {error}",)
            raise
        self.steps += done.steps
        self.raised = done.raised or self.raised
        self.bar.advance()
        return loss if math.isfinite(loss) else math.inf
