"""Path sums against brute-force enumeration, and at sizes no enumeration reaches."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagscale import Graph, kernel_size, path_sums
from dagscale.errors import GraphError
from dagscale.graph import Edge, Layer, Op, ParamUse, Vertex
from dagscale.graph.paths import effective_depth

ACT = Op("activation", "relu")


def conv(k: int | tuple[int, int], name: str = "w") -> Op:
    kernel = (k, k) if isinstance(k, int) else k
    return Op("weight", "conv2d", params=(ParamUse(name, "weight"),), layer=Layer(kernel[0] * kernel[1], 1, kernel))


@st.composite
def dags(draw: st.DrawFn) -> Graph:
    """Random multigraphs with several inputs and outputs, dead vertices, and edges of depth 0 to 3."""
    n = draw(st.integers(2, 9))
    pairs = [(u, v) for v in range(n) for u in range(v)]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=18))
    edges = []
    for u, v in chosen:
        kernels = draw(st.lists(st.sampled_from([1, 3, 5]), max_size=2))
        depth = draw(st.integers(0, 3))
        edges.append(Edge(u, v, (*map(conv, kernels), *(ACT,) * depth)))
    n_in = draw(st.integers(1, max(1, n - 1)))
    kinds = ["input"] * n_in + ["sum"] * (n - n_in)
    n_out = draw(st.integers(1, n - n_in)) if n > n_in else 0
    for i in range(n_out):
        kinds[-1 - i] = "output"
    return Graph(tuple(Vertex(i, kind) for i, kind in enumerate(kinds)), tuple(edges))


def enumerate_paths(graph: Graph) -> list[tuple[int, ...]]:
    """Every input→output path as a tuple of edge indices, found by walking."""
    found: list[tuple[int, ...]] = []

    def walk(vertex: int, path: tuple[int, ...]) -> None:
        if vertex in graph.outputs:
            found.append(path)
        for e in graph.out_edges[vertex]:
            walk(graph.edges[e].dst, (*path, e))

    for vertex in graph.inputs:
        walk(vertex, ())
    return found


@given(dags())
def test_sums_equal_enumeration(graph: Graph) -> None:
    depths = [sum(graph.edges[e].depth for e in path) for path in enumerate_paths(graph)]
    sums = path_sums(graph)
    assert sums.paths == len(depths)
    assert sums.depth == sum(depths)
    assert sums.depth_squared == sum(d**2 for d in depths)
    assert sums.depth_cubed == sum(d**3 for d in depths)
    assert (sums.min_depth, sums.max_depth) == (min(depths, default=0), max(depths, default=0))
    assert sums.mean_depth == pytest.approx(sum(depths) / len(depths) if depths else 0)


@given(dags())
def test_live_edges_and_in_degrees_equal_enumeration(graph: Graph) -> None:
    on_path = {e for path in enumerate_paths(graph) for e in path}
    assert {e for e, live in enumerate(graph.live) if live} == on_path
    for v in range(len(graph.vertices)):
        assert graph.in_degree[v] == sum(graph.edges[e].dst == v for e in on_path)


@given(dags())
def test_kernel_size_equals_enumeration(graph: Graph) -> None:
    readouts = {id(use.op) for use in graph.layers if use.readout}
    weights, counts = 0.0, 0
    for path in enumerate_paths(graph):
        sizes = [op.layer.kernel_size for e in path for op in graph.edges[e].layers if id(op) not in readouts]
        weights += sum(sizes) ** 2
        counts += len(sizes) ** 2
    assert kernel_size(graph) == pytest.approx(math.sqrt(weights / counts) if counts else 1.0, rel=1e-5)


def chain(*ops: Op) -> Graph:
    return Graph((Vertex(0, "input"), Vertex(1, "output")), (Edge(0, 1, ops),))


def test_one_kernel_size_is_the_networks_exactly() -> None:
    for k in (1, 3, 5, 7, 11):
        readout = Op("weight", "linear", params=(ParamUse("r", "weight"),), layer=Layer(1, 1))
        assert kernel_size(chain(conv(k, "a"), ACT, conv(k, "b"), ACT, readout)) == k


def test_mixed_kernels_average_along_the_path_and_non_square_ones_count_geometrically() -> None:
    readout = Op("weight", "linear", params=(ParamUse("r", "weight"),), layer=Layer(1, 1))
    assert kernel_size(chain(conv(1, "a"), conv(3, "b"), readout)) == pytest.approx(2)
    assert kernel_size(chain(conv((1, 7), "a"), readout)) == pytest.approx(math.sqrt(7), rel=1e-5)


def complete(n: int) -> Graph:
    return Graph.from_edges([Edge(u, v, (ACT,)) for v in range(n) for u in range(v)])


def test_complete_dag_counts_all_subsets() -> None:
    """Each path picks a subset of the n-2 inner vertices: 2^(n-2) paths, depth = subset size + 1."""
    n = 40
    sums = path_sums(complete(n))
    assert sums.paths == 2 ** (n - 2)
    assert sums.depth_cubed == sum(math.comb(n - 2, k) * (k + 1) ** 3 for k in range(n - 1))


def test_counts_outgrow_floats_without_losing_a_unit() -> None:
    blocks = 2000
    pairs = [e for v in range(blocks) for e in (Edge(v, v + 1), Edge(v, v + 1, (conv(3, f"w{v}"), ACT)))]
    edges = (*pairs, Edge(blocks, blocks + 1))
    kinds = ["input", *["sum"] * blocks, "output"]
    graph = Graph(tuple(Vertex(i, k) for i, k in enumerate(kinds)), edges)
    sums = path_sums(graph)
    n = blocks
    assert sums.paths == 2**n
    assert sums.depth_cubed == n * n * (n + 3) * 2 ** (n - 3)  # third moment of a binomial, times 2^n
    assert kernel_size(graph) == 3


def test_edges_must_run_forward() -> None:
    with pytest.raises(GraphError, match="does not run forward"):
        Graph.from_edges([(1, 1)], vertices=3)


def test_graphs_are_values() -> None:
    assert complete(4) == complete(4)
    assert complete(4) != complete(5)
    with pytest.raises(AttributeError):
        complete(4).edges = ()  # type: ignore[misc]


def test_networkx_agrees_on_paths() -> None:
    import networkx

    graph = complete(8)
    other = networkx.MultiDiGraph([(edge.src, edge.dst) for edge in graph.edges])
    assert len(list(networkx.all_simple_edge_paths(other, 0, 7))) == path_sums(graph).paths
    assert [other.in_degree(v) for v in range(8)] == list(graph.in_degree)


@given(dags())
def test_effective_depth_equals_enumeration(graph: Graph) -> None:
    lengths = []
    for path in enumerate_paths(graph):
        ends = [graph.edges[e].dst for e in path]
        added = [v for v in ends if graph.vertices[v].kind == "sum" and graph.in_degree[v] > 1]
        lengths.append(len(added) + sum(len(graph.edges[e].layers) for e in path))
    if lengths:
        assert effective_depth(graph) == min(lengths)
    else:
        with pytest.raises(GraphError, match="no path leads"):
            effective_depth(graph)


def test_a_residual_block_adds_one_to_the_effective_depth_whatever_its_branch_holds() -> None:
    for blocks in (1, 4):
        for inside in (1, 3):
            edges = [Edge(0, 1, (conv(3), ACT))]
            for b in range(blocks):
                edges += [Edge(b + 1, b + 2), Edge(b + 1, b + 2, (conv(3), ACT) * inside)]
            edges.append(Edge(blocks + 1, blocks + 2, (conv(1),)))
            kinds = ["input", "fork", *["sum"] * blocks, "output"]
            graph = Graph(tuple(Vertex(i, kind) for i, kind in enumerate(kinds)), tuple(edges))  # type: ignore[arg-type]
            assert effective_depth(graph) == 2 + blocks
