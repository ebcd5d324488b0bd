"""What the first steps say of a whole run: the evidence that laws ``short-run`` and ``combined`` were made by.

    python benchmarks/short_run.py --data PATH/cifar10 [--cells NAME …] [--horizons N …] [--json FILE]

Small families of MLPs, CNNs and transformers, with and without norms, under ``moments`` and under PyTorch's own init;
other architectures than those that ``docs/evidence/index.md`` reports: their sample's seed is 5. Each is trained at
rates half an octave apart with several seeds, and every batch's loss is kept. A short run of any length is the
beginning of a long one, so all variants of the law can be read off the same runs, at rates an octave apart as the law
tries them: by the mean loss over the run or by that of its last quarter, and with any power of the ratio. A variant's
rate, from the middle of the base's band, is held against the whole runs: correlation and slope of log ratios, rms
distance in octaves at the power that laws take, scatter of the short run's middle between seeds, by how many octaves
the whole run's lies above it, and the loss above the best of the grid, mean and worst, for several powers.

The row "as tried" is the law itself run on these curves: the rates that it tries, ``SPACING`` octaves apart from where
the base's rate leads it to, the runs that it gives up, and the steps that all this takes a network. Beside it stands
the same with rates an octave apart.

Of length 1 is what ``covariance`` derives for the first step. Where it speaks of a family, so does the geometric mean
of it and a short run's ratio.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from dagscale.bench.sweep import Run
from dagscale.bench.verify.runs import built, network_of, planned, recipe_of
from dagscale.bench.verify.suites import dags
from dagscale.bench.verify.truth import TOLERANCE
from dagscale.laws import short_run
from dagscale.laws.base import FADING
from dagscale.laws.combined import described
from dagscale.laws.covariance import hidden_change
from dagscale.laws.short_run import SHARE
from dagscale.rates import find_band
from dagscale.training.engine import exploded, train

Losses = NDArray[np.float64]
LENGTHS = (12, 24, 48, 96)
POWERS = (1 / 3, 0.5, 2 / 3, 0.75, 1.0)
LAST = 16
"""Batches whose mean loss stands for the final one, where a run is taken to end earlier."""


@dataclass(frozen=True)
class Cell:
    """A family, its init, the grid (exponents of 2, half an octave apart) and the optimiser."""

    base: str
    members: tuple[str, ...]
    init: str
    grid: tuple[int, int]
    optimizer: str = "sgd"


SEED = 5
"""Of the sample of architectures."""

_mlp, _normed, _cnn, _vit = "width=64", "width=64&norm=batch", "width=12&downsample=4", "width=24"
_kernels = [f"{_cnn}&kernel={k}" for k in (3, 5, 7)]
_mlps, _cnns = dags("mlp", _mlp)(8, SEED), dags("cnn", *_kernels)(6, SEED)
_vits = tuple(f"vit:{n}?{_vit}" for n in (2, 3, 5, 7))


def residual(width: str) -> Cell:
    """Residual CNNs of growing depth, without norms."""
    base, *members = (f"resnet:{depth}?{width}&stride=4&norm=none" for depth in (8, 14, 20, 32, 44))
    return Cell(base, tuple(members), "moments", (-8, 1))


def chain(blocks: int) -> str:
    """The code of a chain of residual blocks of two layers each."""
    return "_".join(f"{'0' * (2 * b)}2_{'0' * (2 * b)}12" for b in range(blocks))


CELLS = {
    "mlp": Cell(f"mlp:2?{_mlp}", _mlps, "moments", (-9, 2)),
    "mlp, PyTorch's init": Cell(f"mlp:2?{_mlp}", _mlps, "keep", (-7, 4)),
    "mlp, batch norm": Cell(f"mlp:2?{_normed}", dags("mlp", _normed)(8, SEED), "moments", (-8, 3)),
    "cnn": Cell(f"cnn:2?{_cnn}", _cnns, "moments", (-7, 2)),
    "cnn, AdamW": Cell(f"cnn:2?{_cnn}", _cnns, "moments", (-12, -3), "adamw"),
    "residual cnn": residual("width=6"),
    "residual cnn, wide": residual("width=12"),
    "cnn, residual chains": Cell(
        f"cnn:{chain(2)}?{_cnn}", tuple(f"cnn:{chain(n)}?{_cnn}" for n in (4, 6, 8, 11, 14)), "moments", (-9, 1)
    ),
    "transformer": Cell(f"vit:1?{_vit}", _vits, "moments", (-7, 2)),
    "transformer, AdamW": Cell(f"vit:1?{_vit}", _vits, "moments", (-13, -5), "adamw"),
}


def curve(run: Run, steps: int) -> list[list[float]]:
    """Loss of every batch of a run, then its final training loss; ``inf`` from where it diverged. And the same with
    each example's neighbour's labels."""
    torch.set_num_threads(1)
    model = built(run)
    strange: list[float] = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        strange.append(cross_entropy(out.detach(), y.roll(1, 0)).item())
        return cross_entropy(out, y)

    done = train(
        model, recipe_of(run).changed(loss=loss, steps=steps, epochs=None), planned(run).param_groups(model, lr=run.lr),
        seed=run.seed,
    )  # fmt: skip
    both = done.losses, strange[: len(done.losses)]
    kept = [[loss if math.isfinite(loss) else math.inf for loss in losses] for losses in both]
    return [[*losses, *[math.inf] * (steps - len(losses)), done.loss] for losses in kept]


def middle(rates: Sequence[float], losses: Sequence[float], limit: float) -> float:
    """Log2 of the middle of the rates around the best whose loss is at most ``limit``."""
    best = min(losses)
    low, high = find_band(rates, [loss - best + 1 for loss in losses], limit - best, widest=math.inf)
    return math.log2(low * high) / 2


def examine(name: str, curves: Losses, rates: Sequence[float], closed: Losses | None) -> list[dict[str, float | str]]:
    """A row a variant. ``curves``: (architectures, rates, seeds, own or strange labels, steps + 1), the base first;
    ``closed``: see `derived`."""
    curves, strange = curves[:, :, :, 0], curves[:, :, :, 1]
    final = curves[..., -1].mean(2)
    found = np.array([middle(rates, row, (1 + TOLERANCE) * row.min()) for row in final])
    logs = np.log2(rates)

    def regret(chosen: Losses) -> Losses:
        lost = [
            np.interp(x, logs, np.minimum(row, 1e3)) / row.min() - 1 for x, row in zip(chosen, final[1:], strict=True)
        ]
        return np.array(lost)

    rows: list[dict[str, float | str]] = []

    def add(length: int, by: str, ratios: Losses, **told: float) -> None:
        true = found[1:] - found[0]
        if length:
            told["r"], told["slope"] = float(np.corrcoef(ratios, true)[0, 1]), float(np.polyfit(true, ratios, 1)[0])
        told["octaves"] = float(np.sqrt(np.mean((FADING * ratios - true) ** 2)))
        lost = [regret(found[0] + power * ratios) for power in POWERS]
        means = {f"power {p:.2g}": f"{v.mean():.2%}, {v.max():.1%}" for p, v in zip(POWERS, lost, strict=True)}
        rows.append({"cell": name, "length": length, "by": by, **told, **means})

    add(0, "one rate for all", np.zeros(len(found) - 1))
    if closed is not None:
        add(1, "covariance", closed)
    octaves = slice(None, None, 2)
    for length in (n for n in LENGTHS if 2 * n <= curves.shape[3] - 1):
        for by, part in (("mean", slice(0, length)), ("last quarter", slice(length - length // 4, length))):
            short = curves[:, octaves, :, part].mean(3)
            before = curves[:, :1, :, 0]  # the first batch's loss, before any step
            limits = short.min(1) + SHARE * (before[:, 0] - short.min(1))
            middles = np.array([
                [middle(rates[octaves], short[a, :, s], limits[a, s]) for s in range(short.shape[2])]
                for a in range(len(short))
            ])  # fmt: skip
            own = middles.mean(1)
            late = slice(length // 2, length)
            with np.errstate(invalid="ignore"):  # diverged
                learnt = 1 - curves[:, octaves, :, late].mean(3) / strange[:, octaves, :, late].mean(3)
            best = np.take_along_axis(learnt, short.argmin(1)[:, None], 1)
            scatter, above = float(middles.std(1, ddof=1).mean()), float((found - own).mean())
            add(length, by, own[1:] - own[0], learnt=float(best.mean()), scatter=scatter, above=above)
            if closed is not None and by == "mean":
                add(length, "mean × covariance", (own[1:] - own[0] + closed) / 2)
    for spacing in (1, 2):
        own, taken = map(np.array, zip(*(tried(c, rates, found[0], spacing) for c in curves), strict=True))
        add(short_run.STEPS, f"as tried, {spacing} apart", own[1:] - own[0], steps=float(taken[1:].mean()))
    return rows


def derived(cell: Cell, data: str, limit: int) -> Losses | None:
    """Log2 of what the first step's update says that the members' rates are relative to the base's, if it can say."""
    common = {"optimizer": cell.optimizer, "data": data, "limit": limit, "options": {"kind": "law"}}
    networks = [network_of(Run(a, 1.0, cell.init, **common)) for a in (cell.base, *cell.members)]
    if not all(described(network) for network in networks):
        return None
    changes = np.log2([hidden_change(network) for network in networks])
    return (changes[0] - changes[1:]) / 2


class Recorded(short_run.Runs):
    """Short runs as they are recorded in a whole run's curve, read off in place of being run.

    Below the grid the loss falls in proportion to the rate, and above it every run diverges.
    """

    def __init__(self, curves: Losses, rates: Sequence[float], steps: int) -> None:
        self.curves, self.rates, self.steps = curves, rates, steps
        self.best, self.raised, self.taken = 0.0, "", 0
        self.starts = curves[0, :steps].tolist()  # at the lowest rate, at which least moves
        self.before = fmean(self.starts)

    def __call__(self, rate: float) -> float:
        below = rate / self.rates[0]
        return super().__call__(rate) if below >= 1 else below * super().__call__(self.rates[0])

    def _losses(self, rate: float) -> list[float]:
        if rate > self.rates[-1]:
            return []
        losses: list[float] = []
        for loss in self.curves[self.rates.index(rate), : self.steps]:
            if self._hopeless(losses):
                break
            losses.append(float(loss))
            self.taken += 1
            if exploded(losses[-1], losses[0]):
                return []
        return losses


def tried(curves: Losses, rates: Sequence[float], hint: float, spacing: int) -> tuple[float, int]:
    """Log2 of the middle that the law comes to on one network, mean over seeds, and the steps that this takes.

    Args:
        curves: (rates, seeds, steps).
        hint: log2 of the rate that is expected.
    """
    middles, taken, before = [], 0, short_run.SPACING
    short_run.SPACING = spacing
    try:
        for seed in range(curves.shape[1]):
            runs = Recorded(curves[:, seed], rates, short_run.STEPS)
            start = short_run.nearest(hint - short_run.NEAR, seed % spacing)
            found = short_run.middle_of_band(runs, start)
            assert found is not None
            middles.append(math.log2(found))
            hint, taken = middles[-1], taken + runs.taken
    finally:
        short_run.SPACING = before
    return fmean(middles), taken


def ended(curves: Losses, horizon: int) -> Losses:
    """As if runs had ended after so many steps, the final loss the mean of the last batches'."""
    cut = curves[..., :horizon]
    return np.concatenate([cut, cut[..., -LAST:].mean(-1, keepdims=True)], -1)


def trained(name: str, cell: Cell, rates: Sequence[float], given: argparse.Namespace) -> Losses:
    """A cell's curves, see `examine`."""
    runs = [
        Run(
            a, lr, cell.init, seed=s, optimizer=cell.optimizer, data=given.data, limit=given.limit, batch_size=64,
            options={"kind": "train"},
        )
        for a in (cell.base, *cell.members) for lr in rates for s in range(given.seeds)
    ]  # fmt: skip
    done = Parallel(-1, return_as="generator")(delayed(curve)(run, given.steps) for run in runs)
    losses = [*track(done, description=name, total=len(runs), console=Console(stderr=True))]
    return np.array(losses).reshape(1 + len(cell.members), len(rates), given.seeds, 2, given.steps + 1)


def main() -> None:
    """Train, examine and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--cells", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--limit", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=192)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--horizons", nargs="*", type=int, default=[], help="as if runs had ended after so many steps")
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--keep", type=Path, help="folder: what was trained is kept there, and not trained again")
    given = parser.parse_args()
    rows = []
    for name in given.cells:
        cell = CELLS[name]
        rates = [2.0 ** (cell.grid[0] + k / 2) for k in range(2 * (cell.grid[1] - cell.grid[0]) + 1)]
        kept = given.keep and given.keep / f"{name}.npy"
        if not (kept and kept.exists()):
            curves = trained(name, cell, rates, given)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.save(kept, curves)
        curves = np.load(kept) if kept else curves
        closed = derived(cell, given.data, given.limit)
        for horizon in (*given.horizons, given.steps):
            seen = curves if horizon == given.steps else ended(curves, horizon)
            rows += [{"horizon": str(horizon), **row} for row in examine(name, seen, rates, closed)]
    table = Table(title="power: loss above the best of the grid, mean and worst")
    told = ("cell", "horizon", "length", "by", "steps", "learnt", "scatter", "above", "r", "slope", "octaves")
    for header in (*told, *(f"power {p:.2g}" for p in POWERS)):
        table.add_column(header)
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v := row.get(c.header, ""), float) else str(v) for c in table.columns))
    Console(width=160).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
