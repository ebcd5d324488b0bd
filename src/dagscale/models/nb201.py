"""The space ``nb201:CODE``: NAS-Bench-201 [Dong & Yang, ICLR 2020], the topology space of NATS-Bench.

A cell has 4 vertices and one of 5 operations on each of its 6 edges: 15,625 architectures. An architecture is
written as a code, ``3_24_440`` (one group of digits per vertex, one digit per earlier vertex: 0 none, 1
skip_connect, 2 nor_conv_1x1, 3 nor_conv_3x3, 4 avg_pool_3x3), as the benchmark's own string,
``|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|…|``, or as its index in the benchmark.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape
from dagscale.models.cells import (
    CELL_OPS,
    NONE,
    Cell,
    CellGraph,
    Moments,
    cell_moments,
    named,
    parse_arch_string,
    relu_conv_norm,
)
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import CIFAR, SPACES, Setting, Space

OPS = (NONE, "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
COUNT = len(OPS) ** len(EDGES)
STAGES = 3
_FORMS = "write a code such as 3_24_440, a string such as |nor_conv_3x3~0|+|…|, or an index from 0 to 15624"


@dataclass(frozen=True)
class Nb201:
    """One architecture.

    Attributes:
        ops: for each of ``EDGES``, an index into ``OPS``.

    Raises:
        TargetError: if there are not six, or one is not 0 … 4.
    """

    ops: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ops) != len(EDGES) or not all(0 <= op < len(OPS) for op in self.ops):
            raise TargetError(f"{self.ops} is no NAS-Bench-201 cell; {_FORMS}")

    @classmethod
    def parse(cls, text: str) -> Nb201:
        """Read a code, an architecture string, or an index of the published benchmark.

        Raises:
            TargetError: if it is none of these; the message names the fault.
        """
        if "~" in text or "|" in text:
            return cls._from_string(text)
        if text.isascii() and text.isdigit() and "_" not in text:
            if int(text) >= COUNT:
                raise TargetError(f"index {text}: NAS-Bench-201 has the architectures 0 to {COUNT - 1}")
            return published_order()[int(text)]
        groups = text.split("_")
        for v, group in enumerate(groups, 1):
            wrong = [ch for ch in group if ch not in "01234"]
            if wrong:
                raise TargetError(f"architecture code {text!r}: {wrong[0]!r} is no operation; write 0 to 4")
            if len(group) != v:
                raise TargetError(f"architecture code {text!r}: group {v} ({group!r}) must have {v} digits; {_FORMS}")
        if len(groups) != 3:
            raise TargetError(f"architecture code {text!r} has {len(groups)} groups, not 3; {_FORMS}")
        return cls(tuple(int(ch) for group in groups for ch in group))

    @classmethod
    def _from_string(cls, text: str) -> Nb201:
        groups = parse_arch_string(text, OPS)
        found = {(u, v): OPS.index(op) for v, group in enumerate(groups, 1) for u, op in group}
        if tuple(sorted(found, key=lambda e: (e[1], e[0]))) != EDGES or sum(map(len, groups)) != len(EDGES):
            raise TargetError(
                f"architecture string {text!r}: needs each of the edges "
                f"{', '.join(f'{u}→{v}' for u, v in EDGES)} once ('none' where there is no edge)"
            )
        return cls(tuple(found[e] for e in EDGES))

    @classmethod
    def enumerate(cls) -> Iterator[Nb201]:
        """All 15,625, in lexicographic order of their codes."""
        return (cls(ops) for ops in itertools.product(range(len(OPS)), repeat=len(EDGES)))

    @property
    def code(self) -> str:
        a, b, c, d, e, f = self.ops
        return f"{a}_{b}{c}_{d}{e}{f}"

    @property
    def arch_str(self) -> str:
        """The benchmark's own string."""
        groups = [[f"{OPS[op]}~{u}" for (u, w), op in zip(EDGES, self.ops, strict=True) if w == v] for v in (1, 2, 3)]
        return "+".join(f"|{'|'.join(group)}|" for group in groups)

    @property
    def index(self) -> int:
        """The published index (of NAS-Bench-201 and NATS-Bench alike)."""
        return _published_index()[self.ops]

    def __str__(self) -> str:
        return self.code

    @cached_property
    def graph(self) -> CellGraph:
        """The cell, without edges that carry none."""
        edges = tuple((u, v, OPS[op]) for (u, v), op in zip(EDGES, self.ops, strict=True) if op)
        return CellGraph(4, edges, (3,))

    @property
    def kind(self) -> str:
        """``convolutional``, or what the cell lacks: ``pooling only``, ``skip connections only``, ``no path``."""
        ops = {op for _, _, op in self.graph.live}
        if not ops:
            return "no path"
        if any(CELL_OPS[op].kernels for op in ops):
            return "convolutional"
        return "pooling only" if "avg_pool_3x3" in ops else "skip connections only"


@cache
def published_order() -> tuple[Nb201, ...]:
    """All architectures by published index: the lexicographic order, shuffled with Python's generator at seed 88.

    Found by comparing with the published table, all 15,625 of which agree.
    """
    order = list(Nb201.enumerate())
    random.Random(88).shuffle(order)
    return tuple(order)


@cache
def _published_index() -> Mapping[tuple[int, ...], int]:
    return {arch.ops: i for i, arch in enumerate(published_order())}


# --- the network ----------------------------------------------------------------------------------


class Reduction(nn.Module):
    """Residual block that halves the resolution and doubles the channels; a 2×2 average and a 1×1 convolution
    without normalisation make its shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = relu_conv_norm(c_in, c_out, 3, stride=2)
        self.second = relu_conv_norm(c_out, c_out, 3)
        # ceil_mode: a side of odd length halves like that of a padded convolution of stride 2.
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True, count_include_pad=False)
        self.shortcut = named(pool=pool, conv=nn.Conv2d(c_in, c_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.second(self.first(x))
        return out


class NB201(nn.Module):
    """The benchmark's network: a 3×3 stem, three stages of equal cells with a residual reduction block before
    the second and third, BatchNorm, ReLU, global average, linear readout.

    ``x: (batch, in_channels, H, W)`` → logits ``(batch, classes)``. Convolutions stand as ReLU → convolution
    without bias → BatchNorm. ``none`` is no edge at all; a convolution that reads a vertex without signal exists
    but is never called (the published network calls it: all that comes out is BatchNorm's shift, a constant).
    A cell without a path gives zeros, so that the network's output is one constant per class.

    Args:
        channels: channels of the first stage; the benchmark has 16.
        cells: cells in each stage; the benchmark has 5.
    """

    def __init__(
        self, arch: Nb201, *, in_channels: int = 3, classes: int = 10, channels: int = 16, cells: int = 5
    ) -> None:
        super().__init__()
        for name, size in {"channels": channels, "cells": cells, "classes": classes}.items():
            if size < 1:
                raise TargetError(f"{name}={size}: must be at least 1")
        self.arch = arch
        stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.stem = named(conv=stem, norm=nn.BatchNorm2d(channels))
        widths = [channels << stage for stage in range(STAGES)]
        self.stages = nn.ModuleList(nn.Sequential(*(_cell(arch, width) for _ in range(cells))) for width in widths)
        self.reductions = nn.ModuleList(Reduction(a, b) for a, b in itertools.pairwise(widths))
        self.readout = named(
            norm=nn.BatchNorm2d(widths[-1]),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            linear=nn.Linear(widths[-1], classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](self.stem(x))
        for reduce, stage in zip(self.reductions, self.stages[1:], strict=True):
            x = stage(reduce(x))
        logits: Tensor = self.readout(x)
        return logits

    def extra_repr(self) -> str:
        return f"{self.arch} ({self.arch.kind})"


def _cell(arch: Nb201, width: int) -> Cell:
    return Cell(arch.graph, lambda u, v, op: CELL_OPS[op].build(width, width, 1))


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    arch = Nb201.parse(code)
    in_channels, _, _ = image_shape(setting, "nb201")
    return partial(NB201, arch, in_channels=in_channels, classes=setting.classes, **options)


def _sample(vertices: int, count: int, rng: random.Random) -> tuple[str, ...]:
    """``count`` distinct codes with a path; the cells have 4 vertices, whatever is asked for."""
    able = [arch.code for arch in Nb201.enumerate() if arch.graph.has_path]
    if count > len(able):
        raise TargetError(f"{count} architectures were asked for, but only {len(able)} have a path; ask for fewer")
    return tuple(rng.sample(able, count))


SPACES.add("nb201")(
    Space(
        read=_read,
        shape=CIFAR,
        options=(
            INPUT,
            CLASSES,
            Option("channels", "int", "channels of the first stage (benchmark: 16)", low=1, high=4096),
            Option("cells", "int", "cells in each of the three stages (benchmark: 5)", low=1, high=100),
        ),
        sample=_sample,
    )
)


# --- path sums of the whole network, without building it ------------------------------------------


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What the law ``paths`` needs of a network.

    Attributes:
        paths: number of input→output paths.
        depth_cubed: ``Σ_p L_p³`` of Eq. 8.
        kernel: the effective kernel size ``q`` of Eq. 9; 1 where there is no path.
    """

    paths: int
    depth_cubed: int
    kernel: float

    def factor(self, base: PathFacts) -> float:
        """``sqrt(S_base / S) · q_base / q``: what to multiply the base's rate by [Chen et al. 2024, Eq. 8, 9].

        0 where there is no path: nothing can be trained.
        """
        if not self.depth_cubed:
            return 0.0
        # Through logarithms: the sums of deep networks are beyond a float.
        depth = math.exp((math.log(base.depth_cubed) - math.log(self.depth_cubed)) / 2)
        return depth * base.kernel / self.kernel


_DEPTH = {op: CELL_OPS[op].depth for op in OPS[1:]}
_KERNEL = {op: sum(CELL_OPS[op].kernels) for op in OPS[1:]}
_LAYERS = {op: len(CELL_OPS[op].kernels) for op in OPS[1:]}


def path_facts(arch: Nb201, cells: int = 5) -> PathFacts:
    """The path sums of ``NB201(arch, cells=cells)``, equal to those of its traced graph.

    Paths in series multiply like polynomials in the depth, so a cell's four moments are raised to the number
    of cells and joined with those of stem (no activation), reduction blocks (2, or 0 by the shortcut) and
    readout (1).
    """
    parts = (
        (_DEPTH, Moments.step(0), Moments.step(2).beside(Moments.step(0)), Moments.step(1)),
        (_KERNEL, Moments.step(3), Moments.step(6).beside(Moments.step(1)), Moments.step(0)),
        (_LAYERS, Moments.step(1), Moments.step(2).beside(Moments.step(1)), Moments.step(0)),
    )
    depth, kernel, layers = (
        _macro(stem, cell_moments(arch.graph, weight), cells, block, end) for weight, stem, block, end in parts
    )
    whole, rest = divmod(kernel.m2, layers.m2) if layers.m2 else (1, 0)
    return PathFacts(depth.m0, depth.m3, math.sqrt(whole + (rest / layers.m2 if rest else 0)))


@cache
def _macro(stem: Moments, cell: Moments, cells: int, block: Moments, end: Moments) -> Moments:
    stage = cell.times(cells)
    return stem.then(stage).then(block).then(stage).then(block).then(stage).then(end)
