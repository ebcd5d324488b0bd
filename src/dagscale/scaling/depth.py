"""Depth: how each parameter's settings change from a base to a deeper network.

The published rules are for residual networks and write a multiplier into the model, ``x + m^-α f(x)``, where m is the
growth of the number of residual additions. Here it is folded into the last layer of each branch
(:mod:`dagscale.scaling.folding`), so that the model stays as it is. Networks without branches have a rule of their own,
``plain``. ``docs/how/depth.md`` has the tables, their sources and what is recognised.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from dagscale.errors import GraphError, PlanError
from dagscale.graph.branches import BlockType, Branch, Residuals, find_branches
from dagscale.graph.model import Graph
from dagscale.graph.plain import find_plain
from dagscale.graph.repeats import pattern
from dagscale.graph.roles import positions
from dagscale.registry import Registry
from dagscale.scaling.folding import Factors, fold
from dagscale.scaling.width import nearest
from dagscale.training.optimizers import Optimizer

BranchRule = Callable[[Optimizer, float, float], Factors]
"""(optimiser, m, α) → what a parameter inside a branch takes in a model that has the multiplier m^-α in its code."""


@dataclass(frozen=True, slots=True)
class DepthEntry:
    """A depth rule.

    Attributes:
        scale: (base's graph, target's, optimiser, α, what the target's own init does already) → every parameter's
            factors, see :func:`depth_scaling`.
        alpha: kind of step → the α that it takes by default; empty for a rule without one.
        free: whether α may be chosen.
        use: what the recorded errors of laws call a rate that it is carried over with (`dagscale.laws.accuracy`), where
            they are told apart from those of other rules; "" otherwise.
    """

    scale: Callable[[Graph, Graph, Optimizer, float, Mapping[str, float]], dict[str, DepthScaling]]
    alpha: Mapping[str, float]
    free: bool = True
    use: str = ""


DEPTH_RULES: Registry[DepthEntry] = Registry("depth rule")


NOTHING = Factors()
NONE_OF_ITS_OWN: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class DepthScaling:
    """What one parameter of the target takes for depth; all 1 outside of what has grown.

    Attributes:
        factors: on init, rate, eps and weight decay.
        depth_mult: m, the growth of the number of residual additions on its trunk, or of layers in a row; 1 in a branch
            that does not recur.
        fold: the power of the multiplier that is folded into it: c, 1/c or 1. Its gradient is 1/fold of the edited
            model's, which :func:`dagscale.clip_grad_norm_` takes into account.
        note: what a reader should know of it; ``""`` mostly.
    """

    factors: Factors = NOTHING
    depth_mult: float = 1.0
    fold: float = 1.0
    note: str = ""


def depth_scaling(
    base: Graph,
    target: Graph,
    optimizer: Optimizer,
    rule: str = "completep",
    alpha: float | None = None,
    own: Mapping[str, float] = NONE_OF_ITS_OWN,
) -> dict[str, DepthScaling]:
    """The factors of a depth rule on every parameter of ``target``, by first name.

    Args:
        base, target: traced graphs; the target may be shallower.
        optimizer: how both are trained.
        rule: ``completep``, ``completedp``, ``depth-mup``, ``plain`` or another that is registered.
        alpha: the branches' multiplier is m^-α; the rule's own by default (1, and ½ under SGD).
        own: what the target's own init already multiplies parameters in branches by, compared with the base's
            (:func:`own_scaling`); only where that init is kept. It is taken back, so that the rule's factor is left.

    Raises:
        UnknownNameError: for a rule that is not registered.
        OptimizerError: if nothing is known of the optimiser's step or decay.
        PlanError: for an α outside [½, 1]; for rules on branches, a base without branches where the target has some,
            branches of another type or on other trunks, additions whose trunk cannot be told, or branches none of which
            can be folded; for ``plain``, networks that are not.
    """
    entry = DEPTH_RULES[rule]
    step = optimizer.known("step", f"depth={rule!r}")
    return entry.scale(base, target, optimizer, _alpha(rule, entry, step, alpha), own)


def branch_scaling(
    rule: BranchRule, base: Graph, target: Graph, optimizer: Optimizer, alpha: float, own: Mapping[str, float]
) -> dict[str, DepthScaling]:
    """The factors of a rule for residual branches; see :func:`depth_scaling`."""
    ours, theirs = find_branches(target), find_branches(base)
    growth = _growth(theirs, ours)
    found: dict[str, DepthScaling] = {p.name: DepthScaling() for p in target.parameters}
    for branch in ours.branches:
        m = growth[branch.addition]
        if m == 1 and not any(name in own for name in (*branch.ends, *branch.inside)):
            continue
        if branch.note:
            note = f"in a residual branch that no multiplier can be folded into, because {branch.note}: left as it is"
            for name in branch.inside:
                if found[name] == DepthScaling():
                    found[name] = DepthScaling(depth_mult=m, note=note)
            continue
        c = m**-alpha
        back = "" if m >= 1 else "; the base is the deeper one, and what is known of the rule is for deeper targets"
        inside = rule(optimizer, m, alpha)
        at_end = inside * fold(optimizer, c)
        undone = inside * fold(optimizer, 1 / c)
        for name in (*branch.ends, *branch.inside):
            if found[name] != DepthScaling():
                continue  # of a branch within this one, or shared between blocks
            rest = Factors(init=1 / own.get(name, 1.0))
            if name in branch.ends:
                found[name] = DepthScaling(
                    at_end * rest, m, c, f"end of a residual branch: carries its multiplier {c:.4g}{back}"
                )
            elif name in branch.undone:
                note = f"reads a branch's end: takes back its multiplier {c:.4g}"
                found[name] = DepthScaling(undone * rest, m, 1 / c, note)
            else:
                found[name] = DepthScaling(inside * rest, m)
    for name in _outside(target, ours) & {n for n, s in found.items() if s.fold == 1 and s != DepthScaling()}:
        found[name] = DepthScaling(note="used both inside a residual branch and outside: scaled as outside")
    found |= _of_whole_blocks(base, target, ours, growth, lambda m: rule(optimizer, m, alpha))
    grown = {branch.trunk for branch in ours.branches if growth[branch.addition] != 1}
    once = (b for b in ours.branches if growth[b.addition] == 1 and b.trunk in grown)
    left = {name: "in a residual branch that does not recur: left as it is" for b in once for name in b.ends + b.inside}
    joined = (p.name for e in ours.joined for op in target.edges[e].ops for p in op.params)
    left |= dict.fromkeys(joined, "added to a trunk that it does not come from: left as it is")
    places = {pattern(name) for b in ours.branches if b.trunk in grown for name in (*b.ends, *b.inside)}
    summed = (e for v in ours.unclear for e in target.in_edges[v])
    names = (p.name for e in summed for op in target.edges[e].ops for p in op.params if pattern(p.name) in places)
    left |= dict.fromkeys(names, "added where no operand can be told to be the trunk: left as it is")
    ends = {pattern(name) for b in ours.branches if growth[b.addition] != 1 for name in b.ends}
    first = (name for name in ours.begun if pattern(name) in ends)
    left |= dict.fromkeys(first, "in the first block of a trunk that begins as parameters: left as it is")
    return found | {name: DepthScaling(note=note) for name, note in left.items() if found[name] == DepthScaling()}


def _of_whole_blocks(
    base: Graph, target: Graph, ours: Residuals, growth: Mapping[int, float], rule: Callable[[float], Factors]
) -> dict[str, DepthScaling]:
    """What parameters take that go to several branches of a trunk, as the layer that modulates attention and MLP of one
    block: the same as inside a branch, where there are as many more of them as of blocks. One that goes to all blocks
    takes nothing, as an embedding."""
    counts = [Counter(pattern(p.name) for p in graph.parameters) for graph in (base, target)]
    inside = {pattern(name) for branch in ours.branches for name in (*branch.ends, *branch.inside)}
    found = {}
    for trunk, names in ours.shared.items():
        growths = {growth[b.addition] for b in ours.branches if b.trunk == trunk} - {1.0}
        places = Counter(map(pattern, names))
        for name in names:
            place = pattern(name)
            before, after = (count[place] for count in counts)
            if not growths or after == before:
                continue
            if {after / before if before else 0.0} == growths and places[place] == after:
                (m,) = growths
                found[name] = DepthScaling(rule(m), m)
            elif places[place] == after or place in inside:
                found[name] = DepthScaling(note="goes to several residual branches of a trunk: left as it is")
    return found


def branch_rule(name: str, *, gradient: float, other: float, free: bool = True) -> Callable[[BranchRule], BranchRule]:
    """Decorator: register a depth rule for residual branches.

    Args:
        gradient, other: its α for optimisers whose step is like the gradient, and for all others.
        free: whether α may be chosen, between ½ and 1.
    """

    def put(rule: BranchRule) -> BranchRule:
        alpha = {"gradient": gradient, "sign": other, "spectral": other, "relative": other}
        DEPTH_RULES.add(name)(DepthEntry(partial(branch_scaling, rule), alpha, free))
        return rule

    return put


@branch_rule("completep", gradient=0.5, other=1.0)
@branch_rule("completedp", gradient=0.5, other=1.0)
@branch_rule("depth-mup", gradient=0.5, other=0.5, free=False)
def inside_branches(optimizer: Optimizer, m: float, alpha: float) -> Factors:
    """Rate and eps that keep what m times as many branches change together, per step, as it was.

    A branch's gradients carry its multiplier ``m^-α``, and so does its share of the output. Steps that do not have the
    gradient's size in them therefore move the output by ``m · m^-α · η``, and steps along the gradient by
    ``m · m^-2α · η``; eps counts in units of the gradient.
    [CompleteP: Dey et al. 2025, arXiv 2505.01618, Table 1 and Eq. 40. Complete(d)P: arXiv 2512.22382, Table 1, with the
    same powers of m. Depth-μP: Yang et al. 2023, arXiv 2310.02244, and Bordelon et al. 2023, arXiv 2309.16620,
    are the case α = ½.]
    """
    if optimizer.step == "gradient":
        return Factors(lr=m ** (2 * alpha - 1))
    return Factors(lr=m ** (alpha - 1), eps=m**-alpha if optimizer.eps else 1.0)


def plain_scaling(
    base: Graph, target: Graph, optimizer: Optimizer, alpha: float, own: Mapping[str, float]
) -> dict[str, DepthScaling]:
    """Layers that stand behind one another share what a step may change: the inner ones take the rate over m.

    m is the growth of the number of layers before the readout. One step of rate η changes what each inner layer makes
    of its input by a part that goes as η and not as the depth. If signals and gradients keep their size, the parts of D
    layers add up to D η, so that 1/m of the rate changes about as much as in the base. The first layers and the
    readouts are as many as they were and keep their rate. Rate × decay stays as it was.
    [Derived here; how far it holds is measured in ``docs/evidence/plain.md``.]
    """
    if optimizer.step == "gradient":
        raise PlanError(
            f"depth='plain' is for steps that do not grow with the gradient, as Adam's, and not for {optimizer.name}: "
            "leave depth= out, and plan with data or law 'covariance'"
        )
    found = {}
    for name, graph in (("base", base), ("target", target)):
        try:
            found[name] = find_plain(graph)
        except GraphError as error:
            raise PlanError(
                f"depth='plain' is for layers behind one another, and the {name} is not so: {error}; residual networks "
                "have depth='completep'"
            ) from None
    ours, theirs = found["target"], found["base"]
    if theirs.depth == 0:
        raise PlanError("the base has no layer before its readout, so that depth has no measure: give a deeper base")
    m = ours.depth / theirs.depth
    back = "" if m >= 1 else "; the base is the deeper one, and what is known of the rule is for deeper targets"
    decay = 1.0 if optimizer.known("decay", "depth='plain'") == "coupled" else m
    scaled = DepthScaling(Factors(lr=1 / m, weight_decay=decay), m, note=f"one of {ours.depth} layers in a row{back}")
    return {p.name: scaled if m != 1 and p.name in ours.inner else DepthScaling() for p in target.parameters}


DEPTH_RULES.add("plain")(DepthEntry(plain_scaling, {}, use="plain depth"))


def _alpha(rule: str, entry: DepthEntry, step: str, alpha: float | None) -> float:
    if not entry.alpha:
        if alpha is not None:
            raise PlanError(f"depth={rule!r} has no α: leave it out")
        return 1.0
    default = entry.alpha[step]
    if alpha is None or alpha == default:
        return default
    if not entry.free:
        raise PlanError(f"depth={rule!r} has α = {default:g}, not {alpha:g}: leave alpha out, or use 'completep'")
    if not 0.5 <= alpha <= 1:
        raise PlanError(
            f"α = {alpha:g}: a branch's multiplier is m^-α with α between ½ (the sum of the branches neither grows nor "
            "fades at initialisation) and 1 (nor does what they learn)"
        )
    return alpha


def _growth(base: Residuals, target: Residuals) -> dict[int, float]:
    """Growth of the number of residual additions, for each addition of the target, see :func:`_recurring`."""
    for name, found, other in (("target", target, base), ("base", base, target)):
        if found.unclear and (len(found.unclear) != len(other.unclear) or not found.branches):
            raise PlanError(
                f"the {name} has {len(found.unclear)} additions of which no operand can be told to be the trunk (the "
                f"first is vertex {found.unclear[0]} of its graph): a depth rule is for residual blocks, x + f(x)"
            )
    if not target.branches:
        raise PlanError(
            "the target has no residual branch: this depth rule is for residual blocks, x + f(x); for layers behind "
            "one another give depth='plain'"
        )
    if not base.branches:
        raise PlanError(
            f"the base has no residual branch and the target has {len(target.branches)}: give a base of the same blocks"
        )
    kinds = {branch.kind for branch in base.branches}
    strange = next((b for b in target.branches if b.kind not in kinds), None)
    if strange is not None:
        first = (*strange.ends, *strange.inside)[0] if strange.ends or strange.inside else f"vertex {strange.addition}"
        raise PlanError(
            f"the target has residual branches ({first} is in one) of a type that the base has none of: "
            f"{_listed({strange.kind})}, against {_listed(kinds)}; give a base of the same blocks"
        )
    if all(branch.note for branch in target.branches):
        raise PlanError(f"no residual branch can be multiplied from outside, because {target.branches[0].note}")
    before, after = _alike(base), _alike(target)
    growth: dict[int, float] = {}
    for blocks, trunks in after.items():
        counts = [_places(base, t) for t in before.get(blocks, ())]
        if len(counts) != len(trunks) and len({count.total() for count in counts}) == 1:
            counts = counts[:1] * len(trunks)
        if len(counts) != len(trunks):
            raise PlanError(
                f"the target has {len(trunks)} residual trunks (chains of residual additions) of {_listed(blocks)}, "
                f"the base {len(before.get(blocks, ()))}: give a base of the same structure"
            )
        for trunk, count in zip(trunks, counts, strict=True):
            grown = _recurring(count, _places(target, trunk))
            growth.update({b.addition: grown[_place(b)] for b in target.branches if b.trunk == trunk})
    return growth


Place = tuple[BlockType, str]
"""A branch's block type, and the name of its end (or its first parameter) with numbers left open."""


def _place(branch: Branch) -> Place:
    return branch.kind, pattern(next(iter((*branch.ends, *branch.inside)), ""))


def _places(found: Residuals, trunk: int) -> Counter[Place]:
    """How often each place stands on a trunk, in the block too that finds no signal on it yet."""
    count = Counter(_place(branch) for branch in found.branches if branch.trunk == trunk)
    begun = Counter(map(pattern, found.begun))
    return Counter({place: n + begun[place[1]] for place, n in count.items()})


def _recurring(base: Counter[Place], target: Counter[Place]) -> dict[Place, float]:
    """Growth of each place of a trunk.

    A branch that both have once, however deep they are (positions that a convolution makes, a block in the stem or in
    the head), is one summand beside those of the stack, as an embedding is: it has not grown, and does not count in
    the growth of the others. Where the others have not all grown alike (layers of another kind among them), the whole
    trunk has grown by the number of its additions.
    """
    grown = {place for place in (*base, *target) if base[place] != target[place]}
    ratios = {Fraction(target[place], base[place]) for place in grown if base[place]}
    if len(ratios) == 1 and all(base[place] and target[place] for place in grown):
        return {place: float(*ratios) if place in grown else 1.0 for place in target}
    return dict.fromkeys(target, target.total() / base.total())


def _alike(found: Residuals) -> dict[frozenset[BlockType], list[int]]:
    """A mapping from sequences of block types to the trunks that consist of them."""
    kinds: dict[int, set[BlockType]] = {}
    for branch in found.branches:
        kinds.setdefault(branch.trunk, set()).add(branch.kind)
    alike: dict[frozenset[BlockType], list[int]] = {}
    for trunk, blocks in kinds.items():
        alike.setdefault(frozenset(blocks), []).append(trunk)
    return alike


def _listed(kinds: Iterable[BlockType]) -> str:
    return "; ".join(
        sorted(
            f"{depth} deep in {' and '.join(sorted(names)) or 'no layer'}{' with a product' if product else ''}"
            for depth, names, product in kinds
        )
    )


def _outside(graph: Graph, found: Residuals) -> set[str]:
    """The parameters that act outside every branch too."""
    within = {e for branch in found.branches for e in branch.edges}
    return {
        p.name
        for e, edge in enumerate(graph.edges)
        if graph.live[e] and e not in within
        for op in edge.ops
        for p in op.params
    }


def own_scaling(
    base: Graph, target: Graph, base_rms: Mapping[str, float], target_rms: Mapping[str, float]
) -> dict[str, float]:
    """What the target's own init multiplies the parameters of its branches by, compared with the base's.

    GPT-2 and Megatron draw a branch's last layer with a standard deviation that is ``1/√(2L)`` of the others': between
    a base and a target that is m times as deep, this is ``m^-½``, and of a rule's ``m^-α`` only ``m^(½-α)`` is left to
    apply. T-Fixup [Huang et al. 2020] and DeepNorm [Wang et al. 2022, arXiv 2203.00555] scale the values and both
    layers of an MLP by ``L^-¼``, Fixup [Zhang et al. 2019, arXiv 1901.09321] all but a branch's last layer, which it
    starts at 0. Zeros are left out: they stay under any factor.

    Weights of one place in their blocks are compared together. Where widths have grown, weights follow their fan-in or
    do not: that which leaves one place nearest to where it was is taken.

    Args:
        base_rms, target_rms: the root mean square of every parameter as the model's own init draws it.

    Returns:
        The factors by name, where they differ from 1 by more than chance.
    """
    branches = find_branches(target).branches
    names = dict.fromkeys(name for b in branches for name in (*b.ends, *b.inside) if _is_matrix(target, name))
    if not any(_is_matrix(target, n) and target_rms[n] > 0 for b in branches for n in b.ends):  # gains, zeros
        names |= dict.fromkeys(name for b in branches for name in b.ends)
    places: dict[str, list[tuple[str, str]]] = {}
    known = [p.name for p in base.parameters]
    for name in names:
        match = nearest(name, known)
        if match is not None and target_rms[name] > 0 and base_rms[match] > 0:
            places.setdefault(pattern(name), []).append((name, match))
    logs = {p: _log_mean([target_rms[n] / base_rms[m] for n, m in pairs]) for p, pairs in places.items()}
    found = {
        name: math.exp(growth)
        for place, growth in _beside_width(base, target, logs, places).items()
        if abs(growth) > 5 * _by_chance(base, target, places[place])
        for name, _ in places[place]
    }
    for branch in branches:  # an end's bias goes with its weight
        scaled = [found[name] for name in branch.ends if name in found]
        found.update({name: scaled[0] for name in branch.ends if scaled and name not in names})
    return found


def _beside_width(
    base: Graph, target: Graph, logs: Mapping[str, float], places: Mapping[str, list[tuple[str, str]]]
) -> dict[str, float]:
    """Place → the logarithm of its growth beside what the width does to it, see :func:`own_scaling`.

    Args:
        logs: place → the logarithm of its growth.
        places: place → its parameters in the target, each with the one of the base that it is compared with.
    """
    ours, theirs = _fan_in(target), _fan_in(base)
    widths = {p: _log_mean([ours.get(n, 1) / theirs.get(m, 1) for n, m in pairs]) for p, pairs in places.items()}
    ways = ({p: logs[p] + share * widths[p] for p in places} for share in (0.0, 0.5))
    return min(ways, key=lambda way: min(map(abs, way.values()), default=0.0))


def _by_chance(base: Graph, target: Graph, pairs: list[tuple[str, str]]) -> float:
    """Standard error of the logarithm of a place's growth, of entries that are normal and independent."""
    ours, theirs = map(set, zip(*pairs, strict=True))
    entries = [sum(graph.parameter[n].numel for n in names) for graph, names in ((target, ours), (base, theirs))]
    return math.sqrt(sum(1 / (2 * n) for n in entries))


def _is_matrix(graph: Graph, name: str) -> bool:
    return len(graph.parameter[name].shape) > 1


def _fan_in(graph: Graph) -> dict[str, int]:
    """Layer's weight → its fan-in."""
    return {name: use.layer.fan_in for use, name, _ in positions(graph)}


def _log_mean(values: list[float]) -> float:
    return sum(map(math.log, values)) / len(values)


__all__ = ["DEPTH_RULES", "BranchRule", "DepthEntry", "DepthScaling", "branch_rule", "depth_scaling", "own_scaling"]
