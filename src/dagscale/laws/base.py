"""What a law is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import TYPE_CHECKING

from dagscale.errors import GraphError
from dagscale.network import Subject
from dagscale.registry import Registry

if TYPE_CHECKING:
    from dagscale.laws.over_seeds import Measured


@dataclass(frozen=True, slots=True)
class Law:
    """A rule that predicts a target's learning rate from a base's.

    Attributes:
        factors: (base, target) → named factors; the target's rate is the base's times their product.
        optimizers: the optimisers it is derived for; empty means any.
        needs_base: whether the base network is looked at, rather than only its rate.
        measured: for measured laws, what was measured on a subject.
        power: (factors) → of the ratio of what was measured, or of its inverse, in their product.
        absolute: for laws that need no base at all, the rate itself, to about an octave.
    """

    factors: Callable[[Subject, Subject], dict[str, float]]
    optimizers: frozenset[str] = frozenset()
    needs_base: bool = True
    measured: Callable[[Subject], Measured] | None = None
    power: Callable[[Mapping[str, float]], float] = lambda factors: 1.0
    absolute: Callable[[Subject], float] | None = None


FADING = 3 / 4
"""What is left, in a whole run, of the logarithm of the ratio between two networks' rates in its first steps.

What sets networks apart there matters less later on: a mean over settings and lengths of runs, see ``docs/laws.md``.
"""


LAWS: Registry[Law] = Registry("law")

SGD = frozenset({"sgd", "momentum"})
"""Momentum multiplies every step in the same proportion, so a ratio of rates carries over."""


def root_ratio(base: int, target: int, what: str) -> float:
    """``sqrt(base / target)`` of exact integers of any size.

    Raises:
        GraphError: if either is zero, so that the law says nothing.
    """
    for network, value in (("base", base), ("target", target)):
        if value <= 0:
            raise GraphError(
                f"the {network} network has {what} = 0: no path passes an activation, so this law has no "
                "rate for it; use a network with at least one hidden activation, or law 'none'"
            )
    if max(base, target).bit_length() < 1000:
        return float((base / target) ** 0.5)
    return exp((log(base) - log(target)) / 2)
