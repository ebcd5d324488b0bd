"""Initialisation by the second moments of what really flows, on any architecture."""

from __future__ import annotations

import copy
from math import exp, log, sqrt
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dagscale.draws import Fill, standard_normal
from dagscale.errors import PlanError
from dagscale.graph import Graph
from dagscale.inits.base import init, zeros_and_ones
from dagscale.subject import Subject
from dagscale.trace import forward
from dagscale.train import to_model

BATCH = 256
"""Examples of ``data`` that the forward runs on."""

DRAWS = 4
"""Draws of the weights that a standard deviation is the geometric mean over, so that it does not fit one of them."""

PASSES = 3
"""Forwards at most: a weight that is used twice is settled by the use that wants it smallest."""


@init("moments")
def moments(subject: Subject) -> dict[str, Fill]:
    """Every layer's output gets the second moment ``1/d_in``, from one forward on a batch.

    A layer is linear in its weight, so for independent weights of variance ``s²`` and a given input ``x``::

        E_W z_i² = s² Σ_j x_ij²        (j runs over the inputs that reach output i)

    The sum is had exactly, for any layer, by running the layer's own operator on ``x²`` with a weight of ones:
    padding, groups, stride, transposition and lookups need no formula of their own. The weights are set in the
    order in which the forward uses them, each from the signal that the ones before it produce, so identity
    edges, sums of activations (whose mean is not zero), pooling, attention and any activation count as what
    they are. Eq. 12 is the special case of a ReLU of a symmetric signal, ``E x² = ½``; readouts get output
    moment 1, norm gains 1, biases 0 and other vectors stay.

    The batch is ``data``'s inputs if given, else the example inputs. Deterministic given the seed; a few draws of the
    weights are averaged. A weight that is used several times takes the smallest of the values that its uses ask
    for. A layer that sees only zeros is left as it is.

    Raises:
        PlanError: if the model is on ``meta``, so that nothing can be measured.
    """
    if subject.model is None or any(p.is_meta for p in subject.model.parameters()):
        raise PlanError(
            "init 'moments' measures a forward and the model has no values (meta): materialise it first "
            "(model.to_empty(device=...)), or use init 'in-degree'"
        )
    fills = zeros_and_ones(subject.graph)
    wanted = wanted_moments(subject.graph)
    model = copy.deepcopy(subject.model)
    parameters = forward.plain_parameters(model)
    trainable = {name: moment for name, moment in wanted.items() if parameters[name].requires_grad}
    with torch.no_grad():
        for name, fill in fills.items():
            if parameters[name].requires_grad:
                parameters[name].fill_(fill.mean)
    logs: dict[str, list[float]] = {}
    for seed in range(subject.seed, subject.seed + DRAWS):
        for name, std in _one_draw(model, subject, parameters, trainable, seed).items():
            logs.setdefault(name, []).append(log(std))
    fills.update({name: Fill(0.0, exp(fmean(values))) for name, values in logs.items()})
    return fills


def _one_draw(
    model: nn.Module, subject: Subject, parameters: dict[str, nn.Parameter], wanted: dict[str, float], seed: int
) -> dict[str, float]:
    """The standard deviations that one draw of the weights asks for."""
    unit = {n: standard_normal(n, tuple(parameters[n].shape), seed).to(parameters[n]) for n in wanted}
    stds: dict[str, float] = {}
    with torch.no_grad():
        for _ in range(PASSES):
            for name, drawn in unit.items():
                parameters[name].copy_(drawn * stds.get(name, 1.0))
            setter = _Setter({n: parameters[n] for n in unit}, wanted, stds)
            _forward(model, subject, setter)
            if not setter.lowered:
                break
    return stds


def wanted_moments(graph: Graph) -> dict[str, float]:
    """Weight name → second moment wanted of its layer's output: ``1/d_in``, the smallest over its uses."""
    wanted: dict[str, float] = {}
    for use in graph.layers:
        weights = [p.name for p in use.op.params if p.role == "weight"]
        if len(weights) == 1:
            wanted[weights[0]] = min(1 / use.in_degree, wanted.get(weights[0], 1.0))
    return wanted


def _forward(model: nn.Module, subject: Subject, mode: TorchDispatchMode) -> None:
    """One forward in the model's own mode, random state and buffers not the user's."""
    inputs = subject.inputs if subject.data is None else to_model(model, subject.data[0][:BATCH])
    args, kwargs = forward.bind_inputs(model, inputs)
    with forward.unchanged_random_state(), forward.plain_eager(), torch.no_grad(), mode:
        torch.manual_seed(subject.seed)
        model(*args, **kwargs)


class _Setter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Scales each weight just before the first operator that uses it runs."""

    def __init__(self, weights: dict[str, nn.Parameter], wanted: dict[str, float], stds: dict[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from dagscale.trace.recorder import Operator, describe

        self.names = {p.untyped_storage()._cdata: name for name, p in weights.items()}
        self.weights, self.wanted, self.stds = weights, wanted, stds
        self.lowered = False
        self._describe = describe
        self._operators: dict[Any, Operator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operator = self._operators.get(func) or self._operators.setdefault(func, self._describe(func))
        meaning = operator.meaning
        if callable(meaning) or getattr(meaning, "kind", "") == "weight":
            named = dict(zip(operator.arguments, args, strict=False)) | kwargs
            meaning = meaning(named) if callable(meaning) else meaning
            if meaning.kind == "weight":
                self._set(func, meaning, named)
        return func(*args, **kwargs)

    def _set(self, func: Any, meaning: Any, named: dict[str, Any]) -> None:
        places = [meaning.weight, *meaning.data]
        held = {a: self.names.get(t.untyped_storage()._cdata) for a in places if isinstance(t := named.get(a), Tensor)}
        names = [(a, n) for a, n in held.items() if n is not None]
        if len(names) != 1:
            return
        place, name = names[0]
        probe = dict(named)
        for argument, value in named.items():
            if argument == place:
                probe[argument] = torch.ones_like(value)
            elif argument == meaning.bias and isinstance(value, Tensor):
                probe[argument] = torch.zeros_like(value)
            elif argument in places and isinstance(value, Tensor) and value.is_floating_point():
                probe[argument] = value.square()
        out = func(**probe)
        out = out[0] if isinstance(out, (tuple, list)) else out
        moment = out.double().mean().item()
        if not moment > 0 or moment == float("inf"):
            return
        std = sqrt(self.wanted[name] / moment)
        known = self.stds.get(name)
        if known is None:
            self.weights[name].mul_(std)
            self.stds[name] = std
        elif std < 0.99 * known:
            self.stds[name] = std
            self.lowered = True
