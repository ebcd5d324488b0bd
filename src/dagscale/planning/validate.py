"""Validates a request to plan, and rehearses its training, before anything expensive is measured."""

from __future__ import annotations

from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor

from dagscale.errors import ForwardError, PlanError, RecipeError
from dagscale.graph import Graph
from dagscale.network import Network
from dagscale.training import engine
from dagscale.training.batches import Batch, logits, shapes
from dagscale.training.probe import Probe
from dagscale.training.seeds import seeded


def check_whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int.

    Raises:
        PlanError: if it is no whole number, or below ``least``.
    """
    try:
        number = index(value)
    except TypeError:
        raise PlanError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise PlanError(f"{name} must be at least {least}, got {value}")
    return number


def check_kin(base: Graph, target: Graph) -> None:
    """Raise PlanError if no kind of layer, readouts aside, occurs in both networks.

    Kinds are convolution, dense and embedding; a 1×1 convolution is dense too. A rate says nothing of a network
    without a single layer like those it was found on.
    """
    kinds, others = _kinds(base), _kinds(target)
    if kinds and others and not kinds & others:
        raise PlanError(
            f"shares no layer with the target: it has {' and '.join(sorted(kinds))} layers, the target "
            f"{' and '.join(sorted(others))} ones; give a base of the same kind, narrower or shallower"
        )


def _kinds(graph: Graph) -> set[str]:
    """Kinds of the layers before the readout; of the readout where there are no others."""
    found: set[str] = set()
    for use in [use for use in graph.layers if not use.readout] or graph.layers:
        if "embedding" in use.op.name:
            found.add("embedding")
        elif use.layer.kernel:
            found |= {"convolution", "dense"} if prod(use.layer.kernel) == 1 else {"convolution"}
        else:
            found.add("dense")
    return found


def rehearse(network: Network) -> None:
    """One training step, as a measured law will take it, so that what cannot be measured is said at once.

    Raises:
        RecipeError: if data or loss do not fit, the loss says nothing, no trainable parameter has a part in it, or
            the backward or the optimiser's step raises.
        PlanError: if there are no data, or the model has no values.
        ForwardError: if the forward raises on the data.
    """
    with network.probe(network.seed) as probe:
        recipe = network.recipe
        if not probe.parameters:
            raise RecipeError("nothing to train: the loss does not depend on any trainable parameter; unfreeze some")
        batch = probe.batch().to(probe.model)
        with seeded(network.seed):
            if recipe.step is None:
                out = _output(probe, batch)
                check_loss(network, logits(out), batch.target, probe.loss(out, batch))
            engine.step(probe.model, probe.optimizer(), recipe, iter([batch] * recipe.accumulate))


def first_look(network: Network) -> None:
    """Forward and loss on the first batch, of a recipe whose loss can be had without its training step.

    Raises:
        RecipeError: if data or loss do not fit, or the loss says nothing; ForwardError if the forward raises.
    """
    recipe = network.recipe
    with network.probe(network.seed) as probe:
        batch = probe.batch().to(probe.model)
        if recipe.step is None:
            with torch.no_grad(), seeded(network.seed):
                out = _output(probe, batch)
                check_loss(network, logits(out), batch.target, probe.loss(out, batch))


def _output(probe: Probe, batch: Batch) -> Any:
    """What the model makes of a batch; a forward that raises says which inputs it was traced on."""
    try:
        return probe.output(batch)
    except ForwardError as error:
        error.args = (f"{error}; its example inputs are {shapes(probe.network.inputs)}",)
        raise


def check_loss(network: Network, out: Any, target: Any, value: Tensor) -> None:
    """Raise RecipeError where a loss cannot tell networks apart, or its target spreads over the output's shape."""
    if isinstance(out, Tensor) and isinstance(target, Tensor) and out.is_floating_point():
        both = {tuple(out.shape), tuple(target.shape)}
        if target.is_floating_point() and len(both) == 2 and len(out) > 1:
            n = len(out)
            if both == {(n, 1), (n,)}:
                raise RecipeError(
                    f"the output is {tuple(out.shape)} and the target {tuple(target.shape)}: together they spread to "
                    f"{(n, n)}; give both one shape, as in y.reshape(-1, 1)"
                )
        classes = out.ndim == 2 and out.shape[1] == 1 and value.item() == 0
        if classes and not bool((out.detach() == 0).all()):
            raise RecipeError(
                f"the loss is 0 whatever the output, which is one column, {tuple(out.shape)}: cross-entropy needs a "
                "column a class; for regression give loss=torch.nn.functional.mse_loss"
            )
