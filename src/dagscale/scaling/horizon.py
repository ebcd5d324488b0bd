"""Batch size and horizon: named rules for what changes when a run takes larger steps, or sees more examples.

``m_B`` is the growth of the batch size and ``m_D`` that of the number of examples (images, tokens) seen in the whole
run, both against the run whose settings are known; epochs count as many times. The published rules disagree, and on
finished runs of others each loses where another gains (``docs/evidence/replay.md``), so none is ever applied unless it
is asked for by name; :func:`fit` finds the user's own exponent from two or three horizons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import linear_regression, pvariance
from typing import Any, Protocol

from dagscale.errors import PlanError
from dagscale.registry import Registry


@dataclass(frozen=True, slots=True)
class HorizonScaling:
    """Factors on the settings of the known run; each is 1 where the rule says nothing.

    Attributes:
        lr: on every learning rate.
        weight_decay: on the decay as torch's AdamW takes it, where a step shrinks weights by rate × decay.
        forgetting: on ``1 - β₁`` and ``1 - β₂`` of Adam and its kin.
        eps: on Adam's eps.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    forgetting: float = 1.0
    eps: float = 1.0

    def betas(self, betas: tuple[float, float]) -> tuple[float, float]:
        """Adam's betas for the new run.

        Raises:
            PlanError: if one would fall below 0: the batch has grown beyond what the rule can follow.
        """
        first, second = (1 - self.forgetting * (1 - beta) for beta in betas)
        if min(first, second) < 0:
            raise PlanError(
                f"1 - β × {self.forgetting:g} passes 1 for betas {betas}: the batch has grown too much for this rule; "
                "take a smaller batch, betas nearer to 1, or another rule"
            )
        return first, second


HorizonRule = Callable[[float, float], HorizonScaling]
"""(m_B, m_D) → factors."""

HORIZON_RULES: Registry[HorizonRule] = Registry("rule of batch size and horizon")


def horizon_scaling(rule: str, m_B: float = 1.0, m_D: float = 1.0) -> HorizonScaling:
    """The factors of a named rule.

    Args:
        rule: a name in ``HORIZON_RULES``.
        m_B: batch size of the new run over that of the known one.
        m_D: number of examples or tokens that the new run sees over that of the known one.

    Raises:
        UnknownNameError: if there is no such rule.
        PlanError: if a growth is no positive number, or the rule says nothing for it.
    """
    for name, growth in (("m_B", m_B), ("m_D", m_D)):
        if isinstance(growth, bool) or not isinstance(growth, (int, float)) or not (0 < growth < math.inf):
            raise PlanError(f"{name} must be a positive number, the growth against the known run, not {growth!r}")
    return HORIZON_RULES[rule](float(m_B), float(m_D))


@HORIZON_RULES.add("none")
def constant(m_B: float, m_D: float) -> HorizonScaling:
    """Everything stays as it is."""
    return HorizonScaling()


@HORIZON_RULES.add("linear")
def linear(m_B: float, m_D: float) -> HorizonScaling:
    """A rate that grows like the batch. ``η ∝ B``, for SGD with and without momentum [Goyal et al. 2017, arXiv
    1706.02677]. Says nothing of ``m_D``."""
    return HorizonScaling(lr=m_B)


@HORIZON_RULES.add("sqrt")
def square_root(m_B: float, m_D: float) -> HorizonScaling:
    """A rate that grows like the root of the batch, for Adam. ``η ∝ √B``, ``1 - β ∝ B`` for both betas, ``eps ∝ 1/√B``:
    Adam keeps its stochastic differential equation [Malladi et al. 2022, arXiv 2205.10287]. Says nothing of ``m_D``."""
    return HorizonScaling(lr=math.sqrt(m_B), forgetting=m_B, eps=1 / math.sqrt(m_B))


@HORIZON_RULES.add("timescale")
def timescale(m_B: float, m_D: float) -> HorizonScaling:
    """A rate that grows with the batch, a decay that falls with the horizon. AdamW averages weights over ``B / (η λ
    D)`` passes over ``D`` examples, and that number is kept [Wang & Aitchison 2024, arXiv 2405.13698]. With ``η ∝ √B``
    it follows that ``λ ∝ √B / D``. ``D`` is the size of the data set there: more epochs over the same data change
    nothing, so give ``m_D = 1`` for these."""
    return HorizonScaling(lr=math.sqrt(m_B), weight_decay=math.sqrt(m_B) / m_D)


@HORIZON_RULES.add("completed-p")
def completed_p(m_B: float, m_D: float) -> HorizonScaling:
    """One differential equation at every batch size and horizon, for Adam. With ``r = m_B/m_D``, rate and decay ∝ √r,
    ``1 - β ∝ r``, ``eps ∝ 1/√r`` [Complete(d)P, arXiv 2512.22382, Table 1, as published implementations have it;
    they disagree on the sign of eps's power, and this one agrees with ``sqrt``]."""
    r = m_B / m_D
    return HorizonScaling(math.sqrt(r), math.sqrt(r), r, 1 / math.sqrt(r))


POWER = -0.32
STEP_LAW_SIZE, STEP_LAW_TOKENS, STEP_LAW_BATCH = -0.713, 0.307, 0.571


@HORIZON_RULES.add("power")
def power(m_B: float, m_D: float) -> HorizonScaling:
    """A rate that falls slowly with the horizon. ``η ∝ D^-0.32`` at a fixed batch [Bjorck et al. 2024, arXiv
    2409.19913], and ``√B`` beside it [HyperP, arXiv 2603.28743]."""
    return HorizonScaling(lr=m_D**POWER * math.sqrt(m_B))


@HORIZON_RULES.add("step-law")
def step_law(m_B: float, m_D: float) -> HorizonScaling:
    """A rate that grows with the horizon, each at its best batch. ``η ∝ D^0.307`` while the batch is the best one, ``B
    ∝ D^0.571`` [Step Law, arXiv 2503.04715].

    Raises:
        PlanError: if the batch grows more than half an octave differently: the law says nothing there.
    """
    best = m_D**STEP_LAW_BATCH
    if abs(math.log2(m_B / best)) > 0.5:
        raise PlanError(
            f"rule 'step-law' holds while the batch grows like D^{STEP_LAW_BATCH}: by {best:.3g} for {m_D:.3g} times "
            f"the tokens, not by {m_B:.3g}; change the batch, or take another rule"
        )
    return HorizonScaling(lr=m_D**STEP_LAW_TOKENS)


def step_law_optimum(parameters: float, tokens: float) -> tuple[float, float]:
    """``(learning rate, tokens in a step)`` for a dense language model under AdamW with decay 0.1.

    ``1.80 N^-0.713 D^0.307`` and ``0.58 D^0.571``: the fit of the authors' code to their own runs [Step Law, arXiv
    2503.04715].

    Args:
        parameters: ``N``, embeddings not counted.
        tokens: ``D``, seen in the whole run.
    """
    return 1.80 * parameters**STEP_LAW_SIZE * tokens**STEP_LAW_TOKENS, 0.58 * tokens**STEP_LAW_BATCH


# --- a rule of the user's own -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HorizonFit:
    """``η = η₀ (D/D₀)^exponent``, fitted to a user's own runs.

    Attributes:
        exponent: least squares in logarithms.
        interval: 95 %, or None where the runs cannot tell.
        examples: ``D`` of the longest run, the end from which a rate is carried on.
        lr: the fitted rate there.
        reason: why there is no interval; ``""`` if there is one.
    """

    exponent: float
    interval: tuple[float, float] | None
    examples: float
    lr: float
    reason: str = ""

    def scaling(self, m_D: float) -> HorizonScaling:
        """Factors for a run of ``m_D`` times the examples of the longest one, at the same batch size."""
        return HorizonScaling(lr=m_D**self.exponent)

    def factors(self, m_D: float) -> tuple[float, float] | None:
        """The interval of the factor on the rate, or None."""
        if self.interval is None:
            return None
        low, high = sorted(m_D**exponent for exponent in self.interval)
        return low, high

    def __str__(self) -> str:
        """One line."""
        if self.interval is None:
            return f"rate ∝ examples^{self.exponent:.2f}; {self.reason}"
        return f"rate ∝ examples^{self.exponent:.2f} (95 %: {self.interval[0]:.2f} … {self.interval[1]:.2f})"


class Searched(Protocol):
    """What is needed of a search's result; `dagscale.Base` has it."""

    @property
    def lr(self) -> float:
        """The best rate."""

    @property
    def examples(self) -> int | None:
        """What a run saw of the data."""

    @property
    def recipe(self) -> Any:
        """How it was trained, as plain data."""


def fit(runs: Iterable[tuple[float, float] | Searched], *, octaves: float | None = None) -> HorizonFit:
    """The exponent of the best rate in the horizon, from a user's own searches at one batch size. ::

        shorter, longer = (dagscale.search(small, recipe.changed(steps=n)) for n in (500, 2000))
        plan = dagscale.plan(model, base=longer, recipe=recipe.changed(steps=8000), horizon=fit([shorter, longer]))

    Args:
        runs: what searches returned, or ``(examples, best rate)`` of each; several of one horizon are welcome.
        octaves: how far a best rate is known, as one standard error in octaves; a third of the distance between the
            rates of a grid is a fair guess. With it two horizons have an interval, without it the scatter around the
            line must tell, which needs three searches at least.

    Raises:
        PlanError: if there are fewer than two different horizons, a number is not positive, or the searches differ in
            more than their length.
    """
    pairs = _pairs(list(runs))
    bad = [value for pair in pairs for value in pair if not 0 < value < math.inf]
    if bad:
        raise PlanError(f"examples and rates must be positive numbers, got {bad[0]:g}")
    if octaves is not None and not 0 < octaves < math.inf:
        raise PlanError(f"octaves is the standard error of a best rate, a positive number, not {octaves!r}")
    if len({d for d, _ in pairs}) < 2:
        raise PlanError(
            "one horizon says nothing of others: give (examples, best rate) of runs of two lengths at least, better "
            "three, each with its own search"
        )
    x, y = [math.log2(d) for d, _ in pairs], [math.log2(rate) for _, rate in pairs]
    exponent, start = linear_regression(x, y)
    missed = sum((b - start - exponent * a) ** 2 for a, b in zip(x, y, strict=True))
    half, reason = _half_width(missed, len(x) * pvariance(x), len(x) - 2, octaves)
    longest = max(x)
    lr = 2 ** (start + exponent * longest)
    interval = None if half is None else (exponent - half, exponent + half)
    return HorizonFit(exponent, interval, 2**longest, lr, reason)


def _pairs(runs: list[Any]) -> list[tuple[float, float]]:
    """(examples, rate) of each."""
    found = [one for one in runs if hasattr(one, "examples")]
    for one in found:
        apart = [k for k in one.recipe if k not in ("steps", "epochs") and one.recipe[k] != found[0].recipe.get(k)]
        if apart:
            raise PlanError(
                f"the searches differ in {', '.join(apart)}: a fit is over runs that differ in length alone"
            )
        if one.examples is None:
            raise PlanError("a search does not say how many examples its runs saw: give (examples, best rate)")
    return [(float(one.examples), float(one.lr)) if one in found else (float(one[0]), float(one[1])) for one in runs]


def _half_width(missed: float, spread: float, free: int, octaves: float | None) -> tuple[float | None, str]:
    """Half of the 95 % interval, or None and why.

    A known error is used as it is, unless the rates scatter more than it allows; then their scatter stands in for it.
    An unknown one is estimated from the scatter, with Student's t for the few searches there are.

    Args:
        missed, spread: sums of squares, of the distances from the line and of those from the mean horizon.
        free: how many searches there are beyond two.
    """
    from scipy.special import stdtrit

    scatter = math.sqrt(missed / free) if free else 0.0
    if octaves is not None:
        return 1.96 * max(octaves, scatter) / math.sqrt(spread), ""
    if not free:
        return None, "two searches leave no scatter to judge by, so no interval: add a third, or say octaves="
    if scatter < 1e-6:
        return None, "the rates lie on one line to the last digit, as a coarse grid's may, so no interval: say octaves="
    return float(stdtrit(free, 0.975)) * scatter / math.sqrt(spread), ""


__all__ = [
    "HORIZON_RULES", "HorizonFit", "HorizonRule", "HorizonScaling", "fit", "horizon_scaling", "step_law_optimum",
]  # fmt: skip
