"""Initialisation by the second moments of what really flows, on any architecture."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, repeat
from math import exp, inf, log, sqrt
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dagscale.errors import PlanError
from dagscale.graph.roles import lookup_factors
from dagscale.inits.base import init, zeros_and_ones
from dagscale.inits.passes import outputs_of
from dagscale.inits.positions import tables as added_tables
from dagscale.inits.products import shrunk
from dagscale.inits.wanted import Wanted, by_parameters, wanted_moments
from dagscale.network import Network
from dagscale.tracing.calls import Held, LayerCalls, Use, held_by
from dagscale.tracing.causality import Attended
from dagscale.training.batches import Batch
from dagscale.training.copies import padding_rows
from dagscale.training.draws import Fill, standard_normal

BATCH = 256
"""Examples of ``data`` that the forward runs on."""

DRAWS = (4, 16)
"""Fewest and most draws of the weights that a standard deviation is the geometric mean over."""

PRECISION = 0.025
"""Standard error of a standard deviation's logarithm at which no further draw is taken."""

LUCK = 8
"""Further draws at most, under other random states, for weights that no forward has used (stochastic depth)."""

TABLES_APART = 0.1
"""How far a table may be from the size of what it is added to, as a logarithm: a small one is so by chance."""

PASSES = 3
"""Forwards a draw at most: a weight that is used twice is settled by the use that wants it smallest."""


@init("moments", measured=True, moments=wanted_moments)
def moments(network: Network) -> dict[str, Fill]:
    """Every layer's output gets the second moment ``1/d_in``, from a few forwards on a batch.

    A layer is linear in its weight, so for independent weights of variance ``s²`` and a given input ``x``::

        E_W z_i² = s² Σ_j x_ij²        (j runs over the inputs that reach output i)

    The sum is had exactly, for any layer, by running the layer's own operator on ``x²`` with a weight of ones:
    padding, groups, stride, transposition and lookups need no formula of their own. The weights are set in the
    order in which the forward uses them, each from the signal that the ones before it produce, so identity
    edges, sums of activations (whose mean is not zero), pooling, attention and any activation count as what
    they are. Eq. 12 is the special case of a ReLU of a symmetric signal, ``E x² = ½``; readouts get output
    moment 1, norm gains 1, biases 0 and other vectors stay. What is looked up and then multiplied by a number, such as
    √width, has the moment behind it. Where outputs are products of layers' outputs, or sums over
    their elements, these layers are drawn as much smaller as it takes for outputs of moment 1
    (`dagscale.inits.products`).

    Each draw of the weights sees a batch of its own, a random sample of the data if there are any, else the example
    inputs; no batch is larger than those of training. Deterministic given the seed. A standard
    deviation is the geometric mean over at least 4 draws of the weights, up to 16 where they differ. A weight that is
    used several times takes the smallest of the values that its uses ask for. Where a weight is computed from
    several parameters, one that it is proportional to, and that has no other use, is set: ``weight_norm``'s magnitude,
    the gain of a standardised weight, as a constant; the others stay, and so does a weight that is proportional to
    none. A layer that sees only zeros is left as it is.

    Learned tables that are added to a signal, such as those of positions, are drawn as large as what they are added to
    where self-attention sees in both directions: nothing else tells places apart there. Where a mask lets it see only
    what comes before, or where there is no attention, they stay as they are (``docs/evidence/positions.md``).

    Raises:
        PlanError: if the model is on ``meta``, or the example inputs are all 0, so that nothing can be measured.
    """
    return measured(network, by_parameters(network.graph))


def measured(network: Network, wanted: Wanted, outputs: float = 1.0) -> dict[str, Fill]:
    """Every layer's output gets the second moment that is wanted of it.

    Args:
        outputs: the second moment that is wanted of the model's, where products and sums make them
            (`dagscale.inits.products.shrunk`).
    """
    fills = zeros_and_ones(network.graph)
    copied = network.copy
    try:
        model = _anew(network)
        parameters = {n: p for n, p in copied.parameters.items() if n not in network.kept}
        with torch.no_grad():
            inputs = _inputs(network, model)
            first = next(inputs)
        logs, gains = _scales(network, model, parameters, wanted, first, inputs)
        for name, values in logs.items():
            scale = exp(fmean(values))
            fills[name] = Fill(scale, 0.0) if name in gains else Fill(0.0, scale)
        return shrunk(network, fills, logs, first, outputs)
    finally:
        copied.give_back()


def _anew(network: Network, drawn: Collection[str] = ()) -> nn.Module:
    """The working copy as it was given, but for parameters that are constants under this init, and those ``drawn``:
    what a forward pass has written to buffers, statistics and parameters is that of other weights."""
    constants = {n: f for n, f in zeros_and_ones(network.graph).items() if n not in network.kept and n not in drawn}
    train = network.recipe.data is not None  # batch norm and dropout as training has them
    return network.copy.reset(constants, network.seed, train=train, but=drawn)


def _scales(
    network: Network,
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    wanted: Wanted,
    first: Any,
    inputs: Iterator[Any],
) -> tuple[dict[str, list[float]], set[str]]:
    """The logarithms of the scales that each draw asks for, by parameter, and which of them are constants."""
    controls = _controls(model, network, parameters, wanted, first)
    tables = _open_tables(network, model, parameters, first)
    factors = lookup_factors(network.graph)
    held = held_by(model)  # with what the forwards so far have left there
    logs: dict[str, list[float]] = {}
    for k, x in zip(range(DRAWS[1]), chain([first], inputs), strict=False):
        for name, scale in _one_draw(
            model, network, parameters, wanted, controls, tables, factors, network.seed + k, x, held
        ).items():
            logs.setdefault(name, []).append(log(scale))
        if k + 1 >= DRAWS[0] and all(_error(values) < PRECISION for values in logs.values()):
            break
    reached = {next(iter(names)) for names in wanted if len(names) == 1} & parameters.keys()
    for k, x in zip(range(1, LUCK + 1), inputs, strict=False):  # of what the forward leaves out at random
        if not reached - logs.keys():
            break
        other = _one_draw(model, network, parameters, wanted, controls, tables, factors, network.seed, x, held, luck=k)
        logs.update({name: [log(scale)] for name, scale in other.items() if name in reached - logs.keys()})
    return logs, {name for name in controls.values() if _is_gain(parameters[name])}


def _inputs(network: Network, model: nn.Module) -> Iterator[Any]:
    """The batches that the forward passes run on, repeated without end, on the model's device."""
    recipe = network.recipe
    if recipe.data is None:
        if _all_zero(network.inputs):
            raise PlanError(
                "the example inputs are all 0, and this init measures what they become: give data, or example inputs "
                "as training has them"
            )
        yield from repeat(Batch(network.inputs).to(model).inputs)  # the model may hold the very ones
    size = BATCH if recipe.batch_size is None else min(BATCH, recipe.batch_size)
    for batch in recipe.source.batches(network.seed, size):
        yield batch.to(model).inputs


def _all_zero(inputs: Any) -> bool:
    """Whether no signal enters. Token ids of 0 are one."""
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return all(leaf.is_floating_point() and not leaf.any() for leaf in leaves) and bool(leaves)


def _open_tables(network: Network, model: nn.Module, parameters: dict[str, nn.Parameter], inputs: Any) -> set[str]:
    """The tables that are added to a signal whose self-attention sees in both directions."""
    own = {name: parameters[name] for name in added_tables(network.graph) if name in parameters}
    if not own:
        return set()
    attended = Attended(own)
    outputs_of(model, inputs, network.seed, attended)
    return {name for name, causal in attended.causal.items() if not causal}


def _error(logs: list[float]) -> float:
    return stdev(logs) / sqrt(len(logs)) if len(logs) > 1 else 0.0


def _is_gain(parameter: Tensor) -> bool:
    """Whether a parameter is a number or a vector, so that nothing is drawn at random for it."""
    return parameter.numel() == max(parameter.shape, default=1)


# --- weights that are computed from parameters ------------------------------------------------------------


class _Sizes(LayerCalls):  # type: ignore[no-untyped-call]
    """Keeps the first weight that is computed from each set of parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.weights: dict[frozenset[str], Tensor] = {}

    def on_use(self, use: Use) -> None:
        if not use.own:
            self.weights.setdefault(use.names, use.weight.detach().clone())


def _controls(
    model: nn.Module,
    network: Network,
    parameters: dict[str, nn.Parameter],
    wanted: Wanted,
    inputs: Any,
) -> dict[frozenset[str], str]:
    """What a computed weight is made of → the parameter that it is proportional to: doubled, it doubles the weight."""

    def seen(sizes: _Sizes, drawn: Collection[str]) -> None:
        _anew(network, drawn)  # with no range of weights, as to quantise them, that others have left
        outputs_of(model, inputs, network.seed, sizes)

    found: dict[frozenset[str], str] = {}
    before = _Sizes(model)
    seen(before, ())
    used = {name for names in wanted if len(names) == 1 and names not in before.weights for name in names}
    ops = (op for edge in network.graph.edges for op in edge.ops)
    used |= {use.name for op in ops for use in op.params if use.role != "weight"}  # a table that is added elsewhere
    left = {
        names: sorted((n for n in names - used if n in parameters), key=lambda n: parameters[n].numel())
        for names in before.weights
        if names in wanted
    }
    while left := {names: rest for names, rest in left.items() if rest and names not in found}:
        tried = {names: rest.pop(0) for names, rest in left.items()}
        drawn, doubled, partly = _Sizes(model), _Sizes(model), _Sizes(model)
        own = {name: parameters[name].detach().clone() for name in tried.values()}
        with torch.no_grad():
            for name in own:
                parameters[name].copy_(_start(name, parameters[name], network.seed))
            seen(drawn, own)
            for name in own:
                parameters[name].mul_(2)
            seen(doubled, own)
            for name in own:
                parameters[name].flatten()[1:].div_(2)
            seen(partly, own)
            for name, value in own.items():
                parameters[name].copy_(value)
        for names, name in tried.items():
            if names & own.keys() != {name} or not _twice(doubled.weights.get(names), drawn.weights.get(names)):
                continue
            if not _is_gain(parameters[name]) or _in_part(partly.weights.get(names), drawn.weights[names]):
                found[names] = name
    return found


def _twice(two: Tensor | None, one: Tensor | None) -> bool:
    return one is not None and two is not None and bool(one.any()) and torch.allclose(two, 2 * one, 1e-3)


def _in_part(other: Tensor | None, one: Tensor) -> bool:
    """Whether a weight's entries are doubled or as they were: its gains belong to an entry each, where a vector that
    the weight is worked out from, as by a hypernetwork, moves all of them."""
    return other is not None and bool((torch.isclose(other, one, 1e-3) | torch.isclose(other, 2 * one, 1e-3)).all())


# --- one draw ---------------------------------------------------------------------------------------------


def _one_draw(
    model: nn.Module,
    network: Network,
    parameters: dict[str, nn.Parameter],
    wanted: Wanted,
    controls: dict[frozenset[str], str],
    tables: set[str],
    factors: Mapping[str, float],
    seed: int,
    inputs: Any,
    held: Held,
    luck: int = 0,
) -> dict[str, float]:
    """The scales that one draw of the weights asks for, in forwards of the random state ``luck``."""
    scales: dict[str, float] = {}
    single = {name for names in wanted if len(names) == 1 for name in names}
    drawn = (single | tables | {*controls.values()}) & parameters.keys()
    with torch.no_grad():
        for name in controls.values():
            parameters[name].copy_(_start(name, parameters[name], seed))
        shared: set[str] = set()
        for _ in range(PASSES):
            _anew(network, drawn)
            setter = _Setter(model, parameters, wanted, controls, tables, factors, scales, seed, shared, held)
            outputs_of(model, inputs, network.seed + luck, setter)
            if not setter.again:
                break
    return scales


def _start(name: str, parameter: Tensor, seed: int) -> Tensor:
    """Where what sets the scale of a computed weight begins: 1 throughout, or a draw."""
    return torch.ones_like(parameter) if _is_gain(parameter) else standard_normal(name, parameter, seed)


class _Setter(LayerCalls):  # type: ignore[no-untyped-call]
    """Scales each weight just before the first operator that uses it runs.

    A weight with several uses gets the least scale that any of them asks for. What was drawn before that is known is
    drawn again in the next pass, when ``shared`` names such weights: they only shrink, the others follow.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        wanted: Wanted,
        controls: dict[frozenset[str], str],
        tables: set[str],
        factors: Mapping[str, float],
        scales: dict[str, float],
        seed: int,
        shared: set[str],
        held: Held,
    ) -> None:
        super().__init__(model, held=held)
        self.parameters, self.wanted, self.controls, self.tables = parameters, wanted, controls, frozenset(tables)
        self.scales, self.seed, self.shared = scales, seed, shared
        self.used: set[str] = set()
        self.factors = factors
        self.padding = padding_rows(model)
        self.again = False

    def on_use(self, use: Use) -> None:
        (first, *_) = use.names
        name = first if use.own else self.controls.get(use.names)
        if name not in self.parameters or use.names not in self.wanted:
            return
        parameter = self.parameters[name].data  # written to unseen by gradients that the forward takes itself
        with torch.no_grad():
            moment = use.moment()
        if use.own:  # a complex weight that is seen in two real numbers, or the other way round
            moment *= (1 + use.weight.is_complex()) / (1 + parameter.is_complex())
        if "embedding" in str(use.func):
            moment *= self.factors.get(name, 1.0) ** 2  # the signal is what stands behind the number
        if not 0 < moment < inf:
            return
        if name in self.used:
            self.shared.add(name)
        self.used.add(name)
        padding, known = self.padding.get(id(self.parameters[name])), self.scales.get(name)
        scale = sqrt(self.wanted[use.names] / moment) * (1.0 if use.own else known or 1.0)
        if known is None and use.own:
            parameter.copy_(standard_normal(name, parameter, self.seed) * scale)
            if padding is not None:
                parameter[padding] = 0
        elif known is None or scale < 0.99 * known or (name not in self.shared and scale > 1.01 * known):
            parameter.mul_(scale / (known or 1.0))
        else:
            return
        if not use.own:
            use.weight.data.mul_(scale / (known or 1.0))
        self.scales[name] = scale
        self.again = self.again or known is not None or not use.own

    def on_sum(self, parts: list[tuple[Tensor, frozenset[str] | None]]) -> None:
        """Make tables as large as what they are added to, at their first use.

        They are drawn of that size; what is computed from them, as by a constant factor, is looked at in the next pass.
        """
        names = frozenset().union(*(made for _, made in parts if made))
        tables = sorted((names & self.tables) - self.used)
        if not tables:
            return
        signal, added = (
            fmean(float(t.abs().double().square().mean()) for t, made in parts if (made is None) == so)
            for so in (True, False)
        )
        if not 0 < signal < inf:
            return
        self.used.update(tables)
        for name in tables:
            known, parameter = self.scales.get(name), self.parameters[name].data
            factor = sqrt(signal / added) if known is not None and 0 < added < inf else 1.0
            if known is None:
                self.scales[name] = sqrt(signal / len(tables))
                parameter.copy_(standard_normal(name, parameter, self.seed) * self.scales[name])
            elif abs(log(factor)) > TABLES_APART:
                self.scales[name] = known * factor
                parameter.mul_(factor)
            else:
                continue
            self.again = True  # what was looked up in it is still as it was
