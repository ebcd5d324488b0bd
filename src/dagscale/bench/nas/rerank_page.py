"""The pictures and the page of a re-ranking report."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dagscale import replacing
from dagscale.bench.nas.agreement import PAIRS, SMALLEST, Curve, Estimate, top
from dagscale.bench.nas.recipes import RECIPES
from dagscale.bench.nas.rerank import Report
from dagscale.bench.nas.tables import Column
from dagscale.errors import DagscaleError
from dagscale.shown import cell, for_picture, load_rich, plain

AFFECTS_RESULTS = False

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

SHOWN_KS = (100, 50, 25, 10, 5, 2, 1)
INK, FLOORS, PALE = "#1f4e79", ("#c55a11", "#7f7f7f"), "#9dc3e6"
MANY = 2000
"""From so many points on, a scatter plot shows densities."""


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Write ``rerank.json``, ``rerank.html`` (pictures inside) and three PNGs; what was written, by name.

    Raises:
        DagscaleError: if matplotlib is missing or the folder cannot be written.
    """
    pictures = figures(report)
    images = {name: png(figure) for name, figure in pictures.items()}
    contents: dict[str, tuple[str, bytes | str]] = {name: (f"{name}.png", image) for name, image in images.items()}
    contents["json"] = ("rerank.json", json_text(report.to_dict()))
    contents["html"] = ("rerank.html", page(report, images))
    return write_files(folder, contents)


def json_text(document: dict[str, Any]) -> str:
    """As it stands in a file."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_files(folder: Path, contents: dict[str, tuple[str, bytes | str]]) -> dict[str, Path]:
    """Write name → (file name, content) into a folder, made if need be; name → path.

    Raises:
        DagscaleError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.values():
            replacing.write(folder / file, content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise DagscaleError(f"cannot write to {folder}: {error.strerror or error}; choose another --out") from error
    return {name: folder / file for name, (file, _) in contents.items()}


# --- figures --------------------------------------------------------------------------------------


def figures(report: Report) -> dict[str, Figure]:
    """``accuracy``, ``kendall`` and ``pairs``: after Figures 4, 9 and 8 of Chen et al. 2024.

    Raises:
        DagscaleError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DagscaleError("figures need matplotlib: pip install dagscale[plot]") from error

    def figure(width: float) -> Figure:
        return Figure(figsize=(width, 4.2), dpi=120, layout="constrained")

    accuracy, kendall, pairs = figure(9.6), figure(7.2), figure(9.6)
    left, right = accuracy.subplots(1, 2)
    _scatter(left, report, 100, "all architectures")
    _scatter(right, report, 10, "top 10 % by the benchmark")
    _kendall(kendall.subplots(), report)
    left, right = pairs.subplots(1, 2, sharey=True)
    _flips(left, report, 100, "all pairs")
    _flips(right, report, 10, "pairs within the top 10 %")
    return {"accuracy": accuracy, "kendall": kendall, "pairs": pairs}


def _scatter(axes: Axes, report: Report, percent: int, title: str) -> None:
    from matplotlib.colors import LogNorm

    best = top(report.benchmark.values, percent)
    x, y = report.benchmark.values[best], report.against.values[best]
    axes.set_title(f"{title} (n = {len(x):,}{': too few' if len(x) < SMALLEST else ''})", fontsize=10)
    if len(x) < SMALLEST:
        return
    if len(x) > MANY:
        axes.hexbin(x, y, gridsize=60, norm=LogNorm(vmin=0.2), cmap="Blues", mincnt=1, linewidths=0)
    else:
        axes.plot(x, y, ".", color=INK, markersize=4 if len(x) > 200 else 9, alpha=0.6, markeredgewidth=0)
    shift = float(np.mean(y - x))
    start = (float(x.min()), float(x.min()))
    axes.axline((start[0], start[1] + shift), slope=1, color=FLOORS[0], linewidth=1, linestyle="--",
                label=f"mean change {shift:+.2f}")  # fmt: skip
    margin = 0.03 * float(np.ptp(x)) + 0.03
    axes.set_xlim(float(x.min()) - margin, float(x.max()) + margin)
    low, high = (float(v) for v in np.percentile(y, [0.5 if percent < 100 else 0, 100]))
    axes.set_ylim(low - margin, high + margin)
    if low < x.max() and high > x.min():  # else the diagonal is out of sight
        axes.axline(start, slope=1, color="black", linewidth=0.8, label="no change")
    axes.set_xlabel(f"{_column(report.benchmark)}, %", fontsize=9)
    axes.set_ylabel(f"{_column(report.against)}, %", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _column(column: Column) -> str:
    return for_picture(f"{Path(column.source).name}: {column.label}")


def _kendall(axes: Axes, report: Report) -> None:
    _line(axes, report.tau, INK, "-", f"{_column(report.benchmark)} / {_column(report.against)}")
    for curve, colour in zip(report.floors, FLOORS, strict=False):
        _line(axes, curve, colour, "--", f"noise floor: {for_picture(curve.label)} (n = {curve.n:,})")
    axes.set_xscale("log")
    axes.set_xlim(105, 0.95)
    axes.set_xticks(SHOWN_KS, [f"{k} %" for k in SHOWN_KS])
    axes.minorticks_off()
    axes.set_xlabel("top K % of the benchmark")
    axes.set_ylabel("Kendall τ")
    axes.grid(alpha=0.25)
    axes.set_title(f"agreement of the rankings (n = {report.tau.n:,}; bands: 95 %)", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="best")


def _line(axes: Axes, curve: Curve, colour: str, style: str, label: str) -> None:
    ks = list(curve.taus)
    axes.plot(ks, [curve.taus[k].value for k in ks], style, color=colour, label=label, linewidth=1.6)
    banded = [k for k in ks if curve.taus[k].low is not None]
    low, high = ([getattr(curve.taus[k], side) for k in banded] for side in ("low", "high"))
    axes.fill_between(banded, low, high, color=colour, alpha=0.15, linewidth=0)


def _flips(axes: Axes, report: Report, percent: int, title: str) -> None:
    classes = [g for g in report.gaps if g.top == percent and g.pairs]
    if not classes:
        axes.set_title(f"{title}: too few", fontsize=10)
        return
    places = range(len(classes))
    axes.bar(places, [100 * (g.flipped or 0) for g in classes], color=PALE, label="benchmark against new")
    noisy = [(i, 100 * g.noise) for i, g in zip(places, classes, strict=True) if g.noise is not None]
    if noisy:
        axes.plot(*zip(*noisy, strict=True), "_", color=FLOORS[0], markersize=22, markeredgewidth=2,
                  label="between two seeds")  # fmt: skip
    axes.axhline(50, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks(list(places), [f"{g.low:g}–{g.high:g}" if g.high < 100 else f"> {g.low:g}" for g in classes])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("distance of the pair in the benchmark, points")
    axes.set_ylabel("pairs that change order, %")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


# --- tables, for the terminal and the page --------------------------------------------------------

Rows = tuple[str, Sequence[str], list[Sequence[str]]]


def rows(report: Report) -> list[Rows]:
    """The tables as (title, column names, rows of text)."""
    floors = list(report.floors)
    ks = [k for k in SHOWN_KS if k in report.tau.taus]
    agreement: Rows = (
        "Kendall τ over the top K %, with 95 % intervals",
        ("K", "n", "τ", *(f"noise floor {i + 1}" for i in range(len(floors))), "floor 1 − τ"),
        [
            (
                f"{k} %",
                f"{report.tau.taus[k].n:,}",
                interval(report.tau.taus[k]),
                *(interval(f.taus.get(k)) for f in floors),
                interval(report.excess.get(k), "+.3f"),
            )
            for k in ks
        ],
    )
    gains: Rows = (
        "Mean change of accuracy in points, with 95 % intervals",
        ("architectures", "chosen by", "n", "change", "between two seeds"),
        [
            (
                "all" if g.top == 100 else f"top {g.top} %",
                "–" if g.top == 100 else g.chosen_by,
                f"{g.gain.n:,}",
                interval(g.gain, "+.3f"),
                _told(g.noise, "+.3f"),
            )
            for g in report.gains
        ],
    )
    gaps: Rows = (
        "Pairs that change order",
        ("among", "distance in the benchmark", "pairs", "change order", "between two seeds"),
        [
            (
                "all" if g.top == 100 else f"top {g.top} %",
                f"{g.low:g}–{g.high:g}" if g.high < 100 else f"> {g.low:g}",
                f"{g.pairs:,}",
                _percent(g.flipped),
                _percent(g.noise),
            )
            for g in report.gaps
            if g.pairs
        ],
    )
    picks: Rows = (
        "Picks of search methods",
        ("method", "architecture", "benchmark", "rank", "against", "rank", "change"),
        [
            (
                p.method,
                p.arch,
                *(text for v, r in zip(p.values, p.ranks, strict=True) for text in (_told(v, ".2f"), _told(r, ","))),
                "–" if p.ranks[0] is None or p.ranks[1] is None else f"{p.ranks[0] - p.ranks[1]:+,}",
            )
            for p in report.picks
        ],
    )
    return [agreement, gains, gaps, picks]


def legend(report: Report) -> list[str]:
    """What the tables' readers must know, one sentence or two each."""
    lines = [
        f"Benchmark: {report.benchmark.label}, {report.benchmark.source}. "
        f"Against: {report.against.label}, {report.against.source}. "
        f"{len(report.benchmark.archs):,} architectures: "
        + ", ".join(f"{n:,} {kind}" for kind, n in sorted(report.kinds.items(), key=lambda kn: -kn[1]))
        + "."
    ]
    if math.comb(len(report.benchmark.archs), 2) > PAIRS:
        lines.append(f"Pairs that change order: of a random sample of {PAIRS:,} pairs where there are more.")
    lines += [f"Noise floor {i}: {curve.label}, n = {curve.n:,}." for i, curve in enumerate(report.floors, 1)]
    if report.noise_std:
        stds = ", ".join(f"{value:.3f} points from {name}" for name, value in report.noise_std.items())
        lines.append(f"Standard deviation of one value under repetition: {stds}.")
    below = [k for k, e in report.excess.items() if e.low is not None and e.low > 0]
    if report.excess:
        shown = (
            f"τ lies below noise floor 1 for K = {', '.join(map(str, below))}" if below else "τ lies nowhere below it"
        )
        lines.append(
            f"Beyond the noise floor of the seeds (95 % interval above 0), {shown}; K looked at: "
            f"{', '.join(map(str, report.excess))}."
        )
    if report.picks:
        pairs = "; ".join(f"{a} and {b}" for a, b in report.swapped) or "none"
        lines.append(f"Picks that change places: {pairs}.")
    return [*lines, *(f"{note}." for note in report.notes)]


def printable(body: Iterable[Rows]) -> list[Table]:
    """Tables for the terminal."""
    load_rich()
    from rich.table import Table

    made = []
    for title, names, lines in body:
        table = Table(title=cell(title), title_justify="left")
        for i, name in enumerate(names):
            table.add_column(cell(name), justify="left" if i == 0 else "right")
        for line in lines:
            table.add_row(*map(cell, line))
        made.append(table)
    return made


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem } img { max-width: 100% }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } caption { text-align: left; font-weight: 600 }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
"""


def page(report: Report, images: dict[str, bytes]) -> str:
    """The report as one HTML document that needs no other file."""
    recipe = RECIPES["benchmark"]
    title = f"Re-ranking of NAS-Bench-201: {report.benchmark.dataset}"
    trained = f"The published benchmark trains every network alike: {recipe.trained()}, rate {recipe.lr}."
    lines = (f"<p>{html.escape(plain(line))}</p>" for line in (*legend(report), trained))
    return document(title, [*lines, *sections(report, images)])


def sections(report: Report, images: dict[str, bytes], name: str = "") -> list[str]:
    """Pictures and tables of a report as HTML; ``name`` stands before the pictures' names."""
    agreement, gains, gaps, picks = map(html_table, rows(report))
    return [
        "<h2>Agreement of the rankings</h2>", image(images, f"{name}kendall"), agreement,
        "<p>The top K % is chosen by the first of the two columns, in the noise floors too. The interval is a "
        "bootstrap over architectures, the choice included; for isomorphic architectures it is that over draws.</p>",
        "<h2>Accuracy</h2>", image(images, f"{name}accuracy"), gains,
        "<p>Choosing by a noisy value keeps the lucky ones: chosen by the benchmark a change looks too small, chosen "
        "by the new values too large. The last column is that effect alone.</p>",
        "<h2>Pairs</h2>", image(images, f"{name}pairs"), gaps,
        "<h2>Picks</h2>", picks,
    ]  # fmt: skip


def document(title: str, parts: Iterable[str]) -> str:
    """One HTML document that needs no other file."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(plain(title))}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(plain(title))}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def image(images: dict[str, bytes], name: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(images[name]).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{data}">'


def html_table(table: Rows) -> str:
    """A table of the page."""
    title, names, body = table

    def line(tag: str, cells: Iterable[str]) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(plain(c))}</{tag}>' for c in cells)}</tr>"

    lines = [line("th", names), *(line("td", row) for row in body)]
    return f"<table><caption>{html.escape(plain(title))}</caption>{''.join(lines)}</table>"


def interval(e: Estimate | None, form: str = ".3f") -> str:
    if e is None:
        return "–"
    return f"{e.value:{form}}" + ("" if e.low is None else f" ({e.low:{form}}…{e.high:{form}})")


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"
