"""Validates a request to plan, and rehearses its training, before anything expensive is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from math import inf, isnan, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from dagscale.errors import DagscaleError, ForwardError, PlanError, RecipeError
from dagscale.graph import Graph
from dagscale.graph.attention import find_attention
from dagscale.network import Network
from dagscale.tracing.make import listed
from dagscale.tracing.state import State
from dagscale.training import engine
from dagscale.training.batches import Batch, all_finite, dense, logits, shapes
from dagscale.training.draws import Fill
from dagscale.training.probe import Probe
from dagscale.training.recipe import Recipe, no_classes
from dagscale.training.seeds import seeded
from dagscale.training.spreading import Spreading, unwarned


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


def other_kind(base: Graph, target: Graph) -> str:
    """A note on what one of the two networks is made of and the other is not; empty if there is no such thing."""
    own, known = _parts(target), _parts(base)
    apart = [
        f"the {name} has {', '.join(sorted(more))}, and the {other} none"
        for name, other, more in (("target", "base", own - known), ("base", "target", known - own))
        if more
    ]
    if not apart:
        return ""
    return f"{'; '.join(apart)}: the rate of another kind of network says little, give a base of the target's own"


def _parts(graph: Graph) -> set[str]:
    """What tells kinds of network apart: convolutions over more than one place, tables, norms and attention."""
    found = {"tables that are looked up in"} if any(use.op.looks_up for use in graph.layers) else set()
    if any(prod(use.layer.kernel) > 1 for use in graph.layers):
        found.add("convolutions")
    if any(op.normalises for edge, live in zip(graph.edges, graph.live, strict=True) if live for op in edge.ops):
        found.add("norms")
    return found | ({"attention"} if find_attention(graph) else set())


def _kinds(graph: Graph) -> set[str]:
    """Kinds of the layers before the readout; of the readout where there are no others."""
    found: set[str] = set()
    for use in [use for use in graph.layers if not use.readout] or graph.layers:
        if use.op.looks_up:
            found.add("embedding")
        elif use.layer.kernel:
            found |= {"convolution", "dense"} if prod(use.layer.kernel) == 1 else {"convolution"}
        else:
            found.add("dense")
    return found


LOOKS = 4
"""Batches without any gradient after which a loss is taken to say nothing."""


def rehearse(network: Network) -> None:
    """One training step, as a measured law will take it, so that what cannot be measured is said at once.

    Raises:
        RecipeError: if data or loss do not fit, no trainable parameter has a part in the loss, or the backward or the
            optimiser's step raises.
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
                _checked_loss(probe, _output(probe, batch), batch)
            engine.step(probe.model, probe.optimizer(), recipe, iter([batch] * recipe.accumulate))


def check_gradient(network: Network) -> tuple[str, ...]:
    """Forward, loss and backward at initialisation, on as many batches as it takes to see a gradient.

    Returns:
        Notes: that the gradient reaches parameters that are the loss's own, such as the class vectors of ArcFace; that
        targets are far larger or smaller than outputs (`_far`); that the init begins at a far higher loss than the
        model's own weights (`_begun`).

    Raises:
        RecipeError: if data or loss do not fit, or no weight has a gradient on any of ``LOOKS`` batches: a training run
            would come to the same at every rate.
        ForwardError: if the forward raises.
    """
    if network.recipe.step is not None:  # its loss cannot be had without stepping
        return ()
    with network.probe(network.seed) as probe:
        beside = _beside(probe)
        values = []
        for _ in range(LOOKS):
            batch = probe.batch().to(probe.model)
            with seeded(network.seed):
                output = _output(probe, batch)
                value = _checked_loss(probe, output, batch)
                far = _far(probe, output, batch, value.item())
                engine.backward(value)
            if any(p.grad is not None and bool(dense(p.grad).any()) for p in probe.parameters.values()):
                return (*_noted(beside), *(far or _begun(probe, batch, value.item())))
            values.append(value.item())
        taken = (p for p in probe.parameters.values() if p.grad is None)
        hooked = any(getattr(p, "_post_accumulate_grad_hooks", None) for p in taken)
    if hooked:
        raise RecipeError(
            "hooks on the parameters take the gradients away (register_post_accumulate_grad_hook), so that no rate "
            "reaches the training: take them off, and give the optimiser that steps in them to dagscale"
        )
    if any(map(isnan, values)):
        raise RecipeError(
            "the loss is not a number and has no gradient: it is a mean over nothing, as where all labels of a batch "
            "are ignored, or is 0/0; check loss and targets"
        )
    what = (
        f"{values[0]:.4g} on every batch"
        if len(set(values)) == 1
        else f"between {min(values):.4g} and {max(values):.4g}"
    )
    raise RecipeError(
        f"the loss is {what} and has no gradient: it does not depend on the weights, as softmax over one column, "
        "rounding or a threshold does not; check loss, targets and the model's last layer"
    )


def _beside(probe: Probe) -> list[nn.Parameter]:
    """Parameters that the loss leads to and the model has not, without gradients until its copy is given back."""
    own = {id(p) for p in probe.model.parameters()}
    met = State(probe.recipe.loss).tensors
    found = [p for p in met if isinstance(p, nn.Parameter) and p.requires_grad and id(p) not in own]
    for parameter in found:
        parameter.grad = None
    return found


def _noted(beside: Sequence[nn.Parameter]) -> tuple[str, ...]:
    shapes = [str(tuple(p.shape)) for p in beside if p.grad is not None]
    if not shapes:
        return ()
    return (
        f"the loss has parameters of its own, of shape {listed(shapes)}: no run here trains them, and the plan has "
        "none of them; freeze them, or make loss and model one module, which returns the loss, to have them trained",
    )


FAR = 10.0
"""How many times as large as 1 and as the outputs, or as small as both, targets are at least that a note says to
standardise. An error says so of inputs that are as far from 1."""


def _far(probe: Probe, output: Any, batch: Batch, before: float) -> tuple[str, ...]:
    """A note, if outputs should come to equal targets that are far larger, or far smaller, than they begin.

    Whether they should is asked of the loss itself: on the targets in place of the outputs it is next to nothing. So
    it is with squared and absolute errors, and not where outputs are the logarithms of counts.

    Args:
        before: the loss on the outputs.
    """
    target = batch.target
    if not (isinstance(output, Tensor) and isinstance(target, Tensor) and output.shape == target.shape):
        return ()
    if not output.is_floating_point() or target.is_complex():
        return ()
    own, meant = (value.detach().double().square().mean().sqrt().item() for value in (output, target))
    if not (FAR * max(1.0, own) < meant < inf or 0 < FAR * meant < min(1.0, own)):
        return ()
    try:
        with torch.no_grad():
            reached = probe.loss(target.to(output), batch).item()
    except DagscaleError:
        return ()
    if not 0 <= reached < 1e-3 * before:
        return ()
    return (
        f"targets are {meant:.3g} in root mean square, far from where outputs begin: training goes into reaching that "
        "size, at a rate that carries over badly; standardise them, (y - y.mean(0)) / y.std(0), and undo it on the "
        "outputs",
    )


def _begun(probe: Probe, batch: Batch, loss: float) -> tuple[str, ...]:
    """A note, if the loss begins ``FAR`` times as high under one of ``DRAWS`` draws of the init as under another, and
    as from the model's own weights.

    Each layer's output then has the size that the init wants, and what the model makes of outputs has not: it takes
    them for logarithms of scales, for weights, or adds them to itself again and again. Then some draws explode. Else
    the highest is up to 5 times the lowest. A model that is trained already begins lower than any draw, which says
    nothing of the init.
    """
    network = probe.network
    if not network.fills:
        return ()

    def first(fills: Mapping[str, Fill], seed: int) -> float:
        probe.copied.reset(fills, seed)
        with seeded(seed):
            return probe.loss(probe.output(batch), batch).item()

    try:
        own = first({}, network.seed)
        draws = [loss, *(first(network.fills, network.seed + k) for k in range(1, DRAWS))]
    except DagscaleError:
        return ()
    low, high = (pick(draws, key=lambda value: inf if isnan(value) else value) for pick in (min, max))
    if high < FAR * max(abs(own), abs(low)) or not 0 < abs(own) < inf:
        return ()
    return (
        f"under init {network.init!r} the loss begins between {low:.3g} and {high:.3g}, depending on the draw, and at "
        f"{own:.3g} from the weights that the model came with: this init makes some networks of this kind explode; "
        f"search the base with init=[{network.init!r}, 'keep'], which tries both",
    )


DRAWS = 4
"""Draws of the weights that the loss is asked under before the first step."""


def unscaled(recipe: Recipe) -> str:
    """For a search that failed: how large the inputs are and what to do about it, where that is far from 1."""
    found = [x for x in tree_leaves(recipe.example.inputs) if isinstance(x, Tensor) and x.is_floating_point()]
    sizes = [dense(x).double().square().mean().sqrt().item() for x in found]
    far = [size for size in sizes if 0 < size < inf and not 1 / FAR <= size <= FAR]
    if not far:
        return ""
    return f"inputs are {far[0]:.3g} in root mean square, far from 1: standardise them, (x - x.mean()) / x.std(); else "


SEEN = 1000
"""Batches at most that are looked at for what is no number."""


def spoilt(recipe: Recipe) -> str:
    """For a search that failed: which batch holds what is no number, and what to do about it; mostly empty."""
    count = min(recipe.total_steps * recipe.accumulate, SEEN)
    for k, batch in enumerate(islice(recipe.source.batches(0), count)):
        if not all_finite([t for t in tree_leaves((batch.inputs, batch.target)) if isinstance(t, Tensor)]):
            return f"batch {k + 1} holds NaN or infinite values: clean the data, or let the loss leave them out"
    return ""


def _output(probe: Probe, batch: Batch) -> Any:
    """What the model makes of a batch; a forward that raises says which inputs it was traced on."""
    try:
        return probe.output(batch)
    except ForwardError as error:
        error.args = (f"{error}; its example inputs are {shapes(probe.network.inputs)}",)
        raise


def _checked_loss(probe: Probe, output: Any, batch: Batch) -> Tensor:
    """The loss on a batch's output.

    Raises:
        RecipeError: where it cannot tell networks apart, or its target spreads over the output's shape.
    """
    with unwarned(), Spreading(output, batch.target) as spreading:
        value = probe.loss(output, batch)
    if spreading.found is not None:
        out, target = spreading.found
        raise RecipeError(
            f"the output is {out} and the target {target}: together they spread to {_joined(out, target)}; give both "
            "one shape, as in y.reshape(-1, 1)"
        )
    out = logits(output)
    by_class = probe.recipe.loss is cross_entropy or isinstance(probe.recipe.loss, nn.CrossEntropyLoss)
    both = isinstance(out, Tensor) and isinstance(batch.target, Tensor)
    if by_class and both and (text := no_classes(out, batch.target)):
        raise RecipeError(text)
    column = isinstance(out, Tensor) and out.ndim >= 2 and out.shape[1] == 1
    if column and value.item() == 0 and bool((out != 0).any()):
        raise RecipeError(
            f"the loss is 0 whatever the output, which is one column, {tuple(out.shape)}: cross-entropy needs a "
            "column a class; for regression give loss=torch.nn.functional.mse_loss"
        )
    return value


def _joined(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return tuple(torch.broadcast_shapes(a, b))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return max(a, b, key=len)
