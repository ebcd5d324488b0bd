"""Outputs that are made of layers' outputs by products and sums alone: what brings them to the size that is wanted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dagscale.graph.roles import output_factors
from dagscale.network import Network
from dagscale.tracing import forward
from dagscale.tracing.outputs import tensors_within
from dagscale.training.draws import Fill
from dagscale.training.seeds import seeded

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
    is.

    Args:
        drawn: the parameters that the init has set the scale of.
    """
    due = {name: part for name, part in output_factors(network.graph).items() if name in drawn}
    if not due:
        return dict(fills)
    wanted *= min(due.values())

    def scaled(factor: float) -> Fills:
        return {**fills, **{name: fills[name].times(factor) for name in due}}

    whole, half = (_moments(network, scaled(factor), scaled(NOTHING), inputs) for factor in (1.0, 0.5))
    factor = 1.0
    for one, other in zip(whole, half, strict=False):
        if one > wanted and 0 < other < one:
            factor = min(factor, (wanted / one) ** (1 / math.log2(one / other)))
    return scaled(factor)


def _moments(network: Network, fills: Fills, without: Fills, inputs: Any) -> list[float]:
    """The second moment of what each of the model's outputs differs by under these fills and those, 0 where it does
    not; none where the outputs are not the same ones from draw to draw."""
    found: list[list[float]] = []
    for k in range(DRAWS):
        ours, theirs = (_outputs(network, own, network.seed + k, inputs) for own in (fills, without))
        if [t.shape for t in ours] != [t.shape for t in theirs]:
            return []
        found.append([_moment(one, other) for one, other in zip(ours, theirs, strict=True)])
    same = len({len(moments) for moments in found}) == 1
    return [fmean(moments) for moments in zip(*found, strict=True)] if same else []


def _outputs(network: Network, fills: Fills, seed: int, inputs: Any) -> list[Tensor]:
    """The model's outputs that are dense numbers, under one draw."""
    kept = {name: fill for name, fill in fills.items() if name not in network.kept}
    model = network.copy.reset(kept, seed, train=network.recipe.data is not None)
    args, kwargs = forward.bind_inputs(model, inputs)
    with seeded(seed), forward.plain_eager():
        outputs = tensors_within(forward.without_record(partial(model, *args, **kwargs)))
    numbers = (t.detach() for t in outputs if t.is_floating_point() or t.is_complex())
    return [t.clone() for t in numbers if t.layout is torch.strided and not t.is_nested]


def _moment(one: Tensor, other: Tensor) -> float:
    """Of the difference, over the entries that differ; scores that a mask has set do not."""
    apart = (one - other).abs().double()
    apart = apart[apart.isfinite() & (apart > 0)]
    return float(apart.square().mean()) if apart.numel() else 0.0
