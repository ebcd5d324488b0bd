"""From what was seen to what is wrong: a list of faults in words, the first one first, and notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from dagscale.planning.plans import Plan
from dagscale.training.muon import SHAPE_FACTORS, matrix_shape
from dagscale.training.optimizers import Optimizer
from dagscale.watching.measure import StepFacts, implementation
from dagscale.watching.planned import Planned
from dagscale.watching.rates import Rates, explained, listed

FEW = 3
"""Observed steps without which nothing is said of gradients, clipping and steps: a readout at zero delays the rest."""

SWALLOWED = 0.25
"""What clipping keeps of the gradient, in the median, below which it swallows most of the step."""

APART = 8.0
"""How far the size of a step may be from the other layers', at their own rates: momentum and noise differ by layer."""

SHAPED = 2.0
"""How far a matrix's step may be from what its rate and shape imply under Muon, and a plain gradient step from its."""

INIT = 1.25
"""How far the size of initial weights may be from the plan's, beside chance."""

ORTHOGONAL = 1.1
"""The largest singular value that the Newton–Schulz iteration leaves, which is meant to be 1."""

JUDGED = ("input", "hidden", "readout")
"""Roles of those weights whose steps are held against each other: most rows of a table have no gradient in a step, and
vectors may have none but rounding."""

ROUNDING = 1e-6
"""A gradient that is smaller than this share of the largest layer's is rounding, and so is such a share of a weight."""

What = Literal["missing", "frozen", "init", "rate", "decay", "eps", "gradient", "clipping", "step", "signal"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and why in words, with what to do about it.

    Attributes:
        what: the kind of fault.
        where: the layers, or ``""`` for the training as a whole.
        cause: in one sentence.
    """

    what: What
    where: str
    cause: str

    def __str__(self) -> str:
        return f"{self.where}: {self.cause}" if self.where else self.cause


@dataclass(frozen=True)
class Seen:
    """All that was seen of a training.

    Attributes:
        parameters: what is trained, by name.
        frozen: names of the plan's parameters that were frozen when the watch began.
        steps: the observed steps' facts, by parameter name.
        groups: parameter name → its group of the optimiser, as it is now.
        drawn: faults of the initial weights.
        touched: names that had a gradient other than zero in some observed step.
        observed: number of observed steps.
        known: what is known of the plan's optimiser.
    """

    plan: Plan
    parameters: Mapping[str, Planned]
    frozen: tuple[str, ...]
    rates: Rates
    steps: Sequence[Mapping[str, StepFacts]]
    groups: Mapping[str, Mapping[str, Any]]
    drawn: tuple[Fault, ...]
    touched: frozenset[str]
    observed: int
    known: Optimizer | None

    @property
    def kinds(self) -> dict[str, str]:
        """Parameter name → its kind."""
        return {name: own.kind for name, own in self.parameters.items()}


def find(seen: Seen) -> tuple[list[Fault], list[str]]:
    """The faults, those first from which others may follow, and notes on what is no fault."""
    faults: list[Fault] = []
    notes: list[str] = []
    for part in (_missing, _frozen, _drawn, _rates, _decay, _eps, _gradients, _clipping, _not_finite, _steps):
        for found in part(seen):
            (faults if isinstance(found, Fault) else notes).append(found)  # type: ignore[arg-type]
    return faults, notes


Found = Iterator["Fault | str"]


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
    values = own.parameter.detach()
    values = (values.to_local() if hasattr(values, "to_local") else values).double()
    if values.numel() == 0:
        return None
    if own.fill.std == 0:
        apart = float((values - own.fill.mean).abs().max())
        return math.inf if apart > 1e-3 * max(1.0, abs(own.fill.mean)) else None
    if own.role == "embedding":  # its padding row is zero
        values = values[values.flatten(1).abs().amax(1) > 0] if values.dim() > 1 else values
    if values.numel() == 0:
        return 0.0
    ratio = float(values.square().mean().sqrt()) / math.hypot(own.fill.std, own.fill.mean)
    chance = math.exp(4 / math.sqrt(2 * values.numel()))
    within = 1 / (INIT * chance) < ratio < INIT * chance
    return None if within else ratio


def _times(ratio: float) -> str:
    return "not" if ratio in (0.0, math.inf) else f"{ratio:.3g} × as large"


# --- settings --------------------------------------------------------------------------------------------------


def _missing(seen: Seen) -> Found:
    missing = [name for name in seen.parameters if name not in seen.groups]
    if missing and len(missing) == len(seen.parameters):
        yield Fault("missing", "", (
            "the optimizer holds none of the model's parameters: it was made for a copy, or before they were replaced; "
            "make it with plan.optimizer(model)"
        ))  # fmt: skip
    elif missing:
        is_are = "are" if len(missing) > 1 else "is"
        yield Fault("missing", listed(missing), (
            f"{is_are} in no group of the optimizer and never trained: make it with plan.optimizer(model), or freeze "
            "what is not to be trained before planning"
        ))  # fmt: skip


def _frozen(seen: Seen) -> Found:
    planned = [name for name in seen.frozen if seen.plan.parameters[name].fill is not None]
    if planned:
        yield Fault("frozen", listed(planned), (
            "the plan initialises and trains it, and it does not require a gradient: requires_grad_(True), or plan "
            "for the model with it frozen"
        ))  # fmt: skip
    others = [name for name in seen.frozen if name not in planned]
    if others:
        yield f"frozen: {listed(others)}"


def _drawn(seen: Seen) -> Found:
    yield from seen.drawn


def _rates(seen: Seen) -> Found:
    rates = seen.rates
    if not rates.wrong:
        return
    where, text, harmless = explained(rates, seen.plan.lr, seen.kinds)
    if harmless or (not rates.wrong_now and rates.wrong * 20 < rates.steps):
        yield f"in {rates.wrong} of {rates.steps} steps {text}"
    else:
        yield Fault("rate", where, text)


def _decay(seen: Seen) -> Found:
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


def _eps(seen: Seen) -> Found:
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


# --- what was measured -----------------------------------------------------------------------------------------


def _gradients(seen: Seen) -> Found:
    held = [name for name in seen.parameters if name in seen.groups]
    frozen = [name for name in held if not seen.parameters[name].parameter.requires_grad]
    if frozen:
        yield Fault("gradient", listed(frozen), (
            "frozen since the watch began, though the plan trains it: requires_grad_(True), or plan for the model "
            "with it frozen"
        ))  # fmt: skip
    if seen.observed < FEW:
        return
    silent = [name for name in held if name not in seen.touched and name not in frozen]
    vectors = [name for name in silent if seen.parameters[name].role == "vector"]
    silent = [name for name in silent if name not in vectors]
    if silent:
        yield Fault("gradient", listed(silent), (
            f"no gradient in any of {seen.observed} observed steps: the loss does not reach it (detached, under "
            "no_grad, or unused); if that is meant, freeze it before planning"
        ))  # fmt: skip
    if vectors:
        yield f"no gradient in any observed step: {listed(vectors)}"


def _clipping(seen: Seen) -> Found:
    kept = clipped(seen.steps)
    if kept is None or len(seen.steps) < FEW or kept >= SWALLOWED:
        return
    text = f"clipping keeps {kept:.2g} of the gradient (median over {len(seen.steps)} observed steps)"
    if seen.known is not None and seen.known.step == "gradient":
        yield Fault("clipping", "", (
            f"{text}: each step is {1 / kept:.3g} times smaller than its learning rate says; clip at a larger norm, or "
            "search the base's rate with the clipping that the target has"
        ))  # fmt: skip
    else:
        yield f"{text}; the size of a step of this optimizer does not follow the gradient's"


def clipped(steps: Sequence[Mapping[str, StepFacts]]) -> float | None:
    """What global clipping kept of the gradient, in the median over steps; None if it was not seen."""
    values = [kept for facts in steps if (kept := kept_of(facts)) is not None]
    return median(values) if values else None


def kept_of(facts: Mapping[str, StepFacts]) -> float | None:
    """The same in one step.

    What unscales a scaled loss is no clipping: an exact power of two from 2⁻⁷ down; below 2⁻¹², the powers of two in
    the ratio.
    """
    values = [f.kept for f in facts.values() if f.kept is not None and math.isfinite(f.kept)]
    if not values:
        return None
    kept = median(values)
    octaves = -math.log2(kept) if kept > 0 else 0.0
    if octaves > 6.9 and abs(octaves - round(octaves)) < 0.003:
        return 1.0
    return kept * 2.0 ** math.floor(octaves) if octaves > 12 else kept


def _not_finite(seen: Seen) -> Found:
    if not seen.steps:
        return
    broken = [n for n, f in seen.steps[-1].items() if not all(
        math.isfinite(v) for v in (f.weight, f.change, f.signal or 0.0, f.gradient or 0.0))]  # fmt: skip
    if broken:
        yield Fault("signal", listed(broken), "not finite: the training has diverged; lower the learning rate")


def _steps(seen: Seen) -> Found:
    """Steps that are not of the size that the group's own rate implies."""
    if len(seen.steps) < FEW or seen.known is None or seen.known.step is None:
        return
    loud = _loud(seen.steps)
    ratios = {n: r for n in seen.parameters if n in loud and (r := _ratio(seen, n)) is not None}
    still = [name for name, r in ratios.items() if r == 0]
    if still:
        dtype = str(seen.parameters[still[0]].parameter.dtype).removeprefix("torch.")
        yield Fault("step", listed(still), (
            f"does not move though it has gradients and a rate: its steps are lost in rounding to {dtype}, or undone; "
            "keep a float32 copy of the weights to train"
        ))  # fmt: skip
    moving = {name: r for name, r in ratios.items() if r > 0 and math.isfinite(r)}
    shaped = {name: r for name, r in moving.items() if seen.parameters[name].matrix}
    for name, r in shaped.items():
        if not 1 / SHAPED < r < SHAPED:
            yield Fault(
                "step", name, f"moves {r:.3g} × as far as its rate and shape imply: {_shape_fault(seen, name, r)}"
            )
    plain = seen.known.step == "gradient" and not seen.known.settings.get("momentum")
    rest = {n: r for n, r in moving.items() if n not in shaped and seen.parameters[n].role in JUDGED}
    if not rest:
        return
    middle, reach = (1.0, SHAPED) if plain else (median(rest.values()), APART)
    wrong = {n: r / middle for n, r in rest.items() if not 1 / reach < r / middle < reach}
    if wrong:
        ratio = max(wrong.values(), key=lambda r: abs(math.log(r)))
        against = "its rate and gradient imply" if plain else "its rate implies, against the other layers"
        yield Fault("step", listed(wrong), (
            f"moves {ratio:.3g} × as far as {against}: something scales gradients or steps by layer "
            "(eps, clipping by layer, a wrapper of the optimizer)"
        ))  # fmt: skip
    if seen.known.step == "sign" and middle < 1e-3:
        yield Fault("step", "", (
            f"all layers move {middle:.2g} × as far as their rates imply: gradients are small against the optimizer's "
            "eps; lower eps"
        ))  # fmt: skip


def _loud(steps: Sequence[Mapping[str, StepFacts]]) -> set[str]:
    """Parameters whose gradient is more than rounding: a bias before a norm has none but that."""
    sizes: dict[str, list[float]] = {}
    for facts in steps:
        for name, f in facts.items():
            if f.gradient is not None and math.isfinite(f.gradient):
                sizes.setdefault(name, []).append(f.gradient)
    middle = {name: median(values) for name, values in sizes.items()}
    return {name for name, size in middle.items() if size > ROUNDING * max(middle.values())}


def _ratio(seen: Seen, name: str) -> float | None:
    """The median size of a parameter's steps over what its group's rate implies, where float32 can hold such steps."""
    half = seen.parameters[name].parameter.element_size() < 4
    values = [
        f.ratio
        for facts in seen.steps
        if (f := facts.get(name)) is not None and f.ratio is not None and f.gradient and f.expected is not None
        if half or f.expected > ROUNDING * f.weight
    ]
    return median(values) if values else None


def _shape_fault(seen: Seen, name: str, ratio: float) -> str:
    """Which shape factor a spectral step has, if it is not the plan's: those that people take, and that come near."""
    shape = tuple(seen.parameters[name].parameter.shape)
    planned = implementation(seen.known)
    factors: dict[str, float] = {}
    for taken, words in ((shape[-2:], "last"), (shape[:2], "first")) if len(shape) > 2 else ():
        said = f"that of {' × '.join(map(str, taken))}, the {words} two dimensions, taken before the convolution was "
        mend = "flattened: flatten to out × (in · kernel) first, as plan.optimizer(model) does"
        factors[said + mend] = SHAPE_FACTORS[planned](*taken)
    for other in SHAPE_FACTORS:
        if other != planned:
            said = f"{other!r}, where the plan's rates are for {planned!r}"
            factors[said] = SHAPE_FACTORS[other](*matrix_shape(shape))
    found = ratio / ORTHOGONAL * SHAPE_FACTORS[planned](*matrix_shape(shape))
    near = [said for said, factor in factors.items() if 1 / 1.25 < found / factor < 1.25]
    if near:
        return f"its shape factor is {'; or '.join(near)}"
    return "its shape factor is missing, or there twice, or clipping cuts the step itself"


__all__ = ["Fault", "Seen", "clipped", "find", "initial", "kept_of"]
