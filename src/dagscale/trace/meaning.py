"""What one operator means to a signal: the vocabulary of the op registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dagscale.graph import Layer
from dagscale.registry import Registry

Kind = Literal[
    "weight",
    "activation",
    "norm",
    "pool",
    "pass",
    "sum",
    "product",
    "concat",
    "select",
    "constant",
    "unknown",
]
Arguments = Mapping[str, Any]
"""Schema argument name → the value given: tensors, lists of tensors, numbers."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """How an operator treats its arguments.

    Attributes:
        kind: ``pass`` carries a signal on unchanged in kind (casts, masks, constant factors, indexing);
            ``constant`` gives a value that does not depend on its arguments' values.
        data: the arguments that carry signal; ``()`` means every tensor argument.
        weight, bias: for ``weight`` ops the arguments in those places. For a ``norm``, the gain and bias.
        layer: fan and kernel of a ``weight`` op, where its weight is a parameter.
        swapped: the layer if the parameter stands in the data place instead (``W @ x``).
        dim: for ``concat`` that stacks along a new dimension, and for ``pool`` that adds up along one.
        elementwise: a product or sum of equally placed elements, as opposed to a contraction.
    """

    kind: Kind
    data: tuple[str, ...] = ()
    weight: str = ""
    bias: str = ""
    layer: Layer | None = None
    swapped: Layer | None = None
    dim: int | None = None
    elementwise: bool = False


Rule = Callable[[Arguments], Meaning]

OPS: Registry[Meaning | Rule] = Registry("op kind")
"""``namespace.operator`` (overloads share an entry) → its meaning, or a function of the call's arguments."""


def means(meaning: Meaning, *operators: str) -> None:
    """Register ``operators`` (``"aten.relu"``) with a fixed meaning."""
    for operator in operators:
        OPS.add(operator)(meaning)


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Decorator: register a function of the call's arguments as the meaning of ``operators``."""

    def put(function: Rule) -> Rule:
        for operator in operators:
            OPS.add(operator)(function)
        return function

    return put


def covers_storage(tensor: Tensor) -> bool:
    """Whether writing to ``tensor`` overwrites all of its storage."""
    return tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
