"""The law ``short-run``."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import dagscale
from dagscale.bench.data import load
from dagscale.errors import PlanError
from dagscale.laws import LAWS, short_run
from dagscale.laws.short_run import SHARE, SPACING, STEPS, known
from dagscale.models import targets
from dagscale.network import Network
from dagscale.planning.prepare import about, initialised, traced
from dagscale.tracing import trace
from dagscale.training.draws import Fill
from dagscale.training.groups import Relative
from dagscale.training.probe import Cost
from dagscale.training.recipe import Recipe


def parabola(start: float = 1.0, relative: float = 1.0, **more: Any) -> Network:
    """(2w - 1)² from w = 1: a step at rate η takes the loss to (1 - 8η)² of what it was."""
    model, x = nn.Linear(1, 1, bias=False), torch.full((64, 1), 2.0)
    recipe = Recipe(**{"data": (x, torch.ones(64, 1)), "loss": mse_loss, "batch_size": 8, **more})
    return Network(
        trace(model, x), recipe, model, x, fills={"weight": Fill(start, 0.0)}, relative={"weight": Relative(relative)}
    )


def digits(target: str, batch_size: int = 32) -> Network:
    data = load("digits")
    model, x = targets.load(target, data=data)
    recipe = Recipe((data.x, data.y), cross_entropy, batch_size=batch_size)
    return initialised(traced(model, x, recipe, 0), "moments")


def rate(network: Network) -> float:
    """The rate that short runs of it like best."""
    return math.exp(known(network).log_rate)


class Reads:
    """Batches without end; how many of them were read in each pass."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.passes.append(0)
        while True:
            self.passes[-1] += 1
            yield torch.full((8, 1), 2.0), torch.ones(8, 1)


def told(loss: Callable[[float, int], float]) -> Any:
    """A training step whose loss is a function of the rate and of the number of the step in its run, from 1."""

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
        model.steps = getattr(model, "steps", 0) + 1  # type: ignore[assignment, operator]
        return loss(optimizer.param_groups[0]["lr"], model.steps)  # type: ignore[arg-type]

    return step


def expected_middle(phase: int) -> float:
    """Log2 of the band's middle on the parabola, its ends interpolated between the rates tried as the law does."""
    change = {k: fmean((1 - 8 * 2.0**k) ** (2 * t) for t in range(STEPS)) - 1 for k in range(phase - 20, 0, SPACING)}
    limit = (1 - SHARE) * min(change.values())
    inside = [k for k in change if change[k] <= limit]
    ends = []
    for k, beyond in ((min(inside), min(inside) - SPACING), (max(inside), max(inside) + SPACING)):
        share = (limit - change[k]) / (change[beyond] - change[k])
        ends.append(k + share * (beyond - k))
    return sum(ends) / 2


@pytest.mark.parametrize("phase", [0, 1])
def test_middle_of_the_rates_that_descend_a_parabola(phase: int) -> None:
    found = short_run.measure(parabola(), 0, phase - 10, Cost())
    assert found is not None
    assert math.log2(found) == pytest.approx(expected_middle(phase), abs=1e-3)


def test_seeds_try_rates_between_one_another_s() -> None:
    """So the mean over two does not depend on where their rates lie, but for less than those of an octave would."""
    assert math.log2(rate(parabola())) == pytest.approx(fmean(map(expected_middle, (0, 1))), abs=1e-3)
    assert [short_run.nearest(e, phase) for e in (-3.4, 2.9, -100, 100) for phase in (0, 1)] == [
        -4, -3, 2, 3, -38, -39, 22, 21,
    ]  # fmt: skip


def test_multipliers_of_the_plan_scale_the_rate() -> None:
    assert rate(parabola(relative=4.0)) == pytest.approx(rate(parabola()) / 4, rel=1e-3)


def test_ratios_of_short_runs_fade() -> None:
    carried = LAWS["short-run"].carry({"base": parabola()}, parabola(relative=4.0), about)
    assert carried.factors == {"short-run": pytest.approx(4**-0.75, rel=1e-3)}


@pytest.mark.parametrize(("whole", "looked"), [(40, 24), (7, 7), (1, 2)])  # it takes two to see what the first did
def test_it_looks_no_further_than_the_run_that_the_rate_is_for(whole: int, looked: int) -> None:
    reads = Reads()
    known(parabola(data=reads, batch_size=None, steps=whole))
    assert reads.passes == [looked, looked], "one pass a seed, whose batches serve every rate"


@pytest.mark.parametrize("flat", [1, 2, 3])
def test_a_draw_under_which_nothing_is_learnt_is_drawn_again(flat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In four steps the batches' noise can hide what they learn; three draws in a row are an answer."""
    real, drawn = short_run.middle_of_band, []

    def flat_at_first(run: short_run.Runs, start: int, least: float = 0.0) -> float | None:
        drawn.append(run.probe.seed)
        if len(drawn) <= flat:
            raise short_run.NothingLearnt("no short run lowers the loss")
        return real(run, start, least)

    monkeypatch.setattr(short_run, "middle_of_band", flat_at_first)
    network = digits("mlp:2_02?width=16")
    if flat == 3:
        with pytest.raises(PlanError, match="no short run lowers the loss"):
            known(network)
    else:
        assert math.isfinite(known(network).log_rate)
    assert drawn[:3] == ([0, 1024, 2048] if flat > 1 else [0, 1024, 1])


def test_where_it_starts_does_not_matter() -> None:
    network = digits("mlp:2_02?width=16")
    low, high = (short_run.measure(network, 0, start, Cost()) for start in (-14, -2))
    assert low == pytest.approx(high, rel=1e-6)


@pytest.mark.parametrize(("whole", "looked"), [(None, [24, 48, 96, 96]), (40, [24, 40, 40])])
def test_runs_are_longer_where_nothing_falls(whole: int | None, looked: list[int]) -> None:
    """The loss falls by 0.05 % a step at the best rate: 1.2 % in the mean over 48 steps, 2.4 % over 96, of the 2 % that
    are wanted. The second seed goes on with what the first needed."""

    def slow(lr: float, step: int) -> float:
        return 1 - 5e-4 * step * (math.exp(-(math.log2(lr / 2**-6) ** 2) / 8) if lr else 0)

    reads = Reads()
    found = known(parabola(data=reads, loss=None, batch_size=None, steps=whole, step=told(slow)))
    assert reads.passes == looked
    assert math.exp(found.log_rate) == pytest.approx(2**-6)


def test_vanishing_signals_want_higher_rates_and_not_lower_ones() -> None:
    """At low rates the loss changes by less than rounding: nothing to come down from."""
    network = nn.Sequential(
        nn.Linear(8, 8), *(m for _ in range(8) for m in (nn.ReLU(), nn.Linear(8, 8))), nn.Linear(8, 2)
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    y = (x[:, 0] > 1).long()
    drawn = Network(trace(network, x), Recipe((x, y), cross_entropy, batch_size=32), network, x)
    assert -4 < math.log2(rate(drawn)) < 2


def test_the_valley_beyond_the_break_is_not_taken() -> None:
    changes = {-8: -0.5, -7: -0.9, -6: -1.0, -5: -0.9, -4: 0.3, -3: 2.0, -2: -1.2, -1: -1.3}

    def broken(lr: float, step: int) -> float:
        if not lr:
            return 1.0
        return 1 + changes.get(round(math.log2(lr)), -0.1 if lr < 2**-8 else math.inf)

    assert -6.5 < math.log2(rate(parabola(loss=None, step=told(broken)))) < -5.5


def test_the_model_and_its_statistics_stay_as_they_were() -> None:
    network = digits("mlp:2?width=16&norm=batch")
    assert network.model is not None
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    known(network)
    assert all(torch.equal(before[name], value) for name, value in network.model.state_dict().items())


def test_sees_that_normalised_networks_bear_a_rate_that_plain_ones_do_not() -> None:
    plain, normed = (rate(digits(f"mlp:2_02_002?width=32{norm}")) for norm in ("", "&norm=batch"))
    assert normed > 2 * plain


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_a_plan_without_a_base_is_near_what_a_search_finds(optimizer: str) -> None:
    data = load("digits")
    model, x = targets.load("mlp:2_02?width=32", data=data)
    plan = dagscale.plan(model, x, optimizer=optimizer, data=(data.x, data.y), loss=cross_entropy, batch_size=32)
    assert (plan.law, plan.factors, plan.lr) == ("short-run", {}, plan.base_lr)
    assert any(note.startswith("no base: ") for note in plan.notes)
    found = dagscale.search(
        model, data, plan=plan, optimizer=optimizer, batch_size=32, steps=60, seeds=1,
        grid=[plan.lr * 2.0**k for k in range(-4, 5)],
    )  # fmt: skip
    assert abs(math.log2(plan.lr / found.lr)) < 2


def test_noise_lowers_the_rate_as_the_batch_shrinks() -> None:
    small, large = (rate(digits("mlp:2?width=32", batch_size=size)) for size in (4, 256))
    assert small < 0.5 * large


def test_without_a_base_other_laws_say_what_is_missing() -> None:
    model, x = targets.load("mlp:2", data=None)
    with pytest.raises(PlanError, match=r"dagscale\.search .*, or give data and loss"):
        dagscale.plan(model, x)
    with pytest.raises(PlanError, match="carries a base's rate over, and there is none"):
        dagscale.plan(model, x, law="curvature", data=(x, torch.zeros(len(x), dtype=torch.int64)), loss=cross_entropy)


def test_refusals_name_the_mend() -> None:
    with pytest.raises(PlanError, match="at initialisation is nan"):
        known(parabola(math.nan))
    with pytest.raises(PlanError, match="no short run of sgd lowers the loss"):
        known(parabola(0.5))  # at the bottom already
    with pytest.raises(PlanError, match="no minimum to train towards"):
        known(parabola(loss=lambda out, y: (out - y).mean()))


class Towers(nn.Module):
    """How alike each of a batch is to each, as two towers see it: outputs within ±10 whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = nn.functional.normalize(self.a(x), dim=1), nn.functional.normalize(self.b(-x), dim=1)
        return 10 * one @ other.T


def test_outputs_that_high_rates_throw_away_but_do_not_break_are_no_gain() -> None:
    """Untrained towers do worse than towers that say the same of all; the rate is where training does better."""
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))

    def pairs(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(out, torch.arange(len(out)))

    recipe = Recipe((x, torch.zeros(512)), pairs, "adam", batch_size=64, steps=100)
    found = [
        rate(replace(initialised(traced(Towers(), None, recipe, 0), "moments"), hint=hint)) for hint in (1e-5, 0.01, 4)
    ]
    best = dagscale.search(Towers(), recipe, seeds=1, init="moments").lr
    assert max(found) < 2 * min(found)
    assert abs(math.log2(found[0] / best)) < 2


def test_a_start_among_rates_that_all_come_to_one_loss_is_no_refusal() -> None:
    """Outputs that saturate: high rates leave the very same loss."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=g)
    y = (x[:, :1] + 0.3 * torch.randn(512, 1, generator=g) > 1.8).float()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    recipe = Recipe((x, y), mse_loss, "adam", batch_size=64, steps=96)
    own = initialised(traced(model, None, recipe, 0), "moments")
    found = [rate(replace(own, hint=hint, memo={})) for hint in (1e-4, 0.5, 64.0)]
    assert max(found) < 3 * min(found)
