"""Plans for kinds of network that the other studies do not have, against each target's own grid.

    python benchmarks/kinds.py run FILE.json [--kinds gru …] [--seeds 2] [--minutes 10]      # resumable
    python benchmarks/kinds.py report FILE.json

The kinds are those of ``benchmarks/kinds_networks.py``: each has one base, its smallest size, that is searched once
under ``moments`` (sizes are layers or blocks × width), and the recipe that people train it by. Every size is trained at
five rates, an octave apart around the base's, and at more where the best is at an end, in two ways:

    own      the author's init, one rate for all parameters
    folded   as ``plan(width="mup", depth="completep")`` starts it; without a depth rule where that is refused

    small    the same with init ``small-readout``
    kept     the same with the author's init, where the base's lowest loss is lowest under that init

and at one rate as ``measured``: that of law ``short-run``, which measures on the target, without rules for width and
depth. *The plan* is ``folded`` at the base's searched rate. *The base's rate* is what one does without dagscale: the
author's init at the rate that is the best of the base's own grid under that init.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from kinds_networks import KINDS
from torch import nn
from transfer import Curve, Family, Study, curve_of, lowest, model_of, optimum, studies

import dagscale
from dagscale.errors import PlanError
from dagscale.planning.base import Base
from dagscale.searching.make import EVEN

WAYS: dict[str, dict[str, Any]] = {
    "own": {"init": "keep", "law": "none"},
    "folded": {"init": "moments", "width": "mup", "depth": "completep", "law": "none"},
    "small": {"init": "small-readout", "width": "mup", "depth": "completep", "law": "none"},
    "kept": {"init": "keep", "width": "mup", "depth": "completep", "law": "none"},
    "measured": {"init": "moments", "law": "short-run"},
}
OCTAVES = (0, -1, 1, -2, 2)


def run(path: Path, names: list[str], ways: list[str], seeds: int, until: float) -> None:
    for study in studies(path, {name: KINDS[name] for name in names}, until):
        family = study.family
        for size in family.sizes:
            for way in (w for w in ways if needed(study.own, family, size, w)):
                plan = planned(family, size, study.base, study.recipe, way)
                trains(study, way, size, plan, seeds)


def trains(study: Study, way: str, size: str, plan: dagscale.Plan, seeds: int) -> None:
    """Train one way: over a grid, or at the plan's rate where that was measured on the target."""
    rates = [(0, plan.lr)] if dagscale.LAWS[plan.law].measured else study.grid(way, size, plan, OCTAVES)
    study.train(way, size, plan, rates, seeds, lambda seed: model_of(study.family, size, seed=seed))


def needed(own: dict[str, Any], family: Family, size: str, way: str) -> bool:
    """Whether a way is one of its own here: rules change nothing on the base."""
    return way in ("own", "folded", "small") or (
        size != family.sizes[0] and (way == "measured" or chosen(own, family) == "kept")
    )


BASE = {"folded": "folded", "small": "small", "kept": "own"}
"""Way of planning → the way that it is on the base."""


def chosen(own: dict[str, Any], family: Family) -> str:
    """The way whose init trains the base best, each at its best rate; of even ones the first, as a search has it."""
    lows = {way: min(curve_of(own, on, family.sizes[0], ()).values(), default=math.inf) for way, on in BASE.items()}
    return next(way for way, low in lows.items() if low <= (1 + EVEN) * min(lows.values()))


def planned(family: Family, size: str, base: Base, recipe: dagscale.Recipe, way: str) -> dagscale.Plan:
    """The plan of one way."""
    return folded(model_of(family, size), base=base, recipe=recipe, **WAYS[way])


def folded(model: nn.Module, **settings: Any) -> dagscale.Plan:
    """A plan; without a depth rule where there is none for these networks."""
    try:
        return dagscale.plan(model, **settings)
    except PlanError:
        if "depth" not in settings:
            raise
        return dagscale.plan(model, **settings | {"depth": "none"})


# --- report ----------------------------------------------------------------------------------------------------


Sheet = tuple[list[str], list[list[str]]]


def inits(known: dict[str, Any]) -> Sheet:
    """The lowest loss of every base under each init."""
    body = []
    for name, family in KINDS.items():
        lows = {w: min(curve_of(known.get(name, {}), w, family.sizes[0], ()).values(), default=math.nan) for w in WAYS}
        if math.isfinite(lows["folded"]):
            cells = [f"{lows[way]:.3f}" if math.isfinite(lows[way]) else "–" for way in ("own", "folded", "small")]
            body.append([name, times(family.sizes[0]), *cells, INITS[chosen(known[name], family)]])
    return ["kind", "base", "author's init", "`moments`", "`small-readout`", "chosen"], body


def grids(own: dict[str, Any], size: str, ways: Iterable[str] = tuple(WAYS)) -> dict[str, Curve]:
    """Way → its curve, where that is complete."""
    found = {way: curve_of(own, way, size, OCTAVES) for way in ways}
    return {way: curve for way, curve in found.items() if curve}


def lost(known: dict[str, Any]) -> Sheet:
    """By how much each way's loss is above the lowest of all grids, for every target."""
    body = []
    for name, family in KINDS.items():
        own = known.get(name, {})
        small, best = grids(own, family.sizes[0]), chosen(own, family)
        for size in family.sizes[1:]:
            curves = grids(own, size)
            if not {"own", "folded"} <= curves.keys():
                continue
            least = min(min(curve.values()) for curve in curves.values())
            losses = [
                curves["folded"][0], min(curves["folded"].values()),
                curves.get(best, {}).get(lowest(small[BASE[best]])), curve_of(own, "measured", size, ()).get(0),
                curves["own"].get(lowest(small["own"]), math.inf), min(curves["own"].values()),
            ]  # fmt: skip
            body.append([name, times(size), *(above(loss, least) for loss in losses)])
    heads = ["folded plan", "its grid", "base's choice", "measured plan", "author's init", "its grid"]
    return ["kind", "target", *heads], body


def places(known: dict[str, Any]) -> Sheet:
    """Octaves from the base's searched rate to the best of the grid, of base and target."""
    body = []
    for name, family in KINDS.items():
        small, *others = (grids(known.get(name, {}), size) for size in family.sizes)
        for size, curves in zip(family.sizes[1:], others, strict=True):
            if {"own", "folded"} <= curves.keys() & small.keys():
                bests = (place(curve[way]) for way in ("folded", "own") for curve in (small, curves))
                body.append([name, times(size), *bests])
    return ["kind", "target", "folded plan: base", "target", "author's init: base", "target"], body


SHEETS = {"lost": lost, "places": places, "inits": inits}
INITS = {"folded": "`moments`", "small": "`small-readout`", "kept": "`keep`"}


def place(curve: Curve) -> str:
    """The octave of its lowest loss."""
    return signed(optimum(curve))


def signed(octaves: float) -> str:
    return f"{octaves:+.1f}".replace("-", "−")


def times(size: str) -> str:
    return size.replace("x", " × ")


def above(loss: float | None, least: float) -> str:
    """By how much a loss is above the lowest, in percent."""
    if loss is None:
        return "–"
    return f"{100 * (loss / least - 1):.1f} %".replace("-", "−") if math.isfinite(loss) else "diverged"


def report(path: Path, sheets: Iterable[Callable[[dict[str, Any]], Sheet]]) -> None:
    """Print what each sheet makes of the file."""
    known = json.loads(path.read_text())
    for heads, body in (sheet(known) for sheet in sheets):
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        print("\n".join("| " + " | ".join(row) + " |" for row in body) + "\n")


def command(
    parser: argparse.ArgumentParser,
    sheets: Iterable[Callable[[dict[str, Any]], Sheet]],
    go_on: Callable[[argparse.Namespace, float], None],
) -> None:
    """Do what the command line of `arguments` asks: report, or go on with the runs until a time."""
    given = parser.parse_args()
    if given.command == "report":
        report(given.file, sheets)
    else:
        torch.set_num_threads(1)
        go_on(given, time.monotonic() + 60 * given.minutes)


def arguments(doc: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The command line of a study that can be stopped and goes on, and the part of it that runs."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, shown = commands.add_parser("run"), commands.add_parser("report")
    for command in (runs, shown):
        command.add_argument("file", type=Path)
    runs.add_argument("--seeds", type=int, default=2)
    runs.add_argument("--minutes", type=float, default=math.inf, help="begin no run after so long")
    return parser, runs


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    runs.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.kinds, a.ways, a.seeds, until))
