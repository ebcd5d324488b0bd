"""One SGD step on random weights, simulated: the ground truth of the closed-form laws."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dagscale.spaces import targets
from dagscale.trace import trace

RATE = 1e-3
"""Small enough that the step's change is linear in it."""


def update_moment(code: str, *, width: int, seeds: int, seed: int = 0) -> float:
    """Mean over seeds of ``Σ_i Δz_i²`` at the vertex that the readout of an MLP DAG reads, per unit rate.

    The network is ``mlp:CODE`` with the derivation's order (activation before the layer), without biases, on one
    example of mean square 1. Each layer is drawn when the forward first comes to it, with the variance that
    gives its output the second moment ``1/d_in``. The gradient of the output itself is stepped along (unit
    error); readout weights have variance 1/n and are not updated. Rates are divided by the fan-in, so that a
    layer's update is its input's mean square times its output's gradient.

    Args:
        code: the DAG's code.
        width: units of every vertex.
        seeds: draws of the weights to average over.
    """
    text = f"mlp:{code}?order=pre&width={width}&classes=1&bias=false"
    model, inputs = targets.load(text, input_shape=(1, 8, 8))
    degree = {use.name: use.in_degree for use in trace(model, inputs).layers}
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 1, 8, 8, generator=generator)
    x = x / x.square().mean().sqrt()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n in degree}
    readout = layers.pop("readout.linear")
    seen: list[Tensor] = []
    model.get_submodule("readout").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for name, layer in layers.items():
        layer.register_forward_pre_hook(_draw(layer, degree[name], generator, seen))
    total = 0.0
    for _ in range(seeds):
        seen.clear()
        readout.weight.data = torch.randn(1, width, generator=generator) / math.sqrt(width)
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()
        with torch.no_grad():
            for layer in layers.values():
                if layer.weight.grad is not None:
                    layer.weight -= RATE / layer.in_features * layer.weight.grad
            model(x)
        total += float((seen[1] - seen[0]).detach().double().square().sum()) / RATE**2 / seeds
    return total


def _draw(layer: nn.Linear, degree: int, generator: torch.Generator, seen: list[Tensor]):  # type: ignore[no-untyped-def]
    """A hook that draws the layer's weight for the input it is about to read, in a seed's first forward."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not seen:
            std = (degree * args[0].detach().square().sum()).rsqrt()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * std

    return hook
