"""The paper's architecture code as a value, and the network that it stands for.

A code has one group of digits per vertex after vertex 0, and in it one digit per earlier vertex: ``0`` no
edge, ``1`` a skip, ``2`` a weight layer with its activation [Chen et al. 2024, Sec. 3.1 and the released
code].
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.registry import did_you_mean

NONE, SKIP, WEIGHT = 0, 1, 2
ORDERS = ("post", "pre")
NORMS = ("none", "batch", "layer")
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


Op = TypeVar("Op")


def on_paths(
    edges: Sequence[tuple[int, int, Op]], sources: Iterable[int], sinks: Iterable[int]
) -> tuple[tuple[int, int, Op], ...]:
    """The edges (u, v, op), u < v, ordered by v, that lie on some path from a source to a sink."""
    reached, leading = set(sources), set(sinks)
    for u, v, _ in edges:
        if u in reached:
            reached.add(v)
    for u, v, _ in reversed(edges):
        if v in leading:
            leading.add(u)
    return tuple((u, v, op) for u, v, op in edges if u in reached and v in leading)


@dataclass(frozen=True)
class Dag:
    """A DAG of pre-activations.

    Attributes:
        ops: one tuple per vertex v = 1, 2, ...; its u-th entry is the operator of the edge u → v.

    Raises:
        TargetError: if there is no vertex after vertex 0, a group's length is not the number of earlier
            vertices, or an operator is none of 0, 1, 2.
    """

    ops: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.ops:
            raise TargetError("empty architecture code; write one group of digits per vertex, as 2_02_002")
        for v, group in enumerate(self.ops, 1):
            where = f"architecture code {str(self)!r}, group {v} ({''.join(map(str, group))!r})"
            wrong = [op for op in group if op not in (NONE, SKIP, WEIGHT)]
            if wrong:
                raise TargetError(
                    f"{where}: {str(wrong[0])!r} is no operator; "
                    "write 0 (no edge), 1 (skip) or 2 (weight layer + activation)"
                )
            if len(group) != v:
                raise TargetError(
                    f"{where}: the length is {len(group)}, but vertex {v} has {v} earlier "
                    f"{'vertex' if v == 1 else 'vertices'}; write one digit for each, {v} in all"
                )

    @classmethod
    def parse(cls, code: str) -> Dag:
        """Read a code such as ``"2_02_002"``.

        Raises:
            TargetError: if the code is malformed; the message names the group and the mend.
        """
        digits: dict[str, Any] = {"0": NONE, "1": SKIP, "2": WEIGHT}
        groups = code.split("_") if code else []
        # An unknown character passes through: the constructor has the one place that complains.
        return cls(tuple(tuple(digits.get(ch, ch) for ch in group) for group in groups))

    def __str__(self) -> str:
        return "_".join("".join(map(str, group)) for group in self.ops)

    def __repr__(self) -> str:
        return f"Dag.parse({str(self)!r})"

    @property
    def vertices(self) -> int:
        """Number of vertices, vertex 0 included."""
        return len(self.ops) + 1

    @property
    def edges(self) -> tuple[tuple[int, int, int], ...]:
        """The edges that are there as ``(u, v, op)``, op 1 or 2, ordered by v and then u."""
        return tuple((u, v, op) for v, group in enumerate(self.ops, 1) for u, op in enumerate(group) if op != NONE)

    @property
    def live_edges(self) -> tuple[tuple[int, int, int], ...]:
        """The edges on some path from vertex 0 to the last vertex, in the order of ``edges``."""
        return on_paths(self.edges, {0}, {self.vertices - 1})

    @property
    def has_path(self) -> bool:
        """Whether some path leads from vertex 0 to the last vertex."""
        return bool(self.live_edges)

    def require_path(self) -> None:
        """Raises: TargetError if no path leads from vertex 0 to the last vertex."""
        if not self.has_path:
            raise TargetError(
                f"no path from input to output: in architecture code {str(self)!r} no chain of edges leads "
                f"from vertex 0 to vertex {self.vertices - 1}; set some 0 on the way to 1 or 2"
            )

    @staticmethod
    def count(vertices: int, ops: Collection[int] = (NONE, SKIP, WEIGHT)) -> int:
        """Number of codes with that many vertices: ``len(ops) ** (vertices · (vertices - 1) / 2)``."""
        _check_choice(vertices, ops)
        return int(len(ops) ** (vertices * (vertices - 1) // 2))

    @classmethod
    def enumerate(cls, vertices: int, ops: Collection[int] = (NONE, SKIP, WEIGHT)) -> Iterator[Dag]:
        """Every code with that many vertices, in lexicographic order of ``ops``, with or without a path."""
        _check_choice(vertices, ops)
        for flat in itertools.product(ops, repeat=vertices * (vertices - 1) // 2):
            yield cls(_grouped(flat, vertices))

    @classmethod
    def sample(
        cls,
        vertices: int,
        rng: random.Random | int,
        *,
        ops: Collection[int] = (NONE, SKIP, WEIGHT),
        require_path: bool = True,
    ) -> Dag:
        """One code, uniform over all codes with that many vertices (that have a path, if ``require_path``).

        Args:
            rng: a generator, which is advanced, or a seed.

        Raises:
            TargetError: if there are fewer than 2 vertices, or ``ops`` cannot make a path.
        """
        _check_choice(vertices, ops)
        if require_path and set(ops) == {NONE}:
            raise TargetError("operator 0 alone makes no path from input to output; add 1 or 2 to ops")
        rng = random.Random(rng) if isinstance(rng, int) else rng
        choices = tuple(ops)
        while True:  # the edge 0 → last alone makes a path in at least half of the draws
            flat = rng.choices(choices, k=vertices * (vertices - 1) // 2)
            dag = cls(_grouped(flat, vertices))
            if dag.has_path or not require_path:
                return dag


def sample_codes(vertices: int, count: int, rng: random.Random) -> tuple[str, ...]:
    """``count`` distinct codes, each with a path, uniform without replacement.

    Raises:
        TargetError: if there are fewer such codes than that.
    """
    if Dag.count(vertices) <= 4 * count:
        codes = [str(dag) for dag in Dag.enumerate(vertices) if dag.has_path]
        if len(codes) < count:
            raise TargetError(
                f"{count} distinct codes of {vertices} vertices were asked for, but only {len(codes)} have "
                "a path; ask for fewer or for more vertices"
            )
        return tuple(rng.sample(codes, count))
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(Dag.sample(vertices, rng))] = None
    return tuple(found)


def _check_choice(vertices: int, ops: Collection[int]) -> None:
    if vertices < 2:
        raise TargetError(f"vertices={vertices}: a DAG has at least 2, its input and its output")
    if not ops or len(set(ops)) != len(ops) or not set(ops) <= {NONE, SKIP, WEIGHT}:
        raise TargetError(f"ops={tuple(ops)}: choose distinct operators among 0, 1 and 2")


def _grouped(flat: Sequence[int], vertices: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(flat[v * (v - 1) // 2 : v * (v + 1) // 2]) for v in range(1, vertices))


class DagCell(nn.Module):
    """One DAG: the value of vertex 0 → the value of the last vertex; a vertex sums its incoming edges.

    A vertex without any incoming signal has no value and adds nothing to its consumers; weight layers that
    hang on it exist but are never called. Vertices that lead nowhere are computed.

    Args:
        edge: makes the module of one ``2`` edge, shape-preserving.
    """

    def __init__(self, dag: Dag, edge: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.dag = dag
        self.edges = nn.ModuleDict({f"{u}_{v}": nn.Identity() if op == SKIP else edge() for u, v, op in dag.edges})

    def forward(self, x: Tensor) -> Tensor:
        signals: dict[int, Tensor] = {0: x}
        for v, group in enumerate(self.dag.ops, 1):
            terms: list[Tensor] = [
                self.edges[f"{u}_{v}"](signals[u]) for u, op in enumerate(group) if op != NONE and u in signals
            ]
            if terms:
                signals[v] = sum(terms[1:], terms[0])
        return signals[self.dag.vertices - 1]

    def extra_repr(self) -> str:
        return str(self.dag)


class DagNet(nn.Module):
    """Stem, a stack of DAGs, linear readout; MLPs and CNNs differ in ``layer``, ``norms`` and ``pool`` only.

    With ``order="post"`` (the released code's form) the stem and each ``2`` edge are weight → [norm] →
    activation and the readout is linear; with ``order="pre"`` (the derivation's ``z_v = Σ W σ(z_u)``) the
    stem is weight → [norm], each ``2`` edge activation → weight → [norm], and an activation precedes the
    readout. Both have the same number of activations on each path.

    Args:
        layer: a name for the weight layers, and how to make one from its numbers of inputs and outputs.
        norms: name in ``NORMS`` → how to make that normalisation over ``width``; ``"none"`` is not asked for.
        before: named modules in front of the stem's weight layer.
        pool: named modules between the last vertex (and its activation) and the linear readout.
        depth: how many DAGs are stacked; the last vertex of one is vertex 0 of the next.

    Raises:
        TargetError: if the DAG has no path, a size is below 1, or ``act``, ``order`` or ``norm`` is unknown.
    """

    def __init__(
        self,
        dag: Dag,
        *,
        layer: tuple[str, Callable[[int, int], nn.Module]],
        norms: dict[str, Callable[[int], nn.Module]],
        inputs: int,
        classes: int,
        width: int,
        act: str,
        order: str,
        norm: str,
        depth: int,
        bias: bool,
        before: tuple[tuple[str, nn.Module], ...] = (),
        pool: tuple[tuple[str, nn.Module], ...] = (),
    ) -> None:
        super().__init__()
        dag.require_path()
        for name, size in {"inputs": inputs, "classes": classes, "width": width, "depth": depth}.items():
            if size < 1:
                raise TargetError(f"{name}={size}: must be at least 1")
        for name, value, known in (
            ("act", act, ACTIVATIONS),
            ("order", order, ORDERS),
            ("norm", norm, NORMS),
        ):
            if value not in known:
                hint = did_you_mean(value, known)
                raise TargetError(f"unknown {name} {value!r}{hint} (known: {', '.join(known)})")
        kind, make_layer = layer

        def activation() -> list[tuple[str, nn.Module]]:
            return [("act", ACTIVATIONS[act]())]

        def weight(fan_in: int) -> list[tuple[str, nn.Module]]:
            normed = [] if norm == "none" else [("norm", norms[norm](width))]
            return [(kind, make_layer(fan_in, width)), *normed]

        def edge() -> nn.Module:
            return _named(weight(width) + activation() if order == "post" else activation() + weight(width))

        after_stem, before_readout = (activation(), []) if order == "post" else ([], activation())
        self.stem = _named([*before, *weight(inputs), *after_stem])
        self.cells = nn.Sequential(*(DagCell(dag, edge) for _ in range(depth)))
        self.readout = _named([*before_readout, *pool, ("linear", nn.Linear(width, classes, bias=bias))])

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, ...) → logits: (batch, classes)."""
        logits: Tensor = self.readout(self.cells(self.stem(x)))
        return logits


def _named(parts: list[tuple[str, nn.Module]]) -> nn.Sequential:
    sequence = nn.Sequential()
    for name, part in parts:
        sequence.add_module(name, part)
    return sequence
