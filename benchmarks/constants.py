"""What the constants of the measured laws rest on, and what happens without them. No training.

    python benchmarks/constants.py [write]    # prints the tables of docs/evidence/constants.md, or writes them

Read off ``docs/evidence/results/rates.json`` and ``schedules.json`` (``benchmarks/rates.py``, ``schedules.py``): the
middle of each network's band, the short runs of its seeds one by one, and the closed form. Losses are interpolated on
the network's own curve and held against its lowest point. A law's rate for every network but the base is compared with
its own under another value of one constant; means are over networks within families, then over families, and intervals
by 2,000 resamples of the families.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from intervals import answered, families, fitted, predicted, rms, slope_of
from rates import FAMILIES, means, regular
from recorded import Group, Point, Sheet, groups, put, read_results, seeds_until

from dagscale.laws.accuracy import BASE, BASE_SIDE
from dagscale.laws.base import FADING
from dagscale.laws.short_run import LONG_RUN, PRECISION

POWERS = (0.5, 2 / 3, 0.75, 1.0)
PRIORS = (0.1, 0.3, 0.6)
"""Standard deviations of the prior of a fitted power of a law's factors, around 1."""


@cache
def curves() -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(family, network) → exponents of the rates and mean losses."""
    made = {}
    known = read_results("rates")
    for name, family in FAMILIES.items():
        for init in family.inits:
            for network in family.networks:
                one = known.get(f"{name}/{init}/{network}")
                if one is not None:
                    made[f"{name}, {init}", network] = (one["exponents"], means(one, 1e3))
    for key, one in read_results("schedules").items():
        name, network = key.split("/", 1)
        curve = regular(one["curve"])
        made[f"schedules, {name}", network] = (curve["exponents"], means(curve, 1e3))
    return made


def lost(group: Group, target: Point, exponent: float) -> float:
    """Loss at a rate above the lowest point of the network's curve, in percent; beyond the rates tried, that of the
    last one."""
    exponents, losses = curves()[group.name, target.network]
    return 100 * (min(float(np.interp(exponent, exponents, losses)), 1e3) / min(losses) - 1)


def interval(values: Sequence[float], statistic: Callable[[Any], float] = lambda v: float(np.mean(v))) -> str:
    """A statistic of families with its 95 % interval by resampling them."""
    array = np.array(values)
    picks = np.random.default_rng(0).integers(len(array), size=(2000, len(array)))
    low, high = np.percentile([statistic(array[pick]) for pick in picks], [2.5, 97.5])
    return f"{statistic(array):.2f} ({low:.2f} … {high:.2f})"


def judged(found: Sequence[Group], rate: Callable[[Group, Point], float]) -> tuple[list[float], list[float]]:
    """Octaves off (root mean square) and loss above the best, a number a family."""
    octaves, losses = [], []
    for group in found:
        off = [(rate(group, t), t) for t in group.points[1:] if not math.isnan(t.short)]
        octaves.append(rms(r - t.found for r, t in off))
        losses.append(fmean(lost(group, t, r) for r, t in off))
    return octaves, losses


def row(what: str, value: str, octaves: Sequence[float], losses: Sequence[float], **more: str) -> dict[str, str]:
    return {
        "constant": what, "value": value, "octaves": interval(octaves), "median loss": f"{np.median(losses):.2f} %",
        "mean loss": f"{np.mean(losses):.2f} %", "worst family": f"{max(losses):.1f} %", **more,
    }  # fmt: skip


def by_power(found: Sequence[Group]) -> Sheet:
    """The exponent of law short-run."""
    rows = []
    for power in (0.0, *POWERS):

        def rate(group: Group, target: Point, power: float = power) -> float:
            return group.points[0].found + power * (target.short - group.points[0].short)

        rows.append(row("power", f"{power:.2f}", *judged(found, rate)))
    return rows


def by_factor(found: Sequence[Group]) -> Sheet:
    """``LONG_RUN``, of rates that are measured without a base."""
    rows = []
    for factor in (0.8, 1.0, LONG_RUN, 1.5):
        rows.append(
            row("LONG_RUN", f"{factor:g}", *judged(found, lambda g, t, f=factor: t.short + math.log2(f)))  # type: ignore[misc]
        )
    return rows


def by_precision(found: Sequence[Group]) -> Sheet:
    """``PRECISION``: how many seeds are measured."""
    known = read_results("rates")
    recorded = [g for g in found if not g.name.startswith("schedules")]
    rows = []
    for precision, most in ((math.inf, 1), (math.inf, 4), (0.5, 4), (PRECISION, 4), (0.2, 4), (0.0, 4)):
        costs: list[float] = []

        def value(group: Group, target: Point, precision: float = precision, most: int = most) -> float:
            name, init = group.name.rsplit(", ", 1)
            one = known[f"{name}/{init}/{target.network}"]
            logs = one["short"]
            count = seeds_until(logs, precision, most)
            costs.append(sum(one["forwards"][:count]))  # noqa: B023
            return fmean(logs[:count])

        def rate(group: Group, target: Point, value: Any = value) -> float:
            base = group.points[0]
            return base.found + FADING * float(value(group, target) - value(group, base))

        label = "one seed" if most == 1 else "two seeds" if precision == math.inf else f"{precision:g}"
        octaves, losses = judged(recorded, rate)
        rows.append(row("PRECISION", label, octaves, losses, passes=f"{fmean(costs):,.0f}"))
    return rows


def exponents(found: Sequence[Group]) -> Sheet:
    """The exponents that families would like."""
    rows = []
    for part, name in (("short", "short-run"), ("closed", "covariance")):
        best = [slope for group in found if (slope := slope_of(group, part)) is not None]
        if len(best) > 2:
            rows.append({
                "law": f"`{name}`", "families": str(len(best)), "mean (95 %)": interval(best),
                "standard deviation": f"{np.std(best, ddof=1):.2f}",
                "each": ", ".join(f"{b:.2f}" for b in sorted(best)),
            })  # fmt: skip
    return rows


def fit(bases: Sequence[Point], law: str, gradient: bool, prior: float, variance: float) -> float:
    """The posterior mean of the power of a law's factors, from bases of known rates; the prior's is 1."""
    said = np.array([predicted(law, bases[0], b, gradient)[0] - bases[0].found for b in bases])
    known = np.array([b.found for b in bases])
    x, y = said - said.mean(), known - known.mean()
    return float((1 / prior**2 + (x * y).sum() / variance) / (1 / prior**2 + (x * x).sum() / variance))


def refitted(found: Sequence[Group], law: str, count: int) -> Sheet:
    """Fixed against fitted powers. Bases are the family's own and its next ``count - 1`` members, in every turn; all
    others are targets. What the fit knows beside them, the spread of powers and the law's error, is that of families
    that are no kin."""
    whole = families(groups())
    results: dict[str, tuple[list[float], list[float]]] = {}
    for prior in ("fixed", "others' spread", *PRIORS):
        octaves, losses = results.setdefault(str(prior), ([], []))
        for group in found:
            if len(group.points) < count + 2 or not answered(group, law):
                continue
            strangers = [s for g in found if g.kin != group.kin and (s := slope_of(g, "short")) is not None]
            spread = float(np.std(strangers, ddof=1)) / FADING if isinstance(prior, str) else prior
            known = fitted([f for f in whole if f.kin != group.kin and f.law == law]).get(law, {}).get(group.kind)
            scale = 0.4 if known is None else known.octaves
            off, gone, members = [], [], len(group.points) - 1
            for turn in range(members):
                chosen = [0, *((turn + k) % members + 1 for k in range(count - 1))]
                bases = [group.points[k] for k in chosen]
                variance = BASE_SIDE * scale**2 + BASE**2
                power = 1.0 if prior == "fixed" else fit(bases, law, group.gradient, spread, variance)
                for target in (t for k, t in enumerate(group.points) if k not in chosen):
                    said = [b.found + power * (predicted(law, b, target, group.gradient)[0] - b.found) for b in bases]
                    off.append(fmean(said) - target.found)
                    gone.append(lost(group, target, fmean(said)))
            octaves.append(rms(off))
            losses.append(fmean(gone))
    fixed, rows = results["fixed"][0], []
    for prior, (octaves, losses) in results.items():
        better = (
            "" if prior == "fixed" else f"{sum(a < b for a, b in zip(octaves, fixed, strict=True))} of {len(fixed)}"
        )
        rows.append(row(f"`{law}`, {count} bases", prior, octaves, losses) | {"nearer in": better})
    return rows


def tables() -> dict[str, Sheet]:
    found = [g for g in groups() if not math.isnan(g.points[0].short)]
    return {
        "constants-power": by_power(found),
        "constants-long-run": by_factor(found),
        "constants-precision": by_precision(found),
        "constants-exponents": exponents(found),
        "constants-fitted": [r for law in ("short-run", "combined") for n in (2, 3) for r in refitted(found, law, n)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("write", nargs="?", choices=["write"])
    put(tables(), parser.parse_args().write == "write")
