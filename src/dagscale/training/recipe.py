"""`Recipe`: how a network is trained, said once and used by searching, planning, checking and training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from dagscale.arguments import checked, positive_number, whole_number
from dagscale.errors import RecipeError
from dagscale.shown import one_line
from dagscale.training.batches import Batch, Rows, Source, Stream, Unpack, source
from dagscale.training.groups import NoDecay, as_rule
from dagscale.training.optimizers import OPTIMIZERS, Optimizer, resolve
from dagscale.training.schedules import Schedule

Loss = Callable[..., Tensor]
"""``loss(output, target)``, or ``loss(output)`` for batches without a target: one number, a mean over the batch. Of an
output that has ``.logits`` (or ``["logits"]``) it is given those."""

TrainStep = Callable[..., "float | Tensor"]
"""``step(model, optimizer, inputs, target)`` takes one optimiser step on a batch, and returns the loss before it; for
batches without a target it may be ``step(model, optimizer, inputs)``."""


class Scheduler(Protocol):
    """The one method that a scheduler must have; every ``torch.optim.lr_scheduler.LRScheduler`` has it."""

    def step(self) -> None:
        """Set the rates of the next optimiser step."""


MakeSchedule = Callable[[torch.optim.Optimizer, int], Scheduler]
"""``schedule(optimizer, total_steps)``, such as ``dagscale.cosine()`` or ``lambda o, n: CosineAnnealingLR(o, n)``."""

NO_DECAY = ("norm", "bias")
"""Roles of parameters without weight decay, where a decay is given: what trainers leave out."""


@checked(RecipeError)
@dataclass(frozen=True, eq=False, init=False)
class Recipe:
    """How a person trains: data, loss, optimiser, length, schedule, and all else that moves the best learning rate.

    One object for `dagscale.search`, `dagscale.plan`, `dagscale.check` and a training of one's own. ::

        recipe = dagscale.Recipe(loader, loss=cross_entropy, optimizer=torch.optim.AdamW, betas=(0.9, 0.95),
                                 weight_decay=0.1, steps=20_000, schedule=dagscale.cosine(warmup=0.05), clip=1.0)

    Attributes:
        data: ``(x, y)`` tensors, a torch ``Dataset`` or ``DataLoader``, or any iterable of batches that can be iterated
            again (`dagscale.training.batches`); None for what needs no data.
        loss: ``loss(output, target)``, one number. By default the model's own ``.loss`` where the batch holds labels
            and the model answers with one, else cross-entropy for class labels.
        optimizer: what is known of the optimiser, with its settings; given as a name, a ``torch.optim`` class or a
            function of parameter groups (`dagscale.training.optimizers`).
        batch_size: examples in a batch; None where a loader has its own.
        steps: optimiser steps of a run; None if it is said in epochs.
        epochs: passes over the data of a run; None if it is said in steps. With neither, a run is one pass, and laws
            take it for a long one.
        schedule: ``schedule(optimizer, total_steps)`` makes a scheduler, stepped after every optimiser step.
        step: the user's own training step, ``step(model, optimizer, inputs, target)``, in place of forward, loss,
            backward, clipping and ``optimizer.step()``. It returns the loss before it. Runs are judged by ``loss``; by
            the mean of what their last tenth of steps returned where that is not given.
        clip: largest norm of the whole gradient; larger ones are scaled down to it.
        accumulate: batches whose mean gradient makes one optimiser step.
        autocast: type in which the forward computes, such as ``torch.bfloat16``; None for the model's own.
        weight_decay: for the parameters that decay; None leaves the optimiser's own default, for all parameters.
        no_decay: what gets no weight decay where ``weight_decay`` is given: roles, which are read from the graph
            (`dagscale.graph.roles`), by default ``norm`` and ``bias``; names of parameters or modules, and patterns
            such as ``*.A_log``; or a function of a parameter's name and the parameter. A parameter whose attribute
            ``_no_weight_decay`` is true, as Mamba's code sets it, decays under none of them.
        unpack: one batch of the data → (inputs, target), for batches of a structure of their own.
        select: what the model returns → the tensor, or tensors, that are its outputs: the graph ends in them, and the
            loss is given them. By default all tensors in it, and for the loss its ``.logits`` where it has them. A loss
            of the model's own stays what is trained on.

    Further keyword arguments are the optimiser's settings, such as ``betas`` or ``momentum``.

    Raises:
        RecipeError: if something does not hold together, in one line.
    """

    data: Any
    loss: Loss | None
    optimizer: Optimizer
    batch_size: int | None
    steps: int | None
    epochs: int | None
    schedule: MakeSchedule | None
    step: TrainStep | None
    clip: float | None
    accumulate: int
    autocast: torch.dtype | None
    weight_decay: float | None
    no_decay: tuple[str, ...] | Callable[[str, nn.Parameter], bool]
    unpack: Unpack | None
    select: Callable[[Any], Any] | None
    _source: Source | None = field(repr=False)

    def __init__(
        self,
        data: Any = None,
        loss: Loss | None = None,
        optimizer: Any = "sgd",
        *,
        batch_size: int | None = None,
        steps: int | None = None,
        epochs: int | None = None,
        schedule: MakeSchedule | None = None,
        step: TrainStep | None = None,
        clip: float | None = None,
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        weight_decay: float | None = None,
        no_decay: NoDecay = NO_DECAY,
        unpack: Unpack | None = None,
        select: Callable[[Any], Any] | None = None,
        **settings: Any,
    ) -> None:
        functions = {"loss": loss, "schedule": schedule, "step": step, "unpack": unpack, "select": select}
        for name, given in functions.items():
            if given is not None and not callable(given):
                such = ": give dagscale.cosine() or its like" if name == "schedule" else ""
                raise RecipeError(f"{name} must be a function, not {type(given).__name__}{such}")
        if isinstance(loss, type):
            raise RecipeError(f"loss is the class {loss.__name__}: give one of it, {loss.__name__}()")
        if autocast is not None and not isinstance(autocast, torch.dtype):
            raise RecipeError(f"autocast must be a type such as torch.bfloat16, not {autocast!r}")
        if step is not None and not (takes(step, 4) or takes(step, 3)):
            raise RecipeError(
                "step= is called as step(model, optimizer, inputs, target), without target where batches have none; "
                f"{_named(step)} does not take these"
            )
        if step is not None and (clip is not None or accumulate != 1 or autocast is not None):
            raise RecipeError("step= is the whole training step: do clipping, accumulation and autocast inside it")
        if steps is not None and epochs is not None:
            raise RecipeError("steps and epochs both say how long a run is: give one of them")
        if isinstance(schedule, Schedule) and steps is not None and schedule.warmup > max(1, steps - 1):
            raise RecipeError(f"the warm-up takes {schedule.warmup:g} steps, and the run has {steps}: shorten it")
        if weight_decay is None and (callable(no_decay) or tuple(no_decay) not in ((), NO_DECAY)):
            raise RecipeError("no_decay= says what the decay leaves out: give weight_decay= too")
        own = {
            "data": data,
            "loss": loss,
            "optimizer": resolve(optimizer, settings),
            "batch_size": None if batch_size is None else whole_number("batch_size", batch_size, RecipeError),
            "steps": None if steps is None else whole_number("steps", steps, RecipeError),
            "epochs": None if epochs is None else whole_number("epochs", epochs, RecipeError),
            "schedule": schedule,
            "step": step,
            "clip": None if clip is None else positive_number("clip", clip, RecipeError),
            "accumulate": whole_number("accumulate", accumulate, RecipeError),
            "autocast": autocast,
            "weight_decay": None
            if weight_decay is None
            else positive_number("weight_decay", weight_decay, RecipeError, zero=True),
            "no_decay": as_rule(no_decay),
            "unpack": unpack,
            "select": select,
        }
        own["_source"] = None if data is None else source(data, own["batch_size"], unpack)
        if own["_source"] is not None:
            own["batch_size"] = own["_source"].batch_size
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def source(self) -> Source:
        """Where batches come from.

        Raises:
            RecipeError: if there are no data.
        """
        if self._source is None:
            raise RecipeError("this needs data: give the recipe (x, y), a Dataset, a DataLoader or batches")
        return self._source

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> Scheduler | None:
        """The schedule of a run of so many steps, if there is one.

        Raises:
            RecipeError: if it cannot be made, or is none.
        """
        if self.schedule is None:
            return None
        try:
            made = self.schedule(optimizer, steps)
        except Exception as error:
            raise RecipeError(
                f"the schedule raised {one_line(error)}, for a run of {steps} steps: it must be a function of "
                "(optimizer, total_steps) for runs of any length, since measurements are shorter than training"
            ) from error
        if not callable(getattr(made, "step", None)):
            raise RecipeError(
                f"the schedule gave a {type(made).__name__}, which has no step(): let the function return a scheduler "
                "of torch.optim.lr_scheduler, or dagscale.constant()"
            )
        return made

    @cached_property
    def bare(self) -> bool:
        """Whether the training step has no place for a target."""
        return self.step is not None and not takes(self.step, 4)

    @cached_property
    def total_steps(self) -> int:
        """Optimiser steps of a whole run.

        Raises:
            RecipeError: if nobody knows how long a pass over the data is.
        """
        if self.steps is not None:
            return self.steps
        batches = self.source.steps(self.epochs or 1)
        if batches is None:
            raise RecipeError("the data do not say how many batches they have: give steps=, in place of epochs")
        return max(1, batches // self.accumulate)

    @property
    def examples(self) -> int | None:
        """What a whole run sees of the data, in examples; None where nobody knows."""
        unknown = self.batch_size is None or (self.steps is None and self._source is None)
        return None if unknown else self.total_steps * (self.batch_size or 1) * self.accumulate

    @cached_property
    def example(self) -> Batch:
        """The first batch, for tracing."""
        return next(self.source.batches(0))

    def changed(self, **changes: Any) -> Recipe:
        """A copy with these arguments changed. The optimiser's settings stay unless another optimiser is given; new
        ``steps`` take the place of ``epochs``, and the other way round."""
        names = [f.name for f in fields(self) if f.name not in ("_source", "optimizer")]
        kept = {name: getattr(self, name) for name in names}
        if changes.get("steps") is not None or changes.get("epochs") is not None:
            kept["steps"] = kept["epochs"] = None
        if isinstance(self._source, Stream) and "data" not in changes:
            kept["batch_size"] = None  # a loader has its own
        return Recipe(**{**kept, "optimizer": self.optimizer, **changes})

    def sized(self, batch_size: int) -> Recipe:
        """With this batch size, if its data are examples; a loader's batches have their own."""
        return self.changed(batch_size=batch_size) if isinstance(self._source, Rows) else self

    def describe(self) -> dict[str, Any]:
        """The recipe without its data, as plain data for JSON; functions are given by their names."""
        return {
            "optimizer": self.optimizer.describe(),
            "loss": _named(self.loss),
            "batch_size": self.batch_size,
            "steps": self.steps,
            "epochs": self.epochs,
            "schedule": _named(self.schedule),
            "step": _named(self.step),
            "clip": self.clip,
            "accumulate": self.accumulate,
            "autocast": None if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "weight_decay": self.weight_decay,
            "no_decay": list(self.no_decay) if isinstance(self.no_decay, tuple) else _named(self.no_decay),
            "select": _named(self.select),
        }

    def __repr__(self) -> str:
        said = {k: v for k, v in self.describe().items() if v is not None and k != "optimizer"}
        more = ", ".join(f"{name}={value!r}" for name, value in said.items())
        return f"Recipe({self.optimizer.name}{_settings(self.optimizer.settings)}, {more})"


def differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What another description of a recipe says otherwise than the base's, such as ``batch_size 64, the base's 32``."""
    return [
        f"{name} {_shown(other.get(name))}, the base's {_shown(base[name])}"
        for name in base
        if base[name] != other.get(name)
    ]


def as_described(known: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe that its description says in more than a name, and that are not said otherwise.

    Args:
        known: as `Recipe.describe` gave it.
        said: the arguments that are given anew; these are left out, and what they take the place of.
    """
    own = {name: value for name, value in known.items() if value is not None}
    plain = ("steps", "epochs", "clip", "accumulate", "weight_decay")
    found: dict[str, Any] = {name: own[name] for name in plain if name in own}
    if {"steps", "epochs"} & said.keys():
        found = {name: value for name, value in found.items() if name not in ("steps", "epochs")}
    optimizer = own.get("optimizer", {})
    name = optimizer.get("name")
    if name in OPTIMIZERS and said.get("optimizer", name) == name:
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in optimizer.get("settings", {}).items()}
        found |= {"optimizer": name, **settings}
    if "batch_size" in own and getattr(said.get("data"), "batch_size", None) is None:
        found["batch_size"] = own["batch_size"]
    if isinstance(own.get("no_decay"), list):
        found["no_decay"] = tuple(own["no_decay"])
    if isinstance(own.get("schedule"), dict):
        found["schedule"] = Schedule(**own["schedule"])
    if own.get("loss") in named_losses():
        found["loss"] = getattr(functional, own["loss"])
    return {name: value for name, value in found.items() if name not in said}


def named_losses() -> list[str]:
    """The losses of ``torch.nn.functional``, which their names tell."""
    return [name for name in dir(functional) if name.endswith("_loss") or "entropy" in name]


def default_loss(output: Any, target: Any) -> Tensor:
    """Cross-entropy, of outputs that class labels fit.

    Raises:
        RecipeError: where they do not, with what to give.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        raise RecipeError(f"the output is {type(output).__name__}: give loss=, a function of output and target")
    if text := no_classes(output, target):
        raise RecipeError(text)
    return cross_entropy(output, target)


def no_classes(output: Tensor, target: Tensor) -> str:
    """Why floating targets are no probabilities of classes, and what to give; empty if they may be. PyTorch takes them
    without a word, and a loss of such has no lower bound, or none that means anything."""
    fitting = target.shape == output.shape and output.ndim > 1 and not bool((target < 0).any())
    if not target.is_floating_point() or fitting:
        return ""
    return (
        f"the targets are {target.dtype} of shape {tuple(target.shape)}, no class labels: give loss=, such as "
        "torch.nn.functional.mse_loss for regression (--loss mse_loss)"
    )


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments by place; True where nobody knows."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except ValueError:  # no signature
        return True
    except TypeError:
        return False
    return True


def takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with one argument only, and has no other by name either."""
    try:
        kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return False
    return len(kinds) == 1 and kinds[0] in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _named(value: Any) -> Any:
    """A function's name, or the plain data of a value that has them."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return getattr(value, "__qualname__", type(value).__qualname__)


def _shown(value: Any) -> str:
    """A value of a description, to read."""
    if isinstance(value, Mapping) and "name" in value:
        return f"{value['name']}{_settings(value.get('settings', {}))}"
    return "none" if value is None else repr(value)


def _settings(settings: Mapping[str, Any]) -> str:
    return "".join(f" {name}={value!r}" for name, value in settings.items())
