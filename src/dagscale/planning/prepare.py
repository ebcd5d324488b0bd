"""From a model to a `Network`: traced, and with its initialisation worked out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from dagscale.errors import DagscaleError, PlanError
from dagscale.inits import INITS
from dagscale.network import Network
from dagscale.tracing import forward, trace
from dagscale.training.batches import LABELS, to_model
from dagscale.training.recipe import Recipe


@contextmanager
def about(network: str) -> Iterator[None]:
    """Errors say which network is meant."""
    try:
        yield
    except DagscaleError as error:
        error.args = (f"{network}: {error}",)
        raise


def traced(model: nn.Module, inputs: Any, recipe: Recipe, seed: int, **more: Any) -> Network:
    """One network, traced; its initialisation is still open.

    Args:
        inputs: example inputs; None for those of the recipe's first batch.

    Raises:
        PlanError: if there are neither inputs nor data.
        TraceError: if it cannot be traced; ForwardError if its forward raises.
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"{type(model).__name__} is not a torch.nn.Module: give the model itself")
    if inputs is None:
        inputs = example_inputs(model, recipe)
    return Network(trace(model, inputs), recipe, model, inputs, seed, **more)


def example_inputs(model: nn.Module, recipe: Recipe) -> Any:
    """What the model is given in the recipe's first batch, two examples of it, without labels that it can do without.

    Raises:
        PlanError: if the recipe has no data.
    """
    if recipe.data is None:
        raise PlanError("there are neither example inputs nor data: give plan(model, inputs, …) or data to the recipe")
    batch = recipe.example.first(2)
    inputs = batch.inputs
    if batch.labelled and isinstance(inputs, Mapping):
        accepted = inspect.signature(forward.unwrapped(model).forward).parameters
        optional = {key for key in LABELS if key in accepted and accepted[key].default is not inspect.Parameter.empty}
        inputs = {key: value for key, value in inputs.items() if key not in optional}
    return to_model(model, inputs)


def initialised(network: Network, init: str) -> Network:
    """With what the init gives each parameter; worked out once a network."""
    key = f"{init}/fills"
    if key not in network.memo:
        network.memo[key] = INITS[init](network)
    return replace(network, init=init, fills=network.memo[key])


__all__ = ["about", "example_inputs", "initialised", "traced"]
