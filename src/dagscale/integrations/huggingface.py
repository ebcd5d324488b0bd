"""The Trainer of transformers, and what is built on it, such as TRL's SFTTrainer: how it trains as a `Recipe`, and a
plan in place of its one learning rate. ::

    trainer = Trainer(model, args, train_dataset=data)
    plan = dagscale.plan(model, base=dagscale.search(small, recipe_of(trainer)), depth="completep")
    use_plan(trainer, plan)
    trainer.train()
"""

from __future__ import annotations

import copy
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from dagscale.errors import OptimizerError, PlanError, RecipeError, WatchError
from dagscale.integrations.requirement import require
from dagscale.models.timm import declare_torchvision_ops
from dagscale.shown import reason
from dagscale.training.clipping import clip_grad_norm_
from dagscale.training.optimizers import OPTIMIZERS, Optimizer, resolve
from dagscale.training.recipe import Recipe
from dagscale.training.schedules import constant, cosine, linear
from dagscale.watching import Watch, WatchReport, watch

declare_torchvision_ops()  # before transformers imports torchvision
require("transformers", "transformers", "5.0")
require("accelerate", "accelerate")
require("transformers.trainer", "transformers", "5.0")
from transformers import Trainer, TrainerCallback, get_scheduler  # noqa: E402
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: E402

if TYPE_CHECKING:
    from dagscale.planning.plans import Plan
    from dagscale.watching.make import Log

SHAPES = {"linear": linear, "cosine": cosine, "constant_with_warmup": constant, "constant": lambda warmup: constant()}
"""The Trainer's schedules that are dagscale's own, by the name of the Trainer's."""

ALIKE = {
    "paged_adamw": "adamw", "adamw": "adamw", "paged_lion": "lion", "lion": "lion", "rmsprop": "rmsprop",
    "schedule_free_adamw": "schedule-free",
}  # fmt: skip
"""Beginnings of the Trainer's names of optimisers, and which known optimiser steps as they do."""


def recipe_of(trainer: Trainer, **changes: Any) -> Recipe:
    """How a Trainer trains, read from the Trainer itself, so that it is said once.

    Its train dataset, collator and sampling make the batches; its arguments say the optimiser with its betas and eps,
    weight decay, the names that do not decay, schedule and warm-up, clipping, gradient accumulation (the processes of a
    distributed training count as accumulation, so that the recipe's step sees the global batch), bf16, and the length
    of the run. ``learning_rate`` is not read: it is what is planned. The loss is the model's own where that is the
    Trainer's; its label smoothing and ``compute_loss_func`` are taken over. Under ``fp16`` the model is measured in its
    own type, since a recipe has no loss scaling. The noise of ``neftune_noise_alpha`` is left out.

    Args:
        trainer: a ``transformers.Trainer``, or one built on it; it is not changed.
        changes: arguments of `dagscale.Recipe` that are to differ, such as ``loss`` or ``optimizer``; ``accumulate``
            changes the number of steps with it, unless ``steps`` is given or the Trainer has ``max_steps``.

    Raises:
        RecipeError: if the Trainer has no train dataset, a length that nobody knows, a loss or a schedule of its own
            that a recipe cannot hold; each names the argument to give in its place.
        OptimizerError: if the optimiser that its arguments name cannot be made, or makes groups of its own.
    """
    _check_trainer(trainer)
    args = trainer.args
    if trainer.train_dataset is None:
        raise RecipeError("the Trainer has no train_dataset: give it one, Trainer(..., train_dataset=...)")
    loader = _loader(trainer)
    if "epochs" in changes:
        raise RecipeError("recipe_of(trainer) reads the length from the Trainer: give it steps= in place of epochs=")
    accumulate = changes.get("accumulate") or args.gradient_accumulation_steps * args.world_size
    steps = changes.get("steps") or _steps(trainer, loader, accumulate)
    said: dict[str, Any] = {
        "data": loader, "accumulate": accumulate, "steps": steps, "weight_decay": args.weight_decay,
        "no_decay": _no_decay(trainer), "clip": args.max_grad_norm or None,
        "autocast": torch.bfloat16 if args.bf16 else None,
    }  # fmt: skip
    for name, read in (("loss", _loss), ("optimizer", _optimizer)):
        if name not in changes:
            said[name] = read(trainer)
    if "schedule" not in changes:
        said["schedule"] = _schedule(args, steps)
    return Recipe(**{**said, **changes})


def use_plan(trainer: Trainer, plan: Plan) -> None:
    """Let a Trainer train by a plan: its optimizer gets the plan's groups. Its schedule multiplies their rates.

    The optimiser is the plan's, whatever ``optim`` and ``learning_rate`` say. Weight decay is the plan's, or where that
    says nothing, the Trainer's, without the names that the Trainer leaves out. Where width or depth rules have folded
    multipliers into the plan, gradients are clipped by the norm that weighs them, just before each step, in place of
    the Trainer's own clipping: in this Trainer's arguments (a copy of yours) ``max_grad_norm`` becomes 0. In a
    distributed training all processes take the plan of the first. The weights are not drawn: that is ``plan.init_``.
    Only of a Trainer that makes its model anew for each training, with ``model_init``, is each model drawn as well.

    Args:
        trainer: a ``transformers.Trainer`` or one built on it, which has not trained yet.
        plan: the plan for its model.

    Raises:
        PlanError: if the Trainer has an optimizer already, runs under DeepSpeed or FSDP 1, or the plan is for another
            model; nothing has changed then.
    """
    _check_trainer(trainer)
    args = trainer.args
    if trainer.optimizer is not None or getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
        raise PlanError(
            "the Trainer has an optimizer already, which would be used in place of the plan's: make a new Trainer, "
            "without optimizers= and optimizer_cls_and_kwargs="
        )
    if trainer.is_deepspeed_enabled:
        raise PlanError(
            "DeepSpeed is not supported under the Trainer: use FSDP 2 (fsdp_config={'fsdp_version': 2}) or DDP, or "
            "deepspeed.initialize(model=model, optimizer=plan.optimizer(model), ...) in a loop of your own"
        )
    if _is_fsdp1(trainer):
        raise PlanError(
            "FSDP 1 flattens parameters of several rates into one: use FSDP 2 (fsdp_config={'fsdp_version': 2}), or DDP"
        )
    plan = _first_process(plan) if args.world_size > 1 else plan
    trainer.optimizer = _planned(trainer, plan, args.max_grad_norm)
    if args.max_grad_norm and plan.folded:
        trainer.args = copy.copy(args)
        trainer.args.max_grad_norm = 0.0
    if trainer.model_init is not None:  # train() makes another model, and forgets the optimizer of the one before
        begin, norm = trainer.call_model_init, args.max_grad_norm

        def create_optimizer(model: Any = None) -> Any:
            trainer.optimizer = trainer.optimizer or _planned(trainer, plan, norm)
            return trainer.optimizer

        trainer.call_model_init = lambda trial=None: plan.init_(begin(trial))
        trainer.create_optimizer = create_optimizer


class WatchCallback(TrainerCallback):  # type: ignore[misc]
    """Watches a Trainer's training with `dagscale.watch`, from its first step to its last; see there. ::

        watching = WatchCallback(plan)
        trainer.add_callback(watching)
        trainer.train()
        print(watching.report())

    Args:
        plan: the plan that the training follows.
        every: how often a step is observed closely.
        log: called as ``log(step, scalars)`` after each observed step.
        base: what a watch of the base reported, to hold changes of signals against.
    """

    def __init__(self, plan: Plan, *, every: int = 50, log: Log | None = None, base: WatchReport | None = None) -> None:
        self.plan, self.every, self.log, self.base = plan, every, log, base
        self.watch: Watch | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Hangs the watch on the optimizer, inside whatever wraps it."""
        self.on_train_end(args, state, control)
        self.watch = watch(of["model"], self.plan, of["optimizer"], every=self.every, log=self.log, base=self.base)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Takes it off; what was seen stays."""
        if self.watch is not None:
            self.watch.close()

    def report(self) -> WatchReport:
        """What was seen so far.

        Raises:
            WatchError: if the training has not begun.
        """
        if self.watch is None:
            raise WatchError("nothing was seen yet: call trainer.train() first, with this callback added to it")
        return self.watch.report()


@dataclass(frozen=True)
class Clip:
    """A hook before an optimizer's step: clips by the norm that weighs folded multipliers. Where a loss scale is still
    in the gradients, the norm that they are clipped to is scaled alike."""

    norm: float

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # fused optimizers take it out themselves, after this
        clip_grad_norm_(optimizer, self.norm * (1.0 if scale is None else float(scale)))


@dataclass(frozen=True)
class NoDecay:
    """The Trainer's rule of what gets no weight decay, by names in which every number stands for all: the base's layers
    are the target's, fewer. Of names that the Trainer's model has not, what has fewer than two dimensions.

    Attributes:
        without, known: names without decay, and all names, of the Trainer's model.
    """

    without: frozenset[str]
    known: frozenset[str]

    def __call__(self, name: str, parameter: nn.Parameter) -> bool:
        name = numberless(name)
        return name in self.without if name in self.known else parameter.ndim < 2


def numberless(name: str) -> str:
    """``h.3.mlp.weight`` → ``h.*.mlp.weight``."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _planned(trainer: Trainer, plan: Plan, norm: float) -> torch.optim.Optimizer:
    """The plan's optimizer of the Trainer's present model. It clips by itself where multipliers are folded in."""
    args = trainer.args
    more: dict[str, Any] = {}
    if plan.recipe.get("weight_decay") is None:
        more = {"weight_decay": args.weight_decay, "no_decay": _no_decay(trainer)}
    elif plan.live is None and isinstance(plan.recipe.get("no_decay"), str):  # a function that its file does not hold
        more = {"no_decay": _no_decay(trainer)}
    if plan.live is None and plan.optimizer_name not in OPTIMIZERS:
        more["recipe"] = Recipe(optimizer=_optimizer(trainer))
    optimizer: torch.optim.Optimizer = plan.optimizer(trainer.model, **more)
    if norm and plan.folded:
        optimizer.register_step_pre_hook(Clip(norm))
    return optimizer


# --- what the Trainer says -------------------------------------------------------------------------------------


def _check_trainer(trainer: Any) -> None:
    if not isinstance(trainer, Trainer):
        raise RecipeError(f"a transformers.Trainer is needed, not {type(trainer).__name__}: give the Trainer itself")


def _loader(trainer: Trainer) -> Any:
    """The Trainer's batches for one process: its own loader's parts, without what spreads them over processes."""
    own = trainer.get_train_dataloader()
    size = trainer.args.train_batch_size
    common = {"collate_fn": own.collate_fn, "num_workers": own.num_workers}
    if isinstance(trainer.train_dataset, IterableDataset):
        return DataLoader(trainer.train_dataset, batch_size=size, **common)
    batches = own.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    sampler = getattr(batches, "sampler", None)
    shuffle = not isinstance(sampler, torch.utils.data.Sampler) or isinstance(sampler, RandomSampler)
    return DataLoader(
        own.dataset, batch_size=size, sampler=None if shuffle else sampler, shuffle=shuffle,
        drop_last=trainer.args.dataloader_drop_last, **common,
    )  # fmt: skip


def _steps(trainer: Trainer, loader: Any, accumulate: int) -> int:
    """Optimiser steps of the run, as the Trainer counts them."""
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    try:
        batches = len(loader)
    except TypeError:
        raise RecipeError("the train dataset does not say its length: give TrainingArguments max_steps=") from None
    steps: int = math.ceil(args.num_train_epochs * max(1, math.ceil(batches / accumulate)))
    return steps


def _optimizer(trainer: Trainer) -> Optimizer:
    """What is known of the optimiser that the arguments name."""
    args = trainer.args
    name = str(getattr(args.optim, "value", args.optim))
    mend = "give recipe_of(trainer, optimizer=...) another one, or its class registered with dagscale.optimizer"
    try:
        build, settings = Trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise OptimizerError(f"the Trainer cannot make optim={name!r} ({reason(error)}): {mend}") from error
    settings = {key: value for key, value in settings.items() if key != "lr"}
    if {"params", "model", "optimizer_dict"} & settings.keys():
        raise OptimizerError(f"optim={name!r} makes parameter groups of its own, in place of the plan's: {mend}")
    found = resolve(build, settings)
    alike = next((known for beginning, known in ALIKE.items() if name.startswith(beginning)), None)
    if found.step is None and alike is not None:
        found = replace(OPTIMIZERS[alike], name=name, build=build, settings=settings, scaling=None)
    return Optimizer(name, build).configured(settings) if found.step is None else found


def _no_decay(trainer: Trainer) -> NoDecay:
    names = {name for name, _ in trainer.model.named_parameters()}
    decay = set(trainer.get_decay_parameter_names(trainer.model))
    return NoDecay(frozenset(map(numberless, names - decay)), frozenset(map(numberless, names)))


def _schedule(args: Any, steps: int) -> Any:
    """The Trainer's schedule; counts of steps become shares, for runs of another length."""
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if name in ("reduce_lr_on_plateau", "greedy"):
        raise RecipeError(f"lr_scheduler_type={name!r} follows a metric: give recipe_of(trainer, schedule=...)")
    warm, more = args.get_warmup_steps(steps), dict(args.lr_scheduler_kwargs or {})
    if name in SHAPES and not more:
        return SHAPES[name](warmup=warm / steps if warm < steps else warm)

    def schedule(optimizer: torch.optim.Optimizer, total: int) -> Any:
        counted = {k: round(v * total / steps) if re.fullmatch(r"num_\w*steps", k) else v for k, v in more.items()}
        return get_scheduler(
            name, optimizer, num_warmup_steps=round(warm * total / steps), num_training_steps=total,
            scheduler_specific_kwargs=counted,
        )  # fmt: skip

    schedule.__qualname__ = name
    return schedule


def _loss(trainer: Trainer) -> Any:
    """The Trainer's loss as a function of output and labels; None for the model's own."""
    smoother, own = trainer.label_smoother, trainer.compute_loss_func
    if type(trainer).compute_loss is not Trainer.compute_loss:
        raise RecipeError(
            f"{type(trainer).__name__} has a compute_loss of its own: give recipe_of(trainer, loss=...), a function of "
            "output and labels, or loss=None where it is the model's own loss"
        )
    if own is not None:
        return lambda output, labels: own(_whole(output), labels, num_items_in_batch=None)
    if smoother is not None:
        model = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
        shifted = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return lambda output, labels: smoother(_whole(output), labels, shift_labels=shifted)
    return None


def _whole(output: Any) -> Any:
    """The model's whole output, which a loss is given only where it cannot do with the logits."""
    if isinstance(output, Tensor):
        raise TypeError("the whole output is needed, not its logits alone")
    return output


def _is_fsdp1(trainer: Trainer) -> bool:
    return bool(trainer.is_fsdp_enabled) and getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1


def _first_process(plan: Plan) -> Plan:
    """The plan of the first process, in all: what each has measured for itself may differ in the last digits."""
    from accelerate.utils import broadcast_object_list

    (first,) = broadcast_object_list([plan], from_process=0)
    return plan if first == plan else first  # its own has the functions of its recipe


__all__ = ["WatchCallback", "recipe_of", "use_plan"]
