"""What an initialisation is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dagscale.graph import Graph, LayerUse
from dagscale.network import Subject
from dagscale.registry import Registry
from dagscale.training.draws import Fill

if TYPE_CHECKING:
    from torch import nn

WidthRule = Literal["standard", "mean-field", "own"]


@dataclass(frozen=True, slots=True)
class Init:
    """A network → name → fill. Parameters it does not name are left as they are.

    Attributes:
        fills: the rule.
        width: how its scale goes with width, so that μP factors know where they start: ``standard`` (every
            weight ∝ fan_in^-½), ``mean-field`` (readouts ∝ 1/fan_in), or ``own``, which they leave alone.
    """

    fills: Callable[[Subject], dict[str, Fill]]
    width: WidthRule = "standard"

    def __call__(self, subject: Subject) -> dict[str, Fill]:
        return self.fills(subject)


INITS: Registry[Init] = Registry("init")


def init(name: str, width: WidthRule = "standard") -> Callable[[Callable[[Subject], dict[str, Fill]]], Init]:
    """Decorator: register a function as the init ``name``."""
    return lambda fills: INITS.add(name)(Init(fills, width))


def padding_rows(model: nn.Module) -> dict[int, int]:
    """``id(weight)`` → the row of an embedding that stands for padding: it stays 0, as PyTorch makes it."""
    from torch import nn

    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return {id(m.weight): m.padding_idx for m in embeddings if m.padding_idx is not None}


def zeros_and_ones(graph: Graph) -> dict[str, Fill]:
    """Biases (of layers and norms) 0, norm gains 1, for every parameter that acts on a path."""
    fills: dict[str, Fill] = {}
    for edge, live in zip(graph.edges, graph.live, strict=True):
        for op in edge.ops if live else ():
            for use in op.params:
                if use.role == "bias":
                    fills[use.name] = Fill(0.0, 0.0)
                elif use.role == "gain" and op.kind == "norm":
                    fills[use.name] = Fill(1.0, 0.0)
    return fills


def fill_weights(graph: Graph, std: Callable[[LayerUse], float]) -> dict[str, Fill]:
    """``std(use)`` for every layer's weight, the smallest where a weight is used more than once.

    A weight that the model computes from several parameters (``weight_norm``, adapters) is left alone: no
    single parameter sets its scale.
    """
    fills = zeros_and_ones(graph)
    stds: dict[str, float] = {}
    for use in graph.layers:
        weights = [p.name for p in use.op.params if p.role == "weight"]
        if len(weights) == 1:
            stds[weights[0]] = min(std(use), stds.get(weights[0], float("inf")))
    fills.update({name: Fill(0.0, value) for name, value in stds.items()})
    return fills
