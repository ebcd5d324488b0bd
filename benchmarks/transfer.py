"""Small-run settings carried over to wider and deeper networks, against each target's own grid.

    python benchmarks/transfer.py run FILE.json [--families lm …] [--sizes 2x64 …] [--ways mup …]   # resumable
    python benchmarks/transfer.py report FILE.json [--picture FILE.svg]

Families, each with one base, its smallest size, that is searched once (sizes are blocks or layers × width):

    lm              pre-norm decoders on bytes of the Python standard library's sources, AdamW (0.9, 0.95), decay 0.1
                    on matrices, 5 % warm-up and a cosine, clipping at 1
    lm-long         the same, five times as long
    lm-no-norm      without norms
    resnet          batch norm, CIFAR-10 halved to 16×16, Nesterov momentum 0.9, decay 5e-4, cosine, crop and flip
    vit             pre-norm vision transformers on the same images, AdamW, decay 0.05, 5 % warm-up, cosine, clipping

Every size is trained at seven rates, an octave apart around the base's, and at more of them where the best is the
lowest or the highest, in four ways:

    own init     the author's: N(0, 0.02²) with branch ends by 1/√(2L) in language models, torch's elsewhere; one rate
    moments      dagscale's init, one rate
    mup          the same with width="mup"
    completep    the same with width="mup", depth="completep"

A fifth, ``random``, is what one would do without a base: rates drawn at random over six octaves around the
optimiser's usual ones, under the author's init, as many runs as the base's search took steps for.

Each run's final training loss and validation loss are kept as soon as it is finished, so that the study can be stopped
and goes on where it was. ``--device cuda`` and larger ``--sizes`` add to the same file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dagscale
from dagscale.laws.accuracy import kind_of
from dagscale.models.lm import CONTEXT, Language
from dagscale.models.resnet import ResNet
from dagscale.models.vit import ViT
from dagscale.planning.base import Base
from dagscale.planning.defaults import way_over
from dagscale.planning.prepare import traced
from dagscale.replacing import write
from dagscale.training.engine import final_loss, train

WAYS: dict[str, dict[str, Any]] = {
    "own init": {"init": "keep"},
    "moments": {"init": "moments"},
    "mup": {"init": "moments", "width": "mup"},
    "completep": {"init": "moments", "width": "mup", "depth": "completep"},
}
OCTAVES, FURTHEST = (0, -1, 1, -2, 2, -3, 3), 7
EVALUATED = 1024
"""Examples that a final training loss is taken over."""

Curve = dict[int, float]
"""Octave from the base's rate → loss."""

CIFAR = Path(os.environ.get("CIFAR10", "data/cifar10"))


# --- language models -------------------------------------------------------------------------------------------


@cache
def text() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Windows of the standard library's sources and the bytes that follow; every tenth file is held out."""

    def windows(files: list[Path]) -> tuple[Tensor, Tensor]:
        raw = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8).long()
        n = (len(raw) - 1) // CONTEXT
        return raw[: n * CONTEXT].view(n, CONTEXT), raw[1 : n * CONTEXT + 1].view(n, CONTEXT)

    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return windows([f for i, f in enumerate(files) if i % 10]), windows(files[::10])


def next_byte(out: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), target.flatten())


def language_recipe(steps: int) -> dagscale.Recipe:
    return dagscale.Recipe(
        text()[0], next_byte, torch.optim.AdamW, betas=(0.9, 0.95), weight_decay=0.1, steps=steps, batch_size=16,
        schedule=dagscale.cosine(warmup=0.05), clip=1.0,
    )  # fmt: skip


# --- images ----------------------------------------------------------------------------------------------------


class Augmented(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Images, each shifted by up to two pixels and flipped at random."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.size = F.pad(x, (2, 2, 2, 2)), y, x.shape[-1]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        down, right, flip = (int(n) for n in torch.randint(0, 5, (3,)))
        image = self.x[i, :, down : down + self.size, right : right + self.size]
        return image.flip(-1) if flip % 2 else image, self.y[i]


@cache
def images() -> tuple[Augmented, tuple[Tensor, Tensor]]:
    """10,000 images of 16×16 to train on, 2,000 others of the test set to validate."""
    from dagscale.bench.data import load

    found = []
    for name, count in (("train", 10_000), ("test", 2_000)):
        data = load(str(CIFAR / f"{name}.parquet"))
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
        found.append((F.avg_pool2d(data.x[chosen], 2), data.y[chosen]))
    (x, y), held = found
    return Augmented(x, y), held


def image_recipe(steps: int, **more: Any) -> dagscale.Recipe:
    return dagscale.Recipe(images()[0], F.cross_entropy, steps=steps, batch_size=64, **more)


def resnet_recipe(steps: int) -> dagscale.Recipe:
    return image_recipe(
        steps, optimizer=torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4, no_decay=(),
        schedule=dagscale.cosine(),
    )  # fmt: skip


def vit_recipe(steps: int) -> dagscale.Recipe:
    return image_recipe(
        steps, optimizer=torch.optim.AdamW, weight_decay=0.05, schedule=dagscale.cosine(warmup=0.05), clip=1.0
    )


# --- families --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What is trained, and how. ``sizes``: the base first; ``model(depth, width)``; ``held``: validation data."""

    sizes: tuple[str, ...]
    steps: int
    model: Callable[[int, int], nn.Module]
    recipe: Callable[[int], dagscale.Recipe]
    held: Callable[[], tuple[Tensor, Tensor]]


FAMILIES = {
    "lm": Family(
        ("2x64", "8x64", "16x64", "2x128", "8x128"), 200, lambda d, w: Language(d, width=w), language_recipe,
        lambda: text()[1],
    ),
    "lm-long": Family(
        ("2x64", "8x64"), 1000, lambda d, w: Language(d, width=w), language_recipe, lambda: text()[1]
    ),
    "lm-no-norm": Family(
        ("2x64", "8x64", "16x64"), 200, lambda d, w: Language(d, width=w, norm="none"), language_recipe,
        lambda: text()[1],
    ),
    "resnet": Family(
        ("8x8", "20x8", "8x16", "56x8", "20x16", "8x32"), 400,
        lambda d, w: ResNet(d, in_channels=3, classes=10, width=w, stride=2), resnet_recipe, lambda: images()[1],
    ),
    "vit": Family(
        ("2x32", "8x32", "2x64", "16x32", "8x64"), 300,
        lambda d, w: ViT(d, shape=(3, 16, 16), classes=10, width=w, heads=w // 16, patch=4), vit_recipe,
        lambda: images()[1],
    ),
}  # fmt: skip


def model_of(family: Family, size: str, device: str = "cpu", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    depth, width = map(int, size.split("x"))
    return family.model(depth, width).to(device)


def same(family: Family, size: str, way: str) -> str:
    """The way whose runs at this size are also those of ``way``: rules for what has not grown change nothing."""
    (depth, width), (d0, w0) = (s.split("x") for s in (size, family.sizes[0]))
    if way == "completep" and depth == d0:
        way = "mup"
    return "moments" if way == "mup" and width == w0 else way


# --- running ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """A family of a results file, and its base. Each run is kept as soon as it is finished, and none is made twice.

    Attributes:
        path, known: the file, and all that is in it.
        name: of the family in there.
        own: what is known of this family, see `curves`.
        until: the time, as ``time.monotonic`` has it, after which no run is begun.
    """

    path: Path
    known: dict[str, Any]
    name: str
    own: dict[str, Any]
    family: Family
    recipe: dagscale.Recipe
    base: Base
    until: float

    def grid(self, way: str, size: str, plan: dagscale.Plan, grid: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Octaves from a plan's rate and the rates there, see `octaves`."""
        for octave in octaves(partial(curve_of, self.own, way, size, ()), grid):
            yield octave, plan.lr * 2.0**octave

    def train(
        self,
        way: str,
        size: str,
        plan: dagscale.Plan,
        rates: Iterable[tuple[int, float]],
        seeds: int,
        model: Callable[[int], nn.Module],
    ) -> None:
        """Train at each of the rates, numbered, with each seed; ``model(seed)`` is what a plan then draws."""
        for place, lr in rates:
            for seed in range(seeds):
                key = f"{way}/{size}/{place}/{seed}"
                if key not in self.own and time.monotonic() < self.until:
                    self.own[key] = trained(model(seed), self.family, plan, self.recipe, lr, seed)
                    put(self.path, self.known)


def studies(
    path: Path, families: Mapping[str, Family], until: float, device: str = "cpu", init: str | None = "moments"
) -> Iterator[Study]:
    """Each family with its base, searched where the file has none yet; ``init``: as `dagscale.search` takes it."""
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, family in families.items():
        recipe, own = family.recipe(family.steps), known.setdefault(name, {})
        base = base_of(own, family, recipe, device, init)
        put(path, known)
        yield Study(path, known, name, own, family, recipe, base, until)


def run(path: Path, names: list[str], sizes: list[str], ways: list[str], seeds: int, device: str, until: float) -> None:
    for study in studies(path, {name: FAMILIES[name] for name in names}, until, device):
        family, base, recipe = study.family, study.base, study.recipe
        rival = study.own["base"]["steps"] // family.steps
        for size in sizes or family.sizes:
            for way in ways:
                if way == "random":
                    plan = planned(family, size, base, recipe, "own init", device)
                    rates: Iterable[tuple[int, float]] = enumerate(drawn(rival, study.name, recipe))
                else:
                    way = same(family, size, way)
                    plan = planned(family, size, base, recipe, way, device)
                    rates = study.grid(way, size, plan, OCTAVES)
                study.train(way, size, plan, rates, seeds, partial(as_it_comes, family, size, device))


def as_it_comes(family: Family, size: str, device: str, _: int) -> nn.Module:
    """The model under any seed: what differs between seeds is the plan's draw, and the order of the data."""
    return model_of(family, size, device)


def octaves(curve: Callable[[], Curve], grid: Sequence[int]) -> Iterator[int]:
    """The grid, what was run beyond it, and on beyond an end for as long as it is the best, up to ``FURTHEST``.

    Args:
        curve: what has been run so far.
    """
    yield from grid
    yield from [octave for octave in curve() if octave not in grid]
    while found := curve():
        best = lowest(found)
        following = best + (1 if best > 0 else -1)
        if min(found) < best < max(found) or abs(following) > FURTHEST:
            return
        yield following
        if following not in curve():  # out of time
            return


def put(path: Path, known: dict[str, Any]) -> None:
    write(path, (json.dumps(known, indent=0) + "\n").encode())


def base_of(
    own: dict[str, Any], family: Family, recipe: dagscale.Recipe, device: str = "cpu", init: str | None = "moments"
) -> Base:
    """The base, searched once; its rate and init are kept in the file, with its kind of network, and the sizes that
    ``plan()`` carries its rate over to by default."""
    small = model_of(family, family.sizes[0], device)
    if "base" not in own:
        found = dagscale.search(small, recipe, init=init, seeds=1)
        own["base"] = {
            "lr": found.lr, "size": family.sizes[0], "steps": found.steps, "recipe": found.recipe, "init": found.init,
        }  # fmt: skip
    base = traced(small, None, recipe, 0, role="base")
    if "kind" not in own["base"]:
        others = {size: traced(model_of(family, size, device), None, recipe, 0) for size in family.sizes[1:]}
        found_under = dagscale.INITS[own["base"].get("init", "moments")]
        carried = [size for size, other in others.items() if way_over(base, other, found_under)]
        own["base"] |= {"kind": kind_of(base), "carried": carried}
    return Base.given(base, own["base"]["lr"])  # for any init


def planned(family: Family, size: str, base: Base, recipe: dagscale.Recipe, way: str, device: str) -> dagscale.Plan:
    return dagscale.plan(model_of(family, size, device), base=base, recipe=recipe, law="none", **WAYS[way])


def drawn(count: int, name: str, recipe: dagscale.Recipe) -> Iterator[float]:
    """Rates at random, uniform in the logarithm over the grid that a search would begin with."""
    from dagscale.rates import default_grid

    grid = default_grid(recipe.optimizer)
    rng = random.Random(name)
    for _ in range(count):
        yield math.exp(rng.uniform(math.log(min(grid)), math.log(max(grid))))


def trained(
    trial: nn.Module, family: Family, plan: dagscale.Plan, recipe: dagscale.Recipe, lr: float, seed: int
) -> dict[str, Any]:
    """One run: its rate, training and validation loss (None where it diverged), and seconds."""
    began = time.process_time()
    plan.init_(trial, seed=seed)
    done = train(trial, recipe, plan.param_groups(trial, lr=lr), seed=seed, evaluate=EVALUATED)
    valid = math.inf
    if math.isfinite(done.loss):
        trial.eval()
        held = family.held()
        valid = final_loss(trial, recipe.changed(data=held), len(held[0]))
    losses = {"train": done.loss, "valid": valid}
    finite = {k: v if math.isfinite(v) else None for k, v in losses.items()}
    return {"lr": lr, **finite, "seconds": round(time.process_time() - began, 1)}


# --- report ----------------------------------------------------------------------------------------------------


def curves(
    own: dict[str, Any], judged: str, seed: str | None = None, grid: Sequence[int] = OCTAVES
) -> dict[tuple[str, str], Curve]:
    """(way, size) → octave → mean loss of all seeds or of one, where all of the grid was run; ``inf`` where a run
    diverged."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for key, value in own.items():
        if key != "base" and seed in (None, key.rpartition("/")[2]):
            way, size, place, _ = key.split("/")
            loss = value[judged]
            listed = found.setdefault((way, size), {}).setdefault(int(place), [])
            listed.append(math.inf if loss is None else loss)
    means = {k: {o: fmean(v) for o, v in sorted(c.items())} for k, c in found.items()}
    return {k: c for k, c in means.items() if k[0] == "random" or c.keys() >= set(grid)}


def curve_of(own: dict[str, Any], way: str, size: str, grid: Sequence[int] = OCTAVES) -> Curve:
    """The training losses of one way and size; empty where not all of the grid was run."""
    return curves(own, "train", grid=grid).get((way, size), {})


def lowest(curve: Curve) -> int:
    """The octave of the lowest loss."""
    return min(curve, key=curve.__getitem__)


def optimum(curve: Curve) -> float:
    """The octave of the lowest loss, by a parabola through it and its neighbours."""
    best = lowest(curve)
    around = [curve.get(best + i, math.inf) for i in (-1, 0, 1)]
    if not all(map(math.isfinite, around)):
        return float(best)
    low, mid, high = around
    bend = low - 2 * mid + high
    return best + (low - high) / (2 * bend) if bend > 0 else float(best)


def report(path: Path, picture: Path | None) -> None:
    known = json.loads(path.read_text())
    for name, family in FAMILIES.items():
        if name in known:
            table(name, family, known[name])
    if picture is not None:
        draw(known, picture)


def table(name: str, family: Family, own: dict[str, Any]) -> None:
    base = own["base"]
    print(f"\n**{name}**: base {base['size']}, rate {base['lr']:.4g}, found in {base['steps']:,} steps; ", end="")
    print(f"{family.steps} steps a run\n")
    print(
        "| size | way | best rate, octaves | at base's rate | best of grid | lost | validation, at base's rate | best |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    found, held = curves(own, "train"), curves(own, "valid")
    seeds = sorted({key.rpartition("/")[2] for key in own if key != "base"})
    single = [curves(own, "train", seed) for seed in seeds]
    for size in dict.fromkeys([*family.sizes, *(size for _, size in found)]):
        shown = set()
        for way in WAYS:
            key = (same(family, size, way), size)
            if key in found and key not in shown:
                shown.add(key)
                names = " = ".join(w for w in WAYS if same(family, size, w) == key[0])
                c, v = found[key], held[key]
                best, where = min(c.values()), optimum(c)
                edge = " (edge)" if where in (min(c), max(c)) else ""
                each = [f"{optimum(alone[key]):+.1f}" for alone in single if key in alone]
                apart = f" ({', '.join(each)})" if len(each) > 1 else ""
                start = (
                    [" – "] * 3
                    if way == "own init"
                    else [f"{c[0]:.3f}", f"{100 * (c[0] / best - 1):.1f} %", f"{v[0]:.3f}"]
                )
                apart = f"{where:+.1f}{edge}{apart}"
                cells = [apart, start[0], f"{best:.3f}", start[1], start[2], f"{min(v.values()):.3f}"]
                print(f"| {size} | {names} | {' | '.join(cells)} |")
        if ("random", size) in found:
            c, v = found["random", size], held["random", size]
            chosen = min(c, key=c.__getitem__)
            print(f"| {size} | {len(c)} random rates, own init | – | – | {c[chosen]:.3f} | – | – | {v[chosen]:.3f} |")


def draw(known: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    from dagscale.pictures.files import save

    names = [n for n in FAMILIES if n in known and len({size for _, size in curves(known[n], "train")}) > 1]

    def made() -> Figure:
        figure = Figure(figsize=(11, 0.4 + 2.8 * len(names)), layout="constrained")
        rows = figure.subplots(len(names), len(WAYS), sharey="row", sharex=True, squeeze=False)
        for name, row in zip(names, rows, strict=True):
            family, found = FAMILIES[name], curves(known[name], "train")
            sizes = list(dict.fromkeys([*family.sizes, *(size for _, size in found)]))
            top = 1.25 * max(min(c.values()) for c in found.values())
            for axes, way in zip(row, WAYS, strict=True):
                for i, size in enumerate(sizes):
                    curve = found.get((same(family, size, way), size))
                    if curve is None:
                        continue
                    points = {o: v for o, v in curve.items() if v < top}
                    axes.plot(list(points), list(points.values()), color=f"C{i}", label=size.replace("x", " × "))
                    best = min(points, key=points.__getitem__)
                    axes.plot([best], [points[best]], marker="o", color=f"C{i}")
                axes.axvline(0, color="grey", linewidth=0.8, linestyle="--")
                axes.set_title(f"{name}, {way}", fontsize="medium")
            row[0].set_ylabel("final training loss")
            row[-1].legend(title="depth × width", fontsize="x-small", title_fontsize="x-small")
        for axes in rows[-1]:
            axes.set_xlabel("octaves from the base's rate")
        return figure

    save(made, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("file", type=Path)
    runs.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    runs.add_argument("--sizes", nargs="+", default=[], help="depth x width; by default the family's own")
    runs.add_argument("--ways", nargs="+", default=[*WAYS, "random"], choices=[*WAYS, "random"])
    runs.add_argument("--seeds", type=int, default=1)
    runs.add_argument("--device", default="cpu")
    runs.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so long")
    shown = commands.add_parser("report")
    shown.add_argument("file", type=Path)
    shown.add_argument("--picture", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(1)
        end = time.monotonic() + 60 * given.minutes
        run(given.file, given.families, given.sizes, given.ways, given.seeds, given.device, end)
    else:
        report(given.file, given.picture)
