"""``dagscale verify``: learning rates predicted by each method against those found by training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn.functional import cross_entropy

from dagscale.data import Dataset, load
from dagscale.errors import DagscaleError
from dagscale.inits import INITS
from dagscale.laws import LAWS
from dagscale.plan import Plan, plan
from dagscale.registry import Registry
from dagscale.search import find_band
from dagscale.spaces import sample, targets
from dagscale.subject import Subject
from dagscale.sweep import Run, Store, sweep
from dagscale.trace import trace
from dagscale.train import train

if TYPE_CHECKING:
    from rich.table import Table

TOLERANCE = 0.05
"""The band of good rates: loss within 5 % of the best."""

RESAMPLES = 1000
"""Bootstrap resamples of the architectures."""


@dataclass(frozen=True)
class Suite:
    """A family of architectures with one base.

    Attributes:
        base: the base network's TARGET.
        members: (count, seed) → TARGETs.
        grid: exponents of 2, lowest and highest, of the grid of rates, half an octave apart.
    """

    base: str
    members: Callable[[int, int], tuple[str, ...]]
    grid: tuple[float, float]


SUITES: Registry[Suite] = Registry("suite")


def _chains(space: str, options: str) -> Callable[[int, int], tuple[str, ...]]:
    """Chains with 2 to ``count + 1`` hidden layers, stem included."""

    def members(count: int, seed: int) -> tuple[str, ...]:
        codes = ("_".join("0" * v + "2" for v in range(n)) for n in range(1, count + 1))
        return tuple(f"{space}:{code}?{options}" for code in codes)

    return members


def _kernels(count: int, seed: int) -> tuple[str, ...]:
    """Random CNN DAGs, kernel sizes 3, 5 and 7 in turn."""
    codes = [t.split("?")[0] for t in sample("cnn", vertices=5, count=count, seed=seed)]
    return tuple(f"{code}?width=12&kernel={(3, 5, 7)[i % 3]}" for i, code in enumerate(codes))


def _dags(count: int, seed: int) -> tuple[str, ...]:
    return sample("mlp", vertices=5, count=count, seed=seed, width=64)


SUITES.add("mlp-depth")(Suite("mlp:2?width=64", _chains("mlp", "width=64"), (-9.0, 2.0)))
SUITES.add("mlp-dag")(Suite("mlp:2?width=64", _dags, (-9.0, 2.0)))
SUITES.add("cnn-dag")(Suite("cnn:2?width=12", _kernels, (-8.0, 3.0)))


@dataclass(frozen=True)
class Method:
    """A way to choose a rate: a law, with the init that both base and target get."""

    law: str
    init: str

    @property
    def name(self) -> str:
        return f"{self.law} / {self.init}"


METHODS = (
    *(
        Method(law, init)
        for init in ("moments", "in-degree")
        for law in ("none", "paths", "walk", "covariance", "function-change", "curvature")
    ),
    Method("released", "released"),
)


@dataclass(frozen=True)
class Row:
    """How one method did over a suite's architectures.

    Attributes:
        pearson_r, slope: of log predicted on log found, against the middle of the band.
        pearson_r_interval: 95 % bootstrap interval over architectures.
        pearson_r_edge, pearson_r_argmin: against the band's upper edge, and the paper's argmin.
        rms_octaves: distance of predicted from found.
        within_half_octave: share of architectures.
        regret_mean, regret_max: relative excess of the loss at the predicted rate over the best of the grid.
        regret_mean_interval: 95 % bootstrap interval.
        steps: optimiser steps that the method needs, the base's search included; measured laws' passes count as
            steps of three passes.
    """

    suite: str
    method: str
    pearson_r: float | None
    pearson_r_interval: tuple[float, float] | None
    pearson_r_edge: float | None
    pearson_r_argmin: float | None
    slope: float | None
    rms_octaves: float
    within_half_octave: float
    regret_mean: float | None
    regret_mean_interval: tuple[float, float] | None
    regret_max: float | None
    steps: int


@dataclass(frozen=True)
class Truth:
    """What training found for one architecture and init: the curve over the grid, and what is read off it."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    middle: float
    edge: float
    argmin: float
    halves: tuple[float, float]
    """The middles that either half of the seeds gives: the noise of the yardstick."""

    def regret(self, lr: float) -> float:
        """Relative excess loss at ``lr``, interpolated in log rate; beyond the grid, that of its end."""
        logs = [math.log(r) for r in self.rates]
        x = min(max(math.log(lr), logs[0]), logs[-1])
        i = min(max(1, next((k for k, a in enumerate(logs) if a >= x), 1)), len(logs) - 1)
        share = (x - logs[i - 1]) / (logs[i] - logs[i - 1])
        left, right = self.losses[i - 1], self.losses[i]
        value = left if share == 0 else right if share == 1 else left + share * (right - left)
        return value / min(self.losses) - 1


def verify(
    suite: str,
    *,
    data: str = "digits",
    architectures: int = 12,
    seeds: int = 2,
    epochs: int = 1,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    store: str | Path,
    scheduler: str | None = None,
    progress: bool = False,
) -> tuple[list[Row], dict[str, dict[str, Truth]]]:
    """Compare every method on a suite.

    The base and every architecture are trained over the whole grid under each init, which gives the truth; each
    method's rate is the middle of the base's band times the law's factors. All of it goes through a sweep: killed
    and called again, it goes on where it was.

    Args:
        data, limit: the data set and how much of it.
        architectures: how many members of the suite.
        seeds: runs a rate; at least 2.
        epochs, batch_size: length of each run.
        seed: chooses the architectures, and is the first run's seed.
        store: the sweep's file.
        scheduler: a Dask scheduler's address.

    Returns:
        The rows, and the truth by init and architecture.

    Raises:
        UnknownNameError: for an unknown suite.
        DagscaleError: if runs failed, or too few architectures or seeds are asked for.
    """
    chosen = SUITES[suite]
    if architectures < 3 or seeds < 2:
        raise DagscaleError("verify needs at least 3 architectures and 2 seeds to correlate anything")
    members = (chosen.base, *chosen.members(architectures, seed))
    common = {"data": data, "limit": limit, "batch_size": batch_size, "epochs": epochs}
    low, high = chosen.grid
    grid = [2.0 ** (low + k / 2) for k in range(round(2 * (high - low)) + 1)]
    inits = sorted({m.init for m in METHODS})
    trainings = {
        (init, a, lr, k): Run(a, lr, init, seed=seed + k, options={"kind": "train"}, **common)  # type: ignore[arg-type]
        for init in inits for a in members for lr in grid for k in range(seeds)
    }  # fmt: skip
    predictions = {
        (m, a): Run(a, 1.0, m.init, seed=seed, options={"kind": "law", "law": m.law, "base": chosen.base}, **common)  # type: ignore[arg-type]
        for m in METHODS for a in members[1:]
    }  # fmt: skip
    sweep([*trainings.values(), *predictions.values()], execute, store, scheduler=scheduler, progress=progress)
    with Store(store) as book:
        asked = [*trainings.values(), *predictions.values()]
        results = {run.key: result for run, result in book.results(asked) if isinstance(result, Mapping)}
    failed = [r for r in (*trainings.values(), *predictions.values()) if r.key not in results]
    if failed:
        raise DagscaleError(
            f"{len(failed)} runs failed, the first {failed[0].architecture} ({dict(failed[0].options)}): "
            f"see `dagscale sweep status {store}`"
        )
    truths = {
        init: {
            a: _truth(grid, [[results[trainings[init, a, lr, k].key]["loss"] for k in range(seeds)] for lr in grid])
            for a in members
        }
        for init in inits
    }
    search_steps = {
        init: sum(results[trainings[init, chosen.base, lr, k].key]["steps"] for lr in grid for k in range(seeds))
        for init in inits
    }
    rows = []
    for method in METHODS:
        base = truths[method.init][chosen.base].middle
        answers = [results[predictions[method, a].key] for a in members[1:]]
        predicted = [base * answer["factor"] for answer in answers]
        cost = search_steps[method.init] + sum(round(answer["forwards"] / 3) for answer in answers)
        rows.append(_row(suite, method.name, predicted, [truths[method.init][a] for a in members[1:]], cost))
    return rows, truths


def _truth(grid: list[float], losses: list[list[float]]) -> Truth:
    means = [sum(row) / len(row) for row in losses]
    low, high = find_band(grid, means, TOLERANCE)
    half = len(losses[0]) // 2
    halves = []
    for part in (slice(0, half), slice(half, None)):
        a, b = find_band(grid, [sum(row[part]) / len(row[part]) for row in losses], TOLERANCE)
        halves.append(math.sqrt(a * b))
    best = grid[min(range(len(grid)), key=means.__getitem__)]
    return Truth(tuple(grid), tuple(means), math.sqrt(low * high), high, best, (halves[0], halves[1]))


def _row(suite: str, name: str, predicted: list[float], truth: list[Truth], steps: int) -> Row:
    import numpy as np

    p = np.log2(predicted)
    middle, edge, argmin = (np.log2([getattr(t, what) for t in truth]) for what in ("middle", "edge", "argmin"))
    regret = np.array([t.regret(lr) for t, lr in zip(truth, predicted, strict=True)])
    rng = np.random.default_rng(0)
    picks = rng.integers(len(p), size=(RESAMPLES, len(p)))
    rs = [r for rows in picks if (r := _correlation(p[rows], middle[rows])) is not None]
    finite = bool(np.isfinite(regret).all())
    return Row(
        suite=suite,
        method=name,
        pearson_r=_correlation(p, middle),
        pearson_r_interval=_interval(rs) if len(rs) > RESAMPLES / 2 else None,
        pearson_r_edge=_correlation(p, edge),
        pearson_r_argmin=_correlation(p, argmin),
        slope=float(np.polyfit(middle, p, 1)[0]) if np.ptp(p) > 1e-9 and np.ptp(middle) > 1e-9 else None,
        rms_octaves=float(np.sqrt(np.mean((p - middle) ** 2))),
        within_half_octave=float(np.mean(np.abs(p - middle) <= 0.5)),
        regret_mean=float(regret.mean()) if finite else None,
        regret_mean_interval=_interval([float(regret[rows].mean()) for rows in picks]) if finite else None,
        regret_max=float(regret.max()) if finite else None,
        steps=steps,
    )


def noise_floor(truths: Iterable[Truth]) -> tuple[float | None, float]:
    """Pearson r and rms octaves between the middles of the two halves of the seeds: no method can beat this."""
    import numpy as np

    a, b = np.log2([t.halves for t in truths]).T
    return _correlation(a, b), float(np.sqrt(np.mean((a - b) ** 2)))


def _correlation(a: Any, b: Any) -> float | None:
    import numpy as np

    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 1e-9 and np.ptp(b) > 1e-9 else None


def _interval(values: list[float]) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


# --- one run ------------------------------------------------------------------------------------------------


def execute(run: Run) -> dict[str, Any]:
    """A training run's final loss, or a law's factor with what it cost."""
    if run.options["kind"] == "law":
        return _factor(run)
    data = _data(run.data, run.limit)
    model, _ = targets.load(run.architecture, data=data, seed=run.seed)
    made = _plan(run.architecture, run.init, run.data, run.limit)
    made.init_(model, seed=run.seed)
    groups = made.param_groups(model, lr=run.lr)
    done = train(
        model, data.x, data.y, params=groups, optimizer=run.optimizer, epochs=run.epochs or 1,
        batch_size=run.batch_size, seed=run.seed,
    )  # fmt: skip
    return {"loss": done.loss, "steps": done.steps}


def _factor(run: Run) -> dict[str, Any]:
    base, target = (
        _subject(a, run.init, run.data, run.limit, run.batch_size) for a in (run.options["base"], run.architecture)
    )
    law = LAWS[run.options["law"]]
    factor = math.prod(law.factors(base, target).values())
    return {"factor": factor, "forwards": law.cost(target) if law.cost is not None else 0}


@cache
def _data(source: str, limit: int | None) -> Dataset:
    return load(source, limit=limit)


@cache
def _plan(architecture: str, init: str, source: str, limit: int | None) -> Plan:
    data = _data(source, limit)
    model, inputs = targets.load(architecture, data=data)
    return plan(model, inputs, base_lr=1.0, law="none", init=init, data=(data.x, data.y), loss=cross_entropy)


@cache
def _subject(architecture: str, init: str, source: str, limit: int | None, batch_size: int) -> Subject:
    data = _data(source, limit)
    model, inputs = targets.load(architecture, data=data)
    subject = Subject(trace(model, inputs), model, inputs, (data.x, data.y), cross_entropy, batch_size=batch_size)
    return replace(subject, fills=INITS[init](subject))


# --- faces --------------------------------------------------------------------------------------------------


def to_dict(rows: list[Row]) -> list[dict[str, Any]]:
    """The rows as plain data."""
    return [asdict(row) for row in rows]


def floor_rows(suite: str, floors: dict[str, tuple[float | None, float]]) -> list[dict[str, Any]]:
    """The noise floors as rows of their own."""
    return [
        {"suite": suite, "method": f"noise floor / {init}", "pearson_r": r, "rms_octaves": rms}
        for init, (r, rms) in floors.items()
    ]


def table(rows: list[Row], floors: dict[str, tuple[float | None, float]]) -> Table:
    """The rows to print, with the noise floor of each init's truth."""
    from rich import box
    from rich.table import Table

    made = Table(title=f"{rows[0].suite}: predicted against found", box=box.SIMPLE_HEAD)
    made.add_column("law / init", no_wrap=True)
    for name in ("r", "95 %", "slope", "rms oct.", "≤ ½", "regret", "max", "steps"):
        made.add_column(name, justify="right")
    for row in rows:
        interval = "" if row.pearson_r_interval is None else "{:.2f} … {:.2f}".format(*row.pearson_r_interval)
        made.add_row(
            row.method, _number(row.pearson_r), interval, _number(row.slope), f"{row.rms_octaves:.2f}",
            f"{row.within_half_octave:.0%}", _percent(row.regret_mean), _percent(row.regret_max), f"{row.steps:,}",
        )  # fmt: skip
    told = "; ".join(f"{init} r {_number(r)}, {rms:.2f} octaves" for init, (r, rms) in floors.items())
    made.caption = f"noise floor, one half of the seeds against the other: {told}"
    return made


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.1%}"
