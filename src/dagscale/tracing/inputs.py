"""Binds example inputs to the arguments of a forward, names them and copies them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from dagscale.errors import TraceError
from dagscale.tracing._torch import tree_leaves, tree_map
from dagscale.tracing.outputs import is_object, tensors_within
from dagscale.typed import MODEL, must_be


def bind_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for ``model``.

    A tuple or list holds positional arguments; a mapping whose keys are the forward's parameter names holds
    keyword arguments; anything else, another mapping or a packed sequence included, is the one positional argument.

    Raises:
        TraceError: if the forward does not take such arguments, or there is no tensor among them.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    must_be(model, nn.Module, MODEL, TraceError)
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        signature = None
    if isinstance(example_inputs, Mapping):
        args = (example_inputs,)
        if signature is not None and all(isinstance(k, str) for k in example_inputs):
            try:
                signature.bind(**example_inputs)
            except TypeError:
                pass
            else:
                args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)) and not isinstance(example_inputs, PackedSequence):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TraceError(
                f"the inputs do not fit {type(model).__name__}.forward{signature}: {error}; give {_fitting(signature)}"
            ) from None
    if not any(True for _ in _leaves("", (args, kwargs))):
        raise TraceError("there is no tensor among the inputs: give the model's example inputs, as torch tensors")
    return args, kwargs


def _fitting(signature: inspect.Signature) -> str:
    """What a forward takes, in words."""
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind not in _ANY_NUMBER]
    if any(p.kind is p.KEYWORD_ONLY for p in needed):
        return f"a dict of its arguments ({', '.join(p.name for p in needed)})"
    if len(needed) > 1:
        return f"a tuple of {len(needed)}, ({', '.join(p.name for p in needed)}), or a dict of these"
    return "a tensor, a tuple of positional arguments or a dict of keyword arguments"


_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_devices(model: nn.Module, inputs: Any) -> None:
    """One clear error where the inputs lie on another device than the whole model.

    Raises:
        TraceError: naming the input, both devices and the mend.
    """
    devices = {p.device for p in model.parameters()} | {b.device for b in model.buffers()}
    if len(devices) != 1:
        return
    device = next(iter(devices))
    for i, leaf in enumerate(tree_leaves(inputs)):
        if isinstance(leaf, Tensor) and leaf.device != device and leaf.dim() > 0:
            raise TraceError(
                f"input {i} is on {leaf.device} and the model on {device}: move it with .to({str(device)!r})"
            )


def named_leaves(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """The tensors among the inputs with a name each: ``input`` if there is one, else as the forward calls them."""
    named: dict[str, Any] = {f"input {i}": value for i, value in enumerate(args)} | kwargs
    with suppress(TypeError, ValueError):
        named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    leaves = [leaf for name, value in named.items() for leaf in _leaves(name, value)]
    return [("input", leaves[0][1])] if len(leaves) == 1 else leaves


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, PackedSequence):
        yield name, value.data
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}.{i}", item)
    else:
        for i, leaf in enumerate(tensors_within(value) if is_object(value) else tree_leaves(value)):
            if isinstance(leaf, Tensor):
                yield f"{name}.{i}", leaf


def copied(inputs: Any, stand_in: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    """``inputs`` with a tensor of its own for each place, so that a tensor given twice is two inputs.

    Dataclasses and other objects are copied with all the tensors that they hold. The lengths in a packed sequence
    are not values but shapes, and stay what they are.
    """

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            return stand_in(value).detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, PackedSequence):
            return value._replace(data=copy(value.data))
        if is_object(value):
            with suppress(Exception):  # what cannot be copied is given as it is
                return deepcopy(value, {id(t): copy(t) for t in tensors_within(value)})
        return value

    return tree_map(copy, inputs, is_leaf=lambda value: isinstance(value, PackedSequence))
