"""Two pictures of a replay, from its plain data: what each rule loses, and where the best rates lie."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "network": "from network to network",
    "horizon": "to a longer run",
    "batch": "to another batch size",
    "horizon, batch": "to a longer run, each at its best batch size",
    "network, horizon, batch": "to a larger network and a longer run, each at its best batch size",
    "decay": "to another decay",
}
CHOICES = {"decay": "weight decay", "batch": "batch size", "examples": "examples or tokens seen"}
SIZES = {"depth": "depth", "width": "width", "parameters": "parameters"}

Document = Mapping[str, Any]
Rate = Mapping[str, Any]
"""An entry of ``best_rates``."""


def draw_lost(document: Document) -> Figure:
    """What each rule loses by the main metric, a panel an axis: means with 95 % intervals, crosses for the worst."""
    from matplotlib.figure import Figure

    judged = document["metrics"][0]
    axes = judged["axes"]
    heights = [max(len(axis["smallest"]), 3) for axis in axes]
    drawn = Figure(figsize=(7.5, 0.26 * sum(heights) + 0.6 * len(heights) + 0.5), layout="constrained")
    panels = drawn.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    means = [score["lost"] for axis in axes for score in axis["smallest"] if score["lost"]]
    least = 0.5 * min(means, default=1e-3)
    for panel, axis in zip(panels, axes, strict=True):
        _lost_panel(panel, axis, least)
        panel.axvline(max(judged["octave"] or 0.0, least), ls=":", color="k", lw=0.8)
    panels[-1].set_xlabel(
        f"{judged['metric']['name']}: {judged['metric']['unit']} lost against the target's own best rate\n"
        "(dot: mean, bar: 95 %, ×: worst; dotted: one octave off)"
    )
    return drawn


def _lost_panel(panel: Any, axis: Document, least: float) -> None:
    """One axis; what is less than ``least`` stands on the left end."""
    order = axis["smallest"][::-1]
    for line, score in enumerate(order):
        if score["interval"] is not None:
            ends = [max(end, least) for end in score["interval"]]
            panel.plot(ends, (line, line), "-", color="tab:blue", lw=2, alpha=0.5)
        if score["lost"] is not None:
            panel.plot(max(score["lost"], least), line, "o", color="tab:blue", ms=5)
        if score["worst"] is not None:
            panel.plot(max(score["worst"], least), line, "x", color="tab:red", ms=5)
        else:
            panel.annotate("diverged", (1.0, line), xycoords=("axes fraction", "data"), fontsize=7, color="tab:red")
    panel.set_yticks(range(len(order)), [score["rule"] for score in order], fontsize=8)
    panel.set_ylim(-0.7, len(order) - 0.3)
    panel.set_xscale("log")
    panel.set_title(TITLES[axis["axis"]], fontsize=9, loc="left")
    panel.grid(axis="x", alpha=0.3)


def draw_rates(document: Document) -> Figure:
    """The best rates by the main metric against decay, batch size and horizon, as far as these vary, else against the
    network's size: a line joins best rates that differ in this alone."""
    from matplotlib.figure import Figure

    judged = document["metrics"][0]
    inner = [one for one in judged["best_rates"] if one["kind"] == "inner"]
    names = {name: lines for name in CHOICES if (lines := _lines(inner, name))}
    names = names or {name: lines for name in SIZES if (lines := _lines(inner, name))}
    drawn = Figure(figsize=(4.2 * max(len(names), 1), 4.2), layout="constrained")
    panels = drawn.subplots(1, max(len(names), 1), squeeze=False, sharey=True)[0]
    sizes = sorted({_size(one) for one in inner})
    for panel, (name, lines) in zip(panels, names.items(), strict=False):
        _rate_panel(panel, name, lines, sizes)
        exponent = next((e["found"] for e in judged["exponents"] if e["part"] == name), None)
        if exponent is not None:
            told = " ({:.2f} … {:.2f})".format(*exponent["interval"]) if exponent["interval"] else ""
            panel.set_title(f"exponent {exponent['value']:.2f}{told}", fontsize=9)
    panels[0].set_ylabel("best rate")
    handles, labels = panels[0].get_legend_handles_labels()
    places = {size[-1]: i for i, size in enumerate(sizes)}
    once = dict(sorted(zip(labels, handles, strict=True), key=lambda pair: places[pair[0]]))
    if 0 < len(once) < 12:
        panels[0].legend(once.values(), once.keys(), fontsize=7)
    return drawn


def _rate_panel(panel: Any, name: str, lines: Sequence[Sequence[Rate]], sizes: Sequence[tuple[Any, ...]]) -> None:
    from matplotlib import colormaps

    for line in lines:
        size = _size(line[0])
        color = colormaps["viridis"](sizes.index(size) / max(len(sizes) - 1, 1) * 0.9)
        xs = [_value(one, name) for one in line]
        panel.plot(xs, [one["rate"] for one in line], "o-", color=color, ms=3, lw=0.8, alpha=0.7, label=size[-1])
    panel.set(xscale="log", yscale="log", xlabel={**CHOICES, **SIZES}[name])
    panel.grid(alpha=0.3)


def _size(one: Rate) -> tuple[float, float, str]:
    a = one["architecture"]
    return a["parameters"] or a["depth"] or 0.0, a["width"] or 0.0, a["name"]


def _value(one: Rate, name: str) -> float:
    return float((one[name] if name in CHOICES else one["architecture"][name]) or 0.0)


def _lines(rates: Sequence[Rate], name: str) -> list[list[Rate]]:
    """Best rates that differ in one number only, two at least, in its order."""
    by: dict[str, list[Rate]] = defaultdict(list)
    for one in rates:
        if _value(one, name):
            fixed = [one["recipe"], *(one[choice] for choice in CHOICES if choice != name)]
            fixed += [one["architecture"]["name"]] if name in CHOICES else []
            by[json.dumps(fixed)].append(one)
    return [sorted(line, key=lambda o: _value(o, name)) for line in by.values() if len(line) > 1]
