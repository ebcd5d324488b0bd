"""The plan as a value, and as it is applied."""

import copy
import json
import math
import pickle
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import DagscaleError, ForwardError, PlanError, TraceError, UnknownNameError
from dagscale.laws.curvature import curvature_after
from dagscale.laws.gauss_newton import leading_eigenpair
from dagscale.laws.over_seeds import BATCHES, until_settled
from dagscale.models.targets import load
from dagscale.network import Network
from dagscale.planning import Plan
from dagscale.planning.make import default_law
from dagscale.training.batches import Batch
from dagscale.training.draws import Fill
from dagscale.training.recipe import Recipe


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
    made = dagscale.plan(
        model, torch.empty(2, 1, 8, 8, device="meta"), base=load("mlp:1_01_001"), base_lr=0.1, law="paths", seed=3
    )
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
    with pytest.raises(ForwardError, match=r"target: .*ValueError: my own message") as caught:
        dagscale.plan(Raises(), torch.randn(1, 4), base=good, base_lr=0.1)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ForwardError, match="base: "):
        dagscale.plan(*good, base=(Raises(), torch.randn(1, 4)), base_lr=0.1)
    with pytest.raises(TraceError, match="no parameters"):
        dagscale.plan(nn.ReLU(), torch.randn(1, 4), base=good, base_lr=0.1)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from dagscale.bench.data import load as load_data

    data = load_data("digits", limit=300)
    return data.x, data.y


def test_defaults_follow_what_is_at_hand() -> None:
    """Data and a loss: measured init and law. Neither: what the graph tells. An adaptive optimiser: the base's rate."""
    x, y = digits()
    known = {"base": load("mlp:2?width=32"), "base_lr": 0.1}
    model, inputs = load("mlp:2_22?width=32")
    paper = dagscale.plan(model, inputs, **known)
    assert (paper.law, paper.init) == ("covariance", "in-degree")
    measured = dagscale.plan(model, inputs, data=(x, y), loss=torch.nn.functional.cross_entropy, **known)
    assert (measured.law, measured.init) == ("combined", "moments")
    assert default_law("momentum", has_data=True) == default_law("adamw", has_data=True) == "short-run"
    assert default_law("sgd", has_data=True, has_base=False) == "short-run"
    adaptive = dagscale.plan(model, inputs, data=(x, y), optimizer="adamw", **known)
    assert (adaptive.law, adaptive.init, adaptive.lr) == ("none", "moments", 0.1)


def test_curvature_gives_a_network_its_own_rate_and_a_deeper_one_less() -> None:
    x, y = digits()
    known = {"data": (x, y), "loss": torch.nn.functional.cross_entropy, "law": "curvature", "base_lr": 0.1}
    base = load("mlp:2?width=32")
    same = dagscale.plan(*load("mlp:2?width=32"), base=base, **known)
    deeper = dagscale.plan(*load("mlp:2_02_002_0002_00002?width=32"), base=base, **known)
    assert same.lr == pytest.approx(0.1, rel=0.2)
    assert deeper.lr < same.lr


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_curvature_is_preconditioned_as_the_optimiser_steps(optimizer: str, scale: float) -> None:
    """(2w - 1)² at w = 1 has curvature 8 and gradient 4, by which Adam divides; a multiple of the loss cancels."""
    model, x = torch.nn.Linear(1, 1, bias=False), torch.full((64, 1), 2.0)
    recipe = Recipe((x, torch.ones(64, 1)), lambda out, y: scale * (out - y).square().mean(), optimizer, batch_size=8)
    network = Network(dagscale.trace(model, x), recipe, model, x, fills={"weight": Fill(1.0, 0.0)})
    wanted = 8 / 4 if optimizer.startswith("adam") else 8 * scale
    assert math.exp(curvature_after(network, steps=2).log_rate) == pytest.approx(wanted, rel=1e-3)


def test_examples_are_doubled_until_the_measurement_settles() -> None:
    values = {1: 8.0, 2: 4.0, 4: 4.1, 8: 9.0}
    assert [until_settled(values.__getitem__, most) for most in (0, 1, 2, 3, 4, 100)] == [8.0, 8.0, 4.0, 4.0, 4.1, 4.1]
    seen: list[int] = []
    assert until_settled(lambda count: seen.append(count) or 2.0**count, 1000) == 2.0**BATCHES  # type: ignore[func-returns-value]
    assert seen == [1, 2, 4, 8, 16]


def test_curvature_of_batches_is_that_of_their_examples_together() -> None:
    model = small_net()
    network = Network(dagscale.trace(model, X[:2]), Recipe((X, Y), cross_entropy, batch_size=16), model, X[:2])
    with network.probe(0) as probe:
        parts = [probe.batch() for _ in range(3)]
        whole = [Batch(torch.cat([b.inputs for b in parts]), torch.cat([b.target for b in parts]))]
        one, three = (leading_eigenpair(probe, probe.ratios, batches=batches)[0] for batches in (whole, parts))
    assert three == pytest.approx(one, rel=1e-3)


class Square(torch.autograd.Function):
    """Its backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return 2 * gradient * ctx.saved_tensors[0]


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.readout = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(Square.apply(self.first(x)))  # type: ignore[no-any-return]


def test_curvature_is_refused_where_a_backward_cannot_be_differentiated() -> None:
    with pytest.raises(PlanError, match=r"cannot itself be differentiated .* use law 'short-run'"):
        dagscale.plan(
            Squared(), X[:2], base=(Squared(), X[:2]), base_lr=0.1, law="curvature", data=(X, Y), loss=cross_entropy
        )


def test_adams_curvature_does_not_rest_on_parameters_that_few_examples_move() -> None:
    """Words of which most are rare: in small batches nearly none has a gradient."""
    torch.manual_seed(0)
    words = torch.distributions.Geometric(0.05).sample((512, 4)).long().clamp(max=99)
    model = nn.Sequential(nn.Embedding(100, 8), nn.Flatten(), nn.Linear(32, 2))
    recipe = Recipe((words, words[:, 0] % 2), cross_entropy, "adam", batch_size=4)
    network = Network(dagscale.trace(model, words[:2]), recipe, model, words[:2])
    assert curvature_after(network).log_rate < math.log(1e4)  # 1e8 and more where 1/ε divides


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
def test_dropout_draws_from_the_plans_seed(law: str) -> None:
    network, base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)), small_net()
    rates = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        given = {"data": (X, Y), "loss": cross_entropy, "law": law, "base_lr": 0.1}
        rates.append(dagscale.plan(network, X[:2], base=(base, X[:2]), **given).lr)
        assert torch.equal(torch.get_rng_state(), before)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
def test_measured_laws_need_data_and_a_scalar_loss(law: str) -> None:
    x, y = digits()
    base, target = load("mlp:2?width=16"), load("mlp:2_22?width=16")
    with pytest.raises(PlanError, match=r"needs data=\(x, y\) and loss"):
        dagscale.plan(*target, base=base, base_lr=0.1, law=law)
    with pytest.raises(PlanError, match="the loss must be one number"):
        dagscale.plan(
            *target, base=base, base_lr=0.1, law=law, data=(x, y),
            loss=lambda out, y: torch.nn.functional.cross_entropy(out, y, reduction="none"),
        )  # fmt: skip


def test_mup_scales_layers_by_their_growth() -> None:
    plan = dagscale.plan(
        *load("mlp:2?width=256"), base=load("mlp:2?width=64"), base_lr=0.1, law="none", width="mup", optimizer="adam"
    )
    rates = {name: p.lr for name, p in plan.parameters.items()}
    assert rates["stem.linear.weight"] == pytest.approx(0.1)
    assert rates["cells.0.edges.0_1.linear.weight"] == pytest.approx(0.025)
    assert rates["readout.linear.weight"] == pytest.approx(0.025)
    model = load("mlp:2?width=256")[0]
    groups = plan.param_groups(model, weight_decay=0.01, no_decay=())
    assert {round(g["lr"] * g["weight_decay"], 12) for g in groups} == {0.001}
    with pytest.raises(PlanError, match="unknown width mode"):
        dagscale.plan(*load("mlp:2"), base=load("mlp:2"), base_lr=0.1, width="mupp")


def small_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # from importing the compiler
@pytest.mark.parametrize("wrap", ["compiled", "part compiled", "data parallel"])
def test_measured_plans_are_the_same_for_wrapped_models(wrap: str) -> None:
    x, y = digits()
    x = x.flatten(1)
    known = {"base": (small_chain(), x[:2]), "base_lr": 0.1, "data": (x, y), "loss": torch.nn.functional.cross_entropy}
    model: nn.Module = small_chain()
    if wrap == "compiled":
        model = torch.compile(model)  # type: ignore[assignment]
    elif wrap == "data parallel":
        model = nn.DataParallel(model)
    else:
        model[2] = torch.compile(model[2])  # type: ignore[index, assignment]
    assert dagscale.plan(model, x[:2], **known) == dagscale.plan(small_chain(), x[:2], **known)


def small_net(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(1)
    between = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(8, 16), *between, nn.ReLU(), nn.Linear(16, 3))


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 8, generator=generator), torch.randint(0, 3, (64,), generator=generator)


class NoBatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise KeyError("my own words")
        return self.net(x)  # type: ignore[no-any-return]


X, Y = examples()


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"data": X}, PlanError, r"data is one tensor, \(64, 8\): give data=\(x, y\)"),
        ({"data": (X.tolist(), Y)}, PlanError, "data must be two tensors"),
        ({"data": (X, Y[:5])}, PlanError, r"x and y must have one length, got shapes \(64, 8\) and \(5,\)"),
        ({"data": (X[:1], Y[:1])}, PlanError, "at least 2 examples are needed, got 1"),
        ({"data": (X * float("nan"), Y)}, PlanError, "x holds NaN or infinite values"),
        ({"data": (X, Y / 0.0)}, PlanError, "y holds NaN or infinite values"),
        ({"data": (X[:, :5], Y)}, ForwardError, r"data of shape \(64, 5\); its example inputs are \(2, 8\)"),
        ({"data": (X, Y.float())}, PlanError, r"the loss raised .*: class labels must be int64, y\.long\(\)"),
        ({"data": (X, Y.int())}, PlanError, "class labels must be int64"),
        ({"data": (X, Y + 3)}, PlanError, r"out of bounds.*on output \(64, 3\)"),
        ({"batch_size": 0}, PlanError, "batch_size must be at least 1"),
        ({"steps": 0}, PlanError, "steps must be at least 1"),
        ({"steps": "a"}, PlanError, "steps must be a whole number, got 'a'"),
        ({"batch_size": 2.5}, PlanError, "batch_size must be a whole number, got 2.5"),
        ({"seed": 1.5}, PlanError, "seed must be a whole number, got 1.5"),
        ({"base_lr": "0.1"}, PlanError, "base_lr must be a positive number, not '0.1'"),
        (
            {"base_lr": None, "law": "curvature"},
            PlanError,
            "the base comes without one: give base_lr=.*leave the base out and name law 'short-run'",
        ),
        (
            {
                "model": nn.Sequential(
                    nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
                ),
                "inputs": torch.ones(2, 2, dtype=torch.int64),
                "data": (torch.ones(64, 2, dtype=torch.int64), Y),
                "optimizer": "adamw",
            },
            PlanError,
            "the step of adamw raised RuntimeError: .*sparse gradients",
        ),
        ({"batch_size": 1, "model": small_net(norm=True)}, ForwardError, "batch statistics need more: give 2 examples"),
        ({"inputs": X[:1], "model": small_net(norm=True)}, ForwardError, "batch statistics need more: give 2 examples"),
        ({"model": NoBatches()}, ForwardError, "my own words"),
        ({"model": small_net().requires_grad_(False)}, PlanError, "does not depend on any trainable parameter"),
        ({"loss": lambda out, y: torch.tensor(1.0)}, PlanError, "without .item"),
        ({"loss": lambda out, y: cross_entropy(out, y).item()}, PlanError, "the loss must be one number and is float"),
        (
            {"model": small_net().to("meta"), "inputs": X[:2].to("meta")},
            PlanError,
            "on meta and has no values to measure on: materialise it",
        ),
        ({"optimizer": "sdg"}, UnknownNameError, "unknown optimizer 'sdg'; did you mean 'sgd'"),
        ({"base": "small"}, PlanError, r"a model, or \(model, inputs\), got str"),
        ({"base": load("cnn:2")}, PlanError, "base: shares no layer with the target: it has convolution"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_init_runs(
    law: str, changed: dict, error: type[DagscaleError], text: str
) -> None:  # type: ignore[type-arg]
    def never(network: Network) -> dict[str, Fill]:
        raise AssertionError("the init has run")

    given = {"base": (small_net(), X[:2]), "base_lr": 0.1, "data": (X, Y), "loss": cross_entropy, "law": law} | changed
    model = given.pop("model", small_net())
    inputs = given.pop("inputs", X[:2])
    with dagscale.INITS.temporarily():
        dagscale.init("never")(never)
        with pytest.raises(error, match=text) as caught:
            dagscale.plan(model, inputs, init="never", **given)
    assert "\n" not in str(caught.value)


def test_a_forward_that_fails_under_the_init_is_the_users_error() -> None:
    with pytest.raises(ForwardError, match="target: the forward of NoBatches raised KeyError: 'my own words'"):
        dagscale.plan(NoBatches(), X[:2], base_lr=0.1, law="none", data=(X, Y))


@pytest.mark.parametrize("loss", [lambda out, y: out.mean(), lambda out, y: (out - 1).abs().mean()])
def test_curvature_needs_a_curved_loss(loss) -> None:  # type: ignore[no-untyped-def]
    known = {"base": (small_net(), X[:2]), "base_lr": 0.1, "data": (X, Y), "loss": loss}
    with pytest.raises(PlanError, match="linear in"):
        dagscale.plan(small_net(), X[:2], law="curvature", **known)


@pytest.mark.parametrize("width", ["none", "mup"])
def test_a_base_of_another_kind_is_refused(width: str) -> None:
    with pytest.raises(PlanError, match="base: shares no layer with the target"):
        dagscale.plan(*load("cnn:2"), base=load("mlp:2"), base_lr=0.1, law="none", width=width)


def test_a_base_of_another_shape_or_spelling_is_not() -> None:
    class Mixer(nn.Module):  # dense layers, spelled as 1×1 convolutions
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 10, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).relu()).mean((2, 3))

    x = torch.randn(2, 1, 8, 8)
    for target, base in ((load("mlp:2"), (Mixer(), x)), ((Mixer(), x), load("mlp:2")), ((Mixer(), x), load("cnn:2"))):
        assert dagscale.plan(*target, base=base, base_lr=0.1, law="none").lr == 0.1
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert dagscale.plan(*load("mlp:2_22"), base=(linear, x), base_lr=0.1, law="none").lr == 0.1


@pytest.mark.parametrize("law", ["short-run", "curvature", "function-change"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(law: str, dtype: torch.dtype) -> None:
    def planned(dtype: torch.dtype) -> tuple[nn.Module, dagscale.Plan]:
        model, base = small_net(norm=True).to(dtype), (small_net().to(dtype), X[:2].to(dtype))
        known = {"base": base, "base_lr": 0.1, "data": (X, Y), "loss": cross_entropy, "law": law}
        return model, dagscale.plan(model, X[:2].to(dtype), **known)

    model, plan = planned(dtype)
    assert plan == planned(torch.float32)[1]
    before = small_net(norm=True).to(dtype).state_dict()
    assert all(torch.equal(before[n], v) and v.dtype == before[n].dtype for n, v in model.state_dict().items())


def test_numbers_of_other_libraries_are_numbers() -> None:
    import numpy as np

    given = {"base": (small_net(), X[:2]), "data": (X, Y), "loss": cross_entropy, "law": "function-change"}
    plain = dagscale.plan(small_net(), X[:2], base_lr=0.125, seed=3, steps=9, **given)
    other = dagscale.plan(small_net(), X[:2], base_lr=torch.tensor(0.125), seed=np.int64(3), steps=np.int32(9), **given)
    assert other.to_json() == plain.to_json()


@pytest.mark.parametrize("law", ["combined", "paths", "none"])
def test_several_bases_give_the_mean_of_what_each_gives(law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they bear the law out: see ``test_certainty.py`` for where they do not."""
    monkeypatch.setattr("dagscale.planning.make.fitted_power", lambda *_: 1.0)
    known = {"law": law, "data": (X, (X[:, 0] > 0).long()), "loss": cross_entropy, "batch_size": 16}
    target = load("mlp:2_22?width=16&classes=3", input_shape=(8,))
    bases = [load(f"mlp:{code}?width=16&classes=3", input_shape=(8,)) for code in ("2", "2_02_002")]
    alone = [dagscale.plan(*target, base=b, base_lr=lr, **known) for b, lr in zip(bases, (0.1, 0.4), strict=True)]
    both = dagscale.plan(*target, base=bases, base_lr=[0.1, 0.4], **known)
    assert both.lr == pytest.approx((alone[0].lr * alone[1].lr) ** 0.5)
    assert both.base_lr == pytest.approx(0.2)
    assert both.lr == pytest.approx(both.base_lr * math.prod(both.factors.values()))
    assert both.parameters.keys() == alone[0].parameters.keys()
    apart = abs(math.log2(alone[0].lr / alone[1].lr))
    assert f"each base alone gives {alone[0].lr:.4g}, {alone[1].lr:.4g}: {apart:.1f} octaves apart" in both.notes[0]
    assert both.lr_interval is not None
    if law == "combined":
        assert both.forwards > max(one.forwards for one in alone)
    assert both.lr_interval[0] < both.lr < both.lr_interval[1]
    one = dagscale.plan(*target, base=bases[:1], base_lr=[0.1], **known)
    assert one == alone[0]


def test_factors_that_one_base_alone_has_count_by_its_share() -> None:
    """`covariance` says nothing of the base with norms."""
    known = {"data": (X, (X[:, 0] > 0).long()), "loss": cross_entropy, "batch_size": 16}
    options = "width=16&classes=3"
    target = load(f"mlp:2_22?{options}", input_shape=(8,))
    bases = [load(f"mlp:2?{options}{norm}", input_shape=(8,)) for norm in ("", "&norm=batch")]
    plain, normed = (dagscale.plan(*target, base=b, base_lr=0.1, **known) for b in bases)
    both = dagscale.plan(*target, base=bases, base_lr=(0.1, 0.1), **known)
    assert "covariance" in plain.factors
    assert "covariance" not in normed.factors
    assert both.factors["covariance"] == pytest.approx(plain.factors["covariance"] ** 0.5)
    assert both.lr == pytest.approx((plain.lr * normed.lr) ** 0.5)


@pytest.mark.parametrize("several", ["", "models", "a model and a pair"])
def test_a_base_may_be_a_model_alone(several: str) -> None:
    recipe = Recipe((torch.randn(8, 64), torch.arange(8)), cross_entropy, "sgd", batch_size=4, steps=2)
    (model, _), (small, _) = load("mlp:2_22?input=64"), load("mlp:2?input=64")
    rates, bases = ((0.1, 0.2), [small, small if several == "models" else (small, None)]) if several else (0.1, small)
    pairs = [(small, None), (small, None)] if several else (small, None)
    plan, other = (dagscale.plan(model, base=b, base_lr=rates, law="paths", recipe=recipe) for b in (bases, pairs))
    assert plan == other


def test_a_base_that_is_a_model_alone_reads_the_targets_example_inputs() -> None:
    (model, x), (small, _) = load("mlp:2_22?input=64"), load("mlp:2?input=64")
    plan, other = (dagscale.plan(model, x, base=b, base_lr=0.1, law="paths") for b in (small, (small, x)))
    assert plan == other


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"base_lr": 0.1}, "bases: 2, rates: 1; give each base its own base_lr"),
        ({"base_lr": [0.1, 0.2, 0.3]}, "bases: 2, rates: 3"),
        ({"base_lr": [0.1, -0.2]}, "base_lr must be a positive number, not"),
        ({"base_lr": [0.1, 0.2], "width": "mup"}, "from one base's shapes: give one, not 2"),
        (
            {"base_lr": [0.1, 0.2], "base": [load("mlp:2"), "mlp:2"]},
            r"base must be what dagscale.search returns, a model, or \(model, inputs\), got str",
        ),
        ({"base_lr": [0.1, 0.2], "base": [load("mlp:2"), load("cnn:2")]}, "base 2: shares no layer with the target"),
        ({"base_lr": [0.1, 0.2], "base": [load("mlp:2"), (nn.ReLU(), "x")]}, "base 2: "),
    ],
)
def test_several_bases_are_refused_in_one_line(given: dict[str, object], text: str) -> None:
    with pytest.raises(DagscaleError, match=text) as caught:
        dagscale.plan(*load("mlp:2_02"), **{"base": [load("mlp:2"), load("mlp:2_22")], "law": "none", **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("mean", "what"), [(1e300, "do not reach so far"), (0.0, "cannot be written to")])
def test_a_plan_that_cannot_be_written_changes_nothing(mean: float, what: str) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    plan = dagscale.plan(net, torch.ones(2, 4), base_lr=0.1, law="none", init="in-degree")
    if mean:
        own = replace(plan.parameters["2.bias"], init_mean=mean)
        plan = replace(plan, parameters={**plan.parameters, "2.bias": own})
    else:
        with torch.inference_mode():
            net[2].weight = nn.Parameter(torch.ones(3, 6))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(PlanError, match=what):
        plan.init_(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("lr",), 10**400), (("parameters", "bias", "lr"), 10**400), (("recipe",), 3), (("recipe", "steps"), -1),
        (("recipe", "schedule"), {"shape": "x"}), (("recipe", "schedule"), {"y": 1}), (("recipe", "weight_decay"), "x"),
        (("recipe", "optimizer"), "sgd"), (("recipe", "no_decay"), [3]),
    ],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_every_value_of_a_document_is_checked(way: tuple[str, ...], value: object) -> None:
    plan = dagscale.plan(nn.Linear(4, 2), torch.ones(2, 4), base_lr=0.1, law="none", init="in-degree")
    document = plan.to_dict()
    node = document
    for name in way[:-1]:
        node = node[name]
    node[way[-1]] = value
    with pytest.raises(PlanError):
        Plan.from_json(json.dumps(document))


def test_a_plan_is_read_from_plain_files_only() -> None:
    with pytest.raises(PlanError, match="is no plain file"):
        Plan.load("/dev/zero")


@pytest.mark.parametrize(("name", "given"), [("recipe", dagscale.Recipe()), ("base", None)])
def test_what_is_given_in_place_of_inputs_is_told(name: str, given: Any) -> None:
    given = given or dagscale.search(nn.Linear(8, 2), (torch.randn(32, 8), torch.arange(32) % 2), steps=4, seeds=1)
    with pytest.raises(PlanError, match=f"second argument is example inputs, not a .*: say it by name, {name}="):
        dagscale.plan(nn.Linear(8, 2), given)


def test_errors_are_one_line_without_control_characters() -> None:
    assert str(PlanError("a\nb \x1b[31m")) == "a b \\x1b[31m"


def test_an_init_that_is_no_name_is_one_line() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown init \['moments', 'damped'\] \(known: "):
        dagscale.plan(nn.Linear(4, 2), torch.ones(2, 4), base_lr=0.1, law="none", init=["moments", "damped"])  # type: ignore[arg-type]


def test_arguments_in_anothers_place_are_refused_in_one_line() -> None:
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    small, model = (nn.Sequential(nn.Linear(4, w), nn.ReLU(), nn.Linear(w, 3)) for w in (4, 8))
    recipe = dagscale.Recipe((x, y), loss=cross_entropy, batch_size=8, steps=2)
    base = dagscale.search(small, recipe, grid=[0.1, 0.2, 0.4])
    plan: Any = dagscale.plan(model, base=base, law="none")
    optimizer = plan.optimizer(model)
    wrong = {
        "Sequential is not a plan": lambda: dagscale.check(plan, model),
        "Base is not a plan": lambda: dagscale.watch(model, base, optimizer),
        "Plan is not a torch.nn.Module": lambda: dagscale.watch(plan, model, optimizer),
        "example inputs, not a Base: say it by name, base=": lambda: dagscale.plan(model, base),
        "example inputs, not a Recipe: say it by name, recipe=": lambda: dagscale.plan(model, recipe),
        "generator is not a torch.nn.Module": lambda: plan.optimizer(model.parameters()),
        "SGD is not a torch.nn.Module": lambda: plan.init_(optimizer),
        "Sequential is not a torch optimizer": lambda: plan.schedule(model),
        "is not a plan: give what": lambda: plan.diff(base),
        "pairs, or an optimizer": lambda: dagscale.clip_grad_norm_(model.parameters(), 1.0),
    }
    for said, call in wrong.items():
        with pytest.raises(dagscale.DagscaleError, match=said):
            call()


def test_a_schedule_that_gives_none_is_told_by_the_plan_too() -> None:
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    model = nn.Linear(4, 3)
    recipe = dagscale.Recipe((x, y), loss=cross_entropy, steps=4, schedule=lambda optimizer, steps: None)
    plan = dagscale.plan(model, recipe=recipe, base_lr=0.1, law="none")
    with pytest.raises(PlanError, match=r"gave a NoneType, which has no step\(\)"):
        plan.schedule(plan.optimizer(model))


def head_alone() -> tuple[nn.Sequential, dagscale.Plan]:
    """A network whose first layer is frozen after the plan was made, and the plan."""
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4))
    recipe = {"optimizer": "adamw", "weight_decay": 0.1, "schedule": dagscale.cosine()}
    plan = dagscale.plan(model, torch.randn(4, 8), base_lr=0.01, law="none", **recipe)
    model[0].requires_grad_(False)
    return model, plan


def test_groups_can_be_added_to_a_plans_optimiser_and_its_schedule_moves_them() -> None:
    model, plan = head_alone()
    optimizer = plan.optimizer(model)
    schedule = plan.schedule(optimizer, 10)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            schedule.step()

    train(5)  # the schedule is at half of each rate
    model[0].requires_grad_(True)
    before = model[0].weight.detach().clone()
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(3))})
    optimizer.add_param_group({"params": [("own", nn.Parameter(torch.zeros(3)))], "weight_decay": 0.0})
    added = optimizer.param_groups[-3:]
    assert [group["param_names"] for group in added] == [["0.weight", "0.bias"], ["added"], ["own"]]
    assert [group["initial_lr"] for group in added] == [1e-3, plan.lr, plan.lr]
    assert [group["lr"] for group in added] == pytest.approx([5e-4, plan.lr / 2, plan.lr / 2])
    assert [group["weight_decay"] for group in added] == [0.1, 0.1, 0.0]
    train(1)
    assert not torch.equal(model[0].weight, before)
    share = (1 + math.cos(math.pi * 6 / 10)) / 2
    assert [group["lr"] for group in added] == pytest.approx([1e-3 * share, 0.01 * share, 0.01 * share])
    train(4)
    assert all(group["lr"] == pytest.approx(0, abs=1e-12) for group in optimizer.param_groups)
    assert pickle.loads(pickle.dumps(optimizer)).state_dict().keys() == optimizer.state_dict().keys()


def test_an_optimiser_is_freed_with_its_last_reference() -> None:
    model, plan = head_alone()
    optimizer = plan.optimizer(model)
    held = weakref.ref(optimizer)
    del optimizer
    assert held() is None


def test_a_decay_given_to_the_optimiser_leaves_out_what_the_recipe_leaves_out() -> None:
    model, plan = head_alone()
    decays = {n: g["weight_decay"] for g in plan.param_groups(model, weight_decay=0.3) for n in g["param_names"]}
    assert decays == {"2.weight": 0.0, "2.bias": 0.0, "3.weight": 0.3, "3.bias": 0.0}
    every = plan.param_groups(model, weight_decay=0.3, no_decay=())
    assert [group["weight_decay"] for group in every] == [0.3]


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "a", True])
@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_rate_or_decay_that_cannot_be_meant_is_refused(name: str, value: Any) -> None:
    model, plan = head_alone()
    with pytest.raises(PlanError, match=f"{name} must be 0 or more, got"):
        plan.optimizer(model, **{name: value})


@pytest.mark.parametrize("value", [-1, 0, 1.5, True, "a", 2**70])
def test_a_length_or_seed_that_is_no_whole_number_is_refused(value: Any) -> None:
    model, plan = head_alone()
    with pytest.raises(PlanError, match="total_steps must be"):
        plan.schedule(plan.optimizer(model), value)
    before = weights(model)
    if value != 0:
        with pytest.raises(PlanError, match="seed must be"):
            plan.init_(model, seed=value)
    assert all(torch.equal(before[name], now) for name, now in weights(model).items())


def test_nothing_to_train_and_another_optimiser_are_told() -> None:
    model, plan = head_alone()
    other = Recipe((torch.randn(4, 8), torch.zeros(4)), cross_entropy, "sgd", steps=2)
    with pytest.raises(PlanError, match="recipe= trains with sgd, and the plan is for adamw"):
        plan.optimizer(model, recipe=other)
    assert plan.param_groups(model, only="0") == []  # to be joined with groups of others
    with pytest.raises(PlanError, match="nothing to train"):
        plan.optimizer(model, only="0")
    with pytest.raises(PlanError, match="says no length: give the number of optimiser steps"):
        plan.schedule(plan.optimizer(model))


@pytest.mark.parametrize("when", [0, 3, 45, 99])
def test_added_groups_have_the_plans_ratios_at_every_step(when: int) -> None:
    model, plan = head_alone()
    plan = dagscale.plan(model, torch.randn(4, 8), base_lr=0.01, law="none", optimizer="sgd",
                         schedule=dagscale.cosine(warmup=0.1))  # fmt: skip
    optimizer = plan.optimizer(model)
    schedule = plan.schedule(optimizer, 100)
    model[0].requires_grad_(True)
    for step in range(100):
        if step == when:
            for group in plan.param_groups(model, only="0"):
                optimizer.add_param_group(group)
        assert len({round(group["lr"], 12) for group in optimizer.param_groups}) == 1
        optimizer.step()
        schedule.step()


def test_a_training_with_added_groups_goes_on_from_its_checkpoint() -> None:
    model, plan = head_alone()
    model[0].requires_grad_(True)

    def made() -> tuple[torch.optim.Optimizer, Any]:
        model[0].requires_grad_(False)
        optimizer = plan.optimizer(model)
        schedule = plan.schedule(optimizer, 20)
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
        return optimizer, schedule

    def rates(steps: int) -> list[float]:
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return [group["lr"] for group in optimizer.param_groups]

    optimizer, schedule = made()
    rates(5)
    saved = optimizer.state_dict(), schedule.state_dict()
    expected = rates(5)
    optimizer, schedule = made()
    optimizer.load_state_dict(saved[0])
    schedule.load_state_dict(saved[1])
    assert rates(5) == expected


def test_an_optimiser_without_names_takes_groups_without_names() -> None:
    model, _ = head_alone()

    def nameless(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW([{k: v for k, v in group.items() if k != "param_names"} for group in groups])

    recipe = Recipe((torch.randn(8, 8), torch.zeros(8, dtype=torch.long)), cross_entropy, nameless, steps=2)
    optimizer = dagscale.plan(model, recipe=recipe, base_lr=0.1, law="none").optimizer(model)
    optimizer.add_param_group({"params": model[0].parameters()})
    assert len(optimizer.param_groups) == 2


def test_gains_that_decay_draws_back_to_their_offset_are_told_of() -> None:
    class Offset(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.gain = nn.Embedding(20, width), nn.Parameter(torch.zeros(width))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = nn.functional.rms_norm(self.embed(ids), self.gain.shape) * (1 + self.gain)
            return nn.functional.linear(x, self.embed.weight)

    ids = torch.randint(0, 20, (4, 6))
    how: dict[str, Any] = {"base_lr": 0.01, "law": "none", "init": "moments", "width": "mup", "optimizer": "adamw"}

    def told(**more: Any) -> bool:
        plan = dagscale.plan(Offset(64), ids, base=(Offset(16), ids), **how, **more)
        assert plan.parameters["gain"].init_mean == pytest.approx(-0.75)
        return any("gain: the model adds a number to it" in note for note in plan.notes)

    assert told(weight_decay=0.1, no_decay=())
    assert not told(weight_decay=0.1)
    assert not told()
