"""The init ``damped``: a signal keeps a quarter of its size over the longest path without norms."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.inits.wanted import GAIN, by_parameters, damped_by_parameters
from dagscale.models import targets


def chain(hidden: int, norm: str = "none", width: int = 64) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(16, width)]
    for i in range(hidden):
        if norm == "all" or (norm == "first" and i == 0):
            layers.append(nn.BatchNorm1d(width))
        layers += [nn.ReLU(), nn.Linear(width, 10 if i == hidden - 1 else width)]
    return nn.Sequential(*layers)


def stds(model: nn.Module, init: str) -> list[float]:
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init=init)
    return [plan.parameters[n].init_std or 0.0 for n, p in model.named_parameters() if p.dim() > 1]


@pytest.mark.parametrize("hidden", [1, 2, 6])
def test_the_whole_path_keeps_a_quarter(hidden: int) -> None:
    """Each layer before the readout takes the same root of it; the readout stays. ReLUs are homogeneous, so what is
    asked of the signal is what the weights have."""
    model = chain(hidden)
    ratios = [a / b for a, b in zip(stds(model, "damped"), stds(model, "moments"), strict=True)]
    assert ratios[:-1] == pytest.approx([GAIN ** (1 / hidden)] * hidden, rel=0.03)
    assert ratios[-1] == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Tanh])
def test_outputs_are_a_quarter_as_large_whatever_the_activation(act: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(16, 256), act(), nn.Linear(256, 256), act(), nn.Linear(256, 256))
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    sizes = []
    for init in ("damped", "moments"):
        plan = dagscale.plan(model, x, base_lr=1.0, law="none", init=init)
        with torch.no_grad():
            sizes.append(math.sqrt(sum(plan.init_(model, seed=k)(x).square().mean().item() for k in range(6)) / 6))
    assert sizes[0] / sizes[1] == pytest.approx(GAIN, rel=0.1)


def test_where_every_layer_has_a_norm_nothing_changes() -> None:
    model = chain(4, "all")
    assert stds(model, "damped") == stds(model, "moments")


def test_what_a_norm_follows_is_left_out_and_the_rest_shares_the_quarter() -> None:
    model = chain(4, "first")
    ratios = [a / b for a, b in zip(stds(model, "damped"), stds(model, "moments"), strict=True)]
    assert ratios == pytest.approx([1.0, *[GAIN ** (1 / 3)] * 3, 1.0], rel=0.03)


class Branches(nn.Module):
    """Two layers beside one, added; then a product; then the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.d, self.e, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = (self.b(self.a(x).relu()) + self.c(x)).relu()
        out: torch.Tensor = self.out(self.d(h) * self.e(h))
        return out


def test_sums_average_what_is_left_and_products_multiply_it() -> None:
    """By hand: 3 layers on the longest path before the readout, so each keeps s = ¼^(2/3) of a second moment."""
    graph = dagscale.trace(Branches(), torch.randn(4, 8))
    share = GAIN ** (2 / 3)
    summed = (share**2 + share) / 2
    left = {"a": share, "b": share**2, "c": share, "d": summed * share, "e": summed * share}
    left["out"] = left["d"] * left["e"]
    plain = by_parameters(graph)
    for names, wanted in damped_by_parameters(graph).items():
        (name,) = names
        assert wanted / plain[names] == pytest.approx(left[name.removesuffix(".weight")]), name


def test_check_knows_what_is_wanted() -> None:
    """No layer of a damped family is off what its init aims at, and a readout twice as large is."""
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    data = (x, x[:, :10].argmax(1))
    models = [chain(2, width=width) for width in (32, 64, 128)]
    plans = [dagscale.plan(m, x, base_lr=0.05, law="none", init="damped", optimizer="sgd") for m in models]
    report = dagscale.check(models, plans=plans, data=data, loss=cross_entropy)
    assert not [f for f in report.faults if f.what == "signal"], str(report)

    def doubled(plan: dagscale.Plan) -> dagscale.Plan:
        readout = plan.parameters["4.weight"]
        assert readout.init_std is not None
        larger = replace(readout, init_std=2 * readout.init_std)
        return replace(plan, parameters={**plan.parameters, "4.weight": larger})

    report = dagscale.check(models, plans=[*map(doubled, plans)], data=data, loss=cross_entropy)
    assert any(f.what == "signal" and "readout" in f.cause for f in report.faults), str(report)


def test_language_models_with_a_final_norm_are_as_before() -> None:
    model, ids = targets.load("lm:2?width=32", data=None)
    graph = dagscale.trace(model, ids)
    assert damped_by_parameters(graph) == by_parameters(graph)
