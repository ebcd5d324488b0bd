"""TARGET texts: ``SPACE:CODE?option=value&...``, ``package.module:callable``, ``file.py:callable``."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import random
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from dagscale.errors import TargetError
from dagscale.plain import open_plain, read_plain
from dagscale.registry import Registry, first_sentence
from dagscale.shown import said

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


@dataclass(frozen=True)
class Option:
    """One option after the ``?``.

    Attributes:
        kind: how the value is read; ``shape`` is ``3x32x32``.
        help: one line for people.
        low, high: inclusive bounds of a number.
        odd: whether an integer must be odd.
        choices: the strings allowed; all if empty.
    """

    name: str
    kind: Literal["int", "float", "str", "bool", "shape"]
    help: str
    low: float | None = None
    high: float | None = None
    odd: bool = False
    choices: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """The value that ``text`` spells: int, float, str, bool, or a tuple of int for a shape.

        Raises:
            TargetError: if it spells none, or one out of bounds.
        """
        if len(text) > MOST_DIGITS:
            raise TargetError(f"{self.name}={text[:40]!r}… is too long: {len(text):,} characters")
        value = _READERS[self.kind](text)
        if value is None:
            raise TargetError(f"{self.name}={text!r} is not {_KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            hint = did_you_mean(text, self.choices)
            raise TargetError(f"{self.name}={text!r} is unknown{hint} (known: {', '.join(self.choices)})")
        if self.low is not None and value < self.low:
            raise TargetError(f"{self.name}={text}: must be at least {self.low}")
        if self.high is not None and value > self.high:
            raise TargetError(f"{self.name}={text}: must be at most {self.high}")
        if self.odd and value % 2 == 0:
            raise TargetError(f"{self.name}={text}: must be odd")
        return value


INPUT = Option("input", "shape", "shape of one example")
CLASSES = Option("classes", "int", "number of outputs", low=1, high=100_000)

MOST_DIGITS = 100
"""Characters of an option's value at most: Python refuses to read very long numbers, and no option means one."""

MOST_VALUES = 1 << 26
"""Values of one example at most."""

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
            raise TargetError(f"not a TARGET; {_FORMS}{did_you_mean(name, tuple(SPACES))}")
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
        source = _find_source(where, attribute, tuple(SPACES))
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
            with _seeded(self.seed), contextlib.nullcontext() if self.most is None else _building(self.most):
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


# --- options --------------------------------------------------------------------------------------

_KINDS = {
    "int": "an integer",
    "float": "a finite number",
    "str": "a text",
    "bool": "true or false",
    "shape": "a shape such as 3x32x32",
}


def _read_int(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None


def _read_float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_shape(text: str) -> tuple[int, ...] | None:
    """A shape such as ``3x32x32``; None if it is none. Raises: TargetError, if it is too large."""
    if len(text) > MOST_DIGITS:
        return None
    sizes = tuple(int(part) if re.fullmatch(r"[0-9]+", part) else 0 for part in text.split("x"))
    if math.prod(sizes) > MOST_VALUES:
        raise TargetError(f"{text}: over {MOST_VALUES:,} values in one example")
    return sizes if min(sizes) > 0 else None


_READERS: dict[str, Callable[[str], Any]] = {
    "int": _read_int,
    "float": _read_float,
    "str": lambda text: text or None,
    "bool": {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get,
    "shape": read_shape,
}


def parse_options(query: str, options: Sequence[Option], owner: str) -> dict[str, Any]:
    """The values of the options that stand behind a ``?``, as ``width=64&norm=batch``.

    Raises:
        TargetError: if one is unknown, without a value, given twice or out of bounds; ``owner`` names who takes them.
    """
    known = {option.name: option for option in options}
    values: dict[str, Any] = {}
    for item in query.split("&") if query else ():
        name, equals, value = item.partition("=")
        if name not in known:
            raise TargetError(f"unknown option {name!r}{did_you_mean(name, known)} ({owner} takes: {', '.join(known)})")
        if not equals:
            raise TargetError(f"option {name!r} has no value; write {name}=VALUE")
        if name in values:
            raise TargetError(f"option {name!r} is given twice; keep one")
        values[name] = known[name].parse(value)
    return values


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


# --- the user's own code --------------------------------------------------------------------------

_FORMS = "write SPACE:CODE, package.module:callable or file.py:callable"


@dataclass(frozen=True)
class _Source:
    """A callable in user code, in ``file`` or else ``module``; errors name lines under the folder ``home``."""

    attribute: str
    home: Path
    module: str = ""
    file: Path | None = None

    def __call__(self) -> Any:
        place = self.file.name if self.file is not None else self.module
        folder = self.file.parent if self.file is not None else Path.cwd()
        with _on_path(folder):
            # An import happens once, so it has a seed of its own: builds do not depend on earlier builds.
            with _blaming(self.home, f"importing {place}"), _seeded(0):
                module = self._import()
            function = _attribute(module, self.attribute, place)
            with _blaming(self.home, f"calling {self.attribute}()"):
                return function()

    def _import(self) -> ModuleType:
        return importlib.import_module(self.module) if self.file is None else _import_file(self.file)


def _find_source(where: str, attribute: str, spaces: Sequence[str] = ()) -> _Source:
    """Where user code lies; ``spaces`` are the names that could stand in front of the colon too, for messages."""
    forms = _FORMS if spaces else "write file.py:name or package.module:name"
    if not attribute:
        raise TargetError(f"nothing is named after the colon; {forms}")
    if where.endswith(".py"):
        try:
            file = Path(where).expanduser().resolve()
            if not file.exists():
                raise TargetError(f"there is no file {file}")
            open_plain(file, TargetError).close()
        except (OSError, RuntimeError, ValueError) as error:
            raise TargetError(f"{where!r} cannot be read ({error})") from None
        return _Source(attribute, home=file.parent, file=file)
    if not all(part.isidentifier() for part in where.split(".")):
        wrong = "not a TARGET" if spaces else f"{where!r} is no file.py and no module"
        raise TargetError(f"{wrong}; {forms}{did_you_mean(where, spaces)}")
    with _on_path(Path.cwd()):
        try:
            spec = importlib.util.find_spec(where.split(".")[0])
        except (ImportError, ValueError):
            spec = None
    if spec is None:
        space = f"space ({', '.join(spaces)}) and no " if spaces else ""
        raise TargetError(f"{where!r} is no {space}module that can be imported{did_you_mean(where, spaces)}")
    folders = spec.submodule_search_locations
    return _Source(
        attribute,
        home=Path(next(iter(folders), "")) if folders else Path(spec.origin or "").parent,
        module=where,
    )


def _import_file(file: Path) -> ModuleType:
    """The file as a module, named by its path and content: loaded once, and again when it has changed."""
    source = read_plain(file, TargetError)
    digest = hashlib.sha256(os.fsencode(file) + b"\0" + source).hexdigest()[:16]
    name = f"_dagscale_target_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        # Not through the loader: its bytecode cache misses an edit within one second that keeps the size.
        exec(compile(source, str(file), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _named(module: ModuleType, dotted: str, place: str, good: Callable[[Any], bool] = lambda one: True) -> Any:
    """What stands under a name with dots in a module; a property, or the module's ``__getattr__``, may raise.

    Args:
        good: what may be meant where the name is none.
    """
    found: Any = module

    def meant(name: str) -> bool:
        with contextlib.suppress(Exception):
            return name[:1] != "_" and good(getattr(found, name))
        return False

    for name in dotted.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = [key for key in dir(found) if meant(key)]
            raise TargetError(f"{place} has no {dotted!r}{did_you_mean(name, names)}") from None
        except Exception as error:
            raise TargetError(
                f"looking for {dotted!r} in {place} raised {type(error).__name__}: {said(error)}"
            ) from None
    return found


def _attribute(module: ModuleType, dotted: str, place: str) -> Callable[[], Any]:
    found = _named(module, dotted, place, callable)
    if isinstance(found, nn.Module) or not callable(found):
        raise TargetError(
            f"{dotted!r} in {place} is {type(found).__name__}, not a function or class that builds the "
            f"module; wrap it: def build(): return {dotted}"
        )
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError:  # some built-in callables have no signature
        parameters = ()  # type: ignore[assignment]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise TargetError(
            f"{dotted!r} in {place} needs the argument {needed[0]!r}; give it a default, or name a function "
            "without required arguments"
        )
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def _blaming(home: Path, doing: str) -> Iterator[None]:
    """Turn what the user's code raises into a TargetError that names its type, message and place."""
    try:
        yield
    except (Exception, SystemExit, GeneratorExit) as error:
        message = " ".join(said(error).split())
        raise TargetError(
            f"{doing} raised {type(error).__name__}{': ' if message else ''}{message}{_place(error, home)}"
        ) from error


def _place(error: BaseException, home: Path) -> str:
    """`` (file:line)`` of the innermost line in ``home``, leaving out an environment that lies inside it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(home) and "site-packages" not in path.relative_to(home).parts:
            return f" ({path}:{frame.lineno})"
    return ""


# --- surroundings ---------------------------------------------------------------------------------


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


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
        reason = next(iter(said(error).splitlines()), "") or type(error).__name__
        raise TargetError(f"the network cannot be built ({reason}); give smaller sizes") from error
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random, and put their global states back afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def find(text: str, what: str, *, call: bool = False) -> Any:
    """The object that ``file.py:name`` or ``package.module:name`` names, such as a recipe, a loss or data.

    Args:
        what: what it should be, for messages.
        call: if it is a function or class, take what it returns without arguments.

    Raises:
        TargetError: if there is none, or importing or calling it raises.
    """
    where, colon, dotted = text.rpartition(":")
    if not colon:
        raise TargetError(f"{text!r} names no {what}: write it as file.py:name or package.module:name")
    source = _find_source(where, dotted)
    place = str(source.file or source.module)
    with _on_path(source.home if source.file else Path.cwd()):
        with _blaming(source.home, f"importing {place}"):
            found: Any = source._import()
        found = _named(found, dotted, place)
        if call and callable(found):
            with _blaming(source.home, f"calling {dotted}()"):
                found = found()
    return found
