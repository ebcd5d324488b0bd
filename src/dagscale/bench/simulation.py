"""One SGD step on random weights, simulated: the ground truth of the closed-form laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.models import Dag, targets
from dagscale.tracing import trace

AFFECTS_TRAINING = False

STEP = 1e-3
"""The rate times the largest fan-in: small enough that the step's change is linear in it."""


def network(dag: Dag, width: int) -> tuple[nn.Module, Tensor]:
    """An MLP DAG that :func:`updates` takes, of 64 inputs and one output, and an example."""
    model, _ = targets.load(f"mlp:{dag}?order=pre&width={width}&classes=1&bias=false", input_shape=(1, 8, 8))
    return model, torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def updates(model: nn.Module, x: Tensor, *, seeds: int, seed: int = 0) -> list[float]:
    """``Σ_i Δz_i²`` at what ``model.readout`` takes, per unit rate, for each of many draws of the weights.

    Each layer is drawn when the forward first comes to it, with the variance that gives its output the second
    moment ``1/d_in``. The gradient of the output itself is stepped along (unit error); readout weights have squared
    norm 1 in the mean and are not updated.

    Args:
        model: linear layers without biases. Its weights are overwritten. ``model.readout`` ends it: an activation, and
            the layer that gives the one output.
        x: one example, brought to mean square 1.
        seeds: draws of the weights.
    """
    uses = trace(model, x).layers
    generator = torch.Generator().manual_seed(seed)
    x = x / x.square().mean().sqrt()
    layers: dict[str, Any] = {use.name: model.get_submodule(use.name) for use in uses}
    (readout,) = [layers.pop(use.name) for use in uses if use.readout]
    rate = STEP / max(layer.in_features for layer in layers.values())
    seen: list[Tensor] = []
    hooks = [model.get_submodule("readout").register_forward_pre_hook(lambda module, args: seen.append(args[0]))]
    for use in uses:
        if not use.readout:
            hooks.append(layers[use.name].register_forward_pre_hook(_draw(use.in_degree, generator, seen)))
    found: list[float] = []
    for _ in range(seeds):
        seen.clear()
        readout.weight.data = torch.randn(readout.weight.shape, generator=generator) * readout.in_features**-0.5
        model.zero_grad(set_to_none=True)
        model(x).sum().backward()
        with torch.no_grad():
            for layer in layers.values():
                if layer.weight.grad is not None:
                    layer.weight -= rate * layer.weight.grad
            model(x)
        found.append(float((seen[1] - seen[0]).detach().double().square().sum()) / rate**2)
    for hook in hooks:
        hook.remove()
    return found


def _draw(degree: int, generator: torch.Generator, seen: list[Tensor]) -> Callable[[Any, tuple[Tensor, ...]], None]:
    """A hook that draws the layer's weight for the input it is about to read, in a seed's first forward."""

    def hook(layer: Any, args: tuple[Tensor, ...]) -> None:
        if not seen:
            std = (degree * args[0].detach().square().sum()).rsqrt()
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * std

    return hook
