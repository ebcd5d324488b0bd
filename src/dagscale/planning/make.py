"""Making a plan: from a model, an init and a law to initial weights and a learning rate for each parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dagscale.arguments import checked, positive_number, whole_number
from dagscale.errors import DagscaleError, PlanError, RecipeError
from dagscale.graph import Graph
from dagscale.graph.matrices import WHOLE, hidden_matrices
from dagscale.graph.repeats import fold_rows
from dagscale.graph.roles import offsets, output_factors, roles
from dagscale.inits import DEFAULT, INITS, WITHOUT_DATA, Init
from dagscale.inits.positions import tables
from dagscale.laws import LAWS, Law
from dagscale.laws.accuracy import Accuracy, accuracy
from dagscale.laws.base import Carried, number
from dagscale.laws.combined import pictured
from dagscale.network import Network
from dagscale.planning.base import Base
from dagscale.planning.certainty import Certainty, base_error, certainty
from dagscale.planning.defaults import LAW, WIDTH, init_for, way_over, why_init
from dagscale.planning.examples import Examples, unlike
from dagscale.planning.naming import named
from dagscale.planning.plans import ParameterPlan, Plan
from dagscale.planning.power import fitted_power
from dagscale.planning.prepare import about, initialised, keeping, traced
from dagscale.planning.resized import Horizon, named_rules, resized, unnamed
from dagscale.planning.trained import notes_on, own_rms, taken_up
from dagscale.planning.validate import check_gradient, check_kin, other_kind, rehearse
from dagscale.progress import Progress, shown
from dagscale.scaling.depth import DEPTH_RULES, own_scaling
from dagscale.scaling.together import Scaling, check_width, noted, scaling
from dagscale.tracing.wrappers import known_names
from dagscale.training.copies import all_put_back
from dagscale.training.groups import Relative, as_names, marked_undecayed
from dagscale.training.optimizers import Optimizer, resolve
from dagscale.training.recipe import Recipe, as_described, differences

Given = Base | nn.Module | tuple[nn.Module, Any]


@checked(PlanError)
def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    base: Given | Sequence[Given] | None = None,
    base_lr: float | Sequence[float] | None = None,
    recipe: Recipe | None = None,
    law: str | None = None,
    init: str | None = None,
    seed: int = 0,
    width: str = "auto",
    depth: str = "auto",
    depth_alpha: float | None = None,
    batch: str | None = None,
    horizon: Horizon | None = None,
    only: str | Iterable[str] | None = None,
    keep: str | Iterable[str] | None = None,
    reset: str | Iterable[str] | None = None,
    lr_scale: Mapping[str, float] | None = None,
    progress: bool | None = None,
    **training: Any,
) -> Plan:
    """Plan the initialisation of ``model`` and what each parameter is trained with. The model is not changed. ::

        found = dagscale.search(small, recipe)
        plan = dagscale.plan(model, base=found)

    Args:
        model: the target.
        example_inputs: as for :func:`dagscale.trace`; by default those of the recipe's first batch.
        base: a small network of the same kind whose best rate is known: a `Base`, as :func:`dagscale.search` returns
            it, a model, or ``(model, inputs)`` where the target's example inputs do not fit it; or several. Its recipe
            and init hold for the target too. With several, the rate is the geometric mean of those that each alone
            would give, and a note says how far these are apart.
        base_lr: the best rate of a base that is a model, per optimiser step; several bases have one each. Of a base
            that was searched, it takes the place of the rate that was found, and a note says so. With neither base nor
            rate, but data, law ``short-run`` measures the target's rate on the spot, roughly.
        recipe: how the target will be trained, where the base does not say it. One that differs from the base's is
            refused: the base's rate is for the base's training.
        law: the name of a law, see ``dagscale.LAWS``; by default what predicts training best (:func:`default_law`),
            and ``none`` where the base is the model itself.
        init: the name of an init, see ``dagscale.INITS``; by default the base's, or with data ``moments``, under a
            squared error ``small-readout`` (:func:`dagscale.planning.defaults.init_for`), else ``in-degree``.
        seed: seed of the initialisation.
        width: ``none``: one rate for all parameters, the paper's way; ``mup``: each parameter's init and rate
            also scaled by how its dimensions grow from base to target (:func:`dagscale.scaling.width.width_scaling`).
            ``auto``, the default: ``mup`` with law ``none``, which takes no step on the target, where there is one
            base and either both are residual networks of one kind, under AdamW and its kin, or under SGD where the
            target is deeper, then with depth ``completep``; or the target is only wider than the base, under AdamW and
            its kin (:mod:`dagscale.planning.defaults`); and where none of law, width, depth, ``only``, ``keep`` and
            ``reset`` is given; else ``none``.
        depth: ``auto`` as for width, ``none``, or a rule for the growth of residual depth: ``completep``,
            ``completedp``, ``depth-mup`` (:mod:`dagscale.scaling.depth`), folded into the settings of each parameter;
            or ``plain`` for layers behind one another without branches. With one of them the base's rate is carried
            over as it is, unless a law is named.
        depth_alpha: α of the depth rule: the branches' multiplier is ``m^-α``; by default the rule's own.
        batch, horizon: named rules for a target whose recipe has another batch size, or sees more or fewer examples,
            than the base's: ``sqrt``, ``linear``, ``timescale``, ``completed-p``, ``power``, ``step-law``, ``none`` for
            as it is (:mod:`dagscale.scaling.horizon`). ``horizon`` may be what `dagscale.scaling.horizon.fit` made of
            your own searches. Without a name such a difference is refused.
        only, keep, reset: names of parameters or modules, or patterns (``head``, ``blocks.*.mlp``): initialise these
            alone; leave these as they are; initialise these alone in a model that otherwise stays as it is. ``keep``
            makes exceptions of what the others name.
        lr_scale: name, module or pattern → factor on the learning rate, as ``{"backbone": 0.1}``.
        progress: show on stderr what is being measured; by default where stderr is a terminal.
        training: the recipe in a few words, in place of ``recipe``: ``data``, ``loss``, ``optimizer``, ``batch_size``,
            ``steps``, ``select`` and further arguments of `dagscale.Recipe`.

    Raises:
        UnknownNameError: for an unknown law, init or optimiser.
        RecipeError: if what was said of the training does not hold together, or is not that of the base.
        PlanError: if a base or its rate is missing, a base shares no layer with the target, a rate is no positive
            number, or the law does not cover the optimiser.
        TraceError: if a network cannot be traced; ForwardError if its forward raises, on the data too.
        GraphError: if the law has no answer for a network.
    """
    if isinstance(example_inputs, (Recipe, Base)):
        what = type(example_inputs).__name__
        raise PlanError(f"the second argument is example inputs, not a {what}: say it by name, {what.lower()}=…")
    with all_put_back(), shown("planning", progress) as bar:
        bases, given = _bases(base, base_lr, example_inputs)
        whole = recipe is not None
        free = width == depth == "auto" and all(way is None for way in (law, depth_alpha, only, keep, reset))
        width, depth = ("none" if rule == "auto" else rule for rule in (width, depth))
        recipe = _recipe(recipe, training, bases, named_rules(batch, horizon))
        size = resized(recipe, bases, batch, horizon)
        recipe = size.alike
        chosen = _chosen(
            law, init, width, depth, recipe, bases, given, has_base=base is not None or base_lr is not None, whole=whole
        )
        rates = [float(rate) for rate in given]
        found = [_found(one, rate) for one, rate in zip(bases, rates, strict=False)]
        bar.say("tracing")
        with about("target"):
            target = traced(model, example_inputs, recipe, whole_number("seed", seed, PlanError, least=0))
            if chosen.open:
                name = init_for(keeping(target, chosen.init.name, only, keep, reset)[0])
                chosen = replace(chosen, init=INITS[name], notes=why_init(name))
        networks = _networks(bases, recipe, chosen, target.seed)
        if free and len(networks) == 1 and (way := way_over(networks["base"], target, chosen.init)):
            chosen = chosen.noting(way.why, law=LAWS[LAW], width=WIDTH, depth=way.depth)
        elif law is None and chosen.law.name == "none" and width == depth == "none":
            chosen = chosen.noting(UNMEASURED)
        if law is None and chosen.law.steps and not all(pictured(n.graph) for n in (target, *networks.values())):
            chosen = chosen.noting(UNPICTURED, law=LAWS["none"])
        for name, network in networks.items():
            with about(name):
                check_kin(network.graph, target.graph)
        parts = _scaling([*networks.values()], target, chosen, depth_alpha)
        _try(rehearse, chosen, {"target": target, **networks})
        bar.say(f"init {chosen.init.name}: target")
        with about("target"):
            target, meant = keeping(target, chosen.init.name, only, keep, reset)
            target = initialised(target, chosen.init.name)
        target, parts = taken_up(target, parts, meant)
        target = scaled_by(target, parts, lr_scale)
        origins: dict[str, Network] = {}
        for name, network in networks.items():
            bar.say(f"init {chosen.init.name}: {name}")
            with about(name):
                own = network if network.fills or network.model is None else initialised(network, chosen.init.name)
            own = own if own.relative else trained_alike(own)
            origins[name] = replace(own, by_layer=bool(parts), hint=rates[len(origins)])
        beside = _try(check_gradient, chosen, {"target": target, **origins})
        target = replace(target, hint=_expected(target, origins, rates))
        itself = len(origins) == 1 and _the_same(origins["base"], target)
        if itself and law is None:
            chosen = chosen.noting(ITSELF.format("found" if all(found) else "given"), law=LAWS["none"])
        carried, start = _carry(chosen, target, origins, rates, bar)
        known, errors = _accuracy(chosen, target, carried), _base_errors(chosen, found)
        if itself and known is not None:
            known = known._replace(octaves=0.0)
        power = fitted_power(carried, rates, known, errors)
        carried = carried.to_the(power)
        alone = [] if chosen.absolute else [rate * carried.alone(i) for i, rate in enumerate(rates)]
        sure = certainty(known, carried.uncertain, errors, alone)
        origin = (
            *_origin(alone, chosen.absolute, power),
            *_in_place(bases, rates),
            *filter(None, dict.fromkeys(other_kind(n.graph, target.graph) for n in origins.values())),
            *_other_data(bases, target),
            *beside,
        )
        return size(_built(chosen, target, carried, start, parts, meant, sure, origin))


def starting_plan(
    network: Network,
    init: str,
    lr: float = 1.0,
    *,
    lr_scale: Mapping[str, float] | None = None,
    meant: Collection[str] = (),
) -> Plan:
    """The plan of a network's own init at one rate, without a law."""
    network = scaled_by(network, {}, lr_scale)
    chosen = _Chosen(LAWS["none"], INITS[init], "none", "none", absolute=False)
    return _built(chosen, network, Carried(({},)), lr, {}, meant, Certainty())


def default_law(optimizer: Optimizer | str, has_data: bool, has_base: bool = True, init: str = DEFAULT) -> str:
    """The law that the evidence is for.

    With data to measure on: ``combined`` for plain SGD with a base, under an init that keeps signals at one level (all
    but ``damped``); else ``short-run``. Without data: ``covariance`` for SGD with and without momentum, of networks
    without norms and products; ``none`` for all others, where one rate is nearest to what runs to completion want
    (docs/evidence/replay.md).
    """
    record = resolve(optimizer)
    if has_data:
        plain = record.step == "gradient" and not record.settings.get("momentum")
        return "combined" if plain and has_base and INITS[init].level else "short-run"
    return "covariance" if record.step == "gradient" else "none"


LISTED = 6
"""Most names that a note lists."""

UNPICTURED = (
    "one rate for all (law 'none'): without data no law is better on networks with norms, gates or attention; give "
    "data, or width='mup' where width grows"
)

UNMEASURED = (
    "one rate for all, the base's own (law 'none'): without data and loss nothing can be measured; give them for law "
    "'short-run'"
)

ITSELF = "the base is this very network: its rate is taken as it was {}"


# --- what was asked for ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chosen:
    law: Law
    init: Init
    width: str
    depth: str
    absolute: bool
    open: bool = False  # nobody named the init, so that it may depend on the network
    notes: tuple[str, ...] = ()

    def noting(self, note: str, **changes: Any) -> _Chosen:
        """With these changes, and a note on why."""
        return replace(self, notes=(*self.notes, note), **changes)


def _bases(base: Any, base_lr: Any, inputs: Any) -> tuple[list[Any], list[Any]]:
    """Bases as a list of `Base` and (model, inputs), by default the target's, and a rate for each."""
    group = isinstance(base, (tuple, list)) and bool(base)
    several = group and (isinstance(base[0], (tuple, list, Base, str, Path)) or all(map(_is_base, base)))
    bases = [] if base is None else list(base) if several else [base]
    bases = [(one, inputs) if isinstance(one, nn.Module) else one for one in bases]
    for one in bases:
        if not isinstance(one, Base) and not (isinstance(one, (tuple, list)) and len(one) == 2):
            got = type(one).__name__ + (": read a file with dagscale.Base.load" if isinstance(one, (str, Path)) else "")
            raise PlanError(f"base must be what dagscale.search returns, a model, or (model, inputs), got {got}")
    if base_lr is None and bases and all(isinstance(one, Base) for one in bases):
        return bases, [one.lr for one in bases]
    return bases, list(base_lr) if isinstance(base_lr, (tuple, list)) else [] if base_lr is None else [base_lr]


def _is_base(one: Any) -> bool:
    """Whether it is a base by itself, and not the example inputs of the model before it."""
    return isinstance(one[0] if isinstance(one, (tuple, list)) and one else one, (nn.Module, Base))


def _recipe(recipe: Recipe | None, training: dict[str, Any], bases: Sequence[Any], free: Collection[str]) -> Recipe:
    """How the target is trained: as its base was, but for what is ``free``."""
    if recipe is not None and training:
        raise RecipeError(f"{', '.join(training)}: say it in the recipe, as it is given")
    if recipe is not None and not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe must be a dagscale.Recipe, not {type(recipe).__name__}")
    found = [one for one in bases if isinstance(one, Base)]
    if not found:
        return recipe if recipe is not None else Recipe(**training)
    live, said = found[0].live, recipe is not None or bool(training)
    if recipe is None and live is not None and live.data is not None:
        recipe = live.changed(**{k: v for k, v in training.items() if k != "data" or v is not live.data})
    elif recipe is None:  # as far as a file says it
        recipe = Recipe(**as_described(found[0].recipe, training), **training)
    for one in found:
        apart = [text for text in differences(one.recipe, recipe.describe()) if text.partition(" ")[0] not in free]
        if apart and one.recipe:  # else nothing is known of how the base was trained
            mend = "search the base under the target's recipe, or plan under the base's"
            mend = f"{mend}{unnamed(apart)}" if said else f"{mend}, which its file does not tell in full: give recipe="
            raise RecipeError(
                f"the recipe is not that of the base, whose rate is for its own training: {'; '.join(apart)}; {mend}"
            )
    return recipe


def _chosen(
    law: str | None,
    init: str | None,
    width: str,
    depth: str,
    recipe: Recipe,
    bases: Sequence[Any],
    rates: list[Any],
    *,
    has_base: bool,
    whole: bool,
) -> _Chosen:
    """Look up the named law, init, width and depth rule, and refuse a request that cannot be served."""
    found = [one for one in bases if isinstance(one, Base) and one.init is not None]
    said = whole or bool(found) or recipe.loss is not None or recipe.step is not None  # data alone may be for the init
    has_data = recipe.data is not None and said
    fill = INITS[init or (found[0].init if found else None) or (DEFAULT if recipe.data is not None else WITHOUT_DATA)]
    if law is None:
        law = "none" if depth != "none" else default_law(recipe.optimizer, has_data, has_base, fill.name)
    rule = LAWS[law]
    absolute = rule.absolute is not None and not has_base
    if not absolute and not (rates and all(map(_positive, rates))):
        if rates:
            given = f"base_lr must be a positive number, not {rates[0] if len(rates) == 1 else rates!r}"
        elif bases:
            given = (
                f"law {rule.name!r} carries the base's rate over, and the base comes without one: give base_lr= "
                "(--base-lr)"
            )
        else:
            given = f"law {rule.name!r} carries a base's rate over, and there is none"
        without = "name law 'short-run', which needs none" if has_data else "give data and loss"
        without = f"leave the base out and {without}" if bases else without
        raise PlanError(
            f"{given}; find one with dagscale.search (on the command line, dagscale search … --save base.json, and "
            f"then --base base.json), or {without}"
        )
    if not absolute and len(rates) != max(len(bases), 1):
        raise PlanError(f"bases: {len(bases)}, rates: {len(rates)}; give each base its own base_lr, in the same order")
    rule.check(recipe.optimizer)
    if rule.needs_base and not bases and not absolute:
        raise PlanError(f"law {rule.name!r} carries a rate over from a base: give base=small, base_lr=…, or law 'none'")
    if rule.measured and recipe.data is None:
        raise PlanError(
            f"law {rule.name!r} is measured and needs data=(x, y) and loss=… (--data); without data use law "
            "'covariance', 'walk' or 'paths'"
        )
    check_width(width)
    if depth != "none":
        DEPTH_RULES[depth]  # unknown names raise before anything is traced
    for name, mode in (("width", width), ("depth", depth)):
        if mode != "none" and len(bases) > 1:
            raise PlanError(f"{name}={mode!r} scales each layer from one base's shapes: give one, not {len(bases)}")
        if mode != "none" and not bases:
            raise PlanError(f"{name}={mode!r} scales from a base's shapes: give base=small, base_lr=…")
    for one in found:
        if one.init != fill.name:
            raise PlanError(
                f"the base's rate was found under init {one.init!r}, and the plan is for init {fill.name!r}: search "
                f"the base with init={fill.name!r}"
            )
    return _Chosen(rule, fill, width, depth, absolute, open=init is None and not found and recipe.data is not None)


def _positive(number: Any) -> bool:
    """Whether it is a positive, finite number."""
    try:
        return not isinstance(number, (str, bool)) and math.isfinite(number) and number > 0
    except (TypeError, ValueError):
        return False


# --- networks --------------------------------------------------------------------------------------------------


def _networks(bases: Sequence[Any], recipe: Recipe, chosen: _Chosen, seed: int) -> dict[str, Network]:
    """The bases' networks by name; those that were searched are what the search made."""
    found: dict[str, Network] = {}
    for i, one in enumerate(bases, 1):
        name = "base" if len(bases) == 1 else f"base {i}"
        with about(name):
            if not isinstance(one, Base):
                model, inputs = one
                found[name], _ = keeping(traced(model, inputs, recipe, seed, role="base"), chosen.init.name)
            elif one.network is None:
                raise PlanError("this Base knows no network: make it with dagscale.search, or give its model and rate")
            else:
                found[name] = one.network
    return found


def _the_same(base: Network, target: Network) -> bool:
    """Whether the base is the target itself, as where a model's own search is its base: one graph, of which the same is
    drawn and trained at the same ratios."""
    drawn_alike = base.fills.keys() == target.fills.keys()
    return base.graph == target.graph and drawn_alike and base.ratios == target.ratios


def _scaling(bases: Sequence[Network], target: Network, chosen: _Chosen, alpha: float | None) -> Mapping[str, Scaling]:
    """Factors of each parameter for width and depth, or none."""
    if chosen.width == chosen.depth == "none":
        if alpha is not None:
            raise PlanError("depth_alpha= is that of a depth rule: give depth='completep' or another")
        return {}
    base, rule = bases[0], chosen.init
    own: Mapping[str, float] = {}
    if chosen.depth != "none" and not rule.draws and all(rms := [own_rms(network) for network in (base, target)]):
        own = own_scaling(base.graph, target.graph, *rms)
    return scaling(
        base.graph, target.graph, target.recipe.optimizer, width=chosen.width, depth=chosen.depth, alpha=alpha,
        mean_field=rule.width == "mean-field", own_width=rule.width == "own",
        factors_seen=rule.measured and rule.draws, own=own,
    )  # fmt: skip


def _try(
    check: Callable[[Network], tuple[str, ...] | None], chosen: _Chosen, networks: Mapping[str, Network]
) -> tuple[str, ...]:
    """Run a check on every network that the law will be measured on; its notes, each once."""
    notes: dict[str, None] = {}
    for name, network in networks.items() if chosen.law.measured else ():
        if network.model is not None:
            with about(name):
                notes.update(dict.fromkeys(check(network) or ()))
    return tuple(notes)


def scaled_by(target: Network, parts: Mapping[str, Scaling], lr_scale: Mapping[str, float] | None = None) -> Network:
    """The target with its fills scaled, and with each parameter's settings; what is measured on it sees them."""
    role, made_of, offset = roles(target.graph), hidden_matrices(target.graph), offsets(target.graph)
    own = {name: parts.get(name, Scaling()) for name in role}
    known = known_names(role, target.model)
    scale, marked = _rate_scales(known, lr_scale or {}), marked_undecayed(target.model, known)
    as_names(target.recipe.no_decay, known)  # raises where it names nothing
    return replace(
        target,
        fills={n: f.times(own[n].factors.init, offset.get(n, 0.0)) for n, f in target.fills.items()},
        relative={
            name: Relative(
                s.factors.lr * scale.get(name, 1.0), s.factors.eps, 0.0 if name in marked else s.factors.weight_decay,
                role[name], s.fold, m.split, m.stacked, m.transposed,
            )
            for name, s in own.items() for m in [made_of.get(name, WHOLE)]
        },
        by_layer=bool(parts),
        memo={},
    )  # fmt: skip


def trained_alike(network: Network, lr_scale: Mapping[str, float] | None = None) -> Network:
    """A base that laws measure as a target is trained: with the same roles of parameters, on which decay and Muon's
    choice of matrices depend, and with the factors on its rates that its search had."""
    return replace(network, relative=scaled_by(network, {}, lr_scale).relative)


def _carry(
    chosen: _Chosen, target: Network, origins: Mapping[str, Network], rates: list[float], bar: Progress
) -> tuple[Carried, float]:
    """Apply the law: the factors on the learning rate, and the base's rate that they multiply."""
    bar.say(f"law {chosen.law.name}")
    if chosen.absolute:
        with about("target"):
            carried = chosen.law.alone(target)
        assert carried.absolute is not None
        return carried, number(carried.absolute.log_rate)
    return chosen.law.carry(origins, target, about), math.prod(rates) ** (1 / len(rates))


def _expected(target: Network, origins: Mapping[str, Network], rates: list[float]) -> float | None:
    """Where the target's rate is expected before anything is measured: where the closed form carries the first base's
    to; the base's own where it has no answer."""
    if not origins:
        return rates[0] if rates else None
    base, closed = next(iter(origins.values())), LAWS["covariance"]
    if not closed.covers(target.recipe.optimizer):
        return rates[0]
    try:
        return rates[0] * closed.carry({"base": base}, target, about).alone(0)
    except DagscaleError:
        return rates[0]


# --- the plan --------------------------------------------------------------------------------------------------


def _built(
    chosen: _Chosen,
    target: Network,
    carried: Carried,
    start: float,
    parts: Mapping[str, Scaling],
    meant: Collection[str],
    sure: Certainty,
    origin: Iterable[str] = (),
) -> Plan:
    """Put everything that was found into a `Plan`.

    Args:
        origin: notes on where the rate comes from.
    """
    factors = carried.factors
    lr = start * math.prod(factors.values())
    if not (math.isfinite(lr) and lr > 0):
        raise PlanError(
            f"law {chosen.law.name!r} gives no usable rate here ({lr}): its factors are {factors}; try another law"
        )
    graph = target.graph
    parameters = {}
    for p in graph.parameters:
        fill, own = target.fills.get(p.name) if p.trainable else None, target.relative.get(p.name, Relative())
        mean, std = (None, None) if fill is None else (fill.mean, fill.std)
        parameters[p.name] = ParameterPlan(p.shape, mean, std, **{**asdict(own), "lr": lr * own.lr})
    notes = (
        *origin,
        *chosen.notes,
        *_notes(graph, parameters, chosen.init, target.kept),
        *(() if target.model is None else notes_on(target.model, graph, target.fills, meant, chosen.init.name)),
        *(
            f"{_listed(names, most=3)}: {note}"
            for note, names in noted(parts).items()
            if any(graph.parameter[name].reached for name in names)  # of the others there is a note above
        ),
        *_drawn_back(target, parts),
        *sure.notes,
    )
    live = target.recipe
    return Plan(
        lr, start, chosen.law.name, chosen.init.name, target.seed, live.describe(), factors, parameters, notes,
        sure.interval(lr), carried.forwards if chosen.law.measured else 0.0,
        chosen.width, chosen.depth, lr_errors=sure.errors, live=live,
    )  # fmt: skip


def _accuracy(chosen: _Chosen, target: Network, carried: Carried) -> Accuracy | None:
    """What is known of the law's error here: of a mean of which one part alone had an answer, that part's."""
    parts = [*carried.factors]
    alone = chosen.law.averaged and len(parts) == 1 and parts[0] in LAWS
    use = DEPTH_RULES[chosen.depth].use if chosen.depth != "none" else ""
    return accuracy(parts[0] if alone else chosen.law.name, target, alone=chosen.absolute, use=use)


def _found(base: Any, rate: float) -> Base | None:
    """The base, if a search has found its rate to be this one."""
    return base if isinstance(base, Base) and base.curve and base.lr == rate else None


def _in_place(bases: Sequence[Any], rates: Sequence[float]) -> Iterator[str]:
    """Notes on bases whose rate is told, and another than their search has found."""
    for one, rate in zip(bases, rates, strict=False):
        if isinstance(one, Base) and one.curve and one.lr != rate:
            yield f"base_lr {rate:.4g} in place of {one.lr:.4g}, the rate that the search of the base has found"


def _base_errors(chosen: _Chosen, found: Sequence[Base | None]) -> list[float]:
    """How far each base's rate is off, in octaves; of a rate that no search has found, what is usual."""
    return [] if chosen.absolute else [*map(base_error, found)] or [base_error(None)]


def _rate_scales(known: dict[str, str], lr_scale: Mapping[str, float]) -> dict[str, float]:
    """The factor of ``lr_scale`` on each parameter's rate; the product where several patterns match it."""
    found: dict[str, float] = {}
    for pattern, factor in lr_scale.items():
        factor = positive_number(f"lr_scale[{pattern!r}]", factor, PlanError)
        for name in named(known, pattern, "lr_scale"):
            found[name] = found.get(name, 1.0) * factor
    return found


def _origin(alone: Sequence[float], absolute: bool, power: float) -> Iterator[str]:
    """Notes on where the rate comes from: from no base; or from several, what each alone would give, and how far they
    bear the law out."""
    if absolute:
        yield "no base: the rate was measured on the network itself; two of three such rates are within a factor of 2"
    if len(alone) > 1:
        rates, apart = ", ".join(f"{rate:.4g}" for rate in alone), math.log2(max(alone)) - math.log2(min(alone))
        yield f"each base alone gives {rates}: {apart:.1f} octaves apart, what law and searches get wrong between them"
    if round(power, 2) != 1:
        yield f"between these bases the law's factors hold to the power {power:.2f}: they are taken so"


def _other_data(bases: Sequence[Any], target: Network) -> Iterator[str]:
    """Notes on bases that were searched on data whose examples are others."""
    recipe = target.recipe
    found = [one for one in bases if isinstance(one, Base) and not (one.live and one.live.data is recipe.data)]
    known = [one.data for one in found if one.data is not None and recipe.data is not None]
    for apart in dict.fromkeys("; ".join(unlike(data, Examples.of(recipe, target.graph))) for data in known):
        if apart:
            yield (
                f"the base was searched on other data than the target's: {apart}. Its best rate is known for its own "
                "data alone: search it on data like these"
            )


def _notes(
    graph: Graph, parameters: Mapping[str, ParameterPlan], init: Init, asked: Collection[str]
) -> tuple[str, ...]:
    notes = list(graph.notes)
    unreached = [p.name for p in graph.parameters if not p.reached]
    if unreached:
        notes.append(f"not on any input→output path, left as they are: {_listed(unreached)}")
    frozen = [p.name for p in graph.parameters if not p.trainable]
    if frozen:
        notes.append(f"frozen, left as they are and out of the parameter groups: {_listed(frozen)}")
    default = INITS[DEFAULT]
    if init is not default and _aims(graph, init) == _aims(graph, default) and not output_factors(graph):
        notes.append(f"init {init.name!r} is {DEFAULT!r} here: of the layers that it draws otherwise there are none")
    kept = [
        p.name
        for p in graph.parameters
        if p.reached and p.trainable and parameters[p.name].init_std is None and init.draws and p.name not in asked
    ]
    if kept:
        notes.append(f"left as the model drew them, since init {init.name!r} has no rule for them: {_listed(kept)}")
    added = tables(graph) if kept and not init.measured else set()
    if small := [name for name in kept if name in added]:
        notes.append(
            f"of these, added to signals of a size of about 1, and perhaps too small for that: {_listed(small)}; "
            "init 'moments' draws them as large as these where attention sees in both directions"
        )
    return tuple(notes)


def _aims(graph: Graph, init: Init) -> Mapping[str, float] | None:
    """The second moments that an init gives layers' outputs; None of one that does not measure them."""
    return init.moments(graph) if init.measured and init.moments is not None else None


def _drawn_back(target: Network, parts: Mapping[str, Scaling]) -> Iterator[str]:
    """A note on gains that are stored without their offset, begin at a multiple of it, and decay: towards the offset
    and not towards 0."""
    rule = target.recipe.no_decay
    if not target.recipe.weight_decay or callable(rule):
        return
    without = as_names(rule, known_names(target.relative, target.model))
    offset = offsets(target.graph)
    gains = [
        name
        for name, own in target.relative.items()
        if name in offset and name in parts and parts[name].factors.init != 1
        and own.weight_decay and not {name, own.role} & without
    ]  # fmt: skip
    if gains:
        yield (
            f"{_listed(gains, most=3)}: the model adds a number to it, which weight decay draws it back to, away "
            "from the multiple of that number that the rules begin with: leave it out of the decay, with "
            "no_decay=('norm', 'bias')"
        )


def _listed(names: Sequence[str], most: int = LISTED) -> str:
    """Names, repeats of a block in one, the first few of many."""
    rows = [row.name for row in fold_rows(names, [()] * len(names))]
    return ", ".join(rows[:most]) + (f", … ({len(names)} in all)" if len(rows) > most else "")
