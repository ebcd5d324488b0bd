"""What the examples of a base's data are like, so that a plan can say that its target's are others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, default_collate

from dagscale.graph import Graph
from dagscale.training.batches import Rows
from dagscale.training.recipe import Recipe
from dagscale.typed import check_types

AFFECTS_RESULTS = False

TIMES = 2.0
"""By how many times sizes differ at least that are told as different."""


@dataclass(frozen=True)
class Part:
    """One tensor of an example.

    Attributes:
        name: what it is, such as ``input`` or ``target``.
        kind: of numbers.
        shape: without the dimension that counts examples.
        size: the root mean square of floating numbers; None where there is none above 0, or a single example.
        chance: the standard error of the logarithm of ``size``.
    """

    name: str
    kind: Literal["floating", "whole", "complex", "truth"]
    shape: tuple[int, ...]
    size: float | None = None
    chance: float = 0.0


@dataclass(frozen=True)
class Examples:
    """What the examples of some data are like, as their first batch shows them.

    Attributes:
        parts: the tensors of inputs and target.
        classes: the number of classes, where the target is class numbers.
        fixed: whether all batches have these shapes; else the lengths of sequences, for example, may differ.
    """

    parts: tuple[Part, ...]
    classes: int | None = None
    fixed: bool = True

    @classmethod
    def of(cls, recipe: Recipe, graph: Graph) -> Examples:
        """Those of a recipe's data, for a network that was traced on them."""
        batch = recipe.example
        parts = (*_parts("input", batch.inputs), *_parts("target", batch.target))
        loader, rows = recipe.data, isinstance(recipe.source, Rows)
        alike = isinstance(loader, DataLoader) and loader.batch_size and loader.collate_fn is default_collate
        return cls(parts, _classes(graph, batch.target), rows or bool(alike))

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Examples:
        """Those that ``dataclasses.asdict`` made plain data of.

        Raises:
            ValueError, TypeError, KeyError: if it made none such.
        """
        found = cls(**{**raw, "parts": tuple(Part(**{**p, "shape": tuple(p["shape"])}) for p in raw["parts"])})
        check_types(found)
        if not all((p.size is None or 0 < p.size < math.inf) and 0 <= p.chance < math.inf for p in found.parts):
            raise ValueError("a size of its examples is not positive")
        return found


def _parts(name: str, value: Any) -> Iterator[Part]:
    named = {f"{name} {key!r}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
    for own, one in named.items():
        tensors = [t for t in tree_leaves(one) if isinstance(t, Tensor)]
        yield from (_part(f"{own} {i + 1}" if len(tensors) > 1 else own, t) for i, t in enumerate(tensors))


def _part(name: str, value: Tensor) -> Part:
    if value.dtype == torch.bool:
        return Part(name, "truth", tuple(value.shape[1:]))
    if not value.is_floating_point():
        return Part(name, "complex" if value.is_complex() else "whole", tuple(value.shape[1:]))
    own = Part(name, "floating", tuple(value.shape[1:]))
    if value.layout != torch.strided or value.is_nested or value.ndim == 0 or len(value) < 2 or not value.numel():
        return own
    squares = value.detach().reshape(len(value), -1).float().norm(dim=1).double() ** 2 / value[0].numel()
    mean, spread = squares.mean().item(), squares.std().item()
    if not 0 < mean < math.inf:
        return own
    return replace(own, size=math.sqrt(mean), chance=spread / mean / math.sqrt(len(value)) / 2)


def _classes(graph: Graph, target: Any) -> int | None:
    """The size that outputs have and class numbers have not."""
    outputs = [v.shape for v in graph.vertices if v.kind == "output"]
    if not isinstance(target, Tensor) or target.is_floating_point() or len(outputs) != 1:
        return None
    left = list(outputs[0][1:])
    for size in target.shape[1:]:
        if size in left:
            left.remove(size)
    return left[0] if len(left) == 1 else None


def unlike(base: Examples, target: Examples) -> list[str]:
    """How the examples of two data differ; nothing where they are alike, up to another draw of the first batch."""
    if [part.name for part in base.parts] != [part.name for part in target.parts]:
        return [f"{_listed(base.parts)} there, {_listed(target.parts)} here"]
    found = []
    for one, other in zip(base.parts, target.parts, strict=True):
        if one.kind != other.kind:
            found.append(f"{one.name} of {one.kind} numbers there, of {other.kind} numbers here")
        elif not _same(one.shape, other.shape, fixed=base.fixed and target.fixed):
            found.append(f"{one.name} of shape {one.shape} there, {other.shape} here")
        elif one.size and other.size:
            apart = abs(math.log(other.size / one.size))
            if apart > math.log(TIMES) + 3 * math.hypot(one.chance, other.chance):
                found.append(f"{one.name} of root mean square {one.size:.3g} there, {other.size:.3g} here")
    if base.classes != target.classes and base.classes and target.classes:
        found.append(f"{base.classes} classes there, {target.classes} here")
    return found


def _same(one: Sequence[int], other: Sequence[int], *, fixed: bool) -> bool:
    if fixed or len(one) != len(other):
        return one == other
    return all(max(a, b) <= TIMES * min(a, b) for a, b in zip(one, other, strict=True))


def _listed(parts: Sequence[Part]) -> str:
    return " and ".join(part.name for part in parts) or "no tensor"


__all__ = ["Examples", "Part", "unlike"]
