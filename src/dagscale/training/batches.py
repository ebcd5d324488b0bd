"""Examples to train and measure on: what a model takes, and labels, by batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from dagscale.errors import SearchError
from dagscale.tracing.forward import bind_inputs

Inputs = Any
"""What a model takes: a tensor, a tuple of positional arguments or a dict of keyword arguments, of tensors whose first
dimension counts examples."""


class Examples(Protocol):
    """Anything with inputs and labels, such as `dagscale.bench.data.Dataset`."""

    @property
    def x(self) -> Inputs:
        """Inputs, (n, …) each."""

    @property
    def y(self) -> Tensor:
        """Labels or targets, (n, …)."""


Data = Examples | tuple[Inputs, Tensor] | list[Any]
"""A data set, or ``(x, y)``."""


def checked(data: Data) -> tuple[Inputs, Tensor]:
    """``(x, y)``, if it can be trained on; a mapping of inputs as a dict, a list of them as a tuple.

    Raises:
        SearchError: if it cannot.
    """
    pair = data if isinstance(data, (tuple, list)) else (getattr(data, "x", None), getattr(data, "y", None))
    if len(pair) != 2 or pair[0] is None:
        raise SearchError(f"data must be two tensors, data=(x, y), got {type(data).__name__}")
    x, y = pair
    x = dict(x) if isinstance(x, Mapping) else tuple(x) if isinstance(x, list) else x
    leaves = tree_leaves(x)
    if not (leaves and all(isinstance(leaf, Tensor) for leaf in leaves) and isinstance(y, Tensor)):
        raise SearchError(
            f"data must be two tensors, x and y, got {type(x).__name__} and {type(y).__name__}; x may also be a tuple "
            "or a dict of tensors, as the model takes them"
        )
    if any(t.ndim == 0 for t in (*leaves, y)) or any(len(leaf) != len(y) for leaf in leaves):
        raise SearchError(f"x and y must have one length, got shapes {shapes(x)} and {tuple(y.shape)}")
    if len(y) < 2:
        raise SearchError(f"at least 2 examples are needed, got {len(y)}")
    for leaf in leaves:
        alone = isinstance(x, Tensor) and not leaf.is_floating_point()  # among several, one may be a mask
        if (leaf.dtype == torch.uint8 and leaf.ndim > 2) or (
            alone and (leaf.ndim > 2 or leaf.dtype in (torch.uint8, torch.bool))
        ):
            raise SearchError(
                f"x of shape {tuple(leaf.shape)} holds {leaf.dtype}: make images floating, as in x.float() / 255"
            )
    return x, y


def check_finite(x: Inputs, y: Tensor) -> None:
    """Raise SearchError where there are NaN or infinite values."""
    for name, values in (("x", tree_leaves(x)), ("y", [y])):
        if any(t.is_floating_point() and not bool(t.isfinite().all()) for t in values):
            raise SearchError(f"{name} holds NaN or infinite values: clean the data first")


def take(values: Inputs, rows: Tensor | slice) -> Inputs:
    """These examples, on the device they are on."""
    return each(lambda t: t[rows.to(t.device) if isinstance(rows, Tensor) else rows], values)


def to_model(model: nn.Module, values: Inputs) -> Inputs:
    """``values`` on the model's device and, if floating, in its floating type."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return values
    return each(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), values)


def output(model: nn.Module, x: Inputs) -> Any:
    """What the model makes of them: a tensor where that is its output, its ``.logits`` or its ``["logits"]``."""
    if isinstance(x, Tensor):
        return logits(model(x))
    args, kwargs = bind_inputs(model, x)
    return logits(model(*args, **kwargs))


def logits(output: Any) -> Any:
    """The tensor in a model's output: itself, ``output.logits``, ``output["logits"]``; else the output as it is."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    return getattr(output, "logits", output)


def shapes(values: Any) -> str:
    """Shapes of the tensors, for messages: ``(8, 3)`` or ``{'ids': (8, 5), 'mask': (8, 5)}``."""
    return str(tree_map(lambda v: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__, values))


def typed(values: Any) -> str:
    """Shape and type of a tensor, shapes of several, for messages: ``(8, 3) torch.float32``."""
    return f"{shapes(values)} {values.dtype}" if isinstance(values, Tensor) else shapes(values)


def each(function: Callable[[Tensor], Any], values: Any) -> Any:
    """The same structure, a function's value in place of every tensor."""
    if isinstance(values, Tensor):
        return function(values)
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, values)
