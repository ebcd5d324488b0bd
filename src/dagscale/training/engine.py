"""The one place that runs a user's model, loss, optimiser, training step and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dagscale.arguments import whole_number
from dagscale.errors import BatchError, DagscaleError, RecipeError
from dagscale.shown import one_line
from dagscale.tracing import forward
from dagscale.training.batches import Batch, call, logits, shapes, typed
from dagscale.training.clipping import clip_grad_norm_
from dagscale.training.optimizers import Groups, in_mode
from dagscale.training.recipe import Loss, Recipe, Scheduler, default_loss, takes_one
from dagscale.training.seeds import seeded

T = TypeVar("T")

EXPLODED = 1e4
"""A run whose batch loss exceeds this many times its first one (or 1, if that is larger) has diverged."""

EVALUATE = 4096
"""Most examples in a final training loss."""


@dataclass(frozen=True)
class Run:
    """What a training run came to.

    Attributes:
        loss: final training loss, see `train`; ``inf`` if the run diverged.
        diverged: the run was stopped.
        steps: optimiser steps taken.
        losses: loss of each step's batches before it; the last one is the cause if it made the run diverge.
        raised: what the user's code raised, if that is why the run was stopped.
    """

    loss: float
    diverged: bool
    steps: int
    losses: tuple[float, ...]
    raised: str = ""


def batch_output(model: nn.Module, recipe: Recipe, batch: Batch) -> Any:
    """What the model makes of a batch that lies on its device; of it what ``recipe.select`` picks, unless the model's
    own loss is in it and is wanted.

    Raises:
        ForwardError: if the forward raises; the original exception is ``__cause__``.
        RecipeError: if ``select`` raises.
    """
    try:
        with forward.eagerly(), _autocast(recipe, model.parameters()):
            out = call(model, batch.inputs)
    except DagscaleError:
        raise
    except Exception as error:
        failed = forward.forward_error(model, None, error, batch.inputs)
        failed.args = (f"{failed}, on data of shape {shapes(batch.inputs)}",)
        raise failed from error
    select = recipe.select
    if select is None or (recipe.loss is None and _own_loss(out, batch) is not None):
        return out
    return of_user("function select", lambda: select(out))


def _own_loss(output: Any, batch: Batch) -> Tensor | None:
    """The loss that a model computed itself: what it calls so, or one number, if there is no target that it lacks."""
    if isinstance(output, Tensor) and output.ndim == 0 and (batch.labelled or batch.target is None):
        return output
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    return own if isinstance(own, Tensor) else None


def output_loss(recipe: Recipe, output: Any, batch: Batch) -> Tensor:
    """The loss on an output: one number.

    Raises:
        RecipeError: if the loss raises, is not one number, or its target spreads over the output's shape.
    """
    with _autocast(recipe, tree_leaves(output)):  # as the usual loop has it, the loss inside too
        value = _loss_value(recipe, output, batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        if isinstance(value, Tensor):
            raise RecipeError(f"the loss must be one number and is {tuple(value.shape)}: take its mean")
        mend = "return sum(losses.values())" if isinstance(value, Mapping) else "return a tensor, and it alone"
        raise RecipeError(f"the loss must be one number and is {type(value).__name__}: {mend}")
    return value


def _loss_value(recipe: Recipe, output: Any, batch: Batch) -> Any:
    own = _own_loss(output, batch)
    if recipe.loss is None and own is not None:
        return own
    target = batch.target
    if recipe.loss is None and isinstance(output, Tensor) and output.ndim == 0:
        raise RecipeError(
            "the model returns one number for the whole batch: if that is its loss, give loss=lambda output, target: "
            "output; if not, return an output for each example"
        )
    if recipe.loss is None and target is None:
        raise RecipeError(
            f"the batches have no target and the model returns {type(output).__name__}: give loss=, a function of the "
            "output, such as lambda out: out where that is the loss"
        )
    loss: Loss = recipe.loss or default_loss
    alone = recipe.loss is not None and (target is None or takes_one(loss))
    given = () if alone else (target,)
    out = logits(output)
    try:
        return loss(out, *given)
    except RecipeError:
        raise
    except Exception as error:
        if out is not output:  # a loss of several heads takes the whole output
            with suppress(Exception):
                return loss(output, *given)
        text = one_line(error)
        mend = _mend(text, target)
        if isinstance(error, TypeError):
            mend = ": it is called as loss(output, target)"
            if not given:
                why = "the batches have no target" if target is None else "it takes one argument"
                mend = f": {why}, so that the loss is given the output alone"
        if isinstance(error, AttributeError) and out is not output:
            mend = ": the loss is given the output's logits; leave loss out for the model's own"
        raise RecipeError(f"the loss raised {text}, on output {typed(out)} and y {typed(target)}{mend}") from error


def _mend(text: str, target: Any) -> str:
    """What helps against an exception of a loss, where its text tells."""
    if "Expected target size" in text:
        return (
            ": cross-entropy has its classes in the second dimension; where they are in the last, give "
            "loss=lambda out, y: cross_entropy(out.flatten(0, -2), y.flatten())"
        )
    if "does not require grad" in text or "have been used in the graph" in text:
        return (
            ": batches ask for no gradients; where the loss differentiates by the input, let the forward call "
            "requires_grad_() on it and return it beside the output"
        )
    if (
        ("must match the size" in text or "Using a target size" in text)
        and isinstance(target, Tensor)
        and not target.is_floating_point()
    ):
        return ": class labels take a loss of classes; leave loss out for cross-entropy"
    if "multi-target not supported" in text:
        return ": class labels have one dimension, y.squeeze(1)"
    if "out of bounds" in text and isinstance(target, Tensor) and not target.is_floating_point():
        lowest, highest = target.aminmax()
        return (
            f": labels of this batch go from {lowest} to {highest}, and the output has to have as many classes, "
            "counted from 0"
        )
    if "Long" not in text:
        return ""
    if isinstance(target, Tensor) and target.dtype == torch.int64:
        return ": it is called as loss(output, target); targets that are no class labels must be floating, y.float()"
    return ": class labels must be int64, y.long()"


def batch_loss(model: nn.Module, recipe: Recipe, batch: Batch) -> Tensor:
    """Forward and loss on a batch that lies on the model's device."""
    return output_loss(recipe, batch_output(model, recipe, batch), batch)


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    batches: Iterator[Batch],
    first: float | None = None,
    loss_on: Callable[[nn.Module, Recipe, Batch], Tensor] = batch_loss,
) -> float:
    """One optimiser step as the recipe says; returns the loss before it, a mean over its batches.

    A step whose loss has exploded, held against the run's ``first``, is not taken.

    Args:
        loss_on: the loss on one batch, where it is not simply that of the model's output. A training step of the
            user's own computes its loss itself.
    """
    if recipe.step is not None:
        batch = next(batches).to(model)
        own = recipe.step
        if recipe.bare and batch.target is not None:
            raise RecipeError(
                "the training step has no room for the target that the batches have: write step(model, optimizer, "
                "inputs, target)"
            )
        given = (batch.inputs,) if recipe.bare else (batch.inputs, batch.target)
        return of_user("training step", lambda: _number(own(model, optimizer, *given)))
    forward.without_gradients(model)
    total = 0.0
    for _ in range(recipe.accumulate):
        value = loss_on(model, recipe, next(batches).to(model))
        total += value.item() / recipe.accumulate
        if exploded(total, total if first is None else first):
            return total
        if not value.requires_grad:
            raise RecipeError(
                "nothing to train: the loss does not depend on any trainable parameter; compute it from the model's "
                "output, without .item() or .detach(), and leave some parameters unfrozen"
            )
        backward(value if recipe.accumulate == 1 else value / recipe.accumulate)
    if recipe.clip is not None:
        clip_grad_norm_(optimizer, recipe.clip)
    try:
        of_user(f"step of {recipe.optimizer.name}", optimizer.step)
    except RecipeError as error:
        if "closure" in str(error):
            error.args = (f"{error}: write a training step that gives it one, and give the recipe that as step=",)
        raise
    return total


def backward(value: Tensor) -> None:
    """The gradients of a loss.

    Raises:
        RecipeError: if it has none, or computing them raises.
    """
    if not value.requires_grad:
        raise RecipeError(
            "the loss has no gradient: it does not depend on any trained parameter, or was detached from it, as "
            "argmax, item() and no_grad() do"
        )
    try:
        value.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise RecipeError(f"the backward pass raised {one_line(error)}") from error


def train(
    model: nn.Module,
    recipe: Recipe,
    groups: Groups,
    lr: float | None = None,
    *,
    seed: int = 0,
    steps: int | None = None,
    evaluate: int = EVALUATE,
    scheduled: int | None = None,
) -> Run:
    """Train ``model`` in place, and leave it in train mode without gradients.

    *Final training loss*: the mean loss over one fixed random set of up to ``evaluate`` training examples, the
    same for every seed, after the last step. The forward is the one that training sees: train mode, so batch
    normalisation uses the batch's own statistics and dropout stays on; buffers (running statistics) are put back
    afterwards. Of a recipe with a step of its own and no loss it is the mean of what its last tenth of steps returned.

    *Divergence*: the run stops at once, with final loss ``inf``, when a trained parameter is no longer finite, when a
    loss is not finite or exceeds ``EXPLODED`` × max(first loss, 1), or when the user's code raises after the first
    step, at a rate that it did not choose: what it said is in ``raised``.

    Given one seed a run on CPU is repeatable: what draws from the global generators is seeded here.

    Args:
        model: on any device and of any floating type.
        recipe: data, loss, optimiser and the rest.
        groups: parameter groups, each with its own ``lr``.
        lr: the network's rate, to which theirs are ratios; schedules with an end of their own need it.
        seed: of the batches' order and of the model's own randomness.
        steps: optimiser steps, in place of the recipe's.
        evaluate: most examples in the final training loss.
        scheduled: steps that the schedule is stretched over; by default those of this run.

    Raises:
        RecipeError: if loss or step fail at the first step, or the schedule at any; if no parameter takes part in the
            loss, or ``evaluate`` is below 1.
        ForwardError: if the forward raises at the first step.
    """
    total = recipe.total_steps if steps is None else steps
    evaluate = whole_number("evaluate", evaluate, RecipeError)
    groups = [{**group, "params": _listed(group["params"])} for group in groups]
    trained = [parameter for group in groups for parameter in group["params"]]
    if not any(parameter.requires_grad for parameter in trained):
        raise RecipeError("nothing to train: the parameter groups hold no parameter that requires a gradient")
    optimizer = recipe.optimizer.make(groups, lr)
    scheduler = recipe.scheduler(optimizer, scheduled or total)
    losses: list[float] = []
    final, diverged, raised = math.inf, False, ""
    batches = recipe.source.batches(seed)
    model.train()
    with seeded(seed):
        while len(losses) < total and not diverged:
            try:
                losses.append(step(model, optimizer, recipe, batches, losses[0] if losses else None))
                diverged = exploded(losses[-1], losses[0]) or not finite(trained)
            except BatchError:
                raise
            except DagscaleError as error:
                where = f", at step {len(losses) + 1} of {total}, seed {seed}"
                if not losses:
                    error.args = (f"{error}{where}",)
                    raise
                diverged, raised = True, f"{error}{where}"
            if scheduler is not None and not diverged:
                advance(scheduler)  # no rate is to blame if it raises
        taken = len(losses) - (recipe.step is None and exploded(losses[-1], losses[0]))
        if not diverged and recipe.step is not None and recipe.loss is None:
            final = fmean(losses[-max(1, total // 10) :])
        elif not diverged:
            try:
                in_mode(optimizer, "eval")
                final = final_loss(model, recipe, evaluate)
                diverged = exploded(final, losses[0])
            except BatchError:
                raise
            except DagscaleError as error:
                diverged, raised = True, str(error)
    forward.without_gradients(model)
    return Run(math.inf if diverged else final, diverged, taken, tuple(losses), raised)


def final_loss(model: nn.Module, recipe: Recipe, evaluate: int) -> float:
    """See `train`."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    total = examples = 0.0
    for batch in recipe.source.sample(evaluate, recipe.batch_size or evaluate):
        loss = forward.without_record(partial(batch_loss, model, recipe, batch.to(model)))
        total += loss.item() * batch.size
        examples += batch.size
    with torch.no_grad():
        for buffer, before in kept:
            buffer.copy_(before)
    return total / examples


def of_user(name: str, action: Callable[[], T]) -> T:
    """Call the user's own code and return what it gives.

    Raises:
        RecipeError: on one line, whatever it raises.
    """
    try:
        return action()
    except DagscaleError:
        raise
    except Exception as error:
        raise RecipeError(f"the {name} raised {one_line(error)}") from error


def advance(scheduler: Scheduler) -> None:
    """Set the rates of the next optimiser step.

    Raises:
        RecipeError: on one line, whatever the user's schedule raises.
    """
    try:
        of_user("schedule's step()", scheduler.step)
    except RecipeError as error:
        error.args = (
            f"{error}: it is called without arguments after every optimiser step, also in runs shorter than training",
        )
        raise


def exploded(loss: float, first: float) -> bool:
    """The rule of divergence, see `train`."""
    return not math.isfinite(loss) or loss > EXPLODED * max(abs(first), 1.0)


def finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all values are finite; one synchronisation with the device, and nothing as large as a parameter."""
    found = [torch.linalg.vector_norm(p.detach(), math.inf).isfinite() for p in parameters if p.numel()]
    return bool(torch.stack([flag.to(found[0].device) for flag in found]).all())


def _autocast(recipe: Recipe, values: Iterable[Any]) -> AbstractContextManager[Any]:
    """The recipe's, on the device where the first tensor lies."""
    if recipe.autocast is None:
        return nullcontext()
    device = next((t.device.type for t in values if isinstance(t, Tensor)), "cpu")
    return torch.autocast(device, recipe.autocast)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """One parameter, or any iterable of them, as a list."""
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _number(value: float | Tensor) -> float:
    """The loss that the user's training step returned, as a number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if not isinstance(value, (int, float)):
        raise TypeError(f"it must return the batch's loss, one number, not {type(value).__name__}")
    return float(value)
