"""``dagscale verify``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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
    make_folder,
    option,
    print_json,
    resumable,
    screen,
)
from dagscale.shown import line, load_rich, plain

PLAIN = "mlp-depth, mlp-dag, cnn-dag (each also -gelu), mlp-dag-bn, resnet-depth, resnet-depth-bn, vit-depth, width"
REAL = "lm, lm-no-norm, mixer, resnet, vit, mlp, cnn, mlp-adam, cnn-adam"
NAMES = f"Under a recipe that people use: {REAL}. At a constant rate: {PLAIN}."


@app.command(rich_help_panel=STUDIES)
def verify(
    context: typer.Context,
    suite: Annotated[str | None, typer.Argument(help=NAMES, metavar="SUITE")] = None,
    runs: Annotated[Path | None, option("CSV of finished runs: score laws and rules on them, train nothing.")] = None,
    method: Annotated[
        list[str] | None, option("LAW/INIT, as curvature/moments, or a peer; repeat it. Default: all.")
    ] = None,
    optimizer: Annotated[str | None, option("sgd (default), momentum, adam or adamw; a recipe has its own.")] = None,
    data: Annotated[
        str | None, option("'digits', a path to images; for lm 'text' or text:PATH. Default: digits, or text.")
    ] = None,
    architectures: Annotated[
        int | None, option("Members of the suite; its own number by default.", min=1, max=1000)
    ] = None,
    bases: Annotated[
        int | None, option("Networks of known rate: the base (default), and the first members.", min=1, max=1000)
    ] = None,
    seeds: Annotated[int | None, option("Runs a rate; 2, under a recipe 1.", min=1, max=1000)] = None,
    epochs: Annotated[int | None, option("Epochs a run, at a constant rate; 1.", min=1, max=10**6)] = None,
    steps: Annotated[int | None, option("Steps a run, under a recipe; its own.", min=1, max=10**8)] = None,
    batch_size: Annotated[int | None, option("Examples a step; 32, or the recipe's own.", min=1, max=10**6)] = None,
    limit: Limit = None,
    grid: Annotated[
        tuple[float, float] | None, typer.Option(help="Exponents of 2, lowest and highest rate.", metavar="LOW HIGH")
    ] = None,
    spacing: Annotated[float | None, option("Octaves between rates; ½, under a recipe 1.", min=0.01, max=100)] = None,
    options: Annotated[str, option("For every architecture, as 'norm=batch&width=128'.")] = "",
    quick: Annotated[bool, option("Few architectures, examples and rates.", name="--quick")] = False,
    out: Annotated[Path | None, option("Folder for results as JSON and pictures.")] = None,
    store: Annotated[Path, option("Keeps every run; resumable.")] = Path("out/verify.sqlite"),
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    retry_failed: RetryFailed = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Suites at a constant rate: predicted against found, every law under every init, and methods of others. Suites
    under a recipe: plans and rivals by loss for steps. With --runs: laws and rules on finished runs of others."""
    if runs is not None:
        replay(context, runs, out, json)
        return
    if suite is None:
        raise typer.BadParameter("name a SUITE to train, or a file of finished runs with --runs")
    load_rich()
    from dagscale.bench.verify.suites import SUITES

    recipe = SUITES[suite].recipe
    study, faces = parts(recipe)
    apart = ("optimizer", "epochs", "bases") if recipe else ("steps",)
    defaults: dict[str, Any] = (QUICK_CONTEST if recipe else QUICK) if quick else {}
    asked = {name: value for name in ASKED if (value := context.params[name]) is not None}
    for name in apart:
        if name in asked:
            how = f"trains under the recipe {recipe}" if recipe else "trains for whole epochs, see --epochs"
            raise typer.BadParameter(f"--{name.replace('_', '-')}: suite {suite} {how}")
    if out is not None:
        make_place(out, faces.FILES)
    with resumable(store):
        done = study(
            suite, methods=method or (), options=options, seed=seed, store=store, jobs=jobs, scheduler=scheduler,
            retry_failed=retry_failed, progress=True, **{**defaults, **asked},
        )  # fmt: skip
    show(done, faces, out, json)


ASKED = (
    "optimizer", "data", "architectures", "bases", "seeds", "epochs", "steps", "batch_size", "limit", "grid", "spacing",
)  # fmt: skip
"""Options that a study has defaults for."""

QUICK = {"architectures": 3, "seeds": 2, "epochs": 3, "limit": 64, "spacing": 1.0}
QUICK_CONTEST = {"architectures": 2, "seeds": 1, "steps": 10, "limit": 256, "spacing": 2.0}


def parts(recipe: str) -> tuple[Any, Any]:
    """What runs a suite with this recipe, or none, and what shows the result."""
    if recipe:
        from dagscale.bench.verify import contest, curves

        return contest.contest, curves
    from dagscale.bench.verify import report, study

    return study.verify, report


def make_place(folder: Path, files: Sequence[str]) -> None:
    """Make the folder, and see that pictures can be written there, before the work."""
    from dagscale.pictures.files import check_path

    make_folder(folder)
    for name in files:
        if name.endswith(".png"):
            check_path(folder / name)


def show(done: Any, faces: Any, out: Path | None, json: bool) -> None:
    """Notes on stderr, files where they are asked for, and the table or JSON on stdout."""
    from rich.console import Console

    told = Console(stderr=True, soft_wrap=True)
    for note in done.notes:
        told.print(f"note: {line(note)}", markup=False, highlight=False)
    if out is not None:
        for path in faces.save_all(done, out):
            told.print(f"wrote {plain(str(path))}", markup=False, highlight=False)
    if json:
        print_json(faces.to_dict(done))
    else:
        screen().print(faces.table(done))


WITH_RUNS = ("runs", "out", "json")


def replay(context: typer.Context, path: Path, out: Path | None, json: bool) -> None:
    """``dagscale verify --runs FILE.csv``."""
    load_rich()
    from rich.console import Console

    from dagscale.bench.replay import sheets, study

    if name := given(context, (name for name in context.params if name not in WITH_RUNS)):
        raise typer.BadParameter(f"{name} is about runs to train, and --runs trains nothing: leave one of them out")
    if out is not None:
        make_place(out, sheets.FILES)
    document = study.replay(path).to_dict()
    told = Console(stderr=True, soft_wrap=True)
    for written in [] if out is None else sheets.save_all(document, out):
        told.print(f"wrote {written}", markup=False, highlight=False)
    if json:
        print_json(document)
        return
    for table in sheets.tables(document):
        screen().print(table)
