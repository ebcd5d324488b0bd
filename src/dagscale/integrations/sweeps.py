"""Sweeps: the range of learning rates that is worth a search around a plan, and W&B's way of saying it."""

from __future__ import annotations

from typing import Any

from dagscale.errors import PlanError
from dagscale.planning.base import Base
from dagscale.planning.files import is_number
from dagscale.planning.plans import Plan


def rate_range(plan: Plan | Base, *, octaves: float = 2.0) -> tuple[float, float]:
    """Lowest and highest learning rate to try: the plan's, a factor of ``2**octaves`` down and up.

    Args:
        plan: a plan, or a base that was found.
        octaves: half the width of the range. A plan is mostly right to within a factor of two; 2 leaves as much again.

    Raises:
        PlanError: if ``octaves`` is no positive number, or the plan is none.
    """
    if not isinstance(plan, (Plan, Base)):
        raise PlanError(f"plan must be what dagscale.plan or dagscale.search returns, not {type(plan).__name__}")
    if not (is_number(octaves) and octaves > 0):
        raise PlanError(f"octaves must be a positive number, such as 2 for a quarter to four times, not {octaves!r}")
    return plan.lr * 2.0**-octaves, plan.lr * 2.0**octaves


def wandb_sweep(
    plan: Plan | Base,
    metric: str,
    *,
    goal: str = "minimize",
    method: str = "bayes",
    octaves: float = 2.0,
    name: str = "lr",
    **parameters: Any,
) -> dict[str, Any]:
    """The configuration of a W&B sweep around a plan, for ``wandb.sweep(...)``.

    Args:
        plan, octaves: as for `rate_range`.
        metric, goal: what is optimised, and ``minimize`` or ``maximize``.
        method: ``bayes``, ``random`` or ``grid``.
        name: what the learning rate is called in ``run.config``.
        parameters: further parameters of the sweep, as W&B describes them.

    Returns:
        A dict of plain data.
    """
    if goal not in ("minimize", "maximize"):
        raise PlanError(f"goal must be 'minimize' or 'maximize', not {goal!r}")
    low, high = rate_range(plan, octaves=octaves)
    rate = {"distribution": "log_uniform_values", "min": low, "max": high}
    if method == "grid":
        steps = max(1, round(2 * octaves))
        rate = {"values": [low * 2.0 ** (2 * octaves * i / steps) for i in range(steps + 1)]}
    return {"method": method, "metric": {"name": metric, "goal": goal}, "parameters": {name: rate, **parameters}}


__all__ = ["rate_range", "wandb_sweep"]
