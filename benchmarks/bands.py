"""How near to the best loss a rate must be to lie in the band whose middle a search answers, and how wide that may be.

    python benchmarks/bands.py          # prints the table of docs/notebook.md
    python benchmarks/bands.py write    # and writes it

No training: grids an octave apart with two seeds are in ``docs/evidence/results``, of ``benchmarks/rates.py``,
``transfer.py``, ``kinds.py``, ``plain.py``, and of contests. The band of one seed's curve is found as a search finds
it, and its middle judged by the other seed's, the loss taken as linear in between; then the other way around.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

import numpy as np
from recorded import Sheet, by_octave, contests, ends, put, read_results
from transfer import Curve

from dagscale.rates import WIDEST

RULES = {
    **{f"{100 * t:.0f} %": (t, math.inf) for t in (0.01, 0.02, 0.03, 0.05)},
    **{f"5 %, at most {w:g} octaves": (0.05, w) for w in (2.0, 3.0, WIDEST)},
}
"""Column → tolerance, widest band in octaves."""

FAR = 3.0
"""A run that diverged counts as so many times the lowest loss of its curve."""

Families = dict[str, list[tuple[Curve, Curve]]]


def families() -> Iterator[tuple[str, Families]]:
    """Each study's families, with both seeds' curves of every network and way of training it."""
    rates: Families = defaultdict(list)
    for name, one in read_results("rates").items():
        if len(one["losses"][0]) == 2:
            pair = [dict(zip(one["exponents"], losses, strict=True)) for losses in zip(*one["losses"], strict=True)]
            rates[", ".join(name.split("/")[:2])].append(_pair(pair))
    yield "rates", rates
    for study in ("transfer", "kinds", "plain"):
        yield study, {name: list(_grids(runs)) for name, runs in read_results(study).items()}
    yield "contest", {
        contest.suite: [
            _pair([by_octave(row) for row in rows])
            for entry in contest.entries if entry.method.startswith("grid") for rows in entry.trials.values()
        ]
        for contest in contests()
    }  # fmt: skip


def _grids(runs: dict[str, Any]) -> Iterator[tuple[Curve, Curve]]:
    by: dict[tuple[str, str], dict[str, dict[int, float | None]]] = defaultdict(lambda: defaultdict(dict))
    for key, run in runs.items():
        if key != "base" and not key.startswith("random/"):
            way, size, octave, seed = key.split("/")
            by[way, size][seed][int(octave)] = run["train"]
    for seeds in by.values():
        whole = [curve for curve in seeds.values() if len(curve) >= 5]
        if len(whole) >= 2:
            yield _pair(whole[:2])


def _pair(curves: list[Any]) -> tuple[Curve, Curve]:
    first, second = ({o: math.inf if v is None else v for o, v in sorted(c.items())} for c in curves)
    return first, second


def middle(curve: Curve, tolerance: float, widest: float) -> float:
    """The octave that a search would answer."""
    return fmean(ends(curve, tolerance, widest))


def at(curve: Curve, octave: float) -> float:
    """The loss there, above the lowest, as a share of it."""
    lowest = min(curve.values())
    losses = [min(loss, FAR * lowest) for loss in curve.values()]
    return float(np.interp(octave, list(curve), losses)) / lowest - 1


def lost(networks: list[tuple[Curve, Curve]], tolerance: float, widest: float) -> float:
    """The mean loss above the lowest of one seed, at the middle that the other seed's band has."""
    ways = [(a, b) for pair in networks for a, b in (pair, pair[::-1])]
    return fmean(at(judge, middle(curve, tolerance, widest)) for curve, judge in ways)


MANY = {"kinds": "other kinds", "plain": "plain networks"}
"""Studies of which the table has the median over families alone: their losses go down to nearly 0."""


def judged() -> Sheet:
    """The file ``bands.csv``: a row a family of loss above the other seed's best."""
    rows, every = [], defaultdict(list)
    for study, found in families():
        by = {name: {rule: lost(own, *how) for rule, how in RULES.items()} for name, own in found.items()}
        if study in MANY:
            shown = {f"{MANY[study]}, median of {len(by)}": {r: median(f[r] for f in by.values()) for r in RULES}}
            counts = [sum(map(len, found.values()))]
        else:
            shown, counts = {f"{study}, {name}": cells for name, cells in by.items()}, [len(n) for n in found.values()]
        for (name, cells), count in zip(shown.items(), counts, strict=True):
            rows.append({"family": name, "grids": str(count), **{r: f"{100 * v:.2f} %" for r, v in cells.items()}})
            for rule, value in cells.items():
                every[rule].append(value)
    mean = {rule: f"{100 * fmean(values):.2f} %" for rule, values in every.items()}
    return [*rows, {"family": "mean of these rows", "grids": str(sum(int(r["grids"]) for r in rows)), **mean}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("write", nargs="?", choices=["write"])
    put({"bands": judged()}, bool(parser.parse_args().write))
