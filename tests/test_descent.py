"""The law ``descent``, and plans without a base."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import dagscale
from dagscale.data import load
from dagscale.draws import Fill
from dagscale.errors import PlanError
from dagscale.laws.descent import known
from dagscale.spaces import targets
from dagscale.subject import Subject
from dagscale.trace import trace


def parabola(optimizer: str, **more: object) -> Subject:
    """(2w - 1)² from w = 1: slope 4, curvature 8."""
    model, x = nn.Linear(1, 1, bias=False), torch.full((64, 1), 2.0)
    fills = {"weight": Fill(1.0, 0.0)}
    y = torch.ones(64, 1)
    return Subject(trace(model, x), model, x, (x, y), mse_loss, optimizer, fills=fills, batch_size=8, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 1 / 8), ("adam", 4 / 8)])
def test_one_step_reaches_the_bottom_of_a_parabola(optimizer: str, rate: float) -> None:
    assert known(parabola(optimizer)).value == pytest.approx(rate, rel=1e-4)


def test_multipliers_of_the_plan_scale_the_step() -> None:
    assert known(parabola("sgd", multipliers={"weight": 4.0})).value == pytest.approx(1 / 32, rel=1e-4)


def test_noise_lowers_the_rate_as_the_batch_shrinks() -> None:
    digits = load("digits")
    model, x = targets.load("mlp:2?width=32", data=digits)
    given = (trace(model, x), model, x, (digits.x, digits.y), cross_entropy, "sgd")
    small, large = (known(Subject(*given, batch_size=size)).value for size in (4, 256))
    assert small < 0.5 * large


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_a_plan_without_a_base_trains(optimizer: str) -> None:
    digits = load("digits")
    model, x = targets.load("mlp:2_02?width=32", data=digits)
    plan = dagscale.plan(model, x, optimizer=optimizer, data=(digits.x, digits.y), loss=cross_entropy, batch_size=32)
    assert (plan.law, plan.factors, plan.lr) == ("descent", {}, plan.base_lr)
    assert any("octave" in note for note in plan.notes)
    found = dagscale.search(
        model, digits, plan=plan, optimizer=optimizer, batch_size=32, steps=60, seeds=1,
        grid=[plan.lr * 2.0**k for k in range(-4, 5)],
    )  # fmt: skip
    assert abs(math.log2(plan.lr / found.lr)) < 2


def test_without_a_base_other_laws_say_what_is_missing() -> None:
    model, x = targets.load("mlp:2", data=None)
    with pytest.raises(PlanError, match=r"dagscale\.search, or give data and loss"):
        dagscale.plan(model, x)
    with pytest.raises(PlanError, match="base_lr must be"):
        dagscale.plan(model, x, law="curvature", data=(x, torch.zeros(len(x), dtype=torch.int64)), loss=cross_entropy)
