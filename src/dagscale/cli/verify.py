"""``dagscale verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagscale.cli.app import STUDIES, Json, Limit, Seed, app, make_folder, print_json, resumable, screen
from dagscale.shown import line, load_rich, plain

NAMES = "mlp-depth, mlp-dag, cnn-dag (each also -gelu), mlp-dag-bn, resnet-depth, resnet-depth-bn, vit-depth, width."


@app.command(rich_help_panel=STUDIES)
def verify(
    context: typer.Context,
    suite: Annotated[str | None, typer.Argument(help=NAMES, metavar="SUITE")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="CSV of finished runs: score laws and rules on them, train nothing.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="LAW/INIT, as curvature/moments, or a peer; repeat it. Default: all."),
    ] = None,
    optimizer: Annotated[str, typer.Option(help="sgd, momentum, adam or adamw.")] = "sgd",
    data: Annotated[str, typer.Option(help="'digits' or a path to images.")] = "digits",
    architectures: Annotated[
        int | None, typer.Option(help="Members of the suite; its own number by default.", min=1, max=1000)
    ] = None,
    bases: Annotated[
        int, typer.Option(help="Networks of known rate: the base, and the first members.", min=1, max=1000)
    ] = 1,
    seeds: Annotated[int, typer.Option(help="Runs a rate.", min=1, max=1000)] = 2,
    epochs: Annotated[int, typer.Option(help="Epochs a run.", min=1, max=10**6)] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples a step.", min=1, max=10**6)] = 32,
    limit: Limit = None,
    grid: Annotated[
        tuple[float, float] | None, typer.Option(help="Exponents of 2, lowest and highest rate.", metavar="LOW HIGH")
    ] = None,
    spacing: Annotated[float, typer.Option(help="Octaves between rates.", min=0.01, max=100)] = 0.5,
    options: Annotated[str, typer.Option(help="For every architecture, as 'norm=batch&width=128'.")] = "",
    quick: Annotated[bool, typer.Option("--quick", help="3 architectures, 64 examples, an octave apart.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for results.json, points.json and two pictures.")] = None,
    store: Annotated[Path, typer.Option(help="Keeps every run; resumable.")] = Path("out/verify.sqlite"),
    jobs: Annotated[int, typer.Option(help="Processes; -1 for one a core.", min=-1)] = -1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Execute again what failed in an earlier call.")
    ] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Predicted against found: every law under every init, and methods of others, by training a suite; or, with
    --runs, on finished runs of others."""
    if runs is not None:
        replay(context, runs, out, json)
        return
    if suite is None:
        raise typer.BadParameter("name a SUITE to train, or a file of finished runs with --runs")
    load_rich()
    from rich.console import Console

    from dagscale.bench.verify import report, study

    if quick:
        architectures, seeds, epochs, limit, spacing = 3, 2, 3, 64, 1.0
    if out is not None:
        make_folder(out)
        report.check_folder(out)
    with resumable(store):
        done = study.verify(
            suite, methods=method or (), optimizer=optimizer, data=data, architectures=architectures, bases=bases,
            seeds=seeds, epochs=epochs, batch_size=batch_size, limit=limit, grid=grid, spacing=spacing,
            options=options, seed=seed, store=store, jobs=jobs, scheduler=scheduler, retry_failed=retry_failed,
            progress=True,
        )  # fmt: skip
    rows = report.rows(done)
    told = Console(stderr=True, soft_wrap=True)
    for note in done.notes:
        told.print(f"note: {line(note)}", markup=False, highlight=False)
    if out is not None:
        for path in report.save_all(done, rows, out):
            told.print(f"wrote {plain(str(path))}", markup=False, highlight=False)
    if json:
        print_json(report.to_dict(rows))
    else:
        screen().print(report.table(done, rows))


WITH_RUNS = ("runs", "out", "json")


def replay(context: typer.Context, path: Path, out: Path | None, json: bool) -> None:
    """``dagscale verify --runs FILE.csv``."""
    load_rich()
    from rich.console import Console

    from dagscale.bench.replay import sheets, study

    given = [
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    unused = [name for name in given if name not in WITH_RUNS]
    if unused:
        name = "SUITE" if unused[0] == "suite" else f"--{unused[0].replace('_', '-')}"
        raise typer.BadParameter(f"{name} is about runs to train, and --runs trains nothing: leave one of them out")
    if out is not None:
        make_folder(out)
        sheets.check_folder(out)
    document = study.replay(path).to_dict()
    told = Console(stderr=True, soft_wrap=True)
    for written in [] if out is None else sheets.save_all(document, out):
        told.print(f"wrote {written}", markup=False, highlight=False)
    if json:
        print_json(document)
        return
    for table in sheets.tables(document):
        screen().print(table)
