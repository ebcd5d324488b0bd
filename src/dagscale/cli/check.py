"""The command ``check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagscale.cli.app import (
    EVERYDAY,
    Data,
    InputShape,
    Json,
    Limit,
    Seed,
    app,
    load_target,
    option,
    output_option,
    print_json,
    screen,
)
from dagscale.cli.data import load_data
from dagscale.cli.training import BatchSize, Loss, Optimizer, RecipeFile, Setting, WeightDecay, make_recipe
from dagscale.shown import load_rich

Targets = Annotated[
    list[str],
    typer.Argument(
        help="Two models or more, smallest first; `dagscale --help` lists what a TARGET may be.", metavar="TARGET..."
    ),
]


@app.command(rich_help_panel=EVERYDAY)
def check(
    context: typer.Context,
    targets: Targets,
    data: Data = None,
    init: Annotated[str | None, option("Initialisation; 'keep' takes the models as they are.")] = None,
    law: Annotated[str | None, option("Learning-rate law; 'none' is one rate for all.")] = None,
    recipe: RecipeFile = None,
    optimizer: Optimizer = None,
    loss: Loss = None,
    weight_decay: WeightDecay = None,
    setting: Setting = None,
    base_lr: Annotated[
        float | None, option("Rate of the first TARGET, above 0; by default from curvature.", min=0)
    ] = None,
    width: Annotated[str | None, option("none: one rate for all layers; mup: rates by layer.")] = None,
    steps: Annotated[int, option("Optimiser steps.", min=1, max=10**6)] = 4,
    seeds: Annotated[int, option("Runs a member.", min=1, max=1000)] = 8,
    batch_size: BatchSize = None,
    limit: Limit = None,
    input_shape: InputShape = None,
    plot: Annotated[Path | None, output_option("Draw moments and updates against size: .svg, .png or .pdf.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Check that signals and updates stay as a family of networks grows. Exit status 1 if they do not."""
    load_rich()
    from rich.console import Console

    from dagscale.checking import check as run
    from dagscale.pictures.files import check_path

    if plot is not None:
        check_path(plot)
    given = load_data(data, limit)
    size = batch_size or (64 if recipe is None and hasattr(given, "x") else None)
    training = make_recipe(given, {**context.params, "batch_size": size, "steps": None})
    errors = Console(stderr=True)
    with errors.status("checking"):
        report = run(
            [load_target(target, training.data, input_shape, seed, training) for target in targets], labels=targets,
            recipe=training, init=init, law=law, base_lr=base_lr, width=width, steps=steps, seeds=seeds, seed=seed,
        )  # fmt: skip
    if plot is not None:
        report.plot(plot)
    if json:
        print_json(report.to_dict())
    else:
        console = screen()
        console.print(report.table())
        for fault in report.faults[1:]:  # the verdict has the first
            console.print(f"fault: {fault}", markup=False, highlight=False)
        for note in report.notes:
            console.print(f"note: {note}", markup=False, highlight=False)
    if not report.ok:
        raise typer.Exit(1)
