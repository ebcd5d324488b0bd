"""``dagscale verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagscale.cli.app import Json, Seed, app, make_folder, print_json, screen


@app.command()
def verify(
    suite: Annotated[str, typer.Argument(help="mlp-depth, mlp-dag or cnn-dag.", metavar="SUITE")],
    data: Annotated[str, typer.Option(help="'digits' or a path to images.")] = "digits",
    architectures: Annotated[int, typer.Option(help="Members of the suite.")] = 12,
    seeds: Annotated[int, typer.Option(help="Runs a rate.")] = 2,
    epochs: Annotated[int, typer.Option(help="Epochs a run.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Use only so many examples.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="5 architectures, 300 examples.")] = False,
    store: Annotated[Path, typer.Option(help="Keeps every run; resumable.")] = Path("out/verify.sqlite"),
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Predicted against found: every law under every init, on a suite of architectures, by training."""
    from dagscale.studies import verify as study

    if quick:
        architectures, seeds, epochs, limit = 5, 2, 1, 300
    make_folder(store.parent)
    rows, truths = study.verify(
        suite, data=data, architectures=architectures, seeds=seeds, epochs=epochs, batch_size=batch_size, limit=limit,
        seed=seed, store=store, scheduler=scheduler, progress=True,
    )  # fmt: skip
    floors = {init: study.noise_floor(known.values()) for init, known in truths.items()}
    if json:
        print_json([*study.to_dict(rows), *study.floor_rows(suite, floors)])
    else:
        screen().print(study.table(rows, floors))
