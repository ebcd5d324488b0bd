"""Faults of what was measured: gradients, what clipping keeps of them, and the sizes of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from dagscale.training.muon import SHAPE_FACTORS, shape_factor
from dagscale.watching.measure import StepFacts, implementation
from dagscale.watching.rates import listed
from dagscale.watching.seen import Fault, Found, Seen

FEW = 3
"""Observed steps without which nothing is said of gradients, clipping and steps: a readout at zero delays the rest."""

SWALLOWED = 0.25
"""What clipping keeps of the gradient, in the median, below which it swallows most of the step."""

APART = 8.0
"""How far the size of a step may be from the other layers', at their own rates: momentum and noise differ by layer."""

SHAPED = 2.0
"""How far a matrix's step may be from what its rate and shape imply under Muon, and a plain gradient step from its."""

ORTHOGONAL = 1.1
"""The largest singular value that the Newton–Schulz iteration leaves, which is meant to be 1."""

JUDGED = ("input", "hidden", "readout")
"""Roles of those weights whose steps are held against each other: most rows of a table have no gradient in a step, and
vectors may have none but rounding."""

ROUNDING = 1e-6
"""A gradient that is smaller than this share of the largest layer's is rounding, and so is such a share of a weight."""


def gradients(seen: Seen) -> Found:
    """Parameters that are not trained because no gradient comes."""
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


def clipping(seen: Seen) -> Found:
    """Clipping that swallows most of the step."""
    kept = clipped(seen.steps)
    if kept is None or len(seen.steps) < FEW or kept >= SWALLOWED:
        return
    text = f"clipping keeps {kept:.2g} of the gradient (median over {len(seen.steps)} observed steps)"
    if seen.known is not None and seen.known.step == "gradient":
        yield Fault("clipping", "", (
            f"{text}: each step is {1 / kept if kept else math.inf:.3g} times smaller than its learning rate says; "
            "clip at a larger norm, or search the base's rate with the clipping that the target has"
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


def not_finite(seen: Seen) -> Found:
    """Values that are not finite."""
    if not seen.steps:
        return
    broken = [n for n, f in seen.steps[-1].items() if not all(
        math.isfinite(v) for v in (f.weight, f.change, f.signal or 0.0, f.gradient or 0.0))]  # fmt: skip
    if broken:
        yield Fault("signal", listed(broken), "not finite: the training has diverged; lower the learning rate")


def steps(seen: Seen) -> Found:
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
            factors[said] = shape_factor(shape, other)
    found = ratio / ORTHOGONAL * shape_factor(shape, planned)
    near = [said for said, factor in factors.items() if 1 / 1.25 < found / factor < 1.25]
    if near:
        return f"its shape factor is {'; or '.join(near)}"
    return "its shape factor is missing, or there twice, or clipping cuts the step itself"
