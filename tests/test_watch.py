"""Watching a training: silent on sound ones, and each fault of a kind that people have met is named."""

from __future__ import annotations

import json
import math
import pickle
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.fixtures.residual import WORDS, Transformer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import PlanError, WatchError
from dagscale.tracing.calls import LayerCalls
from dagscale.training.muon import MuonWithAdamW

STEPS = 12
RATES = {
    "sgd": 0.05, "momentum": 0.01, "nesterov": 0.01, "adam": 3e-3, "adamw": 3e-3, "nadam": 3e-3, "rmsprop": 1e-3,
    "adagrad": 1e-2, "muon": 3e-3, "adafactor": 1e-2,
}  # fmt: skip
RATES = {name: rate for name, rate in RATES.items() if name in dagscale.OPTIMIZERS}  # before torch 2.5 one is missing
Make = Callable[[int], nn.Module]


def mlp(size: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8 * size), nn.LayerNorm(8 * size), nn.ReLU(),
        nn.Linear(8 * size, 8 * size), nn.ReLU(), nn.Linear(8 * size, 5),
    )  # fmt: skip


def cnn(size: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8 * size, 3, padding=1), nn.BatchNorm2d(8 * size), nn.ReLU(),
        nn.Conv2d(8 * size, 8 * size, 3, padding=1), nn.BatchNorm2d(8 * size), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * size, 5),
    )  # fmt: skip


def transformer(size: int) -> nn.Module:
    return Transformer(width=8 * size)


MODELS: dict[str, Make] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def inputs(name: str, batch: int = 32) -> Tensor:
    if name == "transformer":
        return torch.randint(WORDS, (batch, 6))
    return torch.randn(batch, 6) if name == "mlp" else torch.randn(batch, 3, 6, 6)


def batches(name: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, labels a function of the inputs."""
    while True:
        x = inputs(name)
        if name == "transformer":
            yield x, (x * 2 + 1) % WORDS
        else:
            yield x, x.flatten(1)[:, :5].argmax(1)


def loss(out: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(out.flatten(0, -2), y.flatten())


def planned(name: str, optimizer: str = "adamw", **more: Any) -> tuple[nn.Module, dagscale.Plan]:
    """A model four times as wide as its base, initialised, and its plan."""
    torch.manual_seed(0)
    make = MODELS[name]
    options = {"width": "mup", "depth": "none", **{k: more.pop(k) for k in ("width", "depth", "init") if k in more}}
    recipe = dagscale.Recipe(loss=loss, optimizer=optimizer, steps=STEPS, **more)
    model, x = make(4), inputs(name, 2)
    given = {"init": "in-degree", **options}
    plan = dagscale.plan(model, x, base=(make(1), x), base_lr=RATES[optimizer], recipe=recipe, law="none", **given)
    return plan.init_(model), plan


def trained(
    name: str,
    model: nn.Module,
    plan: dagscale.Plan,
    optimizer: Any,
    *,
    scheduler: Any = None,
    clip: float | None = None,
    accumulate: int = 1,
    autocast: bool = False,
    closure: bool = False,
    steps: int = STEPS,
    before: Callable[[int], Any] = lambda step: None,
    scale: float = 1.0,
    **options: Any,
) -> dagscale.WatchReport:
    """The report on a loop of one's own."""
    torch.manual_seed(1)
    source = batches(name)

    def backward() -> Tensor:
        optimizer.zero_grad()
        for _ in range(accumulate):
            x, y = next(source)
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                value = loss(model(x), y) / accumulate
            (value * scale).backward()
        if scale != 1:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad /= scale
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return value

    with dagscale.watch(model, plan, optimizer, every=4, **options) as watch:
        for step in range(steps):
            before(step)
            if closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return watch.report()


# --- sound trainings ---------------------------------------------------------------------------------------------


def cosine(optimizer: Any) -> Any:
    return dagscale.cosine(warmup=0.25)(optimizer, STEPS)


def one_cycle(optimizer: Any) -> Any:
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, STEPS + 1, cycle_momentum=False)


def stepwise(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.3)


PLAIN: dict[str, Any] = {}
SOUND = [
    *((name, optimizer, PLAIN, None) for name in MODELS for optimizer in RATES),
    *((name, optimizer, {}, schedule) for name in MODELS for optimizer in ("momentum", "adamw", "muon") for schedule in
      (cosine, one_cycle, stepwise)),
    *((name, optimizer, options, cosine) for name in MODELS for optimizer in ("sgd", "adamw", "muon") for options in (
        {"clip": 1.0}, {"accumulate": 3}, {"autocast": True}, {"closure": True}, {"scale": 2.0**16, "clip": 1.0})),
]  # fmt: skip


def labelled(case: tuple[Any, ...]) -> str:
    name, optimizer, options, schedule = case
    said = "-".join(options) or "plain"
    return f"{name}-{optimizer}-{said}-{schedule.__name__ if schedule else 'constant'}"


@pytest.mark.parametrize("case", SOUND, ids=labelled)
def test_it_is_silent_on_sound_trainings(case: tuple[Any, ...]) -> None:
    name, kind, options, schedule = case
    if kind == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    decay = {"weight_decay": 0.1} if kind in ("adamw", "muon") else {}
    width = "none" if kind == "adafactor" else "mup"
    model, plan = planned(name, kind, width=width, **decay)
    optimizer = plan.optimizer(model)
    base = None
    if width == "mup":
        torch.manual_seed(0)
        small = MODELS[name](1)
        own = dagscale.plan(
            small, inputs(name, 2), base=(small, inputs(name, 2)), base_lr=RATES[kind], recipe=plan.live, law="none"
        )
        first = own.optimizer(own.init_(small))
        base = trained(name, small, own, first, scheduler=schedule and schedule(first), **options)
    report = trained(name, model, plan, optimizer, scheduler=schedule and schedule(optimizer), base=base, **options)
    assert report.ok, str(report)
    assert report.observed == 5
    assert (base is None) == all(row.planned_signal is None for row in report.rows)
    assert report.kept is not None
    seen = [row for row in report.rows if row.signal is not None]
    assert len(seen) >= 3
    assert all(0 < row.signal < math.inf for row in seen if row.signal is not None), str(report)


@pytest.mark.parametrize("lr", [0.05, 1e-9])
def test_steps_that_float32_cannot_hold_are_no_fault(lr: float) -> None:
    """The biases before a norm have gradients of rounding alone; at a tiny rate no weight moves as far as it should."""
    torch.manual_seed(0)
    model, x = cnn(2), inputs("cnn", 2)
    plan = dagscale.plan(model, x, base_lr=lr, optimizer="sgd", law="none", init="keep")
    report = trained("cnn", model, plan, plan.optimizer(model))
    assert report.ok, str(report)


def test_there_are_enough_sound_trainings() -> None:
    assert len(SOUND) >= 30


# --- faults ------------------------------------------------------------------------------------------------------


def watched(name: str = "mlp", optimizer: str = "adamw", **more: Any) -> tuple[nn.Module, dagscale.Plan, Any]:
    model, plan = planned(name, optimizer, **more)
    return model, plan, plan.optimizer(model)


def only(report: dagscale.WatchReport, what: str) -> Any:
    """The report's one fault, which is of this kind."""
    assert [fault.what for fault in report.faults] == [what], str(report)
    assert report.verdict == f"fail: {report.first}"
    assert "\n" not in report.verdict
    return report.first


def test_a_loop_that_sets_one_rate() -> None:
    model, plan, optimizer = watched()

    def overwrite(step: int) -> None:
        for group in optimizer.param_groups if step >= 5 else ():
            group["lr"] = 1e-3

    fault = only(trained("mlp", model, plan, optimizer, before=overwrite), "rate")
    assert "one rate 0.001 from step 6 on" in fault.cause
    assert "plan.schedule(optimizer)" in fault.cause


def test_a_scheduler_with_one_largest_rate() -> None:
    model, plan, optimizer = watched()
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS + 1, cycle_momentum=False)
    fault = only(trained("mlp", model, plan, optimizer, scheduler=scheduler), "rate")
    assert "from the first step on" in fault.cause
    assert "OneCycleLR's max_lr" in fault.cause


def test_a_lowest_rate_is_noted_where_it_is_small_and_a_fault_where_it_is_not() -> None:
    for share, ok in ((0.01, True), (0.3, False)):
        model, plan, optimizer = watched(weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=share * plan.lr)
        report = trained("mlp", model, plan, optimizer, scheduler=scheduler)
        assert report.ok is ok, str(report)
        assert "lowest rate" in str(report)


def test_factors_applied_twice() -> None:
    model, plan, optimizer = watched("transformer", width="mup")
    for group in optimizer.param_groups:
        group["lr"] *= group["lr"] / plan.lr
    fault = only(trained("transformer", model, plan, optimizer), "rate")
    assert "applied twice" in fault.cause


def test_an_optimizer_of_the_bare_parameters() -> None:
    model, plan, _ = watched()
    fault = only(trained("mlp", model, plan, torch.optim.AdamW(model.parameters(), lr=plan.lr)), "rate")
    assert "plan.optimizer(model)" in fault.cause


def test_one_rate_is_no_fault_where_the_plan_has_one() -> None:
    model, plan = planned("mlp", width="none")
    assert trained("mlp", model, plan, torch.optim.AdamW(model.parameters(), lr=plan.lr)).ok


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_factor_of_the_readout(name: str) -> None:
    model, plan, _ = watched(name)
    readout = next(n for n, own in plan.parameters.items() if own.role == "readout")
    groups = plan.param_groups(model)
    for group in list(groups):
        if readout in group["param_names"] and len(group["params"]) > 1:
            i = group["param_names"].index(readout)
            groups.append({**group, "params": [group["params"].pop(i)], "param_names": [group["param_names"].pop(i)]})
        chosen = groups[-1] if groups[-1]["param_names"] == [readout] else group
        if chosen["param_names"] == [readout]:
            chosen["lr"] = plan.lr
    optimizer = torch.optim.AdamW(groups)
    fault = only(trained(name, model, plan, optimizer), "rate")
    assert fault.where == readout
    assert "the readout's rate is 4 × the plan's" in fault.cause
    assert "its factor is missing" in fault.cause


def test_a_readout_drawn_again() -> None:
    model, plan, optimizer = watched("cnn")
    nn.init.normal_(model[-1].weight, std=4 * plan.parameters["8.weight"].init_std)  # type: ignore[operator, index, union-attr]
    fault = only(trained("cnn", model, plan, optimizer), "init")
    assert fault.where == "8.weight"
    assert "the readout's initial weights are" in fault.cause


@pytest.mark.parametrize("name", MODELS)
def test_an_init_that_was_never_applied(name: str) -> None:
    _, plan = planned(name)
    torch.manual_seed(0)
    fresh = MODELS[name](4)
    fault = only(trained(name, fresh, plan, plan.optimizer(fresh)), "init")
    assert "plan.init_(model)" in fault.cause


def test_weights_that_stay_are_not_held_against_an_init() -> None:
    model, plan = planned("mlp", init="keep")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.7)
    assert trained("mlp", model, plan, plan.optimizer(model)).ok


def test_a_training_that_goes_on() -> None:
    model, plan, optimizer = watched()
    trained("mlp", model, plan, optimizer)
    report = trained("mlp", model, plan, optimizer)
    assert report.ok
    assert any("before the watch began" in note for note in report.notes)


class FlattensLate(MuonWithAdamW):
    """A Muon that takes its shape factor of the update as it is, and makes a matrix of it afterwards."""

    def _step_matrices(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                factor = 0.2 * math.sqrt(max(buffer.shape[-2:]))
                u, _, v = torch.linalg.svd(buffer.flatten(1), full_matrices=False)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((u @ v).view_as(p), alpha=-group["lr"] * factor)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_muon
def test_convolutions_flattened_after_the_shape_factor() -> None:
    model, plan = planned("cnn", "muon")
    optimizer = FlattensLate(plan.param_groups(model))
    fault = only(trained("cnn", model, plan, optimizer), "step")
    assert fault.where == "3.weight"
    assert "its shape factor is that of 3 × 3" in fault.cause
    assert "flatten to out × (in · kernel) first, as plan.optimizer(model) does" in fault.cause
    sound, plan = planned("mlp", "muon")
    assert trained("mlp", sound, plan, FlattensLate(plan.param_groups(sound))).ok  # of matrices it is right


@needs_muon
def test_another_shape_factor() -> None:
    model, plan = planned("cnn", "muon")
    optimizer = MuonWithAdamW(plan.param_groups(model), adjust_lr_fn="original")
    fault = only(trained("cnn", model, plan, optimizer), "step")
    assert "'original', where the plan's rates are for 'match_rms_adamw'" in fault.cause


@needs_muon
def test_clipping_of_the_step_itself() -> None:
    class Clips(MuonWithAdamW):
        def step(self, closure: Any = None) -> Any:
            held = [p for group in self.param_groups for p in group["params"]]
            old = [p.detach().clone() for p in held]
            out = super().step(closure)
            with torch.no_grad():
                for p, q in zip(held, old, strict=True):
                    p.copy_(q + (p - q) / 10)
            return out

    model, plan = planned("mlp", "muon")
    report = trained("mlp", model, plan, Clips(plan.param_groups(model)))
    assert report.first is not None
    assert report.first.where == "3.weight"
    assert "clipping cuts the step itself" in report.first.cause


def test_clipping_that_swallows_the_step() -> None:
    model, plan, optimizer = watched("cnn", "momentum")
    report = trained("cnn", model, plan, optimizer, clip=0.02)
    fault = only(report, "clipping")
    assert report.kept is not None
    assert report.kept < 0.1
    assert f"clipping keeps {report.kept:.2g} of the gradient" in fault.cause
    assert f"{1 / report.kept:.3g} times smaller" in fault.cause


def test_what_clipping_keeps_is_what_it_kept() -> None:
    """Against the norms, for which the training is run by hand."""
    model, plan, optimizer = watched("mlp", "sgd")
    kept = []
    source = batches("mlp")
    with dagscale.watch(model, plan, optimizer, every=1) as watch:
        for _ in range(4):
            x, y = next(source)
            optimizer.zero_grad()
            loss(model(x), y).backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            kept.append(min(1.0, 0.3 / float(norm)))
            optimizer.step()
    assert watch.report().kept == pytest.approx(sorted(kept)[1] / 2 + sorted(kept)[2] / 2, rel=1e-4)


def test_clipping_is_no_fault_where_the_step_does_not_follow_the_gradient() -> None:
    model, plan, optimizer = watched("cnn", "adamw")
    report = trained("cnn", model, plan, optimizer, clip=0.02)
    assert report.ok, str(report)
    assert any(note.startswith("clipping keeps 0.0") for note in report.notes)


def test_a_layer_frozen_after_planning() -> None:
    model, plan = planned("mlp")
    model[3].weight.requires_grad_(False)  # type: ignore[index, union-attr, operator]
    fault = only(trained("mlp", model, plan, plan.optimizer(model)), "frozen")
    assert fault.where == "3.weight"
    assert "requires_grad_(True)" in fault.cause


def test_what_was_frozen_when_planned_is_no_fault() -> None:
    model = mlp(4)
    model[0].requires_grad_(False)  # type: ignore[index, operator]
    x = inputs("mlp", 2)
    plan = dagscale.plan(model, x, base_lr=1e-3, optimizer="adamw", law="none", init="in-degree")
    report = trained("mlp", plan.init_(model), plan, plan.optimizer(model))
    assert report.ok, str(report)
    assert any("0.weight" in note for note in report.notes)


def test_a_layer_frozen_while_training() -> None:
    model, plan, optimizer = watched()

    def freeze(step: int) -> None:
        if step == 5:
            model[3].requires_grad_(False)  # type: ignore[index, operator]

    fault = only(trained("mlp", model, plan, optimizer, before=freeze), "gradient")
    assert fault.where == "3.weight, 3.bias"
    assert "frozen since" in fault.cause


def test_a_part_that_the_loss_does_not_reach() -> None:
    model, plan, optimizer = watched()
    model[2].register_forward_hook(lambda module, args, out: out.detach())  # type: ignore[index, operator]
    fault = only(trained("mlp", model, plan, optimizer), "gradient")
    assert fault.where == "0.weight, 0.bias, 1.weight and 1 more"
    assert "detached" in fault.cause


def test_a_parameter_missing_from_the_optimizer() -> None:
    model, plan = planned("mlp")
    groups = plan.param_groups(model, only=["0", "1", "5"])
    fault = only(trained("mlp", model, plan, torch.optim.AdamW(groups)), "missing")
    assert fault.where == "3.weight, 3.bias"


def test_an_optimizer_of_another_model() -> None:
    model, plan = planned("mlp")
    other = mlp(4)
    fault = only(trained("mlp", model, plan, plan.optimizer(other)), "missing")
    assert "none of the model's parameters" in fault.cause


def test_decay_on_norms() -> None:
    model, plan = planned("mlp", weight_decay=0.1)
    groups = plan.param_groups(model)
    for group in groups:
        group["weight_decay"] = group["weight_decay"] or 0.1
    fault = only(trained("mlp", model, plan, torch.optim.AdamW(groups)), "decay")
    assert "0.1 on what the plan trains without (bias, norm)" in fault.cause


def test_a_decay_that_is_not_the_plans() -> None:
    model, plan = planned("mlp", weight_decay=0.1)
    groups = plan.param_groups(model)
    for group in groups:
        group["weight_decay"] = 0.1 if group["weight_decay"] else 0.0
    fault = only(trained("mlp", model, plan, torch.optim.AdamW(groups)), "decay")
    assert "weight decay is" in fault.cause


def test_an_eps_that_is_not_the_plans() -> None:
    model, plan = planned("transformer")
    groups = plan.param_groups(model)
    assert sum("eps" in group for group in groups) > 1
    next(group for group in groups if "eps" in group)["eps"] *= 10
    assert only(trained("transformer", model, plan, torch.optim.AdamW(groups)), "eps")


def test_gradients_scaled_by_layer() -> None:
    model, plan, optimizer = watched("mlp", "sgd")
    model[3].weight.register_hook(lambda grad: grad * 0.1)  # type: ignore[index, union-attr, operator]
    assert trained("mlp", model, plan, optimizer).ok  # before the optimizer: the gradient is what it is

    class Scales(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            model[3].weight.grad.mul_(0.1)  # type: ignore[index, union-attr, operator]
            return super().step(closure)

    model, plan = planned("mlp", "sgd")
    fault = only(trained("mlp", model, plan, Scales(plan.param_groups(model))), "step")
    assert fault.where == "3.weight"
    assert "moves 0.1 × as far" in fault.cause


def test_steps_lost_in_rounding() -> None:
    model, plan = planned("mlp", "adamw")
    model.bfloat16()
    optimizer = plan.optimizer(model, lr=1e-7)
    forward = model.forward
    model.forward = lambda x: forward(x.bfloat16())  # type: ignore[method-assign]
    report = trained("mlp", model, plan, optimizer)
    assert report.first is not None
    assert report.first.what == "step"
    assert "rounding to bfloat16" in report.first.cause


def test_a_training_that_diverges() -> None:
    model, plan = planned("mlp", "sgd")
    report = trained("mlp", model, plan, plan.optimizer(model, lr=1e30))
    assert any(fault.what == "signal" and "diverged" in fault.cause for fault in report.faults), str(report)
    json.loads(report.to_json())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_that_move_further_than_the_bases(name: str) -> None:
    """One rate for a network 16 times as wide: by the theory of maximal updates 16 times as far, for Adam."""
    reports = []
    for size in (1, 16):
        torch.manual_seed(0)
        model, x = MODELS[name](size), inputs(name, 2)
        recipe = dagscale.Recipe(loss=loss, optimizer="adamw", steps=STEPS)
        plan = dagscale.plan(
            model, x, base=(MODELS[name](1), x), base_lr=RATES["adamw"], recipe=recipe, law="none", init="in-degree"
        )
        optimizer = plan.optimizer(plan.init_(model))
        reports.append(trained(name, model, plan, optimizer, base=reports[0] if reports else None))
    assert reports[0].ok
    fault = only(reports[1], "signal")
    assert "of hidden layers" in fault.cause
    assert "plan with width='mup'" in fault.cause
    assert "base" in str(reports[1])


def test_a_branch_end_is_a_kind_of_its_own() -> None:
    torch.manual_seed(0)
    x = inputs("transformer", 2)
    model, base = Transformer(depth=6), Transformer(depth=2)
    recipe = dagscale.Recipe(loss=loss, optimizer="adamw", steps=STEPS)
    plan = dagscale.plan(model, x, base=(base, x), base_lr=3e-3, recipe=recipe, depth="depth-mup", init="in-degree")
    report = trained("transformer", plan.init_(model), plan, plan.optimizer(model))
    assert report.ok, str(report)
    ends = {row.name for row in report.rows if row.kind == "branch end"}
    assert ends == {f"blocks.{i}.{n}.weight" for i in range(6) for n in ("o", "down")}


# --- what is measured --------------------------------------------------------------------------------------------


def test_nothing_of_the_training_changes() -> None:
    """Weights to the bit, with dropout, and the random state after it."""
    ends = []
    for watching in (False, True):
        model, plan = planned("mlp")
        optimizer = plan.optimizer(model)
        torch.manual_seed(5)
        source = batches("mlp")
        with dagscale.watch(model, plan, optimizer, every=2) if watching else nullcontext():
            for _ in range(6):
                x, y = next(source)
                optimizer.zero_grad()
                loss(nn.functional.dropout(model(x), 0.2), y).backward()
                optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()] + [torch.rand(3)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_change_of_a_layers_output_is_that_of_its_own_step(autocast: bool) -> None:
    """Against ``(W' - W) x``, computed by hand on the same rows."""
    model, plan, optimizer = watched("mlp")
    layer: Any = model[3]  # type: ignore[index]
    entered: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, out: entered.append(args[0].detach()[:8].float()))
    before = layer.weight.detach().clone()
    report = trained("mlp", model, plan, optimizer, steps=1, autocast=autocast)
    change = entered[0] @ (layer.weight.detach() - before).T
    wanted = float(change.square().mean().sqrt() / (entered[0] @ before.T).square().mean().sqrt())
    row = next(row for row in report.rows if row.name == "3.weight")
    assert row.signal == pytest.approx(wanted, rel=0.3 if autocast else 1e-3)
    moved = float((layer.weight.detach() - before).square().mean().sqrt() / before.square().mean().sqrt())
    assert row.update == pytest.approx(moved, rel=1e-5)
    assert row.planned_update == pytest.approx(row.update, rel=0.15)  # Adam's first step is its rate, entry by entry


def test_a_weight_is_computed_again_from_its_parameters() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    weights: list[Tensor] = []
    x = torch.randn(2, 4)
    calls = LayerCalls(layer, after=lambda use, out: weights.append(use.weight))
    with calls:
        layer(x)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr, operator]
        assert torch.allclose(calls.now(weights[0]), layer.weight.T)
        assert not torch.allclose(weights[0], layer.weight.T)


def test_several_optimizers() -> None:
    model, plan = planned("mlp")
    one = torch.optim.AdamW(plan.param_groups(model, only=["0", "1"]))
    two = torch.optim.AdamW(plan.param_groups(model, only=["3", "5"]))

    class Both:
        def zero_grad(self) -> None:
            model.zero_grad()

        def step(self) -> None:
            one.step()
            two.step()

    torch.manual_seed(1)
    source, both = batches("mlp"), Both()
    with dagscale.watch(model, plan, [one, two], every=4) as watch:
        for _ in range(STEPS):
            x, y = next(source)
            both.zero_grad()
            loss(model(x), y).backward()
            both.step()
    report = watch.report()
    assert report.ok, str(report)
    assert all(row.update for row in report.rows)


def test_a_compiled_model() -> None:
    model, plan, optimizer = watched()
    compiled = torch.compile(model, backend="eager")
    report = trained("mlp", compiled, plan, optimizer)  # type: ignore[arg-type]
    assert report.ok, str(report)
    assert all(row.update for row in report.rows)


@pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")  # of torch 2.4's own checkpoints
def test_sparse_gradients_and_checkpoints() -> None:
    class Bag(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, width, sparse=True)
            self.hidden, self.readout = nn.Linear(width, width), nn.Linear(width, WORDS)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.utils.checkpoint.checkpoint(self.hidden, self.embed(x).relu(), use_reentrant=False)
            out: Tensor = self.readout(z.relu())
            return out

    torch.manual_seed(0)
    x = inputs("transformer", 2)
    model = Bag(16)
    plan = dagscale.plan(model, x, base_lr=0.05, optimizer="sgd", law="none", init="in-degree")
    report = trained("transformer", plan.init_(model), plan, plan.optimizer(model))
    assert report.ok, str(report)
    assert {row.name for row in report.rows if row.signal} == {"embed.weight", "hidden.weight", "readout.weight"}


@pytest.mark.parametrize("kind", ["sparse features", "one number"])
def test_layers_whose_input_has_no_rows_to_take_are_seen(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.kinds, self.b = nn.Linear(6, 8), nn.Embedding(2, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor, which: Tensor) -> Tensor:
            a = torch.sparse.mm(x.to_sparse(), self.a.weight.T) if kind == "sparse features" else self.a(x)
            out: Tensor = self.b(torch.relu(a + self.kinds(which)))
            return out

    torch.manual_seed(0)
    model, x = Net(), inputs("mlp")
    which = torch.tensor(1) if kind == "one number" else torch.ones(len(x), dtype=torch.long)
    plan = dagscale.plan(model, (x, which), optimizer="adamw", base_lr=1e-3, law="none", init="keep")
    optimizer = plan.optimizer(model)
    seen = dagscale.watch(model, plan, optimizer, every=1)
    cross_entropy(model(x, which), x[:, :5].argmax(1)).backward()
    optimizer.step()
    report = seen.report()
    assert not any("were not seen" in note for note in report.notes), report.notes
    signals = {row.name: row.signal for row in report.rows}
    assert all(signals[name] for name in ("a.weight", "b.weight", "kinds.weight")), signals


def test_a_forward_that_raises_leaves_no_mode_behind() -> None:
    model, plan, optimizer = watched()
    watch = dagscale.watch(model, plan, optimizer)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 7))
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    watch.close()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_every_and_log() -> None:
    logged: dict[int, dict[str, float]] = {}
    model, plan, optimizer = watched()
    report = trained("mlp", model, plan, optimizer, log=logged.__setitem__)
    assert list(logged) == [1, 2, 4, 8, 12]
    assert all(type(v) is float and math.isfinite(v) for values in logged.values() for v in values.values())
    assert logged[12] == report.scalars()
    assert {"dagscale/faults", "dagscale/update/hidden", "dagscale/rate/readout"} <= set(logged[12])


def test_the_report_is_a_value() -> None:
    model, plan, optimizer = watched("transformer")
    watch = dagscale.watch(model, plan, optimizer)
    assert watch.report().verdict.startswith("no step seen yet")
    watch.close()
    report = trained("transformer", model, plan, optimizer)
    assert pickle.loads(pickle.dumps(report)) == report
    assert json.loads(report.to_json())["rows"][0]["name"] == "position"
    assert "blocks.*.q.weight (2)" in str(report)
    assert "<pre>" in report._repr_html_()
    assert repr(report).startswith("WatchReport('pass:")


@pytest.mark.parametrize("every", [0, 2.5, True, "50"])
def test_every_must_be_a_whole_number(every: Any) -> None:
    model, plan, optimizer = watched()
    with pytest.raises(WatchError, match="every must be"):
        dagscale.watch(model, plan, optimizer, every=every)


def test_a_base_is_held_against_by_its_report() -> None:
    model, plan, optimizer = watched()
    with pytest.raises(WatchError, match="the report of a watch on the base's training, not Plan"):
        dagscale.watch(model, plan, optimizer, base=plan)  # type: ignore[arg-type]


def test_bad_requests() -> None:
    model, plan, optimizer = watched()
    with pytest.raises(WatchError, match="optimizer must be a torch optimizer"):
        dagscale.watch(model, plan, model)  # type: ignore[arg-type]
    with pytest.raises(WatchError, match="no optimizer to watch"):
        dagscale.watch(model, plan, [])
    with pytest.raises(WatchError, match=r"AdamW is not a plan: give what dagscale\.plan returned"):
        dagscale.watch(model, optimizer, plan)  # type: ignore[arg-type]
    with pytest.raises(WatchError, match="log must be a function"):
        dagscale.watch(model, plan, optimizer, log=3)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="the plan is for another model"):
        dagscale.watch(mlp(2), plan, optimizer)
    assert not model._forward_hooks
    assert not optimizer._optimizer_step_pre_hooks


def test_a_scripted_model_takes_no_hooks() -> None:
    model, plan, _ = watched()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(model)
    with pytest.raises(WatchError, match=r"the model takes no hooks .* watch a training of it as it was before"):
        dagscale.watch(scripted, plan, plan.optimizer(scripted))


def test_a_layer_that_writes_into_a_buffer_of_the_users_is_left_alone() -> None:
    """Fused losses compute logits tile by tile into one buffer: run again on a few rows, it would be cut to these."""

    class IntoBuffer(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            out = torch.empty(len(x), len(weight))
            torch.mm(x, weight.t(), out=out)
            return out + torch.zeros(len(x), 1)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            x, weight = ctx.saved_tensors
            return grads[0] @ weight, grads[0].t() @ x

    class Buffered(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return IntoBuffer.apply(x, self.weight)  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
    plan = dagscale.plan(model, torch.zeros(2, 8), base_lr=0.01, law="none", optimizer="adamw")
    plan.init_(model)
    model[2].__class__ = Buffered
    optimizer = plan.optimizer(model)
    with dagscale.watch(model, plan, optimizer) as watch:
        model(torch.randn(32, 8)).square().mean().backward()
        optimizer.step()
    assert watch.report().observed == 1


def test_data_that_the_recipe_holds_are_no_constants_of_the_model() -> None:
    x, y = torch.randn(32, 6), torch.randint(5, (32,))
    model = mlp(1)
    plan = dagscale.plan(
        model, base_lr=0.05, law="none", init="in-degree",
        recipe=dagscale.Recipe((x, y), loss=cross_entropy, batch_size=32, steps=4),
    )  # fmt: skip
    optimizer = plan.optimizer(plan.init_(model))
    with dagscale.watch(model, plan, optimizer, every=1) as watch:
        for _ in range(2):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
    assert {row.name for row in watch.report().rows if row.signal is not None} >= {"0.weight", "3.weight", "5.weight"}


def test_a_watch_that_is_stopped_while_it_hangs_itself_leaves_no_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    plan = dagscale.plan(model, torch.ones(1, 2), base_lr=0.1, law="none")
    optimizer = plan.optimizer(model)
    hang = optimizer.register_step_pre_hook

    def stopped(hook: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return hang(hook)

    monkeypatch.setattr(optimizer, "register_step_pre_hook", stopped)
    with pytest.raises(KeyboardInterrupt):
        dagscale.watch(model, plan, optimizer)
    hooks: Any = (model._forward_hooks, model._forward_pre_hooks, optimizer._optimizer_step_pre_hooks,
                  optimizer._optimizer_step_post_hooks)  # fmt: skip
    assert not any(hooks)
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("name", ["adagrad", "adamw"])
def test_weights_that_are_not_the_plans_are_seen_whatever_state_an_optimiser_begins_with(name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    plan = dagscale.plan(model, x, base_lr=0.01, law="none", init="in-degree", optimizer=name)
    optimizer = plan.optimizer(model)  # without init_
    with dagscale.watch(model, plan, optimizer, every=1) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        report = watch.report()
    assert "not as the plan draws them" in str(report)
