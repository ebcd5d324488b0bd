"""One file of runs, scored: every law and rule that says anything there, exponents, and pairs of rate and decay."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from dagscale.bench.replay import layouts  # noqa: F401  puts the known layouts into their registry
from dagscale.bench.replay.optima import Kind, LeftOut, Optimum, by_kind, left_out, optima
from dagscale.bench.replay.pairs import across_horizons, across_networks, surfaces
from dagscale.bench.replay.rules import AXES, RULES
from dagscale.bench.replay.runs import Metric, Runs, Setting, in_brackets, read_runs
from dagscale.bench.replay.transfer import (
    Carried,
    Exponent,
    Score,
    any_base,
    at_best_batch,
    carry,
    exponent,
    from_smallest,
    scores,
    size_of,
)  # fmt: skip
from dagscale.errors import DataError
from dagscale.rates import find_band
from dagscale.scaling.horizon import step_law_optimum
from dagscale.shown import counted


@dataclass(frozen=True)
class AxisScores:
    """Scores along one axis.

    Attributes:
        smallest: with the smallest setting as the base of all others.
        any_base: with each as the base of all others.
        by_base: rule → base → mean loss; for networks.
        silent: rule → for how many pairs it says nothing, and why.
    """

    axis: str
    smallest: tuple[Score, ...]
    any_base: tuple[Score, ...]
    by_base: Mapping[str, Mapping[str, float]]
    silent: Mapping[str, str]


@dataclass(frozen=True)
class NamedExponent:
    """An exponent over a part of the optima, found twice: from parabolas, and from the middles of bands."""

    part: str
    found: Exponent
    by_bands: float | None


@dataclass(frozen=True)
class Judged:
    """Everything that one metric says.

    Attributes:
        kinds: how many best rates were inside the grid, at its edge, unclear; ``skipped``: settings with runs at fewer
            than three rates, or that always diverged.
        octave: median cost of a rate that is an octave off, above the best.
        network_pairs, horizon_pairs: what carrying rate and decay together loses.
        formula: Step Law's formula and yardsticks for it; for language models only.
    """

    metric: Metric
    optima: tuple[Optimum, ...]
    kinds: Mapping[Kind, int]
    skipped: int
    left_out: tuple[LeftOut, ...]
    octave: float
    exponents: tuple[NamedExponent, ...]
    axes: tuple[AxisScores, ...]
    network_pairs: tuple[Score, ...] = ()
    horizon_pairs: tuple[Score, ...] = ()
    formula: tuple[Score, ...] = ()


@dataclass(frozen=True)
class Replay:
    """A file of runs and what came of it, a part for each metric, the main one first."""

    runs: Runs
    judged: tuple[Judged, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single runs, as plain data that tables and pictures are made from.

        Numbers have six digits; what is infinite (a run that diverged) or unknown is None.
        """
        found: dict[str, Any] = _plain(
            {
                "format": 1,
                "layout": self.runs.name,
                "source": self.runs.layout.source,
                "runs": len(self.runs.runs),
                "notes": self.runs.notes,
                "rules": {name: RULES[name].source for name in RULES},
                "metrics": [_judged(judged) for judged in self.judged],
            }
        )
        return found


def replay(path: str | Path) -> Replay:
    """Score all laws and rules on a file of finished runs; nothing is trained.

    Raises:
        DataError: if the file cannot be read or scored, see :func:`dagscale.bench.replay.runs.read_runs`.
    """
    runs = read_runs(path)
    judged = tuple(judge(runs, metric) for metric in runs.layout.metrics)
    if not judged[0].axes:
        inner = counted(judged[0].kinds["inner"], "setting")
        raise DataError(
            f"{Path(path).name}: nothing to carry a rate between: the file has {inner} with a best rate inside the "
            "grid, and no two that agree in all but network, decay, batch or horizon; add runs, or columns that say "
            f"what differs{in_brackets(runs.notes)}"
        )
    return Replay(runs, judged)


def _judged(judged: Judged) -> dict[str, Any]:
    found = {name: value for name, value in vars(replace(judged, optima=())).items() if name != "optima"}
    rates = [
        {**asdict(o.setting), "kind": o.kind, "rate": o.rate, "cost": o.cost, "recipe": dict(o.setting.recipe)}
        for o in judged.optima
    ]
    return {**found, "best_rates": rates}


def _plain(value: Any) -> Any:
    """As JSON has it: dataclasses and mappings as dicts, sequences as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def judge(runs: Runs, metric: Metric) -> Judged:
    """What one metric says."""
    found = tuple(optima(runs.runs, metric))
    inner = [o for o in found if o.kind == "inner"]
    off = sorted((o.curve.at(2 * o.rate) + o.curve.at(o.rate / 2)) / 2 - o.cost for o in inner)
    octave = off[len(off) // 2] if off else math.nan
    plane = surfaces(found)
    return Judged(
        metric,
        found,
        by_kind(found),
        len({run.setting for run in runs.runs if metric.name in run.costs}) - len(found),
        tuple(left_out(runs.runs, metric)),
        octave,
        tuple(exponents(found, octave)),
        tuple(one for axis in AXES if (one := _axis(runs, found, axis)) is not None),
        tuple(scores(across_networks(plane))),
        tuple(scores(across_horizons(plane))),
        tuple(scores(_formula(inner))) if runs.name == "step-law" else (),
    )


def _axis(runs: Runs, found: Sequence[Optimum], axis: str) -> AxisScores | None:
    smallest, _ = carry(found, axis, runs.layout, pairs=from_smallest)
    if not smallest:
        return None
    anywhere, silent = carry(found, axis, runs.layout, pairs=any_base)
    by: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(anywhere, key=lambda one: size_of(one.base, axis)) if axis == "network" else ():
        if math.isfinite(one.lost):
            by[one.rule][one.base.architecture.name].append(one.lost)
    means = {rule: {base: sum(lost) / len(lost) for base, lost in bases.items()} for rule, bases in by.items()}
    return AxisScores(axis, tuple(scores(smallest)), tuple(scores(anywhere)), means, silent)


def exponents(found: Sequence[Optimum], width: float) -> Iterable[NamedExponent]:
    """Of every variable that varies alone, and those of batch and horizon on either side of the best batch.

    Args:
        width: of the bands, in units of cost above the best.
    """

    def named(part: str, found: Iterable[Optimum], variable: str) -> Iterable[NamedExponent]:
        chosen = list(found)
        value = exponent(chosen, variable)
        if value is not None:
            bands = exponent(chosen, variable, lambda o: band_middle(o, width))
            yield NamedExponent(part, value, None if bands is None else bands.value)

    sizes = [v for v in ("depth", "width") if exponent(found, v) is not None]
    for variable in (*(sizes or ["parameters"]), "decay", "batch", "examples"):
        yield from named(variable, found, variable)
    best = {replace(o.setting, batch=None): o.setting.batch or 0 for o in at_best_batch(found)}
    for variable in ("batch", "examples") if best else ():
        for where, side in (("below", -1), ("above", 1)):
            part = [
                o
                for o in found
                if (b := best.get(replace(o.setting, batch=None))) and side * ((o.setting.batch or 0) - b) >= 0
            ]
            yield from named(f"{variable}, batch {where} its best", part, variable)
    if best:
        free = [replace(o, setting=replace(o.setting, batch=None)) for o in at_best_batch(found)]
        yield from named("examples, each with its best batch", free, "examples")


def band_middle(optimum: Optimum, width: float) -> float:
    """The geometric middle of the band of rates that cost at most ``width`` more than the best run, as a search finds
    it, ends interpolated."""
    levels = optimum.curve.levels
    costs = [cost for _, cost in levels]
    tolerance = width / max(abs(min(costs)), 1e-9)
    low, high = find_band([2.0**x for x, _ in levels], costs, tolerance, widest=math.inf)
    return math.sqrt(low * high)


def _formula(inner: Sequence[Optimum]) -> list[Carried]:
    """The Step Law's rate and batch for each size and horizon, and one pair for all, against the best of the grid."""
    by: dict[Setting, list[Optimum]] = defaultdict(list)
    for optimum in inner:
        by[replace(optimum.setting, batch=None)].append(optimum)
    best = {key: min(members, key=lambda o: o.cost) for key, members in by.items()}
    rate, batch = (math.exp(sum(math.log(value(o)) for o in best.values()) / len(best)) for value in (_rate, _batch))
    ways: dict[str, Callable[[Setting], tuple[float, float]]] = {
        "formula": lambda s: step_law_optimum(s.architecture.parameters or 1, s.examples or 1),
        "mean of the best rates and batches": lambda s: (rate, batch),
    }
    carried = []
    for key, members in by.items():
        for name, way in ways.items():
            lr, tokens = way(key)
            at = min(members, key=lambda o: abs(math.log(_batch(o) / tokens)))
            lost = at.curve.at(lr) - best[key].cost
            octaves = math.log2(lr / best[key].rate)
            carried.append(Carried(name, key, key, at.setting, max(lost, 0.0), octaves, at.curve.covers(lr)))
    return carried


def _rate(optimum: Optimum) -> float:
    return optimum.rate


def _batch(optimum: Optimum) -> float:
    return optimum.setting.batch or 1.0
