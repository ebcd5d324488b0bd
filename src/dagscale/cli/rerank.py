"""The command ``rerank``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagscale.cli.app import Json, Seed, app, print_json, screen


@app.command()
def rerank(
    benchmark: Annotated[str, typer.Option(help="Table of accuracies: .parquet, .csv, or nats:PATH.")],
    against: Annotated[str, typer.Option(help="The accuracies to hold against it; may be the same table.")],
    dataset: Annotated[str | None, typer.Option(help="cifar10, cifar100, ImageNet16-120; the table's first.")] = None,
    column: Annotated[str | None, typer.Option(help="test_acc, valid_acc or valtest_acc of the benchmark.")] = None,
    benchmark_seed: Annotated[str | None, typer.Option(help="Its seed, or 'mean'.")] = None,
    against_column: Annotated[str | None, typer.Option(help="Column of the other; the same by default.")] = None,
    against_seed: Annotated[str | None, typer.Option(help="Seed of the other, or 'mean'.")] = None,
    picks: Annotated[Path | None, typer.Option(help="CSV with columns method and arch.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Compare what both have; tables may be samples.")] = False,
    unpublished: Annotated[bool, typer.Option("--unpublished", help="The benchmark is one of your own.")] = False,
    bootstrap: Annotated[int, typer.Option(help="Resamples for intervals.", min=20)] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, page and pictures.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two rankings of NAS-Bench-201: Kendall τ by top K %, gains, noise floors, picks."""
    from rich.console import Console

    from dagscale.studies import rerank as study
    from dagscale.studies import rerank_page, tables

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
    if json:
        print_json(report.to_dict() | {"files": {name: str(path) for name, path in written.items()}})
        return
    shown = screen()
    for table in rerank_page.tables(report):
        shown.print(table)
    for line in rerank_page.legend(report):
        shown.print(line, markup=False, highlight=False)
    for name, path in written.items():
        shown.print(f"{name:9} {path}", markup=False, highlight=False)
