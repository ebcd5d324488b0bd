"""What one operator means to a signal: the vocabulary of the op registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    "flat",
    "unknown",
]
Arguments = Mapping[str, Any]
"""Schema argument name → the value given: tensors, lists of tensors, numbers."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """How an operator treats its arguments.

    Attributes:
        kind: ``pass`` carries a signal on unchanged in kind (casts, masks, constant factors, indexing);
            ``constant`` gives a value that does not depend on its arguments' values; ``flat`` one that depends on
            them stepwise, so that no gradient passes unless a custom function gives it one.
        data: the arguments that carry signal; ``()`` means every tensor argument.
        weight, bias: for ``weight`` ops the arguments in those places. For a ``norm``, the gain and bias.
        layer: fan and kernel of a ``weight`` op, where its weight is a parameter.
        swapped: the layer if the parameter stands in the data place instead (``W @ x``).
        dims: the dimension that a ``concat`` lays its parts along, or those that a ``pool`` adds up over.
        elementwise: a product or sum of equally placed elements, as opposed to a contraction.
        code: whether a result of booleans says which of several a token is, and so carries its signal on.
    """

    kind: Kind
    data: tuple[str, ...] = ()
    weight: str = ""
    bias: str = ""
    layer: Layer | None = None
    swapped: Layer | None = None
    dims: tuple[int, ...] = ()
    elementwise: bool = False
    code: bool = False


Rule = Callable[[Arguments], "Meaning | Spelling"]
"""A function that tells an operator's meaning from the arguments of one call."""


@dataclass(frozen=True, slots=True)
class Spelling:
    """An operator written in terms of simpler ones, which are recorded in its place.

    Attributes:
        function: takes the operator's arguments and returns what it returns; in-place operators are given
            theirs back by the recorder.
    """

    function: Callable[..., Any]


OPS: Registry[Meaning | Spelling | Rule] = Registry("op kind")
"""``namespace.operator`` (overloads share an entry) → its meaning, a spelling, or a rule."""


def means(meaning: Meaning, *operators: str) -> None:
    """Register ``operators`` (``"aten.relu"``) with a fixed meaning."""
    for operator in operators:
        OPS.add(operator)(meaning)


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Decorator: register a function of the call's arguments as the meaning of ``operators``.

    For your own custom op ``mylib::gated_relu(x, gate)``::

        from dagscale.tracing import Meaning, rule

        @rule("mylib.gated_relu")
        def gated_relu(arguments):
            return Meaning("product", data=("x", "gate"))
    """

    def put(function: Rule) -> Rule:
        for operator in operators:
            OPS.add(operator)(function)
        return function

    return put


def spelling(*operators: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: register a function of PyTorch operators that computes the same as ``operators``.

    The trace sees what the function does instead::

        @spelling("mylib.gated_relu")
        def gated_relu(x, gate):
            return x.relu() * gate
    """

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        for operator in operators:
            OPS.add(operator)(Spelling(function))
        return function

    return put
