"""What training found for one architecture: the curve of losses over rates, and what is read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from dagscale.rates import find_band

AFFECTS_TRAINING = False

TOLERANCE = 0.05
"""The band of good rates: loss within 5 % of the best, as far as that is no wider than a band may be."""


@dataclass(frozen=True)
class Truth:
    """The final training losses over the grid. Regrets are relative: 0.01 is a loss 1 % higher.

    Attributes:
        rates: the grid, ascending.
        losses: for each rate, the loss of each seed; ``inf`` where it diverged.
    """

    rates: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]

    @cached_property
    def means(self) -> tuple[float, ...]:
        """Mean loss over the seeds at each rate."""
        return tuple(fmean(row) for row in self.losses)

    @property
    def best(self) -> float:
        """The lowest mean loss. The lowest of several noisy numbers is lucky, so this is a little too low."""
        return min(self.means)

    @property
    def argmin(self) -> float:
        """The learning rate with the lowest mean loss."""
        return self.rates[self.means.index(self.best)]

    @cached_property
    def band(self) -> tuple[float, float]:
        """Lowest and highest of the rates around it whose loss is within ``TOLERANCE``, see `find_band`."""
        return find_band(self.rates, self.means, TOLERANCE)

    @property
    def edge(self) -> float:
        """The maximal learning rate: the upper end of the band."""
        return self.band[1]

    @property
    def middle(self) -> float:
        """The geometric middle of the band."""
        return math.sqrt(self.band[0] * self.band[1])

    @property
    def at_end(self) -> bool:
        """Whether the band reaches an end of the grid, so that the true one may reach beyond."""
        return self.band[0] <= self.rates[0] or self.band[1] >= self.rates[-1]

    @property
    def split(self) -> tuple[slice, slice]:
        """The seeds in two halves."""
        half = len(self.losses[0]) // 2
        return slice(0, half), slice(half, None)

    @cached_property
    def halves(self) -> tuple[Truth, Truth]:
        """The curve as each half of the seeds alone shows it."""
        a, b = (Truth(self.rates, tuple(row[part] for row in self.losses)) for part in self.split)
        return a, b

    def at(self, lr: float) -> tuple[float, ...]:
        """Each seed's loss at a rate, linear in log rate between those of the grid; beyond it, that of its end."""
        logs = [math.log(rate) for rate in self.rates]
        x = min(max(math.log(lr), logs[0]), logs[-1])
        i = min(max(1, next((k for k, a in enumerate(logs) if a >= x), 1)), len(logs) - 1)
        share = (x - logs[i - 1]) / (logs[i] - logs[i - 1])
        pairs = zip(self.losses[i - 1], self.losses[i], strict=True)
        if share in (0, 1):  # inf · 0 is no number
            return self.losses[i] if share else self.losses[i - 1]
        return tuple((1 - share) * left + share * right for left, right in pairs)

    def searched(self) -> tuple[float, ...]:
        """Each seed's loss at the middle of the band that the other half of the seeds found."""
        a, b = self.halves
        return (*a.at(b.middle), *b.at(a.middle))

    def regret(self, losses: Sequence[float], best: float | None = None) -> float:
        """Excess of the mean of the seeds' losses over the best of the curve, or over another best."""
        return fmean(losses) / (self.best if best is None else best) - 1

    def regret_cv(self, losses: Sequence[float]) -> float:
        """Cross-validated: one half of the seeds names the best rate, the other half gives both losses; both ways.

        The best is no minimum of the numbers that it is compared with, so noise does not bias it low.
        """
        finite = [i for i, mean in enumerate(self.means) if math.isfinite(mean)]
        ways = []
        for chosen, judge, part in zip(self.halves, self.halves[::-1], self.split[::-1], strict=True):
            best = min(finite, key=chosen.means.__getitem__)
            ways.append(fmean(losses[part]) / judge.means[best] - 1)
        return fmean(ways)
