"""Tables, files and the page of a retraining."""

from __future__ import annotations

import csv
import html
import io
from collections import Counter
from pathlib import Path

import numpy as np

from dagscale.bench.nas.comparison import CLASSES, Comparison
from dagscale.bench.nas.rerank_page import (
    SHOWN_KS,
    Rows,
    document,
    figures,
    html_table,
    interval,
    json_text,
    png,
    sections,
    write_files,
)
from dagscale.bench.nas.results import Retraining
from dagscale.bench.nas.settings_page import component_rows, gain_text, power_line
from dagscale.bench.nas.tables import MEAN
from dagscale.shown import for_spreadsheet, plain

AFFECTS_RESULTS = False


def write(trained: Retraining, compared: Comparison, folder: Path) -> dict[str, Path]:
    """Write ``retrain.json``, ``retrain.html``, three pictures a recipe, and each recipe's accuracies as a table that
    ``dagscale rerank`` reads; what was written, by name.

    Raises:
        DagscaleError: if matplotlib is missing or the folder cannot be written.
    """
    images = {
        f"{recipe}-{name}": png(figure)
        for recipe, report in compared.reports.items()
        for name, figure in figures(report).items()
    }
    contents: dict[str, tuple[str, bytes | str]] = {name: (f"{name}.png", image) for name, image in images.items()}
    contents |= {recipe: (f"{recipe}.csv", accuracies(trained, recipe)) for recipe in trained.accuracies}
    contents["json"] = ("retrain.json", json_text(trained.to_dict() | compared.to_dict()))
    contents["html"] = ("retrain.html", page(trained, compared, images))
    return write_files(folder, contents)


def accuracies(trained: Retraining, recipe: str) -> str:
    """One recipe's accuracies in the layout of a benchmark's table."""
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    lines.writerow(("code", "dataset", "seed", "test_acc"))
    for arch, values in zip(trained.archs, trained.accuracies[recipe], strict=True):
        named = [(MEAN, values.mean()), *zip(trained.seeds, values, strict=True)]
        lines.writerows((arch.code, for_spreadsheet(trained.data), seed, f"{value:.4f}") for seed, value in named)
    return stream.getvalue()


# --- tables, for the terminal and the page ------------------------------------------------------------------


def rows(trained: Retraining, compared: Comparison) -> list[Rows]:
    """The tables as (title, column names, rows of text)."""
    recipes: Rows = (
        "Recipes",
        ("recipe", "base's rate", "decay", "rates", "mean accuracy", "std between seeds", "training loss", "diverged"),
        [
            (
                name,
                "–" if name not in trained.bases else _base(trained, name),
                f"{(trained.bases.get(name) or trained.recipes[name]).weight_decay:.3g}",
                _spread(trained.rates[name]),
                f"{values.mean():.2f}",
                f"{np.sqrt(values.var(axis=1, ddof=1).mean()):.2f}",
                _loss(float(np.mean(trained.losses[name]))),
                str(trained.diverged[name]),
            )
            for name, values in trained.accuracies.items()
        ],
    )
    gains: Rows = (
        f"Mean gain in points, with 95 % intervals; top by: {compared.chosen_by}",
        ("recipe", "over", "all", "top 10 %", "top 1 %", "over's seed against seed"),
        [(p.second, p.first, *map(gain_text, p.gains), f"{p.gains[0].noise:+.2f}") for p in compared.pairs],
    )
    kendall: Rows = (
        "Kendall τ over the top K % by the first, with 95 % intervals",
        ("recipes", "K", "n", "means", "single seeds", "floor: between seeds", "floor − τ"),
        [
            (
                f"{p.first}, {p.second}" if k == 100 else "",
                f"{k} %",
                str(p.means[k].n),
                interval(p.means.get(k), ".2f"),
                interval(p.between.get(k), ".2f"),
                interval(p.within.get(k), ".2f"),
                interval(p.excess.get(k), "+.2f"),
            )
            for p in compared.pairs
            for k in SHOWN_KS
            if k in p.means
        ],
    )
    published: Rows = (
        "Kendall τ of the mean accuracies against the published ones, over the top K % of these",
        ("recipe", *(f"{k} %" for k in SHOWN_KS)),
        [(name, *(interval(own.get(k), ".2f") for k in SHOWN_KS)) for name, own in compared.published.items()],
    )
    picks: Rows = (
        "Published picks of search methods in the sample: rank under each recipe",
        ("method", "architecture", *compared.reports, compared.reference),
        [
            (pick.method, pick.arch, *(str(r.picks[i].ranks[1]) for r in compared.reports.values()), str(pick.ranks[0]))
            for i, pick in enumerate(next(iter(compared.reports.values())).picks if compared.reports else ())
            if pick.ranks[0] is not None
        ],
    )
    left: Rows = (
        "Left out",
        ("architecture", "kind", "why"),
        [(one.arch, one.kind, one.reason) for one in trained.left_out],
    )
    classes: Rows = (
        "Mean gain in points by class of rank in the published table, the best class first, with 95 % intervals",
        ("recipe", "over", *(f"class {k}" for k in range(1, CLASSES + 1))),
        [
            (p.second, p.first, *(interval(e, "+.2f") if e.low is not None else f"n {e.n}" for e in p.classes))
            for p in compared.pairs
            if p.classes
        ],
    )
    parts = [component_rows(compared.components)] if compared.components is not None else []
    return [recipes, gains, *(table for table in (classes, kendall, published, *parts, picks, left) if table[2])]


def legend(trained: Retraining, compared: Comparison) -> list[str]:
    """What the tables' readers must know, one sentence or two each."""
    kinds = Counter(arch.kind for arch in trained.archs)
    lines = [
        f"Retraining: {trained.header} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())}).",
        f"All recipes: {trained.recipes[compared.reference].trained()}.",
        f"Departs from the published recipe: {'; '.join(trained.differences)}.",
        *(f"{name}: {recipe.describe()}." for name, recipe in trained.recipes.items()),
        *(
            f"{name}: the law took {count:,.0f} forward passes of a batch an architecture, one training "
            f"{3 * trained.steps:,}; it was measured on {trained.measured:,} that compute different things."
            for name, count in trained.forwards.items()
        ),
    ]
    edges = [name for name, base in trained.bases.items() if base.at_edge]
    if edges:
        lines.append(f"The band of good rates reaches the end of the grid: {', '.join(edges)} (marked *).")
    lines += [
        f"Picks that change places from {compared.reference} to {name}: "
        f"{'; '.join(f'{a} and {b}' for a, b in report.swapped)}."
        for name, report in compared.reports.items()
        if report.swapped
    ]
    if compared.components is not None:
        lines.append(power_line(compared.components, "recipe"))
    return [*lines, *(f"{note}." for note in compared.notes)]


def page(trained: Retraining, compared: Comparison, images: dict[str, bytes]) -> str:
    """Everything as one HTML document that needs no other file."""
    parts = [f"<p>{html.escape(plain(line))}</p>" for line in legend(trained, compared)]
    parts += map(html_table, rows(trained, compared))
    for recipe, report in compared.reports.items():
        parts.append(f"<h1>{html.escape(compared.reference)} against {html.escape(recipe)}</h1>")
        parts += sections(report, images, f"{recipe}-")
    return document(f"NAS-Bench-201 retrained: {trained.data}", parts)


def _base(trained: Retraining, name: str) -> str:
    base = trained.bases[name]
    return f"{base.lr:.3g}{'*' if base.at_edge else ''}"


def _spread(rates: tuple[float, ...]) -> str:
    low, middle, high = min(rates), float(np.median(rates)), max(rates)
    return f"{middle:.3g}" if low == high else f"{low:.2g} – {middle:.2g} – {high:.2g}"


def _loss(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "diverged"
