"""A depth rule on what an init does not draw: the author's own weights, LayerScale, gains stored as an offset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dagscale

M = 4
X = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """x + gain · V relu(W x), with a gain of its own, stored as it is or as an offset of 1; PyTorch's init."""

    def __init__(self, depth: int, gain: float = 0.1, offset: float = 0.0, ends: float = 1.0) -> None:
        super().__init__()
        self.stem, self.readout, self.offset = nn.Linear(16, 32), nn.Linear(32, 4), offset
        self.w, self.v = (nn.ModuleList(nn.Linear(32, 32) for _ in range(depth)) for _ in range(2))
        self.gains = nn.ParameterList(nn.Parameter(torch.full((32,), gain)) for _ in range(depth))
        self.scaled = gain != 0 or offset != 0
        with torch.no_grad():
            for v in self.v:
                v.weight.mul_(ends)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for w, v, gain in zip(self.w, self.v, self.gains, strict=True):
            y = v(w(x).relu())
            x = x + (y * (gain + self.offset if self.offset else gain) if self.scaled else y)
        out: Tensor = self.readout(x)
        return out


def planned(make: Any, init: str, **options: Any) -> dagscale.Plan:
    torch.manual_seed(0)
    recipe = dagscale.Recipe(optimizer="adamw", weight_decay=0.1)
    return dagscale.plan(
        make(2 * M), X, base=(make(2), X), base_lr=0.01, recipe=recipe, init=init, law="none", depth="completep",
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("init", ["in-degree", "keep"])
def test_a_gain_that_no_init_draws_takes_the_multiplier(init: str) -> None:
    plan = planned(Net, init)
    for i in range(2 * M):
        own = plan.parameters[f"gains.{i}"]
        assert (own.init_mean, own.init_std) == (pytest.approx(0.1 / M), pytest.approx(0, abs=1e-9))
        assert (own.lr, own.fold) == (pytest.approx(0.01 / M), 1 / M)
    model = plan.init_(Net(2 * M))
    torch.testing.assert_close(model.gains[3], torch.full((32,), 0.1 / M))  # type: ignore[union-attr, index]


def test_a_gain_stored_as_an_offset_is_multiplied_as_a_whole() -> None:
    plan = planned(lambda depth: Net(depth, gain=0.0, offset=1.0), "in-degree")
    assert plan.parameters["gains.0"].init_mean == pytest.approx(1 / M - 1)
    assert plan.parameters["gains.0"].lr == pytest.approx(0.01 / M)


@pytest.mark.parametrize("ends", [1.0, None])
def test_the_author_s_init_takes_what_is_left_to_do(ends: float | None) -> None:
    """PyTorch's draw of a branch's last layer times 1/m; of one that is drawn by 1/√(2L) already, m^-½."""

    def make(depth: int) -> nn.Module:
        return Net(depth, gain=0.0, ends=ends or (2 * depth) ** -0.5)

    plan = planned(make, "keep")
    drawn = {name for name, own in plan.parameters.items() if own.init_std is not None}
    assert drawn == {f"v.{i}.{part}" for i in range(2 * M) for part in ("weight", "bias")}
    pytorch = (3 * 32) ** -0.5  # uniform within 32^-½
    for i in range(2 * M):
        expected = pytorch / M if ends else pytorch * (4 * M) ** -0.5 / M**0.5
        assert plan.parameters[f"v.{i}.weight"].init_std == pytest.approx(expected, rel=0.1)  # of 1,024 entries each


def test_what_is_to_stay_stays_and_a_note_says_what_is_missing() -> None:
    asked = planned(Net, "in-degree", keep="gains")
    assert asked.parameters["gains.0"].init_mean is None
    assert any(
        note.startswith("gains.0–7: left as it is") and "factor 0.25 on it is left out" in note for note in asked.notes
    )

    def trained(depth: int) -> nn.Module:
        model = Net(depth, gain=0.0)
        with torch.no_grad():
            for v in model.v:
                v.weight.add_(3 * torch.outer(torch.randn(32), torch.randn(32)))
        return model

    kept = planned(trained, "keep")
    assert all(own.init_std is None for own in kept.parameters.values())
    assert any("left as it is" in note for note in kept.notes)


def test_zeros_stay_and_a_model_without_values_is_planned() -> None:
    zero = planned(lambda depth: Net(depth, gain=0.0, ends=0.0), "keep")
    assert all(zero.parameters[f"v.{i}.weight"].init_std is None for i in range(2 * M))

    def meta(depth: int) -> nn.Module:
        with torch.device("meta"):
            return Net(depth)

    recipe = dagscale.Recipe(optimizer="adamw")
    plan = dagscale.plan(
        meta(8), torch.zeros(2, 16, device="meta"), base=(Net(2), X), base_lr=0.01, recipe=recipe, init="keep",
        law="none", depth="completep",
    )  # fmt: skip
    assert any("left as it is" in note for note in plan.notes)
