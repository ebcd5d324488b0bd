"""Accuracies of the same architectures under several recipes: gains and rankings, beside what seeds alone do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dagscale.bench.nas.agreement import SMALLEST, TOPS, Estimate, Gain, matched, mean_change, mean_gain, taus, top
from dagscale.bench.nas.components import Components, components
from dagscale.bench.nas.rerank import Report, rerank
from dagscale.bench.nas.tables import MEAN, Column, Floats, Table, from_columns
from dagscale.errors import DataError
from dagscale.models.nb201 import Nb201
from dagscale.shown import counted

CLASSES = 5
"""Classes of rank that gains are given for."""


@dataclass(frozen=True)
class Pair:
    """Two recipes. Kendall's τ is over the top K % by the first, K → τ, by single seeds in all but ``means``.

    Attributes:
        gains: mean gain of the second over the first in points: of all, the top 10 % and 1 %; fewer than five
            architectures have no interval. The noise is that gain between two seeds of the first.
        means: τ between the means over seeds: less noisy, so not to be held against ``within``.
        between: one seed of the first against another seed of the second, mean over all such pairs.
        within: one seed against another of the same recipe, mean over pairs and over the two recipes: the floor.
        excess: ``within - between``, both over the same resampled architectures. Above 0 the recipes rank
            differently; around 0 lies only noise.
        classes: the mean gain in each of ``CLASSES`` classes of equal size by rank, the best first; from five
            architectures on with an interval. Empty where there are fewer architectures than classes.
    """

    first: str
    second: str
    gains: tuple[Gain, ...]
    means: Mapping[int, Estimate]
    between: Mapping[int, Estimate]
    within: Mapping[int, Estimate]
    excess: Mapping[int, Estimate]
    classes: tuple[Estimate, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """How recipes compare.

    Attributes:
        chosen_by: what the top is chosen by in the gains: ``published``, or the reference's own means.
        pairs: every two recipes, in their order.
        published: recipe → τ of its mean accuracies against the published ones, over the top K % by these.
        reports: recipe → the re-ranking report of the reference's table against its own; none where there are
            too few architectures.
        notes: why something is missing.
        components: of the accuracies, with recipes as trainings; None where there are too few.
    """

    reference: str
    chosen_by: str
    pairs: tuple[Pair, ...]
    published: Mapping[str, Mapping[int, Estimate]]
    reports: Mapping[str, Report]
    notes: tuple[str, ...]
    components: Components | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""

        def curve(estimates: Mapping[int, Estimate]) -> dict[str, Any]:
            return {str(k): asdict(e) for k, e in estimates.items()}

        return {
            "reference": self.reference,
            "chosen_by": self.chosen_by,
            "pairs": [
                {
                    "first": p.first,
                    "second": p.second,
                    "gains": [asdict(g) for g in p.gains],
                    "classes": [asdict(e) for e in p.classes],
                    "tau": {part: curve(getattr(p, part)) for part in ("means", "between", "within", "excess")},
                }
                for p in self.pairs
            ],
            "published": {name: curve(estimates) for name, estimates in self.published.items()},
            "reports": {name: report.to_dict() for name, report in self.reports.items()},
            "components": None if self.components is None else asdict(self.components),
            "notes": list(self.notes),
        }


def compare(
    archs: Sequence[Nb201],
    accuracies: Mapping[str, Floats],
    reference: str,
    dataset: str,
    published: Column | None = None,
    *,
    picks: Sequence[tuple[str, str]] | None = None,
    bootstrap: int = 100,
    seed: int = 0,
) -> Comparison:
    """Compare recipes by their accuracies.

    Args:
        accuracies: recipe → (architectures, seeds), percent.
        reference: the recipe that the reports are against.
        dataset: name of the data set, for the tables; the published column's where there is one.
        published: published accuracies, of all these architectures.
        picks: as for `dagscale.bench.nas.rerank.rerank`.
        bootstrap: resamples of the architectures.
        seed: of the resampling.

    Raises:
        DataError: if the published column lacks an architecture.
    """
    rng = np.random.default_rng(seed)
    notes = []
    means = {name: values.mean(axis=1) for name, values in accuracies.items()}
    known = None if published is None else published_values(published, archs)
    chosen_by, by = (reference, means[reference]) if known is None else ("published", known)
    enough = len(archs) >= SMALLEST
    if not enough:
        notes.append(f"no ranking of {counted(len(archs), 'architecture')}: τ and pairs need {SMALLEST} or more")
    ranks = np.array_split(top(by, 100), CLASSES) if len(archs) >= CLASSES else []
    pairs = []
    for a, b in itertools.combinations(accuracies, 2):
        luck, change = accuracies[a][:, 1] - accuracies[a][:, 0], means[b] - means[a]
        gains = tuple(mean_gain(k, chosen_by, top(by, k), change, luck, rng) for k in TOPS)
        between, within, excess = matched(accuracies[a], accuracies[b], bootstrap, rng)
        classes = tuple(mean_change(change[rows], rng) for rows in ranks)
        pairs.append(Pair(a, b, gains, taus(means[a], means[b], bootstrap, rng), between, within, excess, classes))
    against = {} if known is None else {name: taus(known, own, bootstrap, rng) for name, own in means.items()}
    reports: dict[str, Report] = {}
    named = dataset if published is None else published.dataset
    for name, values in accuracies.items() if enough else ():
        try:
            if name != reference:
                one, other = table(archs, accuracies[reference], named, reference), table(archs, values, named, name)
                reports[name] = rerank(one, other, partial=True, picks=picks, bootstrap=bootstrap, random_seed=seed)
        except DataError as error:
            notes.append(str(error))
    parts = components(np.stack(list(accuracies.values()), 1), bootstrap, rng)
    return Comparison(reference, chosen_by, tuple(pairs), against, reports, tuple(notes), parts)


def table(archs: Sequence[Nb201], accuracies: Floats, dataset: str, source: str) -> Table:
    """Accuracies (architectures, seeds) as a table with one row a seed and the mean over seeds."""
    rows: dict[str, list[Any]] = {"code": [], "dataset": [], "seed": [], "test_acc": []}
    for arch, values in zip(archs, accuracies, strict=True):
        for name, value in [(MEAN, values.mean()), *((str(k), v) for k, v in enumerate(values))]:
            for key, cell in zip(rows, (arch.code, dataset, name, float(value)), strict=True):
                rows[key].append(cell)
    return from_columns(rows, source)


def published_values(column: Column, archs: Sequence[Nb201]) -> Floats:
    """The column's values of these architectures, in their order.

    Raises:
        DataError: if it lacks one.
    """
    place = {arch: i for i, arch in enumerate(column.archs)}
    lacking = [arch.code for arch in archs if arch not in place]
    if lacking:
        raise DataError(
            f"{column.source}: {column.label} lacks {len(lacking)} of the {len(archs)} architectures (the first is "
            f"{lacking[0]}); choose others with --architectures, or another table"
        )
    return column.values[[place[arch] for arch in archs]]
