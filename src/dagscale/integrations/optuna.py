"""Optuna: a search space that is centred and narrowed at a plan, which is the first trial.

::

    study = optuna.create_study()
    enqueue(study, plan)


    def objective(trial):
        optimizer = plan.optimizer(model, lr=suggest_rate(trial, plan))
"""

from __future__ import annotations

from typing import Any

from dagscale.errors import PlanError
from dagscale.integrations.sweeps import rate_range
from dagscale.planning.base import Base
from dagscale.planning.plans import Plan


def suggest_rate(trial: Any, plan: Plan | Base, *, octaves: float = 2.0, name: str = "lr") -> float:
    """A learning rate from around the plan's, on a logarithmic scale.

    Args:
        trial: the ``optuna.trial.Trial``.
        plan: a plan, or a base that was found.
        octaves: the range is the plan's rate, a factor of ``2**octaves`` down and up.
        name: the parameter's name in the study.

    Returns:
        The network's learning rate, for ``plan.optimizer(model, lr=…)``: all parameters' rates keep their ratios.

    Raises:
        PlanError: if ``octaves`` is no positive number, or ``trial`` no trial.
    """
    if not hasattr(trial, "suggest_float"):
        raise PlanError(f"trial must be an optuna trial, as the objective is given it, not {type(trial).__name__}")
    low, high = rate_range(plan, octaves=octaves)
    return float(trial.suggest_float(name, low, high, log=True))


def enqueue(study: Any, plan: Plan | Base, *, name: str = "lr", **params: Any) -> None:
    """Make the plan the study's next trial, so that the sampler begins where the plan is.

    A plan that is enqueued twice, as when a study is resumed, is tried once.

    Args:
        study: the ``optuna.study.Study``.
        plan: a plan, or a base that was found.
        name: the learning rate's name in the study, as in `suggest_rate`.
        params: values of further parameters in that trial; the sampler chooses what is not named.

    Raises:
        PlanError: if ``study`` is no study.
    """
    if not hasattr(study, "enqueue_trial"):
        raise PlanError(f"study must be what optuna.create_study returns, not {type(study).__name__}")
    rate_range(plan)  # a plan at all
    study.enqueue_trial({name: plan.lr, **params}, skip_if_exists=True)


__all__ = ["enqueue", "suggest_rate"]
