"""The space ``darts:NORMAL/REDUCTION``: DARTS cells [Liu et al., ICLR 2019] in the network for CIFAR.

A cell has two inputs, the outputs of the two cells before it (vertices 0 and 1), and four vertices, 2 to 5; each
vertex is one group ``|OP~VERTEX|…|``, the groups joined by ``+``. The outputs of the four are concatenated. One
cell stands for normal cells, another, behind the slash, for reduction cells. Published pairs have names: ``V1``,
``V2``, ``PDARTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape
from dagscale.models.cells import (
    CELL_OPS,
    NONE,
    Cell,
    CellGraph,
    FactorizedReduce,
    named,
    parse_arch_string,
    relu_conv_norm,
)
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import CIFAR, SPACES, Setting, Space
from dagscale.registry import did_you_mean

OPS = (
    NONE, "skip_connect", "avg_pool_3x3", "max_pool_3x3",
    "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
INNER = 4
STEM = 3
"""The stem has so many times the channels of a cell."""


def _cell_text(*pairs: tuple[str, int]) -> str:
    return "+".join(f"|{a}~{u}|{b}~{v}|" for (a, u), (b, v) in zip(pairs[::2], pairs[1::2], strict=True))


_S, _M, _A, _3, _5, _D3, _D5 = (
    "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
)  # fmt: skip
PUBLISHED = {
    # Liu et al. 2019, first and second order, as in their repository's genotypes.
    "V1": (
        _cell_text((_3, 1), (_3, 0), (_S, 0), (_3, 1), (_S, 0), (_3, 1), (_3, 0), (_S, 2)),
        _cell_text((_M, 0), (_M, 1), (_S, 2), (_M, 0), (_M, 0), (_S, 2), (_S, 2), (_A, 0)),
    ),
    "V2": (
        _cell_text((_3, 0), (_3, 1), (_3, 0), (_3, 1), (_3, 1), (_S, 0), (_S, 0), (_D3, 2)),
        _cell_text((_M, 0), (_M, 1), (_S, 2), (_M, 1), (_M, 0), (_S, 2), (_S, 2), (_M, 1)),
    ),
    # Chen et al. 2019, Progressive DARTS.
    "PDARTS": (
        _cell_text((_S, 0), (_D3, 1), (_S, 0), (_3, 1), (_3, 1), (_3, 3), (_3, 0), (_D5, 4)),
        _cell_text((_A, 0), (_5, 1), (_3, 0), (_D5, 2), (_M, 0), (_D3, 1), (_D3, 1), (_D5, 3)),
    ),
}


def parse(code: str) -> tuple[CellGraph, CellGraph]:
    """(normal cell, reduction cell) of a code or a published name.

    Raises:
        TargetError: if it is malformed, or no path leads through a cell.
    """
    texts = PUBLISHED.get(code) or tuple(code.split("/"))
    if len(texts) != 2:
        raise TargetError(
            f"{code!r} is not NORMAL/REDUCTION{did_you_mean(code, PUBLISHED)} (published pairs: {', '.join(PUBLISHED)})"
        )
    return _graph(texts[0]), _graph(texts[1])


def _graph(text: str) -> CellGraph:
    groups = parse_arch_string(text, OPS, first=2)
    if len(groups) != INNER:
        raise TargetError(f"cell {text!r} has {len(groups)} vertices, not {INNER}")
    edges = tuple((u, v, op) for v, group in enumerate(groups, 2) for u, op in group if op != NONE)
    graph = CellGraph(2 + INNER, edges, tuple(range(2, 2 + INNER)), inputs=2)
    if not graph.has_path:
        raise TargetError(f"no path from input to output in cell {text!r}")
    return graph


class DartsCell(nn.Module):
    """Brings both inputs to ``channels``, then runs the cell; a reduction cell reads them at stride 2."""

    def __init__(self, graph: CellGraph, before: tuple[int, int], channels: int, shrunk: bool, reduction: bool) -> None:
        super().__init__()
        older = FactorizedReduce(before[0], channels) if shrunk else relu_conv_norm(before[0], channels, 1)
        self.inputs = nn.ModuleList([older, relu_conv_norm(before[1], channels, 1)])

        def edge(u: int, v: int, op: str) -> nn.Module:
            return CELL_OPS[op].build(channels, channels, 2 if reduction and u < 2 else 1)

        self.cell = Cell(graph, edge)

    def forward(self, older: Tensor, newer: Tensor) -> Tensor:
        out: Tensor = self.cell(self.inputs[0](older), self.inputs[1](newer))
        return out


class Darts(nn.Module):
    """The network for CIFAR, without the auxiliary classifier and drop path: 3×3 stem of three times the channels,
    ``cells`` cells of which those at one third and two thirds reduce (half the resolution, twice the channels),
    global average, linear readout. ``x: (batch, in_channels, H, W)`` → ``(batch, classes)``.

    Args:
        channels: of a vertex in the first cells; published: 36.
        cells: in all; published: 20.
    """

    def __init__(
        self,
        normal: CellGraph,
        reduction: CellGraph,
        *,
        in_channels: int = 3,
        classes: int = 10,
        channels: int = 36,
        cells: int = 20,
    ) -> None:
        super().__init__()
        width = STEM * channels
        self.stem = named(conv=nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm=nn.BatchNorm2d(width))
        before, shrunk, layers = (width, width), False, []
        for i in range(cells):
            reduce = i in (cells // 3, 2 * cells // 3) and cells > 2
            channels *= 2 if reduce else 1
            layers.append(DartsCell(reduction if reduce else normal, before, channels, shrunk, reduce))
            before, shrunk = (before[1], INNER * channels), reduce
        self.cells = nn.ModuleList(layers)
        self.readout = named(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(before[1], classes))

    def forward(self, x: Tensor) -> Tensor:
        older = newer = self.stem(x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        logits: Tensor = self.readout(newer)
        return logits


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    normal, reduction = parse(code)
    in_channels, _, _ = image_shape(setting, "darts")
    return partial(Darts, normal, reduction, in_channels=in_channels, classes=setting.classes, **options)


SPACES.add("darts")(
    Space(
        read=_read,
        shape=CIFAR,
        options=(
            INPUT,
            CLASSES,
            Option("channels", "int", "channels of a vertex in the first cells (published: 36)", low=1, high=4096),
            Option("cells", "int", "cells in all (published: 20)", low=1, high=100),
        ),
    )
)
