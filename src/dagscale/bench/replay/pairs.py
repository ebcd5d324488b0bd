"""Rate and decay together: what a network loses when one is tuned without the other, and how the pair carries over."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from dagscale.bench.replay.optima import Optimum
from dagscale.bench.replay.runs import Architecture, Setting
from dagscale.bench.replay.transfer import Carried, size_of
from dagscale.scaling.horizon import HorizonScaling, horizon_scaling


@dataclass(frozen=True)
class Surface:
    """Cost over (rate, decay) of one network, recipe and horizon.

    Attributes:
        setting: with no decay.
        slices: the best rate and the curve at each decay, by ascending decay.
        best: the slice with the lowest cost among those with an inner best rate.
    """

    setting: Setting
    slices: tuple[Optimum, ...]
    best: Optimum

    def at(self, rate: float, decay: float) -> float:
        """The cost at a pair. Between two decays that were tried it is interpolated in the logarithm of the decay, at
        the same product of rate and decay, along which the valley runs; beyond them NaN."""
        decays = [_decay(o) for o in self.slices]
        for decay_, one in zip(decays, self.slices, strict=True):
            if math.isclose(decay, decay_, rel_tol=1e-6):
                return one.curve.at(rate)
        above = next((i for i, d in enumerate(decays) if d > decay), 0)
        if not above:
            return math.nan
        low, high = decays[above - 1], decays[above]
        share = math.log(decay / low) / math.log(high / low)
        ends = [
            one.curve.at(rate * decay / d)
            for one, d in zip(self.slices[above - 1 : above + 1], (low, high), strict=True)
        ]
        return (1 - share) * ends[0] + share * ends[1]


def surfaces(found: Iterable[Optimum]) -> list[Surface]:
    """Of every network, recipe and horizon with two decays at least and an inner best rate at one of them."""
    by: dict[Setting, list[Optimum]] = defaultdict(list)
    for optimum in found:
        if optimum.setting.decay:
            by[replace(optimum.setting, decay=None)].append(optimum)
    made = []
    for setting, members in by.items():
        inner = [o for o in members if o.kind == "inner"]
        if len(members) > 1 and inner:
            best = min(inner, key=lambda o: o.cost)
            made.append(Surface(setting, tuple(sorted(members, key=_decay)), best))
    return made


def across_networks(all_of: Sequence[Surface]) -> list[Carried]:
    """From the best pair of the smallest network to all others of the same recipe and horizon.

    Ways: the pair as it is; and for each decay that was tried, put in place of the base's: the rate tuned there, the
    base's rate, and the rate that keeps the base's product. What is lost is held against the target's own best pair.
    """
    carried = []
    for key, members in _together(all_of, "architecture").items():
        base = members[0].best
        for target in members[1:]:
            carried.append(_judge("the base's pair", key, base, target, base.rate, _decay(base)))
            for one in target.slices:
                decay = _decay(one)
                for way, rate in (
                    ("rate tuned", one.rate),
                    ("base's rate", base.rate),
                    ("base's product", base.rate * _decay(base) / decay),
                ):
                    carried.append(_judge(f"{way}, decay {decay:g}", key, base, target, rate, decay))
    return carried


def across_horizons(all_of: Sequence[Surface]) -> list[Carried]:
    """From the best pair at the shortest horizon to the longer ones of the same network.

    A rule that keeps AdamW's timescale changes nothing when more epochs pass over the same data, as long as it is
    measured in epochs; measured in runs it divides the decay by ``m_D``. Both are there.
    """
    carried = []
    for key, members in _together(all_of, "examples").items():
        base = members[0].best
        for target in members[1:]:
            growth = (target.setting.examples or 1) / (members[0].setting.examples or 1)
            moves = {
                "pair as it is": HorizonScaling(),
                "power": horizon_scaling("power", 1.0, growth),
                "completed-p": horizon_scaling("completed-p", 1.0, growth),
                "decay / m_D (timescale of the run)": horizon_scaling("timescale", 1.0, growth),
                "rate / m_D": HorizonScaling(lr=1 / growth),
            }
            judged = [
                _judge(way, key, base, target, base.rate * move.lr, _decay(base) * move.weight_decay)
                for way, move in moves.items()
            ]
            if not any(math.isnan(one.lost) for one in judged):  # all ways are scored on the same pairs
                carried += judged
    return carried


def _judge(way: str, key: Hashable, base: Optimum, target: Surface, rate: float, decay: float) -> Carried:
    cost = target.at(rate, decay)
    lost = cost - target.best.cost if math.isnan(cost) else max(cost - target.best.cost, 0.0)
    octaves = math.log2(rate * decay / (target.best.rate * _decay(target.best)))
    nearest = min(target.slices, key=lambda o: abs(math.log(_decay(o) / decay)))
    covered = nearest.curve.covers(rate * decay / _decay(nearest))
    return Carried(way, key, base.setting, replace(target.setting, decay=decay), lost, octaves, covered)


def _together(all_of: Iterable[Surface], field: str) -> dict[Hashable, list[Surface]]:
    """Surfaces that differ in one field only, the smallest first."""
    axis = "network" if field == "architecture" else "horizon"
    blank = {field: Architecture("") if field == "architecture" else None}
    by: dict[Hashable, list[Surface]] = defaultdict(list)
    for one in all_of:
        by[replace(one.setting, **blank)].append(one)  # type: ignore[arg-type]
    return {key: sorted(ms, key=lambda s: size_of(s.setting, axis)) for key, ms in by.items() if len(ms) > 1}


def _decay(optimum: Optimum) -> float:
    return optimum.setting.decay or 0.0
