"""What a law is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import wraps
from math import exp, log

from dagscale.errors import GraphError, OptimizerError, PlanError
from dagscale.laws.estimate import Estimate
from dagscale.network import Network
from dagscale.registry import Registry, first_sentence
from dagscale.training.optimizers import Optimizer, Step

Rule = Callable[[Network], Mapping[str, Estimate]]
"""One network → named parts of an estimate of its rate. Rates differ between networks by what each part differs by."""


@dataclass(frozen=True, slots=True)
class Law:
    """A rule that says how the best learning rate differs between networks.

    Attributes:
        name: as it stands in the registry.
        rule: one network → the parts of its estimate.
        steps: kinds of optimiser step that it is derived for; empty means any, of unknown optimisers too.
        measured: whether it runs the network, and so needs data and a loss.
        averaged: whether its parts are several predictions of the same thing, to be averaged, rather than factors.
        own_init: the name of the init that it belongs to, of rules that come as a pair; empty for any.
        needs_base: whether the base network is looked at, rather than only its rate.
        absolute: of laws that need no base at all: one network → its rate itself, roughly.
    """

    name: str
    rule: Rule
    steps: frozenset[Step] = frozenset()
    measured: bool = False
    averaged: bool = False
    own_init: str = ""
    needs_base: bool = True
    absolute: Callable[[Network], Estimate] | None = None

    def __call__(self, network: Network) -> Mapping[str, Estimate]:
        return self.rule(network)

    @property
    def summary(self) -> str:
        """The first sentence of the rule's docstring."""
        return first_sentence(self.rule.__doc__)

    def covers(self, optimizer: Optimizer) -> bool:
        """Whether the law holds for this optimiser."""
        return not self.steps or optimizer.step in self.steps

    def check(self, optimizer: Optimizer) -> None:
        """Raise PlanError if the law is not for this optimiser."""
        if self.covers(optimizer):
            return
        kinds = " and ".join(sorted(self.steps))
        if optimizer.step is None:
            raise OptimizerError(
                f"law {self.name!r} is derived for optimizers with {kinds}-like steps, and of {optimizer.name} that is "
                "unknown: register it with dagscale.optimizer, or use law 'short-run' or 'none'"
            )
        raise PlanError(
            f"law {self.name!r} is derived for optimizers with {kinds}-like steps (sgd, momentum), not "
            f"{optimizer.name!r}: choose one of these, or law 'none'"
        )

    def carry(
        self, bases: Mapping[str, Network], target: Network, about: Callable[[str], AbstractContextManager[None]]
    ) -> Carried:
        """Compute the factors that turn the bases' learning rates into the target's.

        Args:
            bases: by the names that errors should give them.
            about: a context in which errors say which network is meant.
        """
        if not self.needs_base:
            return Carried(tuple({} for _ in bases) or ({},))
        found: dict[str, Mapping[str, Estimate]] = {}
        for name, base in bases.items():
            with about(name):
                found[name] = self(base)
                if target.hint is None and self.absolute is not None:  # where to begin measuring
                    target = replace(target, hint=number(self.absolute(base).log_rate))
        with about("target"):
            own = self(target)
        forwards = sum(e.forwards for parts in (own, *found.values()) for e in parts.values())
        return Carried(tuple(_parts(self, own, theirs) for theirs in found.values()), forwards)

    def alone(self, target: Network) -> Carried:
        """The target's own rate, of a law that needs no base."""
        assert self.absolute is not None
        own = self.absolute(target)
        return Carried(({},), own.forwards, own)


@dataclass(frozen=True)
class Carried:
    """How a rate is carried over from each of several bases.

    Attributes:
        each: for each base, the parts by name: (target's, base's) estimates, weighted as they enter the rate.
        forwards: what measuring all networks cost, see `Estimate`.
        absolute: the target's rate itself, of a law without a base.
    """

    each: tuple[Mapping[str, tuple[Estimate, Estimate]], ...]
    forwards: float = 0.0
    absolute: Estimate | None = None

    def alone(self, i: int) -> float:
        """The factor on the learning rate that the i-th base alone would give."""
        return number(sum(target.log_rate - base.log_rate for target, base in self.each[i].values()))

    def to_the(self, power: float) -> Carried:
        """With every factor raised to a power."""
        each = ({name: (a * power, b * power) for name, (a, b) in parts.items()} for parts in self.each)
        return replace(self, each=tuple(each))

    @property
    def factors(self) -> dict[str, float]:
        """The factors on the learning rate, by the name of each part; with several bases their geometric mean."""
        names = dict.fromkeys(name for parts in self.each for name in parts)
        return {
            name: number(
                sum(parts[name][0].log_rate - parts[name][1].log_rate for parts in self.each if name in parts)
                / len(self.each)
            )
            for name in names
        }

    @property
    def uncertain(self) -> list[Estimate]:
        """The independent estimates whose random errors enter the rate: the target's, and each base's share."""
        if self.absolute is not None:
            return [self.absolute]
        count = len(self.each)
        sides = [(_sum([t for t, _ in parts.values()]), _sum([b for _, b in parts.values()])) for parts in self.each]
        own = max((target for target, _ in sides), key=lambda e: e.error)  # one measurement, in the factor of each base
        return [own, *(base * (1 / count) for _, base in sides)]


def _parts(
    law: Law, target: Mapping[str, Estimate], base: Mapping[str, Estimate]
) -> dict[str, tuple[Estimate, Estimate]]:
    names = [name for name in target if name in base]
    weight = 1 / len(names) if law.averaged and names else 1.0
    return {name: (target[name] * weight, base[name] * weight) for name in names}


def _sum(estimates: list[Estimate]) -> Estimate:
    return sum(estimates, Estimate(0.0))


LAWS: Registry[Law] = Registry("law")

GRADIENT: frozenset[Step] = frozenset({"gradient"})
"""SGD, with momentum too: it multiplies every step in the same proportion, so a ratio of rates carries over."""


def law(
    name: str,
    *,
    steps: frozenset[Step] = frozenset(),
    measured: bool = False,
    averaged: bool = False,
    own_init: str = "",
    needs_base: bool = True,
    absolute: Callable[[Network], Estimate] | None = None,
) -> Callable[[Rule], Rule]:
    """Decorator: register a function of one network as the law ``name``; see `Law`."""

    def put(rule: Rule) -> Rule:
        @wraps(rule)
        def guarded(network: Network) -> Mapping[str, Estimate]:
            try:
                return rule(network)
            except ArithmeticError as error:
                raise GraphError(f"law {name!r} leads to numbers that no float holds ({error})") from None

        LAWS.add(name)(Law(name, guarded, steps, measured, averaged, own_init, needs_base, absolute))
        return guarded

    return put


def number(logarithm: float) -> float:
    """``e`` to the power of the logarithm of a rate, or of a factor between rates.

    Raises:
        GraphError: if no float is as large.
    """
    try:
        return exp(logarithm)
    except OverflowError:
        raise GraphError(f"a rate, or a ratio of two, comes to e^{logarithm:.3g}, which no float holds") from None


FADING = 3 / 4
"""Exponent with which the ratio of two networks' rates in their first steps enters the predicted ratio for a whole run.

What sets networks apart in the first steps matters less later on. ¾ is a mean over settings and lengths of runs, see
``docs/evidence/run-length.md``.
"""


def inverse_root(value: int | float, what: str) -> Estimate:
    """The estimate of a learning rate that is proportional to ``value^(-1/2)``; ``value`` may be a huge integer.

    Raises:
        GraphError: if the value is zero, so that the law says nothing.
    """
    if value <= 0:
        raise GraphError(
            f"{what} = 0: no path passes an activation, so this law has no rate for it; use a network with at least "
            "one hidden activation, or law 'none'"
        )
    return Estimate(-log(value) / 2)


def inverse(value: float) -> Estimate:
    """The estimate of a learning rate that is proportional to ``1/value``."""
    return Estimate(-log(value))


__all__ = ["FADING", "GRADIENT", "LAWS", "Carried", "Law", "inverse", "inverse_root", "law", "number"]
