"""Small-run settings carried over to wider and deeper language models, against each target's own grid.

    python benchmarks/transfer.py run FILE.json [--sizes 2x64 8x64 …] [--steps N] [--seeds K]    # resumable
    python benchmarks/transfer.py report FILE.json [--picture FILE.svg]

Decoder-only transformers (pre-norm) on bytes of the Python standard library's sources, under AdamW with betas (0.9,
0.95), decay 0.1 on matrices, 5 % warm-up and a cosine, clipping at 1. The smallest size is the base: it is searched
once. Every size is then trained at seven rates, an octave apart around the base's, in four ways:

    own init     GPT-2's: N(0, 0.02²), branch ends by 1/√(2L), one rate
    moments      dagscale's init, one rate
    mup          the same with width="mup"
    completep    the same with width="mup", depth="completep"

The report gives, for each way and size, where the best rate lies against the base's, the loss at the base's rate, and
the best loss of the grid. A rate in the file is the plan's overall one, which the base's search found.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.planning.base import Base
from dagscale.training.engine import train

WAYS: dict[str, dict[str, Any]] = {
    "own init": {"init": "keep"},
    "moments": {},
    "mup": {"width": "mup"},
    "completep": {"width": "mup", "depth": "completep"},
}
OCTAVES = (-3, -2, -1, 0, 1, 2, 3)
CONTEXT, BATCH = 64, 16


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        h = self.norm1(x)
        q, k, v = (f(h).view(n, t, self.heads, d // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Language(nn.Module):
    """Bytes in, logits of the next byte out. Heads have 16 channels."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(256, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, width // 16) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                end = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (math.sqrt(2 * depth) if end else 1.0))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def text() -> tuple[Tensor, Tensor]:
    """Windows of the standard library's sources, and the bytes that follow."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    raw = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
    n = (len(raw) - 1) // CONTEXT
    return raw[: n * CONTEXT].view(n, CONTEXT), raw[1 : n * CONTEXT + 1].view(n, CONTEXT)


def loss(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


def model_of(size: str) -> Language:
    torch.manual_seed(0)
    return Language(*map(int, size.split("x")))


def run(path: Path, sizes: list[str], steps: int, seeds: int, ways: list[str]) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    recipe = dagscale.Recipe(
        text(), loss, torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1, steps=steps, batch_size=BATCH,
        schedule=dagscale.cosine(warmup=0.05), clip=1.0,
    )  # fmt: skip
    small = model_of(sizes[0])
    network = None
    if "base" not in known:
        found = dagscale.search(small, recipe, seeds=1, progress=True)
        known["base"] = {"lr": found.lr, "size": sizes[0], "steps": found.steps, "recipe": found.recipe}
        network = found.network
        path.write_text(json.dumps(known, indent=0))
    from dagscale.planning.prepare import traced

    network = network or traced(small, None, recipe, 0, role="base")
    base = Base.given(network, known["base"]["lr"])
    for size in sizes:
        for way in ways:
            model = model_of(size)
            plan = dagscale.plan(model, base=base, recipe=recipe, law="none", **WAYS[way])
            for octave in OCTAVES:
                for seed in range(seeds):
                    key = f"{way}/{size}/{octave}/{seed}"
                    if key in known:
                        continue
                    trial = model_of(size)
                    plan.init_(trial, seed=seed)
                    groups = plan.param_groups(trial, lr=plan.lr * 2.0**octave)
                    done = train(trial, recipe, groups, seed=seed, evaluate=1024)
                    known[key] = done.loss if math.isfinite(done.loss) else None
                    path.write_text(json.dumps(known, indent=0))


def curves(known: dict[str, Any]) -> dict[tuple[str, str], dict[int, float]]:
    """(way, size) → octave → mean loss; ``inf`` where a run diverged."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for key, value in known.items():
        if key != "base":
            way, size, octave, _ = key.split("/")
            listed = found.setdefault((way, size), {}).setdefault(int(octave), [])
            listed.append(math.inf if value is None else value)
    return {k: {o: fmean(v) for o, v in sorted(c.items())} for k, c in found.items() if len(c) == len(OCTAVES)}


def optimum(curve: dict[int, float]) -> float:
    """The octave of the lowest loss, by a parabola through it and its neighbours."""
    best = min(curve, key=curve.__getitem__)
    around = [curve.get(best + i, math.inf) for i in (-1, 0, 1)]
    if not all(map(math.isfinite, around)):
        return float(best)
    low, mid, high = around
    bend = low - 2 * mid + high
    return best + (low - high) / (2 * bend) if bend > 0 else float(best)


def report(path: Path, picture: Path | None) -> None:
    known = json.loads(path.read_text())
    found = curves(known)
    print(f"base {known['base']['size']}: rate {known['base']['lr']:.4g}\n")
    print("| size | way | best rate, octaves from the base's | loss at the base's rate | best of the grid | lost |")
    print("|---|---|---|---|---|---|")
    for size in dict.fromkeys(size for _, size in found):
        for way in WAYS:
            if (way, size) in found:
                c = found[way, size]
                best = min(c.values())
                lost = 100 * (c[0] / best - 1)
                print(f"| {size} | {way} | {optimum(c):+.1f} | {c[0]:.3f} | {best:.3f} | {lost:.1f} % |")
    if picture is not None:
        draw(found, picture)


def draw(found: dict[tuple[str, str], dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    from dagscale.pictures.files import save

    def made() -> Figure:
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        all_axes = figure.subplots(1, len(WAYS), sharey=True)
        for axes, way in zip(all_axes, WAYS, strict=True):
            for (own, size), curve in found.items():
                if own != way:
                    continue
                points = {o: v for o, v in curve.items() if math.isfinite(v) and v < 4}
                (line,) = axes.plot(list(points), list(points.values()), label=size.replace("x", " × "))
                best = min(points, key=points.__getitem__)
                axes.plot([best], [points[best]], marker="o", color=line.get_color())
            axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
            axes.set(title=way, xlabel="octaves from the base's rate")
        all_axes[0].set(ylabel="final training loss")
        all_axes[0].legend(title="blocks × width", fontsize="small")
        return figure

    save(made, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("file", type=Path)
    runs.add_argument("--sizes", nargs="+", default=["2x64", "2x128", "8x64", "8x128", "16x64"])
    runs.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    runs.add_argument("--steps", type=int, default=200)
    runs.add_argument("--seeds", type=int, default=1)
    shown = commands.add_parser("report")
    shown.add_argument("file", type=Path)
    shown.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "run":
        run(given.file, given.sizes, given.steps, given.seeds, given.ways)
    else:
        report(given.file, given.picture)
