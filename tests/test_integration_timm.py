"""timm, with the real package: its names of optimisers, its factory with a plan's groups, its scheduler, resuming."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import DagscaleError, OptimizerError, PlanError, RecipeError

timm = pytest.importorskip("timm")
from timm.optim import create_optimizer_v2, optimizer_kwargs  # noqa: E402
from timm.scheduler import CosineLRScheduler  # noqa: E402

from dagscale.integrations.timm import create_optimizer, named_optimizer, param_groups_fn, recipe_of  # noqa: E402


def vit(depth: int = 1, width: int = 16) -> Any:
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=8, patch_size=4, num_classes=4, embed_dim=width, depth=depth, num_heads=2, mlp_ratio=2
    )


def arguments(**more: Any) -> Namespace:
    """Of timm's train.py, as far as they matter here."""
    said = {
        "opt": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "momentum": 0.9,
        "opt_betas": (0.9, 0.95),
        "clip_grad": 1.0,
    }
    return Namespace(**{**said, "clip_grad": 1.0, "clip_mode": "norm", "grad_accum_steps": 1, **more})


DATA = (torch.randn(16, 3, 8, 8), torch.arange(16) % 4)


def planned(args: Namespace, model: nn.Module, **more: Any) -> dagscale.Plan:
    recipe = recipe_of(args, DATA, cross_entropy, model, steps=4, batch_size=8)
    return dagscale.plan(model, recipe=recipe, base_lr=0.01, law="none", init="keep", **more)


def rates(model: nn.Module, optimizer: Any, what: str = "lr") -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group[what] for group in optimizer.param_groups for p in group["params"]}


def train(model: nn.Module, optimizer: Any, steps: int) -> list[torch.Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(DATA[0]), DATA[1]).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_its_factory_makes_the_same_optimizer_with_the_plans_rates() -> None:
    args, model = arguments(), vit()
    plan = planned(args, model, lr_scale={"patch_embed": 0.1})
    ours, theirs = create_optimizer(args, model, plan), create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    assert type(ours) is type(theirs) is torch.optim.AdamW
    assert rates(model, ours) == {name: own.lr for name, own in plan.parameters.items()}
    assert len(set(rates(model, ours).values())) == 2
    assert rates(model, ours, "weight_decay") == rates(model, theirs, "weight_decay"), "pos_embed and biases have none"
    assert {group["betas"] for group in ours.param_groups} == {(0.9, 0.95)}
    by_hand = create_optimizer_v2(model, opt="adamw", lr=plan.lr, param_group_fn=param_groups_fn(plan))
    assert rates(model, by_hand) == rates(model, ours)
    assert plan.recipe["clip"] == 1.0
    scheduler = CosineLRScheduler(ours, t_initial=10, warmup_t=2)
    scheduler.step(2)
    found = rates(model, ours)
    assert found["patch_embed.proj.weight"] == pytest.approx(found["head.weight"] / 10)


def test_decay_and_betas_are_the_plans() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4))

    args, model = arguments(weight_decay=0.1), net(16)
    recipe = recipe_of(args, DATA, cross_entropy, model, steps=4, batch_size=4)
    base = dagscale.search(net(8), recipe, seeds=1, grid=[1e-3, 1e-2], widen=0)
    longer = recipe.changed(batch_size=8, steps=16)
    plan = dagscale.plan(model, base=base, recipe=longer, law="none", batch="sqrt", horizon="timescale")
    ours, plans = create_optimizer(args, model, plan), plan.optimizer(model)
    assert {group["betas"] for group in ours.param_groups} == {group["betas"] for group in plans.param_groups}
    assert {group["betas"] for group in ours.param_groups} != {(0.9, 0.95)}
    assert rates(model, ours, "weight_decay") == rates(model, plans, "weight_decay")
    assert max(rates(model, ours, "weight_decay").values()) < 0.1
    other = create_optimizer(arguments(opt="lion", opt_betas=(0.8, 0.9)), model, plan)
    assert other.param_groups[0]["betas"] == (0.8, 0.9), "of another optimiser than the plan's"


def test_further_settings_reach_recipe_and_optimizer() -> None:
    args, model = arguments(opt_kwargs={"amsgrad": True, "lr": 5.0}), nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert recipe_of(args, DATA, cross_entropy, model, batch_size=4).optimizer.settings["amsgrad"]
    plan = planned(args, model)
    ours = create_optimizer(args, model, plan)
    assert all(group["amsgrad"] for group in ours.param_groups)
    assert rates(model, ours) == {name: own.lr for name, own in plan.parameters.items()}


def test_what_is_said_besides_comes_first_and_the_length_is_the_scripts() -> None:
    args = arguments(epochs=3, grad_accum_steps=2, clip_mode="agc", opt="adamv")
    recipe = recipe_of(args, DATA, cross_entropy, optimizer="lion", clip=0.5, batch_size=4)
    assert (recipe.epochs, recipe.accumulate, recipe.clip, recipe.optimizer.name) == (3, 2, 0.5, "lion")
    assert recipe_of(arguments(epochs=3), DATA, cross_entropy, steps=5, batch_size=4).epochs is None


def test_two_steps_and_resuming() -> None:
    args, model = arguments(), vit()
    plan = planned(args, model, lr_scale={"head": 0.5})
    optimizer = create_optimizer(args, model, plan)
    train(model, optimizer, 2)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "plan": plan}
    torch.save(saved, buffer := __import__("io").BytesIO())
    buffer.seek(0)
    loaded = torch.load(buffer)
    straight = train(model, optimizer, 2)
    again = vit()
    again.load_state_dict(loaded["model"])
    resumed = create_optimizer(args, again, loaded["plan"])
    resumed.load_state_dict(loaded["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(straight, train(again, resumed, 2), strict=True))
    assert rates(again, resumed) == {name: own.lr for name, own in plan.parameters.items()}


@pytest.mark.parametrize(
    ("opt", "name", "step"),
    [("sgd", "nesterov", "gradient"), ("momentum", "sgd", "gradient"), ("adamw", "adamw", "sign"),
     ("adam", "adam", "sign"), ("rmsprop", "rmsprop", "sign"), ("nadam", "nadam", "sign"), ("lamb", "lamb", None),
     ("lion", "dagscale.integrations.timm.lion", None), ("adamax", "Adamax", None),
     ("lookahead_adamw", "lookahead_adamw", None)],
)  # fmt: skip
def test_names(opt: str, name: str, step: str | None) -> None:
    record = named_optimizer(opt, momentum=0.9, eps=1e-6)
    assert (record.name, record.step) == (name, step)
    model = nn.Linear(3, 2)
    ours = record.make([{"params": list(model.parameters()), "lr": 0.1}])
    theirs = create_optimizer_v2([{"params": list(model.parameters())}], opt, lr=0.1, momentum=0.9, eps=1e-6)
    assert type(ours) is type(theirs)
    for key in ("momentum", "nesterov", "eps", "alpha"):
        assert ours.param_groups[0].get(key) == theirs.param_groups[0].get(key)


def test_an_optimizer_of_its_own_is_searched() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    recipe = dagscale.Recipe(DATA, cross_entropy, named_optimizer("lamb"), steps=3, batch_size=8)
    found = dagscale.search(model, recipe, seeds=1, grid=(0.01, 0.1), widen=0)
    assert found.recipe["optimizer"]["name"] == "lamb"


def test_one_line_with_the_mend() -> None:
    with pytest.raises(OptimizerError, match="timm has no optimizer 'adamv'; did you mean 'adam'"):
        recipe_of(arguments(opt="adamv"), DATA, cross_entropy)
    with pytest.raises(RecipeError, match="clip_mode 'agc' is none that a recipe can say: clip by norm"):
        recipe_of(arguments(clip_mode="agc"), DATA, cross_entropy)
    args, model = arguments(), vit()
    with pytest.raises(PlanError, match="the plan is for another model"):
        create_optimizer(args, vit(depth=2), planned(args, model))
    base, lamb = (vit(), DATA[0]), named_optimizer("lamb")
    with pytest.raises(DagscaleError, match="which is unknown: register it with"):
        dagscale.plan(vit(2), DATA[0], base=base, base_lr=0.1, optimizer=lamb, width="mup", law="none")
