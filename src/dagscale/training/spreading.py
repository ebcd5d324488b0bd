"""Whether a loss lets its target spread over the output: (n, 1) against (n,) is (n, n) without a word from PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dagscale.tracing._torch import TorchDispatchMode

LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy")
"""Operators that compare element by element and are not marked as pointwise; shapes are spread before them."""


class Spreading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows an output and a target through a loss, up to the first operator that joins them element by element.

    Broadcasting aligns shapes at their ends. Where output and target differ in their number of dimensions, it lays the
    examples of the one along another dimension of the other: each example is then held against the targets of all.

    Attributes:
        found: shapes of the two where that happened, as (output, target); None if it did not.
    """

    def __init__(self, output: Any, target: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.examples = next((len(t) for t in _tensors(target) if t.ndim), 0)
        self.found: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._sides: dict[int, tuple[str, tuple[int, ...], Tensor]] = {}
        for side, value in (("output", output), ("target", target)):
            for tensor in _tensors(value):
                self._sides[id(tensor)] = side, tuple(tensor.shape), tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {id(t): self._sides[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._sides}
        sides = {side: shape for side, shape, _ in known.values()}
        if len(sides) == 2 and (torch.Tag.pointwise in func.tags or func._schema.name.split("::")[-1] in LOSSES):
            shapes = sides["output"], sides["target"]
            first = all(shape[:1] == (self.examples,) for shape in shapes)
            if self.found is None and self.examples > 1 and first and len(shapes[0]) != len(shapes[1]):
                self.found = shapes
        elif len(sides) == 1 and isinstance(out, Tensor):
            ((side, shape),) = sides.items()
            # An expansion alone aligns nothing yet: what counts is the shape that was spread.
            own = shape if func._schema.name == "aten::expand" else tuple(out.shape)
            self._sides[id(out)] = side, own, out
        return out


@contextmanager
def unwarned() -> Iterator[None]:
    """Within, PyTorch does not warn of a target of another size: a check that follows refuses it in one line. (Filters
    stay as they are: Python forgets which warnings it has shown where they change.)"""
    show = warnings.showwarning

    def others(message: Any, *args: Any, **kwargs: Any) -> None:
        if "Using a target size" not in str(message):
            show(message, *args, **kwargs)

    warnings.showwarning = others
    try:
        yield
    finally:
        warnings.showwarning = show


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]
