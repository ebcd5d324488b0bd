"""Values that come from outside are of the kind that they should be."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

AFFECTS_RESULTS = False

MODEL = "a torch.nn.Module: give the model itself"
PLAN = "a plan: give what dagscale.plan returned"
OPTIMIZER = "a torch optimizer: give what plan.optimizer(model) returned"
"""For `must_be`."""


def check_types(value: Any) -> None:
    """See that every field of a dataclass, and of those in it, is of the type that it is annotated with.

    Integers have at most 64 bits; no float is NaN, and truth values are no numbers.

    Raises:
        ValueError: if one is not, with its name.
    """
    hints = get_type_hints(type(value))
    for field in fields(value):
        own = getattr(value, field.name)
        if not _fits(own, hints[field.name]):
            raise ValueError(f"{field.name} of {type(value).__name__} cannot be {own!r}")


def must_be(value: object, kind: type | tuple[type, ...], what: str, error: type[Exception]) -> None:
    """See that an argument is of its kind, since one in another's place would fail somewhere deep.

    Args:
        what: ends the sentence that ``error`` is raised with, "X is not …", and says what to give.
    """
    if not isinstance(value, kind):
        raise error(f"{type(value).__name__} is not {what}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is tuple:
        same = inner[-1] is ...
        wanted = [inner[0]] * len(value) if same and isinstance(value, tuple) else list(inner)
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_fits, value, wanted))
    if kind in (dict, Mapping):
        return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float("inf")
    if hint is int:
        return type(value) is int and value.bit_length() < 64
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        check_types(value)
    return isinstance(value, hint if isinstance(hint, type) else object)
