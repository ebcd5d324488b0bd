"""timm: its names of optimisers as a recipe understands them, and its optimiser factory with a plan's groups.

::

    recipe = recipe_of(args, loader, loss, model)  # args of timm's train.py
    plan = dagscale.plan(model, recipe=recipe)
    optimizer = create_optimizer(args, plan.init_(model), plan)  # in place of timm.optim.create_optimizer_v2(…)
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import nn

from dagscale.errors import OptimizerError, RecipeError
from dagscale.integrations.requirement import require
from dagscale.models.timm import declare_torchvision_ops
from dagscale.planning.plans import Plan
from dagscale.registry import did_you_mean
from dagscale.tracing.wrappers import unwrapped
from dagscale.training.optimizers import Groups, Optimizer, resolve
from dagscale.training.recipe import Recipe

TAKEN_BY_PLAN = ("lr", "layer_decay", "layer_decay_min_scale", "layer_decay_no_opt_scale")
"""Of timm's settings, those that say rates, which the plan says."""


def named_optimizer(opt: str, **settings: Any) -> Optimizer:
    """What is known of the optimiser that timm calls ``opt``, made as timm makes it.

    timm's own defaults hold: ``sgd`` has Nesterov momentum of 0.9. An optimiser that is one of ``torch.optim`` has all
    that dagscale knows of that; of timm's own, such as ``lamb``, nothing is known, and it is trained with and searched.

    Args:
        opt: a name as ``--opt`` takes it, ``lookahead_`` before it or not.
        settings: as `timm.optim.create_optimizer_v2` takes them: ``momentum``, ``betas``, ``eps``, ….

    Raises:
        OptimizerError: if timm knows no such name.
    """
    factory = _factory()
    name = opt.lower().rpartition("_")[2]
    try:
        info = factory.get_optimizer_info(name)
    except ValueError:
        hint = did_you_mean(name, factory.list_optimizers())
        raise OptimizerError(f"timm has no optimizer {opt!r}{hint} (timm.optim.list_optimizers() lists them)") from None
    build = partial(_build, opt)
    known = info.opt_class if isinstance(info.opt_class, type) else None
    if name != opt.lower() or known is None or not known.__module__.startswith("torch.optim"):
        return Optimizer(opt, build).configured(settings)
    defaults = {**(info.defaults or {}), **({"momentum": 0.9} if info.has_momentum else {}), **settings}
    dropped = {"eps": info.has_eps, "betas": info.has_betas, "momentum": info.has_momentum}
    return resolve(known, {k: v for k, v in defaults.items() if dropped.get(k, True)})


def recipe_of(args: Any, data: Any, loss: Any, model: nn.Module | None = None, **changes: Any) -> Recipe:
    """How timm's ``train.py`` trains, as far as its arguments say it.

    Optimiser, decay, clipping, accumulation and number of epochs are read from the arguments. Their schedule is not: it
    is counted in epochs, and ``schedule=`` says it.

    Args:
        args: its parsed arguments: ``opt``, ``momentum``, ``weight_decay``, ``opt_eps``, ``opt_betas``,
            ``opt_kwargs``, ``clip_grad``, ``epochs``, ….
        data, loss: as `dagscale.Recipe` takes them, such as ``loader_train`` and ``train_loss_fn``.
        model: whose ``no_weight_decay()`` names parameters without decay, such as a ViT's ``pos_embed``.
        changes: arguments of `dagscale.Recipe` that are to differ or come besides, such as ``steps`` or ``schedule``.

    Raises:
        OptimizerError: if timm knows no such optimiser.
        RecipeError: if it clips in a way that no recipe can say.
    """
    said = _said(args)
    own = {k: v for k, v in said.items() if k not in ("opt", "weight_decay")}
    found: dict[str, Any] = {"weight_decay": said["weight_decay"], "no_decay": _no_decay(model)}
    if "optimizer" not in changes:
        found["optimizer"] = named_optimizer(said["opt"], **own)
    if getattr(args, "clip_grad", None) is not None and "clip" not in changes:
        if getattr(args, "clip_mode", "norm") != "norm":
            raise RecipeError(
                f"clip_mode {args.clip_mode!r} is none that a recipe can say: clip by norm, or give clip="
            )
        found["clip"] = float(args.clip_grad)
    found["accumulate"] = getattr(args, "grad_accum_steps", 1)
    if not {"steps", "epochs"} & changes.keys():
        found["epochs"] = getattr(args, "epochs", None)
    return Recipe(data, loss, **{**found, **changes})


def create_optimizer(args: Any, model: nn.Module, plan: Plan, **groups: Any) -> torch.optim.Optimizer:
    """In place of ``timm.optim.create_optimizer_v2(model, **optimizer_kwargs(cfg=args))``: the same optimiser, with the
    plan's groups.

    Args:
        args: the parsed arguments of timm's ``train.py``; their ``lr`` and ``layer_decay`` give way to the plan, and so
            do weight decay, betas, eps and momentum where the plan says them.
        model: the model, as it was planned; wrappers are looked through.
        plan: its plan.
        groups: further arguments of `dagscale.Plan.param_groups`.

    Raises:
        PlanError: if the plan does not fit the model.
        OptimizerError: if timm knows no such optimiser, or it cannot be made.
    """
    said = _said(args)
    if named_optimizer(said["opt"]).name == plan.optimizer_name:  # an unknown name is told in one line
        said |= _planned(plan, said)
    decay = plan.recipe.get("weight_decay")
    said["weight_decay"] = said["weight_decay"] if decay is None else decay
    own = {"weight_decay": said["weight_decay"], "no_decay": _no_decay(model), **groups}
    made: torch.optim.Optimizer = _factory().create_optimizer_v2(
        model, **said, lr=plan.lr, param_group_fn=param_groups_fn(plan, **own)
    )
    return made


def param_groups_fn(plan: Plan, **groups: Any) -> Callable[[nn.Module], Groups]:
    """``param_group_fn`` for ``timm.optim.create_optimizer_v2``: the plan's groups.

    timm's schedulers go from each group's own rate to ``min_lr``, which is one number for all groups; leave it at 0.

    Args:
        plan: the plan of the model.
        groups: further arguments of `dagscale.Plan.param_groups`.
    """

    def grouped(model: nn.Module) -> Groups:
        return plan.param_groups(model, **groups)

    return grouped


def _said(args: Any) -> dict[str, Any]:
    """What the arguments say of the optimiser, ``--opt-kwargs`` besides, without what the plan says."""
    said = {**_factory().optimizer_kwargs(cfg=args), **(getattr(args, "opt_kwargs", None) or {})}
    return {k: v for k, v in said.items() if k not in TAKEN_BY_PLAN}


def _planned(plan: Plan, said: dict[str, Any]) -> dict[str, Any]:
    """The plan's settings that timm takes: rules for batch and length of the run change betas."""
    settings = plan.recipe["optimizer"].get("settings") or {}
    taken = {k: v for k, v in settings.items() if k in ("betas", "eps", "momentum", *said)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in taken.items()}


def _no_decay(model: nn.Module | None) -> Callable[[str, nn.Parameter], bool]:
    """timm's own rule: no decay for what has one dimension, nor for what the model names."""
    named: Any = getattr(unwrapped(model) if model is not None else None, "no_weight_decay", set)()

    def without_decay(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in named)

    return without_decay


def _build(opt: str, groups: Groups, **settings: Any) -> Any:
    """As timm makes it of parameter groups."""
    return _factory().create_optimizer_v2(groups, opt, **settings)


def _factory() -> Any:
    declare_torchvision_ops()
    return require("timm.optim._optim_factory", "timm", "1.0.12")


__all__ = ["create_optimizer", "named_optimizer", "param_groups_fn", "recipe_of"]
