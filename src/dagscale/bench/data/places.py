"""Data by what they are: runs are keyed by a digest of their examples, not by the path that these were read from.

A sweep's driver reads the data and names them by their digest in its runs; where they lie is told to every worker
beside the run, by `placed`. Moved data are then the same data, and other data under an old path are other data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from dagscale.bench.data.dataset import Dataset, load
from dagscale.errors import DataError

_PLACES: dict[str, str] = {}
"""Digest → where this process finds the data."""


class Digested(Protocol):
    """Data that say what they are."""

    @property
    def digest(self) -> str: ...


D = TypeVar("D", bound=Digested)


def placed(places: Mapping[str, str], execute: Callable[[Any], Any], run: Any) -> Any:
    """``execute(run)``, in a process that knows where the data lie; for workers, by ``functools.partial``.

    Args:
        places: digest of a data set → the name or path that `load` takes.
    """
    _PLACES.update(places)
    return execute(run)


def place(name: str) -> str:
    """Where data of this digest lie; ``name`` itself where it is no known digest."""
    return _PLACES.get(name, name)


def check(data: D, name: str) -> D:
    """The data, if they are those that ``name`` stands for.

    Raises:
        DataError: if there are others at their place now, or on this machine.
    """
    if name in _PLACES and data.digest != name:
        raise DataError(
            f"{_PLACES[name]} holds other data than the sweep began with: put them back, or call again to have these "
            "trained on"
        )
    return data


def load_named(name: str, **options: Any) -> Dataset:
    """`load` of what a run names: a digest with a known place, or a name or path."""
    return check(load(place(name), **options), name)
