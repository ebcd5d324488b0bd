"""Traced networks of the spaces against the codes that built them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dagscale.graph.paths import path_sums
from dagscale.models import CNN, MLP, Dag
from dagscale.models.dag import SKIP, WEIGHT
from dagscale.tracing import trace


def depths_by_enumeration(dag: Dag) -> Counter[int]:
    """``L_p`` of every path through the code, the stem's activation included, by walking all of them."""
    found: Counter[int] = Counter()

    def walk(v: int, depth: int) -> None:
        if v == dag.vertices - 1:
            found[depth] += 1
        for u, w, op in dag.edges:
            if u == v:
                walk(w, depth + (op == WEIGHT))

    walk(0, 1)
    return found


def in_degrees_by_code(dag: Dag) -> dict[str, int]:
    """Each live weight edge's number of summands: a sum whose only consumer is a skip belongs to the next sum."""
    entering: dict[int, list[tuple[int, int]]] = {v: [] for v in range(dag.vertices)}
    leaving: dict[int, list[tuple[int, int]]] = {v: [] for v in range(dag.vertices)}
    for u, v, op in dag.live_edges:
        entering[v].append((u, op))
        leaving[u].append((v, op))

    def melts(v: int) -> bool:
        return v > 0 and len(leaving[v]) == 1 and leaving[v][0][1] == SKIP

    def summands(v: int) -> int:
        return sum(summands(u) if op == SKIP and melts(u) else 1 for u, op in entering[v])

    def end(v: int) -> int:
        return end(leaving[v][0][0]) if melts(v) else v

    return {f"{u}_{v}": summands(end(v)) for u, v, op in dag.live_edges if op == WEIGHT}


@st.composite
def codes(draw: st.DrawFn) -> Dag:
    vertices = draw(st.integers(2, 6))
    flat = [draw(st.integers(0, 2)) for _ in range(vertices * (vertices - 1) // 2)]
    dag = Dag(tuple(tuple(flat[v * (v - 1) // 2 : v * (v + 1) // 2]) for v in range(1, vertices)))
    return dag if dag.has_path else Dag((*dag.ops[:-1], (2, *dag.ops[-1][1:])))


def check(dag: Dag, model: torch.nn.Module, x: torch.Tensor) -> None:
    graph = trace(model, x)
    wanted = depths_by_enumeration(dag)
    sums = path_sums(graph)
    assert sums.paths == wanted.total()
    assert sums.depth == sum(n * depth for depth, n in wanted.items())
    assert sums.depth_squared == sum(n * depth**2 for depth, n in wanted.items())
    assert sums.depth_cubed == sum(n * depth**3 for depth, n in wanted.items())
    assert (sums.min_depth, sums.max_depth) == (min(wanted), max(wanted))
    in_degrees = {
        use.name.split(".edges.")[1].split(".")[0]: use.in_degree for use in graph.layers if "edges" in use.name
    }
    assert in_degrees == in_degrees_by_code(dag)
    live = {f"{u}_{v}" for u, v, op in dag.live_edges}
    dead = {p.name for p in graph.parameters if not p.reached}
    assert dead == {
        n for n, _ in model.named_parameters() if "edges" in n and n.split(".edges.")[1].split(".")[0] not in live
    }


@settings(max_examples=40, deadline=None)
@given(codes(), st.sampled_from(["post", "pre"]))
def test_mlp(dag: Dag, order: str) -> None:
    check(dag, MLP(dag, in_features=6, classes=3, width=4, order=order), torch.randn(2, 6))


@settings(max_examples=15, deadline=None)
@given(codes(), st.sampled_from(["none", "batch"]))
def test_cnn(dag: Dag, norm: str) -> None:
    check(dag, CNN(dag, in_channels=1, classes=3, width=4, norm=norm), torch.randn(2, 1, 6, 6))


@pytest.mark.parametrize(
    ("code", "paths", "cubed"), [("2_22_222", 4, 126), ("2_02_002", 1, 64), ("1_01_001", 1, 1), ("2_12_012", 3, 0)]
)
def test_by_hand(code: str, paths: int, cubed: int) -> None:
    sums = path_sums(trace(MLP(Dag.parse(code), in_features=6, classes=3, width=4), torch.randn(2, 6)))
    assert sums.paths == paths
    assert sums.depth_cubed == cubed or not cubed
