"""Methods that need a recipe: what dagscale does by itself, searches on the target, schedule-free."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dagscale.bench.sweep import Run
from dagscale.bench.verify.methods import Method
from dagscale.bench.verify.runs import BY_ITSELF, KINDS, built, decaying, recipe_of, trained, training
from dagscale.registry import Registry
from dagscale.training.optimizers import Groups
from dagscale.training.recipe import Recipe
from dagscale.training.schedules import Schedule

RIVALS: Registry[Method] = Registry("method")

STARTUP = 4
"""A quarter of the trials, at least two, are drawn at random before TPE has something to go by."""


# --- dagscale by itself -------------------------------------------------------------------------------------

RIVALS.add("dagscale")(Method("dagscale", BY_ITSELF, {"kind": "plan"}, per_seed=True))
"""`dagscale.search` on the base and `dagscale.plan` for the target, with nothing else said; under several inits, as
``dagscale/moments,damped,keep``, the base chooses."""


# --- searches on the target ---------------------------------------------------------------------------------


@KINDS.add("direct")
def direct(run: Run) -> dict[str, Any]:
    """Trainings of the target itself, one after another, at rates that Optuna chooses from a range.

    The range is that of the grid that everything is judged by: where the grid of a kind of network lies is known to
    all alike. Trainings differ in the rate alone.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    count, low, high = (run.options[name] for name in ("trials", "low", "high"))
    startup = max(2, count // STARTUP)
    sampler = {
        "random": lambda: optuna.samplers.RandomSampler(seed=run.seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=run.seed, n_startup_trials=startup),
    }[run.options["sampler"]]()
    study = optuna.create_study(sampler=sampler)
    trials = []
    for _ in range(count):
        asked = study.ask()
        lr = asked.suggest_float("lr", low, high, log=True)
        trials.append({"lr": lr, **training(replace(run, lr=lr))})
        study.tell(asked, trials[-1]["loss"])
    return {"trials": trials, "steps": sum(trial["steps"] for trial in trials)}


for _name, _sampler in (("random-search", "random"), ("tpe", "tpe")):
    RIVALS.add(_name)(
        Method(_name, "keep", {"kind": "direct", "sampler": _sampler}, per_seed=True, package=("optuna", "optuna"))
    )


# --- schedule-free ------------------------------------------------------------------------------------------

CALIBRATION = 50
"""Batches after which running statistics of batch norms are those of the averaged weights [schedulefree, README]."""


@KINDS.add("schedule-free")
def schedule_free(run: Run) -> dict[str, Any]:
    """Train with schedule-free SGD or AdamW [Defazio et al. 2024] at its default rate, with the recipe's warm-up."""
    import schedulefree

    recipe, model = recipe_of(run), built(run)
    warm = recipe.schedule.warmup if isinstance(recipe.schedule, Schedule) else 0.0
    adaptive = recipe.optimizer.step != "gradient"
    make = schedulefree.AdamWScheduleFree if adaptive else schedulefree.SGDScheduleFree

    def made(groups: Groups) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = make(groups, warmup_steps=round(warm * recipe.total_steps))
        return found

    return trained(run, model, decaying(run, model), made, schedule=None, after=lambda: calibrate(model, recipe, run))


def calibrate(model: nn.Module, recipe: Recipe, run: Run) -> int:
    """Renew the running statistics of batch norms; how many batches that took."""
    if not any(isinstance(part, _BatchNorm) for part in model.modules()):
        return 0
    model.train()
    with torch.no_grad():
        for batch in itertools.islice(recipe.source.batches(run.seed), CALIBRATION):
            model(batch.inputs)
    return CALIBRATION


RIVALS.add("schedule-free")(
    Method(
        "schedule-free", "keep", {"kind": "schedule-free"}, per_seed=True, package=("schedulefree", "schedulefree")
    )
)  # fmt: skip
