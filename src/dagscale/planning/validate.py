"""What is said about a request to plan before anything is measured for it."""

from __future__ import annotations

import copy
from math import prod
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dagscale.errors import PlanError, SearchError
from dagscale.graph import Graph
from dagscale.network import Subject
from dagscale.tracing import forward
from dagscale.training.batches import Inputs, check_finite, checked
from dagscale.training.probe import Probe

HALF = (torch.float16, torch.bfloat16)


def check_data(data: Any) -> tuple[Inputs, Tensor] | None:
    """``(x, y)``, if there is data.

    Raises:
        PlanError: if the examples cannot be measured on.
    """
    if data is None:
        return None
    try:
        x, y = checked(data)
        check_finite(x, y)
    except SearchError as error:
        raise PlanError(str(error)) from None
    return x, y


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


def in_float32(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A copy in float32 of what is in half precision, to be measured; itself where nothing is.

    Squares of signals, curvatures and the small steps of a measurement need more digits than bfloat16 has and
    more range than float16 has.
    """
    held = (*model.parameters(), *model.buffers())
    if any(t.is_meta or forward.is_sharded(t) for t in held) or not any(t.dtype in HALF for t in held):
        return model, inputs
    model = copy.deepcopy(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()
    return model, tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.dtype in HALF else v, inputs)


def rehearse(subject: Subject) -> None:
    """One training step, as a measured law will take it, so that what cannot be measured is said at once.

    Raises:
        PlanError: if data or loss are missing or do not fit, no trainable parameter has a part in the loss, or the
            backward or the optimiser's step raises.
        ForwardError: if the forward raises on the data.
    """
    probe = Probe(subject, subject.seed)
    probe.model.train()
    x, y = probe.batch(subject.batch_size)
    with forward.unchanged_random_state():
        value = probe.loss(probe.output(x), y)
    if not value.requires_grad:
        raise PlanError(
            "the loss does not depend on any trainable parameter: compute it from the model's output, without "
            ".item() or .detach(), and leave some parameters unfrozen"
        )
    try:
        value.backward()  # type: ignore[no-untyped-call]
        probe.optimizer().step()
    except RuntimeError as error:
        text = next(iter(str(error).strip().splitlines()), "")
        raise PlanError(f"a training step with {subject.optimizer} raised {type(error).__name__}: {text}") from error
