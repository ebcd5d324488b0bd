"""``dagscale rerank``: how a second set of accuracies re-ranks a NAS benchmark, beside what seeds alone would do.

Kendall's τ over the top K % falls as K does even if nothing changed but the seed: the best are close together,
and choosing them by a noisy value keeps the lucky ones. So every τ here stands beside a noise floor that makes
the same choice with the same data: between the benchmark's own seeds, and between its isomorphic architectures,
which are one network trained several times.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dagscale.errors import DataError, TargetError
from dagscale.registry import Registry
from dagscale.spaces.isomorphism import groups
from dagscale.spaces.nb201 import Nb201
from dagscale.studies.tables import COLUMNS, MEAN, Column, Floats, Table

Ints = npt.NDArray[np.int64]
SeedPair = tuple[str, Column, Column]
"""A label, and two single-seed columns of the benchmark over the same architectures."""

KS = tuple(range(100, 0, -1))
INTERVAL_KS = (100, 75, 50, 40, 30, 25, 20, 15, 10, 7, 5, 3, 2, 1)
"""The K for which intervals are bootstrapped."""
SMALLEST = 5
"""A τ over fewer architectures is not given."""
TOPS = (100, 10, 1)
GAPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 100.0)
"""Edges, in points of accuracy, of the classes of pairs."""
PAIRS = 200_000
TWIN_DRAWS = 20


@dataclass(frozen=True)
class Recipe:
    """How networks are trained.

    Attributes:
        lr: learning rate at the start, per optimiser step; None where a plan gives each network its own.
    """

    optimizer: str
    lr: float | None
    momentum: float
    nesterov: bool
    weight_decay: float
    batch_size: int
    epochs: int
    schedule: str
    augment: tuple[str, ...]


RECIPES: Registry[Recipe] = Registry("recipe")
# As published [Dong & Yang 2020, Table 1].
RECIPES.add("benchmark")(Recipe("sgd", 0.1, 0.9, True, 5e-4, 256, 200, "cosine", ("flip", "crop")))


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % bootstrap interval over architectures; None where there were too few for one."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """Kendall's τ over the top K %, the top taken by the first of the two columns.

    Attributes:
        taus: K → τ; K with fewer than five architectures are left out.
        n: the number of architectures at K = 100.
    """

    label: str
    taus: Mapping[int, Estimate]
    n: int


@dataclass(frozen=True)
class Gain:
    """Mean change of accuracy in points, over the top K % by one of the columns.

    Attributes:
        noise: the same number between two seeds of the benchmark: what choosing the lucky ones gives without any
            change; None where the benchmark has no two seeds.
    """

    top: int
    chosen_by: str
    gain: Estimate
    noise: float | None


@dataclass(frozen=True)
class GapClass:
    """Pairs of architectures by their distance in the benchmark, and the share that changes order.

    Attributes:
        noise: that share between two seeds of the benchmark.
    """

    top: int
    low: float
    high: float
    pairs: int
    flipped: float | None
    noise: float | None


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
        floors.append(Curve(pair[0], _taus(a, b, bootstrap, rng), len(a)))
        noise_std["seeds"] = float(np.std(a - b) / np.sqrt(2))
    twins = _twins(first, rng)
    if twins is not None:
        floors.append(twins[0])
        noise_std["isomorphic"] = twins[1]
    if pair is not None and {_named(pair[1]), _named(pair[2])} == {_named(first), _named(second)}:
        notes.append("The two columns compared are noise floor 1 itself: the difference to it is 0 by construction")
    progress("Kendall τ by top K %")
    tau = Curve("benchmark against new", _taus(x, y, bootstrap, rng), len(x))
    progress("difference to the noise floor")
    excess = {} if pair is None else _excess(x, y, pair[1], pair[2], first.archs, bootstrap, rng)
    progress("gains and pairs")
    chosen = tuple(picks) if picks is not None else (*PUBLISHED_PICKS.get(first.dataset, ()), *REFERENCES)
    placed = _picks(chosen, first, second)
    return Report(
        first,
        second,
        tau,
        tuple(floors),
        excess,
        _gains(x, y, pair, rng),
        _gaps(x, y, pair, rng),
        placed,
        _swapped(placed),
        _kinds(first.archs),
        noise_std,
        tuple(notes),
    )


def read_picks(path: Path) -> tuple[tuple[str, str], ...]:
    """(method, architecture) pairs from a CSV file with the columns ``method`` and ``arch``.

    Raises:
        DataError: if it is no such file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [(row.get("method"), row.get("arch")) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}") from error
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
    cut = []
    for one in (first, second):
        keep = np.array([arch in common for arch in one.archs], dtype=bool)
        archs = tuple(arch for arch in one.archs if arch in common)
        cut.append(Column(one.source, one.dataset, one.column, one.seed, archs, one.values[keep]))
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
    return cut[0], cut[1], notes


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
        pair = []
        for c in (one, other):
            keep = np.array([arch in common for arch in c.archs], dtype=bool)
            archs = tuple(arch for arch in c.archs if arch in common)
            pair.append(Column(c.source, c.dataset, c.column, c.seed, archs, c.values[keep]))
        if column != like.column:
            notes.append(
                f"The benchmark has no seeds for {like.column}: noise floor 1 is {column}'s, and where one column's "
                "accuracies lie closer together the two τ are not alike: compare the pairs by distance"
            )
        elif like.seed == MEAN:
            notes.append("The noise floor is between single seeds; between means of several it would be higher")
        return f"seed {a} against seed {b}, {column}", pair[0], pair[1]
    notes.append("The benchmark has no two seeds: no noise floor from seeds")
    return None


def _kinds(archs: Iterable[Nb201]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for arch in archs:
        counts[arch.kind] = counts.get(arch.kind, 0) + 1
    return counts


# --- Kendall's τ ----------------------------------------------------------------------------------


def kendall(x: Floats, y: Floats) -> float:
    """Kendall's τ-b; NaN where one side is constant."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def top(x: Floats, percent: int) -> Ints:
    """Indices of the top ``percent`` % by ``x``, the best first; ties in the order they stand."""
    count = max(1, round(len(x) * percent / 100))
    return np.argsort(-x, kind="stable")[:count]


def _curve(x: Floats, y: Floats, ks: Sequence[int]) -> dict[int, float]:
    order = top(x, 100)
    found = {}
    for k in ks:
        best = order[: round(len(x) * k / 100)]
        if len(best) >= SMALLEST:
            value = kendall(x[best], y[best])
            if not np.isnan(value):
                found[k] = value
    return found


def _taus(x: Floats, y: Floats, bootstrap: int, rng: np.random.Generator) -> dict[int, Estimate]:
    """τ at every K, with intervals at ``INTERVAL_KS``. The top K % is chosen anew in each resample."""
    points = _curve(x, y, KS)
    drawn: dict[int, list[float]] = {k: [] for k in INTERVAL_KS}
    for _ in range(bootstrap):
        rows = rng.integers(0, len(x), len(x))
        for k, value in _curve(x[rows], y[rows], INTERVAL_KS).items():
            drawn[k].append(value)
    return {k: _estimate(v, drawn.get(k, ()), round(len(x) * k / 100)) for k, v in points.items()}


def _excess(
    x: Floats, y: Floats, one: Column, other: Column, archs: Sequence[Nb201], bootstrap: int, rng: np.random.Generator
) -> dict[int, Estimate]:
    """τ between seeds minus τ between benchmark and against, over the same architectures, resampled together."""
    place = {arch: i for i, arch in enumerate(archs)}
    rows = np.array([place[arch] for arch in one.archs])
    x, y, a, b = x[rows], y[rows], one.values, other.values

    def difference(s: Any) -> dict[int, float]:
        floor, own = _curve(a[s], b[s], INTERVAL_KS), _curve(x[s], y[s], INTERVAL_KS)
        return {k: floor[k] - own[k] for k in floor if k in own}

    points = difference(slice(None))
    drawn: dict[int, list[float]] = {k: [] for k in points}
    for _ in range(bootstrap):
        for k, value in difference(rng.integers(0, len(x), len(x))).items():
            if k in drawn:
                drawn[k].append(value)
    return {k: _estimate(v, drawn[k], round(len(x) * k / 100)) for k, v in points.items()}


def _twins(column: Column, rng: np.random.Generator) -> tuple[Curve, float] | None:
    """The noise floor from architectures that compute the same: (its curve, standard deviation within groups).

    In each draw, every group of two or more gives two of its members at random, one as x and one as y. Groups
    without convolution are left out: the largest, and all alike. The interval is that over draws.
    """
    value = dict(zip(column.archs, column.values, strict=True))
    alike = [np.array([value[a] for a in g]) for g in groups(column.archs) if g[0].kind == "convolutional"]
    alike = [g for g in alike if len(g) > 1]
    if len(alike) < 2 * SMALLEST:
        return None
    drawn: dict[int, list[float]] = {}
    for _ in range(TWIN_DRAWS):
        x, y = np.array([rng.choice(g, 2, replace=False) for g in alike]).T
        for k, tau in _curve(x, y, KS).items():
            drawn.setdefault(k, []).append(tau)
    taus = {k: _estimate(float(np.mean(v)), v, round(len(alike) * k / 100)) for k, v in sorted(drawn.items())[::-1]}
    variance = sum(float(np.var(g)) * len(g) for g in alike) / sum(len(g) - 1 for g in alike)
    label = f"isomorphic architectures, {column.column} {'' if column.seed == MEAN else 'seed '}{column.seed}"
    return Curve(label, taus, len(alike)), variance**0.5


def _estimate(value: float, drawn: Sequence[float], n: int) -> Estimate:
    if len(drawn) < 20:
        return Estimate(value, None, None, n)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


# --- gains, pairs, picks --------------------------------------------------------------------------


def _gains(x: Floats, y: Floats, pair: SeedPair | None, rng: np.random.Generator) -> tuple[Gain, ...]:
    found = []
    for chosen_by, by in (("benchmark", x), ("against", y)):
        for k in TOPS:
            if k == 100 and chosen_by == "against":
                continue
            best = top(by, k)
            change = (y - x)[best]
            means = change[rng.integers(0, len(change), (1000, len(change)))].mean(axis=1) if len(change) > 1 else ()
            noise = None
            if pair is not None:
                a, b = pair[1].values, pair[2].values
                noise = float((b - a)[top(a if chosen_by == "benchmark" else b, k)].mean())
            found.append(Gain(k, chosen_by, _estimate(float(change.mean()), tuple(means), len(best)), noise))
    return tuple(found)


def _gaps(x: Floats, y: Floats, pair: SeedPair | None, rng: np.random.Generator) -> tuple[GapClass, ...]:
    found = []
    for k in (100, 10):
        best = top(x, k)
        own = _flips(x[best], y[best], rng)
        noise = None
        if pair is not None:
            lucky = top(pair[1].values, k)
            noise = _flips(pair[1].values[lucky], pair[2].values[lucky], rng)
        for i, (low, high) in enumerate(itertools.pairwise(GAPS)):
            count, share = own[i]
            found.append(GapClass(k, low, high, count, share, noise[i][1] if noise else None))
    return tuple(found)


def _flips(x: Floats, y: Floats, rng: np.random.Generator) -> list[tuple[int, float | None]]:
    """For each class of ``GAPS``: how many pairs were looked at, and the share that changes order.

    All pairs, or ``PAIRS`` random ones. Pairs equal in x are left out, pairs equal in y count half.
    """
    n = len(x)
    if n * (n - 1) // 2 <= PAIRS:
        i, j = np.triu_indices(n, 1)
    else:
        i, j = rng.integers(0, n, PAIRS), rng.integers(0, n, PAIRS)
    dx, dy = x[i] - x[j], y[i] - y[j]
    flipped = np.where(dy == 0, 0.5, (dx * dy < 0).astype(float))
    found: list[tuple[int, float | None]] = []
    for low, high in itertools.pairwise(GAPS):
        inside = (np.abs(dx) > low) & (np.abs(dx) <= high)
        count = int(inside.sum())
        found.append((count, float(flipped[inside].mean()) if count else None))
    return found


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
