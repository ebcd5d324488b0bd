"""A target that is trained with another batch size, or for longer, than its base: carried over by rules named for it.

Width, depth and laws are applied as if the target were trained as long as its base; what the named rules
(:mod:`dagscale.scaling.horizon`) say comes on top, on the rate of the plan and in the recipe that it is for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dagscale.errors import PlanError, RecipeError
from dagscale.planning.base import Base
from dagscale.planning.plans import Plan
from dagscale.scaling.horizon import HORIZON_RULES, HorizonFit, HorizonScaling, horizon_scaling
from dagscale.training.batches import Stream
from dagscale.training.recipe import Recipe

BATCH, LENGTH = frozenset({"batch_size", "accumulate"}), frozenset({"steps", "epochs", "batch_size", "accumulate"})
"""What of a recipe's description says how large its batches are, and how many examples a run sees."""

Horizon = str | HorizonFit


@dataclass(frozen=True)
class Resized:
    """How the target's recipe differs from its base's in batch size and length.

    Attributes:
        recipe: the target's, with decay, betas and eps as the rules have them.
        alike: the target's recipe with the base's batch size and length; laws measure under it.
        batch, horizon: the rules' names.
        factors: on the rate, by rule.
        notes: what has grown, and what else the rules change.
    """

    recipe: Recipe
    alike: Recipe
    batch: str = "none"
    horizon: str = "none"
    factors: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    def __call__(self, plan: Plan) -> Plan:
        """The plan for the target's own recipe."""
        if self.recipe is self.alike:
            return plan
        factor = math.prod(value for _, value in self.factors)
        return replace(
            plan,
            lr=plan.lr * factor,
            lr_interval=plan.lr_interval and (plan.lr_interval[0] * factor, plan.lr_interval[1] * factor),
            factors={**plan.factors, **dict(self.factors)},
            parameters={name: replace(own, lr=own.lr * factor) for name, own in plan.parameters.items()},
            notes=(*plan.notes, *self.notes),
            recipe=self.recipe.describe(),
            live=self.recipe,
            batch=self.batch,
            horizon=self.horizon,
        )


def named_rules(batch: str | None, horizon: Horizon | None) -> frozenset[str]:
    """What may differ between the recipes of base and target, given the rules that are named.

    Raises:
        UnknownNameError, PlanError: if there is no such rule.
    """
    for what, rule in (("batch", batch), ("horizon", horizon)):
        if rule is not None and not isinstance(rule, str) and not (what == "horizon" and isinstance(rule, HorizonFit)):
            raise PlanError(
                f"{what} must be the name of a rule ({', '.join(HORIZON_RULES)}), not {type(rule).__name__}"
            )
        if isinstance(rule, str):
            HORIZON_RULES[rule]
    return frozenset() if batch is None and horizon is None else LENGTH  # `resized` judges by how much each grows


def unnamed(apart: Sequence[str]) -> str:
    """What to do about differences in batch size and length for which no rule was named."""
    words = {text.partition(" ")[0] for text in apart}
    if not words <= LENGTH:
        return ""
    rules = [f"{kind}='{example}'" for kind, example, names in (
        ("batch", "sqrt", BATCH), ("horizon", "power", LENGTH - BATCH)) if words & names]  # fmt: skip
    return f", or name a rule that carries the rate over, as {' and '.join(rules)} (`dagscale list rules` has all)"


def resized(recipe: Recipe, bases: Sequence[Any], batch: str | None = None, horizon: Horizon | None = None) -> Resized:
    """What the named rules come to.

    Args:
        recipe: how the target will be trained.
        bases: the plan's bases.
        batch, horizon: the rules, or none. One that is named for both is asked once, with both growths.

    Raises:
        PlanError: if a base does not say how it was trained, or a rule does not hold here.
    """
    if batch is None and horizon is None:
        return Resized(recipe, recipe)
    found = [one for one in bases if isinstance(one, Base) and one.recipe]
    if len(found) != len(bases) or not found:
        raise PlanError(
            "batch= and horizon= carry over from how the base was trained, which a model and base_lr do not "
            "say: give a base that dagscale.search found"
        )
    growths = {_growth(recipe, one) for one in found}
    if len(growths) > 1:
        raise PlanError("the bases differ in batch size or length: give bases of one recipe, or fit them (horizon=fit)")
    m_B, m_D = next(iter(growths))
    if m_B != 1 and batch is None:
        raise PlanError(f"the batch size grows by {m_B:g}: name a rule for it too, as batch='sqrt'")
    if m_D != 1 and horizon is None:
        raise PlanError(
            f"the run sees {m_D:g} times as many examples as the base's: name a rule for it too, as horizon='power', "
            "or horizon='none' to keep the rate"
        )
    parts = _parts(batch or "none", horizon or "none", m_B, m_D)
    whole = recipe
    for label, part in parts.items():
        whole = _applied(label, part, whole)
    by_batch, by_horizon = ("fit" if isinstance(rule, HorizonFit) else rule or "none" for rule in (batch, horizon))
    grown = [
        f"{growth:g} times the base's {what}"
        for growth, what in ((m_B, "batch size"), (m_D, "examples"))
        if growth != 1
    ]
    notes = [f"trained with {' and '.join(grown)}"]
    notes += [f"horizon: {horizon}"] if isinstance(horizon, HorizonFit) else []
    before, after = _settings(recipe), _settings(whole)
    changed = [
        f"{name} {_shown(before[name])} → {_shown(after[name])}" for name in before if before[name] != after[name]
    ]
    notes += [f"changed with it: {', '.join(changed)}"] if changed else []
    factors = tuple((label, part.lr) for label, part in parts.items() if part.lr != 1)
    return Resized(whole, _alike(recipe, found[0]), by_batch, by_horizon, factors, tuple(notes) if grown else ())


def _growth(recipe: Recipe, base: Base) -> tuple[float, float]:
    """(m_B, m_D) against a base."""
    size, examples, theirs = _batch(recipe.describe()), recipe.examples, _batch(base.recipe)
    if size is None or examples is None or theirs is None or base.examples is None:
        whose = "target's recipe" if size is None or examples is None else "base"
        raise PlanError(
            f"the {whose} does not say how many examples a batch and a run have: give batch_size= and steps="
        )
    return size / theirs, examples / base.examples


def _batch(said: Any) -> int | None:
    size = said.get("batch_size")
    return None if size is None else int(size) * int(said.get("accumulate") or 1)


def _parts(batch: str, horizon: Horizon, m_B: float, m_D: float) -> dict[str, HorizonScaling]:
    if isinstance(horizon, HorizonFit):
        return {f"batch {batch}": horizon_scaling(batch, m_B), "horizon fit": horizon.scaling(m_D)}
    if batch == horizon:
        return {f"batch and horizon {batch}": horizon_scaling(batch, m_B, m_D)}
    return {f"batch {batch}": horizon_scaling(batch, m_B), f"horizon {horizon}": horizon_scaling(horizon, m_D=m_D)}


def _applied(label: str, part: HorizonScaling, recipe: Recipe) -> Recipe:
    """The recipe with decay, betas and eps as a rule has them."""
    record = recipe.optimizer
    changes: dict[str, Any] = {}
    if part.weight_decay != 1 and not _undecayed(recipe):
        if record.known("decay", f"{label!r}") != "decoupled":
            raise PlanError(f"{label!r} is for a decay that is decoupled, and that of {record.name} is not: use AdamW")
        if recipe.weight_decay is None:
            changes["weight_decay"] = record.own_decay * part.weight_decay
    if part.forgetting != 1:
        betas = record.setting("betas")
        if betas is None:
            raise PlanError(
                f"{label!r} changes Adam's betas, and {record.name} has none that are known: say betas= in the recipe, "
                "or take another rule ('linear' for SGD)"
            )
        changes["betas"] = part.betas(tuple(betas))
    if part.eps != 1 and record.eps:
        eps = record.setting("eps")
        if eps is None:
            raise PlanError(f"{label!r} changes eps, and that of {record.name} is not known: say eps= in the recipe")
        changes["eps"] = eps * part.eps
    more = {} if recipe.weight_decay is None else {"weight_decay": recipe.weight_decay * part.weight_decay}
    return recipe.changed(optimizer=record.configured(changes), **more)


def _undecayed(recipe: Recipe) -> bool:
    """Whether nothing decays, for certain: an optimiser of which nothing is known may bring a decay of its own."""
    known = recipe.weight_decay is not None or recipe.optimizer.decay is not None
    return known and not _settings(recipe)["weight decay"]


def _settings(recipe: Recipe) -> dict[str, Any]:
    record = recipe.optimizer
    decay = record.own_decay if recipe.weight_decay is None else recipe.weight_decay
    return {"weight decay": decay, "betas": record.setting("betas"), "eps": record.setting("eps")}


def _shown(value: Any) -> str:
    return f"({', '.join(f'{v:.4g}' for v in value)})" if isinstance(value, (tuple, list)) else f"{value:.4g}"


def _alike(recipe: Recipe, base: Base) -> Recipe:
    """The target's recipe, but as long as the base's and in its batches."""
    if recipe.data is not None and isinstance(recipe.source, Stream):  # batches come as they come
        if base.live is not None and base.live.data is not None:
            return base.live
        raise RecipeError(
            "the data come in batches of their own, not the base's: search the base in the same process, or give data "
            "as tensors or a Dataset"
        )
    sizes = {name: base.recipe.get(name) for name in LENGTH}
    return recipe.changed(**{**sizes, "accumulate": sizes["accumulate"] or 1})
