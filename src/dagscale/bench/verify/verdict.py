"""What each method comes to, held against what training found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from dagscale.bench.verify.methods import Method
from dagscale.bench.verify.truth import Truth

AFFECTS_TRAINING = False

Truths = Mapping[str, Mapping[str, Truth]]
"""By the methods' ``truth`` and by architecture, the base among them."""


@dataclass(frozen=True)
class Verdict:
    """What one method came to, architecture by architecture.

    Attributes:
        method: its name.
        rates: what it predicted; None if it has no rates.
        found: the rates that it should have predicted: the middles of the bands.
        bands, edges, argmins: the 5 % bands, their upper ends, and the paper's maximal rates.
        regrets: excess of the loss over the best of the grid under the method's own init; ``inf`` if it diverged.
        regrets_cv: the same, cross-validated (`Truth.regret_cv`).
        excesses: excess over the best of the grids under any init.
        steps: optimiser steps that it took for all of them, the base's search included.
    """

    method: str
    rates: tuple[float, ...] | None
    found: tuple[float, ...]
    bands: tuple[tuple[float, float], ...]
    edges: tuple[float, ...]
    argmins: tuple[float, ...]
    regrets: tuple[float, ...]
    regrets_cv: tuple[float, ...]
    excesses: tuple[float, ...]
    steps: int


@dataclass(frozen=True)
class Judge:
    """Holds losses against the truth.

    Attributes:
        bases: whose best rates are known; factors are relative to the first.
        members: the other architectures.
        spent: (truth, architecture) → optimiser steps of the whole grid.
    """

    truths: Truths
    bases: tuple[str, ...]
    members: tuple[str, ...]
    spent: Mapping[tuple[str, str], int]

    def method(self, method: Method, answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Verdict:
        """The verdict on a method.

        Args:
            answers: for each architecture but the first base, what its prediction runs answered, see `Method`.
        """
        own, rows = self._own(method.truth), [answers[a] for a in self.members]
        first = rows[0][0]
        carried = "factor" in first  # only such a method looks at the bases
        steps = sum(round(fmean(answer["steps"] for answer in row)) for row in (answers.values() if carried else rows))
        if "loss" in first:
            return self._verdict(method.name, own, None, [[answer["loss"] for answer in row] for row in rows], steps)
        if carried:
            factor = {self.bases[0]: 1.0} | {a: row[0]["factor"] for a, row in answers.items()}
            lr = geometric_mean(self.truths[method.truth][base].middle / factor[base] for base in self.bases)
            rates = [lr * factor[a] for a in self.members]
            steps += sum(self.spent[method.truth, base] for base in self.bases)
        else:
            rates = [row[0]["lr"] for row in rows]
        losses = [t.at(rate) for t, rate in zip(own, rates, strict=True)]
        return self._verdict(method.name, own, rates, losses, steps)

    def searches(self) -> Iterator[Verdict]:
        """A whole search on each architecture, by one half of the seeds, judged by the other: nobody does better.

        Its correlation and distance, between the two halves' middles, are the noise floor. Beside it, what the very
        rate that laws should predict loses: the middle of the band that all the seeds found.
        """
        for i, truth in enumerate(self.truths):
            if self.truths[truth] in list(self.truths.values())[:i]:
                continue  # at one width, mup's runs are those of the plain init
            own = self._own(truth)
            steps = sum(self.spent[truth, a] for a in self.members)
            rates, right = [t.halves[0].middle for t in own], [t.halves[1] for t in own]
            yield self._verdict(f"grid / {truth}", own, rates, [t.searched() for t in own], steps, right)
            yield self._verdict(f"middle / {truth}", own, None, [t.at(t.middle) for t in own], steps)

    def _own(self, truth: str) -> list[Truth]:
        return [self.truths[truth][a] for a in self.members]

    def _verdict(
        self,
        name: str,
        own: Sequence[Truth],
        rates: Sequence[float] | None,
        losses: Sequence[Sequence[float]],
        steps: int,
        right: Sequence[Truth] | None = None,
    ) -> Verdict:
        """``losses``: each seed's; ``right``: the curves that ``rates`` should agree with, ``own`` by default."""
        best = [min(curves[a].best for curves in self.truths.values()) for a in self.members]
        right = own if right is None else right
        return Verdict(
            method=name,
            rates=None if rates is None else tuple(rates),
            found=tuple(t.middle for t in right),
            bands=tuple(t.band for t in right),
            edges=tuple(t.edge for t in right),
            argmins=tuple(t.argmin for t in right),
            regrets=tuple(t.regret(loss) for t, loss in zip(own, losses, strict=True)),
            regrets_cv=tuple(t.regret_cv(loss) for t, loss in zip(own, losses, strict=True)),
            excesses=tuple(t.regret(loss, b) for t, loss, b in zip(own, losses, best, strict=True)),
            steps=steps,
        )
