"""Benchmarks that trained every architecture with several settings: does the best setting's ranking differ from one's?

Such a table holds the answer that a retraining has to be made for elsewhere. Architectures are ranked once by their
accuracy at one setting that all share, and once by that at each one's own best. The best is chosen by other seeds than
those that it is judged by, since the luckiest of many settings looks good by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dagscale.bench.nas.agreement import SMALLEST, TOPS, Estimate, Gain, matched, mean_gain, top
from dagscale.bench.nas.components import Components, components
from dagscale.bench.nas.tables import Floats
from dagscale.errors import DataError

AFFECTS_RESULTS = False


@dataclass(frozen=True)
class Settings:
    """Accuracies by architecture and setting.

    Attributes:
        source: where they come from, for messages.
        column: what the accuracies are.
        archs: names of the architectures.
        settings: names of the settings, such as ``lr 0.1, batch 256``.
        values: percent, (architectures, settings, seeds); NaN where there is none.
    """

    source: str
    column: str
    archs: tuple[str, ...]
    settings: tuple[str, ...]
    values: Floats


@dataclass(frozen=True)
class Shared:
    """The ranking at one setting against that at each one's best.

    Attributes:
        setting: the shared one.
        archs, settings, seeds: how many there are; architectures are those that have all of the shared setting's seeds
            and another setting.
        chosen: setting → architectures that it is best for, by the mean over all seeds; the most frequent first.
        gains: of each one's best over the shared setting, in points: over all and over the top by the shared one.
        between: τ between one seed at the shared setting and another at each one's best, over the top K %.
        within: τ between two seeds at the shared setting: the floor. excess: within minus between.
        components: of the accuracies, where every architecture has every setting.
    """

    source: str
    column: str
    setting: str
    archs: int
    settings: int
    seeds: int
    chosen: tuple[tuple[str, int], ...]
    gains: tuple[Gain, ...]
    between: Mapping[int, Estimate]
    within: Mapping[int, Estimate]
    excess: Mapping[int, Estimate]
    components: Components | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data that ``json`` can write."""
        own = asdict(self)
        for part in ("between", "within", "excess"):
            own[part] = {str(k): asdict(e) for k, e in getattr(self, part).items()}
        return own


def compare_settings(table: Settings, setting: str | None = None, *, bootstrap: int = 100, seed: int = 0) -> Shared:
    """Rank at one shared setting against each one's best.

    Args:
        setting: the shared one; by default that with the best mean over all architectures that have it.
        bootstrap: resamples of the architectures.
        seed: of the resampling.

    Raises:
        DataError: if there is no such setting, or too few architectures, settings or seeds.
    """
    values, rng = table.values, np.random.default_rng(seed)
    whole = np.asarray(~np.isnan(values).any(2))  # an architecture has all seeds of a setting
    if values.shape[2] < 2:
        raise DataError(f"{table.source} has one seed a setting: the best of many would be the luckiest; give two")
    counts = whole.sum(0)
    if setting is None:
        common = counts >= max(SMALLEST, counts.max() / 2)
        if not common.any():
            raise DataError(f"{table.source}: no setting has all its seeds on {SMALLEST} architectures or more")
        masked = np.where(whole[:, :, None], values, np.nan)
        means = np.array([np.nanmean(masked[:, k]) if ok else -np.inf for k, ok in enumerate(common)])
        at = int(np.argmax(means))
    elif setting in table.settings:
        at = table.settings.index(setting)
    else:
        raise DataError(
            f"{table.source} has no setting {setting!r}; it has {', '.join(table.settings[:4])}"
            f"{', …' if len(table.settings) > 4 else ''}"
        )
    rows = np.flatnonzero(whole[:, at] & (whole.sum(1) > 1))
    if len(rows) < SMALLEST:
        raise DataError(
            f"{table.source}: {len(rows)} architectures have {table.settings[at]} and another setting with all seeds; "
            f"a ranking needs {SMALLEST} or more"
        )
    own = np.where(whole[rows][:, :, None], values[rows], -np.inf)
    shared = own[:, at]
    best = np.stack([_judged(own, k) for k in range(own.shape[2])], 1)
    between, within, excess = matched(shared, best, bootstrap, rng)
    means = shared.mean(1)
    change, luck = best.mean(1) - means, shared[:, 1] - shared[:, 0]
    favourite = own.mean(2).argmax(1)
    chosen = sorted(((table.settings[k], int((favourite == k).sum())) for k in set(favourite)), key=lambda one: -one[1])
    full = bool(whole[rows].all())
    return Shared(
        table.source, table.column, table.settings[at], len(rows), len(table.settings), values.shape[2], tuple(chosen),
        tuple(mean_gain(k, "the shared setting", top(means, k), change, luck, rng) for k in TOPS),
        between, within, excess, components(values[rows], bootstrap, rng) if full else None,
    )  # fmt: skip


def _judged(values: Floats, seed: int) -> Floats:
    """Each architecture's accuracy under one seed at the setting that the other seeds find best."""
    others = np.delete(values, seed, axis=2).mean(2)
    found: Floats = values[np.arange(len(values)), others.argmax(1), seed]
    return found
