"""Optimisers are told by one record each, however they are given."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import dagscale
from dagscale.errors import DagscaleError, OptimizerError, PlanError, UnknownNameError
from dagscale.training.optimizers import OPTIMIZERS, resolve
from dagscale.training.recipe import Recipe


def groups() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(3, 2))], "lr": 0.1}]


@pytest.mark.parametrize(
    ("given", "settings", "name"),
    [
        ("sgd", {}, "sgd"),
        (torch.optim.SGD, {}, "sgd"),
        (torch.optim.SGD, {"momentum": 0.9}, "momentum"),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, "nesterov"),
        (torch.optim.SGD, {"momentum": 0.5}, "sgd"),
        (torch.optim.AdamW, {"betas": (0.9, 0.95)}, "adamw"),
    ],
)
def test_a_class_with_settings_is_the_record_of_that_name(given: Any, settings: dict[str, Any], name: str) -> None:
    found = resolve(given, settings)
    assert found.name == name
    assert found.settings == settings or found.settings == OPTIMIZERS[name].settings


def test_momentum_sets_stability_and_grid() -> None:
    assert resolve(torch.optim.SGD).stable == 2
    assert resolve("momentum").stable == pytest.approx(3.8)
    assert resolve(torch.optim.SGD, {"momentum": 0.5}).stable == pytest.approx(3)
    assert resolve("nesterov").grid == resolve("momentum").grid


@pytest.mark.parametrize(("name", "decay"), [("adam", "coupled"), ("adamw", "decoupled"), ("sgd", "coupled")])
def test_how_decay_enters(name: str, decay: str) -> None:
    """Coupled decay moves a parameter without gradient by what the optimiser makes of a gradient; decoupled by its
    own proportion, whatever the optimiser."""
    record = resolve(name)
    assert record.decay == decay
    made = record.configured({"weight_decay": 0.5}).make(groups())
    parameter = made.param_groups[0]["params"][0]
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    own_proportion = torch.allclose(parameter, torch.tensor(1 - 0.1 * 0.5))
    assert own_proportion == (decay == "decoupled" or record.step == "gradient")


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad", "sgd"])
def test_scaling_is_what_the_next_step_multiplies_the_gradient_by(name: str) -> None:
    """Against the step itself: an optimiser without momentum moves by rate × scaling × gradient."""
    settings = {"adam": {"betas": (0.0, 0.9)}, "adamw": {"betas": (0.0, 0.9), "weight_decay": 0.0}}.get(name, {})
    record = resolve(name, settings)
    made = record.make(groups())
    (group,) = made.param_groups
    (parameter,) = group["params"]
    for value in (0.3, -2.0, 0.7):
        before = parameter.detach().clone()
        parameter.grad = torch.full_like(parameter, value)
        made.step()
    assert record.scaling is not None
    scale = record.scaling(made.state[parameter], group)
    assert torch.allclose(before - parameter, 0.1 * scale * parameter.grad, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ("adamm", UnknownNameError, "did you mean 'adam'"),
        (7, OptimizerError, "not int"),
        (torch.optim.SGD(groups(), lr=1.0), OptimizerError, "made already"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_one_line(given: Any, error: type[DagscaleError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        resolve(given)
    assert "\n" not in str(caught.value)


def test_a_factory_that_returns_none_is_refused() -> None:
    with pytest.raises(OptimizerError, match="gave a NoneType"):
        resolve(lambda groups: None).make(groups())


def test_a_factory_that_holds_another_models_parameters_is_refused() -> None:
    other = torch.nn.Linear(2, 2)
    with pytest.raises(OptimizerError, match=r"none of the parameters in the groups .* make it of its argument"):
        resolve(lambda groups: torch.optim.SGD(other.parameters(), lr=1.0)).make(groups())


def test_the_optimisers_default_rate_is_the_networks() -> None:
    """A group that is added without a rate has it, and so have schedules that end at a rate of their own."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    plan = dagscale.plan(model, torch.zeros(2, 2), base_lr=0.05, law="none", lr_scale={"bias": 2.0}, optimizer="adamw")
    made = plan.optimizer(model)
    assert ([group["lr"] for group in made.param_groups], made.defaults["lr"]) == ([0.05, 0.1], 0.05)
    assert plan.optimizer(model, lr=0.01).defaults["lr"] == 0.01
    seen = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        seen.append((optimizer.defaults["lr"], optimizer.param_groups[0]["lr"]))
        return dagscale.constant()(optimizer, steps)

    x = torch.randn(64, 2)
    recipe = dagscale.Recipe((x, x.argmax(1)), optimizer="adamw", batch_size=16, steps=8, schedule=schedule)
    dagscale.search(model, recipe, grid=[2e-3, 4e-3], seeds=1)
    dagscale.plan(model, recipe=recipe, law="short-run", base=(nn.Linear(2, 2), torch.zeros(2, 2)), base_lr=0.01)
    assert len({rate for rate, _ in seen}) > 1
    assert all(rate == pytest.approx(own) for rate, own in seen)


def test_a_function_named_like_a_registered_optimiser_is_never_taken_for_it() -> None:
    def adamw(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(0.5, 0.6))

    model, x = nn.Linear(2, 2), torch.zeros(2, 2)
    for given in (adamw, partial(adamw)):
        recipe = Recipe(optimizer=given)
        plan = dagscale.plan(model, x, recipe=recipe, base_lr=0.1, law="none")
        for kept in (plan, copy.deepcopy(plan)):
            assert kept.optimizer(model).defaults["betas"] == (0.5, 0.6)
        for read in (dagscale.Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan))):
            with pytest.raises(PlanError, match=r"optimizer '.*\.adamw' is not registered here: give recipe="):
                read.optimizer(model)
            assert read.optimizer(model, recipe=recipe).defaults["betas"] == (0.5, 0.6)
    assert resolve("adamw").name == resolve(torch.optim.AdamW).name == "adamw"


def test_numbers_of_numpy_and_torch_are_numbers() -> None:
    for number in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array([0.5])):
        assert resolve("momentum", {"momentum": number}).describe() == resolve("momentum", {"momentum": 0.5}).describe()
        recipe = Recipe(optimizer="adamw", weight_decay=number, clip=number)
        assert (recipe.weight_decay, recipe.clip) == (0.5, 0.5)


def test_a_setting_that_no_file_holds_is_asked_for() -> None:
    def scaled(groups: Any, *, times: Any = abs) -> torch.optim.Optimizer:
        return torch.optim.SGD([{**group, "lr": times(group["lr"])} for group in groups])

    model, x = nn.Linear(2, 2), torch.zeros(2, 2)
    with OPTIMIZERS.temporarily():
        OPTIMIZERS.add("scaled")(resolve(scaled))
        recipe = Recipe(optimizer="scaled", times=abs)
        plan = dagscale.plan(model, x, recipe=recipe, base_lr=0.1, law="none")
        read = dagscale.Plan.from_json(plan.to_json())
        with pytest.raises(PlanError, match="does not hold times of its optimizer 'scaled': give recipe="):
            read.optimizer(model)
        assert read.optimizer(model, recipe=recipe).param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "rmsprop"])
def test_a_recipe_travels_to_other_processes(name: str) -> None:
    recipe = Recipe((torch.zeros(4, 2), torch.zeros(4)), loss=mse_loss, optimizer=name, batch_size=2, steps=3)
    assert pickle.loads(pickle.dumps(recipe)).describe() == recipe.describe()


def test_a_partial_class_is_that_class_with_these_settings() -> None:
    record = resolve(partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95)), {"weight_decay": 0.1})
    assert record.describe() == resolve("adamw", {"betas": (0.9, 0.95), "weight_decay": 0.1}).describe()
    assert record.step == "sign"


def test_a_loss_that_is_to_grow_is_refused() -> None:
    with pytest.raises(OptimizerError, match="leave it out, and give the loss with the other sign"):
        resolve("sgd", {"maximize": True})


def test_a_wrong_setting_is_told_in_one_line() -> None:
    with pytest.raises(OptimizerError, match="'betas' is no setting of the optimizer sgd"):
        resolve("sgd", {"betas": (0.9, 0.99)})
    with pytest.raises(OptimizerError, match=r"'wieght_decay' .*did you mean 'weight_decay'"):
        resolve("sgd", {"wieght_decay": 0.1})
    with pytest.raises(OptimizerError, match=r"adam cannot be made \(ValueError: Invalid beta"):
        resolve("adam", {"betas": (2.0, 0.99)}).make(groups())


@pytest.mark.parametrize("setting", [
    {"momentum": math.inf}, {"dampening": math.nan}, {"momentum": "0,9"}, {"nesterov": "maybe"}
])  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused(setting: dict[str, Any]) -> None:
    """PyTorch takes a text for True, and an infinite momentum without a word."""
    with pytest.raises(OptimizerError, match=f"{next(iter(setting))} of the optimizer sgd cannot be"):
        resolve("sgd", setting)
    with pytest.raises(OptimizerError, match="betas of the optimizer adam cannot be"):
        resolve("adam", {"betas": (math.nan, 0.99)})


def test_a_setting_that_is_infinite_by_itself_may_be_so() -> None:
    def endless(groups: Any, growth: float = math.inf) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, 0.1)

    resolve(endless, {"growth": math.inf}).make(groups())


def test_a_rate_is_no_setting() -> None:
    with pytest.raises(OptimizerError, match="lr is what is searched and planned: leave it out"):
        resolve("adamw", {"lr": 1e-3})


def test_an_optimiser_that_averages_begins_in_train_mode() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    net = torch.nn.Linear(4, 2)
    recipe = Recipe((x, x[:, :2]), mse_loss, schedulefree.AdamWScheduleFree, batch_size=8, steps=8)
    plan = dagscale.plan(net, recipe=recipe, law="short-run")
    optimizer = plan.optimizer(net)
    mse_loss(net(x), x[:, :2]).backward()
    optimizer.step()


def test_a_trait_that_nobody_knows_is_refused() -> None:
    record = resolve(lambda groups: torch.optim.SGD(groups))
    with pytest.raises(OptimizerError, match="kind of step"):
        record.known("step", "width='mup'")
