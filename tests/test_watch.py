"""Watching a training: silent on sound ones, and each fault of a kind that people have met is named."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.fixtures.residual import WORDS, ResNet, Transformer
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
    report = trained(name, model, plan, optimizer, scheduler=schedule and schedule(optimizer), **options)
    assert report.ok, str(report)
    assert report.observed == 5
    assert report.kept is not None
    seen = [row for row in report.rows if row.signal is not None]
    assert len(seen) >= 3
    assert all(0 < row.signal < math.inf for row in seen if row.signal is not None), str(report)


def test_there_are_enough_sound_trainings() -> None:
    assert len(SOUND) >= 30
