"""The mean-field picture of a traced graph that the closed-form laws share.

Vertices carry pre-activations ``z_v = Σ_(weight edges u→v) W_uv σ(z_u) + Σ_(identity edges u→v) z_u`` with
``σ`` a ReLU and weights drawn so that each weight edge contributes second moment ``1/d_v``. A chain of several
layers on one edge has vertices of its own in between. What is not in this picture is treated as the nearest
thing that is: any activation as a ReLU, norms and pooling as identities, products and concatenations as sums,
activations after the layer (``Σ σ(W h)``) as before it.
"""

from __future__ import annotations

import math
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
    """A layer from vertex ``src`` to ``dst``.

    Attributes:
        depth: activations before it.
        strength: how far a step moves its output, per unit of its input's second moment: its relative learning rate
            times the inputs that a unit sums over, and the kernel.
        fan_in: inputs that a unit sums over, channels only.
    """

    src: int
    dst: int
    depth: int
    strength: float
    fan_in: float


@dataclass(frozen=True)
class End:
    """A vertex that an output reads.

    Attributes:
        depth: activations on the way.
        readout: the layer on the way, if there is one.
    """

    vertex: int
    depth: int
    readout: Op | None


@dataclass(frozen=True)
class MeanField:
    """The DAG of pre-activations, in topological order.

    Attributes:
        size: number of vertices.
        degree: live summands of each vertex, at least 1.
        weights: its weight edges.
        identities: pairs ``(u, v)`` with the activations on the way.
        width: units or channels of each vertex.
        stems: for each vertex, the summed strength of the layers that read a model input directly.
        stem_count: for each vertex, how many they are.
        begins: for each vertex, the most activations between a model input and it that no other vertex precedes.
        ends: what the outputs read.
    """

    size: int
    degree: tuple[int, ...]
    weights: tuple[WeightEdge, ...]
    identities: tuple[tuple[int, int, int], ...]
    width: tuple[int, ...]
    stems: tuple[float, ...]
    stem_count: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[End, ...]

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

        own = np.array(self.stem_count, dtype=float)
        for edge in self.weights:
            own[edge.dst] += 1
        shares: Matrix = own / np.array(self.degree)
        return shares


def mean_field(graph: Graph, multipliers: Mapping[str, float] | None = None, kernel_power: float = 1.0) -> MeanField:
    """Reduce a traced graph.

    Args:
        multipliers: relative learning rate of each parameter, where not 1 (frozen: 0).
        kernel_power: a layer's update strength grows as its kernel size, the root of its taps, to this power.

    A vertex has the width of the widest layer into it, or of what comes by identity.

    Raises:
        GraphError: if no output is reached from an input.
    """
    rates = dict(multipliers or {}) | {p.name: 0.0 for p in graph.parameters if not p.trainable}
    number: dict[int, int] = {}
    degree: list[int] = []
    weights: list[WeightEdge] = []
    identities: list[tuple[int, int, int]] = []
    width: list[int] = []
    stems: list[float] = []
    stem_count: list[int] = []
    begins: list[int] = []
    ends: list[End] = []

    def vertex(d: int) -> int:
        degree.append(max(d, 1))
        width.append(1)
        stems.append(0.0)
        stem_count.append(0)
        begins.append(0)
        return len(degree) - 1

    def join(at: int | None, to: int, depth: int, op: Op | None) -> None:
        if op is None or op.layer is None:
            if at is not None:
                identities.append((at, to, depth))
                width[to] = max(width[to], width[at])
            return
        rate = rates.get(op.weight, 1.0)
        taps = math.prod(op.layer.kernel)
        fan_in = op.layer.fan_in / taps
        width[to] = max(width[to], round(op.layer.fan_out / taps))
        strength = rate * fan_in * op.layer.kernel_size**kernel_power
        if at is None:
            stems[to] += strength
            stem_count[to] += 1
            begins[to] = max(begins[to], depth)
        else:
            weights.append(WeightEdge(at, to, depth, strength, fan_in))

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
            ends += [End(at, depth, last) for at, depth, last in entries if at is not None]
        elif any(at is not None or last is not None for at, _, last in entries):
            number[v] = vertex(1 if kind == "fork" else len(live))
            for at, depth, last in entries:
                join(at, number[v], depth, last)
    if not ends:
        raise GraphError("no output is reached from an input through a hidden layer: this law has no answer")
    return MeanField(
        len(degree), tuple(degree), tuple(weights), tuple(identities), tuple(width), tuple(stems), tuple(stem_count),
        tuple(begins), tuple(ends),
    )  # fmt: skip
