"""Arguments of what users call are of the types that they are annotated with, or are refused in one line."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from numbers import Integral, Real
from operator import index
from typing import Any, TypeVar, Union, get_args, get_origin

from dagscale.errors import DagscaleError

AFFECTS_RESULTS = False

T = TypeVar("T", bound=Callable[..., Any])

FUNCTIONS: tuple[Any, ...] = (type, Callable)
"""Kinds of annotation for what can be called."""

NAMED = {float: "a number", int: "a whole number", str: "text", bool: "True or False", types.NoneType: "None"}
"""What to call a type in a message; classes go by their names."""


MOST = 1 << 62
"""What generators of random numbers, and counters, do not take."""


def whole_number(name: str, value: Any, error: type[Exception], least: int = 1) -> int:
    """The argument ``name`` as an int from ``least``, below 2^62.

    Raises:
        error: if it is none.
    """
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or "bool" in str(getattr(value, "dtype", type(value))):
        raise error(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise error(f"{name} must be at least {least}, got {value}")
    if number >= MOST:
        raise error(f"{name} must be below 2^62, got {value}")
    return number


def positive_number(name: str, value: Any, error: type[Exception], zero: bool = False) -> float:
    """The argument ``name`` as a finite float above 0, or from 0 if ``zero``.

    Raises:
        error: if it is none.
    """
    try:
        plain = plain_number(value)
        number = float(plain) if isinstance(plain, (int, float, Fraction)) and not isinstance(plain, bool) else math.nan
    except (OverflowError, RuntimeError):  # beyond all floats; a tensor without values
        number = math.nan
    if not 0 <= number < math.inf or (number == 0 and not zero):
        raise error(f"{name} must be {'0 or more' if zero else 'a positive number'}, got {value!r}")
    return number


def plain_number(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's own, in tuples and lists too; all else as it is."""
    if type(value) in (tuple, list):
        return type(value)(plain_number(item) for item in value)
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:
        return value.item()
    return value


def checked(error: type[Exception]) -> Callable[[T], T]:
    """A decorator for what users call: where it fails because of an argument of another type, that is said in one line.

    If an exception that is not of dagscale leaves it, the arguments are held against their annotations. What a name in
    an annotation does not say while the program runs (a protocol, a class that is imported for annotations only) is not
    looked at, and an exception that no argument explains goes on as it is. Of a class, all public methods are
    decorated, and ``__init__`` if it was written by hand.

    Args:
        error: what is raised, with the argument's name and what to give.
    """

    def decorate(target: T) -> T:
        if not isinstance(target, type):
            return _checked(target, error)
        written: Any = getattr(target, "__dataclass_params__", None)
        generated = written is not None and written.init  # the fields have checks of their own
        for name, method in list(vars(target).items()):
            if not name.startswith("_") or (name == "__init__" and not generated):
                if isinstance(method, types.FunctionType):
                    setattr(target, name, _checked(method, error))
                elif isinstance(method, (classmethod, staticmethod)):
                    setattr(target, name, type(method)(_checked(method.__func__, error)))
        return target

    return decorate


def _checked(function: T, error: type[Exception]) -> T:
    signature = inspect.signature(function)
    spread = {name for name, p in signature.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DagscaleError:
            raise
        except Exception as raw:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError:  # too many, too few or unknown ones: Python's own words for it
                raise raw from None
            for name, value in given.items():
                hint = Any if name in spread else _hint(function, name)
                if not _suits(value, hint):
                    is_of = f"{name}= is of type {type(value).__name__}, and should be {_should_be(hint)}"
                    raise error(is_of) from raw
            raise

    return run  # type: ignore[return-value]


def _hint(function: Callable[..., Any], name: str) -> Any:
    """The type that an argument is annotated with; ``Any`` if that is not known while the program runs."""
    said = function.__annotations__.get(name, Any)
    known = {"nn": sys.modules.get("torch.nn"), **vars(sys.modules[function.__module__])}  # what needs torch later
    try:
        return eval(said, known) if isinstance(said, str) else said
    except (NameError, AttributeError, TypeError):
        return Any


def _suits(value: Any, hint: Any) -> bool:
    """Whether an argument can be what its annotation says. Of what can be gone through once, only that it can."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_suits(value, one) for one in inner)
    if kind is not None and isinstance(kind, type):
        if issubclass(kind, Mapping):
            return isinstance(value, Mapping) and all(map(_suits, value.values(), [inner[-1]] * len(value)))
        if kind in FUNCTIONS:
            return callable(value)
        if kind is tuple and ... not in inner:
            return isinstance(value, (tuple, list)) and len(value) == len(inner) and all(map(_suits, value, inner))
        if issubclass(kind, Sequence):
            sized = hasattr(value, "__getitem__") and getattr(value, "shape", None) != () and hasattr(value, "__len__")
            return sized and not isinstance(value, (str, bytes, Mapping)) and _all_suit(value, inner)
        if issubclass(kind, Iterable):
            return _iterable(value) and (isinstance(value, Iterator) or _all_suit(value, inner))
        return True
    if hint is float:
        number = isinstance(value, Real) or (hasattr(value, "__float__") and getattr(value, "shape", None) == ())
        return number and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is Any or not isinstance(hint, type) or getattr(hint, "_is_protocol", False):
        return True
    return isinstance(value, hint)


def _iterable(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "shape", None) != ()


def _all_suit(values: Any, inner: tuple[Any, ...]) -> bool:
    return not inner or all(_suits(one, inner[0]) for one in values)


def _should_be(hint: Any) -> str:
    """What to give, in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_should_be, inner)))
    if kind is not None and isinstance(kind, type):
        if kind in FUNCTIONS:
            return "a function"
        of = f" of which each is {_should_be(inner[-1])}" if inner and inner[-1] is not Any else ""
        return ("a dict" if issubclass(kind, Mapping) else "a sequence") + of
    if isinstance(hint, type) and issubclass(hint, os.PathLike):
        return "a path"
    return NAMED.get(hint) or f"of class {getattr(hint, '__name__', hint)}"
