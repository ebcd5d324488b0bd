"""Where signals live: which node wrote which part of which storage.

A view shares its base's storage, so a write through any view is seen by all others. Slices are told apart:
reading one half of a tensor whose other half was written by someone else depends on the first writer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, Literal

from torch import Tensor

from dagscale.tracing._torch import StorageWeakRef, storage_key

Relation = Literal["apart", "inside", "overlap"]


@dataclass(frozen=True, slots=True)
class Region:
    """The bytes ``offset + Σ i_k stride_k``, ``0 ≤ i_k < size_k``, of a storage.

    Attributes:
        dims: ``(stride, size)`` in descending order of stride, sizes of 1 left out.
        size: number of bytes.
    """

    offset: int
    dims: tuple[tuple[int, int], ...]
    size: int


def region_of(tensor: Tensor, dim: int = 0, start: int = 0, length: int | None = None) -> Region:
    """The part of its storage that ``tensor`` shows, or that ``tensor.narrow(dim, start, length)`` would."""
    width = tensor.element_size()
    strides = [int(s) * width for s in tensor.stride()]
    sizes = [int(n) for n in tensor.shape]
    offset = int(tensor.storage_offset()) * width
    if length is not None:
        offset += start * strides[dim]
        sizes[dim] = length
    strides.append(1)
    sizes.append(width)
    dims = sorted(((s, n) for s, n in zip(strides, sizes, strict=True) if n != 1 and s != 0), reverse=True)
    return Region(offset, tuple(dims), 0 if 0 in sizes else prod(n for _, n in dims))


def part_of(tensor: Tensor) -> Region | None:
    """The part of its storage that ``tensor`` shows; None for a tensor of a kind that has no strides."""
    try:
        return region_of(tensor)
    except (NotImplementedError, RuntimeError):
        return None


def relation(a: Region, b: Region) -> Relation:
    """Whether ``a`` lies ``inside`` ``b``, ``apart`` from it, or may ``overlap`` it.

    Stride by stride from the largest, both regions are intervals of blocks with something inside the blocks;
    where they are not (a block wraps around), the answer is the cautious ``overlap``.
    """
    if not a.size or not b.size:
        return "apart"
    strides = sorted({s for s, _ in (*a.dims, *b.dims)} | {1}, reverse=True)
    blocks_a, blocks_b = _blocks(a, strides), _blocks(b, strides)
    if blocks_a is None or blocks_b is None:
        low_a, high_a = _span(a)
        low_b, high_b = _span(b)
        return "apart" if high_a < low_b or high_b < low_a else "overlap"
    inside = True
    for (start_a, n_a), (start_b, n_b) in zip(blocks_a, blocks_b, strict=True):
        if start_a + n_a <= start_b or start_b + n_b <= start_a:
            return "apart"
        inside = inside and start_b <= start_a and start_a + n_a <= start_b + n_b
    return "inside" if inside else "overlap"


def _span(region: Region) -> tuple[int, int]:
    return region.offset, region.offset + sum(s * (n - 1) for s, n in region.dims)


def _blocks(region: Region, strides: list[int]) -> list[tuple[int, int]] | None:
    """``region`` as ``(first, number)`` of blocks for each of ``strides``, each inside one block of the last."""
    counts: dict[int, int] = {}
    for stride, size in region.dims:
        counts[stride] = counts.get(stride, 1) * size
    for larger, stride in pairwise(strides):  # split dims that run over a larger block
        size = counts.get(stride, 1)
        per_block = larger // stride
        if size > per_block and larger % stride == 0 and size % per_block == 0:
            counts[larger] = counts.get(larger, 1) * (size // per_block)
            counts[stride] = per_block
    blocks, offset = [], region.offset
    for i, stride in enumerate(strides):
        first, offset = divmod(offset, stride)
        reach = offset + sum(s * (counts.get(s, 1) - 1) for s in strides[i + 1 :])
        if reach >= stride:
            return None
        blocks.append((first, counts.get(stride, 1)))
    return blocks


@dataclass(slots=True)
class _Cell:
    """One storage: ``whole`` wrote all of it, or ``pieces`` did, the latest last (None: a constant did)."""

    whole: int | None = None
    pieces: list[tuple[Region, int | None]] = field(default_factory=list)
    alive: Any = None


class Memory:
    """Storage → who wrote its parts.

    Args:
        join: makes the node that stands for several nodes' values side by side.
    """

    def __init__(self, join: Callable[[tuple[int, ...], Tensor], int]) -> None:
        self._cells: dict[int, _Cell] = {}
        self._join = join
        self._joined: dict[tuple[int, ...], int] = {}

    @staticmethod
    def key(tensor: Tensor) -> int:
        """Identifies the storage, or a tensor that has none."""
        return storage_key(tensor) or id(tensor)

    def __contains__(self, tensor: Tensor) -> bool:
        return self.key(tensor) in self._cells

    def _cell(self, tensor: Tensor) -> _Cell:
        """The storage's cell; its reference keeps the address from being used again."""
        key = self.key(tensor)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
            try:
                cell.alive = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            except (NotImplementedError, RuntimeError):
                cell.alive = tensor
        return cell

    def write(self, tensor: Tensor, node: int | None, parts: Iterable[tuple[Region, int | None]] = ()) -> None:
        """``node`` (None: a constant) wrote the elements of ``tensor``.

        Args:
            parts: regions of ``tensor`` and the nodes whose values stand there unchanged.
        """
        if covers_storage(tensor):
            if node is None:
                self._cells.pop(self.key(tensor), None)
                return
            cell = self._cell(tensor)
            cell.whole = node
            cell.pieces = list(parts)
            return
        if node is None and tensor not in self:
            return
        cell = self._cell(tensor)
        region = region_of(tensor)
        if cell.whole is not None and not cell.pieces:
            cell.pieces = [(_everything(tensor), cell.whole)]
        cell.whole = None
        cell.pieces = [piece for piece in cell.pieces if relation(piece[0], region) != "inside"]
        cell.pieces.append((region, node))

    def read(self, tensor: Tensor) -> int | None:
        """The node whose value ``tensor`` shows, joined from several if need be; None for a constant."""
        cell = self._cells.get(self.key(tensor))
        if cell is None:
            return None
        if cell.whole is not None and (not cell.pieces or covers_storage(tensor)):
            return cell.whole
        found: dict[int, None] = {}
        region = region_of(tensor)
        seen: list[Region] = []
        for part, node in reversed(cell.pieces):
            if relation(part, region) == "apart" or any(relation(part, s) == "inside" for s in seen):
                continue
            if node is not None:
                found[node] = None
            if relation(region, part) == "inside":
                break
            seen.append(part)
            if all(relation(s, region) == "inside" for s in seen) and _disjoint(seen) >= region.size:
                break
        nodes = tuple(reversed(found))
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        if cell.whole is not None and len(nodes) == len({n for _, n in cell.pieces}):
            return cell.whole
        if nodes not in self._joined:
            self._joined[nodes] = self._join(nodes, tensor)
        return self._joined[nodes]


def _disjoint(regions: list[Region]) -> int:
    """The number of bytes that ``regions`` cover, 0 if they may overlap."""
    for i, a in enumerate(regions):
        if any(relation(a, b) != "apart" for b in regions[:i]):
            return 0
    return sum(r.size for r in regions)


def _everything(tensor: Tensor) -> Region:
    size = int(tensor.untyped_storage().nbytes())
    return Region(0, ((1, size),), size)


def covers_storage(tensor: Tensor) -> bool:
    """Whether ``tensor`` shows all of its storage."""
    try:
        bytes_shown = tensor.numel() * tensor.element_size()
        if bytes_shown < tensor.untyped_storage().nbytes():
            return False
        return 0 not in tensor.stride() or region_of(tensor).size >= tensor.untyped_storage().nbytes()
    except (NotImplementedError, RuntimeError):
        return True
