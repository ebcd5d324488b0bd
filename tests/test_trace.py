"""What the tracer reads from one network: layers, activations, sums, products, branches, hand-counted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.graph.paths import path_sums
from dagscale.graph.roles import roles
from dagscale.tracing import trace


class Net(nn.Module):
    """A network from named layers and one function ``forward(net, *inputs)``."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def linears(names: str, n: int = 4) -> dict[str, nn.Linear]:
    return {name: nn.Linear(n, n) for name in names}


def degrees(graph: Graph) -> dict[str, int]:
    return {use.name: use.in_degree for use in graph.layers}


def kinds(graph: Graph, edge: int = 0) -> list[str]:
    return [op.kind for op in graph.edges[edge].ops]


def depth(graph: Graph) -> tuple[int, int, int]:
    sums = path_sums(graph)
    return sums.paths, sums.min_depth, sums.max_depth


def unreached(graph: Graph) -> list[str]:
    return [p.name for p in graph.parameters if not p.reached]


X = torch.randn(2, 4)
IMAGE = torch.randn(2, 4, 9, 9)


# --- layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "x", "fan_in", "fan_out", "kernel", "groups"),
    [
        (nn.Linear(4, 7), X, 4, 7, (), 1),
        (nn.Linear(4, 7, bias=False), X, 4, 7, (), 1),
        (nn.Linear(4, 7), torch.randn(2, 3, 5, 4), 4, 7, (), 1),
        (nn.Linear(4, 7), torch.randn(4), 4, 7, (), 1),
        (nn.Conv1d(4, 6, 5), torch.randn(2, 4, 9), 4 * 5, 6 * 5, (5,), 1),
        (nn.Conv2d(4, 6, (1, 3), stride=2, dilation=2, padding=1), IMAGE, 4 * 3, 6 * 3, (1, 3), 1),
        (nn.Conv2d(4, 8, 3, groups=2), IMAGE, 2 * 9, 8 * 9, (3, 3), 2),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same"), IMAGE, 9, 4 * 9, (3, 3), 4),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE, 4 * 9, 6 * 9, (3, 3), 1),
        (nn.Conv3d(4, 6, 3), torch.randn(2, 4, 5, 5, 5), 4 * 27, 6 * 27, (3, 3, 3), 1),
        # each output position of a transposed convolution is reached by kernel/stride of the positions
        (nn.ConvTranspose2d(4, 6, 4, stride=2), IMAGE, 4 * 16 // 4, 6 * 16, (4, 4), 1),
        (nn.ConvTranspose1d(4, 6, 3), torch.randn(2, 4, 9), 4 * 3, 6 * 3, (3,), 1),
        (nn.Embedding(11, 6), torch.randint(0, 11, (2, 3)), 1, 6, (), 1),
        (nn.EmbeddingBag(11, 6), torch.randint(0, 11, (2, 3)), 1, 6, (), 1),
    ],
)
def test_layer(layer: nn.Module, x: Tensor, fan_in: int, fan_out: int, kernel: tuple[int, ...], groups: int) -> None:
    graph = trace(Net(lambda net, x: net.layer(x), layer=layer), x)
    (use,) = graph.layers
    assert use.name == "layer"
    assert (use.layer.fan_in, use.layer.fan_out, use.layer.kernel, use.layer.groups) == (
        fan_in,
        fan_out,
        kernel,
        groups,
    )
    assert use.readout
    assert use.in_degree == 1
    assert [p.role for p in use.op.params] == ["weight", "bias"][: len(list(layer.parameters()))]
    assert depth(graph) == (1, 0, 0)
    assert not unreached(graph)
    assert graph.notes == ()


@pytest.mark.parametrize(
    ("spelling", "shape"),
    [
        (lambda x, w: F.linear(x, w), (7, 4)),
        (lambda x, w: x @ w, (4, 7)),
        (lambda x, w: x @ w.t(), (7, 4)),
        (lambda x, w: torch.matmul(x[None], w)[0], (4, 7)),
        (lambda x, w: torch.einsum("bi,io->bo", x, w), (4, 7)),
        (lambda x, w: torch.einsum("bi,oi->bo", x, w), (7, 4)),
        (lambda x, w: (w @ x.t()).t(), (7, 4)),
        (lambda x, w: torch.addmm(torch.zeros(7), x, w), (4, 7)),
        (lambda x, w: torch.tensordot(x, w, dims=([1], [0])), (4, 7)),
        (lambda x, w: torch.bmm(x[None], w[None])[0], (4, 7)),
        (lambda x, w: torch.func.vmap(lambda row: w @ row)(x), (7, 4)),
        (lambda x, w: F.conv1d(x[:, :, None], w[:, :, None])[..., 0], (7, 4)),
    ],
)
def test_spellings_of_a_linear_layer(spelling: Any, shape: tuple[int, int]) -> None:
    graph = trace(Net(lambda net, x: spelling(x, net.w), w=nn.Parameter(torch.randn(shape))), X)
    (use,) = graph.layers
    assert (use.name, use.layer.fan_in, use.layer.fan_out) == ("w", 4, 7)


@pytest.mark.parametrize(
    "act",
    [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(),
     nn.ELU(), nn.SELU(), nn.CELU(), nn.LeakyReLU(), nn.LeakyReLU(inplace=True), nn.Hardswish(), nn.Hardsigmoid(),
     nn.Hardtanh(), nn.Mish(), nn.Softplus(), nn.Softsign(), nn.Softshrink(), nn.Hardshrink(), nn.Tanhshrink(),
     nn.ReLU6(), nn.RReLU(), nn.LogSigmoid(), nn.Threshold(0.1, 0.0), nn.PReLU()],
    ids=lambda act: type(act).__name__,
)  # fmt: skip
def test_activation_adds_one(act: nn.Module) -> None:
    graph = trace(Net(lambda net, x: net.b(net.act(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2), act=act), X)
    paths, shortest, longest = depth(graph)
    assert longest == 1
    if not isinstance(act, (nn.Softsign, nn.Tanhshrink)):  # x - tanh(x): a sum of x and an activation of it
        assert (paths, shortest) == (1, 1)
    assert not unreached(graph)
    assert not graph.notes


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x * torch.sigmoid(x), "activation"),
        (lambda x: x * torch.sigmoid(1.702 * x), "activation"),
        (lambda x: x * torch.tanh(F.softplus(x)), "activation"),
        (lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), "activation"),
        (lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))), "activation"),
        (lambda x: x / (1 + x.abs()), "activation"),
        (lambda x: torch.relu(x) ** 2, "activation"),
        (lambda x: 2.0**x, "activation"),
        (lambda x: torch.tensor([2.0]) ** x, "activation"),
        (lambda x: x.abs() ** torch.linspace(1, 2, x.shape[-1]), "activation"),
        (lambda x: torch.asinh(x), "activation"),
        (lambda x: torch.copysign(x, torch.ones(())), "activation"),
        (lambda x: x * x, "activation"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "activation"),
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), "norm"),
        (lambda x: x / x.norm(dim=-1, keepdim=True), "norm"),
        (lambda x: F.normalize(x, dim=-1), "norm"),
        (lambda x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True), "norm"),
    ],
)
def test_a_function_of_one_signal_is_one_op(function: Any, kind: str) -> None:
    graph = trace(Net(lambda net, x: net.b(function(net.a(x))), **linears("ab")), X)
    assert [v.kind for v in graph.vertices] == ["input", "output"]
    assert kind in kinds(graph)
    if kind == "norm":
        assert depth(graph) == (1, 0, 0)
    assert depth(graph)[0] == 1


def test_gate_by_another_layer_is_a_product() -> None:
    graph = trace(Net(lambda net, x: net.c(net.a(x) * torch.sigmoid(net.b(x))), **linears("abc")), X)
    assert [v.kind for v in graph.vertices] == ["input", "product", "output"]
    assert depth(graph) == (2, 0, 1)
    assert degrees(graph) == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize(
    "gate",
    [
        lambda h: F.glu(h, dim=-1),
        lambda h: h.chunk(2, -1)[0] * torch.sigmoid(h.chunk(2, -1)[1]),
        lambda h: h[..., :2] * h[..., 2:].sigmoid(),
        lambda h: torch.mul(*[f(t) for f, t in zip((nn.Identity(), torch.sigmoid), h.split(2, -1), strict=True)]),
    ],
)
def test_spellings_of_a_gated_linear_unit(gate: Any) -> None:
    graph = trace(Net(lambda net, x: net.b(gate(net.a(x))), a=nn.Linear(4, 4), b=nn.Linear(2, 2)), X)
    assert [v.kind for v in graph.vertices] == ["input", "fork", "product", "output"]
    assert depth(graph) == (2, 0, 1)


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm1d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False)],
    ids=lambda m: type(m).__name__,
)
def test_norm(module: nn.Module) -> None:
    graph = trace(Net(lambda net, x: net.b(net.norm(net.a(x))), norm=module, **linears("ab")), X)
    assert depth(graph) == (1, 0, 0)
    roles = {use.name: use.role for op in graph.edges[0].ops for use in op.params}
    assert roles == {
        "a.weight": "weight",
        "a.bias": "bias",
        "b.weight": "weight",
        "b.bias": "bias",
        **{f"norm.{n}": {"weight": "gain", "bias": "bias"}[n] for n, _ in module.named_parameters()},
    }


@pytest.mark.parametrize("module", [nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), nn.LocalResponseNorm(2)])
def test_image_norm(module: nn.Module) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(4, 4, 3), module, nn.Conv2d(4, 4, 3)), IMAGE)
    assert depth(graph)[0] == 1
    assert not unreached(graph)


@pytest.mark.parametrize(
    "module",
    [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 2),
     nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.Identity(), nn.Upsample(scale_factor=2),
     nn.Upsample(scale_factor=2, mode="bilinear"), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.PixelShuffle(2),
     nn.ChannelShuffle(2), nn.Unfold(3), nn.Flatten(), nn.FractionalMaxPool2d(2, output_size=3)],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_pooling_and_movement_add_no_activation(module: nn.Module) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(4, 4, 3), module, nn.Flatten(), nn.LazyLinear(2)), IMAGE)
    paths, _, longest = depth(graph)
    assert paths == 1
    assert longest == 0 or isinstance(module, nn.LPPool2d)  # a power, then a root
    assert not graph.notes


# --- sums -------------------------------------------------------------------------------------------------


def iadd(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    a += b
    a += c
    return a


def out_argument(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.add(a + b, c, out=torch.empty_like(a))


def accumulated(*terms: Tensor) -> Tensor:
    total = torch.zeros_like(terms[0])
    for term in terms:
        total = total + term
    return total


def written_rows(*terms: Tensor) -> Tensor:
    rows = torch.empty(3, *terms[0].shape)
    for i, term in enumerate(terms):
        rows[i] = term
    return rows[0] + rows[1] + rows[2]


SUMS: dict[str, Callable[..., Tensor]] = {
    "plus": lambda a, b, c: a + b + c,
    "nested": lambda a, b, c: a + (b + c),
    "iadd": iadd,
    "builtin sum": lambda a, b, c: sum([a, b, c]),
    "reduce": lambda *t: functools.reduce(torch.add, t),
    "torch.add": lambda a, b, c: torch.add(torch.add(a, b), c, alpha=0.5),
    "method": lambda a, b, c: a.add(b).add_(c),
    "minus": lambda a, b, c: a - b - c,
    "scaled": lambda a, b, c: 0.3 * a + b / 2 + -c,
    "mean of three": lambda a, b, c: (a + b + c) / 3,
    "stack sum": lambda *t: torch.stack(t).sum(0),
    "stack sum dim": lambda *t: torch.stack(t, dim=1).sum(dim=1),
    "stack last": lambda *t: torch.stack(t, -1).sum(-1),
    "stack mean": lambda *t: torch.mean(torch.stack(t), dim=0),
    "stack keepdim": lambda *t: torch.stack(t).sum(0, keepdim=True)[0],
    "stack permuted": lambda *t: torch.stack(t).permute(1, 2, 0).sum(2),
    "cat viewed": lambda *t: torch.cat(t).view(3, 2, 4).sum(0),
    "cat of rows": lambda *t: torch.cat([x[None] for x in t]).sum(0),
    "einsum": lambda *t: torch.einsum("kbi->bi", torch.stack(t)),
    "stack unbound": lambda *t: sum(torch.stack(t).unbind(0)),
    "through cat": lambda *t: sum(torch.cat(t, dim=1).chunk(3, dim=1)),
    "through activations": lambda *t: torch.stack([torch.relu(x) for x in t]).sum(0),
    "out of zeros": accumulated,
    "rows of a buffer": written_rows,
    "out=": out_argument,
    "dropped": lambda a, b, c: F.dropout(a, 0.1) + F.dropout(b + c, 0.1, training=False),
    "views": lambda a, b, c: (a.view(4, 2) + b.view(4, 2)).view(2, 4) + c,
    "casts": lambda a, b, c: a + (b.double() + c.double()).float(),
}


@pytest.mark.parametrize("name", SUMS)
def test_every_spelling_of_a_sum_of_three(name: str) -> None:
    def forward(net: Any, x: Tensor) -> Any:
        return net.o(SUMS[name](net.a(x), net.b(x), net.c(x)))

    graph = trace(Net(forward, **linears("abco")), X)
    assert degrees(graph) == {"a": 3, "b": 3, "c": 3, "o": 1}
    assert depth(graph)[0] == 3
    assert [v.kind for v in graph.vertices] == ["input", "sum", "output"]


def test_sum_with_a_signal_as_bias_of_addmm() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        return torch.addmm(net.a(x), x, net.w)

    graph = trace(Net(forward, a=nn.Linear(4, 4), w=nn.Parameter(torch.randn(4, 4))), X)
    assert degrees(graph) == {"a": 2, "w": 2}


def test_concatenation_is_looked_through_and_adds_no_in_degree() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        joined = torch.cat([net.a(x), net.b(x)], dim=1)
        return net.o(joined + net.c(x))

    layers = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 5), "c": nn.Linear(4, 8), "o": nn.Linear(8, 2)}
    graph = trace(Net(forward, **layers), X)
    assert degrees(graph) == {"a": 2, "b": 2, "c": 2, "o": 1}
    assert {u.name: u.layer.fan_in for u in graph.layers}["o"] == 8


def test_concatenation_alone() -> None:
    graph = trace(Net(lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)), c=nn.Linear(8, 2), **linears("ab")), X)
    assert degrees(graph) == {"a": 1, "b": 1, "c": 1}


def test_residual_stream_read_on_the_way_is_not_flattened() -> None:
    """h1 = x + a(x); h2 = h1 + b(h1): two sums of two, for h1 is read by b too. 4 paths of L 0, 1, 1, 2."""

    def forward(net: Any, x: Tensor) -> Any:
        h = x + torch.relu(net.a(x))
        return h + torch.relu(net.b(h))

    graph = trace(Net(forward, **linears("ab")), X)
    assert [v.kind for v in graph.vertices] == ["input", "sum", "sum", "output"]
    assert degrees(graph) == {"a": 2, "b": 2}
    sums = path_sums(graph)
    assert (sums.paths, sums.depth, sums.depth_cubed) == (4, 4, 0 + 1 + 1 + 8)


def test_two_hundred_residual_blocks_have_two_to_the_two_hundred_paths() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(200))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + torch.relu(block(x))
            return x

    graph = trace(Residual(), X)
    assert path_sums(graph).paths == 2**200
    assert {use.in_degree for use in graph.layers} == {2}


def test_layer_with_an_activation_before_the_sum() -> None:
    graph = trace(Net(lambda net, x: net.c(torch.relu(net.a(x)) + torch.tanh(net.b(x)) + x), **linears("abc")), X)
    assert degrees(graph) == {"a": 3, "b": 3, "c": 1}


def test_live_summands_only() -> None:
    """A constant summand does not vary with the input, a summand times the number 0 never gets through."""
    graph = trace(
        Net(lambda net, x: net.c(net.a(x) + net.b(x) + net.d(x) * 0 + torch.ones(4)), **linears("abcd")),
        X,
    )
    assert degrees(graph) == {"a": 2, "b": 2, "c": 1}
    assert unreached(graph) == ["d.weight", "d.bias"]


# --- who writes where -------------------------------------------------------------------------------------


def test_in_place_ops() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.a(x)
        h.relu_()
        h.mul_(2).add_(net.b(x))
        return net.c(h)

    graph = trace(Net(forward, **linears("abc")), X)
    assert degrees(graph) == {"a": 2, "b": 2, "c": 1}
    assert depth(graph) == (2, 0, 1)


def test_writes_through_views() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.zeros(2, 8)
        left = h[:, :4]
        left.copy_(net.a(x))
        h[:, 4:] = net.b(x)
        return net.o(h)

    graph = trace(Net(forward, o=nn.Linear(8, 2), **linears("ab")), X)
    assert not unreached(graph)
    assert degrees(graph) == {"a": 1, "b": 1, "o": 1}
    assert depth(graph)[0] == 2


def test_slices_are_told_apart() -> None:
    """The half that b wrote is read by nobody, so b is on no path."""

    def forward(net: Any, x: Tensor) -> Any:
        h = torch.zeros(2, 8)
        h[:, :4] = net.a(x)
        h[:, 4:] = net.b(x)
        return net.o(h[:, :4])

    graph = trace(Net(forward, **linears("abo")), X)
    assert unreached(graph) == ["b.weight", "b.bias"]


def test_every_second_column() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.zeros(2, 8)
        h[:, ::2], h[:, 1::2] = net.a(x), net.b(x)
        return net.o(h[:, 1::2])

    graph = trace(Net(forward, **linears("abo")), X)
    assert unreached(graph) == ["a.weight", "a.bias"]


def test_overwritten_values_are_gone() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.a(x)
        h[:, :2] = net.b(x)[:, :2]
        h[:, 2:] = net.b(x)[:, 2:]
        return h

    graph = trace(Net(forward, **linears("ab")), X)
    assert unreached(graph) == ["a.weight", "a.bias"]


def test_in_place_activation_on_a_slice() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.a(x)
        with torch.no_grad():
            h[:, :2].relu_()
            h[:, 2:].tanh_()
        return net.b(h)

    assert depth(trace(Net(forward, **linears("ab")), X)) == (2, 1, 1)


def test_zeroed_slice() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = net.a(x).clone()
        h.zero_()
        return net.b(x) + h

    graph = trace(Net(forward, **linears("ab")), X)
    assert unreached(graph) == ["a.weight", "a.bias"]
    assert degrees(graph) == {"b": 1}


def test_lstm_cell_by_hand() -> None:
    """Gates are slices of one tensor: c' = i·g + f·c, c a constant; h = o·tanh(c'). L: i 2, g 2, f 2, o 1."""
    graph = trace(Net(lambda net, x: net.cell(x)[0], cell=nn.LSTMCell(4, 3)), X)
    assert depth(graph) == (4, 1, 2)
    assert not graph.notes


# --- sharing ----------------------------------------------------------------------------------------------


def test_tied_weights() -> None:
    net = Net(lambda net, x: net.decoder(torch.relu(net.hidden(net.embedding(x)))),
              embedding=nn.Embedding(9, 4), hidden=nn.Linear(4, 4), decoder=nn.Linear(4, 9, bias=False))  # fmt: skip
    net.decoder.weight = net.embedding.weight
    graph = trace(net, torch.randint(0, 9, (2, 3)))
    tied = graph.parameter["decoder.weight"]
    assert tied is graph.parameter["embedding.weight"]
    assert tied.aliases == ("decoder.weight",)
    assert [(u.name, u.layer.fan_in) for u in graph.layers] == [("embedding", 1), ("hidden", 4), ("embedding", 4)]
    assert sum(p.numel for p in graph.parameters) == 36 + 20


def test_shared_module() -> None:
    graph = trace(Net(lambda net, x: net.b(torch.relu(net.a(torch.relu(net.a(x))))), **linears("ab")), X)
    assert [use.name for use in graph.layers] == ["a", "a", "b"]
    assert depth(graph) == (1, 2, 2)


def test_identity_leaves_no_trace() -> None:
    plain = trace(Net(lambda net, x: net.b(torch.relu(net.a(x))), **linears("ab")), X)
    padded = trace(
        Net(lambda net, x: net.i(net.b(net.i(torch.relu(net.i(net.a(net.i(x))))))), i=nn.Identity(), **linears("ab")), X
    )
    assert padded == plain


# --- branches, inputs, outputs ----------------------------------------------------------------------------


def test_unused_results_are_dead() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        net.a(x)
        return net.b(x)

    assert unreached(trace(Net(forward, **linears("ab")), X)) == ["a.weight", "a.bias"]


@pytest.mark.parametrize("zero", [lambda h: h * 0, lambda h: 0.0 * h, lambda h: h.mul(0.0), lambda h: h.mul_(0)])
def test_times_zero_is_dead(zero: Any) -> None:
    graph = trace(Net(lambda net, x: net.a(x) + zero(net.b(x)), **linears("ab")), X)
    assert unreached(graph) == ["b.weight", "b.bias"]
    assert degrees(graph) == {"a": 1}


def test_dict_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, Any]:
            a, b = self.a(left), self.b(right)
            return {"sum": a + b, "parts": [a, (b,)], "scale": scale}

    graph = trace(Two(), {"left": torch.randn(2, 4), "right": torch.randn(2, 5)})
    assert [v.label for v in graph.vertices if v.kind == "input"] == ["left", "right"]
    assert len(graph.outputs) == 3
    assert path_sums(graph).paths == 4
    chosen = trace(Two(), {"left": torch.randn(2, 4), "right": torch.randn(2, 5)}, select=lambda out: out["parts"][0])
    assert unreached(chosen) == ["b.weight", "b.bias"]


def test_one_dict_as_the_only_argument() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.a(batch["x"]) + self.a(batch["y"])

    assert degrees(trace(One(), {"x": X, "y": X.clone()})) == {"a": 2}


def test_dataclass_output_and_unused_input() -> None:
    import dataclasses

    @dataclasses.dataclass
    class Out:
        logits: Tensor
        hidden: list[Tensor]

    def forward(net: Any, x: Tensor, y: Tensor) -> Any:
        h = net.a(x)
        return Out(net.b(torch.relu(h)), [h])

    graph = trace(Net(forward, **linears("ab")), (X, torch.randn(2, 7)))
    assert len(graph.inputs) == 1
    assert len(graph.outputs) == 2


def test_the_same_tensor_as_two_inputs() -> None:
    graph = trace(Net(lambda net, x, y: net.a(x) + net.b(y), **linears("ab")), (X, X))
    assert degrees(graph) == {"a": 2, "b": 2}
    assert len(graph.inputs) == 2


def test_an_output_that_is_read_on_the_way() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.relu(net.a(x))
        return net.b(h), h

    graph = trace(Net(forward, **linears("ab")), X)
    assert path_sums(graph).paths == 2
    assert [use.readout for use in graph.layers] == [False, True]


@pytest.mark.parametrize(
    "rotate",
    [
        lambda x, cos, sin: x * cos + torch.cat([-x[..., 2:], x[..., :2]], -1) * sin,
        lambda x, cos, sin: x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin,
        lambda x, cos, sin: torch.cat([x[..., :2] * cos[..., :2], x[..., 2:]], -1),
        lambda x, cos, sin: torch.view_as_real(
            torch.view_as_complex(x.reshape(2, 2, 2)) * torch.polar(cos, sin)[:, :2]
        ).flatten(-2),
    ],
)
def test_rotary_embedding_moves_one_signal(rotate: Any) -> None:
    cos, sin = torch.rand(2, 4), torch.rand(2, 4)
    graph = trace(Net(lambda net, x: net.b(rotate(net.a(x), cos, sin)), **linears("ab")), X)
    assert depth(graph) == (1, 0, 0)


def test_a_signal_added_to_itself_is_two_paths() -> None:
    graph = trace(Net(lambda net, x: net.b(net.a(x) + net.i(net.a(x))), i=nn.Identity(), **linears("ab")), X)
    assert degrees(graph) == {"a": 2, "b": 1}
    assert depth(graph)[0] == 2


def test_attention_is_a_product_of_products() -> None:
    """q·k and then (q·k)·v: three paths, none with an activation; the softmax is a norm."""

    def forward(net: Any, x: Tensor) -> Any:
        q, k, v = (layer(x)[:, None] for layer in (net.q, net.k, net.v))
        return net.o(F.scaled_dot_product_attention(q, k, v)[:, 0])

    def by_hand(net: Any, x: Tensor) -> Any:
        q, k, v = net.q(x), net.k(x), net.v(x)
        return net.o(torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v)

    for function in (forward, by_hand):
        graph = trace(Net(function, **linears("qkvo")), torch.randn(2, 3, 4))
        assert [v.kind for v in graph.vertices] == ["input", "product", "product", "output"]
        assert depth(graph) == (3, 0, 0)
        assert degrees(graph) == {"q": 1, "k": 1, "v": 1, "o": 1}


def test_multihead_attention_module() -> None:
    graph = trace(nn.MultiheadAttention(8, 2, batch_first=True).eval(), (torch.randn(2, 3, 8),) * 3)
    assert not unreached(graph)
    assert [v.kind for v in graph.vertices].count("product") == 2


def test_normalised_sum_feeds_the_sum() -> None:
    graph = trace(Net(lambda net, x: net.n(net.a(x) + x), a=nn.Linear(4, 4), n=nn.LayerNorm(4)), X)
    assert degrees(graph) == {"a": 2}


def test_frozen_and_reused_parameters() -> None:
    net = Net(lambda net, x: net.b(net.a(x)), **linears("ab"))
    net.a.requires_grad_(False)
    graph = trace(net, X)
    assert [p.trainable for p in graph.parameters] == [False, False, True, True]
    assert all(p.reached for p in graph.parameters)


def test_detached_signal_still_flows() -> None:
    assert not unreached(trace(Net(lambda net, x: net.b(net.a(x).detach()), **linears("ab")), X))


def test_learned_positions_scales_and_tokens() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        x = torch.cat([net.token.expand(x.shape[0], 1, 4), x], 1) + net.position
        return net.b(net.a(x) * net.scale)

    net = Net(forward, token=nn.Parameter(torch.zeros(1, 1, 4)), position=nn.Parameter(torch.zeros(1, 4, 4)),
              scale=nn.Parameter(torch.ones(4)), **linears("ab"))  # fmt: skip
    graph = trace(net, torch.randn(2, 3, 4))
    roles = {use.name: use.role for edge in graph.edges for op in edge.ops for use in op.params}
    assert roles["scale"] == "gain"
    assert roles["position"] == "shift"
    assert not unreached(graph)
    assert depth(graph)[0] == 1


# --- the text form ----------------------------------------------------------------------------------------


def test_text_form() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        h = torch.relu(net.a(x))
        return net.c(h + torch.relu(net.b(h)))

    assert str(trace(Net(forward, **linears("abc")), X)) == (
        "v0 input (2, 4)\n"
        "v1 fork (2, 4)\n"
        "    ← v0: a → relu\n"
        "v2 sum add (2, 4)  in-degree 2\n"
        "    ← v1: identity\n"
        "    ← v1: b → relu\n"
        "v3 output (2, 4)\n"
        "    ← v2: c"
    )


def test_same_graph_from_the_real_run() -> None:
    """A model that looks at a value is run for real; the graph is the same as on fake tensors."""

    def plain(net: Any, x: Tensor) -> Any:
        h = torch.relu(net.a(x))
        return net.c(torch.cat([h, net.b(h)], 1)[:, :4] + h)

    def looking(net: Any, x: Tensor) -> Any:
        if x.sum().item() > -1e9:
            return plain(net, x)
        return x

    net = Net(plain, **linears("abc"))
    fake = trace(net, X)
    net.function = looking
    real = trace(net, X)
    assert real == fake
    assert "only the branch taken" in real.notes[0]
    assert not fake.notes


def test_a_bilinear_layer_reads_the_products_of_its_inputs() -> None:
    graph = trace(nn.Bilinear(4, 5, 3), (torch.randn(2, 4), torch.randn(2, 5)))
    (use,) = graph.layers
    assert (use.name, use.layer.fan_in, use.in_degree, use.readout) == ("weight", 20, 1, True)
    assert path_sums(graph).paths == 2
    assert {p.role for op in graph.edges[-1].ops for p in op.params} == {"weight", "bias"}


def potential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def gradient(net: Net, q: Tensor) -> Tensor:
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        (found,) = torch.autograd.grad(net.u(q).sum(), q, create_graph=True)
    return found


def residual(net: Net, q: Tensor) -> Tensor:
    """Of a partial differential equation: a first and a second derivative of the network."""
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        (first,) = torch.autograd.grad(net.u(q).sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), q, create_graph=True)
    return second[:, :1] - first[:, 1:]


@pytest.mark.parametrize(
    "forward",
    [
        gradient,
        residual,
        lambda net, q: (net.u(q), gradient(net, q)),
        lambda net, q: torch.func.vmap(torch.func.grad(lambda x: net.u(x).squeeze(-1)))(q),
        lambda net, q: torch.func.vmap(torch.func.jacrev(lambda x: net.u(x)))(q),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")
def test_weights_on_the_way_back_of_a_gradient_are_no_layers(forward: Callable[..., Any]) -> None:
    """A network whose output is a gradient (forces, Hamiltonian networks, physics-informed ones) has the layers and
    the readout of the potential that it is taken of."""
    graph = trace(Net(forward, u=potential()), torch.randn(3, 2))
    uses = {use.name: (use.in_degree, use.readout) for use in graph.layers}
    assert uses == {"u.0": (1, False), "u.2": (1, False), "u.4": (1, True)} or forward is residual
    assert list(uses) == ["u.0", "u.2", "u.4"]
    assert roles(graph)["u.0.weight"] == "input"


def test_weights_after_a_gradient_are_still_weights() -> None:
    def forward(net: Net, q: Tensor) -> Any:
        return net.head(q + gradient(net, q)) + net.u(q)

    graph = trace(Net(forward, u=potential(), head=nn.Linear(2, 1)), torch.randn(3, 2))
    assert [use.name for use in graph.layers] == ["u.0", "u.2", "u.4", "head", "u.0", "u.2", "u.4"]


@pytest.mark.parametrize("accumulated", [False, True])
@pytest.mark.parametrize("experts", [2, 8])
def test_routed_experts_are_one_summand_beside_a_shared_one(experts: int, accumulated: bool) -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.shared = nn.Linear(8, experts), nn.Linear(8, 8)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gates, chosen = self.router(x).softmax(1).topk(1)
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                rows = torch.where(chosen == i)[0]
                if accumulated:
                    out = out.index_put((rows,), expert(x[rows]) * gates[rows], accumulate=True)
                else:
                    out.index_add_(0, rows, expert(x[rows]) * gates[rows])
            return x + out + self.shared(x)

    graph = trace(Routed(), torch.randn(64, 8))
    assert {use.op.weight: use.in_degree for use in graph.layers}["shared.weight"] == 3


class ToItsInput(nn.Module):
    """A residual network whose output is put to its input, in some way."""

    def __init__(self, way: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.stem, self.up, self.down, self.head = (nn.Linear(8, 8) for _ in range(4))

    def net(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(self.up(x).relu())
        return self.head(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.way(x, self.net)


def instance_normalised(x: Tensor, net: Callable[[Tensor], Tensor]) -> Tensor:
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    return net((x - mean) / std) * std + mean


@pytest.mark.parametrize(
    ("way", "degree"),
    [
        (lambda x, net: net(x), 1),
        (lambda x, net: x + net(x), 2),
        (lambda x, net: 0.3 * x + 0.7 * net(0.5 * x), 2),
        (instance_normalised, 2),
    ],
)
def test_a_layer_whose_output_is_put_to_the_models_input_is_a_readout(way: Any, degree: int) -> None:
    graph = trace(ToItsInput(way), torch.randn(4, 8))
    assert {use.op.weight: use.in_degree for use in graph.layers if use.readout} == {"head.weight": degree}
    assert [branch.ends[0] for branch in find_branches(graph).branches] == ["down.weight"]
    assert find_branches(graph).unclear == ()


def test_heads_that_are_joined_and_put_to_the_models_input_are_readouts() -> None:
    class Heads(ToItsInput):
        def __init__(self) -> None:
            super().__init__(lambda x, net: x + net(x))
            self.heads = nn.ModuleList(nn.Linear(8, 4) for _ in range(2))

        def net(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.down(self.up(x).relu())
            return torch.cat([head(x) for head in self.heads], 1)

    graph = trace(Heads(), torch.randn(4, 8))
    assert {use.op.weight for use in graph.layers if use.readout} == {"heads.0.weight", "heads.1.weight"}
    assert [branch.ends[0] for branch in find_branches(graph).branches] == ["down.weight"]


class Sums(nn.Module):
    """Several heads on what one layer or more have made: (n, 10) → (n, 4)."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way
        self.stem, self.wide = nn.Linear(10, 8), nn.Linear(10, 4)
        self.heads = nn.ModuleList(nn.Linear(8, n) for n in (1, 4, 4))
        self.back, self.square = nn.Linear(8, 10), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def dueling(net: Any, x: Tensor) -> Tensor:
    h = net.stem(x).relu()
    advantage = net.heads[1](h)
    return net.heads[0](h) + advantage - advantage.mean(1, keepdim=True)  # type: ignore[no-any-return]


def backcast(net: Any, x: Tensor) -> Tensor:
    """N-BEATS [Oreshkin et al. 2020]."""
    h = net.stem(x).relu()
    forecast = net.heads[1](h)
    return forecast + net.heads[2](net.stem(x - net.back(h)).relu())  # type: ignore[no-any-return]


def wide_and_deep(net: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(net.wide(x) + net.heads[1](net.stem(x).relu()))


def recurrent(net: Any, x: Tensor) -> Tensor:
    h = torch.tanh(net.wide(x))
    for _ in range(2):
        h = torch.tanh(net.wide(x) + net.square(h))
    return h


def headless(net: Any, x: Tensor) -> Tensor:
    h = net.wide(x)
    return h + net.square(h.relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("way", "readouts"),
    [
        (dueling, {"heads.0": 3, "heads.1": 1}),
        (backcast, {"heads.1": 2, "heads.2": 2}),
        (wide_and_deep, {"wide": 2, "heads.1": 2}),
        (recurrent, {}),
        (headless, {}),
    ],
)
def test_heads_that_are_added_are_readouts(way: Any, readouts: dict[str, int]) -> None:
    """Layers that are used at earlier steps too, and blocks on a trunk, are none."""
    graph = trace(Sums(way), torch.randn(3, 10))
    found = {use.op.weight.removesuffix(".weight"): use.in_degree for use in graph.layers if use.readout}
    assert found == readouts


def test_a_block_on_the_models_input_is_a_block() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.first(x)
            x = x + self.second(x.relu())
            return self.head(x)  # type: ignore[no-any-return]

    graph = trace(Blocks(), torch.randn(4, 8))
    assert {use.op.weight for use in graph.layers if use.readout} == {"head.weight"}
    assert {name for branch in find_branches(graph).branches for name in branch.ends} >= {"second.weight"}
