"""A family of models that grows: its members, what it grows in, and the classes of its layers."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dagscale.errors import CheckError, DagscaleError
from dagscale.graph import Graph
from dagscale.graph.paths import path_sums
from dagscale.inits import INITS
from dagscale.network import Network
from dagscale.planning.prepare import shown_by
from dagscale.scaling.width import pattern
from dagscale.tracing import forward, trace
from dagscale.training.copies import HALF
from dagscale.training.recipe import Recipe

Pair = tuple[nn.Module, Any]
Family = Iterable[Pair | nn.Module] | Callable[[Any], Pair]
Kind = Literal["input", "hidden", "sum", "output"]


@dataclass(frozen=True)
class LayerFacts:
    """What counts of one weight layer.

    Args:
        kind: ``input`` reads a model input, ``output`` is a readout, ``sum`` feeds a sum, ``hidden`` the rest.
        degree: Eq. 12's in-degree, the largest over uses.
        shared: used more than once, so that no scale suits all uses.
        trainable: whether steps can move it.
        upstream: the layer names on the longest way to it, itself last.
    """

    name: str
    kind: Kind
    degree: int
    fan_in: int
    width: float
    shared: bool
    trainable: bool
    weight: str
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """One model of the family.

    Args:
        make: seed → the model; a family given as a function is built anew under each seed.
        layers: in topological order.
        latest: the network that was asked for last, if any.
    """

    label: str
    make: Callable[[int], nn.Module]
    inputs: Any
    graph: Graph
    layers: tuple[LayerFacts, ...]
    latest: list[Network] = field(default_factory=list, repr=False, compare=False)

    def network(self, recipe: Recipe, seed: int) -> Network:
        """The member under a seed, trained as ``recipe`` says; of a model that is given, always the same one, with the
        one copy that it is measured on."""
        model = self.make(seed)
        if not self.latest or self.latest[0].model is not model:
            self.latest[:] = [Network(self.graph, recipe, model, self.inputs, seed)]
        return self.latest[0]

    @property
    def width(self) -> float:
        """Geometric mean of the units of all layers but readouts."""
        widths = [layer.width for layer in self.layers if layer.kind != "output"]
        return math.exp(sum(map(math.log, widths)) / len(widths)) if widths else 1.0


def members(
    family: Family, sizes: Sequence[Any] | None, labels: Sequence[str] | None, seed: int, recipe: Recipe
) -> tuple[list[Member], list[str]]:
    """The members with their graphs, smallest first, and notes on what was done to them.

    Raises:
        CheckError: if there are fewer than two, or they share no layer.
        TraceError: if one cannot be traced.
    """
    if isinstance(family, nn.Module):
        raise CheckError("a check needs a family, two models at least, smallest first: give [small, model]")
    if callable(family):
        if sizes is None:
            raise CheckError("a family given as a function of the size needs sizes=[...], smallest first")
        makers = [_Built(family, size) for size in sizes]
        pairs = [maker.pair(seed) for maker in makers]
        makes: list[Callable[[int], nn.Module]] = list(makers)
        names = [str(size) for size in sizes]
    else:
        pairs = []
        for one in family:
            model, inputs = one if isinstance(one, (tuple, list)) and len(one) == 2 else (one, None)
            if not isinstance(model, nn.Module):
                raise CheckError(f"a family has models, or (model, inputs), not {type(model).__name__}")
            pairs.append((model, inputs))
        makes = [_Given(_full(model)) for model, _ in pairs]
        names = [f"{i} ({type(model).__name__})" for i, (model, _) in enumerate(pairs)]
    if len(pairs) < 2:
        raise CheckError(f"a family has at least two members, smallest first: {len(pairs)} given")
    if labels is not None:
        names = list(labels)
        if len(names) != len(pairs):
            raise CheckError(f"{len(names)} labels for {len(pairs)} members: give one each")
    notes: list[str] = []
    found = []
    for name, make, (model, inputs) in zip(names, makes, pairs, strict=True):
        try:
            if inputs is None:
                _, inputs = shown_by(model, recipe)
            if any(p.dtype in HALF for p in model.parameters()):
                notes.append(f"{name} is in half precision: a copy in float32 was measured, rounding is not judged")
                model, inputs = _full(model), tree_map(_full_tensor, inputs)
            graph = trace(model, inputs, select=recipe.select)
        except DagscaleError as error:
            error.args = (f"{name}: {error}",)
            raise
        found.append(Member(name, make, inputs, graph, layers_of(graph)))
    for member in found[1:]:
        if not _patterns(found[0]) & _patterns(member):
            raise CheckError(
                f"{found[0].label} and {member.label} share no layer: give a family of one kind, with like names"
            )
    return found, notes


@dataclass(frozen=True)
class _Given:
    model: nn.Module

    def __call__(self, seed: int) -> nn.Module:
        return self.model


@dataclass(frozen=True)
class _Built:
    family: Callable[[Any], Pair]
    size: Any

    def pair(self, seed: int) -> Pair:
        with forward.unchanged_random_state():
            torch.manual_seed(seed)
            made = self.family(self.size)
        if not (isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], nn.Module)):
            raise CheckError(f"the family must return (model, inputs) for a size, and returned {type(made).__name__}")
        return made[0], made[1]

    def __call__(self, seed: int) -> nn.Module:
        return _full(self.pair(seed)[0])


def _full(model: nn.Module) -> nn.Module:
    """The model itself, or a float32 copy of one in half precision."""
    return copy.deepcopy(model).float() if any(p.dtype in HALF for p in model.parameters()) else model


def _full_tensor(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _patterns(member: Member) -> set[str]:
    return {pattern(layer.name) for layer in member.layers}


def layers_of(graph: Graph) -> tuple[LayerFacts, ...]:
    """Every weight layer once, in topological order of its first use."""
    fresh = [v.kind == "input" for v in graph.vertices]
    longest: list[tuple[str, ...]] = [()] * len(graph.vertices)
    before: dict[int, tuple[str, ...]] = {}
    for v, entering in enumerate(graph.in_edges):
        live = [e for e in entering if graph.live[e]]
        fresh[v] = fresh[v] or (
            bool(live) and all(fresh[graph.edges[e].src] and not graph.edges[e].layers for e in live)
        )
        for e in live:
            edge = graph.edges[e]
            before[e] = longest[edge.src]
            way = (*before[e], *(op.layer_name for op in edge.layers))
            longest[v] = max(longest[v], way, key=len)
    uses: dict[str, list[Any]] = {}
    for use in graph.layers:
        uses.setdefault(use.name, []).append(use)
    found = []
    for name, listed in uses.items():
        use = listed[0]
        edge = graph.edges[use.edge]
        place = next(i for i, op in enumerate(edge.layers) if op is use.op)
        degree = max(u.in_degree for u in listed)
        kind: Kind = "sum" if degree > 1 else "hidden"
        if fresh[edge.src] and place == 0:
            kind = "input"
        if any(u.readout for u in listed):
            kind = "output"
        weights = [p.name for p in use.op.params if p.role == "weight"]
        weight = weights[0] if weights else ""
        patch = math.prod(use.layer.kernel)
        trainable = bool(weights) and all(graph.parameter[w].trainable for w in weights)
        way = (*before[use.edge], *(op.layer_name for op in edge.layers[: place + 1]))
        width = max(1.0, use.layer.fan_out / patch)
        found.append(LayerFacts(name, kind, degree, use.layer.fan_in, width, len(listed) > 1, trainable, weight, way))
    return tuple(found)


def wanted(member: Member, init: str) -> dict[str, float]:
    """Layer → second moment wanted of its output, up to the level that an init other than ``moments`` leaves open.

    Inits that say which moments they aim at (``moments``, ``damped``, and ``keep`` for models as they are): as these
    say, so that, but for ``damped``, ``1/d_in`` arrives at the vertex. Others: ``1/d_in``; mean-field readouts
    ``1/fan_in``.
    """
    rule = INITS.get(init)
    moments = rule.moments(member.graph) if rule is not None and rule.moments is not None else {}
    found = {}
    for layer in member.layers:
        found[layer.name] = moments.get(layer.weight, 1 / layer.degree)
        if layer.kind == "output" and rule is not None and rule.width == "mean-field":
            found[layer.name] = 1 / layer.fan_in
    return found


def growth(family: Sequence[Member], sizes: Sequence[float] | None) -> tuple[str, tuple[float, ...]]:
    """What the family grows in, and each member's size in it.

    Width if all members have the same layers; else the mean depth of the paths, the number of weight layers, or of
    parameters, whichever increases throughout.

    Raises:
        CheckError: if nothing increases.
    """
    if sizes is not None:
        if len(sizes) != len(family):
            raise CheckError(f"{len(sizes)} sizes for {len(family)} members: give one each")
        if any(not (math.isfinite(s) and s > 0) for s in sizes) or not _increases(sizes):
            raise CheckError(f"sizes must be positive and increase, smallest first: {', '.join(map(str, sizes))}")
        return ("width" if _alike(family) else "size"), tuple(float(s) for s in sizes)
    measures: dict[str, list[float]] = {}
    if _alike(family):
        measures["width"] = [m.width for m in family]
    else:
        measures["depth"] = [path_sums(m.graph).mean_depth for m in family]
        measures["layers"] = [len(m.graph.layers) for m in family]
    measures["parameters"] = [sum(p.numel for p in m.graph.parameters) for m in family]
    for name, values in measures.items():
        if values[0] > 0 and _increases(values):
            return name, tuple(values)
    what = ", ".join(f"{name} {' → '.join(f'{v:.4g}' for v in values)}" for name, values in measures.items())
    raise CheckError(f"the members do not grow ({what}): order them smallest first, or give sizes=[...]")


def _alike(family: Sequence[Member]) -> bool:
    """Whether all members have the same layers at the same places."""
    return len({tuple((x.name, x.kind, x.degree) for x in m.layers) for m in family}) == 1


def _increases(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
