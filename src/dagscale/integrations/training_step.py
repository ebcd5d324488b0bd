"""A LightningModule as the model that its ``training_step`` trains, outside of a trainer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from dagscale.errors import RecipeError
from dagscale.integrations.requirement import require
from dagscale.training.batches import logits

SILENT = ("log", "log_dict", "print", "log_grad_norm", "toggle_optimizer", "untoggle_optimizer")
"""What a training step may call for its effects on a trainer, which there is none of here."""


def by_training_step(module: nn.Module) -> nn.Module:
    """The same module, of which ``forward(batch, label=1)`` runs the training step.

    It shares all parameters and submodules with ``module``, under the same names, so that a plan for the one is a plan
    for the other. Its forward gives ``{"logits": …, "loss": …}``: the loss that the step returns, and the output of the
    network, which is the last thing with parameters that the step calls. With ``label=None`` the output alone.

    What the step logs goes nowhere, and of a trainer it sees epoch 0 and step 0.

    Raises:
        RecipeError: if the module has no training step of its own to run, or optimises by hand.
    """
    pytorch = require("lightning.pytorch", "lightning", "2.1")
    name, own = type(module).__name__, cast(Any, type(module))
    if not isinstance(module, pytorch.LightningModule):
        raise RecipeError(f"{name} is no LightningModule, and has no training_step: give loss= as well")
    if own.training_step is pytorch.LightningModule.training_step:
        raise RecipeError(f"{name} has no training_step: write one, or give loss=")
    if not module.automatic_optimization:
        raise RecipeError(
            f"{name} optimises by hand (automatic_optimization=False), so its training_step is no loss: give loss=, a "
            "function of its output and the batch's target"
        )
    if "dataloader_iter" in inspect.signature(own.training_step).parameters:
        raise RecipeError(f"{name}.training_step takes the data loader's iterator, not a batch: give loss=")

    def nothing(self: Any, *args: Any, **kwargs: Any) -> None:
        """Outside of a trainer there is nobody to tell."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.__dict__.get("_stepping"):
            return own.forward(self, *args, **kwargs)
        return _stepped(self, *args, **kwargs)

    def signed(self: Any, batch: Any, label: Any = None) -> None: ...

    forward.__signature__ = inspect.signature(signed)  # type: ignore[attr-defined]
    more: dict[str, Any] = {
        "forward": forward,
        "all_gather": lambda self, data, *args, **kwargs: data,
        "trainer": property(lambda self: _Absent(), lambda self, value: None),
        "logger": property(lambda self: None),
        "loggers": property(lambda self: []),
        "__module__": own.__module__,
        "__doc__": own.__doc__,
        **dict.fromkeys(SILENT, nothing),
    }
    twin: nn.Module = copy.copy(module)
    twin.__class__ = type(name, (own,), more)
    return twin


def _stepped(module: Any, batch: Any, label: Any = None) -> Any:
    takes = inspect.signature(module.training_step).parameters
    given = (batch, 0)[: len(takes)]
    module.__dict__["_stepping"] = True
    try:
        with _outputs() as outputs:
            loss = module.training_step(*given)
    finally:
        module.__dict__.pop("_stepping", None)
    if not outputs:
        raise RecipeError(f"the training_step of {type(module).__name__} calls nothing that has parameters: give loss=")
    if label is None:
        return outputs[-1]
    loss = loss.get("loss") if isinstance(loss, dict) else loss
    if not isinstance(loss, Tensor):
        raise RecipeError(
            f"the training_step of {type(module).__name__} returned {type(loss).__name__}, no loss: return it, or a "
            "dict with 'loss'"
        )
    return {"logits": outputs[-1], "loss": loss}


@contextmanager
def _outputs() -> Iterator[list[Any]]:
    """The outputs of what is called inside at the top level and has parameters; lone numbers, such as losses, aside."""
    depth, found = 0, list[Any]()

    def enter(module: nn.Module, args: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        nonlocal depth
        depth -= 1
        out = logits(out)
        signal = any(isinstance(t, Tensor) and t.ndim for t in tree_leaves(out))
        if depth == 0 and signal and any(True for _ in module.parameters()):
            found.append(out)

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Absent:
    """What a training step sees of its trainer while a plan is made."""

    current_epoch = global_step = global_rank = local_rank = 0
    world_size = num_nodes = num_devices = 1
    is_global_zero = training = True
    sanity_checking = validating = testing = predicting = False
    logger = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the training step asks its trainer for {name!r}, which there is none of while a plan is made; guard it, "
            "or give loss="
        )
