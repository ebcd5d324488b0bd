"""The maximal learning rate of a model on its data, by training copies of it over a grid of rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dagscale.errors import SearchError
from dagscale.picture import save
from dagscale.train import OPTIMIZERS, Groups, Loss, check_budget, check_examples, to_model, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress
    from rich.table import Table

GRIDS = {"sgd": (-10.0, 1.0), "momentum": (-13.0, -1.0), "adam": (-16.0, -4.0), "adamw": (-16.0, -4.0)}
"""Exponents of 2 between which the default grid of an optimiser runs, half an octave apart; SGD's for any other."""

WIDENING = 4
"""Rates that one widening adds on one side."""


class Examples(Protocol):
    """Anything with inputs and labels, such as `dagscale.data.Dataset`."""

    @property
    def x(self) -> Tensor:
        """Inputs, (n, …)."""

    @property
    def y(self) -> Tensor:
        """Labels, (n, …)."""


class Starter(Protocol):
    """What a search needs of a plan; `dagscale.Plan` has it."""

    def init_(self, model: nn.Module, *, seed: int) -> object:
        """Initialise in place."""

    def param_groups(self, model: nn.Module, *, lr: float) -> Groups:
        """Parameter groups at this overall rate."""


@dataclass(frozen=True)
class Point:
    """One rate of the curve.

    Args:
        lr: learning rate, per optimiser step.
        losses: final training loss of each seed; ``inf`` if it diverged.
        loss: their mean.
    """

    lr: float
    losses: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Found:
    """The answer of a search. Rates are per optimiser step, losses are final training losses.

    Args:
        lr: the rate to recommend: the geometric middle of the band.
        edge: the maximal learning rate: the upper end of the band.
        argmin: the rate tried with the smallest mean loss.
        loss: that loss.
        band: lower and upper end of the rates whose loss is within ``tolerance`` of the best, see `find_band`.
        curve: all rates tried, ascending.
        at_edge: an end of the band is still the first or last rate tried: the true one may lie outside.
        widened: how often the grid was widened.
        steps: optimiser steps of all runs together.
        seeds: runs at each rate.
        tolerance: relative width of the band in the loss.
        notes: what the plan says a reader should know, such as parameters that its init leaves as they were.
    """

    lr: float
    edge: float
    argmin: float
    loss: float
    band: tuple[float, float]
    curve: tuple[Point, ...]
    at_edge: bool
    widened: int
    steps: int
    seeds: int
    tolerance: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON; the loss of a diverged run is ``None``."""
        return {
            "lr": self.lr,
            "edge": self.edge,
            "argmin": self.argmin,
            "loss": self.loss,
            "band": list(self.band),
            "at_edge": self.at_edge,
            "widened": self.widened,
            "steps": self.steps,
            "seeds": self.seeds,
            "tolerance": self.tolerance,
            "notes": list(self.notes),
            "curve": [
                {"lr": p.lr, "loss": _or_none(p.loss), "losses": [_or_none(loss) for loss in p.losses]}
                for p in self.curve
            ],
        }

    def __str__(self) -> str:
        low, high = self.band
        remark = "; still at the edge of the grid, the true band may reach beyond it" if self.at_edge else ""
        return (
            f"learning rate {self.lr:.3g} (band {low:.3g} to {high:.3g}; best {self.argmin:.3g}, loss {self.loss:.4g}; "
            f"{len(self.curve)} rates × {self.seeds} seeds, {self.steps:,} steps, grid widened {self.widened}×{remark})"
        )

    def table(self) -> Table:
        """The curve as a rich table, the band marked."""
        from rich.table import Table
        from rich.text import Text

        caption = Text("\n".join([str(self), *(f"note: {note}" for note in self.notes)]))
        table = Table(
            title="final training loss by learning rate",
            caption=caption,
        )
        for name in ("lr", "mean loss", "lowest", "highest"):
            table.add_column(name, justify="right")
        table.add_column("")
        for point in self.curve:
            inside = self.band[0] <= point.lr <= self.band[1]
            mark = "◀ best" if point.lr == self.argmin else "in the band" if inside else ""
            losses = (point.loss, min(point.losses), max(point.losses))
            table.add_row(f"{point.lr:.3g}", *map(_loss_text, losses), mark, style="bold" if inside else "")
        return table

    def plot(self, path: str | Path) -> None:
        """Draw loss against rate into a ``.png``, ``.svg`` or ``.pdf`` file.

        Raises: DagscaleError if matplotlib is missing, the suffix is another, or the file cannot be written.
        """
        save(self._figure, path)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.add_subplot()
        finite = [point for point in self.curve if math.isfinite(point.loss)]
        axes.axvspan(*self.band, alpha=0.15, label=f"within {self.tolerance:.0%} of the best")
        axes.axvline(self.lr, linestyle="--", label=f"middle of the band, {self.lr:.3g}")
        axes.plot([point.lr for point in finite], [point.loss for point in finite], marker="o")
        axes.fill_between(
            [point.lr for point in finite],
            [min(point.losses) for point in finite],
            [max(point.losses) for point in finite],
            alpha=0.3,
        )
        lost = [point.lr for point in self.curve if not math.isfinite(point.loss)]
        if lost:
            top = max(point.loss for point in finite)
            axes.plot(lost, [top] * len(lost), marker="x", linestyle="", color="tab:red", label="diverged")
        axes.set(xlabel="learning rate", ylabel="final training loss", title=f"{self.seeds} seeds a rate")
        axes.set_xscale("log", base=2)
        axes.legend()
        return figure


def search(
    model: nn.Module,
    data: Examples | tuple[Tensor, Tensor],
    *,
    plan: Starter | None = None,
    init: str = "moments",
    loss: Loss = cross_entropy,
    optimizer: str | Callable[[Groups], Optimizer] = "sgd",
    grid: Iterable[float] | None = None,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 128,
    seeds: int = 3,
    seed: int = 0,
    tolerance: float = 0.05,
    widen: int = 4,
    progress: bool = False,
) -> Found:
    """Find the maximal learning rate of ``model`` and the one to recommend.

    A copy of the model is initialised and trained for every rate and seed; ``model`` itself never changes. The plan's
    learning rates keep their ratios, one overall rate is searched. While the best rate or an end of its
    band is the first or last of the grid, or all rates diverge, the grid is widened on that side.

    Args:
        model: on any device; see `dagscale.train.train` for the outputs it may have.
        data: a `dagscale.data.Dataset`, or ``(x, y)``.
        plan: initialises, and makes parameter groups; by default one with ``init`` and a single learning rate.
        init: name of the init of the default plan.
        loss: ``loss(output, y)``, a scalar that is a mean over the batch.
        optimizer: a name in ``dagscale.train.OPTIMIZERS``, or a function of parameter groups.
        grid: rates to try, per optimiser step; by default half an octave apart, by optimiser (``GRIDS``).
        epochs, steps, batch_size: length of each run, as for `dagscale.train.train`.
        seeds: runs at each rate; run k is initialised and fed with ``seed + k``, the same for all rates.
        seed: see above.
        tolerance: relative width of the band in the loss.
        widen: most times that the grid is widened, by ``WIDENING`` rates on each side in want.
        progress: show a progress bar on stderr.

    Raises:
        SearchError: if an argument or the data cannot be used, or every run at every rate diverged.
        DagscaleError: as the plan and `dagscale.train.train` raise.
    """
    x, y = data if isinstance(data, tuple) else (data.x, data.y)
    check_examples(x, y)
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise SearchError("x holds NaN or infinite values: clean the data first")
    check_budget(epochs=epochs, steps=steps, batch_size=batch_size)
    rates = _check_grid(default_grid(optimizer) if grid is None else grid)
    if seeds < 1:
        raise SearchError(f"seeds must be at least 1, got {seeds}")
    if widen < 0:
        raise SearchError(f"widen must be 0 or more, got {widen}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SearchError(f"tolerance must be 0 or more, got {tolerance}")
    if isinstance(optimizer, str):
        OPTIMIZERS[optimizer]  # unknown names raise before anything is trained
    if plan is None:
        plan = _default_plan(model, x[:batch_size], y[:batch_size], init, loss, optimizer, seed)
    spent = widened = 0
    with _progress(progress) as bar:
        task = bar.add_task("searching", total=len(rates) * seeds)

        def run(rate: float, k: int) -> float:
            nonlocal spent
            trial = _copy(model)
            plan.init_(trial, seed=k)
            done = train(
                trial, x, y, params=plan.param_groups(trial, lr=rate), optimizer=optimizer, loss=loss,
                epochs=epochs, steps=steps, batch_size=batch_size, seed=k,
            )  # fmt: skip
            spent += done.steps
            bar.advance(task)
            return done.loss

        def point(rate: float) -> Point:
            losses = tuple(run(rate, k) for k in range(seed, seed + seeds))
            return Point(rate, losses, sum(losses) / seeds)

        curve = [point(rate) for rate in rates]
        while widened < widen and (more := _beyond(curve, tolerance)):
            bar.update(task, total=(len(curve) + len(more)) * seeds)
            curve = sorted(curve + [point(rate) for rate in more], key=lambda found: found.lr)
            widened += 1
    if all(math.isinf(point.loss) for point in curve):
        raise SearchError(
            f"every rate from {curve[0].lr:.3g} to {curve[-1].lr:.3g} diverged: try a grid of lower rates, "
            "and see that the model's output at initialisation is finite"
        )
    notes = tuple(getattr(plan, "notes", ()))
    return _found(curve, tolerance, widened, spent, seeds, notes)


def default_grid(optimizer: str | Callable[[Groups], Optimizer]) -> tuple[float, ...]:
    """The rates tried for an optimiser: half an octave apart, ascending."""
    low, high = GRIDS.get(optimizer if isinstance(optimizer, str) else "sgd", GRIDS["sgd"])
    return tuple(2.0 ** (low + k / 2) for k in range(round(2 * (high - low)) + 1))


def find_band(rates: Sequence[float], losses: Sequence[float], tolerance: float) -> tuple[float, float]:
    """Lower and upper end of the rates around the best one whose loss is at most ``best + tolerance · |best|``.

    The band is contiguous. Between its last rate and the next one, the end is interpolated, the loss taken as linear in
    the logarithm of the rate; where the next loss is infinite, or there is no next rate, it is the last rate itself.

    Args:
        rates: ascending.
        losses: mean loss at each, ``inf`` where diverged; at least one finite.
        tolerance: relative, as 0.05.
    """
    best = min(range(len(losses)), key=losses.__getitem__)
    limit = losses[best] + tolerance * abs(losses[best])
    return _end(rates, losses, best, -1, limit), _end(rates, losses, best, 1, limit)


def _end(rates: Sequence[float], losses: Sequence[float], start: int, step: int, limit: float) -> float:
    """The band's end in the direction of ``step``."""
    last = start
    while 0 <= last + step < len(rates) and losses[last + step] <= limit:
        last += step
    beyond = last + step
    if not 0 <= beyond < len(rates) or math.isinf(losses[beyond]):
        return rates[last]
    share = (limit - losses[last]) / (losses[beyond] - losses[last])
    return math.exp((1 - share) * math.log(rates[last]) + share * math.log(rates[beyond]))


def _sides(curve: Sequence[Point], tolerance: float) -> tuple[bool, bool]:
    """Whether the band (or, where all diverged, the answer) reaches the lower, the upper end of the grid."""
    losses = [point.loss for point in curve]
    if all(math.isinf(loss) for loss in losses):
        return True, False
    low, high = find_band([point.lr for point in curve], losses, tolerance)
    return low <= curve[0].lr, high >= curve[-1].lr


def _beyond(curve: Sequence[Point], tolerance: float) -> list[float]:
    """Rates to add, in the grid's own spacing at that end; none if the band lies inside."""
    rates = [point.lr for point in curve]
    below, above = _sides(curve, tolerance)
    first = rates[1] / rates[0] if len(rates) > 1 else math.sqrt(2)
    last = rates[-1] / rates[-2] if len(rates) > 1 else math.sqrt(2)
    down = [rates[0] / first**k for k in range(WIDENING, 0, -1)] if below else []
    up = [rates[-1] * last**k for k in range(1, WIDENING + 1)] if above else []
    return [rate for rate in down + up if 0 < rate < math.inf]


def _found(
    curve: Sequence[Point], tolerance: float, widened: int, steps: int, seeds: int, notes: tuple[str, ...]
) -> Found:
    """Read the answer off the curve."""
    best = min(curve, key=lambda point: point.loss)
    low, high = find_band([point.lr for point in curve], [point.loss for point in curve], tolerance)
    return Found(
        lr=math.sqrt(low * high),
        edge=high,
        argmin=best.lr,
        loss=best.loss,
        band=(low, high),
        curve=tuple(curve),
        at_edge=any(_sides(curve, tolerance)),
        widened=widened,
        steps=steps,
        seeds=seeds,
        tolerance=tolerance,
        notes=notes,
    )


def _check_grid(grid: Iterable[float]) -> list[float]:
    """The grid ascending, without repetitions.

    Raises: SearchError if it is empty or a rate is not a positive number.
    """
    try:
        rates = sorted({float(rate) for rate in grid})
    except (TypeError, ValueError) as error:
        raise SearchError(f"the grid must hold numbers: {error}") from error
    if not rates:
        raise SearchError("the grid is empty: give at least one learning rate")
    bad = [rate for rate in rates if not (math.isfinite(rate) and rate > 0)]
    if bad:
        raise SearchError(f"learning rates in the grid must be positive numbers, got {bad[0]}")
    return rates


def _default_plan(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    init: str,
    loss: Loss,
    optimizer: str | Callable[[Groups], Optimizer],
    seed: int,
) -> Starter:
    """A plan with one learning rate for all parameters."""
    from dagscale.plan import plan as make_plan

    name = optimizer if isinstance(optimizer, str) else "sgd"  # law "none" does not look at it
    x, y = to_model(model, x), to_model(model, y)
    return make_plan(model, x, base_lr=1.0, law="none", init=init, optimizer=name, seed=seed, data=(x, y), loss=loss)


def _copy(model: nn.Module) -> nn.Module:
    """An independent copy.

    Raises: SearchError if the model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise SearchError(
            f"the model cannot be copied for a run ({type(error).__name__}): give one that copy.deepcopy can copy"
        ) from error


def _progress(shown: bool) -> Progress:
    """A progress bar on stderr that goes away when done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss_text(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "diverged"
