"""What a watch saw, as a value that prints itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dagscale.judged import Judged
from dagscale.scaling.width import pattern
from dagscale.shown import Tabled, cell, finite, load_rich
from dagscale.watching.seen import Fault

if TYPE_CHECKING:
    from rich.console import Group

FORMAT = 1
"""Of the JSON document."""


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter, planned against measured; medians over the observed steps. None: not seen, or not known.

    Attributes:
        name, kind: which parameter, and what it is in the network.
        planned_rate, rate: its learning rate over the network's, by the plan and in the optimiser's groups, the
            schedule's factor taken out of the latter.
        planned_update, update: ``|ΔW| / |W|``, root mean squares, by the plan's rate and as measured; of the former
            what the optimiser's kind of step implies at most (Adam's noise makes a step smaller).
        planned_signal, signal: ``|ΔW x| / |W x|``: how far one step of this layer alone moves its output, its input
            given; of the former what the same layers of the base did, where its report was given.
        ok: whether no fault names it.
    """

    name: str
    kind: str
    planned_rate: float
    rate: float | None
    planned_update: float | None
    update: float | None
    signal: float | None
    ok: bool
    planned_signal: float | None = None


@dataclass(frozen=True, repr=False)
class WatchReport(Tabled, Judged[Fault]):
    """What a watch saw of a training so far.

    Attributes:
        rows: a row a trained parameter, in the model's order.
        faults: the first one first: later ones may follow from it.
        notes: what a reader should know.
        steps, observed: optimiser steps taken, and looked at closely.
        schedule: the least and the largest factor on the plan's rates so far; None before the first step.
        kept: what clipping kept of the gradient, in the median; None if it was not seen.
        optimizer: the plan's.
    """

    rows: tuple[Row, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    steps: int
    observed: int
    schedule: tuple[float, float] | None
    kept: float | None
    optimizer: str

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.faults:
            if not self.observed:
                return "no step seen yet: train with the optimizer that is watched"
            return f"pass: the training does what the plan says ({self.steps} steps, {self.observed} observed)"
        return self.failed()

    def scalars(self) -> dict[str, float]:
        """Plain numbers by name, for TensorBoard, W&B or MLflow: medians by kind, clipping, number of faults.

        ``dagscale/update/hidden`` is the measured ``|ΔW|/|W|`` of hidden weights, ``planned_update`` the plan's,
        ``signal`` the change of their outputs, ``rate`` their rate over the plan's.
        """
        found: dict[str, float] = {"dagscale/faults": float(len(self.faults))}
        if self.kept is not None:
            found["dagscale/clipping_keeps"] = self.kept
        for kind in dict.fromkeys(row.kind for row in self.rows):
            own = [row for row in self.rows if row.kind == kind]
            key = kind.replace(" ", "_")
            for name in ("update", "planned_update", "signal", "planned_signal"):
                value = middle([getattr(row, name) for row in own])
                if value is not None:
                    found[f"dagscale/{name}/{key}"] = value
            rate = middle([row.rate / row.planned_rate for row in own if row.rate is not None and row.planned_rate])
            if rate is not None:
                found[f"dagscale/rate/{key}"] = rate
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        raw = {
            "format": FORMAT, "ok": self.ok, "verdict": self.verdict, "steps": self.steps, "observed": self.observed,
            "schedule": None if self.schedule is None else list(self.schedule), "kept": self.kept,
            "optimizer": self.optimizer, "faults": [asdict(fault) for fault in self.faults],
            "rows": [asdict(row) for row in self.rows], "notes": list(self.notes),
        }  # fmt: skip
        plain: dict[str, Any] = finite(raw)
        return plain

    def to_json(self) -> str:
        """One JSON document."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def table(self) -> Group:
        """To print with rich: a row for layers that differ in a number alone, the verdict, faults and notes."""
        load_rich()
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column("layers", overflow="fold")
        table.add_column("kind")
        held = any(row.planned_signal is not None for row in self.rows)
        signals = ("|Δz|/|z|\nbase", "\nown step") if held else ("|Δz|/|z|\nown step",)
        for name in ("rate\nplanned", "\nin groups", "|ΔW|/|W|\nplanned", "\nmeasured", *signals):
            table.add_column(name, justify="right")
        table.add_column("")
        for label, own in _folded(self.rows):
            wrong = sum(not row.ok for row in own)
            values: tuple[list[float | None], ...] = (
                [row.planned_rate for row in own], [row.rate for row in own], [row.planned_update for row in own],
                [row.update for row in own], *([[row.planned_signal for row in own]] if held else []),
                [row.signal for row in own],
            )  # fmt: skip
            mark = "" if not wrong else "fault" if len(own) == 1 else f"{wrong} at fault"
            table.add_row(
                cell(label), own[0].kind, *(_number(middle(v)) for v in values), mark, style="bold red" * bool(wrong)
            )
        lines = [
            self.verdict,
            *self._shared(),
            *(f"fault: {fault}" for fault in self.faults[1:]),
            *(f"note: {note}" for note in self.notes),
        ]
        return Group(table, *map(Text, lines))

    def _shared(self) -> list[str]:
        """What all layers have in common, in words."""
        said = []
        if self.schedule is not None:
            low, high = (f"{end:.3g}" for end in self.schedule)
            said.append(f"rates {low} × the plan's" if low == high else f"rates from {low} to {high} × the plan's")
        if self.kept is not None and self.kept < 0.995:
            said.append(f"clipping keeps {self.kept:.2g} of the gradient")
        return ["; ".join(said)] if said else []

    def __repr__(self) -> str:
        return f"WatchReport({self.verdict!r})"


def _folded(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows whose names differ in numbers alone together, those at fault apart from the others."""
    found: dict[tuple[str, str, bool], list[Row]] = {}
    for row in rows:
        found.setdefault((pattern(row.name), row.kind, row.ok), []).append(row)
    return [(own[0].name if len(own) == 1 else f"{label} ({len(own)})", own) for (label, _, _), own in found.items()]


def middle(values: Sequence[float | None]) -> float | None:
    """Of those that there are, the median."""
    found = [v for v in values if v is not None]
    return median(found) if found else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
