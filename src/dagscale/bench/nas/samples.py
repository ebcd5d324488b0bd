"""Which architectures of NAS-Bench-201 a study trains."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dagscale.bench.data.files import parsing, read_all
from dagscale.bench.nas.agreement import top as best
from dagscale.bench.nas.isomorphism import canonical, every_group
from dagscale.bench.nas.tables import Column
from dagscale.errors import DataError, TargetError
from dagscale.models.nb201 import Nb201

CLASSES = 10
"""Classes of rank that a list without an end is stratified by."""


def read(text: str) -> tuple[Nb201, ...]:
    """Architectures from a file with one a line, or from a list with commas.

    Raises:
        DataError: if there are none, one is given twice, or the file cannot be read.
        TargetError: if one is no architecture.
    """
    with parsing(f"{text} cannot be read"):
        there = os.path.isfile(text)
        parts = read_all(Path(text)).decode("utf-8-sig").splitlines() if there else text.split(",")
    found: dict[Nb201, int] = {}
    for number, part in enumerate(parts, 1):
        if not part.strip():
            continue
        try:
            arch = Nb201.parse(part.strip())
        except TargetError as error:
            if not there and len(parts) == 1:
                raise DataError(f"{text!r} is neither a file nor a code ({error})") from None
            raise TargetError(f"architecture {number}: {error}") from None
        if arch in found:
            raise DataError(f"architecture {number}: {arch} is given twice")
        found[arch] = number
    if not found:
        raise DataError(f"{text!r} names no architectures: give codes with commas, or a file with one a line")
    return tuple(found)


def distinct(archs: Iterable[Nb201]) -> tuple[Nb201, ...]:
    """The first of each group that computes the same (rule ``linear`` of `dagscale.bench.nas.isomorphism`)."""
    first: dict[object, Nb201] = {}
    for arch in archs:
        first.setdefault(canonical(arch), arch)
    return tuple(first.values())


def listed(ranking: Column | None = None, seed: int = 0) -> tuple[Nb201, ...]:
    """All architectures with a path, in the fixed order in which a study without an end takes them.

    First one of each group that computes the same, then the groups' second members, and so on: what is trained once is
    not trained again before all others were. Within each round every ``CLASSES`` that follow each other hold one of
    each class of equal size by rank, so that wherever the study stops it has a stratified sample.

    Args:
        ranking: accuracies; without them the order is random.
        seed: of the order; of each group's members too.

    Raises:
        DataError: if the ranking lacks an architecture with a path.
    """
    rng = random.Random(seed)
    archs = [arch for arch in Nb201.enumerate() if arch.graph.has_path]
    value = dict.fromkeys(archs, 0.0)
    if ranking is not None:
        value = dict(zip(ranking.archs, ranking.values, strict=True))
        lacking = [arch.code for arch in archs if arch not in value]
        if lacking:
            raise DataError(f"{ranking.source} lacks {len(lacking):,} architectures (the first is {lacking[0]})")
    rounds: dict[int, list[Nb201]] = {}
    for group in every_group():
        for number, arch in enumerate(rng.sample(group, len(group)) if group[0].graph.has_path else ()):
            rounds.setdefault(number, []).append(arch)
    found: list[Nb201] = []
    for number in sorted(rounds):
        rng.shuffle(rounds[number])
        order = sorted(rounds[number], key=lambda arch: -value[arch])  # stable: equal ones stay shuffled
        classes = [[order[i] for i in rows] for rows in np.array_split(np.arange(len(order)), CLASSES)]
        for rank in classes:
            rng.shuffle(rank)
        while any(classes):
            for rank in rng.sample(classes, CLASSES):
                found += [rank.pop()] if rank else []
    return tuple(found)


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
