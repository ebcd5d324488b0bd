"""Two pictures of a replay: what each rule loses, and where the best rates lie."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dagscale.bench.replay.optima import Optimum
from dagscale.bench.replay.rules import value
from dagscale.bench.replay.study import AxisScores, Judged, Replay
from dagscale.errors import PlanError

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
AXIS_VARIABLES = {"decay": "weight decay", "batch": "batch size", "examples": "examples or tokens seen"}


def draw_lost(replay: Replay) -> Figure:
    """What each rule loses by the main metric, a panel an axis: means with 95 % intervals, crosses for the worst."""
    from matplotlib.figure import Figure

    judged = replay.judged[0]
    heights = [max(len(axis.smallest), 3) for axis in judged.axes]
    drawn = Figure(figsize=(7.5, 0.28 * sum(heights) + 0.75 * len(heights) + 0.4), layout="constrained")
    panels = drawn.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    least = _least(judged)
    for panel, axis in zip(panels, judged.axes, strict=True):
        _lost_panel(panel, axis, judged, least)
    panels[-1].set_xlabel(
        f"{judged.metric.name}: {judged.metric.unit} lost against the target's own best rate\n"
        "(dot: mean, bar: 95 %, ×: worst; dotted: one octave off)"
    )
    return drawn


def _least(judged: Judged) -> float:
    """The left end of the axis, and what is smaller stands on it."""
    means = [score.lost for axis in judged.axes for score in axis.smallest if score.lost > 0]
    return 0.5 * min(means, default=1e-3)


def _lost_panel(panel: Any, axis: AxisScores, judged: Judged, least: float) -> None:
    order = axis.smallest[::-1]
    for line, score in enumerate(order):
        if score.interval is not None:
            panel.plot(
                [max(end, least) for end in score.interval], (line, line), "-", color="tab:blue", lw=2, alpha=0.5
            )
        panel.plot(max(score.lost, least), line, "o", color="tab:blue", ms=5)
        if math.isfinite(score.worst):
            panel.plot(max(score.worst, least), line, "x", color="tab:red", ms=5)
        elif score.diverged:
            panel.annotate("diverged", (1.0, line), xycoords=("axes fraction", "data"), fontsize=7, color="tab:red")
    panel.axvline(judged.octave, ls=":", color="k", lw=0.8)
    panel.set_yticks(range(len(order)), [score.rule for score in order], fontsize=8)
    panel.set_ylim(-0.7, len(order) - 0.3)
    panel.set_xscale("log")
    panel.set_title(TITLES[axis.axis], fontsize=9, loc="left")
    panel.grid(axis="x", alpha=0.3)


def draw_rates(replay: Replay) -> Figure:
    """The best rates by the main metric against decay, batch size and horizon, as far as these vary: a line a group."""
    from matplotlib.figure import Figure

    judged = replay.judged[0]
    shown = [(name, lines) for name in AXIS_VARIABLES if (lines := _lines(judged.optima, name))]
    shown = shown or [
        (name, lines) for name in ("depth", "width", "parameters") if (lines := _lines(judged.optima, name))
    ]
    drawn = Figure(figsize=(4.2 * max(len(shown), 1), 4.2), layout="constrained")
    panels = drawn.subplots(1, max(len(shown), 1), squeeze=False, sharey=True)[0]
    sizes = sorted({_color_key(o) for _, lines in shown for line in lines for o in line})
    for panel, (name, lines) in zip(panels, shown, strict=False):
        _rate_panel(panel, name, lines, sizes, judged)
    panels[0].set_ylabel("best rate")
    handles, labels = panels[0].get_legend_handles_labels()
    places = {key[-1]: i for i, key in enumerate(sizes)}
    once = dict(sorted(zip(labels, handles, strict=True), key=lambda pair: places[pair[0]]))
    if len(once) < 12:
        panels[0].legend(once.values(), once.keys(), fontsize=7)
    return drawn


def _rate_panel(
    panel: Any, name: str, lines: Sequence[Sequence[Optimum]], sizes: Sequence[Any], judged: Judged
) -> None:
    from matplotlib import colormaps

    colors = colormaps["viridis"]
    for line in lines:
        key = _color_key(line[0])
        color = colors(sizes.index(key) / max(len(sizes) - 1, 1) * 0.9)
        xs = [value(o.setting, name) for o in line]
        panel.plot(xs, [o.rate for o in line], "o-", color=color, ms=3, lw=0.8, alpha=0.7, label=key[-1])
    panel.set(xscale="log", yscale="log", xlabel=AXIS_VARIABLES.get(name, name))
    panel.grid(alpha=0.3)
    exponent = next((e for e in judged.exponents if e.part == name), None)
    if exponent is not None:
        interval = exponent.found.interval
        told = "" if interval is None else f" ({interval[0]:.2f} … {interval[1]:.2f})"
        panel.set_title(f"exponent {exponent.found.value:.2f}{told}", fontsize=9)


def _color_key(optimum: Optimum) -> tuple[float, float, str]:
    a = optimum.setting.architecture
    return a.parameters or a.depth or 0.0, a.width or 0.0, a.name


def _lines(found: Sequence[Optimum], name: str) -> list[list[Optimum]]:
    """Inner optima that differ in one number only, two at least, in its order."""
    by: dict[Hashable, list[Optimum]] = defaultdict(list)
    for optimum in found:
        if optimum.kind != "inner":
            continue
        try:
            value(optimum.setting, name)
        except PlanError:
            continue
        setting = optimum.setting
        if hasattr(setting, name):
            key: Hashable = replace(setting, **{name: None})  # type: ignore[arg-type]
        else:
            key = setting.recipe, setting.decay, setting.batch, setting.examples
        by[key].append(optimum)
    return [sorted(line, key=lambda o: value(o.setting, name)) for line in by.values() if len(line) > 1]
