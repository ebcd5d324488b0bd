"""What the program around a call has set for itself does not reach what is measured, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
RECIPE = dagscale.Recipe((X, Y), cross_entropy, batch_size=16, steps=8)


@contextmanager
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta by default": lambda: torch.device("meta"),
    "float64 by default": doubles,
}


def results() -> tuple[Any, ...]:
    torch.manual_seed(0)
    with torch.inference_mode(False), torch.device("cpu"):
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.linspace(-0.4, 0.5, parameter.numel()).sin().view_as(parameter))
        model.float()
    family = [(model, X[:2])] * 2
    report = dagscale.check(family, recipe=RECIPE, sizes=[1, 2], init="keep", law="none", base_lr=0.1, steps=2, seeds=2)
    found = dagscale.search(model, RECIPE, seeds=1)
    plan = dagscale.plan(model, recipe=RECIPE, law="short-run")
    with torch.device("cpu"):
        plan.init_(model)
    return found.lr, plan.lr, str(report), [p.detach().float().tolist() for p in model.parameters()]


@pytest.fixture(scope="module")
def right() -> tuple[Any, ...]:
    return results()


@pytest.mark.parametrize("name", AROUND)
def test_what_is_set_around_a_call_changes_nothing(name: str, right: tuple[Any, ...]) -> None:
    with AROUND[name]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        default = torch.get_default_device(), torch.get_default_dtype()
        assert results() == right
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")) == before
        assert (torch.get_default_device(), torch.get_default_dtype()) == default
