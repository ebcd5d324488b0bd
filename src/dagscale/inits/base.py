"""What an initialisation is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dagscale.graph import Graph, LayerUse
from dagscale.network import Network
from dagscale.registry import Registry, first_sentence
from dagscale.training.draws import Fill

WidthRule = Literal["standard", "mean-field", "own"]
Rule = Callable[[Network], dict[str, Fill]]
"""One network → how each parameter is drawn, by name. Parameters that it does not name are left as they are."""


@dataclass(frozen=True, slots=True)
class Init:
    """A rule for how parameters are drawn.

    Attributes:
        name: as it stands in the registry.
        rule: one network → how each parameter is drawn.
        width: how its scale goes with width, so that μP factors know where they start: ``standard`` (every
            weight ∝ fan_in^-½), ``mean-field`` (readouts ∝ 1/fan_in), or ``own``, which they leave alone.
        measured: whether it runs the network, so that what it gives differs a little from seed to seed.
        draws: whether it draws anything; if not, the model is trained as its author made it.
        moments: (graph) → the second moment that it aims at for each layer's output, by the weight's name; None where
            it aims at ``1/in-degree`` up to a level that it leaves open.
        level: whether signals are meant to keep one size along the way, as the closed-form laws take for granted.
    """

    name: str
    rule: Rule
    width: WidthRule = "standard"
    measured: bool = False
    draws: bool = True
    moments: Callable[[Graph], Mapping[str, float]] | None = None
    level: bool = True

    def __call__(self, network: Network) -> dict[str, Fill]:
        return self.rule(network)

    @property
    def summary(self) -> str:
        """The first sentence of the rule's docstring."""
        return first_sentence(self.rule.__doc__)


INITS: Registry[Init] = Registry("init")

DEFAULT, WITHOUT_DATA = "moments", "in-degree"
"""Names of the inits that are taken where nobody names one: with data to measure on, and without."""


def init(
    name: str,
    width: WidthRule = "standard",
    *,
    measured: bool = False,
    draws: bool = True,
    moments: Callable[[Graph], Mapping[str, float]] | None = None,
    level: bool = True,
) -> Callable[[Rule], Init]:
    """Decorator: register a function of one network as the init ``name``; see `Init`."""
    return lambda rule: INITS.add(name)(Init(name, rule, width, measured, draws, moments, level))


def zeros_and_ones(graph: Graph) -> dict[str, Fill]:
    """Biases (of layers and norms) 0, norm gains 1, for every parameter that acts on a path as nothing else.

    What enters another layer too, as the features that all nodes of a graph begin with, is no bias.
    """
    fills: dict[str, set[Fill | None]] = {}
    for edge, live in zip(graph.edges, graph.live, strict=True):
        for op in edge.ops if live else ():
            for use in op.params:
                where, own = use.at(op)
                gain = own.role == "gain" and where.kind == "norm"
                fill = Fill(0.0, 0.0) if own.role == "bias" else Fill(1.0, 0.0) if gain else None
                fills.setdefault(use.name, set()).add(fill)
    return {name: fill for name, kinds in fills.items() if len(kinds) == 1 for fill in kinds if fill is not None}


def fill_weights(graph: Graph, std: Callable[[LayerUse], float]) -> dict[str, Fill]:
    """``std(use)`` for every layer's weight, the smallest where a weight is used more than once.

    A weight that the model computes is left alone, from several parameters (``weight_norm``, adapters) because no
    single one sets its scale, from one (orthogonal weights) because it need not be in proportion to it. One that is a
    layer's output on fixed numbers is summed over in both layers.
    """
    fills = zeros_and_ones(graph)
    stds: dict[str, float] = {}
    for use in graph.layers:
        weights = [p for p in use.op.params if p.role == "weight"]
        if len(weights) != 1:
            continue
        (weight,) = weights
        where, _ = weight.at(use.op)
        if where is not use.op and where.layer is not None:
            both = replace(where.layer, fan_in=where.layer.fan_in * use.layer.fan_in)
            use = replace(use, op=replace(where, layer=both))
        elif not weight.own:
            continue
        stds[weight.name] = min(std(use), stds.get(weight.name, float("inf")))
    fills.update({name: Fill(0.0, value) for name, value in stds.items()})
    return fills
