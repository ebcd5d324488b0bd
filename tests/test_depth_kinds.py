"""Residual blocks of many kinds: the folded plain model trains as the one with multipliers in its code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.errors import PlanError
from dagscale.graph import Graph
from dagscale.graph.branches import find_branches
from dagscale.graph.roles import offsets
from dagscale.scaling.depth import depth_scaling
from dagscale.scaling.folding import Factors, fold
from dagscale.training.optimizers import resolve

C, WIDTH, WORDS, PLACES = 0.3, 8, 11, 5

Made = Mapping[str, Callable[[], nn.Module | nn.Parameter]]
Block = Callable[[Any, Any, Tensor, float], Tensor]
"""(network, block, trunk, multiplier c) → trunk behind the block."""


def lin(into: int = WIDTH, out: int = WIDTH) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(into, out)


def vec(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(*shape or (WIDTH,)))


def norm() -> nn.Module:
    return nn.LayerNorm(WIDTH)


class Net(nn.Module):
    """Tokens → logits of each place: an embedding, blocks that a function puts together, and a readout."""

    def __init__(self, parts: Made, block: Block, c: float = 1.0, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            made = nn.Module()
            for name, make in parts.items():
                setattr(made, name, make())
            self.blocks.append(made)
        self.block, self.c = block, c

    def forward(self, tokens: Tensor) -> Tensor:
        self.tokens, self.first, self.kept = tokens, self.embed(tokens), {}
        x = self.first
        for block in self.blocks:
            x = self.block(self, block, x, self.c)
        self.tokens = self.first = None
        self.kept = {}
        out: Tensor = self.head(x)
        return out


def mlp(b: Any, x: Tensor) -> Tensor:
    out: Tensor = b.b(b.a(x).relu())
    return out


def root_mean_square(y: Tensor) -> Tensor:
    return y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)


def attention(b: Any, y: Tensor, heads: int = 2) -> Tensor:
    q, k, v = (f(y).unflatten(-1, (heads, -1)).transpose(1, 2) for f in (b.q, b.k, b.v))
    return ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2)


def conformer(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    x = x + 0.5 * c * b.f2(F.silu(b.f1(b.n1(x))))
    x = x + c * b.o(attention(b, b.n2(x)))
    x = x + c * b.p2(F.silu(b.deep(F.glu(b.p1(b.n3(x)), -1).mT)).mT)
    out: Tensor = b.n4(x + 0.5 * c * b.f4(F.silu(b.f3(x))))
    return out


def modulated(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    shift, scale, gate = b.mod(net.first.mean(1, keepdim=True).tanh()).chunk(3, -1)
    return x + c * gate * mlp(b, F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift)


def mixed_with_the_first(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    x = b.kept * x + b.first * net.first
    return x + c * mlp(b, F.layer_norm(x, (WIDTH,)))


def embedded_again(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    x = x + b.more(net.tokens)
    return x + c * mlp(b, F.layer_norm(x, (WIDTH,)))


def later_places(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    x = x.clone()
    x[:, 1:] = x[:, 1:] + c * mlp(b, x[:, 1:])
    return x


def residual_scores(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    """Scores of one block are added to those of the next [He et al. 2020, RealFormer]."""
    y = b.n(x)
    scores = b.q(y) @ b.k(y).mT
    if "scores" in net.kept:
        scores = scores + net.kept["scores"]
    net.kept["scores"] = scores
    return x + c * b.o(scores.softmax(-1) @ b.v(y))


def depths(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    """A router picks the places that pass a block [Raposo et al. 2024]."""
    shares = b.r(x)[..., 0]
    picked = shares.topk(3, 1).indices
    index = picked[..., None].expand(-1, -1, WIDTH)
    y = c * mlp(b, b.n(x.gather(1, index))) * shares.gather(1, picked)[..., None].sigmoid()
    return x.scatter_add(1, index, y)


def experts(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    y = b.n(x).flatten(0, 1)
    shares = b.r(y).softmax(-1)
    hidden = (torch.einsum("bi,eih->ebh", y, b.up) + b.up_bias[:, None]).relu()
    each = torch.einsum("ebh,eho->ebo", hidden, b.down) + b.down_bias[:, None]
    return x + c * (torch.einsum("ebo,be->bo", each, shares) + mlp(b, y)).view_as(x)


def selective(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    """A recurrence along the places with a skip of its own and a gate [Mamba]."""
    u, z = b.i(b.n(x)).chunk(2, -1)
    h, seen = torch.zeros_like(u[:, 0]), []
    for t in range(PLACES):
        h = h * (-b.decay.exp() * F.softplus(u[:, t])).exp() + u[:, t]
        seen.append(h)
    out: Tensor = x + c * b.o((torch.stack(seen, 1) + b.skip * u) * F.silu(z))
    return out


def adapted(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
    h = mlp(b, b.n(x))
    out: Tensor = x + c * (h + b.u(b.d(h).relu()))
    return out


AB: Made = {"a": lin(), "b": lin()}
QKV: Made = {"q": lin(), "k": lin(), "v": lin(), "o": lin(), "n": norm}
EXPERTS: Made = {
    **AB, "n": norm, "r": lin(WIDTH, 3), "up": vec(3, WIDTH, 6), "up_bias": vec(3, 6), "down": vec(3, 6, WIDTH),
    "down_bias": vec(3, WIDTH),
}  # fmt: skip
CONFORMER: Made = {
    **{name: lin() for name in ("f1", "f2", "f3", "f4", "q", "k", "v", "o", "p2")}, "p1": lin(WIDTH, 2 * WIDTH),
    **dict.fromkeys(("n1", "n2", "n3", "n4"), norm),
    "deep": lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
}  # fmt: skip

KINDS: dict[str, tuple[Made, Block, int]] = {
    "addmm": ({"a": lin(), "w": vec(WIDTH, WIDTH)}, lambda net, b, x, c: torch.addmm(
        x.flatten(0, 1), b.a(x).flatten(0, 1).relu(), b.w, alpha=c).view_as(x), 1),
    "addcmul": ({**AB, "g": vec()}, lambda net, b, x, c: torch.addcmul(x, b.g, mlp(b, x), value=c), 1),
    "lerp": (AB, lambda net, b, x, c: torch.lerp(x, c * mlp(b, x), 0.5), 1),
    "stacked": (AB, lambda net, b, x, c: torch.stack([x, c * mlp(b, x)]).sum(0), 1),
    "bias of its own": ({**AB, "g": vec()}, lambda net, b, x, c: x + c * (mlp(b, x) + b.g), 1),
    "gain 1 + w": ({**AB, "g": vec()}, lambda net, b, x, c: x + c * ((1 + b.g) * root_mean_square(mlp(b, x))), 1),
    "gain w + 1, tanh": ({**AB, "g": vec()}, lambda net, b, x, c: x + c * mlp(b, x).tanh() * (b.g + 1.0), 1),
    "tanh of a gate": ({**AB, "g": vec()}, lambda net, b, x, c: x + c * (b.g.tanh() * mlp(b, x)), 1),
    "root mean square norm": ({**AB, "g": vec()}, lambda net, b, x, c: x + c * (b.g * root_mean_square(mlp(b, x))), 1),
    "bilinear": ({"a": lin(), "d": lin(), "b": lambda: nn.Bilinear(WIDTH, WIDTH, WIDTH)},
                 lambda net, b, x, c: x + c * b.b(b.a(x).relu(), b.d(x).tanh()), 1),
    "transposed convolution": ({"a": lin(), "b": lambda: nn.ConvTranspose1d(WIDTH, WIDTH, 3, padding=1)},
                               lambda net, b, x, c: x + c * b.b(b.a(x).relu().mT).mT, 1),
    "interpolated": ({**AB, "g": vec()}, lambda net, b, x, c: F.normalize(
        x + c * b.g * (F.normalize(mlp(b, x), dim=-1) - x), dim=-1), 1),
    "fused out": ({"i": lin(WIDTH, 3 * WIDTH), "o": lin(2 * WIDTH)}, lambda net, b, x, c: x + c * b.o(torch.cat(
        [(y := b.i(x))[..., :WIDTH].tanh(), F.gelu(y[..., WIDTH: 2 * WIDTH])], -1)), 1),
    "multihead": ({"t": lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True), "n": norm},
                  lambda net, b, x, c: x + c * b.t(y := b.n(x), y, y)[0], 1),
    "mixer": ({"a": lin(PLACES, 7), "b": lin(7, PLACES)},
              lambda net, b, x, c: x + c * b.b(b.a(F.layer_norm(x, (WIDTH,)).mT).relu()).mT, 1),
    "conformer": (CONFORMER, conformer, 4),
    "modulated": ({**AB, "mod": lin(WIDTH, 3 * WIDTH)}, modulated, 1),
    "mixed with the first": ({**AB, "kept": vec(1), "first": vec(1)}, mixed_with_the_first, 1),
    "embedded again": ({**AB, "more": lambda: nn.Embedding(WORDS, WIDTH)}, embedded_again, 1),
    "later places": (AB, later_places, 1),
    "residual scores": (QKV, residual_scores, 1),
    "mixture of depths": ({**AB, "n": norm, "r": lin(WIDTH, 1)}, depths, 1),
    "experts": (EXPERTS, experts, 1),
    "selective": ({"i": lin(WIDTH, 2 * WIDTH), "o": lin(), "decay": vec(), "skip": vec(), "n": norm}, selective, 1),
    "adapter inside": ({**AB, "n": norm, "d": lin(WIDTH, 2), "u": lin(2)}, adapted, 1),
}  # fmt: skip
"""Name → parts of a block, how they are put together, residual additions of a block."""


def tokens(seed: int) -> Tensor:
    return torch.randint(WORDS, (4, PLACES), generator=torch.Generator().manual_seed(seed))


def net(kind: str, c: float = 1.0, depth: int = 2) -> Net:
    parts, block, _ = KINDS[kind]
    made = Net(parts, block, c, depth).double()
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / max(1, p[0].numel()) ** 0.5)
            if p.dim() == 1:
                p.mul_(0.3).add_(0.7)
    return made


def losses(model: nn.Module, own: Mapping[str, Factors], offset: Mapping[str, float], steps: int = 20) -> Tensor:
    """Under AdamW with an eps and a decay that matter; gains stored as an offset do not decay, as norms' do not."""
    groups, seen = [], []
    for name, p in model.named_parameters():
        f, o = own.get(name, Factors()), offset.get(name, 0.0)
        with torch.no_grad():
            p.copy_(f.init * (p + o) - o)
        decay = 0.0 if o else 0.3 * f.weight_decay
        groups.append({"params": [p], "lr": 3e-3 * f.lr, "eps": 1e-2 * f.eps, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups)
    for step in range(steps):
        loss = F.cross_entropy(model(tokens(step)).flatten(0, 1), tokens(step + 100).flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen)


@pytest.mark.parametrize("kind", KINDS)
def test_folded_is_edited(kind: str) -> None:
    graph = dagscale.trace(net(kind), tokens(0))
    residuals = find_branches(graph)
    assert residuals.additions == (2 * KINDS[kind][2],)
    own: dict[str, Factors] = {}
    for branch in residuals.branches:
        assert not branch.note
        own.update({name: fold(resolve("adamw"), C) for name in branch.ends})
        own.update({name: fold(resolve("adamw"), 1 / C) for name in branch.undone})
    edited, offset = losses(net(kind, C), {}, dict.fromkeys(offsets(graph), 1e-300)), offsets(graph)
    assert (losses(net(kind), own, offset) - edited).abs().max() < 1e-9
    assert (losses(net(kind), {}, offset) - edited).abs().max() > 1e-6
    assert (edited[0] - edited[-1]).abs() > 1e-4


@pytest.mark.parametrize("kind", ["mixed with the first", "embedded again", "later places"])
def test_growth_is_that_of_the_blocks(kind: str) -> None:
    """Whatever else is added to the trunk in each block is no branch of its own, and is said to be left as it is."""
    base, target = (dagscale.trace(net(kind, depth=depth), tokens(0)) for depth in (2, 8))
    found = depth_scaling(base, target, resolve("adamw"))
    assert all(found[f"blocks.{i}.b.weight"].depth_mult == 4 for i in range(8))
    beside = {name for name in found if name.endswith((".more.weight", ".first"))}
    assert all(found[name].factors == Factors() for name in beside)
    assert sum("does not come from" in found[name].note for name in beside) >= len(beside) - 1  # the first makes it


class Modulated(nn.Module):
    """Blocks of two branches that one layer a block modulates, from what one layer makes for all of them [DiT]; or
    blocks whose routers make a second output."""

    def __init__(self, depth: int, kind: str) -> None:
        super().__init__()
        self.kind, self.embed, self.head = kind, nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.all, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            names = ("norm", "a", "b", "c", "d", "mod")
            self.blocks.append(nn.ModuleDict({n: norm() if n == "norm" else nn.Linear(WIDTH, WIDTH) for n in names}))

    def forward(self, tokens: Tensor, about: Tensor) -> Any:
        x, about, second = self.embed(tokens), self.all(about).relu()[:, None], []
        for b in self.blocks:
            if self.kind == "block":
                one, two = b["mod"](about).chunk(2, -1)
                x = x + b["b"](b["a"](x).relu() * one.repeat(1, 1, 2))
                x = x + b["d"](b["c"](b["norm"](x)).relu() * two.repeat(1, 1, 2))
                continue
            x = x + b["b"](b["a"](x).relu())
            y = b["norm"](x)
            shares = b["mod"](y).softmax(-1)
            x = x + b["d"](b["c"](y).relu() * shares)
            second.append((shares.mean((0, 1)) ** 2).sum())
        out = self.head(F.layer_norm(x, (WIDTH,)) * self.last(about))
        return (out, sum(second)) if self.kind == "router" else out


@pytest.mark.parametrize("kind", ["block", "router", "router, one output"])
def test_what_goes_to_the_branches_of_one_block_or_to_a_second_output_too_is_inside(kind: str) -> None:
    def graph(depth: int) -> Graph:
        return dagscale.trace(Modulated(depth, kind), (tokens(0), torch.randn(4, WIDTH)))

    for optimizer, alpha in (("adamw", None), ("adamw", 0.5), ("sgd", 1.0)):
        found = depth_scaling(graph(2), graph(8), resolve(optimizer), "completep", alpha)
        inside = found["blocks.3.c.weight"]
        assert inside.factors != Factors()
        for i in range(8):
            names = [f"blocks.{i}.{n}.{p}" for n in ("mod", "norm", "a") for p in ("weight", "bias")]
            assert {found[name] for name in names} == {inside}
            assert found[f"blocks.{i}.d.weight"].fold < 1
        assert all(found[f"{n}.weight"].factors == Factors() for n in ("all", "last", "embed", "head"))


def test_what_several_blocks_share_with_others_is_said_to_be_left() -> None:
    """The values of all blocks are multiplied by those of the first."""

    def block(net: Any, b: Any, x: Tensor, c: float) -> Tensor:
        own = b.v(x)
        out: Tensor = x + c * b.o(own.relu() * net.kept.setdefault("values", own))
        return out

    def scaled(depth: int) -> Graph:
        return dagscale.trace(Net({"v": lin(), "o": lin()}, block, 1.0, depth), tokens(0))

    found = depth_scaling(scaled(2), scaled(4), resolve("adamw"))
    assert "several residual branches" in found["blocks.0.v.weight"].note
    assert found["blocks.1.v.weight"].depth_mult > 1


class Queries(nn.Module):
    """A decoder of queries that are learned, or given as an input: its first self-attention sees parameters alone."""

    def __init__(self, depth: int, learned: bool, pre_norm: bool = True) -> None:
        super().__init__()
        self.query, self.learned = nn.Parameter(torch.randn(5, WIDTH)), learned
        self.stem, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 4)
        layer = nn.TransformerDecoderLayer(WIDTH, 2, WIDTH, 0.0, batch_first=True, norm_first=pre_norm)
        self.decoder = nn.TransformerDecoder(layer, depth)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        query = self.query.expand(len(x), -1, -1) if self.learned else query
        out: Tensor = self.head(self.decoder(query, self.stem(x)))
        return out


@pytest.mark.parametrize("pre_norm", [True, False])
def test_a_trunk_that_begins_as_parameters_grows_as_one_that_begins_as_an_input(pre_norm: bool) -> None:
    def scaled(learned: bool) -> dict[str, Any]:
        x = torch.randn(2, 7, 3), torch.randn(2, 5, WIDTH)
        graphs = [dagscale.trace(Queries(depth, learned, pre_norm), x) for depth in (2, 6)]
        return depth_scaling(graphs[0], graphs[1], resolve("adamw"))

    learned, given = scaled(True), scaled(False)
    first = {name for name, own in learned.items() if "begins as parameters" in own.note}
    assert first == {
        f"decoder.layers.0.{a}.{b}"
        for a in ("self_attn", "multihead_attn")
        for b in ("out_proj.weight", "out_proj.bias")
    }
    later = {name for name in learned if not name.startswith(("decoder.layers.0", "query"))}
    assert {n: learned[n] for n in later} == {n: given[n] for n in later}
    assert learned["decoder.layers.0.linear2.weight"].depth_mult == 3


class Streams(nn.Module):
    """Hyper-connections [Zhu et al. 2025]: copies of one signal are mixed before each branch, into what it reads and
    into as many copies, to which it is added with a gain each. All come from one signal before the first branch."""

    def __init__(self, depth: int, more: bool = False) -> None:
        super().__init__()
        self.embed, self.head, self.more = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS), more
        self.mixes = nn.ParameterList(torch.cat([torch.ones(2, 1), torch.eye(2)], 1) for _ in range(2 * depth))
        self.gains = nn.ParameterList(torch.ones(2) for _ in range(2 * depth))
        self.a, self.b = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2 * depth)) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        first = self.embed(tokens)[:, :, None]
        streams = first.repeat(1, 1, 2, 1)
        for i, (mix, gain, a, b) in enumerate(zip(self.mixes, self.gains, self.a, self.b, strict=True)):
            mixed = torch.einsum("btnd,nk->btkd", streams, mix)
            streams = mixed[:, :, 1:] + gain[None, None, :, None] * b(a(mixed[:, :, 0]).relu())[:, :, None]
            if self.more and i == 0:
                streams = streams + first * first.tanh()
        out: Tensor = self.head(streams.sum(2))
        return out


def test_the_first_branch_of_several_streams_is_one_as_the_others_are() -> None:
    base, target = (dagscale.trace(Streams(depth), tokens(0)) for depth in (2, 4))
    for graph, depth in ((base, 2), (target, 4)):
        residuals = find_branches(graph)
        assert (residuals.additions, residuals.unclear) == ((2 * depth,), ())
        assert [b.ends for b in residuals.branches] == [(f"gains.{i}",) for i in range(2 * depth)]
    found = depth_scaling(base, target, resolve("adamw"))
    assert {
        found[f"{part}.{i}{end}"].depth_mult for i in range(8) for part, end in (("gains", ""), ("a", ".weight"))
    } == {2}
    assert len({found[f"gains.{i}"].fold for i in range(8)}) == 1


def test_a_branch_whose_trunk_cannot_be_told_is_said_to_be_left() -> None:
    """The first branch of several streams, where a third signal is added with it."""
    base, target = (dagscale.trace(Streams(depth, more=True), tokens(0)) for depth in (2, 4))
    assert [len(find_branches(graph).unclear) for graph in (base, target)] == [1, 1]
    found = depth_scaling(base, target, resolve("adamw"))
    told = {name for name, s in found.items() if "no operand can be told to be the trunk" in s.note}
    assert told == {"gains.0", *(f"{layer}.0.{part}" for layer in "ab" for part in ("weight", "bias"))}
    assert not any(s.note for s in depth_scaling(base, base, resolve("adamw")).values())


class Towers(nn.Module):
    """Two residual networks whose outputs are added: of that sum no operand is the trunk."""

    def __init__(self, depth: int, towers: int = 2) -> None:
        super().__init__()
        self.towers = nn.ModuleList(Net(AB, KINDS["lerp"][1], 1.0, depth) for _ in range(towers))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = sum(tower(x) for tower in self.towers)  # type: ignore[assignment]
        return out


def test_as_many_sums_that_cannot_be_told_in_both_are_no_obstacle() -> None:
    def graph(depth: int, towers: int = 2) -> Graph:
        return dagscale.trace(Towers(depth, towers), tokens(0))

    assert len(find_branches(graph(2)).unclear) == 1
    found = depth_scaling(graph(2), graph(6), resolve("adamw"))
    assert {s.depth_mult for name, s in found.items() if ".blocks." in name} == {3}
    assert not any("told to be the trunk" in s.note for s in found.values())
    with pytest.raises(PlanError, match="told to be the trunk"):
        depth_scaling(graph(2, towers=1), graph(6), resolve("adamw"))


def test_what_a_gain_is_stored_with_is_read() -> None:
    for kind, expected in (("gain 1 + w", 1.0), ("gain w + 1, tanh", 1.0), ("tanh of a gate", None), ("addcmul", None)):
        graph = dagscale.trace(net(kind), tokens(0))
        assert offsets(graph).get("blocks.0.g") == expected, kind
        assert Graph.from_json(graph.to_json()) == graph
