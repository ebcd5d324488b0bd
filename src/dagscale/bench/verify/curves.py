"""What ``dagscale verify`` shows of a contest: a row a method, as a table or Markdown, and loss against steps."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagscale.bench.verify.compute import Contest, Entry
from dagscale.pictures.files import save, write
from dagscale.shown import finite, load_rich

AFFECTS_RESULTS = False

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

FOUR = "dagscale / moments,damped,small-readout,keep"

NAMES = {
    "none / moments / mup+completep": "folded plan",
    "combined / moments": "plan, law combined",
    "short-run / moments": "measured plan",
    "dagscale": "dagscale, nothing named",
    FOUR: "dagscale, four inits searched",
    "one-rate": "base's rate, author's init",
    "mup": "package mup",
    "lr-finder": "learning-rate finder",
    "prodigy": "Prodigy",
    "schedule-free": "schedule-free",
    "random-search": "random search",
    "tpe": "TPE",
    "tpe / moments": "TPE, init moments",
    "grid / keep": "grid, author's init",
    "grid / moments": "grid, init moments",
    "grid / moments / mup+completep": "grid, folded start",
}
"""How tables call the methods that a contest has by default."""


@dataclass(frozen=True)
class Row:
    """One method within some steps. None stands for what diverged.

    Attributes:
        method, name: as it is given, and as tables call it.
        trainings: of each target.
        loss, loss_worst, cross_validated, valid, valid_worst, accuracy: see `dagscale.bench.verify.compute.Score`.
        steps_shared, steps_alone: for one target, the base's search divided by the targets, and as a whole.
    """

    method: str
    name: str
    trainings: int
    loss: float | None
    loss_worst: float | None
    cross_validated: float | None
    valid: float | None
    valid_worst: float | None
    accuracy: float | None
    steps_shared: float
    steps_alone: float


def rows(contest: Contest) -> list[Row]:
    """A row a method; of a search on the target some, within the plan's steps shared and alone, and those that
    dagscale takes by itself."""
    counts = sorted(set(contest.budgets().values()))
    return [
        row(contest, entry, count)
        for entry in contest.entries
        for count in (dict.fromkeys(min(n, entry.count) for n in counts) if searches(entry) else (entry.count,))
    ]


def searches(entry: Entry) -> bool:
    """Whether it is a search on the target, of which more trainings make more."""
    return entry.method.partition(" / ")[0] in ("random-search", "tpe")


def row(contest: Contest, entry: Entry, count: int) -> Row:
    """What the first so many trainings of each target came to."""
    score = contest.score(entry, count)
    return Row(
        entry.method, NAMES.get(entry.method, entry.method), count, finite(score.loss), finite(score.loss_worst),
        finite(score.cross_validated), finite(score.valid), finite(score.valid_worst), score.accuracy,
        entry.spent(len(contest.targets), count), entry.spent(1, count),
    )  # fmt: skip


HEAD = (
    "method", "trainings", "training loss", "worst", "cross-validated", "validation loss", "worst", "accuracy", "steps",
    "alone",
)  # fmt: skip


def cells(one: Row) -> list[str]:
    """A row as it is printed."""
    apart = "–" if one.cross_validated is None and one.loss is not None else _percent(one.cross_validated)
    return [
        one.name, str(one.trainings), _percent(one.loss), _percent(one.loss_worst), apart, _percent(one.valid),
        _percent(one.valid_worst),
        "–" if one.accuracy is None else f"{100 * one.accuracy:.1f} %", f"{one.steps_shared:,.0f}",
        f"{one.steps_alone:,.0f}",
    ]  # fmt: skip


def markdown(contest: Contest) -> str:
    """The rows as a Markdown table, figures to the right."""
    align = ["---"] + ["---:"] * (len(HEAD) - 1)
    lines = [HEAD, align, *(cells(one) for one in rows(contest))]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" %", "\u00a0%")


def table(contest: Contest) -> Table:
    """The rows to print."""
    load_rich()
    from rich import box
    from rich.table import Table

    title = f"{contest.suite}, recipe {contest.recipe}: loss for steps, {contest.steps:,} a training"
    made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for i, name in enumerate(HEAD):
        made.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for one in rows(contest):
        made.add_row(*cells(one))
    count = len(contest.targets)
    made.caption_justify = "left"
    made.caption = (
        f"{count} target{'s' * (count > 1)}, base {contest.base}. Losses: above the lowest of the grids, mean and "
        "worst target; cross-validated: above the grids' loss at the rate that is best on the other seeds; steps: "
        "for one target until it is trained, the base's search shared by all targets, or alone"
    )
    return made


FILES = ("contest.json", "curves.png")


def save_all(contest: Contest, folder: Path) -> list[Path]:
    """Write every training and the picture into ``folder``, which exists."""
    write(folder / FILES[0], (json.dumps(contest.to_dict(), allow_nan=False) + "\n").encode())
    save(lambda: figure([contest]), folder / FILES[1])
    return [folder / name for name in FILES]


def to_dict(contest: Contest) -> dict[str, Any]:
    """The rows and what they are about, as plain data."""
    return {
        "suite": contest.suite, "recipe": contest.recipe, "base": contest.base, "targets": list(contest.targets),
        "steps": contest.steps, "seeds": contest.seeds, "rows": [asdict(one) for one in rows(contest)],
        "notes": list(contest.notes),
    }  # fmt: skip


# --- the picture --------------------------------------------------------------------------------------------

COLOURS = {
    "none / moments / mup+completep": "#1c7ed6", "combined / moments": "#1c7ed6", "short-run / moments": "#0ca678",
    "dagscale": "#1098ad", FOUR: "#0b7285", "one-rate": "#868e96", "mup": "#ae3ec9",
    "lr-finder": "#e8590c", "prodigy": "#e64980",
    "schedule-free": "#f59f00", "random-search": "#495057", "tpe": "#000000", "tpe / moments": "#f03e3e",
    "grid / keep": "#adb5bd", "grid / moments": "#74c0fc", "grid / moments / mup+completep": "#74c0fc",
}  # fmt: skip


def figure(contests: list[Contest]) -> Figure:
    """Loss above the lowest of the grids against steps for one target, a row a contest.

    Searches on the target are curves, the best training so far; other methods are points: with the base's search
    shared by all targets (hollow), and alone (full).
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 0.6 + 3.4 * len(contests)), layout="constrained")
    panels = drawn.subplots(len(contests), 2, squeeze=False)
    for contest, pair in zip(contests, panels, strict=True):
        for axes, metric, name in zip(pair, ("loss", "valid"), ("training", "validation"), strict=True):
            _panel(axes, contest, metric)
            axes.set_title(f"{contest.suite}: {name} loss", fontsize="medium")
        pair[0].set_ylabel("above the lowest of the grids")
    for axes in panels[-1]:
        axes.set_xlabel("optimiser steps for one target")
    named = {
        label: handle for axes in panels[:, 0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    drawn.legend(named.values(), named.keys(), loc="outside right upper", fontsize="x-small")
    return drawn


def _panel(axes: Axes, contest: Contest, metric: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    def percent(entry: Entry, count: int) -> float:
        value: float = getattr(contest.score(entry, count), metric)
        return 100 * value

    for entry in contest.entries:
        label, colour = NAMES.get(entry.method, entry.method), COLOURS.get(entry.method)
        if searches(entry):
            counts = range(1, entry.count + 1)
            steps = [entry.spent(1, count) for count in counts]
            style = "--" if entry.method.startswith("random-search") else "-"
            values = [percent(entry, count) for count in counts]
            axes.step(steps, values, style, where="post", color=colour, label=label)
            continue
        value = percent(entry, entry.count)
        if not math.isfinite(value):
            continue
        ends = entry.spent(len(contest.targets)), entry.spent()
        marker = "s" if entry.method.startswith("grid") else "o"
        axes.plot(ends, [value, value], color=colour, lw=0.8)
        axes.plot(ends[0], value, marker, color=colour, mfc="white")
        axes.plot(ends[1], value, marker, color=colour, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("symlog", linthresh=1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.axhline(0, color="grey", lw=0.6)
    axes.grid(alpha=0.3)


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{100 * value:.1f} %".replace("-", "−")
