"""The commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from dagscale.cli.app import (
    Data,
    InputShape,
    Json,
    Seed,
    Target,
    app,
    load_data,
    load_target,
    make_folder,
    print_json,
    screen,
)
from dagscale.pictures.files import check_path
from dagscale.shown import cell, plain

Law = Annotated[
    str | None,
    typer.Option(
        help="Learning-rate law. With --data: combined (default for sgd), short-run (default), "
        "curvature, function-change. "
        "Without: covariance (default), walk, paths, released, none."
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Initialisation: moments (default with --data), in-degree (default), in-degree-standard, released, keep."
    ),
]
Optimizer = Annotated[str, typer.Option(help="sgd, momentum, adam or adamw.")]


@app.command()
def inspect(
    target: Target,
    data: Data = None,
    input_shape: InputShape = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the graph: .svg or .png.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show every repeat of a block, and the whole graph.")] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Trace a network and print its paths, depths, kernels and in-degrees."""
    from dagscale.graph.facts import inspect as facts
    from dagscale.graph.facts import tables
    from dagscale.tracing import trace

    if picture is not None:
        check_path(picture)
    graph = trace(*load_target(target, load_data(data), input_shape, seed))
    if picture is not None:
        from dagscale.graph.repeats import fold
        from dagscale.pictures import draw

        draw(graph if full else fold(graph), picture, title=target)
    if json:
        print_json(facts(graph))
        return
    console = screen()
    console.print(tables(graph, target, full=full))
    if full:
        console.print(cell(str(graph)), markup=False, highlight=False)
    if picture is not None:
        console.print(f"picture     {plain(str(picture))}", markup=False, highlight=False)


@app.command()
def plan(
    target: Target,
    base: Annotated[
        list[str] | None, typer.Option(help="The small network whose rate is known, a TARGET; or several.")
    ] = None,
    base_lr: Annotated[
        list[float] | None, typer.Option(help="Its best rate, per optimiser step, one a base. Neither: measured.")
    ] = None,
    law: Law = None,
    init: Init = None,
    optimizer: Optimizer = "sgd",
    width: Annotated[str, typer.Option(help="none: one rate for all; mup: scaled by each layer's growth.")] = "none",
    data: Data = None,
    batch_size: Annotated[int, typer.Option(help="Examples a training step, for measured laws.")] = 128,
    steps: Annotated[int | None, typer.Option(help="Of the run that the rate is for, if short.")] = None,
    input_shape: InputShape = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Plan initialisation and learning rate, carried over from a base network."""
    from dagscale.planning.make import plan as make_plan

    images = load_data(data)
    model, inputs = load_target(target, images, input_shape, seed)
    origins = [load_target(one, images, input_shape, seed) for one in base or ()]
    examples = None if images is None else (images.x, images.y)
    made = make_plan(
        model, inputs, base=origins or None, base_lr=base_lr or None, law=law, init=init, optimizer=optimizer,
        seed=seed, data=examples, loss=torch.nn.functional.cross_entropy, batch_size=batch_size, steps=steps,
        width=width,
    )  # fmt: skip
    if json:
        print_json(made.to_dict())
    else:
        print(made)


@app.command()
def search(
    target: Target,
    data: Annotated[str, typer.Option(help="'digits' or a path to images.")] = "digits",
    init: Init = "moments",
    optimizer: Optimizer = "sgd",
    epochs: Annotated[int, typer.Option(help="Epochs a run.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Steps a run, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 128,
    seeds: Annotated[int, typer.Option(help="Runs a rate.")] = 3,
    method: Annotated[str, typer.Option(help="fast: what the answer needs; grid: every rate, every seed.")] = "fast",
    limit: Annotated[int | None, typer.Option(help="Use only so many examples.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw loss against rate: .svg or .png.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the maximal learning rate of a (base) network on a logarithmic grid."""
    from dagscale.searching import search as find

    if plot is not None:
        check_path(plot)
    images = load_data(data, limit)
    assert images is not None
    model, _ = load_target(target, images, None, seed)
    found = find(
        model, images, init=init or "moments", optimizer=optimizer, epochs=epochs, steps=steps, batch_size=batch_size,
        seeds=seeds, seed=seed, method=method, progress=True,
    )  # fmt: skip
    if plot is not None:
        found.plot(plot)
    if json:
        print_json(found.to_dict())
    else:
        screen().print(found.table())


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture.")] = Path("out"),
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """The main job on embedded data: search a base, plan for other architectures, train and compare."""
    from dagscale.bench import demo as study

    make_folder(out)
    outcomes, picture = study.run(out, seed=seed, progress=True)
    if json:
        print_json(study.to_dict(outcomes, picture))
        return
    shown = screen()
    shown.print(study.table(outcomes))
    shown.print(study.sentence(outcomes), highlight=False)
    shown.print(f"picture: {plain(str(picture))}", markup=False, highlight=False)
