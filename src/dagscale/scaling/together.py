"""Width, head size and depth together: what each parameter of a target takes against its base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dagscale.errors import PlanError
from dagscale.graph import Graph
from dagscale.registry import did_you_mean
from dagscale.scaling.depth import NONE_OF_ITS_OWN, depth_scaling
from dagscale.scaling.folding import Factors
from dagscale.scaling.heads import head_scaling
from dagscale.scaling.lookups import lookup_scaling
from dagscale.scaling.spectral import matrix_rates
from dagscale.scaling.width import width_scaling
from dagscale.training.optimizers import Optimizer

WIDTHS = ("none", "mup")
NOTHING = Factors()


@dataclass(frozen=True, slots=True)
class Scaling:
    """The factors on one parameter's settings, and the multiplier that they stand for.

    Attributes:
        factors: on init, rate, eps and weight decay.
        fold: the multiplier that it carries, see `dagscale.scaling.folding`.
        notes: what a reader should know of it.
    """

    factors: Factors = NOTHING
    fold: float = 1.0
    notes: tuple[str, ...] = ()

    def __mul__(self, other: Scaling) -> Scaling:
        return Scaling(self.factors * other.factors, self.fold * other.fold, self.notes + other.notes)


def check_width(width: str) -> None:
    """Raise PlanError if there is no such rule for width."""
    if width not in WIDTHS:
        near = did_you_mean(width, (*WIDTHS, "auto"))
        raise PlanError(f"unknown width mode {width!r}: give 'none' (one rate for all), 'mup' or 'auto'{near}")


def scaling(
    base: Graph,
    target: Graph,
    optimizer: Optimizer,
    *,
    width: str = "none",
    depth: str = "none",
    alpha: float | None = None,
    mean_field: bool = False,
    own_width: bool = False,
    factors_seen: bool = False,
    own: Mapping[str, float] = NONE_OF_ITS_OWN,
) -> dict[str, Scaling]:
    """The factors on every parameter of ``target`` that a width and a depth rule come to, by first name.

    Args:
        base, target: traced graphs.
        optimizer: how both are trained.
        width: ``none``, or ``mup``: maximal update parametrisation (:mod:`dagscale.scaling.width`), with attention
            logits over d where heads grow (:mod:`dagscale.scaling.heads`).
        depth: ``none``, or a depth rule (:mod:`dagscale.scaling.depth`); ``alpha`` is its α.
        mean_field: the init gives readouts std ∝ 1/fan_in by itself.
        own_width: how the init goes with width is its own affair: what a width rule asks of it is left out.
        factors_seen: the init sees numbers that the model multiplies embeddings by (:mod:`dagscale.scaling.lookups`).
        own: what the target's own init already multiplies parameters by (`dagscale.scaling.depth.own_scaling`), where
            that init is kept.

    Raises:
        PlanError, OptimizerError, UnknownNameError: if there is no such rule, or none for these networks.
    """
    check_width(width)
    found = {p.name: Scaling() for p in target.parameters}
    if width == "mup":
        for name, part in _width(base, target, optimizer, mean_field, own_width).items():
            found[name] *= part
        for rule in (head_scaling, *([lookup_scaling] if factors_seen else [])):
            for name, carried in rule(base, target, optimizer).items():
                found[name] *= Scaling(carried.factors, carried.fold, (carried.note,))
    if depth != "none":
        for name, own_part in depth_scaling(base, target, optimizer, depth, alpha, own).items():
            notes = (own_part.note,) if own_part.note else ()
            found[name] *= Scaling(own_part.factors, own_part.fold, notes)
    return found


def _width(
    base: Graph, target: Graph, optimizer: Optimizer, mean_field: bool, own_width: bool
) -> Mapping[str, Scaling]:
    spectral = optimizer.step == "spectral"
    rule = width_scaling(base, target, optimizer, mean_field=mean_field)
    rates = matrix_rates(base, target, optimizer.settings.get("adjust_lr_fn", "match_rms_adamw")) if spectral else {}
    found = {}
    for name, s in rule.items():
        lr = rates.get(name, s.lr)
        factors = Factors(
            1.0 if own_width else s.init, lr, s.eps if optimizer.eps else 1.0, s.weight_decay if lr == s.lr else 1 / lr
        )
        found[name] = Scaling(factors, notes=(s.note,) if s.note else ())
    return found


def noted(parts: Mapping[str, Scaling]) -> dict[str, list[str]]:
    """Each note, once → the parameters that it is about."""
    found: dict[str, list[str]] = {}
    for name, part in parts.items():
        for note in part.notes:
            found.setdefault(note, []).append(name)
    return found
