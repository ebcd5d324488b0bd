"""The law ``short-run``."""

import math
from statistics import fmean

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import dagscale
from dagscale.bench.data import load
from dagscale.errors import PlanError
from dagscale.inits import INITS
from dagscale.laws import short_run
from dagscale.laws.short_run import SHARE, STEPS, known
from dagscale.models import targets
from dagscale.network import Subject
from dagscale.tracing import trace
from dagscale.training.draws import Fill


def parabola(**more: object) -> Subject:
    """(2w - 1)² from w = 1: a step at rate η takes the loss to (1 - 8η)² of what it was."""
    model, x = nn.Linear(1, 1, bias=False), torch.full((64, 1), 2.0)
    given = {"loss": mse_loss, "fills": {"weight": Fill(1.0, 0.0)}, "batch_size": 8, **more}
    return Subject(trace(model, x), model, x, (x, torch.ones(64, 1)), **given)  # type: ignore[arg-type]


def digits(target: str, optimizer: str = "sgd", **more: object) -> Subject:
    data = load("digits")
    model, x = targets.load(target, data=data)
    subject = Subject(trace(model, x), model, x, (data.x, data.y), cross_entropy, optimizer, batch_size=32)
    return Subject(**{**vars(subject), "fills": INITS["moments"](subject), **more})


def expected_middle() -> float:
    """Log2 of the band's middle on the parabola, its ends interpolated between the rates 2^k as the law does."""
    change = {k: fmean((1 - 8 * 2.0**k) ** (2 * t) for t in range(STEPS)) - 1 for k in range(-20, 0)}
    limit = (1 - SHARE) * min(change.values())
    inside = [k for k in change if change[k] <= limit]
    ends = []
    for k, beyond in ((min(inside), min(inside) - 1), (max(inside), max(inside) + 1)):
        share = (limit - change[k]) / (change[beyond] - change[k])
        ends.append(k + share * (beyond - k))
    return sum(ends) / 2


def test_middle_of_the_rates_that_descend_a_parabola() -> None:
    found = short_run.measure(parabola(), 0, -10, short_run.Cost())
    assert math.log2(found) == pytest.approx(expected_middle(), abs=1e-3)


def test_multipliers_of_the_plan_scale_the_rate() -> None:
    assert known(parabola(multipliers={"weight": 4.0})).value == pytest.approx(known(parabola()).value / 4, rel=1e-3)


def test_ratios_of_short_runs_fade() -> None:
    base, target = parabola(), parabola(multipliers={"weight": 4.0})
    assert short_run.factors(base, target) == {"short-run": pytest.approx(4**-0.75, rel=1e-3)}


def test_it_looks_no_further_than_the_run_that_the_rate_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def found(subject: object, seed: int, start: int, cost: object, *, steps: int, least: float) -> float:
        asked.append(steps)
        return 0.1

    monkeypatch.setattr(short_run, "measure", found)
    known(parabola(steps=40))
    known(parabola(steps=7))
    known(parabola(steps=1))  # it takes two to see what the first step did
    assert asked == [24, 24, 7, 7, 2, 2]


def test_where_it_starts_does_not_matter() -> None:
    subject = digits("mlp:2_02?width=16")
    low, high = (short_run.measure(subject, 0, start, short_run.Cost()) for start in (-14, -2))
    assert low == pytest.approx(high, rel=1e-6)


def test_runs_are_longer_where_nothing_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def found(subject: object, seed: int, start: int, cost: object, *, steps: int, least: float) -> float | None:
        asked.append(steps)
        return 0.1 if steps >= 96 or not least else None

    monkeypatch.setattr(short_run, "measure", found)
    known(parabola())
    known(parabola(steps=40))
    assert asked == [24, 48, 96, 96, 24, 40, 40]  # the second seed goes on with what the first needed


def test_vanishing_signals_want_higher_rates_and_not_lower_ones() -> None:
    """At low rates the loss changes by less than rounding: nothing to come down from."""
    network = nn.Sequential(
        nn.Linear(8, 8), *(m for _ in range(8) for m in (nn.ReLU(), nn.Linear(8, 8))), nn.Linear(8, 2)
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    y = (x[:, 0] > 1).long()
    subject = Subject(trace(network, x), network, x, (x, y), cross_entropy, batch_size=32)
    assert -4 < math.log2(known(subject).value) < 2


def test_the_valley_beyond_the_break_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {-8: -0.5, -7: -0.9, -6: -1.0, -5: -0.9, -4: 0.3, -3: 2.0, -2: -1.2, -1: -1.3}

    def call(runs: short_run._Runs, rate: float) -> float:
        return changes.get(round(math.log2(rate)), -0.1 if rate < 2**-8 else math.inf)

    monkeypatch.setattr(short_run._Runs, "__call__", call)
    assert -6.5 < math.log2(known(digits("mlp:2?width=8")).value) < -5.5


def test_the_model_and_its_statistics_stay_as_they_were() -> None:
    subject = digits("mlp:2?width=16&norm=batch")
    assert subject.model is not None
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    known(subject)
    assert all(torch.equal(before[name], value) for name, value in subject.model.state_dict().items())


def test_sees_that_normalised_networks_bear_a_rate_that_plain_ones_do_not() -> None:
    plain, normed = (known(digits(f"mlp:2_02_002?width=32{norm}")).value for norm in ("", "&norm=batch"))
    assert normed > 2 * plain


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_a_plan_without_a_base_is_near_what_a_search_finds(optimizer: str) -> None:
    data = load("digits")
    model, x = targets.load("mlp:2_02?width=32", data=data)
    plan = dagscale.plan(model, x, optimizer=optimizer, data=(data.x, data.y), loss=cross_entropy, batch_size=32)
    assert (plan.law, plan.factors, plan.lr) == ("short-run", {}, plan.base_lr)
    assert any("octave" in note for note in plan.notes)
    found = dagscale.search(
        model, data, plan=plan, optimizer=optimizer, batch_size=32, steps=60, seeds=1,
        grid=[plan.lr * 2.0**k for k in range(-4, 5)],
    )  # fmt: skip
    assert abs(math.log2(plan.lr / found.lr)) < 2


def test_noise_lowers_the_rate_as_the_batch_shrinks() -> None:
    small, large = (known(digits("mlp:2?width=32", batch_size=size)).value for size in (4, 256))
    assert small < 0.5 * large


def test_without_a_base_other_laws_say_what_is_missing() -> None:
    model, x = targets.load("mlp:2", data=None)
    with pytest.raises(PlanError, match=r"dagscale\.search, or give data and loss"):
        dagscale.plan(model, x)
    with pytest.raises(PlanError, match="base_lr must be"):
        dagscale.plan(model, x, law="curvature", data=(x, torch.zeros(len(x), dtype=torch.int64)), loss=cross_entropy)


def test_refusals_name_the_mend() -> None:
    with pytest.raises(PlanError, match="at initialisation is nan"):
        known(parabola(fills={"weight": Fill(math.nan, 0.0)}))
    with pytest.raises(PlanError, match="no short run of sgd lowers the loss"):
        known(parabola(fills={"weight": Fill(0.5, 0.0)}))  # at the bottom already
    with pytest.raises(PlanError, match="no minimum to train towards"):
        known(parabola(loss=lambda out, y: (out - y).mean()))
