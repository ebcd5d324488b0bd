"""The networks of ``benchmarks/kinds.py``, what they are trained on, and how people train them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import EVALUATED, Family, next_byte, text

import dagscale
from dagscale.bench.data import load
from dagscale.models.lm import Language
from dagscale.models.vit import ViT

Data = tuple[Tensor, Tensor]


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(x: Tensor, y: Tensor) -> tuple[Data, Data]:
    """Nine tenths to train on, one to validate."""
    n = len(x) // 10
    return (x[n:], y[n:]), (x[:n], y[:n])


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


# --- sequences -------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Bytes → an embedding, stacked GRU or LSTM layers, the next byte. Drawn as torch draws them."""

    def __init__(self, kind: type[nn.Module], layers: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(256, width)
        self.core = kind(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.core(self.token(x))[0])
        return out


class Bert(nn.Module):
    """Post-norm encoder; all matrices N(0, 0.02²), as BERT's."""

    LETTERS, LENGTH = 12, 16

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(self.LETTERS + 1, width), nn.Embedding(self.LENGTH, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(width, width // 16, 4 * width, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, self.LETTERS)
        )
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, 0.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.token(x) + self.place.weight)
        out: Tensor = self.head(self.layers(h))
        return out


def post_norm(depth: int, width: int) -> nn.TransformerEncoder:
    """PyTorch's encoder, the norm behind the sum."""
    layer = nn.TransformerEncoderLayer(width, width // 16, 4 * width, 0.0, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


class PostNormDecoder(nn.Module):
    """Bytes → the next byte, with a causal mask and the norm behind the sum, as GPT-1; drawn as torch draws it."""

    def __init__(self, depth: int, width: int, length: int = 32) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(length, width)
        self.layers, self.head = post_norm(depth, width), nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: Tensor = self.head(self.layers(self.token(x) + self.place.weight, mask=mask, is_causal=True))
        return out


class PostNormViT(nn.Module):
    """A digit in sixteen patches → its class, by the mean over patches; the norm behind the sum, drawn as torch's."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(1, width, 2, 2), nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.layers, self.head = post_norm(depth, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2) + self.place
        out: Tensor = self.head(self.layers(h).mean(1))
        return out


class ResidualMlp(nn.Module):
    """Blocks ``x + W relu(V x)`` on a table, with a norm behind each sum or without; drawn as torch draws them."""

    def __init__(self, depth: int, width: int, norm: type[nn.Module], features: int = 12) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(features, width), nn.Linear(width, 1)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(a * width, b * width) for _ in range(depth)) for a, b in ((1, 2), (2, 1))
        )
        self.norm = nn.ModuleList(norm(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for up, down, norm in zip(self.up, self.down, self.norm, strict=True):
            x = norm(x + down(F.relu(up(x))))
        out: Tensor = self.head(x)
        return out


class ResidualDenoiser(nn.Module):
    """Blocks ``x + conv(silu(conv(x)))`` without norms; predicts the noise in an image."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        self.first, self.last = (
            nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, last in zip(self.first, self.last, strict=True):
            x = x + last(F.silu(first(x)))
        out: Tensor = self.head(x)
        return out


class Sorter(nn.Module):
    """``nn.Transformer``: letters, and those of their sorted order so far → the next of these. Drawn as torch's."""

    LETTERS, LENGTH = 32, 12

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(self.LETTERS + 1, width), nn.Embedding(self.LENGTH, width)
        self.core = nn.Transformer(width, width // 16, depth, depth, 4 * width, 0.0, batch_first=True)
        self.head = nn.Linear(width, self.LETTERS)
        for p in self.core.parameters():
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)

    def forward(self, x: Tensor) -> Tensor:
        source, target = (self.token(part) + self.place.weight for part in x.chunk(2, 1))
        mask = nn.Transformer.generate_square_subsequent_mask(self.LENGTH, dtype=target.dtype)
        out: Tensor = self.head(self.core(source, target, tgt_mask=mask, tgt_is_causal=True))
        return out


@cache
def short() -> tuple[Data, Data]:
    """Windows of 32 bytes, and the bytes that follow."""
    train, held = (tuple(part.reshape(-1, 32) for part in data) for data in text())
    return (train[0], train[1]), (held[0], held[1])


@cache
def masked() -> tuple[Data, Data]:
    """Chains of letters, each with two that may follow it; 15 % are hidden. The targets are these, −100 elsewhere.

    On text a short training of an encoder learns how frequent bytes are, and no more.
    """
    g, count = source(), 20_000
    following = torch.rand(Bert.LETTERS, Bert.LETTERS, generator=g).argsort(1)[:, :2]
    letters = [torch.randint(Bert.LETTERS, (count,), generator=g)]
    for _ in range(Bert.LENGTH - 1):
        letters.append(following[letters[-1], torch.randint(2, (count,), generator=g)])
    x = torch.stack(letters, 1)
    hide = torch.rand(x.shape, generator=g) < 0.15
    return split(x.masked_fill(hide, Bert.LETTERS), x.masked_fill(~hide, -100))


@cache
def letters() -> tuple[Data, Data]:
    x = torch.randint(Sorter.LETTERS, (20_000, Sorter.LENGTH), generator=source())
    y = x.sort(1).values
    start = torch.full((len(x), 1), Sorter.LETTERS)
    return split(torch.cat([x, start, y[:, :-1]], 1), y)


# --- graphs ----------------------------------------------------------------------------------------------------

NODES, EDGES, ATOMS = 12, 28, 8


@cache
def molecules() -> tuple[Data, Data]:
    """Random graphs with kinds of node → an energy with noise: a term for every edge, one for every two that meet.

    x: (graphs, nodes + 2 · edges), kinds and the two ends of each directed edge.
    """
    g = source()
    count, half = 8_000, EDGES // 2
    kinds = torch.randint(ATOMS, (count, NODES), generator=g)
    pairs = torch.combinations(torch.arange(NODES))
    chosen = pairs[torch.rand(count, len(pairs), generator=g).argsort(1)[:, :half]]
    ends = torch.cat([chosen, chosen.flip(-1)], 1)
    adjacent = torch.zeros(count, NODES, NODES)
    adjacent[torch.arange(count)[:, None], ends[..., 0], ends[..., 1]] = 1
    bond, angle = torch.randn(ATOMS, ATOMS, generator=g), torch.randn(ATOMS, ATOMS, ATOMS, generator=g)
    hot = F.one_hot(kinds, ATOMS).float()
    bonds = torch.einsum("gij,gia,gjb,ab->g", adjacent, hot, hot, bond)
    sides = adjacent @ hot
    angles = torch.einsum("gia,gib,gic,abc->g", hot, sides, sides, angle)
    energy = 2 * (bonds - bonds.mean()) / bonds.std() + (angles - angles.mean()) / angles.std()
    energy = energy / energy.std() + 0.4 * torch.randn(count, generator=g)
    return split(torch.cat([kinds, ends.flatten(1)], 1), energy)


def unpacked(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kinds of all nodes, and from where to where each edge goes, of all graphs as one."""
    first = NODES * torch.arange(len(x))[:, None]
    ends = x[:, NODES:].unflatten(1, (EDGES, 2))
    return x[:, :NODES].flatten(), (ends[..., 0] + first).flatten(), (ends[..., 1] + first).flatten()


class GIN(nn.Module):
    """``h ← MLP(h + sum of the neighbours' h)`` with batch norms [Xu et al. 2019], mean over nodes, a readout."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(ATOMS, width)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
                nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kinds, here, there = unpacked(x)
        h = self.kind(kinds)
        for layer in self.layers:
            h = layer(h + torch.zeros_like(h).index_add(0, there, h[here]))
        out: Tensor = self.head(h.view(len(x), NODES, -1).mean(1))
        return out


class Attend(nn.Module):
    """Graph attention [Veličković et al. 2018]: weights of the neighbours from a vector on each of the two sides."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, size = heads, width // heads
        self.value = nn.Linear(width, width, bias=False)
        self.source, self.target = (nn.Parameter(torch.empty(heads, size)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, h: Tensor, here: Tensor, there: Tensor) -> Tensor:
        v = self.value(h).unflatten(-1, (self.heads, -1))
        score = F.leaky_relu((v * self.source).sum(-1)[here] + (v * self.target).sum(-1)[there], 0.2)
        weight = score.exp()
        total = torch.zeros(len(h), self.heads).index_add(0, there, weight)
        mixed = torch.zeros_like(v).index_add(0, there, v[here] * weight[..., None])
        out: Tensor = (mixed / (total[..., None] + 1e-9)).flatten(1) + self.bias
        return out


class GAT(nn.Module):
    """``h ← h + elu(attention(h))`` for ``depth`` layers, sum over nodes, a readout."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.kind = nn.Embedding(ATOMS, width)
        self.layers = nn.ModuleList(Attend(width, width // 8) for _ in range(depth))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        kinds, here, there = unpacked(x)
        h = self.kind(kinds)
        for layer in self.layers:
            h = h + F.elu(layer(h, here, there))
        out: Tensor = self.head(h.view(len(x), NODES, -1).sum(1))
        return out


# --- control ---------------------------------------------------------------------------------------------------


class ActorCritic(nn.Module):
    """Actor and critic apart, of tanh layers, orthogonal with gains √2, 0.01 and 1, as PPO's usual code has them."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        hidden = [3, *[width] * depth]
        self.actor, self.critic = mlp(*hidden, 5, act=nn.Tanh), mlp(*hidden, 1, act=nn.Tanh)
        for network, last in ((self.actor, 0.01), (self.critic, 1.0)):
            layers = [layer for layer in network if isinstance(layer, nn.Linear)]
            for layer in layers:
                nn.init.orthogonal_(layer.weight, last if layer is layers[-1] else math.sqrt(2))
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.actor(x), self.critic(x)], 1)


@cache
def rollouts() -> tuple[Data, Data]:
    """200 steps of 128 pendulums under a noisy controller: what is seen → (action, advantage, return).

    The controller pumps energy and catches near the top; the torque is one of five.
    """
    g, n, length, dt = source(), 128, 200, 0.05
    angle = 2 * math.pi * torch.rand(n, generator=g)
    speed = 2 * torch.rand(n, generator=g) - 1
    torques = torch.linspace(-2, 2, 5)
    seen, taken, costs = [], [], []
    for _ in range(length):
        turned = (angle + math.pi) % (2 * math.pi) - math.pi
        energy = speed.square() / 6 + 5 * (turned.cos() - 1)
        wanted = torch.where(turned.abs() < 0.5, -12 * turned - 3 * speed, -4 * energy * speed)
        wanted = wanted.clamp(-2, 2) + 0.5 * torch.randn(n, generator=g)
        action = (wanted[:, None] - torques).abs().argmin(1)
        seen.append(torch.stack([angle.cos(), angle.sin(), speed / 4], 1))
        taken.append(action)
        costs.append(turned.square() + 0.1 * speed.square() + 0.001 * torques[action].square())
        speed = (speed + dt * (15 * angle.sin() + 3 * torques[action])).clamp(-8, 8)
        angle = angle + dt * speed
    value, returns = torch.zeros(n), []
    for cost in reversed(costs):
        value = 0.9 * value - 0.1 * cost
        returns.append(value)
    x, action = torch.cat(seen), torch.cat(taken).float()
    reached = torch.cat(returns[::-1])
    reached = (reached - reached.mean()) / reached.std()
    mix = torch.randperm(len(x), generator=g)
    return split(x[mix], torch.stack([action, reached], 1)[mix])


def weighed(out: Tensor, target: Tensor) -> Tensor:
    """Advantage-weighted imitation and the squared error of the value [Peng et al. 2019, AWR]."""
    action, reached = target[:, 0].long(), target[:, 1]
    error = reached - out[:, 5]
    weight = error.detach().exp().clamp(max=5)
    return (weight * F.cross_entropy(out[:, :5], action, reduction="none")).mean() + 0.5 * error.square().mean()


# --- images ----------------------------------------------------------------------------------------------------


class Res(nn.Module):
    """``skip(x) + conv(silu(norm(conv(silu(norm(x))) + time)))``; the last convolution starts at 0."""

    def __init__(self, before: int, width: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, before), nn.Conv2d(before, width, 3, padding=1)
        self.time = nn.Linear(time, width)
        self.norm2, self.conv2 = nn.GroupNorm(4, width), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(before, width, 1) if before != width else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class UNet(nn.Module):
    """Two levels with ``depth`` blocks each, down and up, joined by concatenation; predicts the noise in an image."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first = nn.ModuleList(Res(width, width, width) for _ in range(depth))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.deep = nn.ModuleList(Res(2 * width, 2 * width, width) for _ in range(depth))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.ModuleList(Res(width if i else 2 * width, width, width) for i in range(depth))
        self.norm, self.head = nn.GroupNorm(4, width), nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 2, 8, 8), the image and a plane with its share of noise."""
        waves = x[:, 1, 0, :1] * 2.0 ** torch.arange(4)
        time = self.time(torch.cat([waves.sin(), waves.cos()], 1))
        h = self.stem(x[:, :1])
        for block in self.first:
            h = block(h, time)
        kept, h = h, self.down(h)
        for block in self.deep:
            h = block(h, time)
        h = torch.cat([kept, self.up(F.interpolate(h, scale_factor=2.0))], 1)
        for block in self.last:
            h = block(h, time)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out


class Denoiser(nn.Module):
    """``depth`` hidden 3×3 convolutions with ReLUs, no norm and no branch; predicts the noise in an image."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        channels = [2, *[width] * depth, 1]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


@cache
def noisy() -> tuple[Data, Data]:
    """Each digit eight times, with noise of a share between 0 and 1 → the noise."""
    g = source()
    x = load("digits").x.repeat(8, 1, 1, 1)
    x = x[torch.randperm(len(x), generator=g)]
    share = torch.rand(len(x), 1, 1, 1, generator=g)
    noise = torch.randn(x.shape, generator=g)
    mixed = (0.5 * math.pi * share).cos() * x + (0.5 * math.pi * share).sin() * noise
    return split(torch.cat([mixed, share.expand_as(x)], 1), noise)


@cache
def digits() -> tuple[Data, Data]:
    found = load("digits")
    mix = torch.randperm(len(found), generator=source())
    return split(found.x[mix], found.y[mix])


# --- tables ----------------------------------------------------------------------------------------------------


class FeatureTransformer(nn.Module):
    """A vector for each feature, times its value; pre-norm blocks; the first token is read [Gorishniy et al. 2021]."""

    def __init__(self, depth: int, width: int, features: int = 12) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(features, width)) for _ in range(2))
        self.first = nn.Parameter(torch.empty(1, width))
        for p in (self.weight, self.bias, self.first):
            nn.init.uniform_(p, -(width**-0.5), width**-0.5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 8, 2 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.first.expand(len(x), 1, -1), x[..., None] * self.weight + self.bias], 1)
        for layer in self.layers:
            h = layer(h)
        out: Tensor = self.head(h[:, 0])
        return out


@cache
def friedman() -> tuple[Data, Data]:
    """Friedman's first function of five features, with a twist of two more, noise and five features of no use."""
    g = source()
    x = torch.rand(10_000, 12, generator=g)
    y = 10 * (math.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5).square() + 10 * x[:, 3] + 5 * x[:, 4]
    y = y + 5 * torch.where(x[:, 5] > 0.5, x[:, 6], -x[:, 6]) + 3 * torch.randn(len(x), generator=g)
    return split((x - 0.5) * math.sqrt(12), (y - y.mean()) / y.std())


FIELDS, LEVELS, DENSE = 8, 40, 8


class Clicks(nn.Module):
    """DLRM [Naumov et al. 2019]: tables, an MLP of the dense features, all dot products between them, an MLP.

    Drawn as its code does: tables uniform within ±1/√levels, layers N(0, 2/(fan-in + fan-out)).
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(LEVELS, width) for _ in range(FIELDS))
        self.bottom = nn.Sequential(mlp(DENSE, *[2 * width] * depth, width), nn.ReLU())
        pairs = (FIELDS + 1) * FIELDS // 2
        self.top = mlp(width + pairs, *[4 * width] * depth, 1)
        self.low, self.high = torch.tril_indices(FIELDS + 1, FIELDS + 1, -1).tolist()
        for p in self.tables.parameters():
            nn.init.uniform_(p, -(LEVELS**-0.5), LEVELS**-0.5)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / sum(layer.weight.shape)))
            nn.init.normal_(layer.bias, 0.0, math.sqrt(1 / len(layer.bias)))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.bottom(x[:, :DENSE])
        codes = x[:, DENSE:].long()
        vectors = torch.stack([dense, *(table(codes[:, i]) for i, table in enumerate(self.tables))], 1)
        products = (vectors @ vectors.transpose(1, 2))[:, self.low, self.high]
        out: Tensor = self.top(torch.cat([dense, products], 1))
        return out


@cache
def clicks() -> tuple[Data, Data]:
    """Codes that are rare and frequent, and dense features → a click, from a factorisation with noise."""
    g = source()
    count = 20_000
    codes = (LEVELS * torch.rand(count, FIELDS, generator=g).square()).long()
    dense = torch.randn(count, DENSE, generator=g)
    factors = torch.randn(FIELDS, LEVELS, 4, generator=g)
    found = factors[torch.arange(FIELDS), codes]
    total = found.sum(1)
    odds = 0.5 * (total.square().sum(1) - found.square().sum((1, 2)))
    odds = odds / odds.std() + torch.tanh(dense @ torch.randn(DENSE, 4, generator=g)).sum(1) / 2
    y = (torch.rand(count, generator=g) < (2 * odds - 0.5).sigmoid()).float()
    return split(torch.cat([dense, codes.float()], 1), y)


# --- kinds -----------------------------------------------------------------------------------------------------


def smoothed(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten(), label_smoothing=0.1)


def squared(out: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(out.view_as(target), target)


def clicked(out: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out[:, 0], target)


def kind(
    sizes: Sequence[str],
    steps: int,
    model: Callable[[int, int], nn.Module],
    data: Callable[[], tuple[Data, Data]],
    loss: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    *,
    warmup: float = 0.0,
    clip: float | None = None,
    constant: bool = False,
    **settings: Any,
) -> Family:
    def recipe(steps: int) -> dagscale.Recipe:
        schedule = None if constant else dagscale.cosine(warmup=warmup)
        return dagscale.Recipe(
            data()[0], loss, optimizer, steps=steps, batch_size=batch_size, schedule=schedule, clip=clip, **settings
        )

    def held() -> Data:
        x, y = data()[1]
        return x[:EVALUATED], y[:EVALUATED]

    return Family(tuple(sizes), steps, model, recipe, held)


ADAMW = torch.optim.AdamW
KINDS = {
    "gru": kind(
        ("1x32", "3x32", "1x128"), 150, lambda d, w: Recurrent(nn.GRU, d, w), short, next_byte, 16, clip=1.0
    ),
    "lstm": kind(
        ("1x32", "3x32", "1x128"), 150, lambda d, w: Recurrent(nn.LSTM, d, w), short, next_byte, 16, clip=1.0
    ),
    "bert": kind(
        ("1x32", "4x32", "1x128"), 250, Bert, masked, next_byte, 16, ADAMW, warmup=0.1, clip=1.0,
        weight_decay=0.01,
    ),
    "seq2seq": kind(
        ("1x32", "4x32", "1x128"), 200, Sorter, letters, smoothed, 16, warmup=0.1, clip=1.0,
        betas=(0.9, 0.98),
    ),
    "post-norm lm": kind(
        ("2x32", "8x32"), 200, PostNormDecoder, short, next_byte, 16, ADAMW, warmup=0.1, clip=1.0,
        weight_decay=0.1,
    ),
    "post-norm vit": kind(
        ("2x32", "8x32"), 200, PostNormViT, digits, F.cross_entropy, 32, ADAMW, warmup=0.1, clip=1.0,
        weight_decay=0.05,
    ),
    "post-norm mlp": kind(
        ("2x32", "8x32"), 300, lambda d, w: ResidualMlp(d, w, nn.LayerNorm), friedman, squared, 64, warmup=0.1
    ),
    "no-norm mlp": kind(
        ("2x32", "8x32"), 300, lambda d, w: ResidualMlp(d, w, nn.Identity), friedman, squared, 64, warmup=0.1
    ),
    "no-norm cnn": kind(("2x8", "8x8"), 200, ResidualDenoiser, noisy, squared, 16, ADAMW, weight_decay=0.01),
    "gin": kind(("2x32", "8x32", "2x128"), 200, GIN, molecules, squared, 32),
    "gat": kind(("2x32", "8x32", "2x128"), 200, GAT, molecules, squared, 32),
    "actor-critic": kind(
        ("2x32", "8x32", "2x128"), 300, ActorCritic, rollouts, weighed, 64, clip=0.5, eps=1e-5,
    ),
    "cnn": kind(("2x8", "8x8", "2x32"), 200, Denoiser, noisy, squared, 16, ADAMW, clip=1.0, weight_decay=0.01),
    "unet": kind(("1x8", "4x8", "1x32"), 150, UNet, noisy, squared, 16, warmup=0.05, clip=1.0),
    "tabular": kind(
        ("2x32", "8x32", "2x128"), 300, lambda d, w: mlp(12, *[w] * d, 1), friedman, squared, 64, ADAMW,
        weight_decay=1e-2,
    ),
    "ft": kind(
        ("1x16", "4x16", "1x64"), 200, FeatureTransformer, friedman, squared, 32, ADAMW, weight_decay=1e-2
    ),
    "dlrm": kind(
        ("1x8", "4x8", "1x32"), 300, Clicks, clicks, clicked, 64, torch.optim.Adagrad, constant=True
    ),
}  # fmt: skip

WITH_POSITIONS = {
    "lm": kind(
        ("2x32",), 150, lambda d, w: Language(d, width=w), text, next_byte, 8, ADAMW, warmup=0.05, clip=1.0,
        betas=(0.9, 0.95), weight_decay=0.1,
    ),
    "vit": kind(
        ("2x32",), 100, lambda d, w: ViT(d, shape=(1, 8, 8), classes=10, width=w, heads=w // 16, patch=2), digits,
        F.cross_entropy, 32, ADAMW, warmup=0.05, clip=1.0, weight_decay=0.05,
    ),
}  # fmt: skip
"""Small networks of well-known kinds, for ``benchmarks/positions.py`` alone."""
