"""Learning rates of a training as its optimiser has them at each step, held against the plan's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dagscale.watching.planned import Planned

CLOSE = 1.02
"""Rates whose ratio is off by less than this factor are the same: schedules round."""

FLOOR = 0.05
"""A schedule's lowest rate, added to each group's, that is small against the plan's own rate."""


@dataclass(frozen=True)
class Rate:
    """What some parameters are trained with at one step.

    Attributes:
        names: the parameters, all of one group and one planned rate.
        group: which group of the optimiser they are in.
        planned, lr: the plan's rate, before any schedule, and the group's now.
        numel: number of their entries.
    """

    names: tuple[str, ...]
    group: int
    planned: float
    lr: float
    numel: int

    @property
    def ratio(self) -> float:
        """The schedule's factor, as these parameters have it."""
        return self.lr / self.planned


def common(rates: Sequence[Rate]) -> float:
    """The factor that most entries share: the schedule's. 0 where no rate is above 0."""
    ordered = sorted((r.ratio, r.numel) for r in rates)
    half, total = 0, sum(n for _, n in ordered)
    for ratio, numel in ordered:
        half += numel
        if 2 * half >= total:
            return ratio
    return 0.0


def off(rates: Sequence[Rate]) -> list[Rate]:
    """Those that do not have the common factor."""
    factor = common(rates)
    return [r for r in rates if not _same(r.ratio, factor)]


@dataclass
class Rates:
    """The rates over a training so far.

    Attributes:
        steps: steps seen.
        first: the first step at which the groups' rates were not in the plan's ratios; 0 if none.
        wrong: number of such steps.
        earliest, latest: the rates at the first and the last of them.
        now: the rates at the last step.
        factor, low, high: the schedule's factor at the last step, the least and the largest.
    """

    steps: int = 0
    first: int = 0
    wrong: int = 0
    earliest: tuple[Rate, ...] = ()
    latest: tuple[Rate, ...] = ()
    now: tuple[Rate, ...] = ()
    low: float = math.inf
    high: float = 0.0
    factor: float = 0.0
    _key: Any = None
    _places: list[tuple[tuple[str, ...], int, float, int]] = field(default_factory=list)

    def see(self, groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, Planned]) -> None:
        """One step."""
        key = tuple((id(g), len(g["params"])) for g in groups)
        if key != self._key:
            self._key, self._places = key, _places(groups, parameters)
        self.now = tuple(
            Rate(names, i, planned, float(groups[i]["lr"]), numel) for names, i, planned, numel in self._places
        )
        self.steps += 1
        self.factor = common(self.now)
        self.low, self.high = min(self.low, self.factor), max(self.high, self.factor)
        if self.wrong_now:
            if not self.wrong:
                self.first, self.earliest = self.steps, self.now
            self.latest = self.now
            self.wrong += 1

    @property
    def wrong_now(self) -> bool:
        """Whether the last step's rates are not in the plan's ratios."""
        return bool(off(self.now))


def explained(seen: Rates, whole: float, kinds: Mapping[str, str]) -> tuple[str, str, bool]:
    """Which layers' rates are not the plan's, why in words and what to do, and whether that is harmless.

    Args:
        seen: the rates so far, wrong at some step.
        whole: the plan's own rate.
        kinds: parameter name → its kind.
    """
    rates, first = seen.latest, seen.first
    wrong = off(rates)
    spread = max(r.planned for r in rates) / min(r.planned for r in rates)
    since = f"from step {first} on" if first > 1 else "from the first step on"
    if _mixed(rates):
        return "", (
            f"the optimizer's groups hold parameters of different planned rates together (up to {spread:.3g} × apart): "
            "it was not made from the plan's groups; make it with plan.optimizer(model), or of plan.param_groups(model)"
        ), False  # fmt: skip
    if all(_same(r.lr, rates[0].lr) for r in rates):
        return "", (
            f"all groups have the one rate {rates[0].lr:.3g} {since}, where the plan's are up to {spread:.3g} × apart: "
            "a scheduler or loop overwrites them; let it multiply each group's own rate (plan.schedule(optimizer), "
            "LambdaLR, or a list of rates as OneCycleLR's max_lr)"
        ), False  # fmt: skip
    floor = _floor(seen)
    if floor is not None:
        share = floor / whole
        return "", (
            f"the schedule adds a lowest rate of {floor:.3g} to every group, so that their ratios fade with it "
            f"({share:.2g} of the plan's rate); give the lowest rate as a share of each group's own, cosine(final=…)"
        ), share < FLOOR  # fmt: skip
    power = _power(rates)
    if power is not None:
        twice = "applied twice" if _same(power, 2) else f"applied {power:.3g} times"
        return "", (
            f"the plan's factors on the rates are {twice} {since}: plan.param_groups has them already; take out "
            "whatever scales the groups again (another μP optimizer, a loop over the groups)"
        ), False  # fmt: skip
    factor = common(rates)
    names = [name for r in wrong for name in r.names]
    worst = max(wrong, key=lambda r: abs(math.log(r.ratio / factor)) if r.ratio > 0 < factor else math.inf)
    by = f"{worst.ratio / factor:.3g} ×" if factor else "not"
    missing = all(_same(r.lr, whole * factor) for r in wrong)
    why = "its factor is missing" if missing else "something sets that group's rate by itself"
    kind = {kinds[name] for name in names}
    of = f"the {kind.pop()}'s" if len(kind) == 1 else "their"
    return listed(names), (
        f"{of} rate is {by} the plan's, against the others, {since}: {why}; take rates from plan.param_groups(model), "
        "and let schedules multiply each group's own"
    ), False  # fmt: skip


def listed(names: Iterable[str], most: int = 3) -> str:
    """A few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _places(
    groups: Sequence[Mapping[str, Any]], parameters: Mapping[str, Planned]
) -> list[tuple[tuple[str, ...], int, float, int]]:
    """(names, index of the group, planned rate, entries): each group by planned rate."""
    names = {id(own.parameter): name for name, own in parameters.items()}
    found: dict[tuple[int, float], list[str]] = {}
    for i, group in enumerate(groups):
        for p in group["params"]:
            name = names.get(id(p))
            if name is not None and parameters[name].lr > 0:
                found.setdefault((i, parameters[name].lr), []).append(name)
    return [
        (tuple(own), i, planned, sum(parameters[n].parameter.numel() for n in own))
        for (i, planned), own in found.items()
    ]


def _mixed(rates: Sequence[Rate]) -> bool:
    """Whether some group holds parameters of different planned rates."""
    planned: dict[int, set[float]] = {}
    for r in rates:
        planned.setdefault(r.group, set()).add(r.planned)
    return any(len(own) > 1 for own in planned.values())


def _same(a: float, b: float) -> bool:
    if a <= 0 or b <= 0:
        return a == b
    return max(a / b, b / a) < CLOSE


def _floor(seen: Rates) -> float | None:
    """F, if every rate is ``a · planned + (1 - a) F`` with a from 0 to 1, as of schedules that end at a lowest rate.

    Two planned rates alone always are of this form. There, they must have been the plan's in the beginning, and have
    the same F under two factors a.
    """
    found = _line(seen.latest)
    if found is None or len({r.planned for r in seen.latest}) > 2:
        return None if found is None else found[1]
    if seen.first == 1:
        return None
    before = _line(seen.earliest)
    if seen.wrong == 1 or (before is not None and before[0] != found[0] and abs(before[1] / found[1] - 1) < 0.05):
        return found[1]
    return None


def _line(rates: Sequence[Rate]) -> tuple[float, float] | None:
    """(a, F) of `_floor`."""
    low, high = min(rates, key=lambda r: r.planned), max(rates, key=lambda r: r.planned)
    if low.planned == high.planned:
        return None
    a = (high.lr - low.lr) / (high.planned - low.planned)
    b = low.lr - a * low.planned
    fits = all(_same(r.lr, a * r.planned + b) for r in rates)
    return (a, b / (1 - a)) if fits and 0 <= a < 1 and b > 0 else None


def _power(rates: Sequence[Rate]) -> float | None:
    """s, if every rate is proportional to the plan's to the power s, as those are whose factors are applied s times."""
    low, high = min(rates, key=lambda r: r.planned), max(rates, key=lambda r: r.planned)
    if low.planned == high.planned or low.lr <= 0 or high.lr <= 0:
        return None
    s = math.log(high.lr / low.lr) / math.log(high.planned / low.planned)
    fits = all(r.lr > 0 and _same(r.lr / low.lr, (r.planned / low.planned) ** s) for r in rates)
    whole = abs(s - round(s)) < 0.02 and round(s) > 1
    return float(round(s)) if fits and whole else None
