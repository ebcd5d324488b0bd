"""How near to the best loss a rate must be to lie in the band whose middle a search answers.

    python benchmarks/bands.py          # prints the table of docs/notebook.md
    python benchmarks/bands.py write    # and writes it

No training: ``docs/evidence/results/rates.json`` holds grids an octave apart with two seeds (``benchmarks/rates.py``).
The band of one seed's curve is found as a search finds it, and its middle judged by the other seed's, the loss taken as
linear in between; then the other way around.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from statistics import fmean
from typing import Any

import numpy as np
from rates import means, middle, of_seed
from recorded import Sheet, put, read_results

TOLERANCES = (0.01, 0.02, 0.03, 0.05, 0.08)
DIVERGED = 10.0
"""A loss for runs that have none, far above all others."""


def judged() -> Sheet:
    """The file ``bands.csv``: a row a family of loss above the other seed's best, and of how far two seeds' middles are
    apart, as the standard deviation of one of them in octaves."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, one in read_results("rates").items():
        if len(one["losses"][0]) == 2:
            families[", ".join(name.split("/")[:2])].append(one)
    rows, lost_by = [], defaultdict(list)
    for family, networks in families.items():
        cells = {}
        for tolerance in TOLERANCES:
            lost, apart = [], []
            for one in networks:
                found = [middle(of_seed(one, seed), tolerance) for seed in (0, 1)]
                apart.append(found[0] - found[1])
                for rate, other in zip(found, (1, 0), strict=True):
                    curve = means(of_seed(one, other), DIVERGED)
                    lost.append(float(np.interp(rate, one["exponents"], curve)) / min(curve) - 1)
            lost_by[tolerance].append(fmean(lost))
            spread = math.sqrt(fmean([a * a for a in apart]) / 2)
            cells[f"{100 * tolerance:.0f} %"] = f"{100 * fmean(lost):.2f} % ({spread:.2f})"
        rows.append({"family": family, "networks": str(len(networks)), **cells})
    rows.append({
        "family": "mean", "networks": str(sum(map(len, families.values()))),
        **{f"{100 * t:.0f} %": f"{100 * fmean(values):.2f} %" for t, values in lost_by.items()},
    })  # fmt: skip
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("write", nargs="?", choices=["write"])
    put({"bands": judged()}, bool(parser.parse_args().write))
