"""Does a rate carry over to a wider network that has a size inside which stays, such as a code or a router?

    python benchmarks/bottlenecks.py run FILE.json [--families squeeze …] [--seeds 2] [--minutes 10]     # resumable
    python benchmarks/bottlenecks.py report FILE.json

Each family has a base, and a target four times as wide. In both some layer leads from the width to a few units and on
to the width again, but for one kind that is there to compare with. Each kind has two families, of another base and
target. The target is trained in two ways, at the rate that the plan comes to and at two octaves either way:

    folded      the base's rate, with the rules for width: no step on the target
    measured    law ``short-run`` on base and target, one rate for all layers

None of these networks had a part in another study but the variational one, whose rates were carried over there too.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from default_init import Variational, every_byte, evidence, pairs, pictures
from kinds import Sheet, arguments, command, times
from kinds_networks import ADAMW, Data, digits, friedman, kind, mlp, short, squared
from torch import Tensor, nn
from torch.nn import functional as F
from transfer import Family, base_of, curve_of, model_of, optimum, put, trained

import dagscale

WAYS: dict[str, dict[str, Any]] = {
    "folded": {"law": "none", "width": "mup", "depth": "none"},
    "measured": {"law": "short-run", "width": "none", "depth": "none"},
}
OCTAVES = (-2, -1, 0, 1, 2)


# --- networks ---------------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Pixels → a code of eight numbers → pixels."""

    def __init__(self, depth: int, width: int, code: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, *[width] * depth, code), mlp(code, *[width] * depth, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(x.flatten(1)))
        return out


class Codes(nn.Module):
    """Convolutions down to a map of four channels, and up again."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 4, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(4, width, 4, 2, 1), nn.Conv2d(width, 1, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        h = F.relu(self.up(self.down(F.relu(self.layers[0](h)))))
        for layer in self.layers[1:]:
            h = F.relu(layer(h))
        out: Tensor = self.head(h)
        return out.flatten(1)


class Views(nn.Module):
    """Two noisy views of each image → how alike the projections of each pair are [Chen et al. 2020, SimCLR]."""

    def __init__(self, depth: int, width: int, code: int = 16) -> None:
        super().__init__()
        self.encoder, self.projector = mlp(64, *[width] * depth, width), mlp(width, width, code)

    def forward(self, x: Tensor) -> Tensor:
        views = (x.flatten(1) + 0.5 * torch.randn_like(x.flatten(1)) for _ in range(2))
        a, b = (F.normalize(self.projector(F.relu(self.encoder(v))), dim=1) for v in views)
        return a @ b.T / 0.2


class Experts(nn.Module):
    """Pre-norm residual blocks in which a router chooses two of four perceptrons for each example."""

    def __init__(self, depth: int, width: int, experts: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth + 1))
        self.routers = nn.ModuleList(nn.Linear(width, experts) for _ in range(depth))
        self.experts = nn.ModuleList(
            nn.ModuleList(mlp(width, 2 * width, width) for _ in range(experts)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for norm, router, experts in zip(self.norms, self.routers, self.experts, strict=False):
            n = norm(h)
            shares, chosen = router(n).softmax(1).topk(2, 1)
            added = torch.zeros_like(h)
            for i, expert in enumerate(experts):  # type: ignore[arg-type]
                rows, column = (chosen == i).nonzero(as_tuple=True)
                added = added.index_add(0, rows, expert(n[rows]) * shares[rows, column, None])
            h = h + added
        out: Tensor = self.head(self.norms[-1](h))
        return out


class Squeeze(nn.Module):
    """Residual blocks whose end is gated through four units [Hu et al. 2018]."""

    def __init__(self, depth: int, width: int, squeezed: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(depth))
        self.gates = nn.ModuleList(mlp(width, squeezed, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for norm, block, gate in zip(self.norms, self.blocks, self.gates, strict=True):
            z = block(norm(h))
            h = h + z * gate(z).sigmoid()
        out: Tensor = self.head(F.layer_norm(h, h.shape[1:]))
        return out


class Residual(nn.Module):
    """The same blocks without a gate: nothing inside stays."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(mlp(width, width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(norm(h))
        out: Tensor = self.head(F.layer_norm(h, h.shape[1:]))
        return out


class LowRank(nn.Module):
    """A perceptron whose hidden layers are two factors of rank eight."""

    def __init__(self, depth: int, width: int, rank: int = 8) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(12, width), nn.Linear(width, 1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x))
        for layer in self.layers:
            h = F.relu(layer(h))
        out: Tensor = self.head(h)
        return out


class Latent(nn.Module):
    """A language model whose keys and values are made of eight numbers a place [DeepSeek-V2 2024]."""

    def __init__(self, depth: int, width: int, latent: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.token, self.place = heads, nn.Embedding(256, width), nn.Embedding(32, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.queries, self.ends = (nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(width, latent) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(latent, 2 * width) for _ in range(depth))
        self.wide = nn.ModuleList(mlp(width, 4 * width, width, act=nn.GELU) for _ in range(depth))
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.place(torch.arange(x.shape[1]))
        for i, (query, down, up, end, wide) in enumerate(
            zip(self.queries, self.down, self.up, self.ends, self.wide, strict=True)
        ):
            n = self.norms[2 * i](h)
            parts = (query(n), *up(down(n)).chunk(2, 2))
            q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + end(mixed.transpose(1, 2).flatten(2))
            h = h + wide(self.norms[2 * i + 1](h))
        out: Tensor = self.head(self.norms[-1](h))
        return out


class TwoStages(nn.Module):
    """A network that chooses two numbers between −1 and 1, and one that reads these beside the features."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.actor, self.critic = mlp(12, *[width] * depth, 2), mlp(14, *[width] * depth, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.critic(torch.cat([x, self.actor(x).tanh()], 1))
        return out


class LatentSteps(nn.Module):
    """Six pre-norm residual steps of a state of twelve numbers, through a wide layer each; then classes."""

    def __init__(self, depth: int, width: int, state: int = 12) -> None:
        super().__init__()
        self.stem, self.head = mlp(64, width, state), nn.Linear(state, 10)
        self.blocks = nn.ModuleList(mlp(state, width, state) for _ in range(3 * depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = h + block(F.layer_norm(h, h.shape[1:]))
        out: Tensor = self.head(F.layer_norm(h, h.shape[1:]))
        return out


def flat() -> tuple[Data, Data]:
    """Digits → their own pixels, standardised."""
    (x, _), (held, _) = digits()
    mean, std = x.mean(), x.std()
    return ((x - mean) / std, ((x - mean) / std).flatten(1)), ((held - mean) / std, ((held - mean) / std).flatten(1))


SIZES = ("2x16", "2x64")
ONCE: dict[str, Family] = {
    "autoencoder": kind(SIZES, 200, Autoencoder, flat, squared, 64, constant=True),
    "convolutional autoencoder": kind(("2x8", "2x32"), 200, Codes, flat, squared, 32),
    "variational": kind(SIZES, 300, Variational, pictures, evidence, 64, constant=True),
    "two views": kind(SIZES, 200, Views, digits, pairs, 64),
    "routed experts": kind(SIZES, 150, Experts, digits, F.cross_entropy, 32, ADAMW, weight_decay=0.01),
    "squeeze": kind(SIZES, 150, Squeeze, digits, F.cross_entropy, 32, ADAMW, weight_decay=0.01),
    "residual, nothing stays": kind(SIZES, 150, Residual, digits, F.cross_entropy, 32, ADAMW, weight_decay=0.01),
    "low rank": kind(SIZES, 300, LowRank, friedman, squared, 64),
    "latent attention": kind(SIZES, 150, Latent, short, every_byte, 16, ADAMW, warmup=0.1, clip=1.0,
                             weight_decay=0.1),
    "two stages": kind(SIZES, 300, TwoStages, friedman, squared, 64),
    "narrow state": kind(SIZES, 150, LatentSteps, digits, F.cross_entropy, 32, ADAMW, weight_decay=0.01),
}  # fmt: skip


def doubled(family: Family) -> Family:
    """The same, twice as wide."""
    sizes = [size.split("x") for size in family.sizes]
    return replace(family, sizes=tuple(f"{depth}x{2 * int(width)}" for depth, width in sizes))


FAMILIES = {f"{name}, {times(one.sizes[0])}": one for name, family in ONCE.items() for one in (family, doubled(family))}


def run(path: Path, names: Sequence[str], seeds: int, until: float) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        family, own = FAMILIES[name], known.setdefault(name, {})
        if time.monotonic() > until:
            return
        recipe, size = family.recipe(family.steps), family.sizes[1]
        base = base_of(own, family, recipe, init=None)
        put(path, known)
        for way, said in WAYS.items():
            asked = [(k, s) for k in OCTAVES for s in range(seeds) if f"{way}/{size}/{k}/{s}" not in own]
            if not asked:
                continue
            plan = dagscale.plan(model_of(family, size), base=base, recipe=recipe, init=own["base"]["init"], **said)
            for k, seed in asked:
                if time.monotonic() < until:
                    model = model_of(family, size, seed=seed)
                    own[f"{way}/{size}/{k}/{seed}"] = trained(model, family, plan, recipe, plan.lr * 2.0**k, seed)
            put(path, known)


def ends(known: dict[str, Any]) -> Sheet:
    """Where the target ends in each way, and how far from that way's best rate."""
    body = []
    for name, family in FAMILIES.items():
        found = {way: curve_of(known.get(name, {}), way, family.sizes[1], OCTAVES) for way in WAYS}
        if all(found.values()):
            cells = [cell for way in WAYS for cell in (f"{found[way][0]:.3g}", off(found[way]))]
            gap = 100 * (found["folded"][0] / found["measured"][0] - 1)
            body.append([name, *cells, f"{gap:+.1f} %".replace("-", "−")])
    heads = ["network", "folded", "octaves to its best", "measured", "octaves to its best", "folded against measured"]
    return heads, body


def off(curve: dict[int, float]) -> str:
    best = optimum(curve)
    return (f"{best:+.1f}" if math.isfinite(curve[0]) else "diverged").replace("-", "−")


SHEETS = {"ends": ends}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.families, a.seeds, until))
