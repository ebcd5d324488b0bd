"""Methods: ways to choose a rate, or to train without one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dagscale.inits import INITS
from dagscale.laws import LAWS, Law
from dagscale.training.optimizers import OPTIMIZERS

AFFECTS_TRAINING = False


def plainly(target: str, base: str) -> Mapping[str, Any]:
    """Options of a training run for which the init's name alone says how it starts."""
    return {"kind": "train"}


def narrow(target: str, base: str) -> str:
    """The target at the base's width, with as many heads."""
    for name in ("width", "heads"):
        option = re.search(rf"\b{name}=\d+", base)
        target = re.sub(rf"\b{name}=\d+", option[0], target) if option else target
    return target


def by_width(target: str, base: str) -> Mapping[str, Any]:
    """Training with each layer's init and rate scaled by how it has grown from the base."""
    return plainly(target, base) if narrow(target, base) == target else {"kind": "train", "scaled_from": base}


def folded(target: str, base: str) -> Mapping[str, Any]:
    """Training with the rules of width and residual depth folded into the settings of each layer."""
    if target == base:
        return plainly(target, base)
    return {"kind": "train", "scaled_from": base, "depth": "completep"}


SCALINGS: Mapping[str, Callable[[str, str], Mapping[str, Any]]] = {"mup": by_width, "mup+completep": folded}
"""How a method's name spells the scaling of layers → the options of its training runs."""


@dataclass(frozen=True)
class Method:
    """A way to choose a rate, or to train without one.

    Its prediction for an architecture is a run of its own, of the kind that ``options`` names. The run answers with
    ``steps``, what it cost in optimiser steps, and one of: ``factor``, on the base's rate; ``lr``, a rate; ``loss``,
    what training came to; ``trials``, trainings one after another, of which the best counts.

    Attributes:
        name: what tables call it.
        init: the init that base and target get; of several, as ``moments,keep``, the one under which the base trains
            best.
        options: of the prediction run.
        training: (target, base) → options of the training runs that it is judged by.
        truth: a name for these runs' curves; methods that share it share the runs.
        per_seed: one prediction run a seed, rather than one in all.
        optimizers: those that it is for; empty means any.
        package: what it needs beyond dagscale's own requirements, as pip and as Python name it.
    """

    name: str
    init: str
    options: Mapping[str, Any]
    training: Callable[[str, str], Mapping[str, Any]] = plainly
    truth: str = ""
    per_seed: bool = False
    optimizers: frozenset[str] = frozenset()
    package: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth", self.truth or self.init)

    def covers(self, optimizer: str) -> bool:
        """Whether it says something about this optimiser."""
        return not self.optimizers or optimizer in self.optimizers

    @property
    def carried(self) -> bool:
        """Whether its rate is the base's times a factor."""
        kind: str = self.options["kind"]
        return kind == "law"

    @property
    def searched(self) -> bool:
        """Whether it begins with a search on the base."""
        return self.carried or self.options["kind"] == "plan"


def law_method(law: str, init: str, scaling: str = "none") -> Method:
    """A law under an init; ``scaling`` of layers by ``mup`` or ``mup+completep``.

    Raises:
        UnknownNameError: for an unknown law or init.
    """
    INITS[init]
    plain = Method(f"{law} / {init}", init, {"kind": "law", "law": law}, optimizers=_named(LAWS[law]))
    if scaling == "none":
        return plain
    name, truth = f"{plain.name} / {scaling}", f"{init} / {scaling}"
    training = SCALINGS[scaling]
    depth = {} if training is by_width else {"depth": "completep"}
    return replace(plain, name=name, truth=truth, options={**plain.options, "scaled": True, **depth}, training=training)


def _named(law: Law) -> frozenset[str]:
    """The optimisers that a law is for, by name; empty for any."""
    if not law.steps:
        return frozenset()
    return frozenset(name for name in OPTIMIZERS if law.covers(OPTIMIZERS[name]))


def law_methods() -> Iterator[Method]:
    """Every law under the inits that dagscale offers, of those with an init of their own the released rule; and what
    is there for networks that keep their own init."""
    for init in ("moments", "in-degree"):
        yield from (law_method(law, init) for law in LAWS if not LAWS[law].own_init)
    yield law_method("released", "released")
    yield law_method("short-run", "keep")
