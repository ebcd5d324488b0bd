"""The command ``rerank``, and what it shares with ``retrain``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagscale.cli.app import STUDIES, Json, Seed, app, given, listed_in, option, output_option, print_json, screen
from dagscale.shown import plain

if TYPE_CHECKING:
    from dagscale.bench.nas.rerank_page import Rows

published = listed_in("The published table")

Dataset = Annotated[str | None, published("cifar10, cifar100, ImageNet16-120; the table's first.")]
AccuracyColumn = Annotated[str | None, published("test_acc, valid_acc or valtest_acc of the benchmark.")]
BenchmarkSeed = Annotated[str | None, published("Its seed, or 'mean'.")]
Partial = Annotated[bool, published("Compare what both have; tables may be samples.", name="--partial")]
Unpublished = Annotated[bool, published("The benchmark is one of your own.", name="--unpublished")]
Picks = Annotated[Path | None, option("CSV with columns method and arch.")]
Bootstrap = Annotated[int, option("Resamples for intervals.", min=20, max=100_000)]
Out = Annotated[Path | None, output_option("Folder for JSON, page and pictures.")]


@app.command(rich_help_panel=STUDIES)
def rerank(
    context: typer.Context,
    benchmark: Annotated[
        str,
        published(
            "Table of accuracies: .parquet, .csv, nats:PATH; or one with several settings an architecture, "
            "nas-hpo-bench-2:FOLDER or jahs-bench-201:FILE."
        ),
    ],
    against: Annotated[str | None, option("The accuracies to hold against it; may be the same table.")] = None,
    setting: Annotated[
        str | None, option("The shared setting, where there are several; by default the best on average.")
    ] = None,
    dataset: Dataset = None,
    column: AccuracyColumn = None,
    benchmark_seed: BenchmarkSeed = None,
    against_column: Annotated[str | None, option("Column of the other; the same by default.")] = None,
    against_seed: Annotated[str | None, option("Seed of the other, or 'mean'.")] = None,
    picks: Picks = None,
    partial: Partial = False,
    unpublished: Unpublished = False,
    bootstrap: Bootstrap = 100,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two rankings of NAS-Bench-201: Kendall τ by top K %, gains, noise floors. `retrain` makes new ones."""
    from rich.console import Console

    from dagscale.bench.nas import rerank as study
    from dagscale.bench.nas import rerank_page, settings_page, tables
    from dagscale.bench.nas.settings import compare_settings
    from dagscale.bench.nas.settings_read import read_settings

    several = read_settings(benchmark, column)
    if several is not None:
        if name := given(context, OF_TWO):
            raise typer.BadParameter(
                f"{name} is of two tables, and {benchmark} alone has several settings to compare: leave it out"
            )
        found = compare_settings(several, setting, bootstrap=bootstrap, seed=seed)
        files = {} if out is None else settings_page.write(found, out)
        show(found.to_dict(), settings_page.rows(found), settings_page.legend(found), files, json)
        return
    if setting is not None:
        raise typer.BadParameter(f"--setting: {benchmark} has one setting an architecture: leave it out")
    if against is None:
        raise typer.BadParameter("--against names the accuracies to hold against those of --benchmark")
    console = Console(stderr=True)
    with console.status("reading") as status:
        first = tables.read_table(benchmark)
        second = first if against == benchmark else tables.read_table(against)
        if not unpublished:
            first.check_published()
        report = study.rerank(
            first, second, dataset=dataset, column=column, seed=benchmark_seed, against_column=against_column,
            against_seed=against_seed, partial=partial, picks=None if picks is None else study.read_picks(picks),
            bootstrap=bootstrap, random_seed=seed, progress=status.update,
        )  # fmt: skip
        written = {} if out is None else rerank_page.write(report, out)
    show(report.to_dict(), rerank_page.rows(report), rerank_page.legend(report), written, json)


OF_TWO = (
    "against", "dataset", "benchmark_seed", "against_column", "against_seed", "picks", "partial", "unpublished",
)  # fmt: skip
"""Options of a comparison of two tables."""


def show(
    document: dict[str, Any], rows: Iterable[Rows], legend: Iterable[str], written: dict[str, Path], json: bool
) -> None:
    """The answer on stdout, as JSON or as tables."""
    from dagscale.bench.nas.rerank_page import printable

    if json:
        print_json(document | {"files": {name: str(path) for name, path in written.items()}})
        return
    shown = screen()
    for table in printable(rows):
        shown.print(table)
    for line in legend:
        shown.print(plain(line), markup=False, highlight=False)
    for name, path in written.items():
        shown.print(f"{plain(name):18} {plain(str(path))}", markup=False, highlight=False)
