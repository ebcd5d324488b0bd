"""The moments init: the second moment that arrives at every vertex."""

import math

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import PlanError
from dagscale.laws.function_change import Taps
from dagscale.spaces import targets


def arriving(model: nn.Module, plan: dagscale.Plan, x: torch.Tensor, seeds: int = 8) -> list[float]:
    """Mean over seeds of each weight operator's output second moment, in forward order."""
    totals: list[float] = []
    for seed in range(seeds):
        plan.init_(model, seed=seed)
        taps = Taps(model)
        with torch.no_grad(), taps:
            model(x)
        moments = [v.square().mean().item() / seeds for v in taps.values]
        totals = [a + b for a, b in zip(totals or [0.0] * len(moments), moments, strict=True)]
    return totals


class Odd(nn.Module):
    """Grouped, transposed and padded convolutions, a gate, an embedding, attention, a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 64, 3, padding=1, groups=4)
        self.transposed = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.gate = nn.Linear(32, 128)
        self.value = nn.Linear(32, 128)
        self.qkv = nn.Linear(128, 384)
        self.out = nn.Linear(128, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.transposed(self.grouped(x).relu())).flatten(2).transpose(1, 2)
        h = self.gate(h).sigmoid() * self.value(h)
        q, k, v = self.qkv(h).chunk(3, -1)
        h = h + self.out((q @ k.transpose(1, 2) / 128**0.5).softmax(-1) @ v)
        return self.head(h.mean(1))


def test_any_layer_gets_the_moment_wanted() -> None:
    """Wanted: 1/d_in, whatever lies behind. Sampling error of a seed is about sqrt(2/units) < 0.2 (0.45 for the
    ten outputs); over 8 seeds within 0.25 (0.6)."""
    model, x = Odd(), torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    wanted = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0]
    for moment, goal, tolerance in zip(arriving(model, plan, x), wanted, [0.25] * 6 + [0.6], strict=True):
        assert moment / goal == pytest.approx(1, abs=tolerance)


def test_pytorch_default_init_is_far_from_it() -> None:
    model, x = Odd(), torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="keep")
    assert min(arriving(model, plan, x, seeds=1)) < 0.3


def test_moments_of_a_relu_chain_are_he_initialisation() -> None:
    """A stem on unit-variance input, then ReLU layers: std sqrt(2/n) within the batch's own fluctuation."""
    model, _ = targets.load("mlp:2_02?width=256")
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments", data=(x, x))
    for name in ("cells.0.edges.0_1.linear.weight", "cells.0.edges.1_2.linear.weight"):
        assert plan.parameters[name].init_std == pytest.approx(math.sqrt(2 / 256), rel=0.1)
    assert plan.parameters["readout.linear.weight"].init_std == pytest.approx(math.sqrt(2 / 256), rel=0.1)


def test_deterministic_and_the_model_is_left_alone() -> None:
    model, x = Odd(), torch.randn(4, 8, 6, 6)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.manual_seed(0)
    first = dagscale.plan(model, x, base_lr=1.0, law="none", init="moments")
    torch.manual_seed(1)
    assert dagscale.plan(model, x, base_lr=1.0, law="none", init="moments") == first
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.embed(ids)))


def test_a_tied_weight_takes_the_smaller_of_its_uses() -> None:
    """As an embedding it would be drawn with std 1, as a readout of unit signals with 1/8."""
    plan = dagscale.plan(Tied(), torch.arange(32).view(4, 8), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["embed.weight"].init_std == pytest.approx(1 / 8, rel=0.15)


class SeesZeros(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x.clamp(min=100.0) - 100.0)


def test_a_layer_that_sees_only_zeros_stays_and_is_reported() -> None:
    model = SeesZeros()
    plan = dagscale.plan(model, torch.randn(2, 4), base_lr=1.0, law="none", init="moments")
    assert plan.parameters["b.weight"].init_std is None
    assert any("b.weight" in note for note in plan.notes)


def test_meta_models_are_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match="to_empty"):
        dagscale.plan(nn.Linear(2, 2, device="meta"), torch.empty(1, 2, device="meta"), base_lr=1, law="none",
                      init="moments")  # fmt: skip
