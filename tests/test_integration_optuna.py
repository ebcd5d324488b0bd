"""Optuna, with the real package, and W&B's sweeps: spaces centred and narrowed at a plan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import PlanError
from dagscale.integrations.sweeps import rate_range, wandb_sweep

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


def mlp(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def planned(**more: Any) -> dagscale.Plan:
    return dagscale.plan(mlp(), X, base_lr=0.1, law="none", optimizer="adamw", **more)


@pytest.fixture
def optuna() -> Any:
    found = pytest.importorskip("optuna")
    found.logging.set_verbosity(found.logging.WARNING)
    return found


@pytest.mark.filterwarnings("ignore:.*enqueue_trial is experimental.*")
def test_the_plan_is_the_first_trial_and_the_others_lie_around_it(optuna: Any) -> None:
    from dagscale.integrations.optuna import enqueue, suggest_rate

    plan = planned(lr_scale={"0": 0.5})
    seen: list[dict[str, float]] = []

    def objective(trial: Any) -> float:
        model = plan.init_(mlp())
        optimizer = plan.optimizer(model, lr=suggest_rate(trial, plan, octaves=1))
        seen.append({name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]})
        for step in range(2):
            optimizer.zero_grad()
            loss = cross_entropy(model(X), Y)
            loss.backward()
            optimizer.step()
            trial.report(loss.item(), step)
        return loss.item()

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    enqueue(study, plan)
    enqueue(study, plan)
    study.optimize(objective, n_trials=6)
    rates = [trial.params["lr"] for trial in study.trials]
    assert rates[0] == plan.lr
    assert rates.count(plan.lr) == 1, "enqueued once"
    assert all(plan.lr / 2 <= rate <= 2 * plan.lr for rate in rates)
    assert seen[0] == {name: own.lr for name, own in plan.parameters.items()}
    assert all(own["0.weight"] == pytest.approx(own["2.weight"] / 2) for own in seen)


def test_a_base_is_a_centre_too() -> None:
    found = dagscale.search(mlp(), (X, Y), optimizer="adamw", steps=4, seeds=1, grid=(0.01, 0.1), widen=0)
    assert rate_range(found, octaves=1) == pytest.approx((found.lr / 2, found.lr * 2))


def test_a_sweep_of_wandb() -> None:
    plan = planned()
    sweep = wandb_sweep(plan, "loss", weight_decay={"values": [0.01, 0.1]})
    assert json.loads(json.dumps(sweep)) == {
        "method": "bayes",
        "metric": {"name": "loss", "goal": "minimize"},
        "parameters": {
            "lr": {"distribution": "log_uniform_values", "min": 0.025, "max": 0.4},
            "weight_decay": {"values": [0.01, 0.1]},
        },
    }
    grid = wandb_sweep(plan, "accuracy", goal="maximize", method="grid", octaves=1)["parameters"]["lr"]["values"]
    assert grid == pytest.approx([0.05, 0.1, 0.2])


@pytest.mark.filterwarnings("ignore:.*is experimental.*")
def test_the_page_on_searching_other_settings_on_the_base_runs_as_it_stands(optuna: Any) -> None:
    page = Path(__file__).parent.parent / "docs" / "howto" / "optuna.md"
    code = next(
        code for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL) if "Pruner" in code
    )
    own: dict[str, Any] = {
        "data": (X, Y), "loss": cross_entropy, "small": mlp, "model": mlp(64), "batches": lambda n: [(X, Y)] * n,
    }  # fmt: skip
    exec(code.replace("200", "6").replace("n_trials=30", "n_trials=3"), own)
    study, plan = own["study"], own["plan"]
    assert study.trials[0].params == {"lr": own["found"].lr, "beta2": 0.999}
    assert plan.base_lr == study.best_params["lr"]
    assert plan.recipe["optimizer"]["settings"]["betas"] == [0.9, study.best_params["beta2"]]


def test_one_line_with_the_mend() -> None:
    from dagscale.integrations.optuna import enqueue, suggest_rate

    with pytest.raises(PlanError, match="octaves must be a positive number, such as 2"):
        rate_range(planned(), octaves=0)
    with pytest.raises(PlanError, match=r"plan must be what dagscale.plan or dagscale.search returns, not float"):
        rate_range(0.1)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="trial must be an optuna trial"):
        suggest_rate(None, planned())
    with pytest.raises(PlanError, match=r"study must be what optuna.create_study returns, not NoneType"):
        enqueue(None, planned())
    with pytest.raises(PlanError, match="goal must be"):
        wandb_sweep(planned(), "loss", goal="min")
