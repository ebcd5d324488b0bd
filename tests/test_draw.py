"""Pictures: what they say, where things stand, that they repeat to the byte; failures leave nothing."""

import os
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagscale.errors import DagscaleError
from dagscale.graph import Edge, Graph, Layer, Op, ParamUse, Vertex
from dagscale.pictures import draw, layout

pytest.importorskip("matplotlib")

RELU = Op("activation", "relu")


def linear(name: str) -> Op:
    return Op("weight", "linear", params=(ParamUse(f"{name}.weight", "weight"),), layer=Layer(4, 4))


def diamond() -> Graph:
    """Two weight branches and a skip into a sum, a dead branch, and two identical edges into a product."""
    kinds = ("input", "fork", "fork", "sum", "product", "concat", "select", "output")
    shapes = ((2, 8), *((),) * 6, (2, 10))
    vertices = tuple(Vertex(i, k, shape=s) for i, (k, s) in enumerate(zip(kinds, shapes, strict=True)))  # type: ignore[arg-type]
    edges = (
        Edge(0, 1, (linear("stem"), RELU)),
        Edge(1, 3, (linear("left.proj"), RELU)),
        Edge(1, 3, (linear("right.proj"), RELU)),
        Edge(1, 3),
        Edge(1, 2, (linear("unused"),)),
        Edge(3, 4),
        Edge(3, 4),
        Edge(4, 5),
        Edge(1, 5, (Op("norm", "native_layer_norm"),)),
        Edge(5, 6),
        Edge(6, 7, (linear("readout"),)),
    )
    return Graph(vertices, edges)


def residual(blocks: int) -> Graph:
    edges = []
    for b in range(blocks):
        edges += [Edge(b, b + 1), Edge(b, b + 1, (linear(f"{b}.conv1"), RELU, linear(f"{b}.conv2")))]
    return Graph.from_edges([*edges, Edge(blocks, blocks + 1, (linear("head"),))])


@st.composite
def dags(draw_: st.DrawFn) -> Graph:
    n = draw_(st.integers(2, 12))
    pairs = draw_(st.lists(st.sampled_from([(u, v) for v in range(n) for u in range(v)]), max_size=30))
    ops = st.sampled_from([(), (RELU,), (linear("a.b"), RELU), (linear("c"),) * 3])
    return Graph.from_edges([Edge(u, v, draw_(ops)) for u, v in pairs], vertices=n)


def texts(path: Path) -> list[str]:
    return [e.text or "" for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def boxes(path: Path) -> list[tuple[float, float, float, float]]:
    """Where the centred texts of an SVG stand: left, right, bottom, top, narrowly."""
    found = []
    for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text"):
        style = e.attrib["style"]
        if "text-anchor: middle" in style:
            size = float(style.split("font-size: ")[1].split("px")[0])
            x, y, half = float(e.attrib["x"]), float(e.attrib["y"]), 0.27 * size * len(e.text or "")
            found.append((x - half, x + half, y - 0.8 * size, y))
    return found


def test_svg_says_what_the_graph_holds(tmp_path: Path) -> None:
    path = draw(diamond(), tmp_path / "a.svg", title="a <diamond> & $more$")
    said = texts(path)
    assert path == tmp_path / "a.svg"
    for name in ("stem", "left.proj", "right.proj", "readout", "unused"):
        assert said.count(name) == 1
    assert "Σ3" in said
    assert "a <diamond> & $more$" in said
    for word in ("input", "output", "concat", "select", "relu", "layer_norm", "2×8", "2×10", "identity"):
        assert word in said
    assert "on no input→output path" in said
    assert "stroke-dasharray" in path.read_text()


def test_legend_names_only_what_is_there(tmp_path: Path) -> None:
    said = texts(draw(Graph.from_edges([Edge(0, 1, (linear("only"),))]), tmp_path / "a.svg"))
    assert "weight layer" in said
    absent = {"activation", "sum and its in-degree", "fork", "identity", "on no input→output path"}
    assert not absent & set(said)


def test_names_are_as_short_as_they_are_distinct(tmp_path: Path) -> None:
    names = ["body.layers.0.conv", "body.layers.1.conv", "body.head", f"body.{'very_' * 9}long"]
    ops = tuple(linear(n) for n in names)
    said = texts(draw(Graph.from_edges([Edge(0, 1, ops)]), tmp_path / "a.svg"))
    assert {"0.conv", "1.conv", "head"} <= set(said)
    (long,) = [t for t in said if t.endswith("long")]
    assert len(long) <= 22
    assert "…" in long


def test_long_chains_of_ops_are_cut_and_say_so(tmp_path: Path) -> None:
    ops = tuple(op for i in range(9) for op in (linear(f"layer{i}"), Op("scale", f"mul{i}")))
    said = texts(draw(Graph.from_edges([Edge(0, 1, ops)]), tmp_path / "a.svg"))
    assert [t for t in said if t.startswith("layer")] == [f"layer{i}" for i in range(7)]
    assert "+11 more" in said


def test_png_has_signature_and_a_size_that_fits_the_graph(tmp_path: Path) -> None:
    sizes = []
    for blocks in (1, 3):
        content = draw(residual(blocks), tmp_path / f"{blocks}.PNG").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append(struct.unpack(">II", content[16:24]))
    assert all(100 < side < 4000 for size in sizes for side in size)
    assert sizes[0][0] < sizes[1][0]


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_same_graph_same_bytes(tmp_path: Path, suffix: str) -> None:
    first = draw(diamond(), tmp_path / f"a.{suffix}").read_bytes()
    assert draw(diamond(), tmp_path / f"b.{suffix}").read_bytes() == first
    assert first


def test_user_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    import matplotlib

    first = draw(diamond(), tmp_path / "a.svg").read_bytes()
    with matplotlib.rc_context({"svg.fonttype": "path", "font.family": ["serif"], "savefig.bbox": "tight"}):
        before = dict(matplotlib.rcParams)
        assert draw(diamond(), tmp_path / "b.svg").read_bytes() == first
        assert dict(matplotlib.rcParams) == before


@settings(max_examples=60, deadline=None)
@given(dags())
def test_edges_run_left_to_right_between_layers_of_longest_paths(graph: Graph) -> None:
    at = layout(graph)
    assert list(at) == [v.id for v in graph.vertices]
    assert all(at[e.src][0] < at[e.dst][0] for e in graph.edges)
    depth = [0] * len(graph.vertices)
    for v, incoming in enumerate(graph.in_edges):
        depth[v] = max((depth[graph.edges[e].src] + 1 for e in incoming), default=0)
    for a, b in combinations(range(len(depth)), 2):
        if graph.in_edges[a] and graph.in_edges[b]:
            assert (depth[a] < depth[b]) == (at[a][0] < at[b][0])
        if at[a][0] == at[b][0]:
            assert abs(at[a][1] - at[b][1]) > 0.3


def test_late_sources_stand_next_to_what_they_feed() -> None:
    forks = (Vertex(1, "fork"), Vertex(2, "fork"))
    vertices = (Vertex(0, "input"), *forks, Vertex(3, "sum"), Vertex(4, "output"))
    at = layout(Graph(vertices, (Edge(0, 2), Edge(2, 3), Edge(1, 3), Edge(3, 4))))
    assert at[1][0] == at[2][0]


def test_layout_repeats() -> None:
    assert layout(diamond()) == layout(diamond())


def test_one_path_runs_straight_through() -> None:
    heights = {y for _, y in layout(residual(4)).values()}
    assert len(heights) == 1


@settings(max_examples=15, deadline=None)
@given(graph=dags())
def test_texts_do_not_sit_on_one_another(tmp_path_factory: pytest.TempPathFactory, graph: Graph) -> None:
    path = draw(graph, tmp_path_factory.mktemp("draw") / "a.svg")
    for a, b in combinations(boxes(path), 2):
        assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]


def test_long_chains_fold_into_rows(tmp_path: Path) -> None:
    path = draw(residual(30), tmp_path / "a.svg")
    said = texts(path)
    assert all(said.count(f"{b}.conv{i}") == 1 for b in range(30) for i in (1, 2))
    width, height = (float(s) for s in ET.parse(path).getroot().attrib["viewBox"].split()[2:])
    assert width < 3 * height
    xs = [x for _, (x, _) in sorted(layout(residual(30)).items())]
    assert all(a < b for a, b in pairwise(xs))


@pytest.mark.slow
def test_hundreds_of_vertices_make_a_picture(tmp_path: Path) -> None:
    edges = [(v - k, v) for v in range(1, 300) for k in (1, 7, 90) if v >= k]
    content = draw(Graph.from_edges(edges), tmp_path / "a.png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert width * height < 60e6


def test_without_room_long_edges_run_direct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagscale.pictures.places.MAX_BENDS", 20)
    graph = Graph.from_edges([(u, v) for v in range(9) for u in range(v)])
    assert "Σ7" in texts(draw(graph, tmp_path / "a.svg"))
    assert len({x for x, _ in layout(graph).values()}) == 9


@pytest.mark.parametrize(
    "graph",
    [
        Graph((), ()),
        Graph((Vertex(0, "input", "x\x00\n"),), ()),
        Graph((Vertex(0, "fork"), Vertex(1, "sum")), (Edge(0, 1),)),
    ],
)
def test_degenerate_graphs(graph: Graph, tmp_path: Path) -> None:
    texts(draw(graph, tmp_path / "a.svg"))
    assert len(layout(graph)) == len(graph.vertices)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.svg.gz"])
def test_unknown_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(DagscaleError, match=r"suffix names the format, use one of \.svg, \.png, \.pdf$"):
        draw(diamond(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_paths_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DagscaleError, match=r"No such file or directory\): name a file in a folder"):
        draw(diamond(), tmp_path / "absent" / "a.svg")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(DagscaleError, match=r"cannot write '.*folder\.svg'"):
        draw(diamond(), tmp_path / "folder.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.svg"]


def test_a_failing_write_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.svg"
    path.write_text("older")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DagscaleError, match="No space left on device"):
        draw(diamond(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.svg"]
    assert path.read_text() == "older"


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DagscaleError, match=r"pip install dagscale\[plot\]"):
        draw(diamond(), tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []
    assert layout(diamond())


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_a_name_that_the_font_has_not_is_drawn_without_a_word(tmp_path: Path, suffix: str) -> None:
    draw(Graph.from_edges([Edge(0, 1, (linear("größe→日本"),))]), tmp_path / f"a{suffix}")
    assert suffix != ".svg" or any("日本" in text for text in texts(tmp_path / "a.svg"))


def test_import_is_light_and_pyplot_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys; from dagscale.pictures import draw; from dagscale.graph import Graph\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"draw(Graph.from_edges([(0, 1)]), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
