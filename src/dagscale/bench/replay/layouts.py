"""The kinds of files of runs that are known, one entry each."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dagscale.bench.replay.networks import build_decoder, build_residual, build_target
from dagscale.bench.replay.runs import LAYOUTS, OWN, Architecture, Layout, Metric, Run, Setting, cost, number, yes

TRAINING_IMAGES = 40_960
"""Of CIFAR that the residual networks were trained on; the rest of the 50,000 is the validation set."""

SEQUENCE = 2048
"""Tokens in a sequence of the language models."""

LONG_MOMENTUM = 0.98
"""Beyond it a run counts as another recipe: the velocity averages over more than 50 steps."""


def residual_grid(row: Mapping[str, str]) -> Run | None:
    """A residual network on CIFAR; the costs are points of validation error, and the logarithm of the training loss."""
    depth, width = int(number(row, "depth")), int(number(row, "width"))
    momentum = number(row, "mo")
    if momentum > LONG_MOMENTUM:
        return None
    accuracy = cost(row, "acc")
    loss = cost(row, "loss")
    diverged = math.isinf(loss) or math.isinf(accuracy)
    blocks = (depth - 2) // 2
    return Run(
        Setting(
            Architecture(f"ResNet-{depth}×{width}", blocks, width, blocks * float(width) ** 2, f"{depth}x{width}"),
            (("data", row["data"]),),
            decay=number(row, "wd"),
            batch=256,
            examples=number(row, "ne") * TRAINING_IMAGES,
        ),
        rate=float(f"{number(row, 'lr') / (1 - momentum):.6g}"),
        costs={
            "validation error": math.inf if diverged else 100 * (1 - accuracy),
            "log training loss": math.inf if diverged else math.log(loss),
        },
        seed=f"momentum {momentum:g}",
        finished=yes(row, "done") or diverged,
    )


LAYOUTS.add("resnet-cifar-grid")(
    Layout(
        header=frozenset({"data", "depth", "width", "ne", "lr", "mo", "wd", "done", "loss", "acc", "nll"}),
        read=residual_grid,
        metrics=(Metric("validation error", "points", 10.0), Metric("log training loss", "log units", 1.0)),
        optimizer="momentum",
        source="logs in github.com/cs-giung/giung2-dev, commit b37a3471, parsed",
        build=build_residual,
        notes=(
            "rates are lr/(1 - momentum), runs at momentum 0.7, 0.9 and 0.97 repeat each other; those at 0.99 are left "
            "out: their steps average over 100 gradients, which is another recipe",
        ),
    )
)


def language_model(row: Mapping[str, str]) -> Run:
    """A decoder-only language model of the Step Law runs; the cost is the smoothed training loss in nats a token."""
    layers, hidden = int(number(row, "numl")), int(number(row, "h"))
    heads, inner = int(number(row, "numh")), int(number(row, "ffnh"))
    return Run(
        Setting(
            Architecture(
                f"{number(row, 'N') / 1e6:.0f}M",
                layers,
                hidden,
                number(row, "N"),
                f"{layers}x{hidden}x{heads}x{inner}",
            ),
            batch=number(row, "bs") * SEQUENCE,
            examples=number(row, "D"),
            decay=0.1,
        ),
        rate=number(row, "lr"),
        costs={"loss": cost(row, "smooth loss")},
    )


LAYOUTS.add("step-law")(
    Layout(
        header=frozenset({"h", "ffnh", "numh", "numl", "lr", "bs", "ti", "D", "N", "smooth loss"}),
        read=language_model,
        metrics=(Metric("loss", "nats", 0.5),),
        optimizer="adamw",
        source="github.com/step-law/steplaw (arXiv 2503.04715), dense models",
        build=build_decoder,
        unread=frozenset({"loss", "exp_name", "D/N"}),
        notes=("one epoch, so that the training loss is as good as a validation loss",),
    )
)

OPTIONAL = frozenset(
    {
        "accuracy", "loss", "network", "depth", "width", "parameters", "momentum", "decay", "batch", "steps",
        "examples", "seed", "recipe", "data", "optimizer", "schedule", "finished",
    }
)  # fmt: skip
RECIPE = ("recipe", "data", "optimizer", "schedule")


def own(row: Mapping[str, str]) -> Run:
    """A run of a user's file: ``lr``, ``loss`` or ``accuracy``, and whatever else says what was trained and how."""
    if not ("loss" in row or "accuracy" in row):
        raise ValueError(f"no column 'loss' or 'accuracy' among {', '.join(row)}: how did the runs end?")
    depth, width, parameters, decay, batch, steps, examples, momentum = (
        number(row, column, zero=column in ("decay", "momentum")) if row.get(column, "").strip() else None
        for column in ("depth", "width", "parameters", "decay", "batch", "steps", "examples", "momentum")
    )
    momentum = momentum or 0.0
    if momentum >= 1:
        raise ValueError(f"column 'momentum' holds {momentum:g}: it must be at least 0 and below 1")
    if examples is None and steps is not None:
        examples = steps * (batch or 1)
    network = row.get("network", "").strip()
    sizes = [f"{what} {size:g}" for what, size in (("depth", depth), ("width", width)) if size is not None]
    costs = {"loss": cost(row, "loss")} if "loss" in row else {}
    if "accuracy" in row:
        accuracy = cost(row, "accuracy")
        if not 0 <= accuracy <= 1 and math.isfinite(accuracy):
            raise ValueError(f"column 'accuracy' holds {accuracy:g}: write it as a share of 1")
        costs["error"] = math.inf if math.isinf(accuracy) else 100 * (1 - accuracy)
    return Run(
        Setting(
            Architecture(network or ", ".join(sizes) or "the network", depth, width, parameters, network),
            tuple((column, row[column].strip()) for column in RECIPE if row.get(column, "").strip()),
            decay=decay,
            batch=batch,
            examples=examples,
        ),
        rate=float(f"{number(row, 'lr') / (1 - momentum):.6g}"),
        costs=costs,
        seed=row.get("seed", "").strip(),
        finished=not row.get("finished", "").strip() or yes(row, "finished"),
    )


LAYOUTS.add(OWN)(
    Layout(
        header=frozenset({"lr"}),
        read=own,
        metrics=(Metric("error", "points", 10.0), Metric("loss", "nats", 0.5)),
        optimizer="",
        source="your own file",
        build=build_target,
        optional=OPTIONAL,
    )
)
