"""The command ``retrain``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dagscale.cli.app import (
    STUDIES,
    Jobs,
    Json,
    Limit,
    RetryFailed,
    Scheduler,
    Seed,
    app,
    given,
    option,
    print_json,
    resumable,
    screen,
)
from dagscale.cli.rerank import (
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
from dagscale.cli.rerank import (
    published as published_option,
)
from dagscale.errors import DataError
from dagscale.shown import plain

if TYPE_CHECKING:
    from dagscale.bench.nas.tables import Column
    from dagscale.models.nb201 import Nb201


@app.command(rich_help_panel=STUDIES)
def retrain(
    context: typer.Context,
    data: Annotated[str | None, option("'digits' or a path to images, with a test split.")] = None,
    limit: Limit = None,
    preset: Annotated[
        str, option("How much is trained: full, short-12, small-6, mini-5, micro-4, tiny-1.")
    ] = "short-12",
    recipes: Annotated[
        str, option("Of benchmark, one-rate, tuned, tuned-moments, mup, released, plan, plan-kept.")
    ] = "benchmark,one-rate,released,plan",
    architectures: Annotated[str | None, option("Codes with commas, or a file with one a line.")] = None,
    count: Annotated[
        int | None, option("Else so many random ones, by classes of rank in --benchmark; 24.", min=1, max=15_625)
    ] = None,
    top: Annotated[int, option("Only from the best so many percent of --benchmark.", min=1, max=100)] = 100,
    once: Annotated[bool, option("One of each group that computes the same.", name="--once")] = False,
    seeds: Annotated[int, option("Runs of each.", min=2, max=1000)] = 2,
    budget: Annotated[
        str | None, option("Stop within 90s, 8m or 2h; each call takes the next pieces of one fixed list.")
    ] = None,
    results: Annotated[Path | None, option("File that the results grow in; with --budget out/retrain.jsonl.")] = None,
    report: Annotated[Path | None, option("Train nothing: compare what a file of results holds.")] = None,
    device: Annotated[str, option("Where to train: cpu, or cuda, which has not been tried.")] = "cpu",
    store: Annotated[Path, option("Keeps every run; resumable.")] = Path("out/retrain.sqlite"),
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    retry_failed: RetryFailed = False,
    benchmark: Annotated[
        str | None, published_option("Published accuracies to compare with: .parquet, .csv, or nats:PATH.")
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
    from dagscale.bench.nas import retrain_page
    from dagscale.bench.nas.comparison import compare, published_values
    from dagscale.bench.nas.results import read_results

    until = None if budget is None else time.monotonic() + _seconds(budget)
    if (data is None) == (report is None):
        raise typer.BadParameter("name the --data to train on, or with --report a file of results to compare")
    for apart, names, why in (
        (report is not None, OF_TRAINING, "of training, and --report trains nothing"),
        (budget is not None, OF_COMPARING, "of the comparison, which --report makes after --budget"),
        (benchmark is None, OF_BENCHMARK, "of a --benchmark, and none is named"),
        (architectures is not None, OF_SAMPLE, "of a sample, and --architectures names them all"),
    ):
        if apart and (name := given(context, names)):
            raise typer.BadParameter(f"{name} is {why}: leave it out")
    held = None if report is None else read_results(report)
    size = known.PRESETS[preset]
    own = held.data if held is not None else str(data)
    published = (
        None if benchmark is None else _published(benchmark, dataset, own, column, benchmark_seed, partial, unpublished)
    )
    if held is None:
        archs = _archs(architectures, count, seed, published, top, once, budget is not None)
        if published is not None:
            published_values(published, archs)  # refused now, not after the training
        results = Path("out/retrain.jsonl") if results is None and budget is not None else results
        with resumable(store):
            held = retraining.retrain(
                archs, data=own, recipes=_listed(recipes), preset=preset,
                size=size if limit is None else replace(size, images=limit), seeds=seeds, seed=seed, store=store,
                results=results, until=until, device=device, jobs=jobs, scheduler=scheduler,
                retry_failed=retry_failed, progress=True,
            )  # fmt: skip
    if budget is not None:
        line = f"{held.progress}; they are in {results}"
        print_json(held.to_dict() | {"progress": line}) if json else screen().print(plain(line), highlight=False)
        return
    if not held.archs:
        raise DataError(f"{report}: {held.progress}: there is nothing to compare yet")
    compared = compare(
        held.archs, held.accuracies, known.REFERENCE, held.data, published,
        picks=None if picks is None else study.read_picks(picks), bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    written = {} if out is None else retrain_page.write(held, compared, out)
    document = held.to_dict() | compared.to_dict()
    show(document, retrain_page.rows(held, compared), retrain_page.legend(held, compared), written, json)


OF_TRAINING = (
    "limit", "preset", "recipes", "architectures", "count", "top", "once", "seeds", "budget", "results", "device",
    "store", "jobs", "scheduler", "retry_failed",
)  # fmt: skip
OF_COMPARING = ("picks", "bootstrap", "out")
OF_BENCHMARK = ("dataset", "column", "benchmark_seed", "partial", "unpublished")
OF_SAMPLE = ("count", "top")
"""Options that say nothing beside --report, beside --budget, without --benchmark and beside --architectures."""


def _seconds(text: str) -> float:
    """A length of time, as ``90s``, ``8m`` or ``2h``."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isascii() or not number.replace(".", "", 1).isdigit() or float(number) == 0:
        raise typer.BadParameter(f"--budget {text!r} is no length of time: write 90s, 8m or 2h")
    return float(number) * units[unit]


def _archs(
    architectures: str | None, count: int | None, seed: int, ranking: Column | None, top: int, once: bool, endless: bool
) -> tuple[Nb201, ...]:
    """The architectures to train, in their order."""
    from dagscale.bench.nas import samples

    if architectures is not None:
        named = samples.read(architectures)
        return samples.distinct(named) if once else named
    if not endless:
        return samples.draw(24 if count is None else count, seed, ranking=ranking, top=top, once=once)
    if top != 100:
        raise typer.BadParameter("--top is of a sample of --count architectures, and --budget goes through one list")
    every = samples.listed(ranking, seed)
    return (samples.distinct(every) if once else every)[:count]


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
