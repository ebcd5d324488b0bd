"""``dagscale demo``: the main job from end to end on embedded data, against what people do today."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dagscale.bench.data import Dataset, load
from dagscale.bench.data.text import Text, library_text
from dagscale.models import sample
from dagscale.models import targets as spaces
from dagscale.pictures.files import check_path, save
from dagscale.planning.make import plan
from dagscale.progress import counted
from dagscale.searching import search
from dagscale.shown import finite, load_rich
from dagscale.training.engine import train
from dagscale.training.recipe import Recipe
from dagscale.training.schedules import cosine

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


@dataclass(frozen=True)
class Family:
    """Networks of one kind, which all train alike.

    Attributes:
        title: what they are called in the picture.
        base: the small network that is searched.
        targets: the networks to plan for, under a seed.
        data: what they train on.
        recipe: how they train.
        grid: learning rates of a full search, ascending; it is widened where the best lies at an end.
        seeds: training runs of each network at each rate.
        plans: how each way but the search plans, as arguments of `dagscale.plan`.
    """

    title: str
    base: str
    targets: Callable[[int], tuple[str, ...]]
    data: Callable[[], Dataset | Text]
    recipe: Callable[[], Recipe]
    grid: tuple[float, ...]
    seeds: int
    plans: Mapping[str, Mapping[str, Any]]

    def load(self, target: str, seed: int) -> tuple[nn.Module, Any]:
        """A network under a seed, and example inputs."""
        return spaces.load(target, data=self.data(), seed=seed)


DEFAULT = {"init": "keep", "law": "none"}


@cache
def _digits() -> Dataset:
    """Handwritten digits."""
    return load("digits")


def _graphs(title: str, space: str, *, width: int, epochs: int, count: int) -> Family:
    """So many random DAGs, trained on digits under SGD."""

    def recipe() -> Recipe:
        data = _digits()
        return Recipe((data.x, data.y), cross_entropy, batch_size=32, epochs=epochs)

    return Family(
        title, f"{space}:2?width={width}",
        lambda seed: sample(space, vertices=5, count=count, seed=seed, width=width),
        _digits, recipe, tuple(2.0 ** (k / 2) for k in range(-10, 1)), 2,
        {"default": DEFAULT, "released": {"init": "released", "law": "released"}, "plan": {}},
    )  # fmt: skip


@cache
def _source() -> Text:
    """Python source, as bytes."""
    return library_text(32, limit=4096)


def _language_recipe() -> Recipe:
    data = _source()
    return Recipe(
        (data.x, data.y), data.loss, torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1, clip=1.0, batch_size=16,
        steps=60, schedule=cosine(warmup=0.1),
    )  # fmt: skip


FAMILIES = {
    "lm": Family(
        "language models, AdamW", "lm:1?width=32", lambda seed: ("lm:3?width=64", "lm:3?width=32", "lm:1?width=64"),
        _source, _language_recipe, tuple(2.0**k for k in range(-8, -3)), 1,
        {"default": DEFAULT, "plan": {"init": "moments", "law": "none", "width": "mup", "depth": "completep"}},
    ),
    "cnn": _graphs("CNN graphs, SGD", "cnn", width=12, epochs=3, count=4),
    "mlp": _graphs("MLP graphs, SGD", "mlp", width=64, epochs=1, count=6),
}  # fmt: skip
"""By the prefix of their names; those that take longest come first, so that no core waits for another at the end."""

WAYS = ("default", "released", "plan", "grid")
NAMES = {
    "default": "base's rate, author's init",
    "released": "rule of the paper's code",
    "plan": "dagscale's plan",
    "grid": "grid search on each",
}


@dataclass(frozen=True)
class Outcome:
    """One network: what each way chose, and the final training loss it came to (None if it diverged).

    The rule of the paper's code is for SGD alone, so a language model has no entry for it.
    """

    target: str
    lr: dict[str, float]
    loss: dict[str, float | None]
    band: tuple[float, float]


def run(out: Path, *, seed: int = 0, progress: bool = False) -> tuple[list[Outcome], Path]:
    """Train everything, and draw it into the folder ``out``, which exists.

    Returns:
        An outcome for each network, and the picture's path.

    Raises:
        DagscaleError: if the picture cannot be written.
    """
    picture = check_path(out / "demo.png")
    total = sum(len(family.targets(seed)) for family in FAMILIES.values())
    outcomes = []
    with counted("training", total, progress) as bar:
        for outcome in _outcomes(seed):
            outcomes.append(outcome)
            bar.advance()
    save(lambda: figure(outcomes), picture)
    return outcomes, picture


def to_dict(outcomes: list[Outcome], picture: Path) -> dict[str, Any]:
    """As plain data."""
    return {"outcomes": [asdict(o) for o in outcomes], "summary": summary(outcomes), "picture": str(picture)}


def _outcomes(seed: int) -> Iterator[Outcome]:
    """Every network, trained each way. Runs are spread over the machine's cores."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=-1, return_as="generator") as parallel:
        jobs = [
            (space, init) for space, family in FAMILIES.items() for init in {_init(p) for p in family.plans.values()}
        ]
        found = parallel(delayed(_base)(space, init, seed) for space, init in jobs)
        bases = dict(zip(jobs, found, strict=True))
        chosen = [(space, target) for space, family in FAMILIES.items() for target in family.targets(seed)]
        yield from parallel(
            delayed(_outcome)(space, target, {init: lr for (own, init), lr in bases.items() if own == space}, seed)
            for space, target in chosen
        )


def _init(options: Mapping[str, Any]) -> str:
    """The init that a plan with these options has, under which its base is searched."""
    return str(options.get("init", "moments"))


def _base(space: str, init: str, seed: int) -> float:
    """The small network's good rate, found as `dagscale.search` finds it."""
    torch.set_num_threads(1)
    family = FAMILIES[space]
    model, _ = family.load(family.base, seed)
    return search(model, family.recipe(), init=init, seeds=family.seeds, seed=seed).lr


def _outcome(space: str, target: str, rates: dict[str, float], seed: int) -> Outcome:
    """One network trained every way, from the bases' rates by init."""
    torch.set_num_threads(1)
    family = FAMILIES[space]
    recipe, base, (model, inputs) = family.recipe(), family.load(family.base, seed), family.load(target, seed)
    lr, loss = {}, {}
    for way, options in family.plans.items():
        made = plan(model, inputs, base=base, base_lr=rates[_init(options)], recipe=recipe, **options)
        runs = []
        for k in range(seed, seed + family.seeds):
            trial, _ = family.load(target, k)
            made.init_(trial, seed=k)
            runs.append(train(trial, recipe, made.param_groups(trial), seed=k).loss)
        lr[way], loss[way] = made.lr, finite(statistics.fmean(runs))
    found = search(
        model, recipe, init="moments", grid=family.grid, seeds=family.seeds, seed=seed, method="grid", widen=2
    )
    lr["grid"], loss["grid"] = found.lr, found.loss
    return Outcome(target, lr, loss, found.band)


def summary(outcomes: list[Outcome]) -> dict[str, dict[str, float | None]]:
    """For each way, over the networks that it has an answer for: how much its loss exceeds that of a grid search
    (geometric mean and worst ratio, minus 1), on how many networks it diverged, and how many octaves its rate is off
    (rms)."""
    rows: dict[str, dict[str, float | None]] = {}
    for way in WAYS:
        own = [o for o in outcomes if way in o.loss]
        excess = [_excess(o, way) for o in own]
        octaves = [math.log2(o.lr[way] / o.lr["grid"]) for o in own]
        rows[way] = {
            "mean_excess": finite(_mean(excess) - 1),
            "worst_excess": finite(max(excess) - 1),
            "diverged": sum(o.loss[way] is None for o in own),
            "rms_octaves": math.sqrt(statistics.fmean(x * x for x in octaves)),
        }
    return rows


def table(outcomes: list[Outcome]) -> Table:
    """One row for each network, with the loss and the rate of each way."""
    load_rich()
    from rich import box
    from rich.table import Table

    made = Table(title="final training loss (learning rate)", box=box.SIMPLE_HEAD)
    made.add_column("network", overflow="fold")
    for way in WAYS:
        made.add_column(NAMES[way], justify="right")
    for o in outcomes:
        made.add_row(_short(o.target), *(cell(o, way) for way in WAYS))
    made.add_section()
    rows = summary(outcomes)
    made.add_row("mean loss above the grid search's", *(_percent(rows[way]["mean_excess"]) for way in WAYS))
    made.add_row("worst", *(_percent(rows[way]["worst_excess"]) for way in WAYS))
    made.add_row("rate off by a factor of (rms)", *(f"{2 ** (rows[way]['rms_octaves'] or 0):.2f}" for way in WAYS))
    return made


def cell(outcome: Outcome, way: str) -> str:
    """The loss and, in brackets, the rate of a way on a network; a dash where it has no answer."""
    if way not in outcome.loss:
        return "–"
    loss = outcome.loss[way]
    return f"{'diverged' if loss is None else f'{loss:.3f}'} ({outcome.lr[way]:.2g})"


def sentence(outcomes: list[Outcome]) -> str:
    """What the figures show, whatever that is."""
    rows = summary(outcomes)
    order = sorted(WAYS[:3], key=lambda way: (_inf(rows[way]["mean_excess"]), _inf(rows[way]["worst_excess"])))
    told = "; ".join(
        f"{NAMES[way]} {_percent(rows[way]['mean_excess'])} (worst {_percent(rows[way]['worst_excess'])})"
        for way in order
    )
    return f"Loss above a grid search on each of {len(outcomes)} networks, least first: {told}."


COLOURS = {"default": "#868e96", "released": "#e8590c", "plan": "#1c7ed6"}


def figure(outcomes: list[Outcome]) -> Figure:
    """A panel for each kind of network and a row for each way: one dot for each network, and their mean as a bar."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 5.4), layout="constrained")
    axes = drawn.subplots(len(FAMILIES), 1, sharex=True)
    ratios = [x for o in outcomes for way in WAYS[:3] if way in o.loss and math.isfinite(x := _excess(o, way))]
    low, high = min(0.9, *ratios) / 1.03, max(2.0, *ratios) * 1.1
    for axis, (space, family) in zip(axes, FAMILIES.items(), strict=True):
        own = [o for o in outcomes if o.target.startswith(f"{space}:")]
        ways = [way for way in WAYS[:3] if own and way in own[0].loss]
        for row, way in enumerate(ways):
            values = [_excess(o, way) for o in own]
            inside = [min(value, high / 1.05) for value in values]
            for value, at in zip(values, inside, strict=True):
                axis.plot(at, row, "o" if math.isfinite(value) else "x", color=COLOURS[way], alpha=0.6, ms=7)
            mean = _mean(values)
            if math.isfinite(mean):
                axis.plot([mean, mean], [row - 0.3, row + 0.3], color=COLOURS[way], lw=3)
            axis.annotate(
                f"mean {_percent(finite(mean - 1))}", (1.01, row), xycoords=("axes fraction", "data"), va="center",
                color=COLOURS[way],
            )  # fmt: skip
        axis.axvline(1, color="black", lw=1.5)
        axis.set_yticks(range(len(ways)), [NAMES[way] for way in ways])
        for label, way in zip(axis.get_yticklabels(), ways, strict=True):
            label.set_color(COLOURS[way])
        axis.set_ylim(len(ways) - 0.4, -0.6)
        axis.set_title(f"{len(own)} {family.title}", loc="left", fontsize=10, weight="bold")
        axis.set(xscale="log", xlim=(low, high))
        axis.grid(axis="x", alpha=0.3)
    ticks = [t for t in (0.8, 1, 1.25, 1.5, 2, 3, 5, 10, 20) if low <= t <= high]
    axes[-1].set_xticks(ticks, [f"{t:g} ×" for t in ticks])
    axes[-1].set_xticks([], minor=True)
    axes[-1].set_xlabel(
        "final training loss, divided by the loss after a full grid search on the same network\n"
        "one dot a network, a bar for their mean; a cross at the right end: training diverged"
    )
    axes[0].annotate(
        "black line: a full grid search on each network; right of it is worse", (1, 0.5), (14, 0),
        textcoords="offset points", va="center", fontsize=9, arrowprops={"arrowstyle": "->"},
    )  # fmt: skip
    return drawn


def _short(target: str) -> str:
    """A network's name without the options that it shares with its base."""
    base = FAMILIES[target.partition(":")[0]].base
    return target.removesuffix(base[base.index("?") :])


def _excess(outcome: Outcome, way: str) -> float:
    """The way's loss over the grid search's; infinite if it diverged."""
    return _inf(outcome.loss[way]) / _inf(outcome.loss["grid"])


def _mean(ratios: list[float]) -> float:
    """Geometric mean; infinite where one ratio is."""
    return math.exp(statistics.fmean(map(math.log, ratios))) if all(map(math.isfinite, ratios)) else math.inf


def _inf(value: float | None) -> float:
    return math.inf if value is None else value


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{value:+.1%}"
