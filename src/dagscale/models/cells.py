"""Cells of architecture-search spaces: a DAG whose edges (and vertices) carry named operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.dag import on_paths
from dagscale.registry import Registry

NONE = "none"


@dataclass(frozen=True)
class CellOp:
    """An operation that an edge of a cell can carry.

    Attributes:
        build: (channels in, channels out, stride) → the module.
        depth: activations that a signal passes in it, at stride 1.
        kernels: kernel sizes of its weight layers, in order, at stride 1.
    """

    build: Callable[[int, int, int], nn.Module]
    depth: int = 0
    kernels: tuple[int, ...] = ()


CELL_OPS: Registry[CellOp] = Registry("cell operation")


@dataclass(frozen=True)
class CellGraph:
    """The wiring of a cell.

    Attributes:
        vertices: how many there are; 0 … ``inputs - 1`` are the cell's inputs.
        edges: ``(u, v, op)`` with ``u < v``, at most one for each pair; edges that carry ``none`` are left out.
        outputs: the vertices that make up the cell's output: one, or several to concatenate.
        inputs: how many inputs.
    """

    vertices: int
    edges: tuple[tuple[int, int, str], ...]
    outputs: tuple[int, ...]
    inputs: int = 1

    def __post_init__(self) -> None:
        pairs = [(u, v) for u, v, _ in self.edges]
        for u, v in pairs:
            if not 0 <= u < v < self.vertices or v < self.inputs:
                raise TargetError(f"edge {u}→{v} does not run forward within {self.vertices} vertices")
            if pairs.count((u, v)) > 1:
                raise TargetError(f"two edges {u}→{v} in one cell: keep one operation for each pair of vertices")

    @cached_property
    def live(self) -> tuple[tuple[int, int, str], ...]:
        """The edges on some path from an input to the output, ordered by target and then source."""
        return on_paths(sorted(self.edges, key=lambda e: (e[1], e[0])), range(self.inputs), self.outputs)

    @cached_property
    def has_path(self) -> bool:
        """Whether the output depends on an input."""
        return bool(self.live) or any(v < self.inputs for v in self.outputs)


def parse_arch_string(text: str, ops: Sequence[str], *, first: int = 1) -> tuple[tuple[tuple[int, str], ...], ...]:
    """Read ``|op~u|op~u|+|…|``: for each vertex from ``first`` on, its (source, operation) pairs.

    Raises:
        TargetError: if it is malformed, an operation is not in ``ops``, or an edge does not run forward.
    """
    vertices = []
    for v, group in enumerate(text.split("+"), first):
        inner = group[1:-1] if len(group) > 2 and group[0] == group[-1] == "|" else None
        items = inner.split("|") if inner else []
        pairs = []
        for item in items:
            op, tilde, source = item.rpartition("~")
            if not tilde or not (source.isascii() and source.isdigit()):
                raise TargetError(f"architecture string {text!r}: {item!r} is not OP~VERTEX, as {ops[-1]}~0")
            if op not in ops:
                raise TargetError(f"architecture string {text!r}: unknown operation {op!r} (known: {', '.join(ops)})")
            if int(source) >= v:
                raise TargetError(f"architecture string {text!r}: vertex {v} cannot read vertex {source}")
            pairs.append((int(source), op))
        if not pairs:
            raise TargetError(f"architecture string {text!r}: group {group!r} is not |OP~VERTEX|…|")
        vertices.append(tuple(pairs))
    return tuple(vertices)


class Cell(nn.Module):
    """A cell: each vertex sums its live incoming edges; the output vertices are concatenated if several.

    Every edge has its module, as in the published networks, so that the number of parameters is theirs. Only
    live edges are called: what reads a dead vertex, or leads nowhere, neither costs time nor carries a signal,
    and tracing reports its parameters as not reached. A cell without any path gives zeros.

    Args:
        edge: (u, v, op) → the module of an edge.
        vertex: v → what a vertex applies to its sum; nothing by default.
    """

    def __init__(
        self,
        graph: CellGraph,
        edge: Callable[[int, int, str], nn.Module],
        vertex: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.edges = nn.ModuleDict({f"{u}_{v}": edge(u, v, op) for u, v, op in graph.edges})
        inner = range(graph.inputs, graph.vertices) if vertex is not None else ()
        self.vertices = nn.ModuleDict({str(v): vertex(v) for v in inner if vertex is not None})

    def forward(self, *inputs: Tensor) -> Tensor:
        """inputs: one (batch, channels, H, W) per input of the cell."""
        signals: dict[int, Tensor] = dict(enumerate(inputs))
        incoming: dict[int, list[int]] = {}
        for u, v, _ in self.graph.live:
            incoming.setdefault(v, []).append(u)
        for v in sorted(incoming):
            terms: list[Tensor] = [self.edges[f"{u}_{v}"](signals[u]) for u in incoming[v]]
            total = sum(terms[1:], terms[0])
            signals[v] = self.vertices[str(v)](total) if str(v) in self.vertices else total
        if not self.graph.has_path:
            return torch.zeros_like(inputs[-1])
        parts = [signals[v] for v in self.graph.outputs if v in signals]
        if len(self.graph.outputs) == 1:
            return parts[0]
        blank = [torch.zeros_like(parts[0])]
        return torch.cat([signals[v] if v in signals else blank[0] for v in self.graph.outputs], dim=1)

    def extra_repr(self) -> str:
        return ", ".join(f"{u}→{v} {op}" for u, v, op in self.graph.edges)


# --- path sums without modules --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moments:
    """``Σ_p w_p^k``, k = 0 … 3, over a set of paths; the weight ``w_p`` adds up along a path. Exact integers."""

    m0: int
    m1: int
    m2: int
    m3: int

    @classmethod
    def step(cls, weight: int) -> Moments:
        """One path of that weight."""
        return cls(1, weight, weight**2, weight**3)

    def then(self, other: Moments) -> Moments:
        """Paths in series: every path of one continued by every path of the other (binomial theorem)."""
        a, b = self, other
        return Moments(
            a.m0 * b.m0,
            a.m1 * b.m0 + a.m0 * b.m1,
            a.m2 * b.m0 + 2 * a.m1 * b.m1 + a.m0 * b.m2,
            a.m3 * b.m0 + 3 * (a.m2 * b.m1 + a.m1 * b.m2) + a.m0 * b.m3,
        )

    def beside(self, other: Moments) -> Moments:
        """Paths in parallel."""
        return Moments(self.m0 + other.m0, self.m1 + other.m1, self.m2 + other.m2, self.m3 + other.m3)

    def times(self, n: int) -> Moments:
        """``n`` copies in series."""
        result = Moments.step(0)
        for _ in range(n):
            result = result.then(self)
        return result


def cell_moments(graph: CellGraph, weight: Mapping[str, int]) -> Moments:
    """Moments over the paths of a cell with one input and one output vertex.

    Args:
        weight: operation → the weight that an edge with it adds to a path.
    """
    at = {0: Moments.step(0)}
    for u, v, op in graph.live:
        arriving = at[u].then(Moments.step(weight[op]))
        at[v] = at[v].beside(arriving) if v in at else arriving
    return at.get(graph.outputs[0], Moments(0, 0, 0, 0))


# --- operations -----------------------------------------------------------------------------------


def relu_conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """ReLU → convolution without bias → BatchNorm."""
    return named(
        act=nn.ReLU(),
        conv=nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=False),
        norm=nn.BatchNorm2d(c_out),
    )


def named(**parts: nn.Module) -> nn.Sequential:
    """A Sequential whose parts have names."""
    sequence = nn.Sequential()
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


def separable(c_in: int, c_out: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """ReLU → depthwise convolution → 1×1 convolution → BatchNorm."""
    reach = dilation * (kernel - 1) // 2
    return named(
        act=nn.ReLU(),
        depthwise=nn.Conv2d(c_in, c_in, kernel, stride, reach, dilation, groups=c_in, bias=False),
        pointwise=nn.Conv2d(c_in, c_out, 1, bias=False),
        norm=nn.BatchNorm2d(c_out),
    )


class FactorizedReduce(nn.Module):
    """Halves the resolution: two 1×1 convolutions of stride 2, one shifted by a pixel, side by side."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.even = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        # One pixel of padding keeps the shifted half as large as the other when a side is odd.
        shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        halves: Tensor = self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return halves


def _skip(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(c_in, c_out)


def _average(c_in: int, c_out: int, stride: int) -> nn.Module:
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def _add_convolutions() -> None:
    for k in (1, 3):
        CELL_OPS.add(f"nor_conv_{k}x{k}")(
            CellOp(lambda c_in, c_out, stride, k=k: relu_conv_norm(c_in, c_out, k, stride), 1, (k,))  # type: ignore[misc]
        )
    for k in (3, 5, 7):
        CELL_OPS.add(f"sep_conv_{k}x{k}")(
            CellOp(
                lambda c_in, c_out, stride, k=k: nn.Sequential(  # type: ignore[misc]
                    separable(c_in, c_in, k, stride), separable(c_in, c_out, k, 1)
                ),
                2,
                (k, 1, k, 1),
            )
        )
    for k in (3, 5):
        CELL_OPS.add(f"dil_conv_{k}x{k}")(
            CellOp(lambda c_in, c_out, stride, k=k: separable(c_in, c_out, k, stride, 2), 1, (k, 1))  # type: ignore[misc]
        )


CELL_OPS.add("skip_connect")(CellOp(_skip))
CELL_OPS.add("avg_pool_3x3")(CellOp(_average))
CELL_OPS.add("max_pool_3x3")(CellOp(lambda c_in, c_out, stride: nn.MaxPool2d(3, stride, padding=1)))
_add_convolutions()
