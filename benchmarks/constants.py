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
import csv
import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from intervals import EVIDENCE, Group, Point, error, groups, predicted, rms
from rates import FAMILIES

from dagscale.laws.base import FADING
from dagscale.laws.short_run import LONG_RUN, PRECISION
from dagscale.planning.certainty import OCTAVE

POWERS = (0.5, 2 / 3, 0.75, 1.0)
PRIORS = (0.1, 0.2, 0.3, 0.5)
"""Standard deviations of the prior of a fitted exponent, around ``FADING``."""

Rows = list[dict[str, str]]


def curves() -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    """(family, network) → exponents of the rates and mean losses."""
    made = {}
    known = json.loads((EVIDENCE / "results" / "rates.json").read_text())
    for name, family in FAMILIES.items():
        for init in family.inits:
            for network in family.networks:
                one = known.get(f"{name}/{init}/{network}")
                if one is not None:
                    means = [1e3 if None in row else fmean(row) for row in one["losses"]]
                    made[f"{name}, {init}", network] = (one["exponents"], means)
    scheduled = json.loads((EVIDENCE / "results" / "schedules.json").read_text())
    for key, one in scheduled.items():
        name, network = key.split("/", 1)
        means = [min(fmean(row), 1e3) for row in one["curve"].values()]
        made[f"schedules, {name}", network] = ([math.log2(float(rate)) for rate in one["curve"]], means)
    return made


CURVES = curves()


def lost(group: Group, target: Point, exponent: float) -> float:
    """Loss at a rate above the lowest point of the network's curve, in percent; beyond the rates tried, that of the
    last one."""
    exponents, means = CURVES[group.name, target.network]
    return 100 * (min(float(np.interp(exponent, exponents, means)), 1e3) / min(means) - 1)


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


def by_power(found: Sequence[Group]) -> Rows:
    """The exponent of law short-run."""
    rows = []
    for power in (0.0, *POWERS):

        def rate(group: Group, target: Point, power: float = power) -> float:
            return group.points[0].found + power * (target.short - group.points[0].short)

        rows.append(row("power", f"{power:.2f}", *judged(found, rate)))
    return rows


def by_factor(found: Sequence[Group]) -> Rows:
    """``LONG_RUN``, of rates that are measured without a base."""
    rows = []
    for factor in (0.8, 1.0, LONG_RUN, 1.5):
        rows.append(
            row("LONG_RUN", f"{factor:g}", *judged(found, lambda g, t, f=factor: t.short + math.log2(f)))  # type: ignore[misc]
        )
    return rows


def by_precision(found: Sequence[Group]) -> Rows:
    """``PRECISION``: how many seeds are measured."""
    known = json.loads((EVIDENCE / "results" / "rates.json").read_text())
    recorded = [g for g in found if not g.name.startswith("schedules")]
    rows = []
    for precision, most in ((math.inf, 1), (math.inf, 4), (0.5, 4), (PRECISION, 4), (0.2, 4), (0.0, 4)):
        costs: list[float] = []

        def value(group: Group, target: Point, precision: float = precision, most: int = most) -> float:
            name, init = group.name.rsplit(", ", 1)
            one = known[f"{name}/{init}/{target.network}"]
            logs = one["short"]
            few = [n for n in range(2, most + 1) if error(logs[:n]) * OCTAVE < precision]
            count = min(most, few[0] if few else most)
            costs.append(sum(one["forwards"][:count]))  # noqa: B023
            return fmean(logs[:count])

        def rate(group: Group, target: Point, value: Any = value) -> float:
            base = group.points[0]
            return base.found + FADING * float(value(group, target) - value(group, base))

        label = "one seed" if most == 1 else "two seeds" if precision == math.inf else f"{precision:g}"
        octaves, losses = judged(recorded, rate)
        rows.append(row("PRECISION", label, octaves, losses, passes=f"{fmean(costs):,.0f}"))
    return rows


def slopes(found: Sequence[Group], part: str) -> tuple[list[float], list[float]]:
    """Of each family the exponent that fits best, and the sum of squares that it rests on."""
    best, weights = [], []
    for group in found:
        own = np.array([[getattr(p, part), p.found] for p in group.points if not math.isnan(getattr(p, part))])
        if len(own) > 3 and own[:, 0].std() > 0.2:
            x, y = (own - own.mean(0)).T
            best.append(float((x * y).sum() / (x * x).sum()))
            weights.append(float((x * x).sum()))
    return best, weights


def exponents(found: Sequence[Group]) -> Rows:
    """The exponents that families would like, and what a fit to two or three bases comes to."""
    rows = []
    for part in ("short", "closed"):
        best, _ = slopes(found, part)
        if len(best) > 2:
            rows.append({"part": part, "families": str(len(best)), "mean": interval(best),
                         "spread": f"{np.std(best, ddof=1):.2f}", "each": ", ".join(f"{b:.2f}" for b in sorted(best))})  # fmt: skip
    return rows


def fit(bases: Sequence[Point], law: str, gradient: bool, prior: float, noise: float) -> float:
    """The posterior mean of the power of a law's own factors, 1 where the law is right, from bases of known rates."""
    said = np.array([predicted(law, bases[0], b, gradient)[0] - bases[0].found for b in bases])
    found = np.array([b.found for b in bases])
    x, y = said - said.mean(), found - found.mean()
    return float((1 / prior**2 + (x * y).sum() / noise**2) / (1 / prior**2 + (x * x).sum() / noise**2))


def refitted(found: Sequence[Group], law: str, count: int) -> Rows:
    """Fixed against fitted exponents: every choice of bases with the family's own among them, all others as targets."""
    rows = []
    for prior in (0.0, *PRIORS):
        octaves, losses = [], []
        for group in found:
            if math.isnan(group.points[0].short) or len(group.points) < count + 3:
                continue
            off, gone = [], []
            for i in range(1, len(group.points)):
                chosen = [0, *[(i + k - 1) % (len(group.points) - 1) + 1 for k in range(count - 1)]]
                bases = [group.points[k] for k in chosen]
                power = fit(bases, law, group.gradient, prior / FADING, 0.35) if prior else 1.0
                for k, target in enumerate(group.points):
                    if k not in chosen and not math.isnan(target.short):
                        said = [
                            b.found + power * (predicted(law, b, target, group.gradient)[0] - b.found) for b in bases
                        ]
                        off.append(fmean(said) - target.found)
                        gone.append(lost(group, target, fmean(said)))
            octaves.append(rms(off))
            losses.append(fmean(gone))
        rows.append(row(f"{law}, {count} bases", f"{prior:g}" if prior else "fixed", octaves, losses))
        rows[-1]["better in"] = (
            "" if not prior else f"{sum(a < b for a, b in zip(octaves, fixed, strict=True))} of {len(octaves)}"
        )  # noqa: E501
        fixed = octaves if not prior else fixed
    return rows


def tables() -> dict[str, Rows]:
    found = [g for g in groups() if not math.isnan(g.points[0].short)]
    return {
        "constants-power": by_power(found),
        "constants-long-run": by_factor(found),
        "constants-precision": by_precision(found),
        "constants-exponents": exponents(found),
        "constants-fitted": [r for law in ("short-run", "combined") for n in (2, 3) for r in refitted(found, law, n)],
    }


def main(write: bool) -> None:
    for name, rows in tables().items():
        if write:
            with open(EVIDENCE / "tables" / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        print(f"\n{name}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for one in rows:
            print(f"| {' | '.join(one.values())} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("write", nargs="?", choices=["write"])
    main(parser.parse_args().write == "write")
