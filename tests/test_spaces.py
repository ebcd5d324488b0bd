"""Architecture codes, and the MLPs and CNNs that they stand for."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models import CNN, MLP, Dag, load
from dagscale.models.dag import ACTIVATIONS


@st.composite
def codes(draw: st.DrawFn, most: int = 7) -> str:
    vertices = draw(st.integers(2, most))
    return "_".join(draw(st.text("012", min_size=v, max_size=v)) for v in range(1, vertices))


def paths(dag: Dag) -> list[list[tuple[int, int, int]]]:
    """Every path from vertex 0 to the last vertex, by enumeration."""

    def onwards(u: int) -> list[list[tuple[int, int, int]]]:
        if u == dag.vertices - 1:
            return [[]]
        return [[edge, *rest] for edge in dag.edges if edge[0] == u for rest in onwards(edge[1])]

    return onwards(0)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- codes ---------------------------------------------------------------------------------------------------------


@given(codes(most=9))
@settings(deadline=None)
def test_code_round_trip(code: str) -> None:
    dag = Dag.parse(code)
    assert str(dag) == code
    assert Dag.parse(str(dag)) == dag
    assert dag.vertices == code.count("_") + 2


@given(codes())
@settings(deadline=None)
def test_liveness_against_enumerated_paths(code: str) -> None:
    dag = Dag.parse(code)
    assert dag.has_path == bool(paths(dag))
    assert set(dag.live_edges) == {edge for path in paths(dag) for edge in path}


def test_edges_are_ordered_and_leave_out_disabled_ones() -> None:
    assert Dag.parse("2_01_210").edges == ((0, 1, 2), (1, 2, 1), (0, 3, 2), (1, 3, 1))
    assert Dag.parse("2_01_210").live_edges == ((0, 1, 2), (0, 3, 2), (1, 3, 1))


def test_a_dag_is_a_value() -> None:
    assert Dag.parse("2_02") == Dag(((2,), (0, 2)))
    assert len({Dag.parse("2_02"), Dag.parse("2_02"), Dag.parse("2_12")}) == 2
    assert repr(Dag.parse("2_02")) == "Dag.parse('2_02')"


@pytest.mark.parametrize("vertices", [2, 3, 4])
@pytest.mark.parametrize("ops", [(0, 1, 2), (0, 2), (2,)])
def test_enumerate_gives_every_code_once(vertices: int, ops: tuple[int, ...]) -> None:
    dags = list(Dag.enumerate(vertices, ops))
    assert len(dags) == len(set(dags)) == Dag.count(vertices, ops) == len(ops) ** (vertices * (vertices - 1) // 2)
    assert all(dag.vertices == vertices for dag in dags)


def test_count_is_an_exact_integer() -> None:
    assert Dag.count(5) == 3**10
    assert Dag.count(20) == 3**190


@given(st.integers(2, 8), st.integers(0, 1000))
@settings(deadline=None)
def test_sample_has_a_path_and_repeats(vertices: int, seed: int) -> None:
    dag = Dag.sample(vertices, seed)
    assert dag.vertices == vertices
    assert dag.has_path
    assert dag == Dag.sample(vertices, random.Random(seed))
    assert {op for _, _, op in Dag.sample(vertices, seed, ops=(0, 2)).edges} == {2}


def test_sample_is_uniform_over_codes_with_a_path() -> None:
    rng = random.Random(0)
    expected = [dag for dag in Dag.enumerate(3) if dag.has_path]
    draws = 200 * len(expected)
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws):
        counts[Dag.sample(3, rng)] += 1
    # Each count is Binomial(draws, 1/len): standard deviation below √200 ≈ 14; five of them over 22 codes.
    assert all(abs(count - 200) < 71 for count in counts.values())


def test_sample_may_lack_a_path_if_allowed() -> None:
    rng = random.Random(0)
    assert not all(Dag.sample(3, rng, require_path=False).has_path for _ in range(50))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "empty architecture code; write one group of digits per vertex, as 2_02_002"),
        (
            "2_2",
            "architecture code '2_2', group 2 ('2'): the length is 1, but vertex 2 has 2 earlier vertices; "
            "write one digit for each, 2 in all",
        ),
        (
            "22",
            "architecture code '22', group 1 ('22'): the length is 2, but vertex 1 has 1 earlier vertex; "
            "write one digit for each, 1 in all",
        ),
        (
            "2__002",
            "architecture code '2__002', group 2 (''): the length is 0, but vertex 2 has 2 earlier vertices; "
            "write one digit for each, 2 in all",
        ),
        (
            "2_03",
            "architecture code '2_03', group 2 ('03'): '3' is no operator; "
            "write 0 (no edge), 1 (skip) or 2 (weight layer + activation)",
        ),
        (
            "2_0²",
            "architecture code '2_0²', group 2 ('0²'): '²' is no operator; "
            "write 0 (no edge), 1 (skip) or 2 (weight layer + activation)",
        ),
    ],
)
def test_malformed_code(code: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        Dag.parse(code)
    assert str(error.value) == message


def test_impossible_choices() -> None:
    with pytest.raises(TargetError, match="vertices=1: a DAG has at least 2"):
        Dag.count(1)
    with pytest.raises(TargetError, match="operator 0 alone makes no path"):
        Dag.sample(4, 0, ops=(0,))
    with pytest.raises(TargetError, match="choose distinct operators among 0, 1 and 2"):
        Dag.sample(4, 0, ops=(0, 3))
    with pytest.raises(TargetError, match="choose distinct operators among 0, 1 and 2"):
        Dag.sample(4, 0, ops=(2, 2))


# --- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "depth", "bias", "expected"),
    [
        # in 6, width 4, classes 3: stem 6·4 + 4, readout 4·3 + 3, each weight edge 4·4 + 4
        ("2", 1, True, 28 + 15 + 20),
        ("1", 1, True, 28 + 15),
        ("2_02_002", 1, True, 28 + 15 + 3 * 20),
        ("2_22_222", 2, True, 28 + 15 + 2 * 6 * 20),
        ("2_12", 1, False, 24 + 12 + 2 * 16),
        ("0_22", 1, True, 28 + 15 + 2 * 20),  # the layer on the dead vertex 1 exists all the same
    ],
)
def test_mlp_parameters(code: str, depth: int, bias: bool, expected: int) -> None:
    assert parameters(MLP(Dag.parse(code), in_features=6, classes=3, width=4, depth=depth, bias=bias)) == expected


@pytest.mark.parametrize(
    ("code", "kernel", "norm", "expected"),
    [
        # in 2, width 4, classes 3, kernel k: stem 2·4·k² + 4, readout 4·3 + 3, each weight edge 4·4·k² + 4
        ("2", 3, "none", 76 + 15 + 148),
        ("2_12", 5, "none", 204 + 15 + 2 * 404),
        ("2", 1, "batch", 12 + 8 + 15 + 20 + 8),
        ("2", 1, "layer", 12 + 8 + 15 + 20 + 8),
    ],
)
def test_cnn_parameters(code: str, kernel: int, norm: str, expected: int) -> None:
    assert parameters(CNN(Dag.parse(code), in_channels=2, classes=3, width=4, kernel=kernel, norm=norm)) == expected


def test_downsampling_averages_squares_before_the_stem() -> None:
    torch.manual_seed(0)
    small = CNN(Dag.parse("2"), in_channels=2, classes=3, width=4)
    large = CNN(Dag.parse("2"), in_channels=2, classes=3, width=4, downsample=2)
    large.load_state_dict(small.state_dict())
    x = torch.randn(5, 2, 8, 8)
    torch.testing.assert_close(large(x), small(x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))))
    with pytest.raises(TargetError, match="images are 8 pixels at their smaller side"):
        load("cnn:2?downsample=9&input=1x8x8")


def test_parameter_names() -> None:
    names = dict(MLP(Dag.parse("2_12"), in_features=4, classes=3, depth=2, bias=False, norm="layer").named_parameters())
    weights = [
        "stem.linear",
        *(f"cells.{i}.edges.{e}.linear" for i in (0, 1) for e in ("0_1", "1_2")),
        "readout.linear",
    ]
    assert {name for name in names if "linear" in name} == {f"{layer}.weight" for layer in weights}
    assert "cells.1.edges.0_1.norm.weight" in names
    assert "cells.0.edges.0_1.conv.weight" in dict(CNN(Dag.parse("2"), in_channels=1, classes=2).named_parameters())


def layer(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name)


def test_mlp_post_order_by_hand() -> None:
    torch.manual_seed(0)
    model = MLP(Dag.parse("2_12_201"), in_features=12, classes=3, width=5)
    edge = {e: layer(model, f"cells.0.edges.{e}.linear") for e in ("0_1", "1_2", "0_3")}
    x = torch.randn(7, 3, 2, 2)
    z0 = layer(model, "stem.linear")(x.flatten(1)).relu()
    z1 = edge["0_1"](z0).relu()
    z2 = z0 + edge["1_2"](z1).relu()
    z3 = edge["0_3"](z0).relu() + z2
    torch.testing.assert_close(model(x), layer(model, "readout.linear")(z3))


def test_mlp_pre_order_by_hand() -> None:
    torch.manual_seed(0)
    model = MLP(Dag.parse("2_12_201"), in_features=12, classes=3, width=5, order="pre", act="tanh")
    edge = {e: layer(model, f"cells.0.edges.{e}.linear") for e in ("0_1", "1_2", "0_3")}
    x = torch.randn(7, 12)
    z0 = layer(model, "stem.linear")(x)
    z1 = edge["0_1"](z0.tanh())
    z2 = z0 + edge["1_2"](z1.tanh())
    z3 = edge["0_3"](z0.tanh()) + z2
    torch.testing.assert_close(model(x), layer(model, "readout.linear")(z3.tanh()))


@pytest.mark.parametrize("order", ["post", "pre"])
def test_stacked_normalised_cnn_by_hand(order: str) -> None:
    torch.manual_seed(0)
    model = CNN(
        Dag.parse("2_12"), in_channels=2, classes=3, width=4, kernel=5, order=order, norm="layer", depth=2, act="gelu"
    )
    gelu = nn.functional.gelu

    def weight(name: str, x: Tensor) -> Tensor:
        conv, norm = layer(model, f"{name}.conv"), layer(model, f"{name}.norm")
        z: Tensor = nn.functional.conv2d(x, conv.weight, conv.bias, padding=2)
        z = (z - z.mean((1, 2, 3), keepdim=True)) / (z.var((1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        return z * norm.weight[:, None, None] + norm.bias[:, None, None]

    x = torch.randn(3, 2, 6, 6)
    z = gelu(weight("stem", x)) if order == "post" else weight("stem", x)
    for i in (0, 1):
        if order == "post":
            z1 = gelu(weight(f"cells.{i}.edges.0_1", z))
            z = z + gelu(weight(f"cells.{i}.edges.1_2", z1))
        else:
            z1 = weight(f"cells.{i}.edges.0_1", gelu(z))
            z = z + weight(f"cells.{i}.edges.1_2", gelu(z1))
    pooled = (z if order == "post" else gelu(z)).mean((2, 3))
    torch.testing.assert_close(model(x), layer(model, "readout.linear")(pooled))


@given(codes(most=5).filter(lambda code: Dag.parse(code).has_path), st.integers(1, 3), st.sampled_from(["post", "pre"]))
@settings(max_examples=40, deadline=None)
def test_each_order_has_the_same_activations_on_each_path(code: str, depth: int, order: str) -> None:
    """With halving as activation and weights 1, a path with L activations carries 2^-L: the output sums them."""
    dag = Dag.parse(code)
    model = MLP(dag, in_features=1, classes=1, width=1, order=order, act="identity", depth=depth, bias=False).double()
    for module in list(model.modules()):
        if hasattr(module, "act"):
            module.act = Halving()
    for p in model.parameters():
        nn.init.ones_(p)
    one_cell = sum(0.5 ** sum(op == 2 for _, _, op in path) for path in paths(dag))
    assert model(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(0.5 * one_cell**depth)


class Halving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@given(codes(most=5).filter(lambda code: Dag.parse(code).has_path))
@settings(max_examples=40, deadline=None)
def test_gradients_reach_the_live_weights_and_no_others(code: str) -> None:
    dag = Dag.parse(code)
    model = MLP(dag, in_features=3, classes=2, width=4, act="identity")
    model(torch.randn(5, 3, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for u, v, op in dag.edges:
        if op == 2:
            reached = layer(model, f"cells.0.edges.{u}_{v}.linear").weight.grad is not None
            assert reached == ((u, v, op) in dag.live_edges)


def test_additions_are_only_those_between_summands() -> None:
    x = torch.randn(2, 3)
    for code, additions in {"2": 0, "2_02_002": 0, "2_22": 1, "2_22_222": 3, "0_22": 0}.items():
        logits = MLP(Dag.parse(code), in_features=3, classes=2, width=4)(x)
        seen, stack = set(), [logits.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [parent for parent, _ in node.next_functions]
        assert sum(type(node).__name__ == "AddBackward0" for node in seen) == additions, code


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_every_option_runs(norm: str, act: str) -> None:
    x = torch.randn(4, 2, 5, 5)
    dag = Dag.parse("2_12")
    assert MLP(dag, in_features=50, classes=3, width=4, act=act, norm=norm)(x).shape == (4, 3)
    assert CNN(dag, in_channels=2, classes=3, width=4, act=act, norm=norm)(x).shape == (4, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"act": "rleu"}, "unknown act 'rleu'; did you mean 'relu'?"),
        ({"order": "past"}, "unknown order 'past'; did you mean 'post'? (known: post, pre)"),
        ({"norm": "instance"}, "unknown norm 'instance' (known: none, batch, layer)"),
        ({"width": 0}, "width=0: must be at least 1"),
        ({"depth": -1}, "depth=-1: must be at least 1"),
        ({"classes": 0}, "classes=0: must be at least 1"),
        ({"kernel": 4}, "kernel=4: must be odd"),
        (
            {"dag": Dag.parse("2_00")},
            "no path from input to output: in architecture code '2_00' no chain of edges leads from vertex 0 to ",
        ),
    ],
)
def test_impossible_networks(changed: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError) as error:
        CNN(**{"dag": Dag.parse("2"), "in_channels": 1, "classes": 2, **changed})
    assert str(error.value).startswith(message)
