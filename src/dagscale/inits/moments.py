"""Initialisation by the second moments of what really flows, on any architecture."""

from __future__ import annotations

import copy
from math import exp, inf, log, sqrt
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dagscale.errors import PlanError
from dagscale.graph import Graph
from dagscale.inits.base import init, padding_rows, zeros_and_ones
from dagscale.network import Subject
from dagscale.tracing import forward
from dagscale.tracing.calls import Use, Uses
from dagscale.training.batches import take, to_model
from dagscale.training.draws import Fill, standard_normal

BATCH = 256
"""Examples of ``data`` that the forward runs on."""

DRAWS = (4, 16)
"""Fewest and most draws of the weights that a standard deviation is the geometric mean over."""

PRECISION = 0.025
"""Standard error of a standard deviation's logarithm at which no further draw is taken."""

PASSES = 3
"""Forwards a draw at most: a weight that is used twice is settled by the use that wants it smallest."""


@init("moments")
def moments(subject: Subject) -> dict[str, Fill]:
    """Every layer's output gets the second moment ``1/d_in``, from a few forwards on a batch.

    A layer is linear in its weight, so for independent weights of variance ``s²`` and a given input ``x``::

        E_W z_i² = s² Σ_j x_ij²        (j runs over the inputs that reach output i)

    The sum is had exactly, for any layer, by running the layer's own operator on ``x²`` with a weight of ones:
    padding, groups, stride, transposition and lookups need no formula of their own. The weights are set in the
    order in which the forward uses them, each from the signal that the ones before it produce, so identity
    edges, sums of activations (whose mean is not zero), pooling, attention and any activation count as what
    they are. Eq. 12 is the special case of a ReLU of a symmetric signal, ``E x² = ½``; readouts get output
    moment 1, norm gains 1, biases 0 and other vectors stay.

    The batch is ``data``'s inputs if given, else the example inputs. Deterministic given the seed. A standard
    deviation is the geometric mean over at least 4 draws of the weights, up to 16 where they differ. A weight that is
    used several times takes the smallest of the values that its uses ask for. Where a weight is computed from
    several parameters, the one that it is proportional to is set: ``weight_norm``'s magnitude, the gain of a
    standardised weight, as a constant; the others stay, and so does a weight that is proportional to none. A layer
    that sees only zeros is left as it is.

    Raises:
        PlanError: if the model is on ``meta``, so that nothing can be measured.
    """
    if subject.model is None or any(p.is_meta for p in subject.model.parameters()):
        raise PlanError(
            "init 'moments' measures a forward and the model has no values (meta): materialise it first "
            "(model.to_empty(device=...)), or use init 'in-degree'"
        )
    fills = zeros_and_ones(subject.graph)
    model = copy.deepcopy(subject.model)
    if subject.data is not None:
        model.train()  # batch norm and dropout as training will have them; a lone example cannot be normalised
    parameters = {n: p for n, p in forward.plain_parameters(model).items() if p.requires_grad}
    with torch.no_grad():
        for name, fill in fills.items():
            if name in parameters:
                parameters[name].fill_(fill.mean)
    wanted = _wanted(subject.graph)
    controls = _controls(model, subject, parameters, wanted)
    logs: dict[str, list[float]] = {}
    for k in range(DRAWS[1]):
        for name, scale in _one_draw(model, subject, parameters, wanted, controls, subject.seed + k).items():
            logs.setdefault(name, []).append(log(scale))
        if k + 1 >= DRAWS[0] and all(_error(values) < PRECISION for values in logs.values()):
            break
    gains = {name for name in controls.values() if _is_gain(parameters[name])}
    for name, values in logs.items():
        scale = exp(fmean(values))
        fills[name] = Fill(scale, 0.0) if name in gains else Fill(0.0, scale)
    return fills


def wanted_moments(graph: Graph) -> dict[str, float]:
    """Weight name → second moment wanted of its layer's output: ``1/d_in``, the smallest over its uses."""
    return {name: moment for names, moment in _wanted(graph).items() if len(names) == 1 for name in names}


def _wanted(graph: Graph) -> dict[frozenset[str], float]:
    """The same, by all parameters that the weight is computed from."""
    wanted: dict[frozenset[str], float] = {}
    for use in graph.layers:
        names = frozenset(p.name for p in use.op.params if p.role == "weight")
        wanted[names] = min(1 / use.in_degree, wanted.get(names, 1.0))
    return wanted


def _error(logs: list[float]) -> float:
    return stdev(logs) / sqrt(len(logs)) if len(logs) > 1 else 0.0


def _is_gain(parameter: Tensor) -> bool:
    """A number, or a vector: nothing to draw at random."""
    return parameter.numel() == max(parameter.shape, default=1)


def _forward(model: nn.Module, subject: Subject, mode: TorchDispatchMode) -> None:
    """One forward, random state and buffers not the user's."""
    inputs = subject.inputs if subject.data is None else to_model(model, take(subject.data[0], slice(BATCH)))
    args, kwargs = forward.bind_inputs(model, inputs)
    with forward.unchanged_random_state(), forward.plain_eager(), torch.no_grad(), mode:
        torch.manual_seed(subject.seed)
        model(*args, **kwargs)


# --- weights that are computed from parameters ------------------------------------------------------------


class _Sizes(Uses):  # type: ignore[no-untyped-call]
    """Keeps the first weight that is computed from each set of parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.weights: dict[frozenset[str], Tensor] = {}

    def on_use(self, use: Use) -> None:
        if not use.own:
            self.weights.setdefault(use.names, use.weight.clone())


def _controls(
    model: nn.Module, subject: Subject, parameters: dict[str, nn.Parameter], wanted: dict[frozenset[str], float]
) -> dict[frozenset[str], str]:
    """What a computed weight is made of → the parameter that it is proportional to: doubled, it doubles the weight."""
    found: dict[frozenset[str], str] = {}
    before = _Sizes(model)
    _forward(model, subject, before)
    used = {name for names in wanted if len(names) == 1 and names not in before.weights for name in names}
    left = {
        names: sorted((n for n in names - used if n in parameters), key=lambda n: parameters[n].numel())
        for names in before.weights
        if names in wanted
    }
    while left := {names: rest for names, rest in left.items() if rest and names not in found}:
        tried = {names: rest.pop(0) for names, rest in left.items()}
        doubled = set(tried.values())
        after = _Sizes(model)
        with torch.no_grad():
            for name in doubled:
                parameters[name].mul_(2)
            _forward(model, subject, after)
            for name in doubled:
                parameters[name].mul_(0.5)
        for names, name in tried.items():
            new = after.weights.get(names)
            if new is not None and names & doubled == {name} and torch.allclose(new, 2 * before.weights[names], 1e-3):
                found[names] = name
    return found


# --- one draw ---------------------------------------------------------------------------------------------


def _one_draw(
    model: nn.Module,
    subject: Subject,
    parameters: dict[str, nn.Parameter],
    wanted: dict[frozenset[str], float],
    controls: dict[frozenset[str], str],
    seed: int,
) -> dict[str, float]:
    """The scales that one draw of the weights asks for."""
    scales: dict[str, float] = {}
    with torch.no_grad():
        for name in controls.values():
            parameter = parameters[name]
            parameter.copy_(torch.ones_like(parameter) if _is_gain(parameter) else _unit(name, parameter, seed))
        shared: set[str] = set()
        for _ in range(PASSES):
            setter = _Setter(model, parameters, wanted, controls, scales, seed, shared)
            _forward(model, subject, setter)
            if not setter.again:
                break
    return scales


def _unit(name: str, parameter: Tensor, seed: int) -> Tensor:
    """The parameter drawn at scale 1."""
    return standard_normal(name, tuple(parameter.shape), seed)


class _Setter(Uses):  # type: ignore[no-untyped-call]
    """Scales each weight just before the first operator that uses it runs.

    A weight with several uses gets the least scale that any of them asks for. What was drawn before that is known is
    drawn again in the next pass, when ``shared`` names such weights: they only shrink, the others follow.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        wanted: dict[frozenset[str], float],
        controls: dict[frozenset[str], str],
        scales: dict[str, float],
        seed: int,
        shared: set[str],
    ) -> None:
        super().__init__(model)
        self.parameters, self.wanted, self.controls = parameters, wanted, controls
        self.scales, self.seed, self.shared = scales, seed, shared
        self.used: set[str] = set()
        self.padding = padding_rows(model)
        self.again = False

    def on_use(self, use: Use) -> None:
        (first, *_) = use.names
        name = first if use.own else self.controls.get(use.names)
        if name not in self.parameters or use.names not in self.wanted:
            return
        moment = use.moment()
        if not 0 < moment < inf:
            return
        if name in self.used:
            self.shared.add(name)
        self.used.add(name)
        parameter, known = self.parameters[name], self.scales.get(name)
        scale = sqrt(self.wanted[use.names] / moment) * (1.0 if use.own else known or 1.0)
        if known is None and use.own:
            parameter.copy_(_unit(name, parameter, self.seed) * scale)
            if id(parameter) in self.padding:
                parameter[self.padding[id(parameter)]] = 0
        elif known is None or scale < 0.99 * known or (name not in self.shared and scale > 1.01 * known):
            parameter.mul_(scale / (known or 1.0))
        else:
            return
        if not use.own:
            use.weight.mul_(scale / (known or 1.0))
        self.scales[name] = scale
        self.again = self.again or known is not None or not use.own
