"""Batch and horizon rules: what each says, and a fit on one's own horizons."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dagscale.errors import PlanError, UnknownNameError
from dagscale.scaling.horizon import HORIZON_RULES, HorizonScaling, fit, horizon_scaling, step_law_optimum


@pytest.mark.parametrize("rule", list(HORIZON_RULES))
def test_nothing_changes_where_nothing_grows(rule: str) -> None:
    assert horizon_scaling(rule) == HorizonScaling()


@pytest.mark.parametrize("rule", [rule for rule in HORIZON_RULES if rule != "step-law"])
@pytest.mark.parametrize(("b", "d"), [(2.0, 1.0), (1.0, 4.0), (0.5, 3.0)])
def test_rules_compose(rule: str, b: float, d: float) -> None:
    """Two moves in a row are one: a rule is a power law in both."""
    once, again, both = (
        horizon_scaling(rule, b, d),
        horizon_scaling(rule, 3.0, 2.0),
        horizon_scaling(rule, 3 * b, 2 * d),
    )
    for name in ("lr", "weight_decay", "forgetting", "eps"):
        assert getattr(once, name) * getattr(again, name) == pytest.approx(getattr(both, name))


def test_timescale_keeps_the_share_of_the_run_that_weights_average_over() -> None:
    b, d = 4.0, 10.0
    scaling = horizon_scaling("timescale", b, d)
    assert b / (scaling.lr * scaling.weight_decay * d) == pytest.approx(1)


def test_complete_d_p_keeps_the_timescale_too() -> None:
    b, d = 4.0, 10.0
    scaling = horizon_scaling("completed-p", b, d)
    assert b / (scaling.lr * scaling.weight_decay * d) == pytest.approx(1)


def test_square_root_rule_keeps_the_noise_of_adam() -> None:
    """Under gradients that are noise, Adam with κ times the batch and the rule's settings diffuses as far.

    A parameter that only noise moves, 400 copies: after T examples its variance must agree. The standard error of a
    variance over n copies is √(2/n) = 7 %; tolerance: four of them, for a ratio of two.
    """
    copies, kappa = 400, 4

    def variance(batch: int, lr: float, betas: tuple[float, float], eps: float) -> float:
        rng = torch.Generator().manual_seed(batch)
        weight = torch.zeros(copies, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=lr, betas=betas, eps=eps)
        for _ in range(4096 // batch):
            weight.grad = torch.randn(copies, generator=rng) / math.sqrt(batch)
            optimizer.step()
        return float(weight.detach().var())

    scaling = horizon_scaling("sqrt", m_B=kappa)
    small = variance(4, 1e-3, (0.9, 0.95), 1e-8)
    large = variance(4 * kappa, 1e-3 * scaling.lr, scaling.betas((0.9, 0.95)), 1e-8 * scaling.eps)
    assert large / small == pytest.approx(1, abs=4 * math.sqrt(2) * math.sqrt(2 / copies))


def test_betas_that_would_fall_below_zero_are_refused() -> None:
    assert horizon_scaling("sqrt", m_B=4).betas((0.9, 0.95)) == pytest.approx((0.6, 0.8))
    with pytest.raises(PlanError, match="take a smaller batch"):
        horizon_scaling("sqrt", m_B=16).betas((0.9, 0.95))


def test_step_law_follows_its_own_optimum_and_says_nothing_elsewhere() -> None:
    lr, batch = step_law_optimum(4e8, 1e10)
    longer, larger = step_law_optimum(4e8, 4e10)
    assert horizon_scaling("step-law", larger / batch, 4).lr == pytest.approx(longer / lr)
    with pytest.raises(PlanError, match="not by 1; change the batch"):
        horizon_scaling("step-law", 1.0, 4.0)


@pytest.mark.parametrize("growth", [0, -1.0, math.inf, math.nan, "2", True])
def test_growths_are_positive_numbers(growth: object) -> None:
    with pytest.raises(PlanError, match="m_D must be a positive number"):
        horizon_scaling("power", m_D=growth)  # type: ignore[arg-type]


def test_a_misspelled_rule_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'timescale'"):
        horizon_scaling("timescales", m_D=2)


# --- fit ----------------------------------------------------------------------------------------------------------


def test_fit_finds_a_power_law() -> None:
    found = fit([(1e6, 0.1), (4e6, 0.1 / 2), (16e6, 0.1 / 4)], octaves=0.2)
    assert found.exponent == pytest.approx(-0.5)
    assert found.lr == pytest.approx(0.025)
    assert found.scaling(4).lr == pytest.approx(0.5)
    assert found.interval is not None
    assert found.interval[0] < -0.5 < found.interval[1]
    low, high = found.factors(4) or (0, 0)
    assert low < 0.5 < high


@pytest.mark.parametrize("octaves", [0.3, None])
def test_the_interval_holds_the_exponent_as_often_as_it_says(octaves: float | None) -> None:
    """Rates with an error of 0.3 octaves at four horizons: 95 % of the intervals hold the true exponent.

    1,000 draws: the standard error of the share is 0.7 points; tolerance: three of them. A known error's scatter test
    may widen an interval, so there the share may be higher.
    """
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        runs = [(d, 2 ** (-0.3 * math.log2(d) + rng.normal(0, 0.3))) for d in (1.0, 2.0, 4.0, 8.0)]
        interval = fit(runs, octaves=octaves).interval
        assert interval is not None
        held += interval[0] <= -0.3 <= interval[1]
    assert 930 <= held <= (970 if octaves is None else 1000)


def test_two_searches_have_an_interval_only_if_their_error_is_said() -> None:
    runs = [(1e6, 0.1), (4e6, 0.05)]
    alone = fit(runs)
    assert alone.exponent == pytest.approx(-0.5)
    assert alone.interval is None
    assert alone.factors(2) is None
    assert "add a third" in str(alone)
    told = fit(runs, octaves=0.25).interval
    assert told is not None
    assert told[1] - told[0] == pytest.approx(2 * 1.96 * 0.25 * math.sqrt(2) / 2)


def test_a_coarse_grid_is_not_taken_for_certainty() -> None:
    found = fit([(1e6, 0.1), (2e6, 0.1), (4e6, 0.1)])
    assert found.exponent == 0
    assert found.interval is None
    assert "say octaves=" in str(found)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "one horizon says nothing"),
        ([(1e6, 0.1), (1e6, 0.2)], "one horizon says nothing"),
        ([(1e6, 0.1), (0, 0.2)], "positive numbers, got 0"),
        ([(1e6, math.inf), (2e6, 0.2)], "positive numbers, got inf"),
    ],
)
def test_what_cannot_be_fitted_is_said(runs: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fit(runs)


def test_the_error_of_a_rate_is_a_positive_number() -> None:
    with pytest.raises(PlanError, match="octaves is the standard error"):
        fit([(1, 1), (2, 1)], octaves=0)
