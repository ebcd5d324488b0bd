"""Which architectures of NAS-Bench-201 a study trains."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.nas.agreement import top as best
from dagscale.bench.nas.isomorphism import canonical
from dagscale.bench.nas.tables import Column
from dagscale.errors import DataError, TargetError
from dagscale.models.nb201 import Nb201


def read(text: str) -> tuple[Nb201, ...]:
    """Architectures from a file with one a line, or from a list with commas.

    Raises:
        DataError: if there are none, one is given twice, or the file cannot be read.
        TargetError: if one is no architecture.
    """
    path = Path(text)
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a list too long for a name
        there = False
    with parsing(f"{text} cannot be read"):
        parts = read_all(path).decode("utf-8").splitlines() if there else text.split(",")
    found: list[Nb201] = []
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        try:
            arch = Nb201.parse(part.strip())
        except TargetError as error:
            raise TargetError(f"architecture {number}: {error}") from None
        if arch in found:
            raise DataError(f"architecture {number}: {arch} is given twice")
        found.append(arch)
    if not found:
        raise DataError(f"{text!r} names no architectures: give codes with commas, or a file with one a line")
    return tuple(found)


def distinct(archs: Iterable[Nb201]) -> tuple[Nb201, ...]:
    """The first of each group that computes the same (rule ``linear`` of `dagscale.bench.nas.isomorphism`)."""
    first: dict[object, Nb201] = {}
    for arch in archs:
        first.setdefault(canonical(arch), arch)
    return tuple(first.values())


def draw(
    count: int, seed: int = 0, *, ranking: Column | None = None, top: int = 100, once: bool = False
) -> tuple[Nb201, ...]:
    """``count`` random architectures with a path.

    Args:
        ranking: accuracies; one architecture is then drawn from each of ``count`` classes of equal size by rank.
        top: only from the best so many percent of the ranking.
        once: one architecture of each group that computes the same.

    Raises:
        DataError: if there are not so many, or ``top`` comes without a ranking.
    """
    if not 1 <= top <= 100 or (top < 100 and ranking is None):
        raise DataError(f"--top {top}: give 1 to 100 percent of a --benchmark table")
    archs = tuple(Nb201.enumerate()) if ranking is None else tuple(ranking.archs[i] for i in best(ranking.values, top))
    able = [arch for arch in (distinct(archs) if once else archs) if arch.graph.has_path]
    if not 1 <= count <= len(able):
        raise DataError(f"{count} architectures were asked for, and there are 1 to {len(able):,} to draw from")
    rng = random.Random(seed)
    if ranking is None:
        return tuple(rng.sample(able, count))
    return tuple(able[rng.choice(list(rows))] for rows in np.array_split(np.arange(len(able)), count))
