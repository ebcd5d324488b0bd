"""The command ``rerank``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dagscale.cli.app import Json, Seed, app, print_json, resumable, screen
from dagscale.errors import DataError
from dagscale.shown import plain

if TYPE_CHECKING:
    from dagscale.bench.nas.rerank_page import Rows
    from dagscale.bench.nas.tables import Column

TWO, NEW = "Two tables", "With --retrain"


@app.command()
def rerank(
    benchmark: Annotated[str | None, typer.Option(help="Table of accuracies: .parquet, .csv, or nats:PATH.")] = None,
    against: Annotated[
        str | None, typer.Option(help="The accuracies to hold against it; may be the same table.", rich_help_panel=TWO)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="cifar10, cifar100, ImageNet16-120; the table's first.")] = None,
    column: Annotated[str | None, typer.Option(help="test_acc, valid_acc or valtest_acc of the benchmark.")] = None,
    benchmark_seed: Annotated[str | None, typer.Option(help="Its seed, or 'mean'.")] = None,
    against_column: Annotated[
        str | None, typer.Option(help="Column of the other; the same by default.", rich_help_panel=TWO)
    ] = None,
    against_seed: Annotated[str | None, typer.Option(help="Seed of the other, or 'mean'.", rich_help_panel=TWO)] = None,
    picks: Annotated[Path | None, typer.Option(help="CSV with columns method and arch.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Compare what both have; tables may be samples.")] = False,
    unpublished: Annotated[bool, typer.Option("--unpublished", help="The benchmark is one of your own.")] = False,
    bootstrap: Annotated[int, typer.Option(help="Resamples for intervals.", min=20, max=100_000)] = 100,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train architectures under several recipes.", rich_help_panel=NEW)
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="'digits' or a path to images, with a test split.", rich_help_panel=NEW)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="So many images a split, instead of the preset's.", rich_help_panel=NEW)
    ] = None,
    preset: Annotated[
        str, typer.Option(help="How much is trained: full, short-12, small-6, tiny-1.", rich_help_panel=NEW)
    ] = "short-12",
    recipes: Annotated[
        str, typer.Option(help="Of benchmark, one-rate, mup, released, plan.", rich_help_panel=NEW)
    ] = "benchmark,one-rate,released,plan",
    architectures: Annotated[
        str | None, typer.Option(help="Codes with commas, or a file with one a line.", rich_help_panel=NEW)
    ] = None,
    count: Annotated[
        int, typer.Option(help="Else so many random ones, by classes of rank in --benchmark.", rich_help_panel=NEW)
    ] = 24,
    top: Annotated[
        int, typer.Option(help="Only from the best so many percent of --benchmark.", rich_help_panel=NEW)
    ] = 100,
    once: Annotated[
        bool, typer.Option("--once", help="One of each group that computes the same.", rich_help_panel=NEW)
    ] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each, 2 or more.", rich_help_panel=NEW)] = 2,
    store: Annotated[Path, typer.Option(help="Keeps every run; resumable.", rich_help_panel=NEW)] = Path(
        "out/retrain.sqlite"
    ),
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.", rich_help_panel=NEW)] = -1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.", rich_help_panel=NEW)] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Execute again what failed in an earlier call.", rich_help_panel=NEW)
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, page and pictures.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two rankings of NAS-Bench-201, or retrain it: Kendall τ by top K %, gains, noise floors."""
    from rich.console import Console

    from dagscale.bench.nas import rerank as study
    from dagscale.bench.nas import rerank_page, tables

    if retrain:
        from dagscale.bench.nas import recipes as known
        from dagscale.bench.nas import retrain as retraining
        from dagscale.bench.nas import retrain_page, samples
        from dagscale.bench.nas.comparison import compare, published_values

        if data is None:
            raise DataError("--retrain trains on images: name them with --data, as --data digits")
        if against is not None or against_column is not None or against_seed is not None:
            raise DataError("--against is for two tables: with --retrain the accuracies to compare are trained")
        size = known.PRESETS[preset]
        published = (
            None
            if benchmark is None
            else _published(benchmark, dataset, data, column, benchmark_seed, partial, unpublished)
        )
        archs = (
            samples.draw(count, seed, ranking=published, top=top, once=once)
            if architectures is None
            else samples.read(architectures)
        )
        archs = samples.distinct(archs) if once else archs
        if published is not None:
            published_values(published, archs)  # refused now, not after the training
        with resumable(store):
            trained = retraining.retrain(
                archs, data=data, recipes=_listed(recipes), preset=preset,
                size=size if limit is None else replace(size, images=limit), seeds=seeds, seed=seed, store=store,
                jobs=jobs, scheduler=scheduler, retry_failed=retry_failed, progress=True,
            )  # fmt: skip
        compared = compare(
            trained.archs, trained.accuracies, retraining.REFERENCE, trained.data, published,
            picks=None if picks is None else study.read_picks(picks), bootstrap=bootstrap, seed=seed,
        )  # fmt: skip
        written = {} if out is None else retrain_page.write(trained, compared, out)
        document = trained.to_dict() | compared.to_dict()
        _show(document, retrain_page.rows(trained, compared), retrain_page.legend(trained, compared), written, json)
        return
    if benchmark is None or against is None:
        raise DataError("name two tables, --benchmark and --against, or retrain: --retrain --data PATH")
    if data is not None:
        raise DataError("--data is for --retrain: add it, or leave --data out")
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
    _show(report.to_dict(), rerank_page.rows(report), rerank_page.legend(report), written, json)


def _show(
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


def _published(
    source: str, dataset: str | None, data: str, column: str | None, seed: str | None, partial: bool, unpublished: bool
) -> Column:
    """The column of published accuracies that a retraining on ``data`` is held against."""
    from dagscale.bench.nas.tables import read_table

    table = read_table(source)
    if not unpublished:
        table.check_published()
    own = Path(data).expanduser().resolve().name
    if dataset is None and own not in table.datasets:
        raise DataError(f"{source} has {', '.join(table.datasets)}, not {own}: say with --dataset which one to rank by")
    return table.select(dataset or own, column, seed, partial=partial)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
