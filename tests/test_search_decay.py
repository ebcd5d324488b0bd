"""Rate and decay from one search, in few runs, and carried over as a pair."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import SearchError
from dagscale.searching.decay import APART, FURTHEST, walk
from dagscale.training.engine import final_loss, train
from dagscale.training.recipe import Recipe


@pytest.mark.parametrize("octaves", [-6, -2, 0, 2, 6])
@pytest.mark.parametrize("exponent", [0.0, -0.5, -0.8, -1.0])
def test_the_walk_ends_within_one_step_of_the_best_pair(octaves: int, exponent: float) -> None:
    """A valley of best rates that goes like decay^exponent, with its lowest point some octaves from the start.

    Rates are tried an octave apart, so the loss found is at most that of half an octave off in rate and one octave in
    decay.
    """
    runs: list[tuple[float, float]] = []

    def run(decay: float, lr: float) -> float:
        runs.append((decay, lr))
        x = math.log2(decay / 0.1) - octaves
        y = math.log2(lr / 0.01) - exponent * math.log2(decay / 0.1)
        return x**2 + 4 * y**2

    found = walk(run, 0.1, 0.01, run(0.1, 0.01))
    best = min(found, key=lambda pair: pair.loss)
    assert abs(math.log2(best.weight_decay / 0.1) - octaves) <= 1.01
    assert best.loss <= 1 + 4 * 0.5**2 + 1e-9
    assert len(runs) <= 1 + 3 * (abs(octaves) // 2 + 2)
    assert [pair.weight_decay for pair in found] == sorted(pair.weight_decay for pair in found)


def test_the_walk_comes_to_an_end() -> None:
    runs: list[float] = []

    def run(decay: float, lr: float) -> float:
        runs.append(decay)
        return -math.log2(decay)

    found = walk(run, 1.0, 0.1, run(1.0, 0.1))
    assert max(pair.weight_decay for pair in found) == APART**FURTHEST
    assert len(runs) == 1 + 3 * FURTHEST


def test_diverged_runs_are_no_better() -> None:
    found = walk(lambda decay, lr: math.inf, 0.1, 0.01, 1.0)
    assert min(found, key=lambda pair: pair.loss).weight_decay == 0.1


def network(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels with noise, which is learnt by heart if nothing forbids it."""
    rng = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(96, 8, generator=rng), torch.randn(96, 3, generator=rng)
    truth = torch.randn(8, 3, generator=torch.Generator().manual_seed(9))
    return x, (x @ truth + 3 * noise).argmax(1)


def recipe_of(**more: Any) -> Recipe:
    settings = {"optimizer": "adamw", "weight_decay": 0.02, "batch_size": 16, "steps": 60, **more}
    return Recipe(data(0), cross_entropy, **settings)


def test_the_pair_is_found_remembered_and_carried_over() -> None:
    recipe = recipe_of()
    small = network()
    found = dagscale.search(
        small, recipe, seeds=1, decay=True, validation=data(1), grid=[2.0**k for k in range(-8, -3)]
    )
    tried = {pair.weight_decay for pair in found.pairs}
    decay = found.recipe["weight_decay"]
    assert 0.02 in tried
    assert len(tried) >= 2
    assert decay == min(found.pairs, key=lambda pair: pair.loss).weight_decay
    assert f"weight decay {decay:.3g}" in str(found)
    again = dagscale.Base.from_json(found.to_json())
    assert (again.pairs, again.recipe) == (found.pairs, found.recipe)
    plan = dagscale.plan(network(32), base=found, law="none", width="mup")
    hidden = max(group["weight_decay"] for group in plan.param_groups(network(32)))
    assert hidden == pytest.approx(2 * decay)
    # the loss at the best pair is that of a run of one's own there
    best = min(found.curve, key=lambda point: point.loss)
    trial = network()
    start = dagscale.plan(small, base=found, law="none")
    start.init_(trial)
    train(trial, start.live or recipe, start.param_groups(trial, lr=best.lr))
    trial.eval()
    assert final_loss(trial, Recipe(data(1), cross_entropy, batch_size=16), 4096) == pytest.approx(best.loss)


def test_validation_judges_the_rate_alone_too() -> None:
    grid = [2.0**k for k in range(-10, -2, 2)]
    inside = dagscale.search(network(), recipe_of(), seeds=1, grid=grid, widen=0, method="grid")
    held = dagscale.search(network(), recipe_of(), seeds=1, grid=grid, widen=0, method="grid", validation=data(1))
    assert held.pairs == ()
    assert held.lr < inside.lr  # what learns by heart is no better
    assert "losses are those of the validation data" in held.notes


def test_validation_computes_as_training_does() -> None:
    """In the type of its autocast, and of an output the part that is selected."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": self.inner(x)}

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        assert output.dtype == torch.bfloat16
        return cross_entropy(output.float(), target)

    recipe = recipe_of(steps=2, autocast=torch.bfloat16, select=lambda out: out["scores"]).changed(loss=loss)
    found = dagscale.search(Wrapped(), recipe, seeds=1, grid=[0.01, 0.02], widen=0, method="grid", init="keep",
                            validation=data(1))  # fmt: skip
    assert all(math.isfinite(point.loss) for point in found.curve), "what the loss raises makes a run diverge"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (recipe_of(weight_decay=None), "which is not given: say weight_decay="),
        (recipe_of(), "a training loss then asks for ever less decay: give validation="),
    ],
)
def test_what_cannot_be_looked_for_is_said(recipe: Recipe, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        dagscale.search(network(), recipe, seeds=1, decay=True)
