"""Draws the pictures of the evidence pages from the results: run ``python docs/picture.py``, or ``make evidence``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import studies
import tables
from matplotlib.figure import Figure

from dagscale.bench import demo
from dagscale.bench.verify import curves
from dagscale.pictures.files import save

MOST = 20.0
"""Loss above the best, in percent, at which the axis ends."""

SERIES = (
    ("one rate for all", "#868e96", "o"),
    ("the plan", "#1c7ed6", "o"),
    ("grid search, one seed", "#f08c00", "s"),
)


def losses(key: str) -> list[tuple[float, float]]:
    """Mean and worst loss of one family, in percent, for each of ``SERIES``; infinite where training diverged."""
    shown = tables.judged(key)[: len(SERIES)]
    return [(number(row["regret_mean_percent"]), number(row["regret_worst_percent"])) for row in shown]


def number(value: str) -> float:
    """A loss in percent."""
    return float("inf") if value == "diverged" else float(value)


def families(path: Path) -> None:
    """Mean and worst loss of every family."""
    keys = [key for key in tables.FAMILIES if not key.startswith("digits")]
    figure = Figure(figsize=(9, 0.36 * len(keys) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, key in enumerate(keys):
        for (name, colour, mark), (mean, worst), shift in zip(SERIES, losses(key), (-0.25, 0.0, 0.25), strict=True):
            at = place + shift
            axes.plot([min(mean, MOST), min(worst, MOST)], [at, at], color=colour, linewidth=1.2)
            axes.plot(min(mean, MOST), at, ">" if mean > MOST else mark, color=colour, markersize=5)
            if worst > MOST >= mean:
                axes.plot(MOST, at, ">", color=colour, markersize=5)
            if place == 0:
                axes.plot([], [], mark, color=colour, label=name)
    labels = [f"{tables.FAMILIES[k][0]} ({tables.INITS[tables.FAMILIES[k][2]].strip('`')})" for k in keys]
    axes.set_yticks(range(len(keys)), labels, fontsize=8)
    axes.set_ylim(len(keys) - 0.4, -0.6)
    axes.set_xlim(-0.3, MOST + 0.3)
    axes.set_xlabel("final training loss above the best of the grid, in percent: mean, and line to the worst network")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    with matplotlib.rc_context({"svg.hashsalt": "dagscale"}):  # the same bytes from the same results
        figure.savefig(path, metadata={"Date": None})


def transfer(path: Path) -> None:
    """Loss against rate, carried over."""
    studies.script("transfer").draw(studies.read("transfer"), path)


def contests(path: Path) -> None:
    """Loss against steps, under recipes that people use."""
    found = [file.stem.removeprefix("contest-") for file in sorted(studies.RESULTS.glob("contest-*.json"))]
    save(lambda: curves.figure([studies.read_contest(suite) for suite in found]), path)


def nas(path: Path) -> None:
    """Gains of recipes on architectures of NAS-Bench-201."""
    studies.script("nas_study").picture(path)


def of_demo(path: Path) -> None:
    """What ``make demo`` draws."""
    save(lambda: demo.figure(studies.demo_outcomes()), path)


PICTURES = {
    "families.svg": families, "transfer.svg": transfer, "contests.svg": contests, "demo.svg": of_demo,
    "nas-retraining.svg": nas,
}  # fmt: skip


def main() -> None:
    for name, draw in PICTURES.items():
        draw(tables.DOCS / "evidence" / "pictures" / name)


if __name__ == "__main__":
    main()
