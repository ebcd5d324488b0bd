"""What ``dagscale verify`` shows of a study: a row a method, a table, two pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dagscale.bench.verify.study import Study
from dagscale.bench.verify.verdict import Verdict
from dagscale.pictures.files import save, write
from dagscale.shown import finite, load_rich

AFFECTS_RESULTS = False

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Numbers = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
"""Bootstrap resamples of the architectures."""


@dataclass(frozen=True)
class Row:
    """How one method did over a suite's architectures. Intervals are 95 % bootstrap intervals over architectures.

    None stands for what there is no number for: a correlation with a constant, rates of a method that has none, a
    regret where some prediction diverged.

    Attributes:
        pearson_r, slope: of log predicted on log found, against the middle of the band.
        pearson_r_edge, pearson_r_argmin: against the band's upper edge, and the paper's argmin.
        rms_octaves: distance of predicted from found.
        within_half_octave: share of architectures.
        regret_mean, regret_max: relative excess of the loss over the best of the grid under the method's own init.
        regret_cv_mean: the same with the best chosen and read on different seeds, so that it is not biased low.
        excess_mean: relative excess of the loss over the best of the grids under any init.
        diverged: architectures on which training at the predicted rate diverges.
        steps: optimiser steps that the method needs, the base's search included; measured laws' passes count as
            steps of three passes.
    """

    suite: str
    method: str
    pearson_r: float | None
    pearson_r_interval: Interval | None
    pearson_r_edge: float | None
    pearson_r_argmin: float | None
    slope: float | None
    slope_interval: Interval | None
    rms_octaves: float | None
    rms_octaves_interval: Interval | None
    within_half_octave: float | None
    regret_mean: float | None
    regret_mean_interval: Interval | None
    regret_max: float | None
    regret_cv_mean: float | None
    excess_mean: float | None
    diverged: int
    steps: int


def rows(study: Study) -> list[Row]:
    """A row a method, in the study's order."""
    return [row(study.suite, verdict) for verdict in study.verdicts]


@cache
def row(suite: str, verdict: Verdict) -> Row:
    """The statistics of one method, kept for the table, the files and the pictures: the resamples take their time."""
    regrets = np.array(verdict.regrets)
    finite = bool(np.isfinite(regrets).all())
    rated: dict[str, Any] = dict.fromkeys(_RATED)
    if verdict.rates is not None:
        predicted, found, edges, argmins = (
            np.log2(values) for values in (verdict.rates, verdict.found, verdict.edges, verdict.argmins)
        )
        rated = {
            "pearson_r": correlation(predicted, found),
            "pearson_r_interval": _interval(correlation, predicted, found),
            "pearson_r_edge": correlation(predicted, edges),
            "pearson_r_argmin": correlation(predicted, argmins),
            "slope": slope(predicted, found),
            "slope_interval": _interval(slope, predicted, found),
            "rms_octaves": rms(predicted, found),
            "rms_octaves_interval": _interval(rms, predicted, found),
            "within_half_octave": float(np.mean(np.abs(predicted - found) <= 0.5)),
        }
    return Row(
        suite=suite,
        method=verdict.method,
        **rated,
        regret_mean=_mean(verdict.regrets),
        regret_mean_interval=_interval(lambda r: float(r.mean()), regrets) if finite else None,
        regret_max=float(regrets.max()) if finite else None,
        regret_cv_mean=_mean(verdict.regrets_cv),
        excess_mean=_mean(verdict.excesses),
        diverged=int((~np.isfinite(regrets)).sum()),
        steps=verdict.steps,
    )


_RATED = (
    "pearson_r", "pearson_r_interval", "pearson_r_edge", "pearson_r_argmin", "slope", "slope_interval",
    "rms_octaves", "rms_octaves_interval", "within_half_octave",
)  # fmt: skip


def correlation(a: Numbers, b: Numbers) -> float | None:
    """Pearson r, None if either does not vary."""
    return float(np.corrcoef(a, b)[0, 1]) if _varies(a) and _varies(b) else None


def slope(predicted: Numbers, found: Numbers) -> float | None:
    """Least-squares slope of predicted on found, None if either does not vary."""
    return float(np.polyfit(found, predicted, 1)[0]) if _varies(predicted) and _varies(found) else None


def rms(predicted: Numbers, found: Numbers) -> float:
    """Root mean square of the differences between two lists of equal length."""
    return float(np.sqrt(np.mean((predicted - found) ** 2)))


def _varies(values: Numbers) -> bool:
    return bool(np.ptp(values) > 1e-9)


def _mean(values: tuple[float, ...]) -> float | None:
    mean: float | None = finite(float(np.mean(values)))
    return mean


def _interval(statistic: Callable[..., float | None], *columns: Numbers) -> Interval | None:
    """Percentile bootstrap over architectures; None if most resamples have no value."""
    picks = np.random.default_rng(0).integers(len(columns[0]), size=(RESAMPLES, len(columns[0])))
    values = [v for chosen in picks if (v := statistic(*(column[chosen] for column in columns))) is not None]
    if len(values) <= RESAMPLES / 2:
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


# --- faces --------------------------------------------------------------------------------------------------


def to_dict(study: Study) -> list[dict[str, Any]]:
    """The rows as plain data."""
    return [asdict(one) for one in rows(study)]


def table(study: Study) -> Table:
    """The rows to print."""
    load_rich()
    from rich import box
    from rich.table import Table

    found = rows(study)
    title = f"{study.suite}, {study.optimizer}: predicted against found"
    made = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    made.add_column("method", no_wrap=True)
    for name in ("r", "95 %", "slope", "octaves", "≤ ½", "regret", "cv", "max", "excess", "steps"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in found:
        interval = "" if one.pearson_r_interval is None else "{:.2f} … {:.2f}".format(*one.pearson_r_interval)
        made.add_row(
            one.method, _number(one.pearson_r), interval, _number(one.slope), _number(one.rms_octaves),
            "–" if one.within_half_octave is None else f"{one.within_half_octave:.0%}",
            *(_percent(v) for v in (one.regret_mean, one.regret_cv_mean, one.regret_max, one.excess_mean)),
            f"{one.steps:,}",
        )  # fmt: skip
    made.caption_justify = "left"
    made.caption = (
        f"{len(study.architectures)} architectures. regret: excess loss over the best of the grid under the same init "
        "(cv: chosen and read on different seeds); excess: over the best under any init; grid: a whole search on each "
        "architecture by one half of the seeds, judged by the other: its r and octaves are the noise floor; middle: "
        "the rate that the laws are held against, found with all seeds"
    )
    return made


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "∞" if value is None else f"{value:.1%}"


FILES = ("results.json", "points.json", "scatter.png", "regret.png")


def save_all(study: Study, folder: Path) -> list[Path]:
    """Write the rows, the single predictions and both pictures into ``folder``, which exists."""
    for name, document in ((FILES[0], to_dict(study)), (FILES[1], points(study))):
        write(folder / name, json.dumps(document, indent=2, allow_nan=False).encode())
    save(lambda: scatter(study, rows(study)), folder / FILES[2])
    save(lambda: regret_figure(study), folder / FILES[3])
    return [folder / name for name in FILES]


def points(study: Study) -> list[dict[str, Any]]:
    """Every single prediction with what it came to, as plain data; a diverged one's regret and excess are None."""
    return [
        {
            "suite": study.suite, "method": v.method, "architecture": a, "predicted": v.rates and v.rates[i],
            "found": v.found[i], "band": list(v.bands[i]), "argmin": v.argmins[i], "regret": _mean((v.regrets[i],)),
            "excess": _mean((v.excesses[i],)),
        }
        for v in study.verdicts for i, a in enumerate(study.architectures)
    ]  # fmt: skip


def scatter(study: Study, found: list[Row]) -> Figure:
    """Predicted against found rate, a panel a method; bars are the bands, crosses diverged."""
    from matplotlib.figure import Figure

    shown = [(v, one) for v, one in zip(study.verdicts, found, strict=True) if v.rates is not None]
    columns = min(5, len(shown))
    lines = math.ceil(len(shown) / columns)
    drawn = Figure(figsize=(2.6 * columns, 2.6 * lines + 0.4), layout="constrained")
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    ends = [end for v, _ in shown for band in v.bands for end in band]
    ends += [rate for v, _ in shown for rate in v.rates or ()]
    low, high = min(ends) / 1.5, max(ends) * 1.5
    for panel, (v, one) in zip(panels.flat, shown, strict=False):
        panel.plot((low, high), (low, high), "k--", lw=0.7)
        for rate, middle, band, regret in zip(v.rates or (), v.found, v.bands, v.regrets, strict=True):
            panel.plot(band, (rate, rate), "-", color="tab:blue", alpha=0.25)
            marker, color = ("o", "tab:blue") if math.isfinite(regret) else ("x", "tab:red")
            panel.plot(middle, rate, marker, color=color, ms=4, alpha=0.8)
        panel.set_title(f"{v.method}\nr {_number(one.pearson_r)}, {_number(one.rms_octaves)} octaves", fontsize=8)
        panel.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        panel.tick_params(labelsize=7)
    for panel in list(panels.flat)[len(shown) :]:
        panel.set_visible(False)
    for panel in list(panels.flat)[max(0, len(shown) - columns) : len(shown)]:
        panel.tick_params(labelbottom=True)
    drawn.supxlabel("rate found by training (line: its 5 % band)", fontsize=9)
    drawn.supylabel("rate predicted", fontsize=9)
    drawn.suptitle(f"{study.suite}, {study.optimizer}, {len(study.architectures)} architectures", fontsize=10)
    return drawn


def regret_figure(study: Study) -> Figure:
    """Regret of each prediction, a line a method, with the median; crosses at the right end diverged."""
    from matplotlib.figure import Figure

    order = study.verdicts[::-1]
    drawn = Figure(figsize=(7.5, 0.3 * len(order) + 1.4), layout="constrained")
    axes = drawn.add_subplot()
    finite = [r for v in order for r in v.regrets if math.isfinite(r)]
    right = 2 * max([*finite, 0.1])
    jitter = np.linspace(-0.22, 0.22, len(study.architectures))
    for line, v in enumerate(order):
        for off, regret in zip(jitter, v.regrets, strict=True):
            lost = not math.isfinite(regret)
            style = ("x", "tab:red") if lost else ("o", "tab:blue")
            axes.plot(right if lost else regret, line + off, style[0], color=style[1], ms=4, alpha=0.6)
        middle = float(np.median(v.regrets))
        axes.plot(min(middle, right), line, "|", color="k", ms=14)
    axes.set_yticks(range(len(order)), [v.method for v in order], fontsize=8)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set(xlabel="loss above the best of the grid, relative (bar: median; ×: diverged)", xlim=(-0.002, right * 1.3))
    axes.set_title(f"{study.suite}, {study.optimizer}, {len(study.architectures)} architectures", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    return drawn
