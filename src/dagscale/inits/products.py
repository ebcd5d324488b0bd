"""Outputs that are made of layers' outputs by products and sums alone: what brings them to the size that is wanted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dagscale.errors import ForwardError
from dagscale.graph.roles import output_factors
from dagscale.inits.passes import outputs_of
from dagscale.network import Network
from dagscale.tracing.outputs import tensors_within
from dagscale.training.draws import Fill

Fills = dict[str, Fill]

DRAWS = 16
"""Draws of the weights that the size of outputs is a mean over: that of a single output is off by as much as itself in
one draw."""

NOTHING = 2.0**-12
"""A factor at which nothing is left of what the weights add to the outputs."""


def shrunk(network: Network, fills: Mapping[str, Fill], drawn: Collection[str], inputs: Any, wanted: float) -> Fills:
    """The fills with `output_factors` drawn smaller where what they add to the outputs is larger than it should be.

    A layer's output has the second moment that is wanted of it, but what products and sums over elements make of
    several is larger: a dot product of ``n`` pairs of second moment 1 has ``n``. No layer behind them sets it right. So
    all of these weights are drawn smaller by one factor, which leaves what they add to any output, against what it is
    without them, with their part of the second moment ``wanted`` in the mean over draws. What is smaller stays as it
    is, and so does all where the forward raises without them.

    Args:
        drawn: the parameters that the init has set the scale of.
    """
    due = {name: part for name, part in output_factors(network.graph).items() if name in drawn}
    if not due:
        return dict(fills)
    wanted *= min(due.values())

    def scaled(factor: float) -> Fills:
        return {**fills, **{name: fills[name].times(factor) for name in due}}

    try:
        whole, half = _added(network, (scaled(1.0), scaled(0.5)), scaled(NOTHING), inputs)
    except ForwardError:  # some forwards bear no weights as small as these, which nobody asked for
        return dict(fills)
    factor = 1.0
    for one, other in zip(whole, half, strict=True):
        if one > wanted and 0 < other < one:
            factor = min(factor, (wanted / one) ** (1 / math.log2(one / other)))
    return scaled(factor)


def _added(network: Network, drawn: Sequence[Fills], without: Fills, inputs: Any) -> list[list[float]]:
    """For each of the draws, the second moment of what each of the model's outputs differs by from the one without, 0
    where it does not; of no output where these are not the same ones under all."""
    found: list[list[list[float]]] = []
    for seed in range(network.seed, network.seed + DRAWS):
        rest, *others = (_outputs(network, fills, seed, inputs) for fills in (without, *drawn))
        if any([t.shape for t in ours] != [t.shape for t in rest] for ours in others):
            return [[] for _ in drawn]
        found.append([[_moment(a, b) for a, b in zip(ours, rest, strict=True)] for ours in others])
    if len({len(moments) for moments, *_ in found}) > 1:
        return [[] for _ in drawn]
    return [[fmean(seeds) for seeds in zip(*draw, strict=True)] for draw in zip(*found, strict=True)]


def _outputs(network: Network, fills: Fills, seed: int, inputs: Any) -> list[Tensor]:
    """The model's outputs that are dense numbers, under one draw."""
    own = {name: fill for name, fill in fills.items() if name not in network.kept}
    model = network.copy.reset(own, seed, train=network.recipe.data is not None)
    found = (t.detach() for t in tensors_within(outputs_of(model, inputs, seed)))
    numbers = (t for t in found if t.is_floating_point() or t.is_complex())
    return [t.clone() for t in numbers if t.layout is torch.strided and not t.is_nested]


def _moment(one: Tensor, other: Tensor) -> float:
    """Of the difference, over the entries that differ; scores that a mask has set do not."""
    apart = (one - other).abs().double()
    apart = apart[apart.isfinite() & (apart > 0)]
    return float(apart.square().mean()) if apart.numel() else 0.0
