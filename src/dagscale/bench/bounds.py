"""Bounds on what may be asked for: what no run can serve, or no machine can hold, is refused before anything starts."""

from __future__ import annotations

from math import isfinite
from operator import index
from typing import Any

from dagscale.errors import DagscaleError

AFFECTS_RESULTS = False


def check_count(name: str, value: Any, low: int = 1, high: int = 10**6) -> int:
    """``value`` as a whole number within bounds, both included.

    Raises:
        DagscaleError: if it is none.
    """
    try:
        number = index(value)
    except TypeError:
        raise DagscaleError(f"{name} must be a whole number, got {value!r}") from None
    if number < low:
        raise DagscaleError(f"{name} must be at least {low:,}, got {short(number)}")
    if number > high:
        raise DagscaleError(f"{name} must be at most {high:,}, got {short(number)}")
    return number


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a finite number within bounds, both included.

    Raises:
        DagscaleError: if it is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise DagscaleError(f"{name} must be a number, got {value!r}") from None
    if not isfinite(number) or not low <= number <= high:
        raise DagscaleError(f"{name} must be {low:g} to {high:g}, got {number:g}")
    return number


def short(number: int) -> str:
    """An integer, or how large it is where that is shorter: Python itself refuses to write very long ones."""
    return str(number) if number.bit_length() <= 64 else f"one of {number.bit_length()} bits"
