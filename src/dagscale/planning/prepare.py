"""From a model to a `Network`: traced, and with its initialisation worked out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from textwrap import shorten
from typing import Any

from torch import nn

from dagscale.errors import DagscaleError, PlanError
from dagscale.graph import Graph
from dagscale.inits import INITS
from dagscale.inits.base import DEFAULT
from dagscale.network import Network
from dagscale.planning.naming import Patterns, chosen_alone
from dagscale.planning.trained import by_design
from dagscale.shown import said
from dagscale.tracing import forward, trace
from dagscale.tracing.wrappers import known_names
from dagscale.training.batches import LABELS, shapes, to_model
from dagscale.training.recipe import Recipe
from dagscale.typed import MODEL, must_be


@contextmanager
def about(network: str) -> Iterator[None]:
    """Put the network's name in front of the message of an error that is raised inside."""
    try:
        yield
    except DagscaleError as error:
        error.args = (f"{network}: {error}",)
        raise


def traced(model: nn.Module, inputs: Any, recipe: Recipe, seed: int, **more: Any) -> Network:
    """One network, traced; its initialisation is still open.

    Args:
        inputs: example inputs; None for those of the recipe's first batch, see `shown_by`.

    Raises:
        PlanError: if there are neither inputs nor data.
        TraceError: if it cannot be traced; ForwardError if its forward raises.
    """
    must_be(model, nn.Module, MODEL, PlanError)
    if inputs is None:
        graph, inputs = shown_by(model, recipe)
    else:
        graph = trace(model, inputs, select=recipe.select)
    return Network(graph, recipe, model, inputs, seed, **more)


def shown_by(model: nn.Module, recipe: Recipe) -> tuple[Graph, Any]:
    """The graph, and the example inputs that show it: two examples of the recipe's first batch, or all of it where they
    do not lead to every parameter, as when none is routed to an expert.

    Raises:
        PlanError: if the recipe has no data.
        TraceError: if it cannot be traced.
    """
    graph, inputs = _shown(model, recipe, FEW)
    if unreached(graph) and recipe.example.size > FEW:
        again, whole = _shown(model, recipe, recipe.example.size)
        if len(unreached(again)) < len(unreached(graph)):
            return again, whole
    return graph, inputs


def _shown(model: nn.Module, recipe: Recipe, most: int) -> tuple[Graph, Any]:
    """The graph that ``most`` examples show, and these: with their labels where the model cannot do without, as an
    encoder–decoder that makes its decoder's input of them, or a model that returns nothing but its loss."""
    without = example_inputs(model, recipe, most)
    try:
        return trace(model, without, select=recipe.select), without
    except DagscaleError as error:
        whole = example_inputs(model, recipe, most, labels=True)
        if not isinstance(whole, Mapping) or whole.keys() == without.keys():
            cause = error.__cause__ or error.__context__
            if recipe.unpack is None and (
                isinstance(cause, TypeError) or (cause is not None and _OF_SIZES.search(said(cause)))
            ):
                error.args = (f"{error}; {_given(recipe, without)}",)
            raise
    return trace(model, whole, select=recipe.select), whole


_OF_SIZES = re.compile("shape|size|channels|dimension")


def _given(recipe: Recipe, inputs: Any) -> str:
    """What of a batch the model is given, and how to give it something else."""
    given = shorten(shapes(inputs), 120, placeholder=" …")
    given = f"of a batch of the data it is given {given}: if that is not what it takes, give the recipe"
    if recipe.step is not None:
        return (
            f"{given} unpack=lambda batch: (inputs, rest), with what the forward takes as inputs and all else that the "
            "training step needs as rest: it is called as step(model, optimizer, inputs, rest)"
        )
    such = ""
    if isinstance(inputs, Mapping) and len(inputs) > 1:
        x, y = list(inputs)[:2]
        such = f", as in (batch[{x!r}], batch[{y!r}])"
    return (
        f"{given} unpack=lambda batch: (inputs, target), with a tuple or a dict of the forward's arguments as "
        f"inputs{such}"
    )


def unreached(graph: Graph) -> list[str]:
    """Trainable parameters that the recorded forward did not use."""
    return [p.name for p in graph.parameters if p.trainable and not p.reached]


FEW = 2
"""Examples that are enough to trace most models."""


def example_inputs(model: nn.Module, recipe: Recipe, most: int = FEW, *, labels: bool = False) -> Any:
    """What the model is given in the recipe's first batch, a few examples of it.

    Args:
        labels: with labels that its forward says it can do without.

    Raises:
        PlanError: if the recipe has no data.
    """
    if recipe.data is None:
        raise PlanError("there are neither example inputs nor data: give plan(model, inputs, …) or data to the recipe")
    batch = recipe.example.first(most)
    inputs = batch.inputs
    if batch.labelled and not labels and isinstance(inputs, Mapping):
        accepted = inspect.signature(forward.unwrapped(model).forward).parameters
        optional = {key for key in LABELS if key in accepted and accepted[key].default is not inspect.Parameter.empty}
        inputs = {key: value for key, value in inputs.items() if key not in optional}
    return to_model(model, inputs)


def initialised(network: Network, init: str) -> Network:
    """The network with the distribution that the init gives to each parameter, those that are kept aside."""
    key = "/".join([init, "fills", *sorted(network.kept)])
    if key not in network.memo:
        fills = INITS[init](network)
        network.memo[key] = {name: fill for name, fill in fills.items() if name not in network.kept}
    return replace(network, init=init, fills=network.memo[key])


def keeping(
    network: Network, init: str, only: Patterns = None, keep: Patterns = None, reset: Patterns = None
) -> tuple[Network, set[str]]:
    """With the names of what is not to be initialised, and which of these are left out only for being so by design.

    Raises:
        PlanError: if a name or pattern means no parameter, or what they ask for contradicts itself, see `chosen_alone`,
            or the init, which draws nothing.
    """
    names = [p.name for p in network.graph.parameters]
    asked, kept = chosen_alone(known_names(names, network.model), only, keep, reset)
    if asked and not INITS[init].draws:
        what = "only" if only is not None else "reset"
        raise PlanError(
            f"init {init!r} draws nothing, and {what}= asks for a draw: name an init that draws, as init={DEFAULT!r}"
        )
    meant = set() if network.model is None else by_design(network.model, network.graph) - kept - asked
    return replace(network, kept=frozenset(kept | meant)), meant
