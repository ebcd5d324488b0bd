"""How sure a plan's rate is: what the interval is made of, whether it holds, and that its table is the evidence's."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load as load_data
from dagscale.laws.accuracy import ACCURACY, BASE, BASE_SIDE, POWER_SPREAD, SEARCH, Accuracy, accuracy, kind_of
from dagscale.laws.base import Carried
from dagscale.laws.estimate import Estimate
from dagscale.models.targets import load
from dagscale.planning.base import Base, Point
from dagscale.planning.certainty import base_error, certainty
from dagscale.planning.make import starting_plan
from dagscale.planning.power import fitted_power
from dagscale.planning.prepare import initialised, traced
from dagscale.training.recipe import Recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLES = BENCHMARKS.parent / "docs" / "evidence" / "tables"
KNOWN = Accuracy(0.4, 5.0, 10)


@pytest.fixture(scope="module")
def intervals() -> Any:
    """The script that makes the table."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("intervals", BENCHMARKS / "intervals.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["intervals"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in ("intervals", "recorded", "rates", "transfer"):
            sys.modules.pop(name, None)


def test_the_table_is_what_the_recorded_results_say(intervals: Any) -> None:
    """That of the package and those of the page, made anew from the results: the same words, and figures as near as
    versions of scipy's optimisers are."""
    text, sheets = intervals.made()
    pairs = [(text, intervals.PACKAGE.read_text("utf-8"))]
    for name, rows in sheets.items():
        lines = [",".join(map(_cell, row)) for row in (rows[0], *(row.values() for row in rows))]
        pairs.append(("\n".join([*lines, ""]), (TABLES / f"{name}.csv").read_text("utf-8")))
    number = re.compile(r"\d+(?:\.\d+)?")
    for made, kept in pairs:
        assert number.sub("#", made) == number.sub("#", kept), "run python benchmarks/intervals.py write"
        figures = ([float(n) for n in number.findall(one)] for one in (made, kept))
        assert next(figures) == pytest.approx(next(figures), rel=0.05, abs=0.02)


def _cell(value: str) -> str:
    return f'"{value}"' if "," in value else value


def test_the_fit_finds_the_distribution_that_errors_come_from(intervals: Any) -> None:
    """200 families of 12 networks whose errors share half of their variance with the base's; scale 0.4, 6 degrees of
    freedom. A mean square of 3.2 effective degrees of freedom has a logarithm with the standard deviation
    √(2/3.2 + 2/6), so the scale is known to 3.5 %: a little more than three of these are allowed."""
    draw = np.random.default_rng(0)
    scales = 0.4 * np.sqrt(6 / draw.chisquare(6, 200))
    errors = scales[:, None] * (draw.normal(size=(200, 1)) + draw.normal(size=(200, 12))) / math.sqrt(2)
    families = [intervals.Family("x", "dense", str(i), (), float((e**2).mean()), 12) for i, e in enumerate(errors)]
    found = intervals.fitted(families)["x"]["dense"]
    assert found.octaves == pytest.approx(0.4, rel=0.12)
    assert 4 < found.freedom < 9


# --- the interval --------------------------------------------------------------------------------------------------


def test_it_holds_95_percent_of_rates_that_err_as_it_says() -> None:
    """4,000 rates, off by the law's t, the base's normal and the seeds' chance: 95 % within, ± 3 standard errors of
    0.35 % and what Welch's approximation is off with seeds so few, 1 %."""
    draw, count, base, noise = np.random.default_rng(1), 4000, 0.25, 0.2
    seeds = draw.normal(0, noise, (count, 3))
    law = 0.4 * draw.standard_t(5, count)
    off = law + draw.normal(0, base, count) + seeds.mean(1)
    errors = seeds.std(1, ddof=1) / math.sqrt(3)
    inside = [
        abs(o) <= math.log2(certainty(KNOWN, [Estimate(0.0, e * math.log(2), 3)], [base]).factor or 1)
        for o, e in zip(off, errors, strict=True)
    ]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_each_source_widens_it_and_is_told() -> None:
    chance = [Estimate(0.0, 0.2, 2)]
    law, base, whole = (
        certainty(KNOWN, [], [0.0]),
        certainty(KNOWN, [], [0.3]),
        certainty(KNOWN, chance, [0.3]),
    )
    assert law.factor is not None
    assert base.factor is not None
    assert whole.factor is not None
    assert math.log2(law.factor) == pytest.approx(0.4 * stats.t.ppf(0.975, 5))
    assert law.factor < base.factor < whole.factor
    assert whole.errors == {"law": pytest.approx(0.4), "base": 0.3, "seeds": pytest.approx(0.2 / math.log(2))}


def test_it_says_what_would_narrow_it_and_that_is_so() -> None:
    noisy = [Estimate(0.0, 0.6, 2)]
    found = certainty(KNOWN, noisy, [0.3])
    assert found.factor is not None
    assert found.notes[0].startswith(f"sure to a factor of {found.factor:.2g} either way; ")
    seeds = certainty(KNOWN, [], [0.3]).factor
    assert f"many more seeds to {seeds:.2g}" in found.notes[0]
    sure = certainty(KNOWN, [], [0.3])
    assert "a second base to" in sure.notes[0]
    said = float(sure.notes[0].rsplit(" ", 1)[1])
    expected = 0.4**2 * (1 - BASE_SIDE / 2)  # two bases as far apart as the law's error has it
    apart = 2.0 ** math.sqrt(2 * (BASE_SIDE * 0.4**2 + 0.3**2))
    both = certainty(KNOWN, [], [0.3, 0.3], [1.0, apart])
    assert both.errors["law"] == pytest.approx(math.sqrt(expected), rel=1e-6)
    assert both.factor == pytest.approx(said, rel=0.06)


def test_bases_that_disagree_widen_it_and_bases_that_agree_narrow_it() -> None:
    alike, apart = (certainty(KNOWN, [], [0.2, 0.2], [1.0, rate]) for rate in (1.0, 8.0))
    one = certainty(KNOWN, [], [0.2])
    assert alike.factor is not None
    assert apart.factor is not None
    assert one.factor is not None
    assert alike.factor < one.factor < apart.factor
    assert apart.errors["law"] > 0.8
    assert "one more base to" in certainty(KNOWN, [], [0.9, 0.9], [1.0, 2.0]).notes[0]


def test_a_wide_band_is_a_less_sure_base_and_seeds_make_it_surer() -> None:
    def base(high: float, seeds: int) -> Base:
        curve = tuple(Point(2.0**k, (1.0,), 1.0) for k in range(3))
        return Base(1.0, {}, None, high, 1.0, 1.0, (1 / high, high), curve, seeds=seeds)

    assert SEARCH == base_error(base(1.0, 1)) < base_error(base(4.0, 1)) < base_error(base(64.0, 1))
    assert base_error(base(2.0, 4)) == pytest.approx(base_error(base(2.0, 1)) / 2)
    assert base_error(None) == base_error((nn.Identity(), None)) == BASE


def test_of_a_law_that_was_never_measured_nothing_is_claimed() -> None:
    found = certainty(None, [Estimate(0.0, 0.2, 2)], [0.2])
    assert found.factor is None
    assert found.notes == ("no interval: how far the law is off on such networks was never measured",)


# --- plans -----------------------------------------------------------------------------------------------------------


def network(target: str, init: str = "moments") -> Any:
    data = load_data("digits", limit=64)
    model, inputs = load(target, data=data)
    return initialised(traced(model, inputs, Recipe((data.x, data.y), cross_entropy, batch_size=16), 0), init)


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("mlp:2_02?width=8", "dense"),
        ("cnn:2?width=4", "convolutions"),
        ("mlp:2?width=8&norm=batch", "norms"),
        ("vit:1?width=8", "norms"),
    ],
)
def test_networks_are_of_the_kind_that_the_evidence_tells_apart(target: str, kind: str) -> None:
    assert kind_of(network(target)) == kind


def test_one_rate_for_networks_of_their_authors_inits_is_another_matter() -> None:
    own, alike = (accuracy("none", network("mlp:2?width=8", init)) for init in ("keep", "moments"))
    assert own is not None
    assert alike is not None
    assert own == ACCURACY["none, own init"]["dense"]
    assert own.octaves > alike.octaves


def test_rates_scaled_by_layer_are_surer_under_adam_than_along_the_gradient() -> None:
    found = {}
    for optimizer in ("adamw", "sgd", "momentum"):
        recipe = dagscale.Recipe(optimizer=optimizer)
        scaled = replace(network("mlp:2?width=8"), by_layer=True, recipe=recipe)
        found[optimizer] = accuracy("none", scaled)
        assert found[optimizer] is not None
    assert found["sgd"] == found["momentum"] == ACCURACY["none, by layer, SGD"]["dense"]
    assert found["adamw"] == ACCURACY["none, by layer"]["dense"]
    assert found["adamw"].octaves < found["sgd"].octaves  # type: ignore[union-attr]


def test_every_plan_says_how_sure_it_is_and_from_what() -> None:
    base, target = (load(code, input_shape=(1, 8, 8)) for code in ("mlp:2?width=8", "mlp:2_02?width=8"))
    plan = dagscale.plan(*target, base=base, base_lr=0.1, law="covariance")
    assert plan.lr_interval is not None
    low, high = plan.lr_interval
    assert low < plan.lr < high
    assert math.sqrt(low * high) == pytest.approx(plan.lr)
    known = ACCURACY["covariance"]["dense"]
    assert plan.lr_errors == {"law": pytest.approx(known.octaves), "base": BASE}
    assert f"95 %: {low:.4g} … {high:.4g} (standard errors in octaves: law {known.octaves:.2g}" in str(plan)
    assert dagscale.Plan.from_json(plan.to_json()) == plan
    older = json.loads(plan.to_json())
    del older["lr_errors"]
    assert dagscale.Plan.from_json(json.dumps(older)).lr_interval == plan.lr_interval


def test_a_plan_without_a_law_claims_nothing() -> None:
    plan = starting_plan(network("mlp:2?width=8"), "moments", 0.1)
    assert plan.lr_interval is None
    assert not any("interval" in note or "sure" in note for note in plan.notes)


# --- several bases ---------------------------------------------------------------------------------------------------


def bases(*said: float) -> Carried:
    """What a law says of bases whose log2 rates it takes to be these, and of a target at 0."""
    return Carried(tuple({"x": (Estimate(0.0), Estimate(rate * math.log(2)))} for rate in said))


def power(found: tuple[float, ...], *said: float, law: Accuracy | None = KNOWN) -> float:
    return fitted_power(bases(*said), [2.0**rate for rate in found], law, [0.2] * len(found))


def test_bases_that_bear_the_law_out_leave_its_factors_as_they_are() -> None:
    assert power((0.0, 1.0, 2.5), 3.0, 4.0, 5.5) == pytest.approx(1)
    assert power((0.0, 1.0), 2.0, 2.0) == 1  # the law takes both to be alike: nothing is learnt of it
    assert power((0.0,), 2.0) == power((0.0, 1.0), 0.0, 9.0, law=None) == 1


def test_bases_that_differ_less_than_the_law_says_shrink_its_factors() -> None:
    """The formula by hand for two bases two octaves apart by the law and one octave in truth, then the limit."""
    v, prior = BASE_SIDE * 0.4**2 + 0.2**2, 1 / POWER_SPREAD**2
    assert power((0.0, 1.0), 0.0, 2.0) == pytest.approx((prior + 1 / v) / (prior + 2 / v))
    assert power((0.0, 20.0), 0.0, 40.0) == pytest.approx(0.5, abs=0.01)
    assert power((0.0, 4.0), 4.0, 0.0) == 0


def test_a_plan_from_bases_that_contradict_its_law_believes_it_less() -> None:
    base, deep, target = (load(f"mlp:{code}?width=8", input_shape=(8,)) for code in ("2", "2_02_002_0002", "2_02"))
    law = dagscale.plan(*deep, base=base, base_lr=1.0, law="paths").lr
    alike = dagscale.plan(*target, base=[base, deep], base_lr=[1.0, law], law="paths")
    other = dagscale.plan(*target, base=[base, deep], base_lr=[1.0, 1.0], law="paths")
    assert not any("to the power" in note for note in alike.notes)
    assert other.notes[1].startswith("between these bases the law's factors hold to the power 0.")
    assert abs(math.log(other.lr / other.base_lr)) < abs(math.log(alike.lr / alike.base_lr))
    assert other.lr == pytest.approx(other.base_lr * math.prod(other.factors.values()))
