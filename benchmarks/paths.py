"""Path sums in one pass, against enumerating the paths.

    python benchmarks/paths.py

Two tables: on complete DAGs of growing size, our pass against recursive enumeration (the floor it replaces),
as a ratio of medians taken in one run; and our own time per edge up to a million edges.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from dagscale import Graph, path_sums
from dagscale.graph import Edge, Op

RELU = (Op("activation", "relu"),)
BUDGET = 5.0
"""Seconds after which an enumeration is not repeated, and the next size not tried."""


def complete(vertices: int) -> Graph:
    return Graph.from_edges([Edge(u, v, RELU) for v in range(vertices) for u in range(v)])


def ladder(edges: int) -> Graph:
    """A residual chain: two parallel edges a step."""
    return Graph.from_edges([Edge(v // 2, v // 2 + 1, RELU if v % 2 else ()) for v in range(edges)])


def layered(edges: int, width: int = 100) -> Graph:
    """Layers of 100 vertices, each reading the whole layer before it."""
    steps = max(1, edges // width**2)
    pairs = ((s * width + u, (s + 1) * width + v) for s in range(steps) for v in range(width) for u in range(width))
    return Graph.from_edges([Edge(u, v, RELU) for u, v in pairs])


def chain(edges: int) -> Graph:
    return Graph.from_edges([Edge(v, v + 1, RELU) for v in range(edges)])


def enumerate_cubes(graph: Graph) -> tuple[int, int]:
    """(Σ_p 1, Σ_p L_p³) by walking every path."""
    last = len(graph.vertices) - 1
    count = total = 0

    def walk(vertex: int, depth: int) -> None:
        nonlocal count, total
        if vertex == last:
            count += 1
            total += depth**3
            return
        for e in graph.out_edges[vertex]:
            walk(graph.edges[e].dst, depth + graph.edges[e].depth)

    walk(0, 0)
    return count, total


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
        if sum(taken) > BUDGET:
            break
    return taken


def main() -> None:
    console = Console()
    console.print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, "
                  f"torch {torch.__version__}", highlight=False)  # fmt: skip
    against = Table(title="complete DAGs: enumeration / one pass")
    for name in ("vertices", "edges", "paths", "pass ms (min–max)", "enumeration ms (min–max)", "ratio of medians"):
        against.add_column(name, justify="right")
    for vertices in range(4, 40, 2):
        graph = complete(vertices)
        graph.in_edges, graph.out_edges  # noqa: B018  built once per graph, for both
        ours = seconds(lambda g=graph: path_sums(g), 20)
        theirs = seconds(lambda g=graph: enumerate_cubes(g), 5)
        sums = path_sums(graph)
        assert enumerate_cubes(graph) == (sums.paths, sums.depth_cubed)
        against.add_row(
            str(vertices), str(len(graph.edges)), f"{sums.paths:,}",
            f"{statistics.median(ours) * 1e3:.3f} ({min(ours) * 1e3:.3f}–{max(ours) * 1e3:.3f})",
            f"{statistics.median(theirs) * 1e3:.3f} ({min(theirs) * 1e3:.3f}–{max(theirs) * 1e3:.3f})",
            f"{statistics.median(theirs) / statistics.median(ours):,.1f}",
        )  # fmt: skip
        if max(theirs) > BUDGET / 5:
            break
    console.print(against)
    growth = Table(title="our pass: growth in edges")
    for name in ("graph", "edges", "digits of Σ L³", "seconds (min–max)", "µs per edge"):
        growth.add_column(name, justify="right")
    # In a residual chain of n edges the sums themselves have 0.15 n digits, and adding them takes that long.
    sizes = {chain: (10**3, 10**4, 10**5, 10**6), layered: (10**4, 10**5, 10**6), ladder: (10**3, 10**4, 10**5)}
    for build, edges in sizes.items():
        for size in edges:
            graph = build(size)
            graph.in_edges  # noqa: B018
            taken = seconds(lambda g=graph: path_sums(g), 3)
            bits = path_sums(graph).depth_cubed.bit_length()
            growth.add_row(
                build.__name__, f"{len(graph.edges):,}", f"{bits * 0.30103:,.0f}",
                f"{statistics.median(taken):.4f} ({min(taken):.4f}–{max(taken):.4f})",
                f"{statistics.median(taken) / len(graph.edges) * 1e6:.2f}",
            )  # fmt: skip
    console.print(growth)


if __name__ == "__main__":
    sys.exit(main())
