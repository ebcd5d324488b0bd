"""What each rule loses when it carries a rate from one setting to another, and the exponents of the best rates."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dagscale.bench.replay.optima import Optimum
from dagscale.bench.replay.rules import RULES, Context, value, without
from dagscale.bench.replay.runs import Architecture, Layout, Setting
from dagscale.errors import DagscaleError, PlanError

Interval = tuple[float, float]

_BLANK: dict[str, Any] = {"architecture": Architecture(""), "examples": None, "batch": None, "decay": None}

RESAMPLES = 2000
"""Bootstrap resamples of the groups."""

FEW = 5
"""Fewer groups say nothing of others."""


@dataclass(frozen=True)
class Carried:
    """One rate carried by one rule.

    Attributes:
        group: what base and target have in common.
        lost: cost at the rate above the cost at the target's best rate; ``inf`` if training diverges there.
        octaves: log2 of the rate over the target's best.
        covered: whether the rate lies within the target's grid; else ``lost`` is that at the grid's end, or more.
    """

    rule: str
    group: Hashable
    base: Setting
    target: Setting
    lost: float
    octaves: float
    covered: bool


@dataclass(frozen=True)
class Score:
    """How a rule did over all pairs of base and target.

    Attributes:
        pairs, groups: how many there were.
        lost: mean loss; over the pairs that did not diverge.
        interval: 95 % bootstrap interval over groups, or over targets where there are fewer than five groups; None
            where these are too few too.
        worst: largest loss; ``inf`` if any diverged.
        octaves: mean of the distance, and ``bias`` the mean with its sign: positive is too high a rate.
        outside: rates outside the target's grid, whose loss is known only from below.
        diverged: pairs where training diverges.
    """

    rule: str
    pairs: int
    groups: int
    lost: float
    interval: Interval | None
    worst: float
    octaves: float
    bias: float
    outside: int
    diverged: int


AXIS_KEYS: dict[str, tuple[str, ...]] = {
    "network": ("architecture",),
    "horizon": ("examples",),
    "batch": ("batch",),
    "horizon, batch": ("examples", "batch"),
    "network, horizon, batch": ("architecture", "examples", "batch"),
    "decay": ("decay",),
}
"""Axis → the fields of a setting in which base and target may differ."""


def groups(found: Iterable[Optimum], axis: str) -> dict[Setting, list[Optimum]]:
    """Inner optima that agree in everything but the axis, two at least, smallest first.

    Where batch and horizon may both differ, each network and horizon is there once, with its best batch size.
    """
    together: dict[Setting, list[Optimum]] = defaultdict(list)
    for optimum in _inner(found, axis):
        together[_blank(optimum.setting, axis)].append(optimum)
    return {
        key: sorted(members, key=lambda o: size_of(o.setting, axis))
        for key, members in together.items()
        if len(members) > 1
    }


def at_best_batch(found: Iterable[Optimum]) -> list[Optimum]:
    """Of each network, recipe and horizon the batch size with the lowest cost, if it is inside its grid."""
    by: dict[Setting, list[Optimum]] = defaultdict(list)
    for optimum in found:
        by[replace(optimum.setting, batch=None)].append(optimum)
    best = [(min(members, key=lambda o: o.cost), members) for members in by.values() if len(members) > 2]
    ends = [(min(batches), max(batches)) for _, ms in best for batches in [[m.setting.batch or 0 for m in ms]]]
    return [o for (o, _), (low, high) in zip(best, ends, strict=True) if low < (o.setting.batch or 0) < high]


def size_of(setting: Setting, axis: str) -> tuple[float, ...]:
    """By what settings are put in order along an axis."""
    a = setting.architecture
    network = (a.parameters or 0.0, a.depth or 0.0, a.width or 0.0) if "network" in axis else ()
    return *network, *(getattr(setting, name) or 0.0 for name in AXIS_KEYS[axis] if name != "architecture")


def carry(
    found: Sequence[Optimum],
    axis: str,
    layout: Layout,
    *,
    pairs: Callable[[Sequence[Optimum]], Iterable[tuple[Optimum, Optimum]]],
) -> tuple[list[Carried], dict[str, str]]:
    """Carry rates over by every rule that answers for the axis.

    Args:
        found: optima of any kind; only inner ones serve.
        pairs: a group → the (base, target) to score.

    Returns:
        every rate that was carried, and rule → for how many pairs it says nothing, and why, where there are any.
    """
    carried: list[Carried] = []
    silent: dict[str, list[str]] = defaultdict(list)
    together = groups(found, axis)
    for key, members in together.items():
        context = Context(layout, _others(found, key, axis))
        for name in RULES:
            for base, target in pairs(members) if axis in RULES[name].axes else ():
                try:
                    factor = RULES[name].factor(base.setting, target.setting, context)
                except DagscaleError as error:
                    silent[name].append(str(error))
                    continue
                carried.append(judge(name, key, base, target, base.rate * factor))
    asked = Counter(one.rule for one in carried) + Counter({name: len(why) for name, why in silent.items()})
    return carried, {name: f"{len(why)} of {asked[name]} pairs: {why[0]}" for name, why in silent.items()}


def judge(name: str, group: Hashable, base: Optimum, target: Optimum, rate: float) -> Carried:
    """What a rate loses on the target."""
    lost = max(target.curve.at(rate) - target.cost, 0.0)
    octaves = math.log2(rate / target.rate)
    return Carried(name, group, base.setting, target.setting, lost, octaves, target.curve.covers(rate))


def _others(found: Sequence[Optimum], key: Setting, axis: str) -> tuple[Optimum, ...]:
    """Inner optima that a yardstick may be fitted to: of other recipes if there are any, else of other groups."""
    inner = _inner(found, axis)
    other = tuple(o for o in inner if o.setting.recipe != key.recipe)
    return other or tuple(o for o in inner if _blank(o.setting, axis) != key)


def _inner(found: Iterable[Optimum], axis: str) -> list[Optimum]:
    return [o for o in (at_best_batch(found) if "horizon, batch" in axis else found) if o.kind == "inner"]


def _blank(setting: Setting, axis: str) -> Setting:
    """A setting without what may differ along the axis."""
    return replace(setting, **{name: _BLANK[name] for name in AXIS_KEYS[axis]})


def from_smallest(members: Sequence[Optimum]) -> Iterable[tuple[Optimum, Optimum]]:
    """The smallest as the base of all others."""
    return [(members[0], target) for target in members[1:]]


def any_base(members: Sequence[Optimum]) -> Iterable[tuple[Optimum, Optimum]]:
    """Every one as the base of all others."""
    return [(base, target) for base in members for target in members if base is not target]


def scores(carried: Iterable[Carried]) -> list[Score]:
    """A score a rule, the best first."""
    by: dict[str, list[Carried]] = defaultdict(list)
    for one in carried:
        by[one.rule].append(one)
    made = [score(name, ones) for name, ones in by.items()]
    return sorted(made, key=lambda s: (s.lost, s.rule))


def score(name: str, ones: Sequence[Carried]) -> Score:
    """Of one rule."""
    trained = [one for one in ones if math.isfinite(one.lost)]
    by: dict[Hashable, list[float]] = defaultdict(list)
    few = len({one.group for one in ones}) < FEW
    for one in trained:
        by[one.target if few else one.group].append(one.lost)
    means = np.array([np.mean(lost) for lost in by.values()])
    counts = np.array([len(lost) for lost in by.values()], float)
    return Score(
        name,
        len(ones),
        len({one.group for one in ones}),
        float(np.mean([one.lost for one in trained])) if trained else math.inf,
        ratio_interval(means * counts, counts),
        max(one.lost for one in ones),
        float(np.mean([abs(one.octaves) for one in ones])),
        float(np.mean([one.octaves for one in ones])),
        sum(not one.covered for one in ones),
        len(ones) - len(trained),
    )


def ratio_interval(above: np.ndarray, below: np.ndarray) -> Interval | None:
    """95 % bootstrap interval (BCa) of ``Σ above / Σ below`` over groups; None for fewer than ``FEW``, or
    equal, ones."""
    from scipy.stats import bootstrap

    if len(above) < FEW or np.ptp(above / below) < 1e-12 * max(1.0, float(np.abs(above / below).max())):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data so even that no interval can be told, which the NaN says too
        drawn = bootstrap(
            (above, below),
            lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            random_state=np.random.default_rng(0),
        )
    low, high = float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


# --- exponents ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exponent:
    """``best rate ∝ variable^value``, within groups that agree in all else.

    Attributes:
        interval: 95 % bootstrap interval over groups.
        median: of the groups' own exponents.
        groups: how many there are, and ``optima`` how many best rates.
    """

    variable: str
    value: float
    interval: Interval | None
    median: float
    groups: int
    optima: int


SPAN = 1.4
"""A group must span so large a ratio of the variable."""


def exponent(
    found: Iterable[Optimum], variable: str, rate: Callable[[Optimum], float] = lambda o: o.rate
) -> Exponent | None:
    """Of one variable: ``depth``, ``width``, ``parameters``, ``decay``, ``batch`` or ``examples``; None if no two
    optima differ in it alone.

    Each group has its own level. Groups weigh by how far they span the variable, as in one least-squares fit.
    """
    together: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for optimum in found:
        if optimum.kind == "inner":
            try:
                x = math.log2(value(optimum.setting, variable))
            except PlanError:
                continue
            together[without(optimum.setting, variable)].append((x, math.log2(rate(optimum))))
    wide = [
        np.array(points)
        for points in together.values()
        if max(x for x, _ in points) - min(x for x, _ in points) > math.log2(SPAN)
    ]
    if not wide:
        return None
    centred = [points - points.mean(0) for points in wide]
    above = np.array([float((p[:, 0] * p[:, 1]).sum()) for p in centred])
    below = np.array([float((p[:, 0] ** 2).sum()) for p in centred])
    return Exponent(
        variable,
        float(above.sum() / below.sum()),
        ratio_interval(above, below),
        float(np.median(above / below)),
        len(wide),
        sum(map(len, wide)),
    )
