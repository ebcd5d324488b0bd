"""What is at fault and why, in words: from levels, slopes and curvature to a list of faults, the first one first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from dagscale.checking.family import LayerFacts, Member
from dagscale.checking.measure import CONFIRM, LOWER, lower_share
from dagscale.checking.verdict import Evidence, Fault, Fit, Level, decisive
from dagscale.inits import INITS
from dagscale.planning.plans import Plan

CLOSE = 0.35
"""Octaves within which a weight variance counts as that of a known rule."""


def find_faults(
    evidence: Evidence,
    levels: Sequence[Level],
    fits: Sequence[Fit],
    hot: Mapping[int, float],
    plans: Sequence[Plan],
) -> list[Fault]:
    """Faults of the signal first, then of the rate, then of the updates; each in topological order.

    What comes later may be a consequence of what comes first.

    Args:
        hot: members whose rate is too high → ``lr · λ`` over its stable value.
    """
    broken = _not_finite(evidence)
    if broken is not None:
        return [broken]
    found = [_signal(evidence, level, plans[level.member]) for level in levels if level.off]
    if not found:
        found += [_drift(evidence, fit) for fit in fits if fit.quantity == "moment" and fit.off]
    found += [Fault("rate", evidence.members[i].label, "", _hot(ratio, evidence.stable)) for i, ratio in hot.items()]
    return [*found, *_updates(evidence, fits, plans)]


def _not_finite(evidence: Evidence) -> Fault | None:
    for member, seen in zip(evidence.members, evidence.seen, strict=True):
        for o in seen:
            for layer in member.layers:
                signal = o.signals.get(layer.name)
                if signal is not None and not math.isfinite(signal.moment):
                    return Fault("signal", member.label, layer.name, "not finite at initialisation: signals overflow")
            if not o.finite:
                steps = len(o.losses)
                return Fault("rate", member.label, "", f"diverged within {steps} steps: learning rate too high")
    return None


def _signal(evidence: Evidence, level: Level, plan: Plan) -> Fault:
    member = evidence.members[level.member]
    layer = next(x for x in member.layers if x.name == level.layer)
    seen = [o.signals[layer.name] for o in evidence.seen[level.member]]
    entering = fmean(s.entering for s in seen)
    gain = level.moment / entering if entering > 0 else math.inf
    ratio = level.moment / level.wanted
    text = f"second moment {level.moment:.3g} where {level.wanted:.3g} is wanted: {_why(layer, gain, ratio, plan)}"
    return Fault("signal", member.label, level.layer, text)


def _why(layer: LayerFacts, gain: float, ratio: float, plan: Plan) -> str:
    """The likely cause.

    Args:
        gain: ``E z² / E x²``: weight variance × fan-in.
        ratio: how much the moment is off.
    """
    rule = INITS.get(plan.init)
    draws = rule is None or rule.draws
    if _close(gain, 1 / 3) and not draws:
        return "weights have variance 1/(3 fan-in), PyTorch's own: the plan was not applied"
    if layer.kind == "output" and rule is not None and rule.width == "mean-field" and gain < 2 * 2 / layer.fan_in:
        return "its weights are scaled right, but what enters is too large: look at the layers before"
    if layer.kind == "output":
        return f"readout {math.sqrt(ratio):.3g}× too large: not scaled"
    if draws and rule is not None and rule.moments is not None:
        return f"weights {_times(math.sqrt(ratio))} of what the signal that enters asks for"
    as_if = round(2 / gain) if gain > 0.02 else 0
    if as_if >= 1 and as_if != layer.degree and _close(gain, 2 / as_if) and layer.kind != "input":
        place = "into this sum " if layer.degree > 1 else ""
        return f"weights {place}are scaled by the wrong in-degree, {as_if} instead of {layer.degree}"
    if _close(gain, 2 / layer.degree) and layer.kind != "input":
        return (
            "its weights are scaled right, but what enters is not half its pre-activation: an earlier layer, or sums "
            "of activations and identity edges, which init 'moments' takes as they are"
        )
    return f"weights {_times(math.sqrt(ratio))} of what is wanted"


def _times(factor: float) -> str:
    return f"{factor:.3g}×"


def _close(a: float, b: float) -> bool:
    return a > 0 and abs(math.log2(a / b)) < CLOSE


def _drift(evidence: Evidence, fit: Fit) -> Fault:
    last = evidence.members[-1]
    layer = next(x.name for x in last.layers if x.kind == fit.name)
    text = f"second moments of {fit.name} layers go like {evidence.axis}^{fit.slope:.2f}, and are to stay"
    return Fault("signal", last.label, layer, text)


def _hot(ratio: float, stable: float | None) -> str:
    measured = (
        f"lr·λ = {ratio * stable:.3g}, {ratio:.2g}× the largest that is stable on a quadratic, and "
        if stable is not None and ratio > 1
        else ""
    )
    lower = "a quarter" if lower_share(ratio) == LOWER else f"{lower_share(ratio):.1g}"
    return f"learning rate too high: {measured}{lower} of it reaches a lower loss in {CONFIRM} steps"


def _updates(evidence: Evidence, fits: Sequence[Fit], plans: Sequence[Plan]) -> list[Fault]:
    last = evidence.members[-1]
    by_layer = {x.name: x for x in last.layers}
    order = {x.name: i for i, x in enumerate(last.layers)}
    for quantity in ("own", "change"):
        off = [f for f in fits if f.quantity == quantity and f.name in by_layer and f.off]
        if off:
            off.sort(key=lambda f: order[f.name])
            one_rate = len({p.lr for p in plans[-1].parameters.values()}) == 1
            return [Fault("update", last.label, f.name, _multiplier(evidence, f, quantity, one_rate)) for f in off]
    return [
        _class_update(evidence, f, last) for f in fits if f.quantity == "change" and f.name not in by_layer and f.off
    ]


def _multiplier(evidence: Evidence, fit: Fit, quantity: str, one_rate: bool) -> str:
    factor = fit.values[-1] / fit.values[0] if fit.values[0] > 0 else math.inf
    size = evidence.sizes[-1] / evidence.sizes[0]
    what = "its update" if quantity == "own" else "the change of its output"
    why = (
        "one rate for all layers does not carry over width, plan with width='mup'"
        if one_rate
        else "its learning-rate multiplier is missing or wrong"
    )
    return f"{what} goes like {evidence.axis}^{fit.slope:.2f}, {factor:.3g}× at {size:.3g}× the {evidence.axis}: {why}"


def _class_update(evidence: Evidence, fit: Fit, last: Member) -> Fault:
    """At the first layer whose change in the largest member exceeds what the smallest's allows, if one does."""
    kinds = ("hidden", "sum") if fit.name == "inner" else (fit.name,)
    layers = [x for x in last.layers if x.kind in kinds]
    seen = evidence.seen[-1]

    def rms(x: LayerFacts) -> float:
        return math.sqrt(fmean(decisive(o.signals[x.name].change) * x.degree for o in seen if x.name in o.signals))

    limit = fit.values[0] * (evidence.sizes[-1] / evidence.sizes[0]) ** fit.tolerance
    above = [x for x in layers if rms(x) > limit]
    layer = (above or layers)[0].name
    way = "too high" if fit.slope > 0 else "too low"
    text = (
        f"updates of {fit.name} layers go like {evidence.axis}^{fit.slope:.2f}, {fit.values[-1] / fit.values[0]:.3g}× "
        f"those of the smallest member: the rate is {way} for this {evidence.axis}, the law does not carry over"
    )
    return Fault("update", last.label, layer, text)
