"""TARGET texts: ``SPACE:CODE?option=value&...``, ``package.module:callable``, ``file.py:callable``."""

from __future__ import annotations

import contextlib
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from dagscale.errors import TargetError
from dagscale.models.options import INPUT, MOST_VALUES, Option, parse_options
from dagscale.models.own_code import FORMS, find_source
from dagscale.registry import Registry, did_you_mean, first_sentence
from dagscale.shown import reason
from dagscale.tracing.generators import repeatable

DEFAULT_SHAPE = (1, 8, 8)  # scikit-learn's digits, the embedded data
CIFAR = (3, 32, 32)
DEFAULT_CLASSES = 10
EXAMPLES = 2

Made = nn.Module | tuple[nn.Module, Any]


class DataLike(Protocol):
    """What is asked of data: ``shape`` (C, H, W) of one example, ``classes``, ``x`` (N, C, H, W) or None."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def classes(self) -> int: ...

    @property
    def x(self) -> Any: ...


LONGEST = 5_000
"""Characters of a TARGET at most."""

MOST_STACKED = 1_500
"""Layers, blocks or cells on top of one another at most."""

MOST_PARAMETERS, MOST_MODULES = 1 << 28, 100_000
"""Of a network of a space at most, unless it says otherwise: 1 GiB in float32."""


@dataclass(frozen=True)
class Setting:
    """What is asked of a model: ``shape`` of one example, number of ``classes``.

    Attributes:
        given: which of them somebody said, by option or data; the other is the space's default.
        tokens: whether data were given whose examples are token ids, so many of ``classes``.
    """

    shape: tuple[int, ...]
    classes: int
    given: frozenset[str] = frozenset()
    tokens: bool = False


@dataclass(frozen=True)
class Space:
    """One family of architectures, an entry of ``SPACES``.

    Attributes:
        read: (code, the options that were given other than ``input`` and ``classes``, setting) → what builds
            the module, or the module and its inputs. It checks the code now and raises TargetError; the
            building comes later, under a seed. A module without inputs gets a batch of the setting's shape.
        options: all options that the space takes; ``INPUT`` and ``CLASSES`` reach ``read`` in the setting.
        parameters: how many its networks may have.
        shape: of one example where neither options nor data say it: the benchmark's own.
        sample: (vertices, count, generator) → that many distinct codes; None if the space cannot be sampled.
        tokens: whether some of its models take token ids.
    """

    read: Callable[[str, Mapping[str, Any], Setting], Callable[[], Made]]
    options: tuple[Option, ...] = ()
    sample: Callable[[int, int, random.Random], tuple[str, ...]] | None = None
    parameters: int = MOST_PARAMETERS
    shape: tuple[int, ...] = DEFAULT_SHAPE
    tokens: bool = False

    @property
    def summary(self) -> str:
        """One line for people: the first sentence of the module that reads it."""
        return first_sentence(sys.modules[self.read.__module__].__doc__)


SPACES: Registry[Space] = Registry("space")


@dataclass(frozen=True)
class Target:
    """A TARGET that was read.

    Attributes:
        text: as it was written.
        build: makes (module, example inputs), the same ones at each call, and leaves the global random state
            alone.
    """

    text: str
    build: Callable[[], tuple[nn.Module, Any]]


def resolve(
    text: str,
    *,
    data: DataLike | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    example: Callable[[], Any] | None = None,
) -> Target:
    """Read a TARGET.

    The shape of one example is the option ``input``, else ``input_shape``, else that of ``data``, else the space's own
    (1×8×8, its benchmark's or its library's); ``classes`` likewise, else 10 or the library's own. Example inputs are
    the first two of ``data`` where the shape is theirs, else a standard normal batch of two drawn from ``seed``; a
    callable that returns its own inputs keeps them, and one that returns a module alone where no shape is said gets
    what ``example()`` returns.

    Raises:
        TargetError: if the text, the code or an option is malformed or unknown. ``Target.build`` raises it
            too, if the user's own code does: with the type, message, and file:line; the original is
            ``__cause__``.
    """
    name, _, query = text.partition("?")
    head, colon, code = name.partition(":")
    with _naming(text):
        if len(text) > LONGEST:
            raise TargetError(f"a TARGET of {len(text):,} characters; {LONGEST:,} are the most")
        if not -(2**63) <= seed < 2**64:
            raise TargetError("the seed is no number of 64 bits; give one from 0 to 2^64 - 1")
        if not colon:
            raise TargetError(f"not a TARGET; {FORMS}{did_you_mean(name, tuple(SPACES))}")
        if head in SPACES:
            space = SPACES[head]
            tokens = data is not None and data.x is not None and not torch.as_tensor(data.x[:1]).is_floating_point()
            if tokens and not space.tokens:
                raise TargetError("the data are token ids, and this takes images: name a language model, as hf:gpt2")
            options = parse_options(query, space.options, head)
            asked = _shape(options.pop("input", None), input_shape, data)
            counted = options.pop("classes", None) or (data.classes if data is not None else None)
            given = frozenset(name for name, value in (("shape", asked), ("classes", counted)) if value)
            shape, classes = asked or space.shape, counted or DEFAULT_CLASSES
            make = space.read(code, options, Setting(shape, classes, given, tokens))
            return Target(text, _Build(text, make, shape, data, seed, example, space.parameters))
        where, _, attribute = name.rpartition(":")
        options = parse_options(query, (INPUT,), "a callable")
        source = find_source(where, attribute, tuple(SPACES))
        return Target(text, _Build(text, source, _shape(options.get("input"), input_shape, data), data, seed, example))


def load(
    text: str,
    *,
    data: DataLike | None = None,
    input_shape: Sequence[int] | None = None,
    seed: int = 0,
    example: Callable[[], Any] | None = None,
) -> tuple[nn.Module, Any]:
    """(module, example inputs) of a TARGET: ``resolve(...).build()``."""
    return resolve(text, data=data, input_shape=input_shape, seed=seed, example=example).build()


def sample(space: str = "mlp", vertices: int = 5, count: int = 12, seed: int = 0, **options: Any) -> tuple[str, ...]:
    """``count`` distinct random TARGETs of a space, each with a path from input to output.

    Args:
        options: written behind each code, as ``width=64`` → ``mlp:2_02_002?width=64``.

    Raises:
        UnknownNameError: if there is no such space.
        TargetError: if the space cannot be sampled, has fewer architectures than asked for, or an option is
            wrong.
    """
    entry = SPACES[space]
    if entry.sample is None:
        able = ", ".join(name for name in SPACES if SPACES[name].sample is not None)
        raise TargetError(f"space {space!r} cannot be sampled; choose one of {able}")
    if not 1 <= count <= 100_000:
        raise TargetError(f"count={count}: must be at least 1 and at most 100,000")
    query = "&".join(f"{name}={_spelt(value)}" for name, value in options.items())
    parse_options(query, entry.options, space)
    codes = entry.sample(vertices, count, random.Random(seed))
    return tuple(f"{space}:{code}{'?' if query else ''}{query}" for code in codes)


@dataclass(frozen=True)
class _Build:
    text: str
    make: Callable[[], Any]
    shape: tuple[int, ...] | None
    data: DataLike | None
    seed: int
    example: Callable[[], Any] | None
    most: int | None = None

    def __call__(self) -> tuple[nn.Module, Any]:
        with _naming(self.text):
            with repeatable(self.seed), contextlib.nullcontext() if self.most is None else _building(self.most):
                made = self.make()
            if isinstance(made, nn.Module):
                return made, self._inputs()
            if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
                return made
            raise TargetError(f"the callable returned {type(made).__name__}; return the module, or (module, inputs)")

    def _inputs(self) -> Any:
        if self.shape is None and self.example is not None:
            return self.example()
        if self.shape is None:
            raise TargetError(
                "the callable returned a module without inputs; return (module, inputs), name the data "
                "(--data, or --recipe with data), or write ?input=SHAPE, as ?input=3x32x32"
            )
        if self.data is not None and self.data.x is not None and self.shape == tuple(self.data.shape):
            return torch.as_tensor(self.data.x[:EXAMPLES]).detach().clone()
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(EXAMPLES, *self.shape, generator=generator, device="cpu")


def _spelt(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _shape(
    option: tuple[int, ...] | None, argument: Sequence[int] | None, data: DataLike | None
) -> tuple[int, ...] | None:
    if option is not None:
        return option
    if argument is not None:
        if not argument or min(argument) < 1:
            raise TargetError(f"input_shape={tuple(argument)}: sizes must be at least 1, without the batch")
        if math.prod(argument) > MOST_VALUES:
            raise TargetError(f"input_shape={tuple(argument)}: over {MOST_VALUES:,} values in one example")
        return tuple(argument)
    return tuple(data.shape) if data is not None else None


@contextlib.contextmanager
def _naming(text: str) -> Iterator[None]:
    """Put the TARGET in front of what is wrong with it."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"{text if len(text) <= 200 else text[:200] + '…'}: {error}") from error.__cause__


@contextlib.contextmanager
def _building(most: int) -> Iterator[None]:
    """Say in one line that a network is too large, while it is built, or has sizes that torch refuses."""
    parameters, modules = 0, 0

    def count(_: nn.Module, __: str, added: nn.Parameter | nn.Module | None) -> None:
        nonlocal parameters, modules
        if isinstance(added, nn.Parameter):
            parameters += added.numel()
        else:
            modules += 1
        if parameters > most or modules > MOST_MODULES:
            raise TargetError(
                f"the network has over {most:,} parameters or {MOST_MODULES:,} modules, which is the most; "
                "give smaller sizes"
            )

    hooks = register_module_parameter_registration_hook(count), register_module_module_registration_hook(count)
    try:
        yield
    except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise TargetError(f"the network cannot be built ({reason(error)}); give smaller sizes") from error
    finally:
        for hook in hooks:
            hook.remove()
