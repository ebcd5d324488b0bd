"""What width adds to the depth rules: eps, and the rates of Muon's matrices."""

from __future__ import annotations

import pytest
import torch
from tests.fixtures.residual import Transformer, example
from torch import nn
from torch.nn import functional as F

import dagscale
from dagscale.graph import Graph
from dagscale.scaling.spectral import matrix_rates
from dagscale.scaling.width import width_scaling


def graph(model: nn.Module) -> Graph:
    return dagscale.trace(model, example(model)[0])


def gradients(width: int) -> dict[str, float]:
    """Root mean square of every parameter's gradient at initialisation under μP, mean over seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(12):
        torch.manual_seed(seed)
        model = Transformer("pre", 2, width)
        factors = width_scaling(graph(Transformer("pre", 2, 16)), graph(model), "adam")
        for name, p in model.named_parameters():
            with torch.no_grad():
                if p.dim() > 1:
                    p.normal_(0, 1 if name in ("embed.weight", "position") else p[0].numel() ** -0.5)
                p.mul_(factors[name].init)
        x, y = example(model, 2, seed)
        F.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()  # type: ignore[no-untyped-call]
        for name, p in model.named_parameters():
            if p.grad is not None:
                found.setdefault(name, []).append(float(p.grad.square().mean().sqrt()))
    return {name: sum(values) / len(values) for name, values in found.items()}


def test_eps_follows_the_gradient() -> None:
    """Eight times the width: measured gradients shrink by the factor on eps, within a factor of 2 each."""
    target = graph(Transformer("pre", 2, 256))
    factors = width_scaling(graph(Transformer("pre", 2, 16)), target, "adam")
    assert {factors[p.name].eps for p in target.parameters if p.reached and p.name != "readout.weight"} == {1 / 16}
    assert factors["readout.weight"].eps == 1
    small, large = gradients(32), gradients(256)
    for name, size in small.items():
        if name.endswith("k.bias"):
            continue  # softmax does not see it
        expected = (1 / 8) if name != "readout.weight" else 1
        assert 1 / 2 < large[name] / size / expected < 2, name


@pytest.mark.parametrize(("implementation", "factor"), [("match_rms_adamw", 0.5), ("original", 1.0)])
def test_matrices_under_muon(implementation: str, factor: float) -> None:
    rates = matrix_rates(graph(Transformer("pre", 1, 8)), graph(Transformer("pre", 3, 32)), implementation)
    assert set(rates) == {f"blocks.{i}.{n}.weight" for i in range(3) for n in ("q", "k", "v", "o", "up", "down")}
    assert list(rates.values()) == pytest.approx([factor] * len(rates))
