"""Which NAS-Bench-201 codes stand for one and the same computation.

Rules, from the literature's to the strongest:

- ``strings-skip``, ``strings``: what the benchmark's authors count. Each vertex is written as a text of the
  texts it sums; a skip passes its source's text on; with ``strings``, ``none`` and what reads nothing is
  written ``#``. 12,751 and 6,466 distinct texts. Texts err both ways: padding with ``#`` and nested sums tell
  apart what is equal, and unrolling a shared vertex makes one of what has one convolution here and two there.
- ``dag``: dead edges go, skips are contracted, sums are multisets of signals; two cells are one if their
  convolutions can be matched so that the same kinds read the same sums. Shared vertices stay shared.
- ``linear``: moreover, average pooling distributes over sums. The two cells compute the same function for
  matching weights, exactly.
- ``scale``: moreover, a convolution that reads a multiple of a signal reads the signal: ReLU and convolution
  pass a positive factor on and BatchNorm removes it (up to its epsilon).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal

from dagscale.models.nb201 import EDGES, Nb201

Rule = Literal["strings-skip", "strings", "dag", "linear", "scale"]
RULES: tuple[Rule, ...] = ("strings-skip", "strings", "dag", "linear", "scale")

# A signal is a multiset of terms, as a sorted tuple of (term, count).
Signal = tuple[tuple[Any, int], ...]


def canonical(arch: Nb201, rule: Rule = "linear") -> Any:
    """A value that is equal for two architectures if and only if the rule makes one of them."""
    if rule in ("strings", "strings-skip"):
        return _text(arch, zero=rule == "strings")
    colour = _walk(arch, lambda i, op, reads: repr((op, reads)), rule)[0]
    ordered = sorted(colour, key=lambda i: colour[i])
    blocks = [tuple(same) for _, same in itertools.groupby(ordered, key=lambda i: colour[i])]
    return min(
        _numbered(arch, {conv: k for k, conv in enumerate(itertools.chain(*order))}, rule)
        for order in itertools.product(*map(itertools.permutations, blocks))
    )


def groups(archs: Iterable[Nb201] | None = None, rule: Rule = "linear") -> tuple[tuple[Nb201, ...], ...]:
    """The architectures (all 15,625 by default) in groups of equals, each led by the first of its members."""
    found: dict[Any, list[Nb201]] = {}
    for arch in archs if archs is not None else Nb201.enumerate():
        found.setdefault(canonical(arch, rule), []).append(arch)
    return tuple(map(tuple, found.values()))


@cache
def every_group() -> tuple[tuple[Nb201, ...], ...]:
    """The groups of all 15,625 by the rule ``linear``."""
    return groups()


@cache
def _leaders() -> Mapping[Any, Nb201]:
    return {canonical(group[0]): group[0] for group in every_group()}


def representative(arch: Nb201) -> Nb201:
    """The first of all architectures that compute the same: what is measured once, and holds for all of them."""
    return _leaders()[canonical(arch)]


def _numbered(arch: Nb201, number: dict[int, int], rule: Rule) -> tuple[str, str]:
    """What each convolution reads, by number, and what the output is."""
    reads: dict[int, Any] = {}

    def name(i: int, op: str, signal: Signal) -> int:
        reads[number[i]] = (op, signal)
        return number[i]

    _, output = _walk(arch, name, rule)
    return repr(sorted(reads.items())), repr(output)


def _walk(arch: Nb201, name: Callable[[int, str, Signal], Any], rule: Rule) -> tuple[dict[int, Any], Signal]:
    """Follow the signals through the cell.

    Args:
        name: (position among the live edges, operation, what it reads) → how terms are to call a convolution.

    Returns:
        Each convolution's name, and the output.
    """
    signals: dict[int, dict[Any, int]] = {0: {(0, ""): 1}}
    names: dict[int, Any] = {}
    for i, (u, v, op) in enumerate(arch.graph.live):
        source = signals[u]
        if op == "skip_connect":
            terms = source
        elif op != "avg_pool_3x3":
            shared = math.gcd(*source.values()) if rule == "scale" else 1
            names[i] = name(i, op, _frozen({term: n // shared for term, n in source.items()}))
            terms = {(0, names[i]): 1}
        elif rule == "dag":
            terms = {(1, _frozen(source)): 1}
        else:  # a term is (how often pooled, what)
            terms = {(pooled + 1, origin): n for (pooled, origin), n in source.items()}
        total = signals.setdefault(v, {})
        for term, n in terms.items():
            total[term] = total.get(term, 0) + n
    return names, _frozen(signals.get(3, {}))


def _frozen(signal: dict[Any, int]) -> Signal:
    return tuple(sorted(signal.items(), key=repr))


def _text(arch: Nb201, zero: bool) -> str:
    texts = {0: "0"}
    for v in (1, 2, 3):
        parts = []
        for (u, w), op in zip(EDGES, arch.ops, strict=True):
            if w != v:
                continue
            if zero and (op == 0 or texts[u] == "#"):
                parts.append("#")
            else:
                parts.append(texts[u] if op == 1 else f"({texts[u]})@{op}")
        texts[v] = "+".join(sorted(parts))
    return texts[3]
