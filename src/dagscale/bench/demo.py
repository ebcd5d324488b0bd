"""``dagscale demo``: the main job from end to end on embedded data, against what people do today."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from dagscale.bench.data import Dataset, load
from dagscale.models import sample
from dagscale.models import targets as spaces
from dagscale.pictures.files import check_path, save
from dagscale.planning.base import Base
from dagscale.planning.make import plan
from dagscale.searching import search
from dagscale.shown import load_rich
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Family:
    """A base network (one hidden layer), the options of its targets, and how long all of them train."""

    base: str
    options: dict[str, int]
    epochs: int


FAMILIES = {
    "mlp": Family("mlp:2?width=64", {"width": 64}, epochs=1),
    "cnn": Family("cnn:2?width=12", {"width": 12}, epochs=3),
}
PER_FAMILY = 6
BATCH, SEEDS = 32, 4
GRID = tuple(2.0 ** (k / 2) for k in range(-12, 3))
WAYS = ("default", "released", "plan", "grid")


@dataclass(frozen=True)
class Outcome:
    """One architecture: what each way chose, and the final training loss it came to (None if it diverged)."""

    target: str
    lr: dict[str, float]
    loss: dict[str, float | None]
    band: tuple[float, float]


def run(out: Path, *, seed: int = 0, progress: bool = False) -> tuple[list[Outcome], Path]:
    """Train everything, and draw it into the folder ``out``, which exists.

    Returns:
        An outcome an architecture, and the picture's path.

    Raises:
        DagscaleError: if the picture cannot be written.
    """
    load_rich()
    from rich.console import Console
    from rich.progress import track

    picture = check_path(out / "demo.png")
    outcomes = list(
        track(
            _outcomes(load("digits"), seed), total=len(FAMILIES) * PER_FAMILY, description="training",
            console=Console(stderr=True), transient=True, disable=not progress,
        )
    )  # fmt: skip
    save(lambda: figure(outcomes), picture)
    return outcomes, picture


def to_dict(outcomes: list[Outcome], picture: Path) -> dict[str, Any]:
    """As plain data."""
    return {"outcomes": [asdict(o) for o in outcomes], "summary": summary(outcomes), "picture": str(picture)}


def _outcomes(data: Dataset, seed: int) -> Iterator[Outcome]:
    """Every architecture, trained each way. Runs are spread over the machine's cores."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=-1, return_as="generator") as parallel:
        jobs = [(family, init) for family in FAMILIES for init in ("moments", "released")]
        rates = dict(zip(jobs, parallel(delayed(_base)(base, init, data, seed) for base, init in jobs), strict=True))
        chosen = [
            (family, target)
            for family, about in FAMILIES.items()
            for target in sample(family, vertices=5, count=PER_FAMILY, seed=seed, **about.options)
        ]
        yield from parallel(
            delayed(_outcome)(f, t, rates[f, "moments"], rates[f, "released"], data, seed) for f, t in chosen
        )


def _base(family: str, init: str, data: Dataset, seed: int) -> float:
    """The base network's maximal learning rate, in the middle of its band."""
    model, _ = spaces.load(FAMILIES[family].base, data=data, seed=seed)
    return _search(model, family, init, data, seed).lr


def _search(model: torch.nn.Module, family: str, init: str, data: Dataset, seed: int) -> Base:
    torch.set_num_threads(1)
    epochs = FAMILIES[family].epochs
    return search(
        model, data, init=init, grid=GRID, epochs=epochs, batch_size=BATCH, seeds=SEEDS, seed=seed, method="grid"
    )


def _outcome(family: str, target: str, base_lr: float, released_lr: float, data: Dataset, seed: int) -> Outcome:
    model, inputs = spaces.load(target, data=data, seed=seed)
    base = spaces.load(FAMILIES[family].base, data=data, seed=seed)
    torch.set_num_threads(1)
    recipe = Recipe((data.x, data.y), cross_entropy, batch_size=BATCH, epochs=FAMILIES[family].epochs)
    known: dict[str, Any] = {"data": (data.x, data.y), "loss": cross_entropy, "batch_size": BATCH}
    ways: dict[str, Callable[[], Any]] = {
        "default": lambda: plan(model, inputs, base=base, base_lr=base_lr, law="none", init="keep"),
        "released": lambda: plan(model, inputs, base=base, base_lr=released_lr, law="released", init="released"),
        "plan": lambda: plan(model, inputs, base=base, base_lr=base_lr, **known),
    }
    lr, loss = {}, {}
    for way, make in ways.items():
        made = make()
        runs = []
        for k in range(seed, seed + SEEDS):
            trial, _ = spaces.load(target, data=data, seed=k)
            made.init_(trial, seed=k)
            groups = made.param_groups(trial)
            done = train(trial, recipe, groups, seed=k)
            runs.append(done.loss)
        lr[way], loss[way] = made.lr, _finite(statistics.fmean(runs))
    found = _search(model, family, "moments", data, seed)
    lr["grid"], loss["grid"] = found.lr, found.loss
    return Outcome(target, lr, loss, found.band)


def summary(outcomes: list[Outcome]) -> dict[str, dict[str, float | None]]:
    """For each way, over all architectures: loss in excess of the grid search's best (geometric mean and worst ratio,
    minus 1), diverged runs, rms distance from the found rate in octaves."""
    rows: dict[str, dict[str, float | None]] = {}
    for way in WAYS:
        excess = [_inf(o.loss[way]) / _inf(o.loss["grid"]) for o in outcomes]
        octaves = [math.log2(o.lr[way] / o.lr["grid"]) for o in outcomes]
        mean = math.exp(statistics.fmean(map(math.log, excess))) if all(map(math.isfinite, excess)) else math.inf
        rows[way] = {
            "mean_excess": _finite(mean - 1),
            "worst_excess": _finite(max(excess) - 1),
            "diverged": sum(o.loss[way] is None for o in outcomes),
            "rms_octaves": math.sqrt(statistics.fmean(x * x for x in octaves)),
        }
    return rows


def table(outcomes: list[Outcome]) -> Table:
    """A row an architecture: the rate and the loss of each way."""
    load_rich()
    from rich import box
    from rich.table import Table

    made = Table(title="final training loss (learning rate) on digits", box=box.SIMPLE_HEAD)
    made.add_column("architecture", overflow="fold")
    heads = ("base's rate, PyTorch init", "released code's rule", "dagscale's plan", "grid search")
    for head in heads:
        made.add_column(head, justify="right")
    for o in outcomes:
        made.add_row(o.target.split("?")[0], *(f"{_text(o.loss[way])} ({o.lr[way]:.2g})" for way in WAYS))
    made.add_section()
    rows = summary(outcomes)
    made.add_row("mean loss over grid's", *(_percent(rows[way]["mean_excess"]) for way in WAYS))
    made.add_row("worst", *(_percent(rows[way]["worst_excess"]) for way in WAYS))
    made.add_row("octaves from found rate, rms", *(f"{rows[way]['rms_octaves']:.2f}" for way in WAYS))
    return made


def sentence(outcomes: list[Outcome]) -> str:
    """What the figures show, whatever that is."""
    rows = summary(outcomes)
    order = sorted(WAYS[:3], key=lambda way: (_inf(rows[way]["mean_excess"]), _inf(rows[way]["worst_excess"])))
    names = {"default": "the base's rate with PyTorch's init", "released": "the released rule", "plan": "the plan"}
    told = "; ".join(
        f"{names[way]} {_percent(rows[way]['mean_excess'])} (worst {_percent(rows[way]['worst_excess'])}, "
        f"rate {rows[way]['rms_octaves']:.2f} octaves off)"
        for way in order
    )
    return f"Loss above a grid search on each of {len(outcomes)} architectures, least first: {told}."


def figure(outcomes: list[Outcome]) -> Figure:
    """Left: predicted against found rate. Right: the loss of each way."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    styles = {"default": ("tab:gray", "s"), "released": ("tab:red", "^"), "plan": ("tab:blue", "o"), "grid": ("k", "_")}
    names = {"default": "base's rate", "released": "released rule", "plan": "plan", "grid": "grid search"}
    for way in WAYS[:3]:
        color, marker = styles[way]
        for o in outcomes:
            left.plot(o.lr["grid"], o.lr[way], marker, color=color, alpha=0.8)
    for o in outcomes:
        left.plot(o.band, (o.lr["plan"], o.lr["plan"]), "-", color="tab:blue", alpha=0.25)
    keys = [left.plot([], [], styles[way][1], color=styles[way][0])[0] for way in WAYS[:3]]
    left.legend(keys, [names[way] for way in WAYS[:3]], fontsize=8)
    rates = [o.lr[way] for o in outcomes for way in WAYS]
    ends = (min(rates) / 1.5, max(rates) * 1.5)
    left.plot(ends, ends, "k--", lw=0.8)
    left.set(
        xscale="log", yscale="log", xlabel="learning rate found by grid search (line: its 5 % band)",
        ylabel="learning rate predicted", title="predicted against found",
    )  # fmt: skip
    finite = [x for o in outcomes for x in o.loss.values() if x is not None]
    top = max(finite) * 1.3
    for way in WAYS:
        color, marker = styles[way]
        for i, o in enumerate(outcomes):
            value = o.loss[way]
            right.plot(i, top if value is None else value, marker if value is not None else "x", color=color, alpha=0.9,
                       label=names[way] if i == 0 else None, ms=12 if way == "grid" else 6)  # fmt: skip
    right.set_xticks(
        range(len(outcomes)), [o.target.split("?")[0] for o in outcomes], rotation=60, ha="right", fontsize=7
    )
    right.set(yscale="log", ylabel="final training loss (× at the top: diverged)", title="loss of each way")
    right.legend(fontsize=8)
    return drawn


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _inf(value: float | None) -> float:
    return math.inf if value is None else value


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{value:+.1%}"


def _text(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3f}"
