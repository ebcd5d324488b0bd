"""Options of a TARGET: what may stand behind its ``?``, as ``width=64&norm=batch``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dagscale.errors import TargetError
from dagscale.registry import did_you_mean

MOST_DIGITS = 100
"""Characters of an option's value at most: Python refuses to read very long numbers, and no option means one."""

MOST_VALUES = 1 << 26
"""Values of one example at most."""


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


# --- how values are read ---------------------------------------------------------------------------------------

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
