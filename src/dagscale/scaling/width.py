"""Width: how each parameter's init and learning rate change from a base to a wider target (μP).

From two graphs alone. Of every weight layer two numbers count, the growth from base to target of

    m_in    the channels that one unit sums over (its fan-in without the kernel)
    m_out   its units

and the classes of [Yang et al. 2022, Tensor Programs V, Table 3] follow from which of them differs from 1.
``docs/how/width.md`` derives the rules and lists what they cannot do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from math import prod, sqrt
from operator import lt
from typing import Literal

from dagscale.errors import PlanError
from dagscale.graph import Graph, LayerUse
from dagscale.graph.repeats import pattern
from dagscale.graph.roles import Position, positions
from dagscale.registry import Registry
from dagscale.training.optimizers import Optimizer, resolve

WidthKind = Literal["input", "hidden", "output", "vector"]

ONE = Fraction(1)
MULTIPLIES = frozenset({"gain"})
NORM_CHAIN = frozenset({"norm", "scale", "shift", "pass"})

WidthRule = Callable[[float, float], float]
"""(m_in, m_out) → factor on the learning rate that keeps the change of the layer's output, per step, Θ(1)."""

WIDTH_RULES: Registry[WidthRule] = Registry("kind of step with a width rule")
"""By the kind of the optimiser's step, see `dagscale.training.optimizers.Optimizer`."""


@WIDTH_RULES.add("gradient")
def gradient_rule(m_in: float, m_out: float) -> float:
    """``m_out / m_in``: ``Δz_i = -η δ_i Σ_j x_j²``, with gradients ``δ_i`` like 1/units and ``m_in`` like terms."""
    return m_out / m_in


@WIDTH_RULES.add("sign")
@WIDTH_RULES.add("spectral")
@WIDTH_RULES.add("relative")
def sign_rule(m_in: float, m_out: float) -> float:
    """``1 / m_in``: ``Δz_i = -η Σ_j sign(δ_i x_j) x_j``, as many aligned terms of one size as there are inputs.

    Of spectral optimisers, what is no hidden matrix (`dagscale.scaling.spectral` has those). Of relative ones, whose
    steps have the weight's own size in them, before that is divided out.
    """
    return 1 / m_in


@dataclass(frozen=True, slots=True)
class WidthScaling:
    """Factors for one parameter of the target; all are 1 where the target is as wide as the base.

    Attributes:
        kind: ``input`` (fixed size → width), ``hidden`` (width → width), ``output`` (width → fixed size) or
            ``vector`` (biases, gains, depthwise kernels, and what does not act through a weight layer).
        width_mult: growth of the fan-in for ``hidden`` and ``output``, of the units for ``input`` and ``vector``.
        init: factor on the mean and standard deviation that the init rule gives *at the target*, for rules in
            standard parametrisation: weights ∝ fan_in^(-1/2) (He, LeCun, moments; a tied weight by its readout's
            fan-in), vectors independent of width.
        lr: factor on the learning rate.
        weight_decay: factor on the weight decay: ``1/lr``, so that AdamW's and SGD's shrinkage per step,
            learning rate × decay, is the same in every parameter and at every width.
        note: what a reader should know of this parameter; ``""`` mostly.
        eps: factor on an optimiser's eps, where it counts in units of the gradient: the gradient's own size, which
            falls like 1/units everywhere but in a readout.
    """

    kind: WidthKind
    width_mult: float
    init: float
    lr: float
    weight_decay: float
    note: str = ""
    eps: float = 1.0


@dataclass(frozen=True, slots=True)
class _Place:
    """A weight as a layer uses it: where it stands, and its sizes in channels.

    ``outer`` is the fan-in of the layer whose weight it makes from what is fixed; 0 where it meets a signal itself.
    """

    name: str
    op: str
    position: Position
    fan_in: int
    units: int
    groups: int
    outer: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.op, self.position

    @property
    def depthwise(self) -> bool:
        return self.groups == self.units > 1


@dataclass(frozen=True, slots=True)
class _Growth:
    """``m_in`` and ``m_out`` of one layer, and whether its groups grew with it."""

    fan_in: Fraction
    units: Fraction
    grouped: bool = False


def width_scaling(
    base: Graph, target: Graph, optimizer: Optimizer | str, *, mean_field: bool = False
) -> dict[str, WidthScaling]:
    """Class every parameter of ``target`` by what grows from ``base``, and give its μP factors.

    Layers are matched by name, then by name with every number wildcarded (``blocks.7`` with ``blocks.3``), each
    only where operator and position (reads the input, inner, readout) agree too; inputs and readouts, if nothing else
    fits, by these alone. A layer that the base lacks, or has at another place alone, which may connect other sizes
    (the second block of a stage whose only block in the base widens it), is read from the graph: the sizes it connects
    have grown as they have elsewhere.

    Args:
        base, target: traced graphs; the target may be deeper, narrower, or of another topology.
        optimizer: what is known of the optimiser, or its name.
        mean_field: the init rule gives readouts std ∝ 1/fan_in by itself (``in-degree`` does).

    Returns:
        Every parameter's first name → its factors.

    Raises:
        UnknownNameError: if there is no width rule for the optimiser's kind of step.
        OptimizerError: if that is unknown.
        PlanError: if base and target share no layer.
    """
    record = resolve(optimizer)
    step = record.known("step", "a width rule")
    rule = WIDTH_RULES[step]
    places = _places(target)
    growths, sizes = _grown(places, _places(base))
    scalings = {name: _weight(place, growths[name], rule, mean_field) for name, place in places.items()}
    for name, grown in _vectors(base, target, places, growths, scalings, sizes).items():
        scalings[name] = _scaling("vector", grown, ONE, grown, rule)
    scalings.update(_tied(target, growths, rule, mean_field))
    if step == "relative":
        decay = record.known("decay", "a width rule")
        scalings = {name: _relative(scaling, decay) for name, scaling in scalings.items()}
    nothing = WidthScaling("vector", 1.0, 1.0, 1.0, 1.0, "not on any input→output path")
    return {p.name: scalings.get(p.name, nothing) for p in target.parameters}


def width_growth(base: Graph, target: Graph) -> dict[str, tuple[float, float]]:
    """Every layer's weight in ``target`` → m_in and m_out, how its fan-in and its units have grown from ``base``.

    Raises:
        PlanError: if base and target share no layer.
    """
    growths, _ = _grown(_places(target), _places(base))
    return {name: (float(growth.fan_in), float(growth.units)) for name, growth in growths.items()}


def _grown(
    places: Mapping[str, _Place], origins: Mapping[str, _Place]
) -> tuple[dict[str, _Growth], dict[int, Fraction]]:
    """Growth of every layer, and of the sizes inside the network."""
    growths = _growths(places, origins)
    sizes = _sizes(places, growths)
    return {name: growths.get(name) or _inferred(place, sizes) for name, place in places.items()}, sizes


def _places(graph: Graph) -> dict[str, _Place]:
    """Each weight at its first use; a readout use counts before others, so that tied weights show as readouts."""
    found: dict[str, _Place] = {}
    for use, name, position in positions(graph):
        if name not in found or (position == "readout" and found[name].position != "readout"):
            found[name] = _place(use, name, graph.parameter[name].shape, position)
            within = (op for op in graph.edges[use.edge].ops if any(p.within is use.op for p in op.params))
            if (op := next(within, None)) is not None and op.layer is not None:
                found[name] = replace(found[name], outer=max(1, op.layer.fan_in // prod(op.layer.kernel)))
    return found


def _place(use: LayerUse, name: str, shape: tuple[int, ...], position: Position) -> _Place:
    layer, op = use.layer, use.op.name
    patch = prod(layer.kernel)
    convolution = bool(layer.kernel) and len(shape) == 2 + len(layer.kernel)
    if use.op.looks_up:
        fan_in, units = 1, layer.fan_out
    elif convolution and (layer.fan_in != shape[1] * patch or layer.fan_out != shape[0] * patch):
        fan_in, units = shape[0] // layer.groups, shape[1] * layer.groups  # transposed: (in, out/groups, *kernel)
    else:
        fan_in = max(1, layer.fan_in // patch)
        units = max(1, prod(shape) // (patch * fan_in))
    return _Place(name, op, position, fan_in, units, layer.groups)


def _growths(places: Mapping[str, _Place], origins: Mapping[str, _Place]) -> dict[str, _Growth]:
    """Growth of every layer that has a counterpart in the base."""
    growths: dict[str, _Growth] = {}
    shared = not any(p.position != "readout" for p in places.values())
    for name, place in places.items():
        alike = {n: p for n, p in origins.items() if p.key == place.key}
        match = nearest(name, alike)
        if match is None and place.position != "inner":
            match = next(iter(alike), None)
        if match is None:
            continue
        origin = alike[match]
        shared = shared or place.position != "readout"
        growths[name] = _growth(place, origin)
    if not growths or not shared:
        raise PlanError(
            f"a base and a target that share no layer: the base has {_listed(origins)}, the target {_listed(places)}; "
            "give a base of the same kind, narrower or shallower"
        )
    own, known = ({name: (p.fan_in, p.units) for name, p in found.items()} for found in (places, origins))
    varied = _varied(own, known)
    unsure = {n for n in _unsure(own, known, varied) & growths.keys() if places[n].position == "inner"}
    moved = _moved(places, origins, growths, unsure | varied)
    return growths | moved | _agreed(places, growths | moved, unsure - moved.keys())


Shapes = Mapping[str, tuple[int, ...]]


def _varied(own: Shapes, known: Shapes) -> set[str]:
    """Names in the target of places in a block at which the base has several shapes, and another number of them: there
    a number may mean another stage, as where the blocks of all stages are counted through."""
    counts = Counter(map(pattern, own))
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in known.items():
        shapes.setdefault(pattern(name), []).append(shape)
    places = {at for at, found in shapes.items() if len(set(found)) > 1 and len(found) != counts[at]}
    return {name for name in own if pattern(name) in places}


def _unsure(own: Shapes, known: Shapes, varied: Collection[str]) -> set[str]:
    """Names in the target whose counterpart in the base may be another thing, by the shapes of both.

    That is: where a number may mean another stage (`_varied`), and under the same names something is smaller than in
    the base; and a name that the base lacks, where the target's own bearer of the counterpart's name has another shape.
    """
    shrunk = {pattern(n) for n in varied if n in known and any(map(lt, own[n], known[n]))}
    matches = {name: nearest(name, known) for name in own}
    return {
        name
        for name, match in matches.items()
        if match is not None
        and ((name in varied and pattern(name) in shrunk) or (match != name and own.get(match) != own[name]))
    }


def _agreed(
    places: Mapping[str, _Place], growths: Mapping[str, _Growth], unsure: Collection[str]
) -> dict[str, _Growth]:
    """Growth of layers whose counterpart may be another, by the sizes that they connect.

    It is that of these sizes, where all other layers agree on it. A size that no other layer has (the inner one of a
    wider block) has grown beside what the layer reads as in the counterpart.
    """
    found = {}
    votes = _votes(places, {name: growth for name, growth in growths.items() if name not in unsure})
    for name in (n for n in places if n in unsure):
        place, growth = places[name], growths[name]
        fan_in, units = (_sole(votes, size) for size in (place.fan_in, place.units))
        if place.depthwise and units is not None:
            found[name] = _Growth(ONE, units, units != 1)
        elif place.groups == 1 and not place.outer and fan_in is not None:
            if place.units not in votes:
                units = growth.units * fan_in / growth.fan_in
                votes[place.units] = Counter([units])
            found[name] = _Growth(fan_in, growth.units if units is None else units)
    return found


def _sole(votes: Mapping[int, Counter[Fraction]], size: int) -> Fraction | None:
    """The growth of a size that all agree on; None where they do not, or nobody has it."""
    found = votes.get(size, ())
    return next(iter(found)) if len(found) == 1 else None


def _growth(place: _Place, origin: _Place) -> _Growth:
    """Growth of a layer from its counterpart's sizes.

    A weight that makes another layer's weight (a hypernetwork's last) is summed over in that layer as well: the larger
    growth of the two counts.
    """
    entries = Fraction(place.fan_in * place.units, origin.fan_in * origin.units)
    fan_in = Fraction(place.fan_in, origin.fan_in)
    if place.outer and origin.outer:
        fan_in = max(fan_in, Fraction(place.outer, origin.outer))
    return _Growth(fan_in, entries / fan_in, place.groups != origin.groups)


def _moved(
    places: Mapping[str, _Place], origins: Mapping[str, _Place], growths: Mapping[str, _Growth], others: Collection[str]
) -> dict[str, _Growth]:
    """Growth of inner layers whose name may mean another place, where depth has grown too: those with a number for a
    name (``5.weight`` of a flat sequence) of which there are more or fewer than in the base, and ``others``.

    Where the input's and the readout's side have grown alike, by M, and the layer's sizes over M are sizes that the
    base has, it has grown by M on both sides.
    """
    ends = {
        (growth.units if places[name].position == "input" else growth.fan_in)
        for name, growth in growths.items()
        if places[name].position != "inner"
    }
    if len(ends) != 1 or sum(p.position == "inner" for p in places.values()) == sum(
        p.position == "inner" for p in origins.values()
    ):
        return {}
    (grown,) = ends
    sizes = {size for p in origins.values() for size in (p.fan_in if p.position != "input" else p.units, p.units)}
    counts, known = Counter(map(pattern, places)), Counter(map(pattern, origins))
    shapes: dict[str, set[tuple[int, int]]] = {}
    for name, place in places.items():
        shapes.setdefault(pattern(name), set()).add((place.fan_in, place.units))
    counted = {at for at, found in shapes.items() if len(found) > 1 and counts[at] != known[at]}
    found = {}
    for name, growth in growths.items():
        place = places[name]
        numbered = name.removesuffix(".weight").rpartition(".")[2].isdigit() and pattern(name) in counted
        if place.position != "inner" or not (numbered or name in others):
            continue
        if place.depthwise and place.units / grown in sizes:
            found[name] = _Growth(ONE, grown, grown != 1)
        elif {place.fan_in / grown, place.units / grown} <= sizes and (numbered or place.groups == 1):
            found[name] = _Growth(grown, grown, growth.grouped)
    return found


def nearest(name: str, names: Collection[str]) -> str | None:
    """The same name, else the one that differs in numbers only, and there least, earlier numbers first."""
    if name in names:
        return name
    alike, numbers = _numbered(name)
    near = [
        (tuple(abs(a - b) for a, b in zip(numbers, _numbered(n)[1], strict=True)), n)
        for n in names
        if pattern(n) == alike
    ]
    return min(near)[1] if near else None


@lru_cache(maxsize=1 << 14)
def _numbered(name: str) -> tuple[str, tuple[int, ...]]:
    return pattern(name), tuple(map(int, re.findall(r"\d+", name)))


def _listed(places: Mapping[str, _Place]) -> str:
    names = [f"{p.name} ({p.op})" for p in places.values()]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") or "no weight layer"


def _sizes(places: Mapping[str, _Place], growths: Mapping[str, _Growth]) -> dict[int, Fraction]:
    """The target's sizes inside the network → how much they have grown; under 0 what to take for any other size."""
    sizes = {size: count.most_common(1)[0][0] for size, count in _votes(places, growths).items()}
    grown = sorted(m for m in sizes.values() if m != 1)
    sizes[0] = grown[len(grown) // 2] if grown else ONE
    return sizes


def _votes(places: Mapping[str, _Place], growths: Mapping[str, _Growth]) -> dict[int, Counter[Fraction]]:
    """The target's sizes inside the network → by how much layers say that they have grown, and how many say so."""
    votes: dict[int, Counter[Fraction]] = {}
    for name, growth in growths.items():
        place = places[name]
        if place.outer:
            continue
        if place.position != "input" and place.groups == 1:
            votes.setdefault(place.fan_in, Counter())[growth.fan_in] += 1
        if place.position != "readout":
            votes.setdefault(place.units, Counter())[growth.units] += 1
    return votes


def _inferred(place: _Place, sizes: Mapping[int, Fraction]) -> _Growth:
    """Growth of a layer without a counterpart, from the sizes that it connects."""
    grouped = place.groups > 1 and sizes.get(place.groups, ONE) != 1
    fan_in = ONE if grouped or place.position == "input" else sizes.get(place.fan_in, sizes[0])
    return _Growth(fan_in, ONE if place.position == "readout" else sizes.get(place.units, sizes[0]), grouped)


def _weight(place: _Place, growth: _Growth, rule: WidthRule, mean_field: bool) -> WidthScaling:
    """The class of a weight, and its factors."""
    m_in, m_out, note = growth.fan_in, growth.units, ""
    kind: WidthKind
    if place.position == "readout":
        if m_in != m_out or m_in == 1:
            kind, m_out = "output", ONE  # a change in the number of classes is no width
        else:
            kind, note = "hidden", "the model's output grows with its width: taken for features, not for a readout"
    elif growth.grouped and m_in == 1:
        kind = "vector"
    elif place.position == "input":
        kind = "hidden" if m_in == m_out != 1 else "input"
    elif m_in != 1 and m_out == 1:
        kind, note = "output", "maps the width to a fixed size inside the network: scaled as a readout"
    else:
        kind = "input" if m_in == 1 and m_out != 1 else "hidden"
    init = 1 / sqrt(m_in) if kind == "output" else 1.0
    if mean_field and place.position == "readout":
        init *= sqrt(m_in)
    return _scaling(kind, m_in if kind in ("hidden", "output") else m_out, m_in, m_out, rule, init, note)


def _scaling(
    kind: WidthKind,
    width_mult: Fraction,
    m_in: Fraction,
    m_out: Fraction,
    rule: WidthRule,
    init: float = 1.0,
    note: str = "",
) -> WidthScaling:
    lr = rule(float(m_in), float(m_out))
    return WidthScaling(kind, float(width_mult), init, lr, 1 / lr, note, float(1 / m_out))


def _relative(scaling: WidthScaling, decay: str) -> WidthScaling:
    """For a step that is relative to the parameter's own size: that size's growth is divided out of the rate.

    It grows like fan-in^-½ in hidden weights, like 1/fan-in in readouts, and in all else as its init says.
    """
    m = scaling.width_mult
    grown = {"hidden": m**-0.5, "output": 1 / m, "vector": scaling.init, "input": 1.0}[scaling.kind]
    lr = scaling.lr / grown
    return replace(scaling, lr=lr, weight_decay=1 / grown if decay == "normalised" else 1 / lr)


def _vectors(
    base: Graph,
    target: Graph,
    places: Mapping[str, _Place],
    growths: Mapping[str, _Growth],
    scalings: Mapping[str, WidthScaling],
    sizes: Mapping[int, Fraction],
) -> dict[str, Fraction]:
    """Growth of every parameter that is no layer's weight: as its layer's units, else by name, else by size."""
    found: dict[str, Fraction] = {}
    known = {p.name: p.shape for p in base.parameters}
    own = {p.name: p.shape for p in target.parameters}
    varied = _varied(own, known)
    unsure = varied | _unsure(own, known, varied)
    votes = _votes(places, growths)
    for edge, live in zip(target.edges, target.live, strict=True):
        layer: str | None = None
        for op in edge.ops if live else ():
            names = [use.name for use in op.params if use.name in target.parameter]
            layer = next((n for n in names if n in places), layer if op.layer is None else None)
            for name in names:
                if name in places or name in found:
                    continue
                shape = target.parameter[name].shape
                if layer is not None and prod(shape) == places[layer].units:
                    found[name] = ONE if scalings[layer].kind == "output" else growths[layer].units
                elif name in unsure and len(shape) == 1 and (grown := _sole(votes, shape[0])) is not None:
                    found[name] = grown
                else:
                    match = nearest(name, [n for n, s in known.items() if len(s) == len(shape)])
                    ratios = [sizes.get(n, ONE) for n in shape]
                    if match is not None:
                        ratios = _widths(base, target, match, name, votes)
                    found[name] = next((m for m in reversed(ratios) if m != 1), ONE)
    return found


def _widths(
    base: Graph, target: Graph, match: str, name: str, votes: Mapping[int, Counter[Fraction]]
) -> list[Fraction]:
    """Growth of each dimension from the counterpart's, where it has grown as sizes of layers have; else 1.

    A size that no layer has, such as a number of heads, counts where some layers' sizes have grown as much. A number of
    places that grows by itself is no width, and neither is a number of rows of which each block uses its own.
    """
    shape, origin = target.parameter[name].shape, base.parameter[match].shape
    some = frozenset().union(*votes.values())
    ratios = [Fraction(t, b) if b else ONE for t, b in zip(shape, origin, strict=True)]
    ratios = [m if m in votes.get(size, some) else ONE for m, size in zip(ratios, shape, strict=True)]
    if shape and ratios[0] != 1 and shape[0] not in votes:
        uses = [(_uses(base, match), origin[0]), (_uses(target, name), shape[0])]
        if all(n % rows == 0 for n, rows in uses) and uses[0][0] * shape[0] == uses[1][0] * origin[0]:
            ratios[0] = ONE
    return ratios


def _tied(graph: Graph, growths: Mapping[str, _Growth], rule: WidthRule, mean_field: bool) -> dict[str, WidthScaling]:
    """Weights that are embedding and readout at once, with the gain that stands in for the output multiplier.

    As an embedding the weight wants entries and steps of Θ(1); as a readout it then needs a factor 1/m before it,
    which μP puts into the forward. Where a norm with a gain feeds the readout and nothing else, that gain times 1/m
    is the same function. Its rate is 1/m under every optimiser here: Adam's steps shrink with the value;
    under SGD the gain's own m meets 1/m for the value and 1/m for the gradient.
    """
    uses = list(positions(graph))
    embedded = {name for _, name, position in uses if position == "input"}
    found: dict[str, WidthScaling] = {}
    for use, name, position in uses:
        if position != "readout" or name not in embedded or name in found or growths[name].fan_in == 1:
            continue
        m = growths[name].fan_in
        before = norm_before(graph, use)
        if before is None:
            note = (
                "embedding and readout at once, and no norm gain feeds the readout: scaled as a readout, so that "
                "nothing blows up, but the embedding fades like 1/width; untie them, or put a norm before the readout"
            )
            init = 1.0 if mean_field else 1 / sqrt(m)
            found[name] = _scaling("output", m, m, ONE, rule, init, note)
            continue
        note = f"embedding and readout at once: scaled as an embedding, {before[0]} is divided by the width multiplier"
        found[name] = _scaling("input", m, ONE, m, rule, float(m) if mean_field else sqrt(m), note)
        for vector in before:
            note = f"carries the output multiplier 1/{float(m):g} of the tied readout {name}"
            found[vector] = WidthScaling("vector", float(m), float(1 / m), float(1 / m), float(m), note)
    return found


def norm_before(graph: Graph, use: LayerUse) -> tuple[str, ...] | None:
    """The gain, and the bias after it, of the norm whose output only the readout reads; None if there is none."""
    ops = graph.edges[use.edge].ops
    after: list[str] = []
    for op in reversed(ops[: next(i for i, o in enumerate(ops) if o is use.op)]):
        if op.kind not in NORM_CHAIN:
            return None
        if not all(p.scales for p in op.params):
            return None
        gains = [p.name for p in op.params if p.role in MULTIPLIES]
        after = [*gains, *(p.name for p in op.params if p.role not in MULTIPLIES), *after]
        if gains:
            once = all(_uses(graph, name) == 1 for name in after)
            return tuple(after) if once and len(gains) == 1 else None
    return None


def _uses(graph: Graph, name: str) -> int:
    """How many ops use a parameter."""
    return sum(use.name == name for edge in graph.edges for op in edge.ops for use in op.params)


__all__ = [
    "WIDTH_RULES", "WidthKind", "WidthRule", "WidthScaling", "nearest", "pattern", "width_growth", "width_scaling",
]  # fmt: skip
