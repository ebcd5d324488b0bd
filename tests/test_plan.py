"""The plan as a value, and as it is applied."""

import copy
import json

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import ForwardError, PlanError, TraceError
from dagscale.spaces.targets import load


@pytest.fixture
def plan() -> dagscale.Plan:
    return dagscale.plan(*load("mlp:2_22_222"), base=load("mlp:1_01_001"), base_lr=0.1, law="paths", seed=3)


def target() -> nn.Module:
    return load("mlp:2_22_222", seed=7)[0]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_json_round_trip_is_the_same_plan(plan: dagscale.Plan) -> None:
    document = json.loads(plan.to_json())
    assert dagscale.Plan.from_json(plan.to_json()) == plan
    assert document["parameters"]["stem.linear.weight"]["lr"] == plan.lr
    with pytest.raises(PlanError, match="this is no plan"):
        dagscale.Plan.from_json("{}")


def test_plan_is_immutable(plan: dagscale.Plan) -> None:
    with pytest.raises(AttributeError):
        plan.lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        plan.parameters["stem.linear.weight"] = None  # type: ignore[index]


def test_init_is_reproducible_and_depends_on_the_seed_alone(plan: dagscale.Plan) -> None:
    torch.manual_seed(0)
    first = weights(plan.init_(target()))
    torch.manual_seed(1)
    second = weights(plan.init_(target()))
    other = weights(plan.init_(target(), seed=4))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert not torch.equal(first["stem.linear.weight"], other["stem.linear.weight"])
    measured = first["cells.0.edges.0_1.linear.weight"].std().item()
    std = plan.parameters["cells.0.edges.0_1.linear.weight"].init_std
    assert measured == pytest.approx(std, rel=4 / (2 * 128 * 128) ** 0.5)


def test_init_leaves_the_global_random_state_alone(plan: dagscale.Plan) -> None:
    before = torch.get_rng_state()
    plan.init_(target())
    assert torch.equal(before, torch.get_rng_state())


def test_init_in_another_dtype_is_the_same_numbers_rounded(plan: dagscale.Plan) -> None:
    full, half = weights(plan.init_(target())), weights(plan.init_(target().to(torch.bfloat16)))
    assert all(torch.equal(full[n].to(torch.bfloat16), half[n]) for n in full)


def test_planning_leaves_model_and_base_unchanged() -> None:
    model, inputs = load("cnn:2_22?norm=batch")
    before = copy.deepcopy(model.state_dict())
    dagscale.plan(model, inputs, base=load("cnn:1"), base_lr=0.1)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_groups_carry_the_rate_and_schedulers_work(plan: dagscale.Plan) -> None:
    model = plan.init_(target())
    optimizer = torch.optim.SGD(plan.param_groups(model), momentum=0.9)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    assert {g["lr"] for g in optimizer.param_groups} == {plan.lr}
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(plan.lr / 2)
    assert plan.param_groups(model, lr=1.0)[0]["lr"] == pytest.approx(1.0)


def test_frozen_parameters_are_neither_drawn_nor_trained() -> None:
    model, inputs = load("mlp:2_22")
    frozen = model.get_parameter("stem.linear.weight")
    frozen.requires_grad_(False)
    before = frozen.clone()
    plan = dagscale.plan(model, inputs, base_lr=0.1, law="none")
    plan.init_(model)
    assert torch.equal(frozen, before)
    assert all(p is not frozen for g in plan.param_groups(model) for p in g["params"])
    assert any("frozen" in note and "stem.linear.weight" in note for note in plan.notes)


def test_unreached_parameters_stay_and_are_named() -> None:
    model, inputs = load("mlp:0_22_002")  # vertex 1 has no input: the edge 1→2 carries nothing
    dead = "cells.0.edges.1_2.linear.weight"
    before = model.get_parameter(dead).clone()
    plan = dagscale.plan(model, inputs, base_lr=0.1, law="none")
    assert torch.equal(plan.init_(model).get_parameter(dead), before)
    assert any("not on any input→output path" in note and dead in note for note in plan.notes)


def test_a_plan_does_not_fit_another_model_and_changes_nothing(plan: dagscale.Plan) -> None:
    for other in (load("mlp:2_22")[0], load("mlp:2_22_222?width=32")[0]):
        before = weights(other)
        with pytest.raises(PlanError, match="for another model"):
            plan.init_(other)
        with pytest.raises(PlanError, match="for another model"):
            plan.param_groups(other)
        assert all(torch.equal(before[n], p) for n, p in other.named_parameters())


def test_meta_models_are_planned_but_must_be_materialised_to_be_initialised(plan: dagscale.Plan) -> None:
    with torch.device("meta"):
        model = load("mlp:2_22_222")[0]
    model = model.to("meta")
    made = dagscale.plan(model, torch.empty(2, 1, 8, 8, device="meta"), base=load("mlp:1_01_001"), base_lr=0.1, seed=3)
    assert made == plan
    with pytest.raises(PlanError, match="to_empty"):
        made.init_(model)
    real = made.init_(model.to_empty(device="cpu"))
    assert torch.equal(
        real.get_parameter("stem.linear.weight"), plan.init_(target()).get_parameter("stem.linear.weight")
    )


def test_table_names_every_factor(plan: dagscale.Plan) -> None:
    text = str(plan)
    for part in ("0.1 ×", "(depth)", "(kernel)", "stem.linear.weight", "0.008909"):
        assert part in text


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("my own message")


def test_errors_say_which_network_is_meant() -> None:
    good = load("mlp:2")
    with pytest.raises(ForwardError, match="target: .*ValueError: my own message") as caught:
        dagscale.plan(Raises(), torch.randn(1, 4), base=good, base_lr=0.1)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ForwardError, match="base: "):
        dagscale.plan(*good, base=(Raises(), torch.randn(1, 4)), base_lr=0.1)
    with pytest.raises(TraceError, match="no parameters"):
        dagscale.plan(nn.ReLU(), torch.randn(1, 4), base=good, base_lr=0.1)
