"""The answer of a search, and its faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.pictures.files import save
from dagscale.rates import find_band

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Point:
    """One rate of the curve.

    Args:
        lr: learning rate, per optimiser step.
        losses: final training loss of each seed that was run; ``inf`` if it diverged.
        loss: mean over all seeds; where some were not run, estimated (`dagscale.searching.fast.estimates`).
    """

    lr: float
    losses: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Found:
    """The answer of a search. Rates are per optimiser step, losses are final training losses.

    Args:
        lr: the rate to recommend: the geometric middle of the band.
        edge: the maximal learning rate: the upper end of the band.
        argmin: the rate tried with the smallest mean loss.
        loss: that loss.
        band: lower and upper end of the rates whose loss is within ``tolerance`` of the best, see `find_band`.
        curve: all rates tried, ascending.
        at_edge: an end of the band is still the first or last rate tried: the true one may lie outside.
        widened: how often the grid was widened.
        steps: optimiser steps of all runs together, glances included.
        seeds: runs at each rate; with method "fast", at those that decide.
        tolerance: relative width of the band in the loss.
        notes: what the plan says a reader should know, such as parameters that its init leaves as they were.
        method: how it was found, a name in ``METHODS``.
    """

    lr: float
    edge: float
    argmin: float
    loss: float
    band: tuple[float, float]
    curve: tuple[Point, ...]
    at_edge: bool
    widened: int
    steps: int
    seeds: int
    tolerance: float
    notes: tuple[str, ...] = ()
    method: str = "grid"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; the loss of a diverged run is ``None``."""
        return {
            "lr": self.lr,
            "edge": self.edge,
            "argmin": self.argmin,
            "loss": self.loss,
            "band": list(self.band),
            "at_edge": self.at_edge,
            "widened": self.widened,
            "steps": self.steps,
            "seeds": self.seeds,
            "tolerance": self.tolerance,
            "notes": list(self.notes),
            "method": self.method,
            "curve": [
                {"lr": p.lr, "loss": _or_none(p.loss), "losses": [_or_none(loss) for loss in p.losses]}
                for p in self.curve
            ],
        }

    def __str__(self) -> str:
        low, high = self.band
        remark = "; still at the edge of the grid, the true band may reach beyond it" if self.at_edge else ""
        runs = sum(len(point.losses) for point in self.curve)
        return (
            f"learning rate {self.lr:.3g} (band {low:.3g} to {high:.3g}; best {self.argmin:.3g}, loss {self.loss:.4g}; "
            f"{len(self.curve)} rates, {runs} runs of up to {self.seeds} seeds, {self.steps:,} steps, "
            f"grid widened {self.widened}×{remark})"
        )

    def table(self) -> Table:
        """The curve as a rich table, the band marked."""
        from rich.table import Table
        from rich.text import Text

        caption = Text("\n".join([str(self), *(f"note: {note}" for note in self.notes)]))
        table = Table(
            title="final training loss by learning rate",
            caption=caption,
        )
        for name in ("lr", "mean loss", "lowest", "highest", "seeds"):
            table.add_column(name, justify="right")
        table.add_column("")
        for point in self.curve:
            inside = self.band[0] <= point.lr <= self.band[1]
            mark = "◀ best" if point.lr == self.argmin else "in the band" if inside else ""
            losses = (point.loss, min(point.losses), max(point.losses))
            table.add_row(
                f"{point.lr:.3g}",
                *map(_loss_text, losses),
                str(len(point.losses)),
                mark,
                style="bold" if inside else "",
            )
        return table

    def plot(self, path: str | Path) -> None:
        """Draw loss against rate into a ``.png``, ``.svg`` or ``.pdf`` file.

        Raises: DagscaleError if matplotlib is missing, the suffix is another, or the file cannot be written.
        """
        save(self._figure, path)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        finite = [point for point in self.curve if math.isfinite(point.loss)]
        axes.axvspan(*self.band, alpha=0.15, label=f"within {self.tolerance:.0%} of the best")
        axes.axvline(self.lr, linestyle="--", label=f"middle of the band, {self.lr:.3g}")
        axes.plot([point.lr for point in finite], [point.loss for point in finite], marker="o")
        axes.fill_between(
            [point.lr for point in finite],
            [min(point.losses) if len(point.losses) == self.seeds else point.loss for point in finite],
            [max(point.losses) if len(point.losses) == self.seeds else point.loss for point in finite],
            alpha=0.3,
        )
        lost = [point.lr for point in self.curve if not math.isfinite(point.loss)]
        if lost:
            top = max(point.loss for point in finite)
            axes.plot(lost, [top] * len(lost), marker="x", linestyle="", color="tab:red", label="diverged")
        axes.set(xlabel="learning rate", ylabel="final training loss", title=f"up to {self.seeds} seeds a rate")
        axes.set_xscale("log", base=2)
        axes.legend()
        return figure


def read(
    curve: Sequence[Point],
    tolerance: float,
    *,
    widened: int,
    steps: int,
    seeds: int,
    notes: tuple[str, ...],
    method: str,
) -> Found:
    """The answer off a curve with at least one finite loss; ``curve`` ascending."""
    best = min(curve, key=lambda point: point.loss)
    low, high = find_band([point.lr for point in curve], [point.loss for point in curve], tolerance)
    return Found(
        lr=math.sqrt(low * high),
        edge=high,
        argmin=best.lr,
        loss=best.loss,
        band=(low, high),
        curve=tuple(curve),
        at_edge=any(sides(curve, tolerance)),
        widened=widened,
        steps=steps,
        seeds=seeds,
        tolerance=tolerance,
        notes=notes,
        method=method,
    )


def sides(curve: Sequence[Point], tolerance: float) -> tuple[bool, bool]:
    """Whether the band (or, where all diverged, the answer) reaches the lower, the upper end of the curve."""
    losses = [point.loss for point in curve]
    if all(math.isinf(loss) for loss in losses):
        return True, False
    low, high = find_band([point.lr for point in curve], losses, tolerance)
    return low <= curve[0].lr, high >= curve[-1].lr


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss_text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverged"
