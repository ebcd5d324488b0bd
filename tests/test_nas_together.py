"""Networks trained together come to what each comes to alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load
from dagscale.bench.data.augment import Augment
from dagscale.bench.nas.recipes import SCHEDULES
from dagscale.bench.nas.together import Member, outputs, train_together
from dagscale.errors import DagscaleError
from dagscale.models.nb201 import NB201, Nb201
from dagscale.training.engine import train

DIGITS = load("digits", limit=200)


def recipe(steps: int, **more: object) -> dagscale.Recipe:
    return dagscale.Recipe(
        (DIGITS.x, DIGITS.y), cross_entropy, torch.optim.SGD, momentum=0.9, nesterov=True, batch_size=20, steps=steps,
        schedule=SCHEDULES["cosine"], **more,
    )  # fmt: skip


def network(seed: int, code: str = "3_21_043") -> nn.Module:
    torch.manual_seed(seed)
    return NB201(Nb201.parse(code), in_channels=1, channels=4, cells=1)


def groups(model: nn.Module, lr: float, decay: float) -> list[dict[str, object]]:
    """Two groups with rates and decays of their own."""
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    others = [p for name, p in model.named_parameters() if "norm" not in name]
    return [
        {"params": norms, "lr": 2 * lr, "weight_decay": 0.0},
        {"params": others, "lr": lr, "weight_decay": decay},
    ]


SETTINGS = [(0, 0.05, 5e-4), (0, 0.2, 5e-3), (1, 0.05, 5e-4)]
"""Seed, rate, decay."""


# A convolution that no path reaches stays as it is, as torch leaves it.
@pytest.mark.parametrize("code", ["3_21_043", "3_20_003"])
def test_the_same_losses_weights_and_outputs(code: str) -> None:
    augment = Augment(("flip", "crop"), 1)
    members = [Member(m := network(seed, code), groups(m, lr, decay), seed) for seed, lr, decay in SETTINGS]
    before = {name: value.clone() for name, value in members[0].model.state_dict().items()}
    together = train_together(members, recipe(12), augment)
    for (seed, lr, decay), member, one in zip(SETTINGS, members, together, strict=True):
        alone = network(seed, code)
        done = train(
            nn.Sequential(Augment(("flip", "crop"), 1), alone), recipe(12), groups(alone, lr, decay), seed=seed
        )
        assert one.losses == pytest.approx(done.losses, rel=1e-3)
        assert one.loss == pytest.approx(done.loss, rel=1e-3)
        assert one.steps == done.steps == 12
        ours = member.model.state_dict()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=1e-2, atol=2e-3)
        alone.eval()
        with torch.no_grad():
            expected = alone(DIGITS.x)
        torch.testing.assert_close(outputs([member.model], DIGITS.x, 64)[0], expected, rtol=1e-2, atol=1e-2)
    assert any(not torch.equal(value, members[0].model.state_dict()[name]) for name, value in before.items())


def test_one_that_diverges_leaves_the_others_alone() -> None:
    augment = Augment(("flip",), 1)
    rates = (0.05, 1e30)
    members = [Member(m := network(0), groups(m, lr, 5e-4), 0) for lr in rates]
    good, lost = train_together(members, recipe(6), augment)
    alone = Member(m := network(0), groups(m, 0.05, 5e-4), 0)
    (expected,) = train_together([alone], recipe(6), augment)
    assert good.losses == pytest.approx(expected.losses, rel=1e-4)
    assert not good.diverged
    assert lost.diverged
    assert math.isinf(lost.loss)
    assert lost.steps < 6


def test_other_optimisers_and_losses_are_refused() -> None:
    data = (DIGITS.x, DIGITS.y)
    for other in (
        dagscale.Recipe(data, cross_entropy, torch.optim.AdamW, steps=2),
        dagscale.Recipe(data, lambda out, y: cross_entropy(out, y), torch.optim.SGD, steps=2),
    ):
        with pytest.raises(DagscaleError, match="train them one by one"):
            train_together([Member(m := network(0), groups(m, 0.1, 0.0), 0)], other, Augment((), 1))
