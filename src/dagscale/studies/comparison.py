"""Accuracies of the same architectures under several recipes: gains and rankings, beside what seeds alone do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dagscale.errors import DataError
from dagscale.spaces.nb201 import Nb201
from dagscale.studies.agreement import SMALLEST, TOPS, Estimate, Gain, matched, mean_gain, taus, top
from dagscale.studies.rerank import Report, rerank
from dagscale.studies.tables import MEAN, Column, Floats, Table, from_columns


@dataclass(frozen=True)
class Matched:
    """Kendall's τ between two recipes over the top K % by the first, K → τ; all by single seeds but ``means``.

    Attributes:
        between: one seed of the first recipe against another seed of the second, mean over all such pairs.
        within: one seed against another of the same recipe, mean over pairs and over the two recipes: the floor.
        excess: ``within - between``, both over the same resampled architectures. Above 0 the recipes rank
            differently; below it lies only noise.
        means: between the means over seeds: less noisy, so not to be held against ``within``.
    """

    first: str
    second: str
    means: Mapping[int, Estimate]
    between: Mapping[int, Estimate]
    within: Mapping[int, Estimate]
    excess: Mapping[int, Estimate]


@dataclass(frozen=True)
class Comparison:
    """How recipes compare.

    Attributes:
        chosen_by: what the top is chosen by in ``gains``: ``published``, or the reference's own means.
        gains: recipe → mean gain over the reference in points, of all, the top 10 % and 1 %; fewer than five
            architectures have no interval.
        matched: every pair of recipes.
        published: recipe → τ of its mean accuracies against the published ones, over the top K % by these.
        reports: recipe → the re-ranking report of the reference's table against its own; none where there are
            too few architectures.
        notes: why something is missing.
    """

    reference: str
    chosen_by: str
    gains: Mapping[str, tuple[Gain, ...]]
    matched: tuple[Matched, ...]
    published: Mapping[str, Mapping[int, Estimate]]
    reports: Mapping[str, Report]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""

        def curve(estimates: Mapping[int, Estimate]) -> dict[str, Any]:
            return {str(k): asdict(e) for k, e in estimates.items()}

        return {
            "reference": self.reference,
            "chosen_by": self.chosen_by,
            "gains": {name: [asdict(g) for g in gains] for name, gains in self.gains.items()},
            "kendall": [
                {
                    "first": m.first,
                    "second": m.second,
                    **{part: curve(getattr(m, part)) for part in ("means", "between", "within", "excess")},
                }
                for m in self.matched
            ],
            "published": {name: curve(estimates) for name, estimates in self.published.items()},
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "notes": list(self.notes),
        }


def compare(
    archs: Sequence[Nb201],
    accuracies: Mapping[str, Floats],
    reference: str,
    dataset: str,
    published: Column | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare recipes by their accuracies.

    Args:
        accuracies: recipe → (architectures, seeds), percent.
        reference: the recipe that gains are over.
        dataset: name of the data set, for the tables; the published column's where there is one.
        published: published accuracies, of all these architectures.
        bootstrap: resamples of the architectures.
        seed: of the resampling.

    Raises:
        DataError: if the published column lacks an architecture.
    """
    rng = np.random.default_rng(seed)
    notes = []
    means = {name: values.mean(axis=1) for name, values in accuracies.items()}
    known = None if published is None else _values(published, archs)
    by = means[reference] if known is None else known
    others = [name for name in accuracies if name != reference]
    luck = accuracies[reference][:, 1] - accuracies[reference][:, 0]
    chosen_by = reference if known is None else "published"
    gains = {
        name: tuple(mean_gain(k, chosen_by, top(by, k), means[name] - means[reference], luck, rng) for k in TOPS)
        for name in others
    }
    pairs: list[Matched] = []
    against: dict[str, Mapping[int, Estimate]] = {}
    reports: dict[str, Report] = {}
    if len(archs) < SMALLEST:
        notes.append(f"{len(archs)} architectures are too few for a ranking: τ and pairs need {SMALLEST} or more")
    else:
        for a, b in itertools.combinations(accuracies, 2):
            between, within, excess = matched(accuracies[a], accuracies[b], bootstrap, rng)
            pairs.append(Matched(a, b, taus(means[a], means[b], bootstrap, rng), between, within, excess))
        if known is not None:
            against = {name: taus(known, means[name], bootstrap, rng) for name in accuracies}
        tables = {
            name: table(archs, values, dataset if published is None else published.dataset, name)
            for name, values in accuracies.items()
        }
        for name in others:
            try:
                reports[name] = rerank(
                    tables[reference], tables[name], partial=True, bootstrap=bootstrap, random_seed=seed
                )
            except DataError as error:
                notes.append(f"{name}: {error}")
    return Comparison(reference, chosen_by, gains, tuple(pairs), against, reports, tuple(notes))


def table(archs: Sequence[Nb201], accuracies: Floats, dataset: str, source: str) -> Table:
    """Accuracies (architectures, seeds) as a table with one row a seed and the mean over seeds."""
    rows: dict[str, list[Any]] = {"code": [], "dataset": [], "seed": [], "test_acc": []}
    for arch, values in zip(archs, accuracies, strict=True):
        for name, value in [(MEAN, values.mean()), *((str(k), v) for k, v in enumerate(values))]:
            for key, cell in zip(rows, (arch.code, dataset, name, float(value)), strict=True):
                rows[key].append(cell)
    return from_columns(rows, source)


def _values(column: Column, archs: Sequence[Nb201]) -> Floats:
    place = {arch: i for i, arch in enumerate(column.archs)}
    lacking = [arch.code for arch in archs if arch not in place]
    if lacking:
        raise DataError(
            f"{column.source}: {column.label} lacks {len(lacking)} of the {len(archs)} architectures (the first is "
            f"{lacking[0]}); choose others with --architectures, or another table"
        )
    return column.values[[place[arch] for arch in archs]]


__all__ = ["Comparison", "Matched", "compare", "table"]
