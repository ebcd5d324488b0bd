"""Finds the tensors in what a forward returns, however deep they are kept."""

from __future__ import annotations

import enum
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dagscale.tracing._torch import tree_leaves

_PLAIN = (
    Tensor, nn.Module, type, type(None), bool, int, float, complex, str, bytes, enum.Enum, slice, torch.dtype,
    torch.device, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType,
)  # fmt: skip


def output_tensors(value: Any) -> list[Tensor]:
    """The tensors in whatever a forward returned: nested containers, dataclasses, mappings.

    Objects of other kinds are not looked into (:func:`objects_among` gives them).
    """
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def objects_among(value: Any) -> list[Any]:
    """The objects in whatever a forward returned that may keep tensors of their own: distributions, caches."""
    return [leaf for leaf in _leaves(value) if is_object(leaf)]


def is_object(value: Any) -> bool:
    """Whether it is something that may hold more: neither a container, nor a plain value, nor code."""
    leaves = tree_leaves(value)
    return not isinstance(value, _PLAIN) and len(leaves) == 1 and leaves[0] is value


def tensors_within(value: Any) -> list[Tensor]:
    """The tensors that an object keeps in its attributes, theirs, and containers in them, each once."""
    found: dict[int, Tensor] = {}
    seen: dict[int, Any] = {}
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found[id(item)] = item
        elif isinstance(item, Mapping):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack.extend(reversed(list(item)))
        elif not isinstance(item, (nn.Module, type, types.ModuleType, types.FunctionType, types.MethodType)):
            slots = [n for c in type(item).__mro__ for n in _slots(c)]
            stack.extend(reversed([getattr(item, name, None) for name in slots]))
            stack.extend(reversed(list(getattr(item, "__dict__", {}).values())))
    return list(found.values())


def _slots(owner: type) -> list[str]:
    return [n for n, v in vars(owner).items() if type(v) is types.MemberDescriptorType]


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        items: Any = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    elif not isinstance(value, type) and hasattr(value, "__dataclass_fields__"):
        items = [getattr(value, name, None) for name in value.__dataclass_fields__]
    else:
        leaves = tree_leaves(value)
        if len(leaves) == 1 and leaves[0] is value:
            yield value
            return
        items = leaves
    for item in items:
        yield from _leaves(item)
