"""From observations to a verdict: levels, slopes, their intervals, and what is at fault.

A fault is found where a whole interval lies outside its tolerance, so that noise alone accuses nothing. Tolerances
lie half way between what is promised and the nearest mistake; ``docs/guide/check.md`` derives them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression, variance
from typing import Literal

from dagscale.checking.family import LayerFacts, Member
from dagscale.checking.measure import Observation, Signal

ALPHA = 0.01
"""Chance of a false alarm over all tests of one kind together (Bonferroni), were every quantity at its tolerance."""

LEVEL = 0.5
"""Octaves that a second moment may be off: half of the smallest wrong in-degree, 1 for 2."""

EXPONENT = 0.25
"""Exponent in size that an rms may have: half of ½, the smallest that a wrong width rule leaves."""

DRIFT = 0.5
"""Octaves that an rms may drift over the whole family in any case: what laws are good to."""

Quantity = Literal["moment", "change", "own"]
CLASSES = ("input", "hidden", "sum", "output")
INNER = ("hidden", "sum")


@dataclass(frozen=True, slots=True)
class Level:
    """The second moment at one layer of one member, as a multiple of what is wanted, in octaves with an interval."""

    member: int
    layer: str
    kind: str
    wanted: float
    moment: float
    low: float
    high: float
    change: float
    own: float | None
    judged: bool
    bounded: bool

    @property
    def off(self) -> int:
        """1 if the moment is surely too large, −1 if it is surely too small, else 0."""
        if not self.judged:
            return 0
        return 1 if self.low > LEVEL else -1 if self.high < -LEVEL and not self.bounded else 0


@dataclass(frozen=True, slots=True)
class Fit:
    """Slope of log2 of a quantity against log2 of the size, for a class of layers or one layer.

    Args:
        quantity: ``moment``: second moment over what is wanted; ``change``: rms change of the layer's output;
            ``own``: the part of it by the layer's own step.
        growing: only growth breaks the promise.
        judged: whether it counts.
        values: the quantity at each member, geometric mean over seeds.
    """

    quantity: Quantity
    name: str
    slope: float
    low: float
    high: float
    tolerance: float
    growing: bool = False
    judged: bool = True
    values: tuple[float, ...] = ()

    @property
    def open(self) -> bool:
        """Whether the test is undecided: the interval lies partly inside the tolerance and partly outside."""
        above, below = self.high > self.tolerance, self.low < -self.tolerance and not self.growing
        return self.judged and not self.off and (above or below)

    @property
    def off(self) -> int:
        """1 if the quantity surely grows with the size, −1 if it surely shrinks, else 0."""
        if not self.judged:
            return 0
        return 1 if self.low > self.tolerance else -1 if self.high < -self.tolerance and not self.growing else 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and why in words."""

    what: Literal["signal", "rate", "update"]
    member: str
    layer: str
    cause: str

    def __str__(self) -> str:
        return f"{self.member}, {self.layer}: {self.cause}" if self.layer else f"{self.member}: {self.cause}"


@dataclass(frozen=True)
class Evidence:
    """Everything measured: per member, one observation a seed, and what is wanted of each of its layers.

    Args:
        redrawn: whether weights and their scale were drawn afresh for every seed.
        set_by_plan: per member, the layers whose moment the init answers for.
        open_level: the init fixes moments up to one common factor, that of the inputs.
    """

    members: Sequence[Member]
    axis: str
    sizes: Sequence[float]
    seen: Sequence[Sequence[Observation]]
    wanted: Sequence[Mapping[str, float]]
    set_by_plan: Sequence[frozenset[str]]
    redrawn: bool
    open_level: bool
    stable: float | None


def levels(evidence: Evidence) -> list[Level]:
    """The second moments of all layers of all members."""
    tests = sum(len(m.layers) for m in evidence.members)
    found: list[Level] = []
    for i, (member, seen) in enumerate(zip(evidence.members, evidence.seen, strict=True)):
        facts = [x for x in member.layers if all(x.name in o.signals for o in seen)]
        logs = {x.name: [_log2(o.signals[x.name].moment / evidence.wanted[i][x.name]) for o in seen] for x in facts}
        level = _common_level(facts, logs, seen) if evidence.open_level else 0.0
        pooled = _pooled(list(logs.values()))
        for x in facts:
            own = variance(logs[x.name]) if len(seen) > 1 else 0.0
            spread = _spread(x, seen[0].signals)
            error = max(own, pooled, spread) / (len(seen) if evidence.redrawn else 1)
            centre = fmean(logs[x.name]) + math.log(2) * own / 2 - level
            reach = _quantile(ALPHA / tests, (len(seen) - 1) * len(facts)) * math.sqrt(error)
            signals = [o.signals[x.name] for o in seen]
            owns = [s.own[-1] for s in signals if s.own is not None]
            found.append(
                Level(
                    i, x.name, x.kind, evidence.wanted[i][x.name] * 2**level, fmean(s.moment for s in signals),
                    centre - reach, centre + reach, math.sqrt(fmean(s.change[-1] for s in signals) * x.degree),
                    math.sqrt(fmean(owns) * x.degree) if owns else None,
                    x.name in evidence.set_by_plan[i], x.kind == "output" or x.shared,
                )
            )  # fmt: skip
    return found


def _common_level(
    facts: Sequence[LayerFacts], logs: Mapping[str, Sequence[float]], seen: Sequence[Observation]
) -> float:
    """log2 of the factor by which inputs' moments are off what is wanted, from ½ to 2 max(1, E x²)."""
    inputs = [x for x in facts if x.kind == "input"]
    if not inputs:
        return 0.0
    level = fmean(fmean(logs[x.name]) for x in inputs)
    entering = fmean(o.signals[x.name].entering for x in inputs for o in seen)
    return min(max(level, -1.0), 1 + max(0.0, _log2(entering)))


def _spread(layer: LayerFacts, signals: Mapping[str, Signal]) -> float:
    """Variance of log2 of a layer's moment, from its own finite width and that of the layers before it."""
    return sum(signals[n].spread ** 2 for n in layer.upstream if n in signals) / math.log(2) ** 2


def fits(evidence: Evidence) -> list[Fit]:
    """Slopes by class, and in a family of growing width by layer too."""
    by_width = evidence.axis == "width"
    kinds = [k for k in CLASSES if all(any(x.kind == k for x in m.layers) for m in evidence.members)]
    moments = {k: _class_table(evidence, k, "moment") for k in kinds}
    moving = kinds
    if not by_width:
        inner = all(any(x.kind in INNER for x in m.layers) for m in evidence.members)
        moving = [k for k in kinds if k != "hidden"] + ["inner"] * inner
    changes = {k: _class_table(evidence, k, "change") for k in moving}
    found = _fits(evidence, "moment", moments, {"output"}) + _fits(
        evidence, "change", changes, {"output"} if by_width else set(moving) - {"inner"}
    )
    if by_width:
        names = [x.name for x in evidence.members[0].layers if x.trainable]
        readouts = {x.name for x in evidence.members[0].layers if x.kind == "output"}
        quantities: tuple[Quantity, ...] = ("own", "change")
        for quantity in quantities:
            tables = {n: _layer_logs(evidence, n, quantity) for n in names}
            found += _fits(evidence, quantity, {n: t for n, t in tables.items() if t is not None}, readouts)
    return found


def _fits(
    evidence: Evidence, quantity: Quantity, tables: Mapping[str, list[list[float]]], growing: set[str]
) -> list[Fit]:
    """One fit a table, a row a member and a column a seed; variances between seeds are shared among them."""
    slopes = {name: _slopes(evidence.sizes, table) for name, table in tables.items()}
    pooled = _pooled(list(slopes.values()))
    found = []
    for name, values in slopes.items():
        judged = quantity != "moment" or any(
            x.kind == name and x.name in s
            for m, s in zip(evidence.members, evidence.set_by_plan, strict=True)
            for x in m.layers
        )
        low, high = _interval(evidence, quantity, name, values, pooled, len(slopes))
        octaves = _log2(evidence.sizes[-1] / evidence.sizes[0])
        tolerance = max(EXPONENT, DRIFT / octaves) * (2 if quantity == "moment" else 1)
        at = tuple(2 ** fmean(row) for row in tables[name])
        found.append(Fit(quantity, name, fmean(values), low, high, tolerance, name in growing, judged, at))
    return found


def _interval(
    evidence: Evidence, quantity: Quantity, name: str, slopes: Sequence[float], pooled: float, tests: int
) -> tuple[float, float]:
    seeds = len(slopes)
    own = variance(slopes) if seeds > 1 else 0.0
    error = max(own, pooled) / seeds
    if not evidence.redrawn or seeds == 1:
        error += _shared_slope(evidence, name) / (1 if quantity == "moment" else 2)
    reach = _quantile(ALPHA / tests, (seeds - 1) * tests) * math.sqrt(error)
    return fmean(slopes) - reach, fmean(slopes) + reach


def _class_table(evidence: Evidence, kind: str, quantity: Quantity) -> list[list[float]]:
    """log2 of one value a member and seed: moments by their geometric mean over the layers of a class, changes by the
    mean square over layers in width, by the largest in depth and topology, where the promise is for the largest.
    """
    table: list[list[float]] = []
    for i, (member, seen) in enumerate(zip(evidence.members, evidence.seen, strict=True)):
        chosen = [x for x in member.layers if x.kind == kind or (kind == "inner" and x.kind in INNER)]
        row = []
        for o in seen:
            there = [(x, o.signals[x.name]) for x in chosen if x.name in o.signals]
            if quantity == "moment":
                row.append(fmean(_log2(s.moment / evidence.wanted[i][x.name]) for x, s in there))
            else:
                squares = [decisive(s.change) * x.degree for x, s in there]
                row.append(_log2(fmean(squares) if evidence.axis == "width" else max(squares)) / 2)
        table.append(row)
    return table


def _layer_logs(evidence: Evidence, name: str, quantity: str) -> list[list[float]] | None:
    """log2 rms of one layer, a row a member and a column a seed; None where it cannot be had, or never moved."""
    table = []
    for seen in evidence.seen:
        row = []
        for o in seen:
            signal = o.signals.get(name)
            if signal is None or (quantity == "own" and signal.own is None):
                return None
            steps = signal.own if quantity == "own" and signal.own is not None else signal.change
            row.append(_log2(decisive(steps)) / 2)
        table.append(row)
    return table


def decisive(steps: Sequence[float]) -> float:
    """The mean square after the first step, for which exponents are derived; where nothing moves yet, after the last.

    Behind a readout that starts at zero nothing moves in the first step.
    """
    return steps[0] if steps[0] > 1e-4 * steps[-1] else steps[-1]


def _slopes(sizes: Sequence[float], table: Sequence[Sequence[float]]) -> list[float]:
    """Least-squares slope against log2 size, for each seed by itself: the members of a seed share its batches."""
    x = [_log2(s) for s in sizes]
    return [linear_regression(x, column).slope for column in zip(*table, strict=True)]


def _shared_slope(evidence: Evidence, name: str) -> float:
    """Variance of a slope because each member's weights were drawn once and not anew for every seed."""
    x = [_log2(s) for s in evidence.sizes]
    centre = fmean(x)
    total = sum((a - centre) ** 2 for a in x)
    error = 0.0
    for a, member, seen in zip(x, evidence.members, evidence.seen, strict=True):
        chosen = [f for f in member.layers if name in (f.name, f.kind) or (name == "inner" and f.kind in INNER)]
        error += (a - centre) ** 2 * max((_spread(f, seen[0].signals) for f in chosen), default=0.0)
    return error / total**2


def too_sharp(evidence: Evidence, member: int) -> float | None:
    """``lr · λ`` over its largest stable value, geometric mean over seeds, if above 1: a reason to look closer.

    None if it is not; 1 where curvature alone does not tell: for other optimisers, and where the Gauss–Newton matrix is
    0 because the loss is linear in the output (log-probabilities).
    """
    stable = evidence.stable
    logs = [
        math.log(o.sharpness / stable)
        for o in evidence.seen[member]
        if stable is not None and o.sharpness is not None and o.sharpness > 0
    ]
    if not logs:
        return 1.0
    return math.exp(fmean(logs)) if fmean(logs) > 0 else None


def surely_worse(ratios: Sequence[float], tests: int) -> bool:
    """Whether the loss is higher at the rate than at the lower one; log ratios count for a factor of 2 at most."""
    cap = math.log(2)
    return _above([min(max(r, -cap), cap) for r in ratios], tests)


def _above(values: Sequence[float], tests: int) -> bool:
    """Whether the mean is above 0 beyond its error."""
    if len(values) == 1:
        return values[0] > 0
    reach = _quantile(2 * ALPHA / tests, len(values) - 1) * math.sqrt(variance(values) / len(values))
    return fmean(values) > reach


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """Mean of the groups' variances."""
    found = [variance(g) for g in groups if len(g) > 1]
    return fmean(found) if found else 0.0


def _quantile(alpha: float, dof: int) -> float:
    """The two-sided quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(max(dof, 1), 1 - alpha / 2)) if dof > 0 else float(stdtrit(1e6, 1 - alpha / 2))


def _log2(value: float) -> float:
    """log2, what is zero, infinite or no number taken as a very small or large one."""
    return math.log2(min(max(value, 1e-100), 1e100)) if not math.isnan(value) else math.log2(1e100)
