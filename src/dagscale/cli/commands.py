"""The commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dagscale.cli.app import (
    EVERYDAY,
    STUDIES,
    TARGETS,
    Data,
    InputShape,
    Json,
    Limit,
    Seed,
    Target,
    app,
    data_option,
    listed_in,
    load_target,
    make_folder,
    option,
    output_option,
    print_json,
    print_text,
    screen,
)
from dagscale.cli.data import load_data
from dagscale.cli.training import (
    BatchSize,
    Clip,
    Epochs,
    Loss,
    Optimizer,
    RecipeFile,
    Schedule,
    Setting,
    Steps,
    Warmup,
    WeightDecay,
    make_recipe,
)
from dagscale.errors import DagscaleError
from dagscale.replacing import same_file
from dagscale.shown import cell, line, load_rich, plain

_planned = listed_in("What it is planned from")


@app.command(rich_help_panel=EVERYDAY)
def inspect(
    target: Target,
    data: Data = None,
    limit: Limit = None,
    input_shape: InputShape = None,
    picture: Annotated[Path | None, output_option("Draw the graph: .svg, .png or .pdf.")] = None,
    text: Annotated[str | None, output_option("dot or mermaid: print the graph as that.", name="--format")] = None,
    full: Annotated[bool, output_option("Show every repeat of a block, and the whole graph.", name="--full")] = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Trace a network and print its paths, depths, kernels and in-degrees."""
    from dagscale.graph.facts import inspect as facts
    from dagscale.graph.facts import tables
    from dagscale.graph.repeats import fold
    from dagscale.graph.text import FORMATS
    from dagscale.tracing import trace

    if data is None and limit is not None:
        raise typer.BadParameter("--limit is of data, and there are none: name them with --data")
    if picture is not None:
        from dagscale.pictures.files import check_path

        check_path(picture)
    if text is not None and json:
        raise typer.BadParameter("--format and --json are two documents: ask for one")
    written = None if text is None else FORMATS[text]
    graph = trace(*load_target(target, load_data(data, limit), input_shape, seed))
    if picture is not None:
        from dagscale.pictures import draw

        draw(graph if full else fold(graph), picture, title=target)
    if written is not None:
        print_text(written(graph if full else fold(graph)))
        return
    if json:
        print_json(facts(graph))
        return
    console = screen()
    console.print(tables(graph, target, full=full))
    if full:
        console.print(cell(str(graph)), markup=False, highlight=False)
    if picture is not None:
        console.print(f"picture     {plain(str(picture))}", markup=False, highlight=False)


@app.command(rich_help_panel=EVERYDAY)
def plan(
    context: typer.Context,
    target: Target,
    base: Annotated[
        list[str] | None,
        _planned("The small network whose rate is known: a file of `search --save`, or a TARGET; or several of them."),
    ] = None,
    base_lr: Annotated[
        list[float] | None,
        _planned("Best rate of a base that is a TARGET, above 0, per optimiser step. Without a base: measured.", min=0),
    ] = None,
    law: Annotated[
        str | None, _planned("Learning-rate law, `dagscale list laws`; by default by optimiser and data.")
    ] = None,
    init: Annotated[
        str | None, _planned("Initialisation, `dagscale list inits`; with data by default moments or small-readout.")
    ] = None,
    width: Annotated[
        str,
        _planned(
            "none: one rate for all; mup: scaled by each layer's growth; auto: by what is known of such networks."
        ),
    ] = "auto",
    depth: Annotated[str, _planned("auto, none, completep, completedp, depth-mup or plain: by depth.")] = "auto",
    batch: Annotated[str | None, _planned("A rule for another batch size than the base's, as sqrt.")] = None,
    horizon: Annotated[str | None, _planned("A rule for a longer run than the base's, as power.")] = None,
    data: Data = None,
    limit: Limit = None,
    recipe: RecipeFile = None,
    optimizer: Optimizer = None,
    loss: Loss = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    setting: Setting = None,
    input_shape: InputShape = None,
    save: Annotated[Path | None, output_option("Write the plan to a JSON file, for dagscale.Plan.load.")] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Plan initialisation and learning rate, carried over from a base network."""
    from dagscale.planning import Base
    from dagscale.planning import plan as make_plan

    found = {one: Base.load(one) for one in base or () if one.endswith(".json")}
    training = make_recipe(load_data(data, limit), context.params, next(iter(found.values()), None))
    if save is not None and any(same_file(save, one) for one in base or ()):
        raise typer.BadParameter(f"--save {save} is the base's own file: give the plan another name")
    model, inputs = load_target(target, training.data, input_shape, seed, training)
    origins = [found.get(one) or load_target(one, training.data, input_shape, seed, training) for one in base or ()]
    made = make_plan(
        model, inputs, base=origins or None, base_lr=base_lr or None, recipe=training, law=law, init=init, seed=seed,
        width=width, depth=depth, batch=batch, horizon=horizon,
    )  # fmt: skip
    if save is not None:
        made.save(save)
    if json:
        print_json(made.to_dict())
    else:
        print_text(str(made))


@app.command(rich_help_panel=EVERYDAY)
def search(
    context: typer.Context,
    target: Target,
    data: Annotated[
        str | None,
        data_option(
            "digits (the default for mlp:, resnet:, timm: and the like), images at a path, text:PATH or file.py:name."
        ),
    ] = None,
    limit: Limit = None,
    init: Annotated[
        str | None,
        option(
            "Initialisation, by default moments, or under a squared error small-readout; of several, as "
            "moments,damped,keep, the best."
        ),
    ] = None,
    recipe: RecipeFile = None,
    optimizer: Optimizer = None,
    loss: Loss = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    weight_decay: WeightDecay = None,
    clip: Clip = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    setting: Setting = None,
    seeds: Annotated[int, option("Runs a rate.", min=1, max=1000)] = 3,
    method: Annotated[str, option("fast: what the answer needs; grid: every rate, every seed.")] = "fast",
    grid: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Exponents of 2, lowest and highest rate; by optimiser where not given.", metavar="LOW HIGH"),
    ] = None,
    decay: Annotated[bool, option("Look for the weight decay too.", name="--decay")] = False,
    validation: Annotated[str | None, option("Data that runs are judged by, as --data.")] = None,
    plot: Annotated[Path | None, output_option("Draw loss against rate: .svg, .png or .pdf.")] = None,
    save: Annotated[Path | None, output_option("Write the base to a JSON file, for `plan --base`.")] = None,
    law: Annotated[
        str | None,
        output_option("With --save: the law of the plans to come, measured now; by default theirs; or none."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the good learning rates of a (base) network, and the one to recommend: the middle of their band."""
    from dagscale.inits import DEFAULT
    from dagscale.models import SPACES
    from dagscale.planning.make import default_law
    from dagscale.rates import rates_between
    from dagscale.searching import search as find

    if law is not None and save is None:
        raise typer.BadParameter("--law is measured for a file of the base: name one with --save")
    if plot is not None:
        from dagscale.pictures.files import check_path

        check_path(plot)
    rates = None if grid is None else rates_between(*grid)
    if data is None and recipe is None:
        space = SPACES.get(target.partition(":")[0])
        if space is None or space.tokens:
            raise typer.BadParameter(f"{target} is trained, and needs data: name them with --data")
        data = "digits"
    given = load_data(data, limit)
    training = make_recipe(given, context.params)
    model, inputs = load_target(target, training.data, None, seed, training)
    found = find(
        model, training, inputs=inputs, init=init.split(",") if init else None, seeds=seeds, seed=seed,
        method=method, grid=rates, decay=decay,
        validation=load_data(validation), progress=True,
    )  # fmt: skip
    if plot is not None:
        found.plot(plot)
    if save is not None:
        found.save(save)  # at once: what follows may not succeed
        try:
            found.measure(law or default_law(training.optimizer, has_data=True, init=found.init or DEFAULT)).save(save)
        except DagscaleError as error:
            if law is not None:
                raise
            print(f"note: plans from {save} can have --law none only: {line(str(error))}", file=sys.stderr)
    if json:
        print_json(found.to_dict())
    else:
        screen().print(found.table())


@app.command("list", rich_help_panel=EVERYDAY)
def list_(
    what: Annotated[
        str,
        typer.Argument(
            help="laws, inits, optimizers, rules (of batch and horizon), spaces, targets, suites or readers.",
            metavar="WHAT",
        ),
    ],
    json: Json = False,
) -> None:
    """List what is registered under a kind of name, with a line on each."""
    import importlib

    load_rich()
    from rich.table import Table
    from rich.text import Text

    from dagscale.errors import UnknownNameError
    from dagscale.registry import summary

    if what == "targets":
        found = TARGETS
    elif what in REGISTRIES:
        module, name = REGISTRIES[what]
        registry = getattr(importlib.import_module(module), name)
        own = {form.partition(":")[0]: text for form, text in TARGETS.items()} if what == "spaces" else {}
        found = {entry: own.get(entry) or summary(registry[entry]) for entry in registry}
    else:
        raise UnknownNameError(f"there is no list of {what!r}: {', '.join(('targets', *REGISTRIES))}")
    if json:
        print_json(found)
        return
    table = Table(box=None)
    table.add_column(what)
    table.add_column("")
    for entry, text in found.items():
        table.add_row(Text(entry), Text(text))
    screen().print(table)


REGISTRIES = {
    "laws": ("dagscale.laws", "LAWS"),
    "inits": ("dagscale.inits", "INITS"),
    "optimizers": ("dagscale.training.optimizers", "OPTIMIZERS"),
    "rules": ("dagscale.scaling.horizon", "HORIZON_RULES"),
    "spaces": ("dagscale.models", "SPACES"),
    "suites": ("dagscale.bench.verify.suites", "SUITES"),
    "readers": ("dagscale.bench.data.dataset", "READERS"),
}


@app.command(rich_help_panel=STUDIES)
def demo(
    out: Annotated[Path, option("Folder for the picture.")] = Path("out"),
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
