"""The verdict as a value that prints, draws and writes itself."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.checking.verdict import CLASSES, LEVEL, Fault, Fit, Level
from dagscale.errors import PlanError
from dagscale.judged import Judged
from dagscale.pictures.files import save
from dagscale.planning.files import Saved, read_document
from dagscale.shown import Tabled, cell, finite, for_picture, load_rich, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

FORMAT = 1
"""Of the JSON document; a document of a later format is refused."""

CLASS_NAMES = (*CLASSES, "inner")
NAMES = {"moment": "second moment / wanted", "change": "Δz rms", "own": "own Δz rms"}


@dataclass(frozen=True, repr=False)
class Report(Saved, Tabled, Judged[Fault]):
    """What `check` found.

    Args:
        axis: what the family grows in: width, depth, layers or parameters.
        labels, sizes, lrs: names, sizes and learning rates of the members, the smallest first.
        levels: the second moment of the output of every layer of every member.
        fits: exponents with which moments and updates grow with the size, by class of layers; in families of growing
            width by layer too.
        faults: what is wrong, the first cause first; empty if the family passes.
        sharpness: for each member the learning rate times the largest eigenvalue λ of the Gauss–Newton matrix at
            initialisation; None for optimisers without a stable value of it.
        notes: what a reader should know.
    """

    WIDTH = 130

    axis: str
    labels: tuple[str, ...]
    sizes: tuple[float, ...]
    lrs: tuple[float, ...]
    levels: tuple[Level, ...]
    fits: tuple[Fit, ...]
    faults: tuple[Fault, ...]
    sharpness: tuple[float | None, ...]
    optimizer: str
    init: str
    law: str
    steps: int
    seeds: int
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Report({'pass' if self.ok else 'fail'}, {len(self.labels)} members, {len(self.faults)} faults)"

    def table(self) -> Table:
        """To print with rich: a row a class of layers and quantity, and a row a layer at fault."""
        load_rich()
        from rich.table import Table

        how = f"init {self.init} · law {self.law} · {self.optimizer}"
        title = f"{self.axis} · {how} · {self.steps} steps · {self.seeds} seeds"
        table = Table(title=cell(title), caption=cell(self.verdict), caption_justify="left")
        table.add_column("layers", overflow="fold")
        table.add_column("quantity")
        for label, size in zip(self.labels, self.sizes, strict=True):
            table.add_column(cell(f"{label}\n{self.axis} {size:.4g}"), justify="right", overflow="fold")
        table.add_column("slope", justify="right")
        table.add_column("interval", justify="right")
        table.add_column("allowed", justify="right")
        table.add_column("")
        classes = [f for f in self.fits if f.name in CLASS_NAMES]
        for fit in [*classes, *(f for f in self.fits if f not in classes and f.off)]:
            low = "" if fit.growing else f"−{fit.tolerance:.2f} … "
            mark = {1: "grows", -1: "shrinks", 0: "open" if fit.open else "ok" if fit.judged else ""}[fit.off]
            table.add_row(
                cell(fit.name), NAMES[fit.quantity], *(f"{v:.3g}" for v in fit.values), f"{fit.slope:+.2f}",
                f"{fit.low:+.2f} … {fit.high:+.2f}", f"{low}{fit.tolerance:.2f}", mark,
                style="bold red" if fit.off else "",
            )  # fmt: skip
        rates = [f"{lr:.3g}" for lr in self.lrs]
        table.add_row("all", "learning rate", *rates, "", "", "", "")
        if any(s is not None for s in self.sharpness):
            table.add_row("all", "lr·λ", *("" if s is None else f"{s:.3g}" for s in self.sharpness), "", "", "", "")
        return table

    @property
    def verdict(self) -> str:
        """The verdict in one line: pass or fail, with the first fault."""
        if not self.faults:
            undecided = sum(f.open for f in self.fits)
            remark = f"; {undecided} of {len(self.fits)} intervals reach over their tolerance, more seeds narrow them"
            return f"pass: second moments and updates hold over {self.axis}" + (remark if undecided else "")
        return self.failed()

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        levels = [asdict(level) | {"member": self.labels[level.member], "off": level.off} for level in self.levels]
        document: dict[str, Any] = finite(
            {
                "ok": self.ok,
                "verdict": self.verdict,
                "axis": self.axis,
                "members": [
                    {"label": label, "size": size, "lr": lr, "sharpness": sharp}
                    for label, size, lr, sharp in zip(self.labels, self.sizes, self.lrs, self.sharpness, strict=True)
                ],
                "faults": [asdict(fault) for fault in self.faults],
                "fits": [asdict(fit) | {"off": fit.off, "open": fit.open} for fit in self.fits],
                "levels": levels,
                "optimizer": self.optimizer,
                "init": self.init,
                "law": self.law,
                "steps": self.steps,
                "seeds": self.seeds,
                "notes": list(self.notes),
            }
        )
        return document

    def to_json(self) -> str:
        """One JSON document; :meth:`from_json` reads it back to an equal report."""
        return json.dumps({"format": FORMAT, "report": _written(asdict(self))})

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            PlanError: if the text is no such document, or a later version of dagscale wrote it.
        """
        mend = "write one with Report.save, of what dagscale.check returns"
        raw = read_document(text, "report", FORMAT, mend)
        try:
            own = _read(raw["report"])
            parts = {"levels": Level, "fits": Fit, "faults": Fault}
            made: dict[str, Any] = {name: tuple(kind(**one) for one in own.pop(name)) for name, kind in parts.items()}
            return cls(**own, **made)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"this is no report ({error}); {mend}") from None

    def __str__(self) -> str:
        lines = [f"fault: {fault}" for fault in self.faults[1:]] + [f"note: {note}" for note in self.notes]
        return "\n".join([super().__str__(), *map(plain, lines)])

    def plot(self, path: str | Path) -> None:
        """Draw moments and updates against size into a ``.png``, ``.svg`` or ``.pdf`` file.

        Raises: DagscaleError if matplotlib is missing, the suffix is another, or the file cannot be written.
        """
        save(self._figure, path)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.axhspan(2**-LEVEL, 2**LEVEL, alpha=0.12, label="tolerance")
        left.axhline(1, linestyle="--", color="black", linewidth=0.8)
        for axes, quantity in ((left, "moment"), (right, "change")):
            for fit in self.fits:
                if fit.quantity == quantity and (fit.name in CLASS_NAMES or fit.off):
                    mark = " ✗" if fit.off else ""
                    axes.plot(self.sizes, fit.values, marker="o", label=f"{fit.name}, slope {fit.slope:+.2f}{mark}")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.set(xlabel=self.axis, ylabel=NAMES[quantity])
            axes.legend(fontsize="small")
        figure.suptitle("pass" if self.ok else for_picture(f"fail: {self.faults[0]}"[:110]), fontsize="medium")
        return figure


def _written(value: Any) -> Any:
    """The value as JSON can hold it: infinity and NaN, which JSON lacks, are written as their names."""
    if isinstance(value, dict):
        return {k: _written(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(v) for v in value]
    return {"number": repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _read(value: Any) -> Any:
    """The value that :func:`_written` wrote; lists are read as tuples."""
    if isinstance(value, list):
        return tuple(map(_read, value))
    if isinstance(value, dict):
        return float(value["number"]) if value.keys() == {"number"} else {k: _read(v) for k, v in value.items()}
    return value
