"""Draws ``start.svg``, the curves of the base and the target on the page Start: run ``python docs/band.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale

RATES = [2.0 ** (k / 2) for k in range(-22, -5)]


def mlp(depth: int) -> nn.Module:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(64, 10))


def main() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    recipe = dagscale.Recipe((x, y), loss=cross_entropy, optimizer="adamw", batch_size=64, epochs=4)
    small, large = mlp(2), mlp(8)
    base = dagscale.search(small, recipe)
    plan = dagscale.plan(large, base=base)
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for model, colour, name, rate, mark in (
        (small, "#868e96", "base: 2 hidden layers", base.lr, "its rate,\nfound by the search"),
        (large, "#1c7ed6", "target: 8 hidden layers", plan.lr, "the plan's rate\nfor it"),
    ):
        found = dagscale.search(model, recipe, grid=RATES, method="grid", widen=0, seeds=2)
        points = [(p.lr, p.loss) for p in found.curve if p.loss < 5]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=4, label=name)
        axes.axvline(rate, color=colour, linestyle="--")
        axes.annotate(
            mark, (rate, 1.6), xytext=(6 if model is small else -6, 0), textcoords="offset points", color=colour,
            ha="left" if model is small else "right", fontsize=9,
        )  # fmt: skip
        axes.annotate(
            name, points[0], xytext=(0, 8 if model is small else -16), textcoords="offset points", color=colour,
            fontsize=9,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss after four epochs")
    with matplotlib.rc_context({"svg.hashsalt": "dagscale"}):  # the same bytes from the same results
        figure.savefig(Path(__file__).parent / "start.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
