"""One training run, from parameter groups to the final training loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from dagscale.errors import ForwardError, SearchError
from dagscale.registry import Registry
from dagscale.training.batches import Inputs, checked, output, shapes, take, to_model, typed

T = TypeVar("T")
Groups = list[dict[str, Any]]
Loss = Callable[[Any, Tensor], Tensor]
TrainStep = Callable[[nn.Module, Optimizer, Inputs, Tensor], "float | Tensor"]
"""``train_step(model, optimizer, x, y)`` takes one optimiser step on a batch and returns the batch's loss before it."""


class Scheduler(Protocol):
    """What `train` needs of a schedule; every ``torch.optim.lr_scheduler.LRScheduler`` has it."""

    def step(self) -> None:
        """Set the rates of the next optimiser step."""


Schedule = Callable[[Optimizer, int], Scheduler]
"""``schedule(optimizer, total_steps)``, for example ``lambda o, n: CosineAnnealingLR(o, n)``."""

EXPLODED = 1e4
"""A run whose batch loss exceeds this many times its first one (or 1, if that is larger) has diverged."""

OPTIMIZERS: Registry[Callable[[Groups], Optimizer]] = Registry("optimizer")
"""Name → makes the optimiser from parameter groups, each with its own ``lr``."""


@OPTIMIZERS.add("sgd")
def sgd(groups: Groups) -> Optimizer:
    """Plain stochastic gradient descent."""
    return torch.optim.SGD(groups)


@OPTIMIZERS.add("momentum")
def momentum(groups: Groups) -> Optimizer:
    """SGD with heavy-ball momentum 0.9, no dampening."""
    return torch.optim.SGD(groups, momentum=0.9)


@OPTIMIZERS.add("adam")
def adam(groups: Groups) -> Optimizer:
    """Adam with PyTorch's defaults (β = 0.9, 0.999; ε = 1e-8)."""
    return torch.optim.Adam(groups)


@OPTIMIZERS.add("adamw")
def adamw(groups: Groups) -> Optimizer:
    """AdamW with PyTorch's defaults (as Adam, with weight decay 0.01)."""
    return torch.optim.AdamW(groups)


@dataclass(frozen=True)
class Run:
    """What a training run came to.

    Args:
        loss: final training loss, see `train`; ``inf`` if the run diverged.
        diverged: the run was stopped.
        steps: optimiser steps taken.
        losses: loss of each batch before the step on it; the last one is the cause if it made the run diverge.
    """

    loss: float
    diverged: bool
    steps: int
    losses: tuple[float, ...]


def train(
    model: nn.Module,
    x: Inputs,
    y: Tensor,
    *,
    params: Groups,
    optimizer: str | Callable[[Groups], Optimizer] = "sgd",
    loss: Loss = cross_entropy,
    epochs: int = 1,
    steps: int | None = None,
    batch_size: int = 128,
    seed: int = 0,
    evaluate: int = 4096,
    train_step: TrainStep | None = None,
    schedule: Schedule | None = None,
) -> Run:
    """Train ``model`` in place, and leave it in train mode without gradients.

    *Final training loss*: the mean loss over one fixed random set of up to ``evaluate`` training examples, the
    same for every seed, after the last step. The forward is the one that training sees: train mode, so batch
    normalisation uses the batch's own statistics and dropout stays on; buffers (running statistics) are put back
    afterwards.

    *Divergence*: the run stops at once, with final loss ``inf``, when a trained parameter is no longer finite, or
    when a batch's loss or the final one is not finite or exceeds ``EXPLODED`` × max(first batch loss, 1).

    Given one seed a run on CPU is repeatable: dropout and its like draw from PyTorch's global generators, which
    are seeded here and put back afterwards.

    Args:
        model: on any device and of any floating type; its output is a tensor, or has ``.logits`` or ``["logits"]``.
        x: inputs, (n, …), or a tuple or dict of them as the model takes them; moved to the model's device by batches
            and, if floating, to its type.
        y: labels or targets, (n, …), treated likewise.
        params: parameter groups, each with its own ``lr``.
        optimizer: a name in ``OPTIMIZERS``, or a function of the groups.
        loss: ``loss(output, y)``, a scalar that is a mean over the batch.
        epochs: passes over the data; each reshuffles, and drops the last incomplete batch unless it is the only one.
        steps: optimiser steps, in place of ``epochs``; passes over the data as often as needed.
        batch_size: examples per step.
        seed: of the batches' order and of the model's own randomness.
        evaluate: most examples in the final training loss.
        train_step: takes each step in place of the built-in one, `TrainStep`: gradients, clipping, accumulation, mixed
            precision and ``optimizer.step()`` are its own. ``loss`` still gives the final training loss. What it
            returns is held against the rule of divergence, so it may return ``inf`` to give a run up.
        schedule: makes a scheduler of the optimiser and the run's number of steps, stepped after each of them.

    Raises:
        SearchError: if the data or arguments cannot be trained on, or ``train_step`` or ``schedule`` raises.
        ForwardError: if the model's forward raises.
        UnknownNameError: if the optimiser's name is unknown.
    """
    x, y = checked((x, y))
    check_budget(epochs=epochs, steps=steps, batch_size=batch_size)
    if evaluate < 1:
        raise SearchError(f"evaluate must be at least 1 example, got {evaluate}")
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    groups = [{**group, "params": _listed(group["params"])} for group in params]
    trained = [parameter for group in groups for parameter in group["params"]]
    if not any(parameter.requires_grad for parameter in trained):
        raise SearchError("nothing to train: the parameter groups hold no parameter that requires a gradient")
    optimiser = make(groups)
    total = count_steps(len(y), epochs=epochs, steps=steps, batch_size=batch_size)
    scheduler = None if schedule is None else _of_user("schedule", lambda: schedule(optimiser, total))
    losses: list[float] = []
    final, diverged = math.inf, False
    model.train()
    with seeded(seed):
        for taken, rows in zip(range(total), _batches(len(y), batch_size, seed), strict=False):
            if train_step is None:
                model.zero_grad(set_to_none=True)
                value = _loss(model, loss, take(x, rows), take(y, rows))
                losses.append(value.item())
                diverged = exploded(losses[-1], losses[0])
                if diverged:
                    total = taken
                    break
                if not value.requires_grad:
                    raise SearchError("nothing to train: the loss does not depend on any parameter")
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            else:
                batch = to_model(model, take(x, rows)), to_model(model, take(y, rows))
                where = f", at step {taken + 1} of {total}, seed {seed}"
                losses.append(_of_user("training step", lambda: _number(train_step(model, optimiser, *batch)), where))  # noqa: B023
                diverged = exploded(losses[-1], losses[0])
            diverged = diverged or not _finite(trained)
            if diverged:
                total = taken + 1
                break
            if scheduler is not None:
                _of_user("schedule", scheduler.step)
        if not diverged:
            final = _final_loss(model, loss, x, y, batch_size, evaluate)
            diverged = exploded(final, losses[0])
    model.zero_grad(set_to_none=True)
    return Run(math.inf if diverged else final, diverged, total, tuple(losses))


def check_budget(*, epochs: int, steps: int | None, batch_size: int) -> None:
    """Raise SearchError unless each is at least 1."""
    for name, value in (("epochs", epochs), ("steps", steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise SearchError(f"{name} must be at least 1, got {value}")


def count_steps(examples: int, *, epochs: int, steps: int | None, batch_size: int) -> int:
    """Optimiser steps of a whole run."""
    return epochs * max(1, examples // batch_size) if steps is None else steps


def _loss(model: nn.Module, loss: Loss, x: Inputs, y: Tensor) -> Tensor:
    """The loss on one batch."""
    x, y = to_model(model, x), to_model(model, y)
    try:
        out = output(model, x)
    except Exception as error:
        raise ForwardError(f"the model's forward raised {_line(error)}, on inputs {typed(x)}") from error
    try:
        value = loss(out, y)
    except Exception as error:
        raise SearchError(f"the loss raised {_line(error)}, on output {shapes(out)} and y {shapes(y)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SearchError(f"the loss must return one number, got {shape}: take its mean")
    return value


def _of_user(name: str, call: Callable[[], T], where: str = "") -> T:
    """What the user's own code returns.

    Raises: SearchError on one line, whatever it raises.
    """
    try:
        return call()
    except Exception as error:
        raise SearchError(f"the {name} raised {_line(error)}{where}") from error


def _number(value: float | Tensor) -> float:
    """The loss that a training step returned."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    if not isinstance(value, (int, float)):
        raise TypeError(f"it must return the batch's loss, one number, not {type(value).__name__}")
    return float(value)


def _final_loss(model: nn.Module, loss: Loss, x: Inputs, y: Tensor, batch_size: int, evaluate: int) -> float:
    """See `train`. Batch sizes differ by at most one: no batch statistics come from a lone last example."""
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:evaluate]
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    total = 0.0
    with torch.no_grad():
        for batch in rows.tensor_split(math.ceil(len(rows) / batch_size)):
            total += _loss(model, loss, take(x, batch), take(y, batch)).item() * len(batch)
        for buffer, before in kept:
            buffer.copy_(before)
    return total / len(rows)


def _batches(n: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Row numbers of one batch after the other, without end."""
    generator = torch.Generator().manual_seed(seed)
    size = min(n, batch_size)
    while True:
        order = torch.randperm(n, generator=generator)
        yield from torch.split(order[: n - n % size], size)


def exploded(loss: float, first: float) -> bool:
    """The rule of divergence, see `train`."""
    return not math.isfinite(loss) or loss > EXPLODED * max(abs(first), 1.0)


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    """One parameter, or any iterable of them, as a list."""
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _finite(parameters: Iterable[Tensor]) -> bool:
    """Whether all values are finite; one synchronisation with the device."""
    found = [parameter.detach().isfinite().all() for parameter in parameters]
    return bool(torch.stack([flag.to(found[0].device) for flag in found]).all())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global random generators seeded inside, as they were outside."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _line(error: Exception) -> str:
    """An exception on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
