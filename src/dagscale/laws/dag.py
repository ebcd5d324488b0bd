"""The mean-field picture of a traced graph that the closed-form laws share.

Vertices carry pre-activations ``z_v = Σ_(weight edges u→v) W_uv σ(z_u) + Σ_(identity edges u→v) z_u`` with
``σ`` a ReLU and weights drawn so that each weight edge contributes second moment ``1/d_v``. A chain of several
layers on one edge has vertices of its own in between. What is not in this picture is treated as the nearest
thing that is: any activation as a ReLU, norms and pooling as identities, products and concatenations as sums,
activations after the layer (``Σ σ(W h)``) as before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagscale.errors import GraphError
from dagscale.graph import Graph, Op

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class WeightEdge:
    """A layer from vertex ``src`` to ``dst``, with its activations and its relative learning rate."""

    src: int
    dst: int
    depth: int
    strength: float


@dataclass(frozen=True)
class MeanField:
    """The DAG of pre-activations, in topological order.

    Attributes:
        size: number of vertices.
        degree: live summands of each vertex, at least 1.
        weights: its weight edges.
        identities: pairs ``(u, v)`` with the activations on the way.
        stems: for each vertex, the summed strength of the layers that read a model input directly.
        begins: for each vertex, the most activations between a model input and it that no other vertex precedes.
        ends: vertices that an output reads, with the activations on the way.
    """

    size: int
    degree: tuple[int, ...]
    weights: tuple[WeightEdge, ...]
    identities: tuple[tuple[int, int, int], ...]
    stems: tuple[float, ...]
    begins: tuple[int, ...]
    ends: tuple[tuple[int, int], ...]

    def kappa(self) -> Matrix:
        """``κ[v, b]``: number of identity paths b → v, 1 on the diagonal. Shape (size, size)."""
        import numpy as np

        kappa = np.eye(self.size)
        into: list[list[int]] = [[] for _ in range(self.size)]
        for u, v, _ in self.identities:
            into[v].append(u)
        for v in range(self.size):
            for u in into[v]:
                kappa[v] += kappa[u]
        return kappa

    def own_moment(self) -> Matrix:
        """Second moment that each vertex's own layers contribute: their share of its summands. Shape (size,)."""
        import numpy as np

        own = np.array([float(s > 0) for s in self.stems])  # several stems into one vertex are rare: count one
        for edge in self.weights:
            own[edge.dst] += 1
        shares: Matrix = own / np.array(self.degree)
        return shares


def mean_field(graph: Graph, multipliers: Mapping[str, float] | None = None, kernel_power: float = 1.0) -> MeanField:
    """Reduce a traced graph.

    Args:
        multipliers: relative learning rate of each parameter, where not 1.
        kernel_power: a layer's update strength grows as its kernel size, the root of its taps, to this power.

    Raises:
        GraphError: if no output is reached from an input.
    """
    rates = multipliers or {}
    number: dict[int, int] = {}
    degree: list[int] = []
    weights: list[WeightEdge] = []
    identities: list[tuple[int, int, int]] = []
    stems: list[float] = []
    begins: list[int] = []
    ends: list[tuple[int, int]] = []

    def vertex(d: int) -> int:
        degree.append(max(d, 1))
        stems.append(0.0)
        begins.append(0)
        return len(degree) - 1

    def join(at: int | None, to: int, depth: int, op: Op | None) -> None:
        if op is None or op.layer is None:
            if at is not None:
                identities.append((at, to, depth))
            return
        rate = rates.get(op.params[0].name, 1.0) if op.params else 1.0
        strength = float(rate * op.layer.kernel_size**kernel_power)
        if at is None:
            stems[to] += strength
            begins[to] = max(begins[to], depth)
        else:
            weights.append(WeightEdge(at, to, depth, strength))

    for v, incoming in enumerate(graph.in_edges):
        kind = graph.vertices[v].kind
        live = [graph.edges[e] for e in incoming if graph.live[e]]
        entries: list[tuple[int | None, int, Op | None]] = []  # (from, activations, last layer) into v itself
        for edge in live:
            at = number.get(edge.src)  # None: a model input, or a fork of one
            hidden = edge.layers[:-1]  # the last layer feeds v; into an output, it is a readout
            depth, last = 0, None
            for op in edge.ops:
                depth += op.kind == "activation"
                if op.layer is None:
                    continue
                if any(op is layer for layer in hidden):
                    to = vertex(1)
                    join(at, to, depth, op)
                    at, depth = to, 0
                else:
                    last = op
            entries.append((at, depth, last))
        if kind == "output":
            ends += [(at, depth) for at, depth, _ in entries if at is not None]
        elif any(at is not None or last is not None for at, _, last in entries):
            number[v] = vertex(1 if kind == "fork" else len(live))
            for at, depth, last in entries:
                join(at, number[v], depth, last)
    if not ends:
        raise GraphError("no output is reached from an input through a hidden layer: this law has no answer")
    return MeanField(
        len(degree), tuple(degree), tuple(weights), tuple(identities), tuple(stems), tuple(begins), tuple(ends)
    )
