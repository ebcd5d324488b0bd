"""Lightning: a callback that searches and plans before the fit, the optimiser in one line, and the watch as a callback.

::

    class Net(LightningModule):
        def configure_optimizers(self):
            return configure_optimizers(self)

    planning = PlanCallback(lambda: Net(width=64, depth=2), optimizer="adamw", weight_decay=0.1)
    Trainer(max_epochs=10, gradient_clip_val=1.0, callbacks=[planning, WatchCallback()]).fit(Net(512, 12), loader)
"""

from __future__ import annotations

import copy
import inspect
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

import dagscale
from dagscale.errors import DagscaleError, PlanError, RecipeError, WatchError
from dagscale.integrations.requirement import require
from dagscale.integrations.training_step import by_training_step
from dagscale.models.timm import declare_torchvision_ops
from dagscale.planning.base import Base
from dagscale.planning.plans import Plan
from dagscale.tracing.wrappers import is_sharded
from dagscale.training.batches import with_own_workers
from dagscale.training.clipping import clip_grad_norm_
from dagscale.training.recipe import Recipe
from dagscale.watching import Watch, WatchReport

declare_torchvision_ops()  # before lightning imports torchvision
pytorch = require("lightning.pytorch", "lightning", "2.1")
if TYPE_CHECKING:

    class Callback:
        """Lightning's."""
else:
    Callback = pytorch.Callback


def configure_optimizers(
    module: Any, plan: Plan | None = None, *, schedule: bool = True, **groups: Any
) -> dict[str, Any]:
    """What ``LightningModule.configure_optimizers`` returns: the plan's optimiser, and its schedule by the step.

    Args:
        module: the module itself, ``self``.
        plan: its plan; by default that of the `PlanCallback` among the trainer's callbacks.
        schedule: False for the optimiser alone.
        groups: further arguments of `dagscale.Plan.optimizer`, such as ``lr`` or ``no_decay``.

    Returns:
        A dict with ``optimizer`` and, where the plan has a schedule, ``lr_scheduler``. It is stretched over the
        trainer's steps.

    Raises:
        PlanError: if there is no plan, or it does not fit the module.
    """
    trainer = module._trainer
    planner = None if trainer is None else _planner(trainer)
    if planner is not None:
        plan, planner._followed = plan or planner.plan, True
    if plan is None:
        raise PlanError(
            "no plan: give the Trainer callbacks=[PlanCallback(...)], or give one, configure_optimizers(self, plan)"
        )
    optimizer = plan.optimizer(module, **groups)
    if not schedule or plan.recipe.get("schedule") is None:
        return {"optimizer": optimizer}
    steps = None if trainer is None else _steps(trainer)
    scheduler = plan.schedule(optimizer, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PlanCallback(Callback):
    """Plans the module before it is trained, and draws its weights; as easy as ``LearningRateFinder``.

    Data, number of steps, accumulation, clipping and precision are the trainer's, the loss is what the module's
    ``training_step`` returns, and what remains of the recipe is said here. In several processes the first one plans and
    sends its plan to the others; gradients of so many processes are measured as so many accumulated batches. A fit that
    goes on from a checkpoint takes the plan from there and leaves the weights alone, and so does a second fit of the
    same module with the same PlanCallback; ``planner.plan.init_(module)`` draws them anew.

    Args:
        base: what makes the small module, such as ``lambda: Net(width=64)``, which is searched; or a `dagscale.Base`
            that was found before. None: the module's own rate is measured on the spot, roughly.
        plan: a plan that was made before, in place of all else here.
        loss: ``loss(output, target)``, of the module's forward on the first part of a batch, in place of its
            ``training_step``.
        search: further arguments of `dagscale.search`, such as ``{"seeds": 1}``, or several inits to choose
            from, ``{"init": ["moments", "damped"]}``.
        planning: further arguments of `dagscale.plan` (``law``, ``init``, ``width``, ``depth``, ``batch``, …)
            and of `dagscale.Recipe` (``optimizer`` and its settings, ``weight_decay``, ``schedule``, ``steps``, …).

    Attributes:
        plan: the plan, once it is made.
        base: the base, once it is found.

    Raises:
        DagscaleError: on fitting, if there are no training data, the module's ``configure_optimizers`` makes an
            optimiser of its own, the plan does not fit, or as planning raises.
    """

    _trained: weakref.ref[Any] | None = None
    _followed = False  # whether this module's configure_optimizers returned what the function here makes

    def __init__(
        self,
        base: Base | Callable[[], nn.Module] | None = None,
        *,
        plan: Plan | None = None,
        loss: Callable[..., torch.Tensor] | None = None,
        search: dict[str, Any] | None = None,
        **planning: Any,
    ) -> None:
        if plan is not None and (base is not None or loss is not None or search or planning):
            raise PlanError("a plan is given, and what else is given here would make another: leave one of them out")
        if base is not None and not isinstance(base, Base) and (isinstance(base, nn.Module) or not callable(base)):
            raise PlanError(
                f"base must be what dagscale.search returns, or a function that makes the small module, such as "
                f"lambda: Net(width=64), not {type(base).__name__}"
            )
        if "epochs" in planning:
            raise RecipeError("PlanCallback reads the length from the Trainer: give it steps= in place of epochs=")
        self.plan, self.loss, self.search = plan, loss, dict(search or {})
        self.base = base if isinstance(base, Base) else None
        self._small = None if isinstance(base, Base) else base
        said = inspect.signature(dagscale.plan).parameters.values()
        asked = [one.name for one in said if one.kind is one.KEYWORD_ONLY and one.name != "recipe"]
        self._planning = {name: planning.pop(name) for name in asked if name in planning}
        self._training = planning

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_trained"}  # a weak reference stays here

    # --- hooks -------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the planning where module and data are ready, and neither is wrapped or sharded by the strategy."""
        if stage != "fit":
            return
        strategy, self._followed = trainer.strategy, False
        sharding = strategy.restore_checkpoint_after_setup

        def first(name: str, begin: Callable[[Any, Any], None]) -> None:
            own = getattr(strategy, name)

            def then(*args: Any) -> Any:
                strategy.__dict__.pop(name, None)
                begin(trainer, pl_module)
                return own(*args)

            setattr(strategy, name, then)

        if sharding and any(True for _ in pl_module.parameters()):
            first("tensor_init_context", self._plan)  # before configure_model, which may shard the module
        first("setup", self._begin)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """See that the plan is what the module is trained with."""
        groups = [group for one in trainer.optimizers for group in one.param_groups]
        rates = {n: float(g.get("initial_lr", g["lr"])) for g in groups for n in g.get("param_names", ())}
        assert self.plan is not None
        planned = {name: own.lr for name, own in self.plan.parameters.items()}
        named = bool(rates) and all("param_names" in g for g in groups) and rates.keys() <= planned.keys()
        ratios = [rates[name] / planned[name] for name in rates] if named else []
        # Another lr, or a schedule that begins far below its highest rate, as OneCycleLR, is one factor on all of them.
        wanted = ratios[0] if ratios and self._followed else 1.0
        if not named or not all(math.isclose(ratio, wanted, rel_tol=1e-6) for ratio in ratios):
            made = ", ".join(type(one).__name__ for one in trainer.optimizers) or "nothing"
            raise PlanError(
                f"configure_optimizers of {type(pl_module).__name__} made {made} without the plan's rates: let it "
                "return dagscale.integrations.lightning.configure_optimizers(self), and say optimizer, settings and "
                "schedule to the PlanCallback"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember whose weights are trained from here on, so that a further fit keeps them."""
        self._trained = weakref.ref(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take away what was put on strategy and module."""
        for name in ("setup", "tensor_init_context"):
            trainer.strategy.__dict__.pop(name, None)
        pl_module.__dict__.pop("configure_gradient_clipping", None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The same where the fit breaks off: there is no teardown then."""
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        """The plan, for checkpoints."""
        return {} if self.plan is None else {"plan": self.plan.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The plan of a checkpoint, in place of one that is still to be made."""
        if self.plan is None and "plan" in state_dict:
            self.plan = Plan.from_json(state_dict["plan"])

    # --- planning ----------------------------------------------------------------------------------------------

    def _plan(self, trainer: Any, module: Any) -> None:
        if self.plan is None:
            self.plan = self._shared(trainer, module)

    def _begin(self, trainer: Any, module: Any) -> None:
        self._plan(trainer, module)
        assert self.plan is not None
        if trainer.ckpt_path is None and (self._trained is None or self._trained() is not module):
            self.plan.init_(module)
        if trainer.gradient_clip_val and self.plan.folded:
            _clip_by_plan(trainer, module)

    def _shared(self, trainer: Any, module: Any) -> Plan:
        """The plan that the first process makes, in every process."""
        recipe, made, failed = self.recipe(trainer, module), None, None
        if trainer.is_global_zero:
            try:
                made = self._made(recipe, module)
            except DagscaleError as error:
                if trainer.world_size == 1:
                    raise
                failed = f"{type(error).__name__}: {error}"  # the others wait
        made, failed = trainer.strategy.broadcast((made, failed))
        if failed is not None:
            raise PlanError(f"planning failed in the first process, {failed}")
        assert isinstance(made, Plan)
        return replace(made, live=recipe)

    def _made(self, recipe: Recipe, module: Any) -> Plan:
        if self.base is None and self._small is not None:
            small = self._small()
            if not isinstance(small, nn.Module):
                raise PlanError(f"base must make the small module, and made {type(small).__name__}")
            small = small.to(next((p.device for p in module.parameters()), torch.device("cpu")))
            own = {name: v for name, v in self._planning.items() if name in ("init", "seed") and v is not None}
            if not isinstance(own.get("init", ""), str):
                raise PlanError("several inits are for the base's search to choose from: give search={'init': […]}")
            self.base = dagscale.search(self._model(small), recipe, **{**own, **self.search})
        return dagscale.plan(self._model(module), recipe=recipe, base=self.base, **self._planning)

    def _model(self, module: nn.Module) -> nn.Module:
        """What is traced and measured: a twin with the module's parameters, without the trainer and the data in it."""
        return by_training_step(module) if self.loss is None else copy.copy(module)

    def recipe(self, trainer: Any, module: Any) -> Recipe:
        """How the trainer will train, as far as it says it.

        Raises:
            DagscaleError: if it has no data to train on, or trains in a way that no recipe can say.
        """
        name = type(module).__name__
        if not trainer.fit_loop._data_source.is_defined():
            raise PlanError(
                f"{name} has no training data: give trainer.fit a loader or a datamodule, or the module a "
                "train_dataloader"
            )
        if not any(True for _ in module.parameters()):
            raise PlanError(f"{name} has no parameters: make its layers in __init__, setup or configure_model")
        if any(is_sharded(p) for p in module.parameters()):
            raise PlanError(
                f"{name} makes its layers in configure_model and shards them there: make them in __init__, or plan "
                "before the fit, PlanCallback(plan=plan)"
            )
        if trainer.gradient_clip_val and str(trainer.gradient_clip_algorithm or "norm").lower().endswith("value"):
            raise PlanError("the Trainer clips by value, which no recipe can say: clip by norm")
        if not trainer.strategy.restore_checkpoint_after_setup:  # what is sharded later is too large to go there whole
            module.to(trainer.strategy.root_device)
        trainer.fit_loop.setup_data()
        said = {
            "steps": _steps(trainer),
            "clip": trainer.gradient_clip_val or None,
            "accumulate": trainer.accumulate_grad_batches * trainer.world_size,
            "autocast": torch.bfloat16 if trainer.precision == "bf16-mixed" else None,
        }
        return Recipe(_Batches(trainer, module, self.loss is not None), self.loss, **{**said, **self._training})


def _planner(trainer: Any) -> PlanCallback | None:
    """The one among its callbacks, if there is one."""
    return next((own for own in trainer.callbacks if isinstance(own, PlanCallback)), None)


def _steps(trainer: Any) -> int | None:
    """Optimiser steps of the fit; None where it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if math.isfinite(steps) and steps > 0 else None


def _clip_by_plan(trainer: Any, module: Any) -> None:
    """Let the trainer clip as the model would without the multipliers that are folded into its weights."""
    if type(module).configure_gradient_clipping is not pytorch.LightningModule.configure_gradient_clipping:
        return  # the user's own
    if trainer.strategy.restore_checkpoint_after_setup:
        raise PlanError(
            "the plan has folded multipliers, and clipping of sharded gradients does not know of them: clip in the "
            "module's configure_gradient_clipping with dagscale.clip_grad_norm_, or leave gradient_clip_val out"
        )

    def clip(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        clip_grad_norm_(getattr(optimizer, "optimizer", optimizer), float(gradient_clip_val))

    module.configure_gradient_clipping = clip


class _Batches:
    """The trainer's batches as its training step gets them: as keyword arguments of `by_training_step`'s forward, or
    ``plain``, as the module's own forward and a loss take them."""

    def __init__(self, trainer: Any, module: Any, plain: bool) -> None:
        self.trainer, self.module, self.plain = trainer, module, plain
        loaders = tree_map(with_own_workers, trainer.train_dataloader)
        self.lone = hasattr(loaders, "__iter__") and not isinstance(loaders, (dict, list, tuple))
        self.loader = loaders if self.lone else pytorch.utilities.CombinedLoader(loaders, "max_size_cycle")

    @property
    def batch_size(self) -> int | None:
        """Examples in a batch of one loader."""
        own = getattr(self.loader, "batch_size", None)
        return own if isinstance(own, int) else None

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            raw = batch if self.lone else batch[0]
            raw = self.trainer.precision_plugin.convert_input(raw)
            raw = self.module._on_before_batch_transfer(raw)
            device = next((p.device for p in self.module.parameters()), None)
            given = self.module._apply_batch_transfer_handler(raw, device)
            yield given if self.plain else {"batch": given, "label": 1}


class WatchCallback(Callback):
    """Watches the training (`dagscale.watch`): its scalars go to the trainer's loggers, and a fault is a warning.

    Args:
        plan: what is planned; by default the plan of the `PlanCallback` among the trainer's callbacks.
        every: how often a step is observed closely.
        base: what a watch of the base reported, to hold changes of signals against.
    """

    def __init__(self, plan: Plan | None = None, *, every: int = 50, base: WatchReport | None = None) -> None:
        self.plan, self.every, self.base = plan, every, base
        self.watch: Watch | None = None
        self._ended: Watch | None = None
        self._logged = 0

    def report(self) -> WatchReport:
        """What was seen so far, or in the whole of a training that has ended.

        Raises:
            WatchError: if no training has begun.
        """
        seen = self.watch or self._ended
        if seen is None:
            raise WatchError("nothing was seen yet: call trainer.fit() first, with this callback among its callbacks")
        return seen.report()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin."""
        planner = _planner(trainer)
        plan = self.plan or (None if planner is None else planner.plan)
        if plan is None:
            raise PlanError("there is no plan to watch against: give WatchCallback(plan), or a PlanCallback beside it")
        self.watch = dagscale.watch(pl_module, plan, trainer.optimizers, every=self.every, base=self.base)
        self._logged = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A training step need not call its module: it may call the module's parts."""
        if self.watch is not None:
            held, pl_module._trainer = pl_module._trainer, None  # behind it lie the data, which are no constants
            try:
                self.watch._enter(pl_module, batch, {})
            finally:
                pl_module._trainer = held

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """The forward has ended."""
        if self.watch is not None:
            self.watch._leave(pl_module, (), None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what was observed."""
        if self.watch is not None and self.watch.observed > self._logged:
            self._logged = self.watch.observed
            for logger in trainer.loggers:
                logger.log_metrics(self.watch.scalars(), step=trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Report."""
        if self.watch is None:
            return
        self._close()
        if not (report := self.report()).ok:
            pytorch.utilities.rank_zero_warn(f"dagscale: {report.verdict}")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks away."""
        self._close()

    def _close(self) -> None:
        if self.watch is not None:
            self.watch.close()
            self._ended, self.watch = self.watch, None


__all__ = ["PlanCallback", "WatchCallback", "configure_optimizers"]
