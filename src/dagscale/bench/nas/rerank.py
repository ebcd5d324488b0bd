"""``dagscale rerank``: how a second set of accuracies re-ranks a NAS benchmark, beside what seeds alone would do.

Kendall's τ over the top K % falls as K does even if nothing changed but the seed: the best are close together,
and choosing them by a noisy value keeps the lucky ones. So every τ here stands beside a noise floor that makes
the same choice with the same data: between the benchmark's own seeds, and between its isomorphic architectures,
which are one network trained several times.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dagscale.bench.bounds import check_count
from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.nas.agreement import (
    SMALLEST,
    Curve,
    Estimate,
    Gain,
    GapClass,
    SeedPair,
    excess,
    gains,
    gaps,
    taus,
    twins,
)
from dagscale.bench.nas.tables import COLUMNS, MEAN, Column, Table
from dagscale.errors import DataError, TargetError
from dagscale.models.nb201 import Nb201


@dataclass(frozen=True)
class Pick:
    """An architecture that a search method picked.

    Attributes:
        ranks: in benchmark and against, 1 the best, ties share the better rank; None where it has no value.
    """

    method: str
    arch: str
    values: tuple[float | None, float | None]
    ranks: tuple[int | None, int | None]


@dataclass(frozen=True)
class Report:
    """What ``rerank`` found. ``benchmark`` and ``against`` are aligned: the same architectures in one order."""

    benchmark: Column
    against: Column
    tau: Curve
    floors: tuple[Curve, ...]
    excess: Mapping[int, Estimate]
    gains: tuple[Gain, ...]
    gaps: tuple[GapClass, ...]
    picks: tuple[Pick, ...]
    swapped: tuple[tuple[str, str], ...]
    kinds: Mapping[str, int]
    noise_std: Mapping[str, float]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""

        def curve(c: Curve) -> dict[str, Any]:
            return {"label": c.label, "n": c.n, "taus": {str(k): asdict(e) for k, e in c.taus.items()}}

        def column(c: Column) -> dict[str, Any]:
            return {"source": c.source, "dataset": c.dataset, "column": c.column, "seed": c.seed, "n": len(c.archs)}

        return {
            "benchmark": column(self.benchmark),
            "against": column(self.against),
            "architectures": len(self.benchmark.archs),
            "kinds": dict(self.kinds),
            "tau": curve(self.tau),
            "noise_floors": [curve(c) for c in self.floors],
            "below_noise_floor": {str(k): asdict(e) for k, e in self.excess.items()},
            "noise_std": dict(self.noise_std),
            "gains": [asdict(g) for g in self.gains],
            "gaps": [asdict(g) for g in self.gaps],
            "picks": [asdict(p) for p in self.picks],
            "swapped_picks": [list(pair) for pair in self.swapped],
            "notes": list(self.notes),
        }


# Searches by the benchmark's authors (three seeds each; repeated picks once), from exps/algos-v2/README.md of their
# repository AutoDL-Projects; the ResNet-like and the largest cell are the references of the NATS-Bench paper.
PUBLISHED_PICKS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "cifar10": (("DARTS-V1, DARTS-V2", "1_11_111"),),
    "cifar100": (
        ("DARTS-V1 (a)", "0_10_120"),
        ("DARTS-V1 (b)", "1_10_123"),
        ("DARTS-V2 (a)", "0_10_121"),
        ("DARTS-V2 (b)", "1_30_100"),
        ("DARTS-V2 (c)", "1_20_310"),
    ),
    "ImageNet16-120": (
        ("DARTS-V1 (a)", "0_10_103"),
        ("DARTS-V1 (b)", "0_10_102"),
        ("DARTS-V2", "0_10_101"),
    ),
}
REFERENCES = (("ResNet-like cell", "3_03_101"), ("largest cell", "3_33_333"))


def rerank(
    benchmark: Table,
    against: Table,
    *,
    dataset: str | None = None,
    column: str | None = None,
    seed: str | None = None,
    against_column: str | None = None,
    against_seed: str | None = None,
    partial: bool = False,
    picks: Sequence[tuple[str, str]] | None = None,
    bootstrap: int = 100,
    random_seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Report:
    """Compare two columns of accuracies of NAS-Bench-201 architectures.

    Args:
        dataset: of both; the benchmark's first by default.
        column, seed: of the benchmark; its first (test accuracy, mean over trials) by default.
        against_column, against_seed: likewise; the column is the benchmark's where ``against`` has it.
        partial: compare the architectures that both have, where either lacks some.
        picks: (method, code or architecture string); published ones by default.
        bootstrap: number of resamples of the architectures.
        progress: called with the name of each step.

    Raises:
        DataError: if a column is missing or incomplete, or both are one and the same.
        TargetError: if a pick is no architecture.
    """
    check_count("bootstrap", bootstrap, 1, 100_000)
    check_count("random_seed", random_seed, 0, 2**63)
    if not partial:
        benchmark.check_complete()
    first = benchmark.select(dataset, column, seed, partial=partial)
    if against_column is None and first.column in against.columns(first.dataset):
        against_column = first.column
    second = against.select(first.dataset, against_column, against_seed, partial=partial)
    if (first.source, first.column, first.seed) == (second.source, second.column, second.seed):
        raise DataError(
            f"benchmark and against are one and the same column ({first.label}): name another table, --against-seed "
            "or --against-column"
        )
    first, second, notes = _aligned(first, second, partial)
    if len(first.archs) < SMALLEST:
        raise DataError(f"only {len(first.archs)} architectures are in both tables: a ranking needs {SMALLEST} or more")
    for one in (first, second):
        if np.ptp(one.values) == 0:
            raise DataError(f"{one.source}: all accuracies of {one.label} are equal: there is nothing to rank")
    rng = np.random.default_rng(random_seed)
    x, y = first.values, second.values
    progress("noise floors")
    pair = _seed_pair(benchmark, first, notes)
    floors = []
    noise_std = {}
    if pair is not None:
        a, b = pair[1].values, pair[2].values
        floors.append(Curve(pair[0], taus(a, b, bootstrap, rng), len(a)))
        noise_std["seeds"] = float(np.std(a - b) / np.sqrt(2))
    alike = twins(first, rng)
    if alike is not None:
        floors.append(alike[0])
        noise_std["isomorphic"] = alike[1]
    if pair is not None and {_named(pair[1]), _named(pair[2])} == {_named(first), _named(second)}:
        notes.append("The two columns compared are noise floor 1 itself: the difference to it is 0 by construction")
    progress("Kendall τ by top K %")
    tau = Curve("benchmark against new", taus(x, y, bootstrap, rng), len(x))
    progress("difference to the noise floor")
    below = {} if pair is None else excess(x, y, pair[1], pair[2], first.archs, bootstrap, rng)
    progress("gains and pairs")
    chosen = tuple(picks) if picks is not None else (*PUBLISHED_PICKS.get(first.dataset, ()), *REFERENCES)
    placed = _picks(chosen, first, second)
    return Report(
        first,
        second,
        tau,
        tuple(floors),
        below,
        gains(x, y, pair, rng),
        gaps(x, y, pair, rng),
        placed,
        _swapped(placed),
        dict(Counter(arch.kind for arch in first.archs)),
        noise_std,
        tuple(notes),
    )


def read_picks(path: Path) -> tuple[tuple[str, str], ...]:
    """(method, architecture) pairs from a CSV file with the columns ``method`` and ``arch``.

    Raises:
        DataError: if it is no such file.
    """
    with parsing(f"{path} cannot be read as CSV"):
        text = read_all(path).decode("utf-8-sig")
        found = [(row.get("method"), row.get("arch")) for row in csv.DictReader(io.StringIO(text, newline=""))]
    picks = tuple((method, arch) for method, arch in found if method and arch)
    if not picks or len(picks) < len(found):
        raise DataError(f"{path}: each row needs a method and an arch (a code or an architecture string)")
    for row, (_, arch) in enumerate(picks, 2):
        try:
            Nb201.parse(arch)
        except TargetError as error:
            raise DataError(f"{path} line {row}: {error}") from None
    return picks


# --- columns side by side -------------------------------------------------------------------------


def _aligned(first: Column, second: Column, partial: bool) -> tuple[Column, Column, list[str]]:
    """Both columns over the architectures that both have, in one order; notes say how many that are."""
    common = set(first.archs) & set(second.archs)
    if not partial:
        for one, other in ((first, second), (second, first)):
            missing = [arch for arch in one.archs if arch not in common]
            if missing:
                raise DataError(
                    f"{other.source} lacks {len(missing):,} of the {len(one.archs):,} architectures of {one.source} "
                    f"(the first is {missing[0]}); pass --partial to compare the {len(common):,} that both have"
                )
    notes = []
    if len(common) < max(len(first.archs), len(second.archs)):
        notes.append(
            f"Compared over the {len(common):,} architectures that both have, of {len(first.archs):,} and "
            f"{len(second.archs):,}; the top K % is of these"
        )
    if first.column != second.column:
        notes.append(
            f"The columns {first.column} and {second.column} are of different images: their difference is no gain"
        )
    return first.over(common), second.over(common), notes


def _named(column: Column) -> tuple[str, str, str]:
    return column.source, column.column, column.seed


def _seed_pair(table: Table, like: Column, notes: list[str]) -> SeedPair | None:
    """Two single-seed columns of the benchmark: of the compared column if it has seeds, else of another."""
    for column in dict.fromkeys((like.column, *COLUMNS)):
        seeds = [s for s in table.seeds(like.dataset, column) if s != MEAN]
        if len(seeds) < 2:
            continue
        wanted = set(like.archs)
        able = []
        for a, b in itertools.combinations(seeds, 2):
            one, other = (table.select(like.dataset, column, s, partial=True) for s in (a, b))
            able.append((-len(wanted & set(one.archs) & set(other.archs)), a, b, one, other))
        count, a, b, one, other = min(able, key=lambda t: t[:3])
        if -count < SMALLEST:
            continue
        common = wanted & set(one.archs) & set(other.archs)
        if column != like.column:
            notes.append(
                f"The benchmark has no seeds for {like.column}: noise floor 1 is {column}'s, and where one column's "
                "accuracies lie closer together the two τ are not alike: compare the pairs by distance"
            )
        elif like.seed == MEAN:
            notes.append("The noise floor is between single seeds; between means of several it would be higher")
        return f"seed {a} against seed {b}, {column}", one.over(common), other.over(common)
    notes.append("The benchmark has no two seeds: no noise floor from seeds")
    return None


# --- picks ----------------------------------------------------------------------------------------


def _picks(picks: Iterable[tuple[str, str]], first: Column, second: Column) -> tuple[Pick, ...]:
    place = {arch: i for i, arch in enumerate(first.archs)}
    ranks = [np.searchsorted(np.sort(-c.values), -c.values) + 1 for c in (first, second)]
    found = []
    for method, text in picks:
        arch = Nb201.parse(text)
        i = place.get(arch)
        if i is None:
            found.append(Pick(method, arch.code, (None, None), (None, None)))
        else:
            values = (float(first.values[i]), float(second.values[i]))
            found.append(Pick(method, arch.code, values, (int(ranks[0][i]), int(ranks[1][i]))))
    return tuple(found)


def _swapped(picks: Sequence[Pick]) -> tuple[tuple[str, str], ...]:
    """Pairs of methods whose picks change order."""
    found = []
    for a, b in itertools.combinations(picks, 2):
        if None in a.values or None in b.values:
            continue
        before, after = a.values[0] - b.values[0], a.values[1] - b.values[1]  # type: ignore[operator]
        if before * after < 0:
            found.append((a.method, b.method))
    return tuple(found)
