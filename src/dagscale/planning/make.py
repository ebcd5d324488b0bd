"""Making a plan: what the init and the law come to for one network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from dagscale.errors import DagscaleError, PlanError
from dagscale.graph import Graph
from dagscale.inits import INITS, Init
from dagscale.laws import LAWS
from dagscale.laws.base import SGD
from dagscale.laws.over_seeds import half_width
from dagscale.network import Subject
from dagscale.planning.plans import ParameterPlan, Plan
from dagscale.planning.validate import check_data, check_kin, check_whole, in_float32, rehearse
from dagscale.scaling.width import WidthScaling, width_scaling
from dagscale.tracing import forward, trace
from dagscale.training.draws import Fill
from dagscale.training.engine import OPTIMIZERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dagscale.training.batches import Data

    Base = tuple[nn.Module, Any]


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    base: Base | Sequence[Base] | None = None,
    base_lr: float | Sequence[float] | None = None,
    law: str | None = None,
    init: str | None = None,
    optimizer: str = "sgd",
    seed: int = 0,
    data: Data | None = None,
    loss: Callable[..., Tensor] | None = None,
    batch_size: int = 128,
    steps: int | None = None,
    width: str = "none",
) -> Plan:
    """Plan the initialisation and the learning rate of ``model``. The model is not changed.

    Args:
        model, example_inputs: the target, as for :func:`dagscale.trace`.
        base: a small network of the same kind with its inputs, whose best rate is known; or several, ``[(model,
            inputs), …]``. The rate is then the geometric mean of those that each alone would give, and a note says how
            far these are apart: what law and searches get wrong between the bases.
        base_lr: that rate, per optimiser step; :func:`dagscale.search` finds it. Several bases have one each. With
            neither base nor rate, but data and loss, law ``short-run`` measures the target's rate on the spot, to about
            an octave.
        law: the name of a law, see ``dagscale.laws.LAWS``; by default what predicts training best
            (:func:`default_law`).
        init: the name of an init, see ``dagscale.inits.INITS``; by default ``moments`` with data, else
            ``in-degree``.
        optimizer: ``sgd``, ``momentum``, ``adam`` or ``adamw``.
        seed: seed of the initialisation.
        data: a `dagscale.bench.data.Dataset` or ``(x, y)``, for measured laws and inits; some hundreds of examples do.
            ``x`` is a tensor, or a tuple or dict of tensors as the model takes them.
        loss: ``loss(output, y)`` → scalar, likewise.
        batch_size: examples in a training step, for laws that take a few.
        steps: optimiser steps of the run that the rate is for, if it is short: measured laws do not look further.
        width: ``none``: one rate for all parameters, the paper's way; ``mup``: each parameter's init and rate
            also scaled by how its dimensions grow from base to target (:func:`dagscale.scaling.width.width_scaling`).

    Raises:
        UnknownNameError: for an unknown law, init or optimiser.
        PlanError: if a base or its rate is missing, a base shares no layer with the target, a rate is no positive
            number, the law does not cover the optimiser, or data or loss cannot be measured on.
        TraceError: if a network cannot be traced; ForwardError if its forward raises, on the data too.
        GraphError: if the law has no answer for a network.
    """
    bases = _bases(base)
    rates: list[Any] = list(base_lr) if isinstance(base_lr, (tuple, list)) else [] if base_lr is None else [base_lr]
    has_data, has_base = data is not None and loss is not None, base is not None or base_lr is not None
    law = default_law(optimizer, has_data, has_base) if law is None else law
    init = ("moments" if data is not None else "in-degree") if init is None else init
    rule, fill, _ = LAWS[law], INITS[init], OPTIMIZERS[optimizer]
    absolute = None if has_base else rule.absolute
    if absolute is None and not (rates and all(map(_positive, rates))):
        raise PlanError(
            f"base_lr must be a positive number, not {base_lr!r}: find the base's rate with dagscale.search, or give "
            "data and loss and neither base nor base_lr"
        )
    if absolute is None and len(rates) != max(len(bases), 1):
        raise PlanError(f"bases: {len(bases)}, rates: {len(rates)}; give each base its own base_lr, in the same order")
    if rule.optimizers and optimizer not in rule.optimizers:
        raise PlanError(
            f"law {law!r} is derived for {', '.join(sorted(rule.optimizers))}, not {optimizer!r}: "
            "choose one of these, or law 'none'"
        )
    if rule.needs_base and not bases and absolute is None:
        raise PlanError(f"law {law!r} carries a rate over from a base: give base=(model, inputs), or law 'none'")
    if width != "none" and len(bases) > 1:
        raise PlanError(f"width={width!r} scales each layer from one base's shapes: give one, not {len(bases)}")
    rates = [float(rate) for rate in rates]
    batch_size, seed = check_whole("batch_size", batch_size), check_whole("seed", seed, least=0)
    steps = None if steps is None else check_whole("steps", steps)
    data = check_data(data)
    given = Subject(
        Graph((), ()), data=data, loss=loss, optimizer=optimizer, seed=seed, batch_size=batch_size, steps=steps
    )
    measured = rule.measured is not None
    target = _traced("target", model, example_inputs, given, measured or init == "moments")
    named = {"base" if len(bases) == 1 else f"base {i}": one for i, one in enumerate(bases, 1)}
    traced = {name: _traced(name, *one, given, measured or init == "moments") for name, one in named.items()}
    for name, origin in traced.items():
        with _about(name):
            check_kin(origin.graph, target.graph)
    scaling = _width_scaling([*traced.values()], target, width, fill.width)
    for name, subject in {"target": target, **traced}.items() if measured else ():
        with _about(name):
            rehearse(subject)
    target = _filled("target", target, fill)
    origins = [_filled(name, origin, fill) for name, origin in traced.items()]
    target = replace(
        target,
        fills={
            n: Fill(f.mean * _scale(scaling, n).init, f.std * _scale(scaling, n).init) for n, f in target.fills.items()
        },
        multipliers={name: s.lr for name, s in scaling.items()},
    )
    each = [] if absolute else [rule.factors(origin, target) for origin in origins or [target]]
    start = absolute(target) if absolute else math.prod(rates) ** (1 / len(rates))
    factors = {
        name: math.prod(own.get(name, 1.0) for own in each) ** (1 / len(each)) for name in dict.fromkeys(chain(*each))
    }
    lr = start * math.prod(factors.values())
    if not (math.isfinite(lr) and lr > 0):
        raise PlanError(f"law {law!r} gives no usable rate here ({lr}): its factors are {factors}; try another law")
    fills, graph = target.fills, target.graph
    parameters = {
        p.name: ParameterPlan(
            p.shape,
            fills[p.name].mean if p.name in fills and p.trainable else None,
            fills[p.name].std if p.name in fills and p.trainable else None,
            lr * _scale(scaling, p.name).lr,
            _scale(scaling, p.name).weight_decay,
        )
        for p in graph.parameters
    }
    interval, cost = None, 0.0
    if rule.measured is not None:
        own, *others = (rule.measured(subject) for subject in (target, *origins))
        shared = [replace(m, error=m.error / len(others)) for m in others]  # in the mean over the bases
        power = 1.0 if absolute else max(map(rule.power, each))
        spread = math.exp(power * half_width([own, *shared]))
        interval, cost = (lr / spread, lr * spread), sum(m.forwards for m in (own, *others))
    alone = [rate * math.prod(factor.values()) for rate, factor in zip(rates, each, strict=True)]
    widths = dict.fromkeys(s.note for s in scaling.values() if s.note)
    notes = (*_origin(alone), *_notes(graph, parameters, init), *widths)
    return Plan(lr, start, law, init, optimizer, seed, factors, parameters, notes, interval, cost)


def default_law(optimizer: str, has_data: bool, has_base: bool = True) -> str:
    """The law that the evidence is for: ``docs/results.md``.

    With data to measure on: ``combined`` for plain SGD, ``short-run`` for other optimisers and without a base. Without
    data: ``covariance`` for SGD with and without momentum, ``none`` for adaptive optimisers.
    """
    if has_data:
        return "combined" if optimizer == "sgd" and has_base else "short-run"
    return "covariance" if optimizer in SGD else "none"


def _bases(base: Any) -> list[Base]:
    """One base or several, as a list.

    Raises:
        PlanError: if one is no model with its inputs.
    """
    if base is None:
        return []
    several = isinstance(base, (tuple, list)) and base and isinstance(base[0], (tuple, list))
    bases = list(base) if several else [base]
    for one in bases:
        if not (isinstance(one, (tuple, list)) and len(one) == 2):
            raise PlanError(f"base must be two things, base=(model, inputs), got {type(one).__name__}")
    return bases


def _positive(number: Any) -> bool:
    """Whether it is a positive, finite number."""
    try:
        return not isinstance(number, str) and math.isfinite(number) and number > 0
    except (TypeError, ValueError):
        return False


def _width_scaling(bases: Sequence[Subject], target: Subject, width: str, rule: str) -> dict[str, WidthScaling]:
    """μP factors of each parameter, or none."""
    if width == "none":
        return {}
    if width != "mup":
        raise PlanError(f"unknown width mode {width!r}: give 'none' (one rate for all) or 'mup'")
    if not bases:
        raise PlanError("width='mup' scales from a base's shapes: give base=(model, inputs)")
    scaling = width_scaling(bases[0].graph, target.graph, target.optimizer, mean_field=rule == "mean-field")
    return {n: replace(s, init=1.0) for n, s in scaling.items()} if rule == "own" else scaling


def _scale(scaling: Mapping[str, WidthScaling], name: str) -> WidthScaling:
    return scaling.get(name) or WidthScaling("vector", 1.0, 1.0, 1.0, 1.0)


@contextmanager
def _about(network: str) -> Iterator[None]:
    """Errors say which network is meant."""
    try:
        yield
    except DagscaleError as error:
        error.args = (f"{network}: {error}",)
        raise


def _traced(network: str, model: nn.Module, inputs: Any, given: Subject, measured: bool) -> Subject:
    """One network, traced; measurements see half precision as float32."""
    with _about(network):
        graph = trace(model, inputs)
    seen, inputs = in_float32(model, inputs) if measured else (model, inputs)
    return replace(given, graph=graph, model=seen, inputs=inputs)


def _filled(network: str, subject: Subject, init: Init) -> Subject:
    """With its initialisation worked out."""
    with _about(network):
        try:
            return replace(subject, fills=init(subject))
        except DagscaleError:
            raise
        except Exception as error:  # the forward is the user's
            assert subject.model is not None
            shown = subject.inputs if subject.data is None else subject.data[0]
            raise forward.forward_error(subject.model, None, error, shown) from error


def _origin(alone: Sequence[float]) -> Iterator[str]:
    """Where the rate is from: what each base alone would give."""
    if not alone:
        yield "no base: the rate was measured on the network itself, good to about an octave"
    if len(alone) > 1:
        rates, apart = ", ".join(f"{rate:.4g}" for rate in alone), math.log2(max(alone)) - math.log2(min(alone))
        yield f"each base alone gives {rates}: {apart:.1f} octaves apart, what law and searches get wrong between them"


def _notes(graph: Graph, parameters: Mapping[str, ParameterPlan], init: str) -> tuple[str, ...]:
    notes = list(graph.notes)
    unreached = [p.name for p in graph.parameters if not p.reached]
    if unreached:
        notes.append(f"not on any input→output path, left as they are: {', '.join(unreached)}")
    frozen = [p.name for p in graph.parameters if not p.trainable]
    if frozen:
        notes.append(f"frozen, left as they are and out of the parameter groups: {', '.join(frozen)}")
    kept = [
        p.name
        for p in graph.parameters
        if p.reached and p.trainable and parameters[p.name].init_std is None and init != "keep"
    ]
    if kept:
        notes.append(f"init {init!r} does not cover, left as they are: {', '.join(kept)}")
    return tuple(notes)


__all__ = ["default_law", "plan"]
