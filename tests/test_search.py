"""The search: band mathematics on hand-made curves, and runs on small real problems."""

from __future__ import annotations

import copy
import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import dagscale
from dagscale.bench.data import Dataset
from dagscale.errors import DagscaleError, PlanError, SearchError, UnknownNameError
from dagscale.inits import INITS, Fill
from dagscale.inits import init as register
from dagscale.network import Network
from dagscale.planning.base import Base
from dagscale.rates import default_grid, find_band, limit_of, narrowed
from dagscale.searching import search
from dagscale.searching.fast import estimates, next_rate
from dagscale.searching.make import _lowest
from dagscale.training.optimizers import OPTIMIZERS, resolve
from dagscale.training.recipe import Recipe

INF = math.inf


def blobs(n: int = 64) -> tuple[Tensor, Tensor]:
    """Two classes in 4 dimensions."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 2
    return torch.randn(n, 4, generator=generator) + 2 * torch.eye(2, 4)[y], y


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@dataclass
class FakePlan:
    """Normal initialisation, and rates in the given ratios; records what it was asked, and tells the model its seed."""

    ratios: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    seeds: list[int] = field(default_factory=list)
    ran: list[float] = field(default_factory=list)

    def init_(self, model: nn.Module, *, seed: int) -> nn.Module:
        self.seeds.append(seed)
        model.seed = seed  # type: ignore[assignment]
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        return model

    def param_groups(self, model: nn.Module, *, lr: float) -> list[dict[str, Any]]:
        self.ran.append(lr)
        pairs = zip(model.parameters(), self.ratios, strict=True)
        return [{"params": [parameter], "lr": lr * ratio} for parameter, ratio in pairs]


def answer(curve: Callable[[float, int], float], plan: FakePlan | None = None, **options: Any) -> Base:
    """What a search says whose every run ends with the loss ``curve(rate, seed)``, through a training step that only
    tells it."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
        return curve(optimizer.param_groups[0]["lr"], model.seed)  # type: ignore[arg-type]

    return search(mlp(), Recipe(blobs(), step=step, steps=10), plan=plan or FakePlan(), **options)


HALVES = [2.0 ** (k / 2) for k in range(10)]
"""Ten rates, half an octave apart."""


def valley(bottom: float) -> Callable[[float, int], float]:
    """Loss 1 at the bottom, rising by 0.05 an octave on both sides."""
    return lambda rate, seed: 1 + 0.05 * abs(math.log2(rate / bottom))


# --- the band


def test_band_ends_are_interpolated_in_the_logarithm_of_the_rate() -> None:
    low, high = find_band([1, 2, 4, 8], [1.10, 1.0, 1.04, 1.08], 0.05)
    assert low == pytest.approx(2 ** (0.5))  # 1.05 is half-way from 1.0 at 2 to 1.1 at 1
    assert high == pytest.approx(2 ** (2.25))  # a quarter from 1.04 at 4 to 1.08 at 8


def test_band_stops_at_the_last_good_rate_before_a_divergence() -> None:
    assert find_band([1, 2, 4], [INF, 1.0, INF], 0.05) == (2, 2)
    assert find_band([1, 2, 4], [1.01, 1.0, INF], 0.05) == (1, 2)


def test_band_is_contiguous_around_the_best() -> None:
    low, high = find_band([1, 2, 4, 8, 16], [1.0, 1.5, 1.2, 0.99, 1.01], 0.05)
    assert 4 < low < 8
    assert high == 16


def test_band_of_a_single_rate_of_zero_and_of_negative_losses() -> None:
    assert find_band([3], [7.0], 0.05) == (3, 3)
    assert find_band([1, 2, 4], [1.0, 0.0, 1.0], 0.05) == pytest.approx((2, 2))
    low, high = find_band([1, 2, 4], [-1.9, -2.0, -1.8], 0.05)
    assert low == pytest.approx(1)
    assert high == pytest.approx(2**1.5)


def test_a_tolerance_of_zero_leaves_the_best_alone() -> None:
    assert find_band([1, 2, 4], [1.1, 1.0, 1.1], 0.0) == pytest.approx((2, 2))


def test_a_band_is_four_octaves_wide_at_most() -> None:
    """Where a wide valley has one steeper side, the middle of a narrow band is nearer to its bottom."""
    rates = [2.0**k for k in range(-8, 9)]
    losses = [1 + (0.004 if k < 0 else 0.012) * abs(k) for k in range(-8, 9)]
    wide, narrow = (find_band(rates, losses, 0.05, widest=w) for w in (INF, 4.0))
    assert math.log2(wide[1] / wide[0]) > 12
    assert math.log2(narrow[1] / narrow[0]) == pytest.approx(4)
    assert narrow == pytest.approx((2**-3, 2**1)), "the loss is 0.012 above the best at both ends"
    assert narrowed(rates, losses, 0.05) == pytest.approx(0.012)
    assert narrowed(rates, losses, 0.01) == 0.01, "wide enough already"


def test_a_band_jumps_over_no_hump_to_be_four_octaves_wide() -> None:
    """With a hump at 2 the band is one octave to its left, or all: the largest that is not too wide counts."""
    losses = [1.0, 1.001, 1.03, *[1.002] * 10]
    low, high = find_band([2.0**k for k in range(13)], losses, 0.05)
    assert (low, high) == pytest.approx((1, 4), rel=1e-3)


def test_even_losses_over_many_octaves_are_one_band() -> None:
    rates = [2.0**k for k in range(13)]
    assert narrowed(rates, [1.0] * 13, 0.05) == pytest.approx(0, abs=1e-9)
    assert find_band(rates, [1.0] * 13, 0.05) == (1, 2.0**12)


def test_a_band_of_exactly_four_octaves_is_not_narrowed_by_rounding() -> None:
    rates = [0.1]
    for _ in range(8):
        rates.append(rates[-1] * 2**0.5)
    assert find_band(rates, [1.01] * 4 + [1.0] + [1.01] * 4, 0.05) == (rates[0], rates[-1])


# --- the answer


def test_one_loss_over_many_octaves_is_told_of() -> None:
    """A margin loss whose network collapses ends at the margin, at any rate that is high enough."""
    found = answer(lambda rate, seed: 1.0 if rate > 2**-6 else 2.0, method="grid")
    assert any("the very same at rates" in note and "says the same of all examples" in note for note in found.notes)
    assert not any("the very same" in note for note in answer(valley(2**-4.0), method="grid").notes)
    perfect = answer(lambda rate, seed: 0.0 if rate > 2**-6 else 2.0, method="grid")
    assert not any("the very same" in note for note in perfect.notes), "a note of its own says that the loss is 0"


def test_lr_edge_and_argmin_of_a_valley() -> None:
    found = answer(valley(2**-4.0), method="grid")
    assert found.argmin == 2**-4
    assert found.band == pytest.approx((2**-5, 2**-3))
    assert (found.lr, found.edge) == (pytest.approx(2**-4), pytest.approx(2**-3))
    assert (found.loss, found.at_edge, found.widened, found.seeds) == (1.0, False, 0, 3)
    assert [point.lr for point in found.curve] == list(default_grid(OPTIMIZERS["sgd"]))
    assert found.steps == 10 * 3 * len(found.curve)


def test_the_mean_over_seeds_decides_and_one_divergence_spoils_a_rate() -> None:
    table = {1.0: (2.0, 2.0), 2.0: (1.0, 1.6), 4.0: (0.1, INF), 8.0: (3.0, 3.0)}
    plan = FakePlan()
    found = answer(
        lambda rate, seed: table[rate][seed - 7], plan, method="grid", grid=[8, 1, 2, 4, 2], seeds=2, seed=7, widen=0
    )
    assert plan.seeds == [7, 8] * 4, "the same seeds at every rate"
    assert [(p.lr, p.losses) for p in found.curve] == list(table.items())
    assert [p.loss for p in found.curve] == [2.0, 1.3, INF, 3.0]
    assert (found.argmin, found.edge) == (2, 2)


def test_the_grid_is_widened_towards_the_best_rate() -> None:
    grid = [2.0**k for k in range(-4, 0)]
    for bottom, widened in ((2.0, 1), (2.0**-9, 2), (2.0**5, 2)):
        plan = FakePlan()
        found = answer(valley(bottom), plan, method="grid", grid=grid, seeds=1)
        assert found.lr == pytest.approx(bottom)
        assert (found.widened, found.at_edge) == (widened, False)
        assert len(plan.ran) == len(set(plan.ran)) == 4 + 4 * widened, "no rate is run twice"
        assert [point.lr for point in found.curve] == sorted(plan.ran)


def test_the_grid_is_widened_while_the_band_reaches_its_end() -> None:
    found = answer(valley(1.0), method="grid", grid=[0.25, 0.5, 1.0, 1.5], seeds=1)
    assert found.widened == 1, "the best is inside, the band's upper end is not"
    assert found.edge == pytest.approx(2, rel=0.01)


def test_widening_has_an_end_and_the_result_says_so() -> None:
    found = answer(lambda rate, seed: 1 / (1 + rate), method="grid", grid=[1, 2], seeds=1, widen=2)
    assert (found.widened, found.at_edge, len(found.curve)) == (2, True, 10)
    assert found.argmin == found.edge == found.curve[-1].lr == 2**9
    assert "edge of the grid" in str(found)


@pytest.mark.parametrize("method", ["grid", "fast"])
def test_a_rate_far_too_high_finds_its_way_down(method: str) -> None:
    found = answer(
        lambda rate, seed: INF if rate > 2 else valley(0.5)(rate, seed), grid=[64, 128], seeds=1, method=method
    )
    assert found.lr == pytest.approx(0.5)
    assert not found.at_edge


@pytest.mark.parametrize("method", ["grid", "fast"])
def test_all_diverged_is_an_error_that_names_the_range(method: str) -> None:
    with pytest.raises(SearchError, match="every rate from 1 to 4 diverged: the loss is not finite before"):
        answer(lambda rate, seed: INF, grid=[1, 2, 4], method=method, widen=0)
    with pytest.raises(SearchError, match=r"every rate from 0.0625 to 4 diverged"):
        answer(lambda rate, seed: INF, grid=[1, 2, 4], method=method, widen=1)


class Late:
    """A loss that raises at every third call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 3 == 0:
            raise ValueError("late")
        return torch.nn.functional.cross_entropy(out, y)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"data": [blobs(32), (torch.full((32, 4), INF), blobs(32)[1])]}, "batch 2 holds NaN or infinite values"),
        ({"loss": lambda out, y: (out.sum() - y.sum()) * math.nan}, "not finite before any step"),
        ({"loss": Late(), "batch_size": 32}, "ended in an error, the loss raised ValueError: late"),
    ],
)
def test_what_no_rate_mends_is_not_put_down_to_the_rates(changed: dict[str, Any], text: str) -> None:
    recipe = Recipe(**{"data": blobs(), "steps": 4, **changed})
    with pytest.raises(SearchError, match=text):
        search(mlp(), recipe, grid=[0.01, 0.1], seeds=1, init="keep")


def test_default_grids_are_half_an_octave_apart() -> None:
    for name in ("sgd", "momentum", "adam", "adamw"):
        grid = default_grid(OPTIMIZERS[name])
        assert all(b / a == pytest.approx(2**0.5) for a, b in pairwise(grid))
    assert (default_grid(OPTIMIZERS["sgd"])[0], default_grid(OPTIMIZERS["sgd"])[-1]) == (2**-10, 2)
    assert default_grid(OPTIMIZERS["adam"])[-1] < 0.1
    assert default_grid(resolve(torch.optim.SGD)) == default_grid(OPTIMIZERS["sgd"])


# --- the fast search


def bowl(rate: float, seed: int) -> float:
    """Smooth below the best rate, steep above, diverging from 1 on; the second seed is worse throughout."""
    at = math.log2(rate / 2**-4.2)
    return INF if rate >= 1 else 1 + (0.02 if at < 0 else 0.06) * at**2 + 0.1 * (seed == 1)


def plateau(rate: float, seed: int) -> float:
    """Flat at low rates, a valley, flat again where the network is dead."""
    return 2.3 - 1.5 * math.exp(-(math.log2(rate / 2**-6) ** 2)) + 0.01 * rate + 0.03 * seed


def cliff(rate: float, seed: int) -> float:
    """Falls until it diverges, one seed half an octave before the others."""
    return INF if rate > (0.13 if seed == 2 else 0.19) else 1 - 0.03 * math.log2(rate)


def noisy(rate: float, seed: int) -> float:
    """A valley with 2 % noise that differs from rate to rate and seed to seed."""
    noise = torch.randn((), generator=torch.Generator().manual_seed(round(1e6 * math.log2(rate)) + seed)).item()
    return 1 + 0.04 * math.log2(rate / 2**-5) ** 2 + 0.02 * noise


def flat(rate: float, seed: int) -> float:
    """Within 5 % of the best over twelve octaves, the bottom not in their middle."""
    above = math.log2(rate / 2**-8)
    return 2 + (0.008 if above < 0 else 0.03) * abs(above) + 0.001 * seed


@pytest.mark.parametrize("curve", [bowl, plateau, cliff, noisy, flat])
def test_fast_answers_as_the_grid_with_fewer_runs(curve: Any) -> None:
    grid = answer(curve, method="grid")
    plan = FakePlan()
    fast = answer(curve, plan)
    off = 0.51 if curve is noisy else 1e-6
    for name in ("lr", "edge", "argmin"):
        assert abs(math.log2(getattr(fast, name) / getattr(grid, name))) <= off, name
    assert fast.loss == pytest.approx(grid.loss, rel=0.03 if curve is noisy else 1e-9)
    assert len(plan.ran) < 0.45 * 69, "6 of them are glances"
    assert {point.lr for point in fast.curve} <= {point.lr for point in grid.curve}
    assert (fast.method, grid.method, fast.at_edge) == ("fast", "grid", False)


def test_fast_widens_as_far_as_it_may() -> None:
    grid = [2.0**k for k in range(-4, 0)]
    for bottom, widened in ((2.0, 1), (2.0**-9, 2), (2.0**5, 2)):
        found = answer(valley(bottom), grid=grid, seeds=2)
        assert found.band == pytest.approx((bottom / 2, bottom * 2))
        assert found.widened >= widened
        assert not found.at_edge
    found = answer(lambda rate, seed: 1 / (1 + rate), grid=[1, 2], widen=2)
    assert (found.widened, found.at_edge, found.argmin) == (2, True, 2**9)
    assert answer(lambda rate, seed: 1 + 1e-3 * rate).at_edge, "a flat curve has no ends"


def test_a_lucky_high_rate_does_not_hide_the_valley_below() -> None:
    """A local dip at 1, where the glances are best, beyond a hump that a walk from there would not cross."""
    valley_ = {2.0**-1.5: 0.9, 2.0**-1.0: 1.6, 2.0**-0.5: 1.2, 1.0: 0.8, 2**0.5: 1.4, 2.0: 3.0}
    found = answer(lambda rate, seed: valley_.get(rate, 0.3 + 0.2 * abs(math.log2(rate / 2**-2.0))))
    assert found.argmin == 2**-2


@pytest.mark.parametrize("method", ["fast", "grid"])
def test_where_the_loss_hardly_depends_on_the_rate_the_band_is_narrowed_and_a_note_says_so(method: Any) -> None:
    found = answer(flat, method=method)
    assert math.log2(found.band[1] / found.band[0]) == pytest.approx(4, abs=0.01)
    assert found.argmin == 2**-8
    assert abs(math.log2(found.lr / 2**-8)) < 2
    assert "of rates end within 5.0 % of the best loss, so the band holds those within 1.3 %" in " ".join(found.notes)
    assert found.curve[-1].lr / found.curve[0].lr < 2**9 or method == "grid", "it does not walk along all of the valley"
    assert not answer(valley(2**-8)).notes


def test_seeds_are_added_only_where_they_decide() -> None:
    settled = {4: [1.0, 1.2, 1.1], 3: [1.3], 5: [9.0], 1: [2.0]}
    assert next_rate(settled, HALVES, 3, 0.05) is None
    assert next_rate({**settled, 5: [1.2]}, HALVES, 3, 0.05) == 5, "1.3 is within a fifth of the limit"
    assert next_rate({**settled, 5: [1.2, INF]}, HALVES, 3, 0.05) is None, "one divergence settles it"
    assert next_rate({**settled, 3: [0.9]}, HALVES, 3, 0.05) == 2, "a better rate is surrounded first"
    assert next_rate({4: [INF]}, HALVES, 3, 0.05) == 0
    assert next_rate({4: [INF], 0: [INF]}, HALVES, 3, 0.05) is None


def test_levels_are_compared_on_shared_seeds() -> None:
    levels = estimates({4: [1.0, 1.6, 1.3], 3: [1.1], 5: [1.2, 1.6], 6: [0.1, INF]}, 3)
    assert levels == pytest.approx({4: 1.3, 3: 1.4, 5: 1.4, 6: INF})
    assert estimates({4: [1.0], 3: [1.1]}, 3) == {4: 1.0, 3: 1.1}


def test_fast_on_real_runs_repeats_and_costs_less() -> None:
    x, y = blobs(256)
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    options: dict[str, Any] = {"plan": FakePlan(), "batch_size": 16, "seeds": 3}
    fast, grid = (search(model, (x, y), method=method, **options) for method in ("fast", "grid"))
    assert fast == search(model, (x, y), **options)
    assert fast.steps < 0.4 * grid.steps
    assert abs(math.log2(fast.edge / grid.edge)) <= 0.5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    whole = {point.lr: point.losses for point in grid.curve}
    assert all(whole[point.lr][: len(point.losses)] == point.losses for point in fast.curve if point.lr in whole)


# --- real runs


@pytest.mark.parametrize("method", ["grid", "fast"])
def test_a_step_of_the_users_own_and_a_schedule(method: str) -> None:
    """The built-in step written out gives the same search; a schedule of zeros trains nothing, and is told so."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    options: dict[str, Any] = {"grid": [0.01, 0.1, 1.0], "seeds": 2, "batch_size": 16, "widen": 0, "method": method}
    plain = search(mlp(), blobs(), plan=FakePlan(), **options)
    stepped = search(mlp(), blobs(), plan=FakePlan(), train_step=step, **options)
    assert replace(stepped, recipe=plain.recipe) == plain
    with pytest.raises(SearchError, match=r"the loss is .* at every rate .*no rate reaches the training"):
        search(
            mlp(), blobs(), plan=FakePlan(),
            schedule=lambda optimizer, total: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0), **options,
        )  # fmt: skip


def test_a_step_that_raises_is_one_line_with_rate_seed_and_step() -> None:
    def broken(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        raise KeyError("mask")

    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SearchError) as caught:
        search(model, blobs(), plan=FakePlan(), grid=[0.125], seed=5, batch_size=16, train_step=broken)
    assert str(caught.value) == (
        "at learning rate 0.125: the training step raised KeyError: 'mask', at step 1 of 4, seed 5"
    )
    assert isinstance(caught.value.__cause__, KeyError)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_real_search_repeats_and_leaves_the_model_alone() -> None:
    x, y = blobs()
    model = mlp().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = Dataset("blobs", x.view(-1, 4, 1, 1), y, 2)
    flat = nn.Sequential(nn.Flatten(), model)
    state = torch.get_rng_state()
    options: dict[str, Any] = {"grid": [0.01, 0.1, 1.0], "seeds": 2, "batch_size": 16, "epochs": 2, "widen": 1}
    found = search(flat, data, plan=FakePlan(), method="grid", **options)
    assert found == search(model, (x, y), plan=FakePlan(), method="grid", **options)
    assert found != search(model, (x, y), plan=FakePlan(), method="grid", seed=1, **options)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    whole = sum(math.isfinite(point.loss) for point in found.curve)
    assert 8 * 2 * whole <= found.steps < 8 * 2 * len(found.curve), "diverged runs stop early"
    assert found.loss < 0.5


def test_the_plans_ratios_are_kept() -> None:
    """Weights of the readout at a hundredth of the rate: its parameters move a hundredth as far."""
    moved: list[list[float]] = []

    def spying(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        moved.append([group["lr"] for group in groups])
        return torch.optim.SGD(groups)

    plan = FakePlan((1.0, 1.0, 0.01, 0.0))
    search(mlp(), blobs(), plan=plan, method="grid", optimizer=spying, grid=[0.1, 0.2], seeds=1, widen=0)
    assert moved == [pytest.approx([0.1, 0.1, 0.001, 0.0]), pytest.approx([0.2, 0.2, 0.002, 0.0])]


def test_the_default_plan_initialises_every_run() -> None:
    x, y = blobs()
    model = mlp()
    nn.init.constant_(model[0].weight, math.nan)  # the model's own weights play no part
    found = search(model, (x, y), grid=[0.01, 0.1, 1.0], seeds=1, batch_size=16)
    assert found.loss < 0.7
    assert model[0].weight.isnan().all()


def test_of_several_inits_the_base_has_the_one_that_trains_best() -> None:
    """It is, apart from steps and notes, what a search under that init alone finds, and plans begin from it."""
    grid = {"grid": [0.05, 0.2, 0.8], "seeds": 1, "method": "grid", "widen": 0, "epochs": 2, "batch_size": 16}
    alone = {init: search(mlp(), blobs(), init=init, **grid) for init in ("moments", "damped", "in-degree")}
    best = min(alone.values(), key=lambda base: base.loss)
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    both = search(model, blobs(), init=list(alone), **grid)
    assert (both.init, both.lr, both.curve) == (best.init, best.lr, best.curve)
    assert both.steps == sum(base.steps for base in alone.values())
    assert all(f"{base.loss:.4g}" in both.notes[0] and str(base.init) in both.notes[0] for base in alone.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert dagscale.plan(mlp(), base=both, law="none").init == best.init


@pytest.mark.parametrize(
    ("losses", "chosen"), [((1.0, 0.996), 0), ((1.0, 0.99), 1), ((-1.0, -1.002), 0), ((-1, -2), 1)]
)
def test_of_inits_that_are_even_the_first_is_taken(losses: tuple[float, float], chosen: int) -> None:
    """A difference of half a percent is that of two seeds, and says nothing of the targets."""
    base = search(mlp(), blobs(), grid=[0.05, 0.2, 0.8], seeds=1, method="grid", widen=0, batch_size=16)
    found = [replace(base, init=init, loss=loss) for init, loss in zip(("moments", "damped"), losses, strict=True)]
    assert _lowest(found, {}).init == found[chosen].init


def test_an_init_under_which_nothing_trains_is_left_out_of_the_choice() -> None:
    model = mlp()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    said = {"grid": [0.05, 0.2, 0.8], "seeds": 1, "method": "grid", "widen": 0, "batch_size": 16}
    found = search(model, blobs(), init=["keep", "moments"], **said)
    assert found.init == "moments"
    assert "none under keep (every rate from 0.05 to 0.8 diverged" in found.notes[0]
    with pytest.raises(SearchError, match="every rate from"):
        search(model, blobs(), init=["keep"], **said)


def test_an_init_that_refuses_is_left_out_of_the_choice() -> None:
    said: dict[str, Any] = {"grid": [0.05, 0.2, 0.8], "seeds": 1, "method": "grid", "widen": 0, "batch_size": 16}
    with INITS.temporarily():

        @register("refuses")
        def refuses(network: Network) -> dict[str, Fill]:
            raise PlanError("not for this one")

        found = search(mlp(), blobs(), init=["moments", "refuses"], **said)
        assert found.init == "moments"
        assert "none under refuses (not for this one)" in found.notes[0]
        with pytest.raises(PlanError, match="not for this one"):
            search(mlp(), blobs(), init=["refuses"], **said)


def test_of_several_inits_none_may_be_unknown_and_there_is_one() -> None:
    with pytest.raises(UnknownNameError, match="unknown init 'dampd'; did you mean 'damped'"):
        search(mlp(), blobs(), init=["moments", "dampd"])
    with pytest.raises(SearchError, match="init is an empty list"):
        search(mlp(), blobs(), init=[])


def test_what_the_plan_leaves_alone_is_said() -> None:

    class Partial(FakePlan):
        notes = ("left as the model drew them, since init 'x' has no rule for them: [0].weight",)

    found = answer(valley(2**-4.0), Partial())
    assert found.notes == tuple(found.to_dict()["notes"]) == Partial.notes
    assert Partial.notes[0] in str(found.table().caption)
    assert answer(valley(2**-4.0)).notes == ()


def test_hopeless_rates_diverge_for_real() -> None:
    with pytest.raises(SearchError, match=r"every rate from 1e\+20 to 1e\+20 diverged"):
        search(
            nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1)),
            blobs(),
            plan=FakePlan(),
            loss=lambda out, y: (out.squeeze(1) - y).square().mean(),
            grid=[1e20],
            widen=0,
            steps=5,
        )


def test_progress_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    search(mlp(), blobs(), plan=FakePlan(), grid=[0.1, 0.2], seeds=1, widen=1, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    search(mlp(), blobs(), plan=FakePlan(), grid=[0.1, 0.2], seeds=1, widen=1)
    assert capsys.readouterr() == ("", "")


# --- what a result can do


@pytest.fixture
def found() -> Base:
    return answer(lambda rate, seed: INF if rate > 0.2 else valley(2**-4.0)(rate, seed) + seed / 100, method="grid")


def test_to_dict_is_strict_json(found: Base) -> None:
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["lr"] == found.lr
    assert read["band"] == list(found.band)
    assert read["curve"][-1] == {"lr": 2.0, "loss": None, "losses": [None] * 3}
    assert len(read["curve"]) == len(found.curve)


def test_table_shows_every_rate(found: Base, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=100).print(found.table())
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if line.startswith("│")]
    assert len(rows) == len(found.curve)
    assert [row for row in rows if "best" in row] == [row for row in rows if " 0.0625 " in row]
    assert sum("diverged" in row for row in rows) == sum(point.loss == INF for point in found.curve) == 7
    assert "learning rate 0.0625 (band 0.031 to 0.126;" in " ".join(shown.replace("\n", " ").split())


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plot(found: Base, tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / f"curve{suffix}")
    assert (tmp_path / f"curve{suffix}").read_bytes().startswith(magic)


def test_plot_errors(found: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    for path, words in ((tmp_path / "x.docx", ".svg, .png"), (tmp_path / "no" / "x.png", "cannot write .*No such")):
        with pytest.raises(DagscaleError, match=words):
            found.plot(path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DagscaleError, match=r"pip install dagscale\[plot\]"):
        found.plot(tmp_path / "x.png")


# --- arguments


def test_arguments_that_cannot_be_searched() -> None:
    x, y = blobs()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("grid is empty", {"grid": []}),
        ("positive numbers, got -0.1", {"grid": [-0.1, 1]}),
        ("positive numbers, got nan", {"grid": [math.nan]}),
        ("positive numbers, got inf", {"grid": [1, INF]}),
        ("must hold numbers", {"grid": ["fast"]}),
        ("seeds must be at least 1", {"seeds": 0}),
        ("seeds must be a whole number, got '3'", {"seeds": "3"}),
        ("seeds must be a whole number, got 1.5", {"seeds": 1.5}),
        ("seed must be below 2.62", {"seed": 1 << 70}),
        ("seed must be at least 0", {"seed": -1}),
        ("widen must be a whole number", {"widen": 1.5}),
        ("tolerance must be 0 or more, got 'x'", {"tolerance": "x"}),
        ("epochs must be", {"epochs": 0}),
        ("steps must be", {"steps": 0}),
        ("batch_size must be", {"batch_size": 0}),
        ("widen must be", {"widen": -1}),
        ("tolerance must be", {"tolerance": -0.1}),
        ("tolerance must be", {"tolerance": math.nan}),
        ("NaN or infinite", {"data": (x / 0, y)}),
        ("at least 2 examples", {"data": (x[:1], y[:1])}),
        ("make images floating", {"data": (torch.ones(9, 1, 2, 2, dtype=torch.uint8), y[:9])}),
    ]
    for words, options in wrong:
        with pytest.raises(SearchError, match=words) as caught:
            search(mlp(), **{"data": (x, y), "plan": FakePlan(), **options})
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError, match="did you mean 'sgd'"):
        search(mlp(), (x, y), plan=FakePlan(), optimizer="sgdd")
    with pytest.raises(UnknownNameError, match="did you mean 'grid'"):
        search(mlp(), (x, y), plan=FakePlan(), method="gird")


def test_a_model_that_cannot_be_copied_is_borrowed_and_given_back() -> None:
    options: dict[str, Any] = {"plan": FakePlan(), "grid": [0.01, 0.1, 1.0], "seeds": 1, "batch_size": 16}
    model = mlp().eval()
    model.stuck = (_ for _ in ())  # type: ignore[assignment]
    before = copy.deepcopy(model.state_dict())
    assert search(model, blobs(), **options) == search(mlp(), blobs(), **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(SearchError, match=r"cannot be copied .*and is in half precision.*give it in float32"):
        search(model.bfloat16(), blobs(), **options)


def test_the_band_leaves_out_rates_at_which_next_to_nothing_is_learned():
    """A loss that begins 4 % above its best is inside of the tolerance before anything is learned."""
    assert limit_of(1.0, 0.05) == limit_of(1.0, 0.05, start=3.0) == 1.05
    assert limit_of(1.0, 0.05, start=1.04) == pytest.approx(1.02)
    assert limit_of(1.0, 0.05, start=0.9) == 1.0, "no rate lowers it"
    low, high = find_band([1, 2, 4, 8], [1.04, 1.03, 1.0, 1.01], 0.05, start=1.04)
    assert 2 < low < 4
    assert high == 8


def nearly_trained():
    """A linear model a little off its best, on targets with noise that nothing explains; and its data."""
    torch.manual_seed(0)
    x, model = torch.randn(256, 4), nn.Linear(4, 1)
    with torch.no_grad():
        y = model(x) + torch.randn(256, 1)
        model.weight += 0.05
    return model, (x, y)


def test_a_model_that_is_nearly_trained_is_searched_by_what_it_still_learns():
    model, data = nearly_trained()
    found = search(model, data, loss=mse_loss, optimizer="adamw", init="keep", batch_size=64, epochs=5, seeds=1)
    assert 1e-3 < found.lr < 0.1, "below, the loss stays where it begins, which is within 5 % of the best"


def test_a_loss_without_a_lower_bound_gives_no_answer():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    recipe = Recipe([*torch.randn(4, 16, 4)], lambda out: -100 * out.mean(), "adam", steps=40)
    with pytest.raises(SearchError, match=r"it has no lower bound.*check loss and targets"):
        search(model, recipe, seeds=1)


def test_where_no_rate_trains_there_is_no_answer():
    model, (x, y) = nearly_trained()
    with torch.no_grad():  # at its best on these data
        best = torch.linalg.lstsq(torch.cat([x, torch.ones(256, 1)], 1), y).solution[:, 0]
        model.weight.copy_(best[:4]), model.bias.copy_(best[4:])
    with pytest.raises(SearchError, match=r"no rate trains: the loss is 0.* before training, .*more steps or data"):
        search(model, (x, y), loss=mse_loss, init="keep", batch_size=64, grid=[0.1, 0.2], widen=0)


def test_a_warning_of_the_users_own_code_is_shown_once(recwarn: pytest.WarningsRecorder) -> None:
    class Warning(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("mine", stacklevel=1)
            return super().forward(x)

    warnings.simplefilter("default")
    search(Warning(*mlp()), blobs(), plan=FakePlan(), grid=[0.01, 0.1, 1.0], seeds=2, batch_size=16)
    assert [str(one.message) for one in recwarn] == ["mine"]


def test_a_lowest_loss_of_0_is_said_to_tell_little() -> None:
    """A hinge is 0 beyond its margin, and so is the loss of a critic that has won."""

    def hinge(out: Tensor, y: Tensor) -> Tensor:
        return (1 - out[:, 0] * (2 * y - 1)).relu().mean()

    x, y = blobs()
    apart = x.sign() + 9 * torch.eye(2, 4)[y], y
    given: dict[str, Any] = {"plan": FakePlan(), "grid": [1e-3, 0.1, 1.0], "seeds": 1, "batch_size": 16, "loss": hinge}
    assert any("is exactly 0" in note for note in search(mlp(), apart, steps=60, **given).notes)
    assert not search(mlp(), blobs(), steps=2, **given).notes


@pytest.mark.parametrize("kind", ["loader", "batches", "tensors", "data set"])
def test_validation_data_have_batches_of_their_own(kind: str) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    data = torch.utils.data.TensorDataset(x, y)
    validation = {
        "loader": torch.utils.data.DataLoader(data, batch_size=32), "batches": [(x[:40], y[:40]), (x[40:], y[40:])],
        "tensors": (x, y), "data set": data,
    }[kind]  # fmt: skip
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def swapped(batch: Any) -> Any:
        return batch[0], batch[1]

    loader = torch.utils.data.DataLoader(data, batch_size=16)
    recipe = Recipe(loader, nn.functional.cross_entropy, "sgd", steps=4, unpack=swapped)
    found = dagscale.search(model, recipe, seeds=1, validation=validation, grid=[0.1, 0.5])
    assert "losses are those of the validation data" in found.notes


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ([], "validation data: the data hold no batch"),
        ([(torch.zeros(4, 9), torch.zeros(4))], "validation data: the forward of Sequential raised"),
    ],
)
def test_validation_data_that_do_not_fit_are_named(validation: Any, words: str) -> None:
    x = torch.randn(64, 8)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    recipe = Recipe((x, x[:, :4].argmax(1)), nn.functional.cross_entropy, "sgd", steps=4, batch_size=16)
    with pytest.raises(DagscaleError, match=words):
        dagscale.search(model, recipe, seeds=1, validation=validation)
