"""What a model's code can change besides the values of tensors: found by walking from the model, and put back."""

from __future__ import annotations

import argparse
import collections
import contextvars
import functools
import itertools
import random
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from dagscale.tracing._torch import is_plain, storage_key, unseen
from dagscale.tracing.generators import GENERATORS, numbers, put_numbers
from dagscale.tracing.wrappers import is_sharded

MOST = 200_000
"""So many objects are looked at; behind them lie the user's data, not a model's bookkeeping."""
LARGE = 10_000
"""Of a longer container, the first so many items are followed. All are kept."""

LARGEST_ARRAY = 1 << 26
"""Bytes of a NumPy array beyond which it is taken for data: it is not kept."""

_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Tables of hooks that a tensor keeps in C++, and not among its attributes."""

_ABSENT = object()
_FOREIGN = (sys.stdlib_module_names | {"torch", "numpy", "functorch", "builtins", "pytest", "_pytest"}) - {"__main__"}
"""Packages whose own functions and objects are taken to keep no model's state. pytest is met wherever code under test
asserts something, as it rewrites that; behind it lies all that is loaded."""
_MODELS = ("dagscale.models", "dagscale.bench")
"""Of our own modules, those with models and data, which are looked into like a user's. What the others keep, such as
the list of what is lent at present, is no model's state, and would lead from one model to every other."""
_PLAIN = (collections.UserDict, collections.UserList, types.SimpleNamespace, argparse.Namespace,
          weakref.WeakKeyDictionary, weakref.WeakValueDictionary, threading.local)  # fmt: skip
_LOOKED_INTO = (nn.Module, torch.optim.Optimizer, Dataset, Sampler, DataLoader, *_PLAIN)
"""Of the classes of such packages, those whose objects are looked into all the same."""
_ATOMS = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, range, slice, type(Ellipsis), types.ModuleType,
        torch.dtype, torch.device, torch.Size, torch.layout, types.CodeType, types.BuiltinFunctionType,
        types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType,
        types.MemberDescriptorType,
    }
)  # fmt: skip
_CONTAINERS = frozenset({dict, list, set, collections.OrderedDict, collections.deque, collections.defaultdict})
_CACHE = type(functools.lru_cache(lambda: None))
_ALIASES = (property, staticmethod, classmethod, functools.partial, functools.partialmethod, functools.cached_property)

Put = Callable[[Any, Any], None]


class State:
    """Everything mutable that ``roots`` lead to, as it is now.

    Followed are attributes (slots, class variables and attributes of tensors among them), containers, closures,
    default arguments, hooks, and those global variables that the code of the functions met on the way names.

    Args:
        roots: where the walk begins.
        values: whether tensors and arrays are looked at too.

    Attributes:
        tensors: the tensors met, each once.
        generators: the generators of random numbers met, each once.
    """

    def __init__(self, *roots: Any, values: bool = True) -> None:
        self.tensors: list[Tensor] = []
        self.generators: list[Any] = []
        self._values = values
        self._saved: list[tuple[Put, Any, Any]] = []
        self._empty: list[Any] = []
        self._named: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._spoken: set[str] = {"forward"}
        self._unspoken: dict[str, list[Any]] = {}
        self._visits: dict[type, Callable[[Any], None] | None] = {}
        self._stack: list[Any] = [*roots]
        self._seen: dict[int, Any] = {}  # keeps what is seen alive, so that no id comes twice
        while self._stack and len(self._seen) < MOST:
            self._visit(self._stack.pop())
        del self._stack, self._unspoken, self._visits, self._seen

    def restore(self) -> None:
        """Put everything back that has changed. Calling it twice does no harm."""
        for container in self._empty:
            if container:
                container.clear()
        for variables, values in self._named.values():
            _put_variables(variables, values)
        for put, holder, kept in self._saved:
            put(holder, kept)

    # -- the walk -----------------------------------------------------------------------------------------

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if kind not in self._visits:
            self._visits[kind] = self._visitor(kind)
        visit = self._visits[kind]
        if visit is not None:
            visit(value)

    def _visitor(self, kind: type) -> Callable[[Any], None] | None:
        """How objects of this type are looked into; None for those that are not."""
        for types_, visit in (
            (Tensor, self._tensor if self._values else None),
            ((dict, list, set, collections.deque), self._container),
            ((tuple, frozenset), self._stack.extend),
            (types.FunctionType, self._function),
            (types.MethodType, lambda method: self._stack.extend((method.__self__, method.__func__))),
            (types.CellType, self._cell),
            (_CACHE, lambda cache: self._stack.append(cache.__wrapped__)),
            (_ALIASES, self._alias),
            (type, self._class),
            (torch.jit.ScriptModule, self._scripted),
        ):
            if issubclass(kind, types_):
                return visit
        if issubclass(kind, tuple(GENERATORS)):
            return None if issubclass(kind, random.SystemRandom) else self._generator  # which has no state
        for type_, ways in _STATEFUL.items():
            if issubclass(kind, type_):
                return functools.partial(self._stateful, *ways) if self._values else None
        users = not _is_foreign(kind.__module__) or issubclass(kind, _LOOKED_INTO)
        return self._instance if users else None

    def _container(self, container: Any) -> None:
        if type(container) in _CONTAINERS and not container:  # in this order: a user's own __len__ may do anything
            self._empty.append(container)
            return
        if isinstance(container, dict):
            items = _items(container)
            self._saved.append((_put_items, container, items))
            self._stack.extend(itertools.islice(items.values(), LARGE))
        else:
            elements = _elements(container)
            self._saved.append((_put_elements, container, elements))
            self._stack.extend(elements[:LARGE])
        if type(container) not in _CONTAINERS:
            self._instance(container)

    def _instance(self, owner: Any) -> None:
        attributes = _attributes(owner)
        if attributes is not None:
            self._saved.append((_put_items, attributes, dict(attributes)))
            for value in attributes.values():
                kind = type(value)
                if kind in _ATOMS:
                    continue
                if kind in _CONTAINERS and not value:  # by far the most: a module's tables of hooks
                    self._empty.append(value)
                else:
                    self._stack.append(value)
        slots = [n for c in type(owner).__mro__ for n in _names_of_slots(c)]
        if slots:
            values = {name: getattr(owner, name, _ABSENT) for name in slots}
            self._saved.append((_put_attributes, owner, values))
            self._stack.extend(values.values())
        self._stack.append(type(owner))

    def _scripted(self, module: Any) -> None:
        """What a compiled module keeps in C++, the flag of training mode among it; numbers and lists come as copies."""
        values = {name: module._c.getattr(name) for name in module._concrete_type.get_attributes()}
        self._saved.append((_put_scripted, module, values))
        self._stack.extend(values.values())
        self._instance(module)

    def _class(self, owner: type) -> None:
        """Class variables; of methods, those whose name some code speaks."""
        if _is_foreign(owner.__module__):
            return
        variables = {name: value for name, value in vars(owner).items() if not _is_dunder(name)}
        self._saved.append((_put_class, owner, variables))
        constructor = () if issubclass(owner, nn.Module) else ("__init__", "__new__")
        for name, value in vars(owner).items():
            if not isinstance(value, (types.FunctionType, _CACHE, *_ALIASES)):
                if not _is_dunder(name):
                    self._stack.append(value)
            elif name in self._spoken or name in constructor or (_is_dunder(name) and not name.startswith("__init")):
                self._stack.append(value)
            else:
                self._unspoken.setdefault(name, []).append(value)
        self._stack.extend(owner.__bases__)

    def _function(self, function: Any) -> None:
        self._stack.extend(function.__closure__ or ())
        self._stack.extend(function.__defaults__ or ())
        if function.__kwdefaults__:
            self._stack.append(function.__kwdefaults__)
        if not _is_foreign(function.__module__):
            self._stack.append(vars(function))
            names = set(_spoken_by(function.__code__))
            for name in names - self._spoken:
                self._stack.extend(self._unspoken.pop(name, ()))
            self._spoken |= names
            self._variables(function.__globals__, names)

    def _variables(self, variables: dict[str, Any], names: set[str]) -> None:
        """Those variables of a Python module that some code may mean by ``names``."""
        _, known = self._named.setdefault(id(variables), (variables, {}))
        for name in names:
            if name in known:
                continue
            value = known[name] = variables.get(name, _ABSENT)
            if isinstance(value, types.ModuleType):
                if not _is_foreign(value.__name__):
                    self._variables(vars(value), names)
            elif value is not _ABSENT:
                self._stack.append(value)

    def _stateful(self, get: Callable[[Any], Any], put: Put, value: Any) -> None:
        self._saved.append((put, value, get(value)))

    def _generator(self, generator: Any) -> None:
        self.generators.append(generator)
        self._saved.append((put_numbers, generator, numbers(generator)))

    def _alias(self, alias: Any) -> None:
        for name in ("fget", "__func__", "func", "args", "keywords"):
            self._stack.append(getattr(alias, name, None))

    def _cell(self, cell: types.CellType) -> None:
        value = _contents(cell)
        self._saved.append((_put_contents, cell, value))
        self._stack.append(value)

    def _tensor(self, tensor: Tensor) -> None:
        self.tensors.append(tensor)
        if vars(tensor):
            self._stack.append(vars(tensor))
        if is_sharded(tensor) or not is_plain(tensor):
            return
        gradient = tensor.grad if tensor.is_leaf else None
        if gradient is not None:
            self._stack.append(gradient)
        for name in _HOOKS if tensor.is_leaf else ():
            hooks = getattr(tensor, name, None)
            self._saved.append((_put_hooks, (tensor, name), hooks))
            self._stack.append(hooks)
        with unseen():
            self._saved.append((_put_tensor, tensor, (tensor.data, gradient, tensor.is_leaf and tensor.requires_grad)))


def _is_foreign(module: Any) -> bool:
    if not isinstance(module, str):
        return False
    return module.partition(".")[0] in _FOREIGN or (module.startswith("dagscale.") and not module.startswith(_MODELS))


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _attributes(owner: Any) -> dict[str, Any] | None:
    try:
        threads = isinstance(owner, threading.local)
        found = owner.__dict__ if threads else object.__getattribute__(owner, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def _names_of_slots(owner: type) -> list[str]:
    return [name for name, value in vars(owner).items() if type(value) is types.MemberDescriptorType]


def _spoken_by(code: types.CodeType) -> Iterator[str]:
    """The global names and attributes that a function's code speaks of, its inner functions' among them."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _spoken_by(constant)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _ABSENT


# --- putting back -----------------------------------------------------------------------------------------


def _items(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """What it holds, in its order, asking no method that a subclass may have changed."""
    base = _base(mapping)
    return {key: dict.__getitem__(mapping, key) for key in base.__iter__(mapping)}


def _elements(container: Any) -> list[Any]:
    return list(_base(container).__iter__(container))


def _base(container: Any) -> Any:
    return next(b for b in (collections.OrderedDict, dict, list, set, collections.deque) if isinstance(container, b))


def _put_items(mapping: dict[Any, Any], kept: dict[Any, Any]) -> None:
    now = _items(mapping)
    if len(now) == len(kept) and all(map(is_, now, kept)) and all(map(is_, now.values(), kept.values())):
        return
    base = _base(mapping)
    base.clear(mapping)
    for key, value in kept.items():
        base.__setitem__(mapping, key, value)


def _put_elements(container: Any, kept: list[Any]) -> None:
    now = _elements(container)
    if len(now) == len(kept) and all(map(is_, now, kept)):
        return
    base = _base(container)
    base.clear(container)
    (set.update if base is set else base.extend)(container, kept)


def _put_variables(variables: dict[str, Any], values: dict[str, Any]) -> None:
    """Global variables. What was imported meanwhile stays: Python imports a thing once."""
    for name, value in values.items():
        now = variables.get(name, _ABSENT)
        if now is value or isinstance(now, types.ModuleType):
            continue
        if value is _ABSENT:
            variables.pop(name, None)
        else:
            variables[name] = value


def _put_attributes(owner: Any, values: dict[str, Any]) -> None:
    """Slots. One that Python cannot write to, no code of the model's has changed: it is made anew at each reading."""
    for name, value in values.items():
        if getattr(owner, name, _ABSENT) is value:
            continue
        with suppress(AttributeError, TypeError):
            if value is _ABSENT:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, value)


def _put_scripted(module: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if module._c.getattr(name) is not value:
            module._c.setattr(name, value)


def _put_class(owner: type, variables: dict[str, Any]) -> None:
    now = {name: value for name, value in vars(owner).items() if not _is_dunder(name)}
    for name in now.keys() - variables.keys():
        type.__delattr__(owner, name)
    for name, value in variables.items():
        if now.get(name, _ABSENT) is not value:
            type.__setattr__(owner, name, value)


def _put_contents(cell: types.CellType, value: Any) -> None:
    if _contents(cell) is value:
        return
    if value is _ABSENT:
        with suppress(ValueError):
            del cell.cell_contents
    else:
        cell.cell_contents = value


def _put_tensor(tensor: Tensor, kept: tuple[Tensor, Tensor | None, bool]) -> None:
    """Where its values lie, its gradient, and whether it asks for one."""
    data, gradient, asks = kept
    with unseen():
        moved = storage_key(tensor) != storage_key(data) or tensor.shape != data.shape or tensor.dtype != data.dtype
        if moved or (data.layout is torch.strided and tensor.stride() != data.stride()):
            tensor.data = data
        if not tensor.is_leaf:
            return
        if tensor.grad is not gradient:
            tensor.grad = gradient
        if tensor.requires_grad != asks:
            tensor.requires_grad_(asks)


def _put_hooks(place: tuple[Tensor, str], hooks: Any) -> None:
    """A tensor's own table of hooks, or none. (PyTorch runs what is in a table that it was once given.)"""
    tensor, name = place
    now = getattr(tensor, name, None)
    if now is not hooks:
        if now:
            now.clear()
        setattr(tensor, name, hooks)


def _put_context(variable: Any, value: Any) -> None:
    """A context variable that had no value gets None: Python cannot take it away again."""
    if variable.get(_ABSENT) is not value:
        variable.set(None if value is _ABSENT else value)


def _copied_array(array: Any) -> Any:
    """None for one that is too large to be a model's bookkeeping."""
    return array.copy() if array.nbytes <= LARGEST_ARRAY and array.flags.writeable else None


def _put_array(array: Any, kept: Any) -> None:
    if kept is not None and array.flags.writeable:
        array[...] = kept


_STATEFUL: dict[type, tuple[Callable[[Any], Any], Put]] = {
    np.ndarray: (_copied_array, _put_array),
    contextvars.ContextVar: (
        lambda variable: variable.get(_ABSENT),
        _put_context,
    ),
}
"""Other objects with a state of their own → how it is read, and put back."""
