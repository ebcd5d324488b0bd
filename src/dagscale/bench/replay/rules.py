"""What each law or rule makes of a rate that is carried from one setting to another.

A rule answers for one *axis*, the only thing in which the two settings differ: the ``network``, the ``horizon`` (number
of examples), the ``batch``, both of these, all three, or the ``decay``. The runs had one rate for all layers;
of a rule that gives each parameter its own, the mean counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from dagscale.bench.replay.optima import Optimum
from dagscale.bench.replay.runs import Layout, Setting
from dagscale.errors import PlanError
from dagscale.graph.paths import effective_depth
from dagscale.registry import Registry
from dagscale.scaling.horizon import STEP_LAW_SIZE, STEP_LAW_TOKENS, horizon_scaling

AXES = ("network", "horizon", "batch", "horizon, batch", "network, horizon, batch", "decay")


@dataclass(frozen=True)
class Context:
    """What a rule may look at beside the two settings: the layout, and optima of other recipes or families, with the
    exponents that were fitted to these."""

    layout: Layout
    others: tuple[Optimum, ...] = ()
    fits: dict[tuple[str, ...], dict[str, float]] = field(default_factory=dict)


Factor = Callable[[Setting, Setting, Context], float]
"""(from, to, context) → factor on the rate.

Raises:
    PlanError, or another DagscaleError: if the rule says nothing here; the message says why.
"""


@dataclass(frozen=True)
class Rule:
    """A rule, the axes that it answers for, and where it is from."""

    factor: Factor
    axes: tuple[str, ...]
    source: str


RULES: Registry[Rule] = Registry("rule")


def rule(name: str, *axes: str, source: str) -> Callable[[Factor], Factor]:
    """Decorator: a rule under its name."""

    def put(factor: Factor) -> Factor:
        RULES.add(name)(Rule(factor, axes, source))
        return factor

    return put


@rule("one rate", *AXES, source="no rule; also Depth-μP for SGD, and CompleteP in depth")
def one_rate(base: Setting, target: Setting, context: Context) -> float:
    """The base's rate as it is."""
    return 1.0


@rule("μP (CompleteP)", "network", source="2203.03466, 2505.01618: width as `width='mup'`, depth without a factor")
def maximal_update(base: Setting, target: Setting, context: Context) -> float:
    """The mean, over all weights, of the logarithm of the factors of ``dagscale.plan(..., width="mup")``."""
    return planned(context, base, target, "none", "mup")


@rule("μP, depth^-1/2", "network", source="2310.02244, 2309.16620 for Adam: μP, and 1/√depth on the rate")
def maximal_update_depth(base: Setting, target: Setting, context: Context) -> float:
    """μP's factor and the root of the number of blocks."""
    return maximal_update(base, target, context) * root_of_depth(base, target, context)


@rule("depth^-1/2", "network", source="the same without width")
def root_of_depth(base: Setting, target: Setting, context: Context) -> float:
    """``η ∝ 1/√depth``, in residual blocks."""
    return 1 / math.sqrt(_growth(base, target, "depth"))


@rule("paths", "network", source="2402.17440, Eq. 8 and 9: Σ L³ over all paths")
def paths(base: Setting, target: Setting, context: Context) -> float:
    """Law ``paths`` of ``dagscale.plan``."""
    return planned(context, base, target, "paths", "none")


@rule("covariance", "network", source="law `covariance` of dagscale.plan")
def covariance(base: Setting, target: Setting, context: Context) -> float:
    """Law ``covariance`` of ``dagscale.plan``."""
    return planned(context, base, target, "covariance", "none")


@rule("effective-depth", "network", source="2602.07494: shortest path, to the power -3/2")
def shortest_path(base: Setting, target: Setting, context: Context) -> float:
    """``η ∝ L^(-3/2)``, ``L`` the shortest path counting layers and residual additions."""
    return float((length(context, target) / length(context, base)) ** -1.5)


@rule("product", "decay", source="rate × decay stays: 2510.19093, 2405.13698")
def product(base: Setting, target: Setting, context: Context) -> float:
    """``η ∝ 1/λ``."""
    if not base.decay or not target.decay:
        raise PlanError("a decay of 0 has no product to keep")
    return base.decay / target.decay


@rule(
    "step-law", "network", "horizon, batch", "network, horizon, batch",
    source="2503.04715: N^-0.713 D^0.307, while each size and horizon has its best batch",
)  # fmt: skip
@rule("step-law, same batch", "horizon", source="the same power of D, where it is not meant to hold")
def step_law(base: Setting, target: Setting, context: Context) -> float:
    """``η ∝ N^-0.713 D^0.307``; for language models."""
    factor = 1.0
    if base.architecture != target.architecture:
        if context.layout.optimizer != "adamw":
            raise PlanError("the Step Law is fitted to language models under AdamW")
        factor *= _growth(base, target, "parameters") ** STEP_LAW_SIZE
    if base.examples != target.examples:
        factor *= _growth(base, target, "examples") ** STEP_LAW_TOKENS
    return factor


def _with_batch(factor: Factor) -> Factor:
    """A rule for networks, and the root of the batch size."""
    return lambda base, target, context: factor(base, target, context) * math.sqrt(_growth(base, target, "batch"))


for _name, _factor in (
    ("μP, √B", maximal_update), ("μP, depth^-1/2, √B", maximal_update_depth), ("effective-depth, √B", shortest_path),
):  # fmt: skip
    rule(_name, "network, horizon, batch", source="the rule for networks, and rate ∝ √B (2205.10287)")(
        _with_batch(_factor)
    )


def _horizon(name: str) -> Factor:
    def factor(base: Setting, target: Setting, context: Context) -> float:
        batch = (target.batch or 1) / (base.batch or 1)
        return horizon_scaling(name, batch, (target.examples or 1) / (base.examples or 1)).lr

    return factor


_SAY = {
    "linear": ("batch", "horizon, batch"),
    "sqrt": ("batch", "horizon, batch", "network, horizon, batch"),
    "power": ("horizon", "horizon, batch"),
    "completed-p": ("horizon", "horizon, batch"),
}
"""Rules and the axes on which they differ from the others. ``timescale`` has the rate of ``sqrt`` and changes the
decay, which is scored with pairs of rate and decay."""

for _name, _axes in _SAY.items():
    rule(_name, *_axes, source=f"dagscale.scaling.horizon, rule `{_name}`")(_horizon(_name))


@rule("fitted elsewhere", *AXES, source="power laws fitted to the runs of other recipes or families: a yardstick")
def fitted(base: Setting, target: Setting, context: Context) -> float:
    """Least squares on the optima of the others, within each of their groups."""
    names = tuple(name for name in VARIABLES if _moves(base, target, name))
    if not names:
        raise PlanError(f"the file gives the two settings no number that differs, of {', '.join(VARIABLES)}")
    if names not in context.fits:
        context.fits[names] = fitted_exponents(context.others, names)
    exponents = context.fits[names]
    return float(np.prod([_growth(base, target, name) ** exponents[name] for name in names]))


VARIABLES = ("depth", "width", "decay", "batch", "examples")
"""Numbers of a setting whose power laws are fitted."""


def fitted_exponents(others: tuple[Optimum, ...], names: tuple[str, ...]) -> dict[str, float]:
    """Exponents of the best rate in ``names``, over optima that agree in everything else.

    Raises:
        PlanError: if these do not determine them.
    """
    groups: dict[Hashable, list[Optimum]] = {}
    for optimum in others:
        groups.setdefault(without(optimum.setting, *names), []).append(optimum)
    xs, ys = [], []
    for members in groups.values():
        table = np.array([[math.log2(value(m.setting, name)) for name in names] for m in members])
        rates = np.array([math.log2(m.rate) for m in members])
        xs.append(table - table.mean(0))
        ys.append(rates - rates.mean())
    if not xs or np.linalg.matrix_rank(np.concatenate(xs), 1e-6) < len(names):
        raise PlanError(f"too few other runs to fit exponents of {', '.join(names)}")
    found, *_ = np.linalg.lstsq(np.concatenate(xs), np.concatenate(ys), rcond=None)
    return dict(zip(names, map(float, found), strict=True))


def value(setting: Setting, name: str) -> float:
    """A number of a setting, or of its architecture.

    Raises:
        PlanError: if the file does not say it, or it is 0.
    """
    held = getattr(setting.architecture, name) if hasattr(setting.architecture, name) else getattr(setting, name)
    if not held:
        raise PlanError(f"the file does not say the {name} of every run")
    return float(held)


def _growth(base: Setting, target: Setting, name: str) -> float:
    return value(target, name) / value(base, name)


def _moves(base: Setting, target: Setting, name: str) -> bool:
    try:
        return _growth(base, target, name) != 1
    except PlanError:
        return False


def without(setting: Setting, *names: str) -> Hashable:
    """All of a setting but these numbers; a network's name and parameters follow from its sizes."""
    a = setting.architecture
    sizes = () if "parameters" in names else tuple(getattr(a, n) for n in ("depth", "width") if n not in names)
    own = None if {"depth", "width", "parameters"} & set(names) else a
    return own, sizes, setting.recipe, *(getattr(setting, n) for n in ("decay", "batch", "examples") if n not in names)


# --- what the graphs say ------------------------------------------------------------------------------------------


def planned(context: Context, base: Setting, target: Setting, law: str, width: str) -> float:
    """The factor that ``dagscale.plan`` puts on a base's rate, in the mean over all weights."""
    networks = _networks(base, target)
    return _planned(_builder(context), _optimizer(context, target), *networks, law, width)


def length(context: Context, setting: Setting) -> int:
    """:func:`dagscale.graph.paths.effective_depth` of a setting's network."""
    return _length(_builder(context), _networks(setting)[0])


def _networks(*settings: Setting) -> tuple[str, ...]:
    if not all(setting.architecture.network for setting in settings):
        raise PlanError("the file does not say how to build the networks: name each as a TARGET in a column 'network'")
    return tuple(setting.architecture.network for setting in settings)


def _builder(context: Context) -> Callable[[str], tuple[Any, Any]]:
    if context.layout.build is None:
        raise PlanError("nothing is known of how these networks are built")
    return context.layout.build


def _optimizer(context: Context, setting: Setting) -> str:
    name = context.layout.optimizer or dict(setting.recipe).get("optimizer", "")
    if not name:
        raise PlanError("the file does not say the optimizer: name it in a column 'optimizer'")
    return name


@lru_cache(maxsize=4096)
def _planned(
    build: Callable[[str], tuple[Any, Any]], optimizer: str, base: str, target: str, law: str, width: str
) -> float:
    import dagscale

    made = dagscale.plan(*build(target), base=build(base), base_lr=1.0, law=law, optimizer=optimizer, width=width)
    weights = [math.prod(parameter.shape) for parameter in made.parameters.values()]
    logs = [math.log(parameter.lr) for parameter in made.parameters.values()]
    return math.exp(float(np.average(logs, weights=weights)))


@lru_cache(maxsize=1024)
def _length(build: Callable[[str], tuple[Any, Any]], network: str) -> int:
    import dagscale

    return effective_depth(dagscale.trace(*build(network)))
