"""Faults of what an optimiser is given: parameters, their initial weights, rates, decay and eps."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dagscale.training.clipping import local
from dagscale.watching.planned import Planned
from dagscale.watching.rates import explained, listed
from dagscale.watching.seen import Fault, Found, Seen, What

INIT = 1.25
"""How far the size of initial weights may be from the plan's, beside chance."""


def initial(parameters: Mapping[str, Planned]) -> tuple[Fault, ...]:
    """Faults of weights that are still to be trained: those that are not of the size that the plan draws them with."""
    drawn = {name: own for name, own in parameters.items() if own.fill is not None and not own.parameter.is_meta}
    wrong = {name: ratio for name, own in drawn.items() if (ratio := _size(own)) is not None}
    if not wrong:
        return ()
    if 2 * len(wrong) >= len(drawn) and len(wrong) > 1:
        text = (
            f"{len(wrong)} of {len(drawn)} parameters are not as the plan draws them: call plan.init_(model) before "
            "training, or make the plan with init='keep' for weights that are trained already"
        )
        return (Fault("init", "", text),)
    return tuple(
        Fault(
            "init", name,
            f"the {parameters[name].kind}'s initial weights are {_times(ratio)} as the plan draws them, after "
            "plan.init_ or without it: draw nothing again after it, and keep no output multiplier of your own",
        )
        for name, ratio in wrong.items()
    )  # fmt: skip


def _size(own: Planned) -> float | None:
    """rms over the plan's, where chance does not explain it."""
    assert own.fill is not None
    values = local(own.parameter.detach())
    values = values.to(torch.promote_types(values.dtype, torch.float64))
    if values.numel() == 0:
        return None
    if own.fill.std == 0:
        apart = float((values - own.fill.mean).abs().max())
        return math.inf if apart > 1e-3 * max(1.0, abs(own.fill.mean)) else None
    if own.role == "embedding":  # its padding row is zero
        values = values[values.flatten(1).abs().amax(1) > 0] if values.dim() > 1 else values
    if values.numel() == 0:
        return 0.0
    ratio = float(values.abs().square().mean().sqrt()) / math.hypot(own.fill.std, own.fill.mean)
    chance = math.exp(4 / math.sqrt(2 * values.numel()))
    within = 1 / (INIT * chance) < ratio < INIT * chance
    return None if within else ratio


def _times(ratio: float) -> str:
    return "not" if ratio in (0.0, math.inf) else f"{ratio:.3g} × as large"


def missing(seen: Seen) -> Found:
    """Parameters that no group of the optimiser holds."""
    lost = [name for name in seen.parameters if name not in seen.groups]
    if lost and len(lost) == len(seen.parameters):
        yield Fault("missing", "", (
            "the optimizer holds none of the model's parameters: it was made for a copy, or before they were replaced; "
            "make it with plan.optimizer(model)"
        ))  # fmt: skip
    elif lost:
        is_are = "are" if len(lost) > 1 else "is"
        yield Fault("missing", listed(lost), (
            f"{is_are} in no group of the optimizer and never trained: make it with plan.optimizer(model), or freeze "
            "what is not to be trained before planning"
        ))  # fmt: skip


def frozen(seen: Seen) -> Found:
    """Parameters that were frozen when the watch began."""
    planned = [name for name in seen.frozen if seen.plan.parameters[name].fill is not None]
    if planned:
        yield Fault("frozen", listed(planned), (
            "the plan initialises and trains it, and it does not require a gradient: requires_grad_(True), or plan "
            "for the model with it frozen"
        ))  # fmt: skip
    others = [name for name in seen.frozen if name not in planned]
    if others:
        yield f"frozen: {listed(others)}"


def drawn(seen: Seen) -> Found:
    """Initial weights."""
    yield from seen.drawn


def rates(seen: Seen) -> Found:
    """Learning rates that are not in the plan's ratios."""
    rates = seen.rates
    if not rates.wrong:
        return
    where, text, harmless = explained(rates, seen.plan.lr, seen.kinds)
    if harmless or (not rates.wrong_now and rates.wrong * 20 < rates.steps):
        yield f"in {rates.wrong} of {rates.steps} steps {text}"
    else:
        yield Fault("rate", where, text)


def decay(seen: Seen) -> Found:
    """Weight decay, where the plan says how much."""
    held = {n: (own.weight_decay, float(seen.groups[n].get("weight_decay") or 0.0)) for n, own in
            seen.parameters.items() if own.weight_decay is not None and n in seen.groups}  # fmt: skip
    none = [n for n, (planned, now) in held.items() if planned == 0 and now > 0]
    if none:
        kinds = sorted({seen.kinds[n] for n in none})
        yield Fault("decay", listed(none), (
            f"weight decay {held[none[0]][1]:.3g} on what the plan trains without ({', '.join(kinds)}): set it by "
            "group, as plan.param_groups(model) does"
        ))  # fmt: skip
    yield from _factors("decay", "weight decay", {n: pair for n, pair in held.items() if pair[0] and n not in none})


def eps(seen: Seen) -> Found:
    """eps, where the plan says its own."""
    pairs = {n: (own.eps, float(seen.groups[n]["eps"])) for n, own in seen.parameters.items() if own.eps is not None
             and n in seen.groups and "eps" in seen.groups[n]}  # fmt: skip
    yield from _factors("eps", "eps", pairs)


def _factors(what: What, label: str, pairs: Mapping[str, tuple[float | None, float]]) -> Found:
    """Where settings are not in the plan's ratios."""
    ratios = {name: now / planned for name, (planned, now) in pairs.items() if planned}
    if not ratios:
        return
    middle = sorted(ratios.values())[len(ratios) // 2]
    wrong = [n for n, r in ratios.items() if (min(r, middle) <= 0 and r != middle) or (middle > 0 < r and not
             1 / 1.02 < r / middle < 1.02)]  # fmt: skip
    if wrong:
        planned, now = pairs[wrong[0]]
        yield Fault(what, listed(wrong), (
            f"{label} is {now:.3g} where the plan says {planned:.3g}, and not so for other layers: take it from "
            "plan.param_groups(model)"
        ))  # fmt: skip
