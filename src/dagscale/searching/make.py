"""The maximal learning rate of a model on its data, by training copies of it at several rates."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dagscale.errors import SearchError
from dagscale.rates import GRIDS, check_grid, default_grid, find_band
from dagscale.searching import exhaustive, fast  # noqa: F401  (they register themselves)
from dagscale.searching.found import Found, Point, read
from dagscale.searching.methods import METHODS, Trials
from dagscale.training.batches import Data, Examples, Inputs, check_finite, checked, take, to_model
from dagscale.training.engine import (
    OPTIMIZERS,
    Groups,
    Loss,
    Schedule,
    TrainStep,
    check_budget,
    count_steps,
    train,
)

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["GRIDS", "METHODS", "Examples", "Found", "Point", "Starter", "default_grid", "find_band", "search"]

GLANCE = 0.2
"""Share of a run's steps after which the fast method looks along the grid for where to begin."""

EVALUATE = 4096
"""Most examples in a final training loss; a glance is content with an eighth."""


class Starter(Protocol):
    """What a search needs of a plan; `dagscale.Plan` has it."""

    def init_(self, model: nn.Module, *, seed: int) -> object:
        """Initialise in place."""

    def param_groups(self, model: nn.Module, *, lr: float) -> Groups:
        """Parameter groups at this overall rate."""


def search(
    model: nn.Module,
    data: Data,
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
    method: str = "fast",
    train_step: TrainStep | None = None,
    schedule: Schedule | None = None,
    progress: bool = False,
) -> Found:
    """Find the maximal learning rate of ``model`` and the one to recommend.

    A copy of the model is initialised and trained for every rate and seed; ``model`` itself never changes. The plan's
    learning rates keep their ratios, one overall rate is searched. While the best rate or an end of its
    band is the first or last of the grid, or all rates diverge, the grid is widened on that side.

    ``method="grid"`` runs every rate of the grid with every seed. ``method="fast"`` runs those that the answer needs:
    about a quarter of the steps (docs/search.md).

    Args:
        model: on any device; see `dagscale.training.train` for the outputs it may have.
        data: a `Dataset`, or ``(x, y)``; ``x`` is a tensor, or a tuple or dict of tensors as the model
            takes them.
        plan: initialises, and makes parameter groups; by default one with ``init`` and a single learning rate.
        init: name of the init of the default plan.
        loss: ``loss(output, y)``, a scalar that is a mean over the batch.
        optimizer: a name in ``dagscale.training.OPTIMIZERS``, or a function of parameter groups.
        grid: rates to try, per optimiser step; by default half an octave apart, by optimiser (``GRIDS``).
        epochs, steps, batch_size: length of each run, as for `dagscale.training.train`.
        seeds: runs at each rate (fast: that decides); run k is initialised and fed with ``seed + k`` at every rate.
        seed: see above.
        tolerance: relative width of the band in the loss.
        widen: most times that the grid is widened, by ``WIDENING`` rates on each side in want.
        method: a name in ``METHODS``.
        train_step: the user's own step, ``train_step(model, optimizer, x, y) -> loss``, see `train`.
        schedule: ``schedule(optimizer, total_steps)`` makes a scheduler, stepped after every optimiser step; a glance
            of the fast method has its own, shorter one.
        progress: show a progress bar on stderr.

    Raises:
        SearchError: if an argument or the data cannot be used, every run diverged, or ``train_step`` or
            ``schedule`` raises.
        DagscaleError: as the plan and `dagscale.training.train` raise.
    """
    x, y = checked(data)
    check_finite(x, y)
    check_budget(epochs=epochs, steps=steps, batch_size=batch_size)
    rates = check_grid(default_grid(optimizer) if grid is None else grid)
    if seeds < 1:
        raise SearchError(f"seeds must be at least 1, got {seeds}")
    if widen < 0:
        raise SearchError(f"widen must be 0 or more, got {widen}")
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise SearchError(f"tolerance must be 0 or more, got {tolerance}")
    if isinstance(optimizer, str):
        OPTIMIZERS[optimizer]  # unknown names raise before anything is trained
    follow = METHODS[method]
    if plan is None:
        plan = _default_plan(model, take(x, slice(batch_size)), y[:batch_size], init, loss, optimizer, seed)
    whole = count_steps(len(y), epochs=epochs, steps=steps, batch_size=batch_size)
    spent = asked = 0
    with _progress(progress) as bar:
        task = bar.add_task("searching", total=None)

        def expect(runs: int) -> None:
            nonlocal asked
            asked += runs
            bar.update(task, total=asked)

        def run(rate: float, k: int, steps: int = whole, evaluate: int = EVALUATE) -> float:
            nonlocal spent
            trial = _copy(model)
            plan.init_(trial, seed=seed + k)
            try:
                done = train(
                    trial, x, y, params=plan.param_groups(trial, lr=rate), optimizer=optimizer, loss=loss, steps=steps,
                    batch_size=batch_size, seed=seed + k, evaluate=evaluate, train_step=train_step, schedule=schedule,
                )  # fmt: skip
            except SearchError as error:
                raise SearchError(f"at learning rate {rate:.3g}: {error}") from error
            spent += done.steps
            bar.advance(task)
            return done.loss

        def glance(rate: float) -> float:
            return run(rate, 0, math.ceil(GLANCE * whole), EVALUATE // 8)

        curve, widened = follow(Trials(run, glance, expect, seeds, tolerance), rates, widen)
    if all(math.isinf(point.loss) for point in curve):
        raise SearchError(
            f"every rate from {curve[0].lr:.3g} to {curve[-1].lr:.3g} diverged: try a grid of lower rates, "
            "and see that the model's output at initialisation is finite"
        )
    notes = tuple(getattr(plan, "notes", ()))
    return read(curve, tolerance, widened=widened, steps=spent, seeds=seeds, notes=notes, method=method)


def _default_plan(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    init: str,
    loss: Loss,
    optimizer: str | Callable[[Groups], Optimizer],
    seed: int,
) -> Starter:
    """A plan with one learning rate for all parameters."""
    from dagscale.planning.make import plan as make_plan

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
