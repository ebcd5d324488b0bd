"""The user's own code: what ``package.module:name`` and ``file.py:name`` stand for."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from dagscale.errors import TargetError
from dagscale.plain import open_plain, read_plain
from dagscale.registry import did_you_mean
from dagscale.shown import said
from dagscale.tracing.generators import repeatable

FORMS = "write SPACE:CODE, package.module:callable or file.py:callable"


@dataclass(frozen=True)
class Source:
    """A callable in user code, in ``file`` or else ``module``; errors name lines under the folder ``home``."""

    attribute: str
    home: Path
    module: str = ""
    file: Path | None = None

    def __call__(self) -> Any:
        place = self.file.name if self.file is not None else self.module
        with _on_path(self.folder):
            function = _attribute(self.imported(place), self.attribute, place)
            with _blaming(self.home, f"calling {self.attribute}()"):
                return function()

    @property
    def folder(self) -> Path:
        """Where its own imports are looked for first."""
        return Path.cwd() if self.file is None else self.file.parent

    def imported(self, place: str) -> ModuleType:
        """Its module, which messages call ``place``.

        An import happens once, so it has a seed of its own: what is built does not depend on what was imported before.
        """
        with _blaming(self.home, f"importing {place}"), repeatable(0):
            return importlib.import_module(self.module) if self.file is None else _import_file(self.file)


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
    source = find_source(where, dotted)
    place = str(source.file or source.module)
    with _on_path(source.folder):
        found: Any = _named(source.imported(place), dotted, place)
        if call and callable(found):
            _no_arguments(found, dotted, place)
            with _blaming(source.home, f"calling {dotted}()"):
                found = found()
    if found is None:
        raise TargetError(
            f"{text} {'returned' if call else 'is'} None: it has to be {what}, or a function that returns it"
        )
    return found


def find_source(where: str, attribute: str, spaces: Sequence[str] = ()) -> Source:
    """Where user code lies; ``spaces`` are the names that could stand in front of the colon too, for messages."""
    forms = FORMS if spaces else "write file.py:name or package.module:name"
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
        return Source(attribute, home=file.parent, file=file)
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
    return Source(
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
    _no_arguments(found, dotted, place)
    return found  # type: ignore[no-any-return]


def _no_arguments(found: Callable[..., Any], dotted: str, place: str) -> None:
    """See that it can be called without any.

    Raises:
        TargetError: if it cannot.
    """
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        parameters = ()  # type: ignore[assignment]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise TargetError(
            f"{dotted!r} in {place} needs the argument {needed[0]!r}; give it a default, or name a function "
            "without required arguments"
        )


MENDS: tuple[tuple[type[BaseException], str, str], ...] = (
    (ImportError, "relative import", "; name it as a module of its package, package.module:name"),
    (SystemExit, "", "; what a script does, as to read its arguments, belongs behind if __name__ == '__main__'"),
)
"""A kind of error, what its message holds → what to do about it."""


@contextlib.contextmanager
def _blaming(home: Path, doing: str) -> Iterator[None]:
    """Turn what the user's code raises into a TargetError that names its type, message and place."""
    try:
        yield
    except (Exception, SystemExit, GeneratorExit) as error:
        message = " ".join(said(error).split())
        mend = next((text for kind, sign, text in MENDS if isinstance(error, kind) and sign in message), "")
        raise TargetError(
            f"{doing} raised {type(error).__name__}{': ' if message else ''}{message}{_place(error, home)}{mend}"
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


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
