"""How far laws are off, by kind of network, and whether the intervals of plans hold what they promise.

    python benchmarks/intervals.py          # prints the tables of docs/evidence/intervals.md
    python benchmarks/intervals.py write    # and writes them, and the table of src/dagscale/laws/accuracy.py

No training: ``benchmarks/recorded.py`` reads what goes into the table from the results of earlier studies.

*The fit.* A family's mean square error ``m``, less what its base's rate and its seeds are off, is ``v χ²_D/D``. Errors
within a family share its base and are correlated by one half, so that the mean square of ``n`` of them has the variance
of one of ``D = 4n/(n + 3)`` independent ones. Families' ``v`` are inverse-χ² with ``ν`` degrees of freedom around
``s²``, hence ``m/s² ~ F(D, ν)``, and the error on a network of another family is Student's t. ``s`` is that of the law,
with a wide prior around ``SCALE``, times a factor for the kind of network whose logarithm has the prior N(0,
``SHRINK``²); ``ν`` has a log-normal prior around ``USUAL``. Posterior modes. The logarithm of ``s²`` is known as well
as ``K`` degrees of freedom tell a variance, those of its families and what the prior is worth; the distribution has
``1/(1/ν + 1/K)``.

*Coverage.* The interval of each network of rates.json and schedules.json is made from a table fitted without any family
of the same space, norms and optimiser, whatever file it is in.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, geometric_mean, median
from typing import Any, get_args

import no_base
import numpy as np
from recorded import (
    KIN,
    KINDS,
    ROOT,
    Family,
    Group,
    Point,
    Sheet,
    alone,
    by_layer,
    contested,
    groups,
    plain_depth,
    put,
    read_results,
    read_table,
    replayed,
    rest,
    row_of,
    tabulated,
)
from scipy import optimize, stats

from dagscale.laws import LAWS as REGISTERED
from dagscale.laws.accuracy import Accuracy, Kind
from dagscale.laws.base import FADING, Carried
from dagscale.laws.estimate import Estimate, Spread, half_width
from dagscale.laws.short_run import LONG_RUN
from dagscale.planning.certainty import OCTAVE, certainty
from dagscale.planning.power import fitted_power

PACKAGE = ROOT / "src" / "dagscale" / "laws" / "accuracy.py"
BLOCK = re.compile(r"(# made by benchmarks/intervals.py\n).*?(# end\n)", re.DOTALL)

SCALE, SHRINK, USUAL = 0.5, 0.5, 6.0
LAWS = ("short-run", "combined", "covariance", "none", "curvature", "function-change", "paths")
MEASURED = ("short-run", "combined", "covariance", "none")
"""Those of them whose answer for each network is known."""


# --- the table ------------------------------------------------------------------------------------------------


def predicted(law: str, base: Point, target: Point, gradient: bool) -> tuple[float, float, int]:
    """Log2 of the rate that a law carries over from one base, its error by chance, and the seeds of that; NaN for
    none."""
    short = FADING * (target.short - base.short), FADING * math.hypot(target.error, base.error)
    closed = FADING * (target.closed - base.closed) if gradient else math.nan
    seeds = min(base.seeds, target.seeds)
    if law == "none":
        return base.found, 0.0, 2
    if law == "covariance":
        return base.found + closed, 0.0, 2
    if law == "short-run" or math.isnan(closed):
        return base.found + short[0], short[1], seeds
    return base.found + (short[0] + closed) / 2, short[1] / 2, seeds


def answered(group: Group, law: str) -> list[tuple[Point, float, float, int]]:
    """Each target that a law has an answer for, the answer, its error by chance and the seeds."""
    base, *targets = group.points
    if law in ("combined", "covariance") and (not group.gradient or math.isnan(base.closed)):
        return []
    found = [(t, *predicted(law, base, t, group.gradient)) for t in targets]
    return [one for one in found if not math.isnan(one[1])]


def families(found: Sequence[Group]) -> list[Family]:
    """All that is known of every law."""
    base, search = base_octaves(found), band(found)
    known = [*by_layer(), *plain_depth(), *contested()]
    all_of = [*tabulated(), *alone(), *replayed(), *without_base()]
    all_of += [replace(f, square=rest(f.square, base_of(f, search) ** 2)) for f in known]
    for group in found:
        for law in MEASURED:
            rows = answered(group, law)
            if rows:
                square = fmean((p - t.found) ** 2 for t, p, _, _ in rows)
                noise = fmean(e**2 for _, _, e, _ in rows) + base**2
                half = fmean(abs(p - t.found) <= 0.5 for t, p, _, _ in rows)
                row = row_of(law, group.name.split(", ")[-1])
                all_of.append(Family(row, group.kind, group.name, group.kin, rest(square, noise), len(rows), half))
        own = [t.short + math.log2(LONG_RUN) - t.found for t in group.points if not math.isnan(t.short)]
        if own:
            square = fmean(o**2 for o in own)
            half = fmean(abs(o) <= 0.5 for o in own)
            all_of.append(Family("no base", group.kind, group.name, group.kin, square, len(own), half))
    return all_of


def without_base() -> Iterator[Family]:
    """Rates that were measured without a base on other kinds and on contests' targets (``benchmarks/no_base.py``)."""
    of_kinds = read_results("kinds")
    off: dict[tuple[str, bool], list[float]] = {}
    for name, init, _, error in no_base.errors(read_results("no-base")):
        off.setdefault((name, init == "keep"), []).append(error)
    for (name, own), errors in off.items():
        title, _, suite = name.partition("contest-")
        kind: Kind = KINDS.get(KIN[suite][0], "norms") if suite else of_kinds[title]["base"]["kind"]
        kin = KIN[suite] if suite else ("other kinds", title, "")
        called = (f"contest, {suite}" if suite else "other kinds") + (", own init" if own else "")
        half = fmean(abs(error) <= 0.5 for error in errors)
        square = fmean(error**2 for error in errors)
        yield Family("no base", kind, called, kin, square, len(errors), half, tuple(errors))


def band(found: Sequence[Group]) -> tuple[float, float]:
    """Of the error of the rate that one seed finds: what every search has, and what goes with half its band's width.
    Least squares of the squared difference between two seeds' rates."""
    spreads = np.array([2 * p.spread**2 for g in found for p in g.points])
    halves = np.array([p.half**2 for g in found for p in g.points])
    least, share = optimize.nnls(np.stack([np.ones_like(halves), halves], 1), spreads)[0]
    return math.sqrt(least), math.sqrt(share)


def rms(values: Iterable[float]) -> float:
    return math.sqrt(fmean(v**2 for v in values))


def base_octaves(found: Sequence[Group]) -> float:
    """How far a recorded base's rate is off by chance, the same for all."""
    return rms(p.spread for g in found for p in g.points)


def base_of(family: Family, search: Sequence[float]) -> float:
    """How far the rate of a family's base is off by chance, as a plan has it of that search."""
    return math.hypot(search[0], search[1] * family.band) / math.sqrt(family.seeds)


def base_side() -> float:
    """The base's share of a law's variance: what a second base takes away, twice (``tables/two-bases.csv``).

    The mean of ratios is geometric, or a family that one base leaves little to take away from would outweigh others.
    """
    rows = read_table("two-bases")
    ratio = geometric_mean((float(r["two_bases_octaves"]) / float(r["one_base_octaves"])) ** 2 for r in rows)
    return 2 * (1 - ratio)


def slope_of(group: Group, part: str) -> float | None:
    """The exponent that fits a family best; None where its networks differ too little to tell."""
    own = np.array([[getattr(p, part), p.found] for p in group.points if not math.isnan(getattr(p, part))])
    if len(own) < 4 or own[:, 0].std() < 0.2:
        return None
    x, y = (own - own.mean(0)).T
    return float((x * y).sum() / (x * x).sum())


def fitted(all_of: Sequence[Family]) -> dict[str, dict[Kind, Accuracy]]:
    """The table: see the top of this file."""
    return {law: fit([f for f in all_of if f.law == law]) for law in dict.fromkeys(f.law for f in all_of)}


def fit(own: Sequence[Family]) -> dict[Kind, Accuracy]:
    """One law's row of it."""
    kinds = [k for k in get_args(Kind) if any(f.kind == k for f in own)]
    squares = np.array([f.square for f in own])
    at = np.array([kinds.index(f.kind) for f in own])
    free = np.array([4 * f.count / (f.count + 3) for f in own])

    def cost(x: Any) -> float:
        scale, freedom = x[0] + x[2:][at], math.exp(x[1])
        likelihood = stats.f.logpdf(squares / np.exp(2 * scale), free, freedom) - 2 * scale
        prior = (x[2:] ** 2).sum() / 2 / SHRINK**2 + (x[1] - math.log(USUAL)) ** 2 / 2 / SHRINK**2
        prior += (x[0] - math.log(SCALE)) ** 2 / 2
        return float(prior - likelihood.sum())

    start = [math.log(math.sqrt(float(np.median(squares)))), math.log(USUAL), *[0.0] * len(kinds)]
    x = optimize.minimize(cost, start, method="L-BFGS-B", bounds=[(-4, 3), (0, 4), *[(-3, 3)] * len(kinds)]).x
    freedom = math.exp(x[1])
    known = [2 / (2 * SHRINK) ** 2 + float((1 / (1 / free[at == i] + 1 / freedom)).sum()) for i in range(len(kinds))]
    return {
        kind: Accuracy(
            round(math.exp(x[0] + x[2 + i]), 2), round(1 / (1 / freedom + 1 / known[i]), 1), int((at == i).sum())
        )
        for i, kind in enumerate(kinds)
    }


# --- coverage -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Covered:
    """How many of a family's networks lie in intervals of a law that was fitted without its kin: how far each is off,
    and half the width of its 50 % and its 95 % interval, in octaves."""

    family: str
    law: str
    off: tuple[float, ...]
    halves: tuple[float, ...]
    wholes: tuple[float, ...]


def usual_chance(found: Sequence[Group], law: str) -> float:
    """The error by chance that a measured law usually has; of contests' targets their own is not recorded."""
    return rms(wrong for group in found for _, _, wrong, _ in answered(group, law))


def coverage(found: Sequence[Group], all_of: Sequence[Family]) -> list[Covered]:
    """Every family whose networks are known one by one; those of one name count together, each without its own kin."""
    usual, search = base_octaves(found), band(found)
    made: dict[tuple[str, str], list[tuple[float, float, float]]] = {}

    def add(
        law: str, name: str, known: Accuracy | None, off: float, base: float, wrong: float = 0.0, seeds: int = 2
    ) -> None:
        if known is not None:
            sources = [Spread(known.octaves, known.freedom), Spread(wrong, seeds - 1), Spread(base, math.inf)]
            widths = half_width(sources, 0.5), half_width(sources, 0.95)
            made.setdefault((law, name), []).append((abs(off), *widths))

    without = cache(lambda kin, law: fit([f for f in all_of if f.law == law and f.kin != kin]))
    for family in (f for f in all_of if f.octaves):
        alone = family.law == "no base"
        law = "short-run" if alone else family.law
        chance = usual_chance(found, law) if REGISTERED[law.partition(",")[0]].measured else 0.0
        for off in family.octaves:
            known = without(family.kin, family.law).get(family.kind)
            add(family.law, family.name, known, off, 0.0 if alone else base_of(family, search), chance)
    for group in found:
        for law in MEASURED:
            rows = answered(group, law)
            row = row_of(law, group.name.split(", ")[-1])
            for target, rate, wrong, seeds in rows:
                known = without(group.kin, row).get(group.kind)
                add(law, group.name, known, rate - target.found, usual, wrong, seeds)
    return [Covered(name, law, *map(tuple, zip(*rows, strict=True))) for (law, name), rows in made.items()]


def literal(
    table: dict[str, dict[Kind, Accuracy]], search: Sequence[float], base: float, side: float, power: float
) -> str:
    """What stands in the package."""
    lines = ["ACCURACY: Mapping[str, Mapping[Kind, Accuracy]] = {\n"]
    for law in sorted(table):
        lines.append(f'    "{law}": {{\n')
        lines += [f'        "{k}": Accuracy({a.octaves}, {a.freedom}, {a.families}),\n' for k, a in table[law].items()]
        lines.append("    },\n")
    lines += ["}\n", '"""Law, with how it is used where that matters → kind of network → its error."""\n\n']
    for name, value, words in (
        ("SEARCH", search[0], "Octaves that the rate of a search with one seed is off, however narrow its band."),
        ("BAND_SHARE", search[1], "What it is off beside that, as a part of half its band's width."),
        ("BASE", base, "Octaves that a base's rate is usually off, where nothing is known of its search."),
        ("BASE_SIDE", side, "Part of the variance of a law's error that is the base's."),
        ("POWER_SPREAD", power, "Standard deviation over families of the power of a law's factors that fits best."),
    ):
        lines.append(f'{name} = {value:.2f}\n"""{words}"""\n')
    return "".join(lines)


def table_of(rows: Sequence[Covered]) -> Sheet:
    """The file ``intervals.csv``: a row a family and law, then one for all networks of a law."""
    made = []
    for law in dict.fromkeys(r.law for r in rows):
        own = [r for r in rows if r.law == law]
        for name, some in [*((r.family, [r]) for r in own), ("all", own)]:
            off, halves, wholes = (np.concatenate([getattr(r, part) for r in some]) for part in PARTS)
            made.append({
                "law": named(law),
                "family and init": name,
                "networks": str(len(off)),
                "in the 50 % interval": percent(float((off <= halves).mean())),
                "in the 95 % interval": percent(float((off <= wholes).mean())),
                "octaves off": f"{rms(off):.2f}",
                "factor either way": f"{2 ** median(wholes):.1f}",
            })  # fmt: skip
    return made


PARTS = ("off", "halves", "wholes")


def named(law: str) -> str:
    """A law as tables have it, with how it is used outside of the code."""
    name, comma, use = law.partition(",")
    return f"`{name}`{comma}{use}"


def calibrated(all_of: Sequence[Family], usual: float) -> Sheet:
    """The file ``intervals-half-octave.csv``: of the families of ``tables/*.csv``, whose networks are not known one by
    one, the share within half an octave, as it was and as a table without their kin would have it."""
    rows = []
    for law in LAWS:
        own = [f for f in all_of if f.law == law and not math.isnan(f.half)]
        without = {kin: fitted([f for f in all_of if f.law == law and f.kin != kin]) for kin in {f.kin for f in own}}
        pairs = []
        for family in own:
            known = without[family.kin].get(law, {}).get(family.kind)
            if known is not None:
                scale = math.hypot(known.octaves, usual)
                pairs.append((family.half, 2 * float(stats.t.cdf(0.5 / scale, known.freedom)) - 1))
        if pairs:
            was, would = (fmean(column) for column in zip(*pairs, strict=True))
            rows.append({
                "law": f"`{law}`", "families": str(len(pairs)), "within half an octave": percent(was),
                "expected": percent(would),
            })  # fmt: skip
    return rows


def by_bases(found: Sequence[Group], all_of: Sequence[Family]) -> Sheet:
    """The file ``intervals-bases.csv``: intervals from one to three bases, as `certainty` makes them, in families
    of eight networks or more. Members take turns as further bases, all others are targets."""
    rows = []
    large = [g for g in found if len(g.points) >= 8 and answered(g, "short-run")]
    tables = {g.name: fitted([f for f in all_of if f.kin != g.kin and f.law == "short-run"]) for g in large}
    base = base_octaves(found)
    for count in (1, 2, 3):
        inside, off, factors = [], [], []
        for group in large:
            known = tables[group.name]["short-run"][group.kind]
            members = len(group.points) - 1
            for turn in range(members):
                chosen = [0, *((turn + k) % members + 1 for k in range(count - 1))]
                bases = [group.points[k] for k in chosen]
                errors = [base] * count
                told = ({"short-run": (Estimate(0.0), Estimate(FADING * OCTAVE * b.short))} for b in bases)
                power = fitted_power(Carried(tuple(told)), [2.0**b.found for b in bases], known, errors)
                for target in (t for k, t in enumerate(group.points) if k not in chosen):
                    said = [b.found + power * FADING * (target.short - b.short) for b in bases]
                    seeds = [Estimate(0.0, FADING * OCTAVE * target.error, target.seeds)]
                    seeds += [Estimate(0.0, FADING * OCTAVE * b.error / count, b.seeds) for b in bases]
                    sure = certainty(known, seeds, errors, [2.0**s for s in said])
                    assert sure.factor is not None
                    off.append(fmean(said) - target.found)
                    inside.append(abs(off[-1]) <= math.log2(sure.factor))
                    factors.append(sure.factor)
        rows.append({
            "bases": str(count), "families": str(len(large)), "in the 95 % interval": percent(fmean(inside)),
            "octaves off": f"{rms(off):.2f}", "factor either way": f"{median(factors):.2f}",
        })  # fmt: skip
    return rows


def accuracies(table: dict[str, dict[Kind, Accuracy]]) -> Sheet:
    """The file ``intervals-laws.csv``: the table, with the factor either way that a law's error alone comes to."""
    return [
        {
            "law": named(law), "networks": kind,
            "families": str(known.families), "scale, octaves": f"{known.octaves:.2f}",
            "degrees of freedom": f"{known.freedom:.1f}",
            "factor either way, 95 %": f"{2 ** half_width([Spread(*known[:2])]):.1f}",
        }
        for law in sorted(table) for kind, known in table[law].items()
    ]  # fmt: skip


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def made() -> tuple[str, dict[str, Sheet]]:
    """The text of the package's file, and the tables by the names of their files."""
    found = groups()
    all_of = families(found)
    table, usual = fitted(all_of), base_octaves(found)
    powers = [slope / FADING for group in found if (slope := slope_of(group, "short")) is not None]
    block = literal(table, band(found), usual, base_side(), float(np.std(powers, ddof=1)))
    sheets = {
        "intervals": table_of(coverage(found, all_of)),
        "intervals-laws": accuracies(table),
        "intervals-bases": by_bases(found, all_of),
        "intervals-half-octave": calibrated(all_of, usual),
    }
    return BLOCK.sub(lambda match: match[1] + block + match[2], PACKAGE.read_text("utf-8")), sheets


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("write", nargs="?", choices=["write"])
    given = parser.parse_args()
    text, sheets = made()
    if given.write:
        PACKAGE.write_text(text, "utf-8")
    put(sheets, bool(given.write))
