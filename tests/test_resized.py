"""Plans for another batch size or a longer run than the base's: by a named rule, or not at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.errors import DagscaleError, PlanError, RecipeError
from dagscale.planning.base import Base
from dagscale.planning.prepare import traced
from dagscale.scaling.horizon import POWER, fit
from dagscale.training.recipe import Recipe


def network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def recipe_of(optimizer: Any = "adamw", **more: Any) -> Recipe:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=rng), torch.randint(0, 3, (64,), generator=rng)
    return Recipe((x, y), cross_entropy, optimizer, **{"batch_size": 8, "steps": 10, **more})


def unknown(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups)


def base_of(recipe: Recipe, lr: float = 0.01) -> Base:
    return Base.given(traced(network(8), None, recipe, 0, role="base"), lr)


def plan(recipe: Recipe, target: Recipe, **more: Any) -> dagscale.Plan:
    return dagscale.plan(network(16), base=base_of(recipe), recipe=target, **{"law": "none", **more})


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"steps": 40}, "horizon='power'"),
        ({"batch_size": 16}, "batch='sqrt'"),
        ({"steps": 40, "batch_size": 16}, "batch='sqrt' and horizon='power'"),
    ],
)
def test_another_size_is_refused_unless_a_rule_is_named(change: dict[str, Any], mend: str) -> None:
    recipe = recipe_of()
    with pytest.raises(RecipeError, match=mend):
        plan(recipe, recipe.changed(**change))


def test_a_rule_for_one_thing_does_not_let_another_pass() -> None:
    recipe = recipe_of()
    with pytest.raises(RecipeError, match=r"for its own training: clip 1\.0, the base's none"):
        plan(recipe, recipe.changed(steps=40, clip=1.0), horizon="power")
    with pytest.raises(PlanError, match="4 times as many examples"):
        plan(recipe, recipe.changed(steps=40), batch="sqrt")
    with pytest.raises(PlanError, match="batch size grows by 2: name a rule"):
        plan(recipe, recipe.changed(batch_size=16, steps=5), horizon="power")
    with pytest.raises(PlanError, match="2 times as many examples"):
        plan(recipe, recipe.changed(batch_size=16), batch="sqrt")


def test_as_many_examples_in_larger_batches_need_a_rule_for_the_batch_alone() -> None:
    recipe = recipe_of()
    made = plan(recipe, recipe.changed(batch_size=16, steps=5), batch="sqrt")
    assert made.factors == pytest.approx({"batch sqrt": math.sqrt(2)})


def test_rate_betas_and_eps_are_carried_over_and_shown() -> None:
    recipe = recipe_of(betas=(0.9, 0.95), weight_decay=0.1)
    made = plan(recipe, recipe.changed(batch_size=16, steps=40), batch="sqrt", horizon="power")
    assert made.factors == pytest.approx({"batch sqrt": math.sqrt(2), "horizon power": 8**POWER})
    assert made.lr == pytest.approx(0.01 * math.sqrt(2) * 8**POWER)
    assert {p.lr for p in made.parameters.values()} == {made.lr}
    assert (made.batch, made.horizon) == ("sqrt", "power")
    assert made.live is not None
    assert (made.live.steps, made.live.batch_size) == (40, 16)
    optimizer = made.optimizer(network(16))
    assert optimizer.defaults["betas"] == pytest.approx((0.8, 0.9))
    assert optimizer.defaults["eps"] == pytest.approx(1e-8 / math.sqrt(2))
    assert "2 times the base's batch size and 8 times the base's examples" in str(made)
    assert "betas (0.9, 0.95) → (0.8, 0.9)" in str(made)


def test_betas_may_be_a_list() -> None:
    recipe = recipe_of(betas=[0.9, 0.95])
    made = plan(recipe, recipe.changed(batch_size=16, steps=5), batch="sqrt")
    assert "betas (0.9, 0.95) → (0.8, 0.9)" in str(made)


def test_a_saved_plan_makes_the_same_optimiser() -> None:
    recipe = recipe_of(weight_decay=0.1)
    made = plan(recipe, recipe.changed(batch_size=16, steps=40), batch="completed-p", horizon="completed-p")
    again = dagscale.Plan.from_json(made.to_json())
    assert again == made
    assert again.optimizer(network(16)).defaults["betas"] == pytest.approx((0.975, 0.99975))
    assert again.param_groups(network(16))[0]["weight_decay"] == pytest.approx(0.1 * math.sqrt(2 / 8))


@pytest.mark.parametrize(("given", "expected"), [(0.1, 0.025), (None, 0.0025)])
def test_decay_is_carried_over_where_the_recipe_says_it_and_where_the_optimiser_does(
    given: float | None, expected: float
) -> None:
    recipe = recipe_of(weight_decay=given)
    made = plan(recipe, recipe.changed(steps=40), horizon="timescale")
    model = network(16)
    assert max(g["weight_decay"] for g in made.optimizer(model).param_groups) == pytest.approx(expected)
    assert made.lr == 0.01


@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", None), ("adam", None), ("adamw", 0.0), (unknown, 0.0)])
def test_a_rule_for_decay_holds_where_there_is_none(optimizer: Any, decay: float | None) -> None:
    recipe = recipe_of(optimizer, weight_decay=decay)
    made = plan(recipe, recipe.changed(batch_size=16), batch="timescale", horizon="timescale")
    assert made.lr == pytest.approx(0.01 * math.sqrt(2))
    assert not any(g.get("weight_decay") for g in made.optimizer(network(16)).param_groups)


def test_one_rule_for_both_is_asked_once() -> None:
    recipe = recipe_of()
    made = plan(recipe, recipe.changed(batch_size=16, steps=17), batch="step-law", horizon="step-law")
    assert made.factors == pytest.approx({"batch and horizon step-law": (2 * 1.7) ** 0.307})
    with pytest.raises(PlanError, match="holds while the batch grows"):
        plan(recipe, recipe.changed(steps=40), horizon="step-law")


def test_a_measured_law_measures_as_the_base_was_trained() -> None:
    """What the rule says comes on top of the law, which must not see the longer run as well."""
    recipe = recipe_of()
    short = plan(recipe, recipe, law="short-run")
    longer = plan(recipe, recipe.changed(steps=40), law="short-run", horizon="power")
    assert longer.lr == pytest.approx(short.lr * 4**POWER)
    assert short.lr_interval is not None
    assert longer.lr_interval == pytest.approx(tuple(end * 4**POWER for end in short.lr_interval))


def test_a_base_from_a_file_knows_what_it_saw() -> None:
    recipe = recipe_of(steps=None, epochs=2)
    base = Base.from_json(base_of(recipe).to_json())
    assert base.examples == 128
    made = dagscale.plan(
        network(16), base=base, recipe=recipe.changed(epochs=8), law="none", init="in-degree", horizon="power"
    )
    assert made.factors == pytest.approx({"horizon power": 4**POWER})


def test_an_own_fit_is_a_rule() -> None:
    recipe = recipe_of()
    bases = [base_of(recipe.changed(steps=steps), lr) for steps, lr in ((10, 0.04), (40, 0.02))]
    found = fit(bases)
    assert found.exponent == pytest.approx(-0.5)
    made = dagscale.plan(network(16), base=bases[1], recipe=recipe.changed(steps=160), law="none", horizon=found)
    assert made.lr == pytest.approx(0.01)
    assert made.horizon == "fit"
    assert "rate ∝ examples^-0.50" in str(made)
    assert dagscale.Plan.from_json(made.to_json()) == made


def test_a_fit_is_over_runs_that_differ_in_length_alone() -> None:
    recipe = recipe_of()
    with pytest.raises(PlanError, match="differ in batch_size: a fit"):
        fit([base_of(recipe), base_of(recipe.changed(batch_size=16))])


@pytest.mark.parametrize(
    ("optimizer", "rules", "message"),
    [
        ("sgd", {"batch": "sqrt", "horizon": "none"}, "'linear' for SGD"),
        ("adam", {"batch": "timescale", "horizon": "timescale", "decay": 0.1}, "use AdamW"),
        (unknown, {"batch": "timescale", "horizon": "timescale"}, "unknown"),
        ("adamw", {"batch": 2.0}, "batch must be the name of a rule"),
        ("adamw", {"batch": "square"}, "did you mean|unknown"),
    ],
)
def test_rules_that_do_not_hold_are_refused(optimizer: Any, rules: dict[str, Any], message: str) -> None:
    recipe = recipe_of(optimizer, weight_decay=rules.get("decay"))
    rules = {name: rule for name, rule in rules.items() if name != "decay"}
    with pytest.raises(DagscaleError, match=message) as error:
        plan(recipe, recipe.changed(batch_size=16), **rules)
    assert "\n" not in str(error.value)


def test_a_base_that_does_not_say_how_it_was_trained_is_refused() -> None:
    with pytest.raises(DagscaleError, match="give a base that"):
        dagscale.plan(
            network(16), base=(network(8), torch.zeros(2, 4)), base_lr=0.1, recipe=recipe_of(), law="none",
            horizon="power",
        )  # fmt: skip
