"""What one call of an operator is to the signals that enter it: pure functions of its meaning and its arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dagscale.errors import TraceError
from dagscale.graph import Layer
from dagscale.tracing.meaning import Kind, Meaning
from dagscale.tracing.memory import Region

Place = Literal["weight", "bias", ""]


@dataclass(slots=True)
class Node:
    """One recorded value.

    Attributes:
        kind: its operator's meaning, or ``source`` for model inputs and parameters.
        parents: the nodes whose values carry signal into it, in argument order, repeats kept.
        whole: for each parent, whether all of its elements were read.
        parts: for each parent, which part of it was read, where that is not all; ``()`` if nobody knows.
        params: node ids of parameter-derived values it uses; first the one in the weight's place.
        places: for each of ``params``, the argument's role: ``weight``, ``bias`` or ``""``.
        signal: whether it depends on a model input's values.
        discrete: an integer signal: token ids.
        axes: of a concat, the (stride, number) of its parts if they are equally long; of a pool, the
            (stride, size) of each dimension it adds up over.
        via: for each parent, the nodes passed on the way from it, where reduction has melted them in.
        name: the parameter's name for parameter sources.
        added: the number that an addition of a number adds.
        factor: the number that a product with a number multiplies by; 0 where nobody knows it.
    """

    id: int
    kind: Kind | str
    op: str
    module: str = ""
    parents: tuple[int, ...] = ()
    whole: tuple[bool, ...] = ()
    parts: tuple[Region | None, ...] = ()
    params: tuple[int, ...] = ()
    places: tuple[Place, ...] = ()
    layer: Layer | None = None
    axes: tuple[tuple[int, int], ...] = ()
    via: tuple[tuple[int, ...], ...] = ()
    elementwise: bool = False
    signal: bool = False
    discrete: bool = False
    name: str = ""
    shape: tuple[int, ...] = ()
    numel: int = 0
    added: float = 0.0
    factor: float = 1.0


Value = tuple[Node, Tensor]
"""A tensor and the node that wrote it."""
Known = Mapping[str, Sequence[Value]]
"""Argument → those of its tensors that depend on an input or a parameter."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What enters a node, and as what.

    Attributes:
        signals: the values whose signal it carries on.
        roles: the parameter-derived values it uses, each in its place.
        added: signals that a contraction adds to its result (``addmm``, ``baddbmm``).
    """

    kind: Kind
    layer: Layer | None
    signals: tuple[Value, ...]
    roles: tuple[tuple[Node, Place], ...]
    added: tuple[Value, ...] = ()

    @property
    def is_constant(self) -> bool:
        return not (self.signals or self.roles or self.added)


def read_call(meaning: Meaning, known: Known) -> Reading:
    """What an operator of ``meaning`` does with the values of ``known``.

    Raises:
        TraceError: if a weight meets a signal of another type: fake tensors multiply any two, real ones would not.
    """
    data = tuple(value for argument in meaning.data or known for value in known.get(argument, ()))
    reading = _of_weight(meaning, known, data) if meaning.kind == "weight" else _of_other(meaning, known, data)
    biases = known.get(meaning.bias, ()) if meaning.bias else ()
    roles = (*reading.roles, *((node, "bias") for node, _ in biases if not node.signal))
    return Reading(
        reading.kind,
        reading.layer,
        reading.signals,
        (*roles, *_rest(known, [node for node, _ in roles])),
        tuple(value for value in biases if value[0].signal),
    )


def read_everything(meaning: Meaning, known: Known) -> Reading:
    """The same where a custom function gives a gradient to what has none: all that enters is carried on."""
    values = [value for argument in known.values() for value in argument]
    kind: Kind = "activation" if meaning.kind == "flat" else "pass"
    return Reading(kind, None, tuple(v for v in values if v[0].signal), tuple(_rest(known, [])))


def no_gradient_passes(reading: Reading, results: Iterable[Tensor], code: bool = False) -> bool:
    """Comparisons, and indices computed from a signal.

    Args:
        code: whether booleans are a one-hot code of token ids.
    """
    results = list(results)
    if not reading.signals or floating(results) is not None:
        return False
    token_ids = all(node.discrete for node, _ in reading.signals)
    return not token_ids or (bool(results) and results[0].dtype is torch.bool and not code)


def floating(tensors: Iterable[Tensor]) -> Tensor | None:
    """The first that is of a floating or complex type."""
    return next((t for t in tensors if t.is_floating_point() or t.is_complex()), None)


def _of_weight(meaning: Meaning, known: Known, data: tuple[Value, ...]) -> Reading:
    """A contraction: a layer if a parameter stands on one side, a product if both sides carry signal."""
    signals = tuple(value for value in data if value[0].signal)
    weights = tuple(known.get(meaning.weight, ()))
    moving = tuple(value for value in weights if value[0].signal)
    if not moving and not signals:
        return _of_constants(meaning, data, weights)
    if moving and signals:
        return Reading("product", None, signals + moving, ())
    if moving:  # the parameter stands in the data's place, W @ x, or there is none
        roles = tuple((node, _WEIGHT) for node, _ in data)
        return Reading("weight", meaning.swapped, moving, roles) if data else Reading("pass", None, moving, ())
    if not weights:
        return Reading("pass", None, signals, ())  # a fixed linear map
    if meaning.data != ("indices",):
        _check_types(signals, weights)
    return Reading("weight", meaning.layer, signals, tuple((node, _WEIGHT) for node, _ in weights))


def _of_constants(meaning: Meaning, data: tuple[Value, ...], weights: tuple[Value, ...]) -> Reading:
    """A contraction without any signal: of a parameter with fixed numbers, or with what another one gives."""
    if not weights:
        return Reading("pass", meaning.swapped, (), ())
    apart = {node.id for node, _ in weights}.isdisjoint(node.id for node, _ in data)
    return Reading("weight", meaning.layer if apart else None, (), tuple((node, _WEIGHT) for node, _ in weights))


def _of_other(meaning: Meaning, known: Known, data: tuple[Value, ...]) -> Reading:
    """Anything else; of a norm, the gain stands in the weight's place."""
    gains = known.get(meaning.weight, ()) if meaning.weight else ()
    signals = tuple(value for value in data if value[0].signal)
    return Reading(meaning.kind, None, signals, tuple((node, _WEIGHT) for node, _ in gains))


_WEIGHT: Place = "weight"


def _rest(known: Known, named: list[Node]) -> list[tuple[Node, Place]]:
    """The parameter-derived values that have no place yet, each once."""
    seen = {node.id for node in named}
    roles: list[tuple[Node, Place]] = []
    for values in known.values():
        for node, _ in values:
            if not node.signal and node.id not in seen:
                seen.add(node.id)
                roles.append((node, ""))
    return roles


def _check_types(signals: Iterable[Value], weights: Iterable[Value]) -> None:
    for _, x in signals:
        for node, weight in weights:
            if x.dtype != weight.dtype and x.dtype in _CHECKED:
                name = node.name or node.module or "a computed weight"
                mend = (
                    "give floating-point values (x.float()); integer token ids belong to an embedding"
                    if not x.is_floating_point()
                    else f"cast the input (x.to({weight.dtype})) or the model"
                )
                raise TraceError(f"{name!r} is {weight.dtype} and meets a {x.dtype} signal: {mend}")


_CHECKED = frozenset({torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64,
                      torch.float16, torch.bfloat16})  # fmt: skip
