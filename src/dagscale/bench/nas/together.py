"""Several networks of one architecture trained at once: the same runs as one by one, in fewer and larger operations.

The networks may differ in their weights, in every parameter's rate and weight decay, and in their seeds; architecture,
data, batch size, length and schedule are shared. Their parameters are stacked along a first dimension, and
``torch.func.vmap`` runs one forward over all of them, so that small networks no longer spend their time on starting
operations. Networks of one seed see the same augmented batch, which is made once. On a GPU the whole step is replayed
as one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from dagscale.bench.data.augment import Augment
from dagscale.errors import DagscaleError
from dagscale.training.batches import Batch
from dagscale.training.engine import EVALUATE, Run, exploded
from dagscale.training.optimizers import Groups
from dagscale.training.recipe import MakeSchedule, Recipe


@dataclass(frozen=True)
class Member:
    """One of the networks.

    Attributes:
        model: with the weights to start from; trained in place.
        groups: its parameters, each group with ``lr`` and ``weight_decay``.
        seed: of its batches and of their augmentation.
    """

    model: nn.Module
    groups: Groups
    seed: int


def train_together(members: Sequence[Member], recipe: Recipe, augment: Augment) -> list[Run]:
    """Train the members as `dagscale.training.engine.train` would each of them, on the device that their models are on.

    Batches, augmentation, schedule and final training loss are the same, number for number; the arithmetic differs in
    its rounding. A network that diverges does not stop the others, and does not touch them.

    Args:
        members: of one architecture.
        recipe: tensors as data, cross-entropy, and SGD with momentum (Nesterov or not) with the schedule.
        augment: what the batches go through.

    Raises:
        DagscaleError: for another optimiser or loss than these.
    """
    if recipe.optimizer.build is not torch.optim.SGD or recipe.loss is not cross_entropy or not members:
        raise DagscaleError("networks are trained together by SGD and cross-entropy alone: train them one by one")
    models = [member.model for member in members]
    stack = _Stack(models, [member.groups for member in members], recipe.optimizer.settings)
    seeds = list(dict.fromkeys(member.seed for member in members))
    own = torch.tensor([seeds.index(member.seed) for member in members], device=stack.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    batches = [recipe.source.batches(seed) for seed in seeds]
    step = _replayed(stack) if stack.device.type == "cuda" else stack.step
    augment.train()
    stack.train(True)
    losses: list[Tensor] = []
    for factor in _factors(recipe.schedule, recipe.total_steps):
        x, y = _drawn([next(source) for source in batches], augment, generators, stack.device)
        losses.append(step(x[own], y[own], factor).clone())
    final = stack.final(recipe, augment, generators, own)
    stack.put_back(models)
    return [_outcome(run, end) for run, end in zip(torch.stack(losses, 1).tolist(), final.tolist(), strict=True)]


def _outcome(losses: list[float], final: float) -> Run:
    """A run that stops, as the plain trainer's does, at the first loss that exploded."""
    for taken, loss in enumerate(losses):
        if exploded(loss, losses[0]):
            return Run(math.inf, True, taken, tuple(losses[: taken + 1]))
    diverged = exploded(final, losses[0])
    return Run(math.inf if diverged else final, diverged, len(losses), tuple(losses))


def _factors(schedule: MakeSchedule | None, steps: int) -> Iterator[float]:
    """What the schedule multiplies a rate by, step for step."""
    made = torch.optim.SGD([torch.zeros(1)], 1.0)
    scheduler = None if schedule is None else schedule(made, steps)
    for _ in range(steps):
        yield float(made.param_groups[0]["lr"])
        made.step()
        if scheduler is not None:
            scheduler.step()


def _drawn(
    batches: Sequence[Batch], augment: Augment, generators: Sequence[torch.Generator], device: torch.device
) -> tuple[Tensor, Tensor]:
    """One augmented batch a seed, stacked."""
    drawn = [augment(b.inputs.to(device), g) for b, g in zip(batches, generators, strict=True)]
    return torch.stack(drawn), torch.stack([b.target.to(device) for b in batches])


class _Stack:
    """The networks' parameters in one matrix, (networks, parameters), beside their buffers."""

    def __init__(self, models: Sequence[nn.Module], groups: Sequence[Groups], optimizer: Mapping[str, Any]) -> None:
        parameters, self.buffers = stack_module_state(list(models))
        self.skeleton = models[0]
        self.flat = torch.cat([p.detach().flatten(1) for p in parameters.values()], 1)
        self.device = self.flat.device
        shapes = {name: p.shape for name, p in parameters.items()}
        self.sizes = [math.prod(shape[1:]) for shape in shapes.values()]
        # Views of the matrix: an update of it is one of all of them.
        self.parameters = {
            name: part.view(shape).detach().requires_grad_()
            for (name, shape), part in zip(shapes.items(), torch.split(self.flat, self.sizes, 1), strict=True)
        }
        self.rates, self.decays = self._settings(models, groups, "lr"), self._settings(models, groups, "weight_decay")
        self.velocity = torch.zeros_like(self.flat)
        self.momentum, self.nesterov = float(optimizer.get("momentum", 0.0)), bool(optimizer.get("nesterov", False))

    def _settings(self, models: Sequence[nn.Module], groups: Sequence[Groups], name: str) -> Tensor:
        rows = []
        for model, own in zip(models, groups, strict=True):
            values = {id(p): float(group.get(name, 0.0)) for group in own for p in group["params"]}
            row = [values.get(id(p), 0.0) for _, p in model.named_parameters()]
            rows.append(torch.tensor(row, device=self.device).repeat_interleave(torch.tensor(self.sizes)))
        return torch.stack(rows)

    def train(self, mode: bool) -> None:
        self.skeleton.train(mode)

    def __call__(self, x: Tensor, *, shared: bool = False) -> Tensor:
        """Logits, (networks, batch, classes), of a batch for each network, or of one ``shared`` by all."""

        def one(parameters: Any, buffers: Any, x: Tensor) -> Any:
            return functional_call(self.skeleton, (parameters, buffers), (x,))

        found: Tensor = vmap(one, in_dims=(0, 0, None if shared else 0))(self.parameters, self.buffers, x)
        return found

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of each network on its batch."""
        logits = self(x)
        return cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)

    def step(self, x: Tensor, y: Tensor, factor: float | Tensor) -> Tensor:
        """One step of SGD as torch takes it; the losses before it."""
        losses = self.losses(x, y)
        # Parameters that no path reaches have no gradient, and torch leaves them alone.
        found = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
        with torch.no_grad():
            decays = torch.split(self.decays, self.sizes, 1)
            parts = [
                torch.zeros_like(p).flatten(1) if g is None else torch.add(g.flatten(1), p.flatten(1) * d)
                for g, p, d in zip(found, self.parameters.values(), decays, strict=True)
            ]
            gradient = torch.cat(parts, 1)
            # torch starts its velocity at the first gradient, which is what zero times the momentum plus it is.
            self.velocity.mul_(self.momentum).add_(gradient)
            move = gradient.add(self.velocity, alpha=self.momentum) if self.nesterov else self.velocity
            self.flat.sub_(self.rates * move * factor)
        return losses.detach()

    def final(self, recipe: Recipe, augment: Augment, generators: Sequence[torch.Generator], own: Tensor) -> Tensor:
        """The final training losses, see `dagscale.training.engine.train`."""
        kept = {name: buffer.clone() for name, buffer in self.buffers.items()}
        total, examples = torch.zeros(len(own), device=self.device), 0
        with torch.no_grad():
            for batch in recipe.source.sample(EVALUATE, recipe.batch_size or EVALUATE):
                x, y = _drawn([batch] * len(generators), augment, generators, self.device)
                total += self.losses(x[own], y[own]) * batch.size
                examples += batch.size
        self.buffers = kept
        return total / examples

    def put_back(self, models: Sequence[nn.Module]) -> None:
        """Give every network its own parameters and buffers."""
        with torch.no_grad():
            for k, model in enumerate(models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.parameters[name][k])
                for name, buffer in model.named_buffers():
                    buffer.copy_(self.buffers[name][k])


def _replayed(stack: _Stack) -> Callable[[Tensor, Tensor, float], Tensor]:
    """`_Stack.step` as a CUDA graph: recorded at the fourth call, as torch asks for some ordinary steps before."""
    kept: dict[str, Any] = {}
    warm = iter(range(3))

    def step(x: Tensor, y: Tensor, factor: float) -> Tensor:
        scale = torch.tensor(factor, device=stack.device)
        if next(warm, None) is not None:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                ordinary = stack.step(x, y, scale)
            torch.cuda.current_stream().wait_stream(side)
            return ordinary
        if not kept:
            kept.update(x=x.clone(), y=y.clone(), factor=scale.clone(), graph=torch.cuda.CUDAGraph())
            with torch.cuda.graph(kept["graph"]):  # recorded, not yet run
                kept["losses"] = stack.step(kept["x"], kept["y"], kept["factor"])
        for name, value in {"x": x, "y": y, "factor": scale}.items():
            kept[name].copy_(value)
        kept["graph"].replay()
        losses: Tensor = kept["losses"]
        return losses

    return step


def outputs(models: Sequence[nn.Module], x: Tensor, batch: int = 512) -> Tensor:
    """Logits of each network in eval mode, where norms use their running statistics.

    Args:
        models: of one architecture, on one device.
        x: (n, channels, H, W).
        batch: images at once.

    Returns:
        (networks, n, classes), on the CPU.
    """
    stack = _Stack(models, [[] for _ in models], {})
    stack.train(False)
    with torch.no_grad():
        found = [stack(part.to(stack.device), shared=True).cpu() for part in torch.split(x, batch)]
    stack.train(True)
    return torch.cat(found, 1)
