"""Results as files and as text: JSON documents with a format number, tables as text and as HTML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from dagscale.arguments import checked
from dagscale.errors import PlanError
from dagscale.plain import read_plain
from dagscale.replacing import write

LARGEST = 1 << 30
"""Bytes of a file that is read."""

PARTS = {"base": "network", "plan": "parameters"}
"""Kind of result → a name that its document alone has."""

S = TypeVar("S", bound="Saved")


def read_document(text: str, what: str, known: int, mend: str) -> dict[str, Any]:
    """The JSON document of a result, without its format number.

    Args:
        what: what it should be, for messages.
        known: the latest format that this version reads.
        mend: where to get one.

    Raises:
        PlanError: if it is no JSON object, has no format number, or a later one.
    """
    try:
        raw = json.loads(text, object_pairs_hook=_once)
        if not isinstance(raw, dict):
            raise ValueError(f"a JSON {type(raw).__name__}, not an object")
        found = raw.pop("format", None)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"this is no {what} ({error}); {mend}") from None
    other = next((kind for kind, name in PARTS.items() if name in raw), what)
    if other != what and PARTS.get(what) not in raw:
        raise PlanError(f"this is a {other}, and no {what}; {mend}")
    if type(found) is not int:
        raise PlanError(f"this is no {what} (it has no format number); {mend}")
    if found < 1:
        raise PlanError(f"this is no {what} (its format is {found}); {mend}")
    if found > known:
        raise PlanError(
            f"this {what} is of format {found}, of a later version of dagscale than this one, which reads formats up "
            f"to {known}: upgrade dagscale"
        )
    return raw


def told(error: Exception) -> str:
    """What is wrong with a document: of a name that it lacks, an exception says no more than the name."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ. Raises: ValueError, if one stands there twice: nobody knows which is meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold, and no truth value."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def check_training(said: Any) -> None:
    """See that a recipe's plain data are as `dagscale.Recipe.describe` writes them; what is left out is not known.

    Raises:
        PlanError: if a value is of the wrong type or range.
        RecipeError: if its schedule is none.
    """
    from dagscale.training.schedules import Schedule

    if not isinstance(said, Mapping):
        raise PlanError(f"recipe must be a mapping, not {type(said).__name__}")
    known: dict[str, Any] = dict.fromkeys(("loss", "step", "autocast", "schedule"), lambda v: isinstance(v, str))
    known |= dict.fromkeys(("batch_size", "steps", "epochs", "accumulate"), lambda v: type(v) is int and v >= 1)
    known["clip"] = lambda v: is_number(v) and v > 0
    known["weight_decay"] = lambda v: is_number(v) and v >= 0
    known["no_decay"] = lambda v: isinstance(v, str) or all(isinstance(role, str) for role in v)
    known["optimizer"] = lambda v: isinstance(v["name"], str) and isinstance(v.get("settings", {}), Mapping)
    for name, good in known.items():
        value = said.get(name)
        if name == "schedule" and isinstance(value, Mapping):
            Schedule(**value)
        elif value is not None and not good(value):
            raise PlanError(f"recipe {name} cannot be {value!r}")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, or not at all.

    Raises:
        PlanError: if it cannot be written.
    """
    path = Path(path)
    try:
        write(path, (text + "\n").encode())
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot write {path} ({getattr(error, 'strerror', None) or error})") from None


def read_text(path: str | Path) -> str:
    """A text file, a plain one of at most ``LARGEST`` bytes.

    Raises:
        PlanError: if it cannot be read.
    """
    path = Path(path)
    try:
        return read_plain(path, PlanError, LARGEST).decode("utf-8")
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from None


@checked(PlanError)
class Saved:
    """Gives results that have ``to_json`` and ``from_json`` the methods ``save`` and ``load``."""

    def to_json(self) -> str:
        """The result as one JSON document."""
        raise NotImplementedError

    @classmethod
    def from_json(cls: type[S], text: str) -> S:
        """The result that :meth:`to_json` wrote."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write it to a file as JSON.

        Raises:
            PlanError: if the file cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def load(cls: type[S], path: str | Path) -> S:
        """Read the result back from a file that :meth:`save` wrote.

        Raises:
            PlanError: if the file cannot be read, or holds no such result.
        """
        text = read_text(path)
        try:
            return cls.from_json(text)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None
