"""What a few optimiser steps do at every weight layer of one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dagscale.errors import CheckError, DagscaleError, ForwardError, PlanError, RecipeError
from dagscale.graph import Graph
from dagscale.laws.gauss_newton import leading_eigenpair
from dagscale.network import Network
from dagscale.planning.plans import Plan
from dagscale.planning.validate import check_gradient
from dagscale.shown import one_line
from dagscale.tracing import forward
from dagscale.tracing.calls import LayerCalls, Use
from dagscale.tracing.recorder import tensors_in
from dagscale.tracing.state import State
from dagscale.training import engine
from dagscale.training.batches import Batch, dense, logits, shapes
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe
from dagscale.training.seeds import seeded
from dagscale.training.spreading import unwarned

LOOKED_AT = 256
"""Examples on which signals are compared before and after the steps."""

LOWER = 0.25
"""Of a rate under suspicion: the rate that it is held against, unless that is too high as well."""

CONFIRM = 32
"""Steps of the two runs that confirm a rate to be too high."""


@dataclass(frozen=True)
class Task:
    """What all members of a family are trained on, and how.

    Args:
        centred: train on ``f(x) - f_0(x)``, ``f_0`` the network as it was initialised, so that every member starts
            from the output 0. A finite width starts from a random output that fades as width grows, and its
            gradient with it; that is no matter of the plan [Yang et al. 2022, App. D.2; Chizat et al. 2019]. A
            training step of the user's own computes its loss itself and is taken as it is.
    """

    recipe: Recipe
    steps: int
    centred: bool = True


@dataclass(frozen=True, slots=True)
class Signal:
    """One layer's output ``z``, means over examples, positions, units and uses.

    Args:
        moment: ``E z²`` at initialisation.
        spread: standard error of ``ln E z²`` from the finite number of units, the layer's input given.
        entering: ``E x²`` of what enters the layer.
        own: mean square of ``(W' - W) x``, by the layer's own change alone, after the first step and after the last;
            None where the weight is computed from parameters, so that the layer cannot be run again by itself.
        change: mean square of ``z' - z`` after each step.
        uses: how often the layer was applied.
    """

    moment: float
    spread: float
    entering: float
    own: tuple[float, float] | None
    change: tuple[float, ...]
    uses: int


@dataclass(frozen=True, slots=True)
class Observation:
    """One network under one seed.

    Args:
        signals: layer name → what was seen.
        losses: of the batch, before each step.
        sharpness: learning rate × largest curvature at initialisation; None if it was not measured.
    """

    signals: Mapping[str, Signal]
    losses: tuple[float, ...]
    sharpness: float | None

    @property
    def finite(self) -> bool:
        """Whether all signals and losses stayed finite."""
        seen = [v for s in self.signals.values() for v in (s.moment, *s.change)]
        return all(map(math.isfinite, (*self.losses, *seen)))


def observe(network: Network, plan: Plan, task: Task, seed: int, *, sharpness: bool = True) -> Observation:
    """Initialise the network's working copy, take ``task.steps`` optimiser steps, and look at every layer in between.

    The steps are the recipe's, with its clipping, accumulation and autocast or its own training step; at a constant
    rate, since the first steps of a warm-up move nothing.

    Raises:
        CheckError: if forward or loss fail.
    """
    with started(network, plan, seed) as model:
        return _observed(model, network.graph, plan, task, seed, sharpness)


def _observed(model: nn.Module, graph: Graph, plan: Plan, task: Task, seed: int, sharpness: bool) -> Observation:
    recipe = task.recipe
    size = min(LOOKED_AT, recipe.batch_size or LOOKED_AT)
    looked = next(recipe.source.batches(seed, size))
    wanted = {use.name for use in graph.layers}
    before = _watch(model, looked, seed, wanted)
    curved = sharpness and recipe.optimizer.stable is not None
    try:
        sharp = steepness(model, graph, plan, task, seed) if curved else None
    except PlanError:  # a loss of several heads, or one that cannot be differentiated twice: a check goes on without
        sharp = None
    start = _Start(model) if task.centred and recipe.step is None else None
    loss_on = partial(_loss, start=start)
    optimizer = recipe.optimizer.make(plan.param_groups(model), plan.lr)
    batches = recipe.source.batches(seed)
    losses: list[float] = []
    changes: dict[str, list[float]] = {name: [] for name in before}
    own: dict[str, tuple[float, ...]] = dict.fromkeys(before, ())
    with seeded(seed):
        for _ in range(task.steps):
            loss = engine.step(model, optimizer, recipe, batches, losses[0] if losses else None, loss_on)
            losses.append(math.inf if losses and engine.exploded(loss, losses[0]) else loss)
            if len(losses) in (1, task.steps):
                own = {name: (*own[name], *_by_itself(uses)) for name, uses in before.items()}
            after = _watch(model, looked, seed, wanted, again=False)
            for name, uses in before.items():
                changes[name].append(
                    _mean([_moved(*pair) for pair in zip_longest(uses, after.get(name, ())[: len(uses)])])
                )
    return Observation(
        {name: _signal(uses, own[name], tuple(changes[name])) for name, uses in before.items()}, tuple(losses), sharp
    )


def attempt(network: Network) -> tuple[str, ...]:
    """Run forward and loss once in train mode, so that what cannot be trained on is said at once.

    Returns:
        Notes on the loss, see `dagscale.planning.validate.check_gradient`.

    Raises:
        CheckError: if forward or loss fail, no parameter gets a gradient, or the loss cannot be right.
        CopyError: if the model can be neither copied nor borrowed.
        PlanError: if the model has no values.
    """
    copied = network.copy
    try:
        model = copied.reset()
        if not any(p.requires_grad for p in model.parameters()):
            raise CheckError("no parameter requires a gradient, so nothing trains: thaw some, requires_grad_(True)")
        with forward.unchanged_random_state(), unwarned():
            value = _loss(model, network.recipe, network.recipe.example.to(model))
        if not value.requires_grad:
            raise CheckError(
                "the loss does not depend on any parameter: check that nothing is detached on the way to it"
            )
    finally:
        copied.give_back()
    return check_gradient(network)


@contextmanager
def started(network: Network, plan: Plan, seed: int) -> Iterator[nn.Module]:
    """The network's working copy in train mode, initialised as ``plan`` says; given back on leaving."""
    copied = network.copy
    try:
        model = copied.reset()
        plan.init_(model, seed=seed)
        yield model
    finally:
        copied.give_back()


class _Start:
    """A model as it is now, to be run beside what it becomes: with the values from now, for one forward at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]

    def output(self, recipe: Recipe, batch: Batch) -> Any:
        """What the model made of a batch then. Nothing of this forward stays, and autograd does not see it."""
        state = State(*forward.roots(self.model))
        try:
            self._exchange()
            found = forward.without_record(lambda: logits(engine.batch_output(self.model, recipe, batch)))
            return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, found)
        finally:  # no context manager, whose end an interrupt may put off until the user's model is given back
            self._exchange()
            state.restore()

    def _exchange(self) -> None:
        for tensor, other in self.values:
            now = tensor.detach().clone()
            tensor.data.copy_(other)
            other.copy_(now)


def lower_share(ratio: float) -> float:
    """The share of a suspicious rate that it is compared with: a quarter, or half of the stable rate if that is lower.

    Args:
        ratio: the suspicious rate over the largest rate that the curvature calls stable.
    """
    return min(LOWER, 0.5 / ratio)


def too_high(network: Network, plan: Plan, seed: int, lower: float = LOWER) -> float:
    """``ln`` of a short run's final loss at the plan's rate over that at a ``lower`` share; ``inf`` if it diverged."""
    final = []
    for share in (1.0, lower):
        with started(network, plan, seed) as model:
            rate = share * plan.lr
            groups = plan.param_groups(model, lr=rate)
            run = train(model, network.recipe, groups, rate, seed=seed, steps=CONFIRM, evaluate=512)
        final.append(run.loss)
    if not math.isfinite(final[0]):
        return math.inf
    return math.log(final[0] / final[1]) if 0 < final[1] < math.inf and final[0] > 0 else final[0] - final[1]


@dataclass(slots=True)
class _Use:
    """One application of a layer: its output, its input's second moment, and how to run it again."""

    z: Tensor
    entering: float
    units: int
    again: Callable[[], Tensor] | None


def _watch(network: nn.Module, batch: Batch, seed: int, wanted: set[str], again: bool = True) -> dict[str, list[_Use]]:
    """One forward without gradients under fixed randomness: layer name → its uses."""
    found: dict[str, list[_Use]] = {}

    def keep(use: Use, out: Any) -> None:
        layers = {name.removesuffix(".weight") for name in use.names} & wanted
        if layers:
            with torch.no_grad():
                found.setdefault(min(layers), []).append(_use(use, out, again))

    inputs = batch.to(network).inputs
    args, kwargs = forward.bind_inputs(network, inputs)
    state = State(*network.modules())

    def run() -> None:
        found.clear()
        with seeded(seed), LayerCalls(network, after=keep):
            network(*args, **kwargs)

    try:
        with forward.plain_eager():
            forward.without_record(run)
    except DagscaleError:
        raise
    except Exception as error:
        raise CheckError(f"the forward raised {one_line(error)}, on inputs {shapes(inputs)} in train mode") from error
    finally:  # see `_Start.output`
        state.restore()
    return found


def _use(use: Use, out: Any, rerun: bool) -> _Use:
    z = dense(next(tensors_in(out)).detach()).clone()
    data = [v for v in use.signals.values() if v.is_floating_point() or v.is_complex()]
    kernel = use.layer.kernel if use.layer is not None else ()
    units = z.shape[-1 - len(kernel)] if z.dim() > len(kernel) else 1
    again = partial(use.kept(), use.weight) if rerun and use.own else None
    return _Use(z, _square(data[0]) if data else 1.0, units, again)


def _moved(old: _Use, new: _Use | None) -> float:
    """Mean square of how a layer's output has changed; ``new`` is None for a use that the later forward has not made.

    A layer that gets other rows than before, or none, as experts do, is run again on those that it had: what is left
    out is the change of what enters it. One that cannot be run again counts as unchanged.
    """
    if new is not None and new.z.shape == old.z.shape:
        return _square(new.z - old.z)
    return _square(dense(old.again()) - old.z) if old.again is not None else 0.0


def _by_itself(uses: list[_Use]) -> tuple[float, ...]:
    """Mean square of what the layer, run again on what entered it then, now puts out less what it did."""
    squares = [_square(dense(use.again()) - use.z) for use in uses if use.again is not None]
    return (_mean(squares),) if len(squares) == len(uses) else ()


def _signal(uses: list[_Use], own: tuple[float, ...], change: tuple[float, ...]) -> Signal:
    spreads = []
    for use in uses:
        by_unit = (
            use.z.abs().double().square().reshape(-1, use.units)
            if use.z.shape[-1] == use.units
            else (use.z.abs().double().square().flatten(2).transpose(1, 2).reshape(-1, use.units))
        )
        energy = by_unit.mean(0)
        mean = float(energy.mean())
        spreads.append(
            float(energy.std()) / mean / math.sqrt(use.units) if use.units > 1 and mean > 0 else math.sqrt(2)
        )
    return Signal(
        _mean([_square(use.z) for use in uses]),
        max(spreads),
        _mean([use.entering for use in uses]),
        (own[0], own[-1]) if own else None,
        change,
        len(uses),
    )


def steepness(network: nn.Module, graph: Graph, plan: Plan, task: Task, seed: int) -> float:
    """``lr · λ``: largest Gauss–Newton eigenvalue, each parameter's rate in it as the plan has it."""
    subject = Network(graph, task.recipe, network, task.recipe.example.first(2).inputs)
    with subject.probe(seed) as probe:
        scale = [plan.parameters[name].lr for name in probe.parameters]
        return leading_eigenpair(probe, scale, tolerance=0.1, most=20)[0]


def _loss(network: nn.Module, recipe: Recipe, batch: Batch, start: _Start | None = None) -> Tensor:
    again = batch if start is None else batch.to(network)  # a forward may write to its inputs
    try:
        out = engine.batch_output(network, recipe, batch)
        if start is not None and isinstance(logits(out), Tensor):
            out = logits(out) - start.output(recipe, again)
        return engine.output_loss(recipe, out, batch)
    except RecipeError as error:
        if start is None:
            raise
        raise CheckError(f"{error}; a loss that takes no outputs around 0 needs centred=False") from error
    except ForwardError as error:
        raise CheckError(f"{error} in train mode") from error


def _square(t: Tensor) -> float:
    return float(dense(t.detach()).abs().double().square().mean()) if t.numel() else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
