"""TensorBoard, W&B and MLflow: a plan as table, configuration and scalars, and what a watch sees as scalars.

Each function writes the plan and returns what `dagscale.watch` takes as ``log``::

    with dagscale.watch(model, plan, optimizer, log=to_tensorboard(writer, plan)) as watch:
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dagscale.errors import DagscaleError
from dagscale.integrations.requirement import require
from dagscale.planning.plans import Plan

Log = Callable[[int, Mapping[str, float]], None]
"""``log(step, scalars)``."""

COLUMNS = ("parameter", "shape", "role", "init_mean", "init_std", "lr", "weight_decay", "eps")


def to_tensorboard(writer: Any, plan: Plan | None = None) -> Log:
    """Write to a ``torch.utils.tensorboard.SummaryWriter``.

    Args:
        writer: the writer.
        plan: written now: its rate and factors as scalars at step 0, its table and configuration as texts.

    Returns:
        ``log(step, scalars)``, for `dagscale.watch`.

    Raises:
        DagscaleError: if the writer is none.
    """
    _check(writer, ("add_scalar", "add_text"), "writer", "a torch.utils.tensorboard.SummaryWriter")

    def log(step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    if plan is not None:
        log(0, scalars(plan))
        writer.add_text("dagscale/plan", _markdown(COLUMNS, rows(plan)))
        writer.add_text("dagscale/config", _markdown(("setting", "value"), list(config(plan).items())))
    return log


def to_wandb(run: Any, plan: Plan | None = None) -> Log:
    """Write to a W&B run.

    The watch's scalars have an axis of their own, ``dagscale/step``, and need not be logged at the steps of yours.

    Args:
        run: what ``wandb.init`` returned.
        plan: written now: its configuration under ``dagscale`` in ``run.config``, its rate and factors in
            ``run.summary``, its parameters as a table.

    Returns:
        ``log(step, scalars)``, for `dagscale.watch`.

    Raises:
        DagscaleError: if the run is none, or wandb cannot be imported.
    """
    _check(run, ("log", "config", "summary"), "run", "what wandb.init returns")
    run.define_metric("dagscale/*", step_metric="dagscale/step")

    def log(step: int, scalars: Mapping[str, float]) -> None:
        run.log({**scalars, "dagscale/step": step})

    if plan is not None:
        run.config.update({"dagscale": config(plan)}, allow_val_change=True)
        run.summary.update(scalars(plan))
        table = require("wandb", "wandb").Table(columns=list(COLUMNS), data=[list(row) for row in rows(plan)])
        run.log({"dagscale/plan": table, "dagscale/step": 0})
    return log


def to_mlflow(mlflow: Any, plan: Plan | None = None) -> Log:
    """Write to MLflow's active run, which is begun if there is none.

    Args:
        mlflow: the module ``mlflow``, as it is imported.
        plan: written now: its configuration as parameters, its rate and factors as metrics at step 0, its table and
            itself as the artifacts ``dagscale/plan.txt`` and ``dagscale/plan.json``.

    Returns:
        ``log(step, scalars)``, for `dagscale.watch`.

    Raises:
        DagscaleError: if it is not that module.
    """
    _check(mlflow, ("log_metrics", "log_params"), "mlflow", "the module mlflow")

    def log(step: int, scalars: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(scalars), step=step)

    if plan is not None:
        mlflow.log_params({f"dagscale/{name}": value for name, value in config(plan).items()})
        log(0, scalars(plan))
        mlflow.log_text(str(plan), "dagscale/plan.txt")
        mlflow.log_dict(plan.to_dict(), "dagscale/plan.json")
    return log


def scalars(plan: Plan) -> dict[str, float]:
    """A plan's numbers by name: its rate, the base's, and the factors between them."""
    factors = {f"dagscale/plan/factor/{name.replace(' ', '_')}": value for name, value in plan.factors.items()}
    return {"dagscale/plan/lr": plan.lr, "dagscale/plan/base_lr": plan.base_lr, **factors}


def config(plan: Plan) -> dict[str, str | int | float | bool]:
    """What a plan was made by, and the recipe that it is for, flat: ``recipe/optimizer/settings/betas`` and so on."""
    made = {name: getattr(plan, name) for name in ("law", "init", "width", "depth", "seed", "lr", "base_lr")}
    return dict(_flat("", {**made, "recipe": dict(plan.recipe)}))


def rows(plan: Plan) -> list[tuple[Any, ...]]:
    """A row a parameter, of `COLUMNS`."""
    return [
        (name, "×".join(map(str, own.shape)) or "scalar", *(getattr(own, column) for column in COLUMNS[2:]))
        for name, own in plan.parameters.items()
    ]


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, own in value.items() for pair in _flat(f"{name}/{key}" if name else str(key), own)]
    if value is None:
        return []
    return [(name, value if isinstance(value, (str, int, float, bool)) else str(value))]


def _markdown(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else _cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check(given: Any, needs: tuple[str, ...], name: str, what: str) -> None:
    if isinstance(given, (str, type)) or not all(hasattr(given, attribute) for attribute in needs):
        raise DagscaleError(f"{name} must be {what}, not {type(given).__name__}")


__all__ = ["config", "rows", "scalars", "to_mlflow", "to_tensorboard", "to_wandb"]
