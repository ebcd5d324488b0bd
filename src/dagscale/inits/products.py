"""Outputs that are made of layers' outputs by products and sums alone: what brings them to the size that is wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from statistics import fmean
from typing import Any

from torch import Tensor

from dagscale.graph.roles import output_factors
from dagscale.network import Network
from dagscale.tracing import forward
from dagscale.tracing.outputs import tensors_within
from dagscale.training.draws import Fill
from dagscale.training.seeds import seeded

DRAWS = 16
"""Draws of the weights that the size of outputs is a mean over: that of a single output is off by as much as itself in
one draw."""

NOTHING = 2.0**-12
"""A factor at which nothing is left of what the weights add to the outputs."""

LEAST_PART = 0.1
"""Part of the outputs' second moment that these weights have at least, however much comes from elsewhere."""


def shrunk(network: Network, fills: Mapping[str, Fill], inputs: Any, share: float) -> dict[str, Fill]:
    """The fills with `output_factors` drawn smaller where outputs are larger than they should be.

    A layer's output has the second moment that is wanted of it, but what products and sums over elements make of
    several is larger: a dot product of ``n`` pairs of second moment 1 has ``n``. No layer behind them sets it right. So
    all of these weights are drawn smaller by one factor, which leaves the outputs that they change with a second moment
    of 1 in the mean over draws. Outputs that are smaller stay as they are.

    Args:
        share: part of that second moment that these weights are to give their share of, as a small readout does.
    """
    names = {name for name in output_factors(network.graph) if name in fills and fills[name].std}
    if not names:
        return dict(fills)

    def scaled(factor: float) -> dict[str, Fill]:
        return {**fills, **{name: fills[name].times(factor) for name in names}}

    wholes = _moments(network, fills, inputs)
    if max(wholes, default=0.0) <= share * LEAST_PART:
        return dict(fills)
    less, factor = [_moments(network, scaled(factor), inputs) for factor in (0.5, NOTHING)], 1.0
    for whole, half, rest in zip(wholes, *less, strict=False):
        theirs, allowed = whole - rest, share * max(1 - rest, LEAST_PART)
        if math.isfinite(whole) and theirs > allowed and 0 < half - rest < theirs:
            factor = min(factor, (allowed / theirs) ** (1 / math.log2(theirs / (half - rest))))
    return scaled(factor)


def _moments(network: Network, fills: Mapping[str, Fill], inputs: Any) -> list[float]:
    """The second moment of each of the model's outputs under these fills; 0 for those that are no numbers."""
    found: list[list[float]] = []
    for k in range(DRAWS):
        model = network.copy.reset(fills, network.seed + k, train=network.recipe.data is not None)
        args, kwargs = forward.bind_inputs(model, inputs)
        with seeded(network.seed + k), forward.plain_eager():
            outputs = forward.without_record(partial(model, *args, **kwargs))
        found.append([_moment(tensor.detach()) for tensor in tensors_within(outputs)])
    return [fmean(moments) for moments in zip(*found, strict=False)]


def _moment(tensor: Tensor) -> float:
    numbers = tensor.numel() and (tensor.is_floating_point() or tensor.is_complex())
    return float(tensor.abs().double().square().mean()) if numbers else 0.0
