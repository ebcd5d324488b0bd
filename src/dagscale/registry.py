"""Named collections: laws, inits, op kinds and spaces are each one registry, filled by decorator."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from dagscale.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from a public name to an entry.

    Args:
        what: the singular noun for error messages, for example ``"law"``.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._entries: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator: put the decorated object under ``name``."""

        def put(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.what} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return put

    @contextmanager
    def temporarily(self) -> Iterator[Registry[T]]:
        """A context in which entries may be added or replaced; on leaving it, the registry is as it was before."""
        before = dict(self._entries)
        try:
            yield self
        finally:
            self._entries = before

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except (KeyError, TypeError):  # a list, for one, is no key at all
            hint = did_you_mean(str(name).lower(), self._entries)
            raise UnknownNameError(f"unknown {self.what} {name!r}{hint} (known: {', '.join(self)})") from None

    def get(self, name: str) -> T | None:
        """The entry, or None."""
        return self._entries.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"{self.what}s: {', '.join(self)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` with the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def summary(entry: object) -> str:
    """One line on an entry: its own summary, or the first sentence of the docstring of what it runs."""
    own = getattr(entry, "summary", None)
    if isinstance(own, str):
        return own
    text = getattr(entry, "build", entry).__doc__ or ""
    return first_sentence(text)


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring on one line, or what stands before its colon, without the marks of code."""
    paragraph = " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) (?=[^a-z0-9])", paragraph, maxsplit=1)[0].replace("``", "").rstrip(":;")
