"""The command ``retrain``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagscale.cli.app import STUDIES, Json, Limit, Seed, app, resumable
from dagscale.cli.rerank import (
    PUBLISHED,
    AccuracyColumn,
    BenchmarkSeed,
    Bootstrap,
    Dataset,
    Out,
    Partial,
    Picks,
    Unpublished,
    show,
)
from dagscale.errors import DataError

if TYPE_CHECKING:
    from dagscale.bench.nas.tables import Column


@app.command(rich_help_panel=STUDIES)
def retrain(
    data: Annotated[str, typer.Option(help="'digits' or a path to images, with a test split.")],
    limit: Limit = None,
    preset: Annotated[str, typer.Option(help="How much is trained: full, short-12, small-6, tiny-1.")] = "short-12",
    recipes: Annotated[
        str, typer.Option(help="Of benchmark, one-rate, mup, released, plan.")
    ] = "benchmark,one-rate,released,plan",
    architectures: Annotated[str | None, typer.Option(help="Codes with commas, or a file with one a line.")] = None,
    count: Annotated[
        int, typer.Option(help="Else so many random ones, by classes of rank in --benchmark.", min=1, max=15_625)
    ] = 24,
    top: Annotated[int, typer.Option(help="Only from the best so many percent of --benchmark.", min=1, max=100)] = 100,
    once: Annotated[bool, typer.Option("--once", help="One of each group that computes the same.")] = False,
    seeds: Annotated[int, typer.Option(help="Runs of each.", min=2, max=1000)] = 2,
    store: Annotated[Path, typer.Option(help="Keeps every run; resumable.")] = Path("out/retrain.sqlite"),
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.", min=-1)] = -1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Execute again what failed in an earlier call.")
    ] = False,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Published accuracies to compare with: .parquet, .csv, or nats:PATH.", rich_help_panel=PUBLISHED
        ),
    ] = None,
    dataset: Dataset = None,
    column: AccuracyColumn = None,
    benchmark_seed: BenchmarkSeed = None,
    partial: Partial = False,
    unpublished: Unpublished = False,
    picks: Picks = None,
    bootstrap: Bootstrap = 100,
    out: Out = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train NAS-Bench-201 architectures under several recipes, and compare their accuracies and rankings."""
    from dagscale.bench.nas import recipes as known
    from dagscale.bench.nas import rerank as study
    from dagscale.bench.nas import retrain as retraining
    from dagscale.bench.nas import retrain_page, samples
    from dagscale.bench.nas.comparison import compare, published_values

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
    show(document, retrain_page.rows(trained, compared), retrain_page.legend(trained, compared), written, json)


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
