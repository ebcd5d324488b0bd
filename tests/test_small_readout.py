"""The init ``small-readout``: as ``moments``, with readouts a quarter as large."""

import pytest
import torch
from torch import nn

import dagscale
from dagscale.inits.wanted import GAIN


class Heads(nn.Module):
    """A trunk and two readouts, one of which the other does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classes, self.value = nn.Linear(16, 10), nn.Linear(16, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.trunk(x).flatten(1)
        return self.classes(features), self.value(features)


class Tied(nn.Module):
    """A language model whose readout is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.norm = nn.Embedding(11, 16), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        return self.norm(x + self.mix(x).relu()) @ self.embed.weight.T


def stds(model: nn.Module, x: torch.Tensor, init: str) -> dict[str, float]:
    plan = dagscale.plan(model, x, base_lr=1.0, law="none", init=init)
    return {name: own.init_std for name, own in plan.parameters.items() if own.init_std}


@pytest.mark.parametrize(
    ("model", "x", "readouts"),
    [
        (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 8), {"2.weight"}),
        (Heads(), torch.randn(32, 3, 8, 8), {"classes.weight", "value.weight"}),
    ],
    ids=["chain", "two heads"],
)
def test_readouts_are_a_quarter_as_large_and_nothing_else_is(
    model: nn.Module, x: torch.Tensor, readouts: set[str]
) -> None:
    small, usual = (stds(model, x, init) for init in ("small-readout", "moments"))
    ratios = {name: small[name] / usual[name] for name in usual}
    assert ratios == pytest.approx({name: GAIN if name in readouts else 1.0 for name in usual}, rel=1e-6)


def test_a_tied_embedding_starts_as_small_as_its_use_as_a_readout_asks() -> None:
    x = torch.randint(0, 11, (16, 12), generator=torch.Generator().manual_seed(0))
    small, usual = (stds(Tied(), x, init) for init in ("small-readout", "moments"))
    assert small["embed.weight"] / usual["embed.weight"] == pytest.approx(GAIN, rel=0.05)


def test_a_base_may_choose_it_and_hands_it_on() -> None:
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(96, 8, generator=generator), torch.arange(96) % 4)
    recipe = dagscale.Recipe(data, nn.functional.cross_entropy, "adamw", batch_size=32, steps=24)
    small, large = (nn.Sequential(nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 4)) for w in (8, 24))
    found = dagscale.search(small, recipe, init=["moments", "small-readout"], seeds=1)
    plan = dagscale.plan(large, base=found)
    assert found.init == plan.init
    (other,) = {"moments", "small-readout"} - {found.init}
    assert any(f"under {other}" in note for note in found.notes), found.notes


def test_a_network_without_a_readout_is_told_of() -> None:
    """Outputs that are products of several layers' are."""

    class Gated(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.last = last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h: torch.Tensor = x + self.a(x).tanh() * self.b(x).exp()
            return self.c(h) if self.last else h

    for last in (True, False):
        plan = dagscale.plan(Gated(last), torch.randn(4, 8), base_lr=1.0, law="none", init="small-readout")
        told = [note for note in plan.notes if note.startswith("init 'small-readout' is 'moments' here")]
        assert len(told) == (not last)
