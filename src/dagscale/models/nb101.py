"""The space ``nb101:CODE``: NAS-Bench-101 [Ying et al., ICML 2019] and cells like it.

Operations stand on vertices. ``1_01_001-3m`` has one group of digits per vertex after vertex 0 (the input), one
digit per earlier vertex, 1 where an edge leads from it; behind the dash, one operation per inner vertex: ``3``
and ``1`` for 3×3 and 1×1 convolutions, each → BatchNorm → ReLU, ``m`` for 3×3 max pooling. The last vertex is the
output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape
from dagscale.models.cells import Cell, CellGraph, named
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import CIFAR, SPACES, Setting, Space

STACKS = 3
_FORM = "write edges and operations as 1_01_001-3m (see dagscale.models.nb101)"


@dataclass(frozen=True)
class Nb101:
    """One cell.

    Attributes:
        matrix: row v - 1, column u: whether an edge leads from vertex u to vertex v.
        ops: one of ``3``, ``1``, ``m`` per inner vertex.
    """

    matrix: tuple[tuple[bool, ...], ...]
    ops: str

    def __post_init__(self) -> None:
        if len(self.ops) != len(self.matrix) - 1 or set(self.ops) - set("31m"):
            raise TargetError(
                f"{self.ops!r}: {len(self.matrix) - 1} inner vertices need as many of 3, 1, m behind the dash; {_FORM}"
            )

    @classmethod
    def parse(cls, code: str) -> Nb101:
        """Read a code.

        Raises:
            TargetError: if it is malformed, or no path leads from input to output.
        """
        edges, _, ops = code.partition("-")
        for v, group in enumerate(edges.split("_"), 1):
            if len(group) != v or set(group) - set("01"):
                raise TargetError(f"cell {code!r}: group {v} ({group!r}) must be {v} digits 0 or 1; {_FORM}")
        cell = cls(tuple(tuple(d == "1" for d in group) for group in edges.split("_")), ops)
        if not cell.live:
            raise TargetError(f"no path from input to output in cell {code!r}; set some 0 on the way to 1")
        return cell

    @property
    def code(self) -> str:
        return "_".join("".join("01"[e] for e in row) for row in self.matrix) + (f"-{self.ops}" if self.ops else "")

    @cached_property
    def live(self) -> tuple[tuple[int, int], ...]:
        """The edges on some path from input to output."""
        edges = tuple((u, v, "edge") for v, row in enumerate(self.matrix, 1) for u, there in enumerate(row) if there)
        n = len(self.matrix) + 1
        return tuple((u, v) for u, v, _ in CellGraph(n, edges, (n - 1,)).live)

    def widths(self, channels: int) -> dict[int, int]:
        """Channels of each live inner vertex: those that feed the output share its channels out, the first ones
        take the remainder; another has as many as the widest that it feeds."""
        last = len(self.matrix)
        feeding = [u for u, v in self.live if v == last and u > 0]
        found = {u: channels // len(feeding) + (i < channels % len(feeding)) for i, u in enumerate(feeding)}
        for u in range(last - 1, 0, -1):
            onward = [v for w, v in self.live if w == u and v != last]
            if u not in found and onward:
                found[u] = max(found[v] for v in onward)
        return found


def _conv(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return named(
        conv=nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), norm=nn.BatchNorm2d(c_out), act=nn.ReLU()
    )


class _Truncate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]


class Module101(nn.Module):
    """One cell: inner vertices that feed the output are concatenated, the input's projection is added."""

    def __init__(self, arch: Nb101, c_in: int, c_out: int) -> None:
        super().__init__()
        last, widths = len(arch.matrix), arch.widths(c_out) if len(arch.matrix) > 1 else {}
        inner = tuple((u, v, "project" if u == 0 else "pass") for u, v in arch.live if v != last)
        feeding = tuple(u for u, v in arch.live if v == last and u > 0)

        def edge(u: int, v: int, op: str) -> nn.Module:
            if u == 0:
                return _conv(c_in, widths[v], 1)
            return nn.Identity() if widths[u] == widths[v] else _Truncate(widths[v])

        def vertex(v: int) -> nn.Module:
            if v not in widths:
                return nn.Identity()
            op = arch.ops[v - 1]
            return nn.MaxPool2d(3, 1, padding=1) if op == "m" else _conv(widths[v], widths[v], int(op))

        self.cell = Cell(CellGraph(last, inner, feeding), edge, vertex) if feeding else None
        self.project = _conv(c_in, c_out, 1) if (0, last) in arch.live else None

    def forward(self, x: Tensor) -> Tensor:
        parts = [part(x) for part in (self.cell, self.project) if part is not None]
        total: Tensor = sum(parts[1:], parts[0])
        return total


class NB101(nn.Module):
    """The benchmark's network: 3×3 stem, three stacks of cells, 2×2 max pooling and twice the channels between
    them, global average, linear readout. ``x: (batch, in_channels, H, W)`` → ``(batch, classes)``.

    Args:
        channels: of the stem and the first stack; the benchmark has 128.
        cells: cells in each stack; the benchmark has 3.
    """

    def __init__(
        self, arch: Nb101, *, in_channels: int = 3, classes: int = 10, channels: int = 128, cells: int = 3
    ) -> None:
        super().__init__()
        self.stem = _conv(in_channels, channels, 3)
        stacks = []
        for stack in range(STACKS):
            width = channels << stack
            first = channels if stack == 0 else width // 2
            modules = [Module101(arch, first if i == 0 else width, width) for i in range(cells)]
            down = [nn.MaxPool2d(2, ceil_mode=True)] if stack else []
            stacks.append(nn.Sequential(*down, *modules))
        self.stacks = nn.Sequential(*stacks)
        self.readout = named(
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(channels << (STACKS - 1), classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.stacks(self.stem(x)))
        return logits


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    arch = Nb101.parse(code)
    in_channels, _, _ = image_shape(setting, "nb101")
    feeding = sum(v == len(arch.matrix) and u > 0 for u, v in arch.live)
    if options.get("channels", 128) < feeding:
        raise TargetError(f"channels={options['channels']}: {feeding} vertices share them; give at least one each")
    return partial(NB101, arch, in_channels=in_channels, classes=setting.classes, **options)


SPACES.add("nb101")(
    Space(
        read=_read,
        shape=CIFAR,
        options=(
            INPUT,
            CLASSES,
            Option("channels", "int", "channels of the first stack (benchmark: 128)", low=1, high=4096),
            Option("cells", "int", "cells in each of the three stacks (benchmark: 3)", low=1, high=100),
        ),
    )
)
