"""Which part of the rule for width costs in short runs: the inits that it scales, or the rates.

    python benchmarks/width_parts.py run FILE.json [--suites mixer …] --data PATH/cifar10     # resumable
    python benchmarks/width_parts.py report FILE.json

Targets that are only wider than the base of their suite (``dagscale verify SUITE``), 100 steps under its recipe, two
seeds. Each is trained over a grid of rates an octave apart in five ways:

    one        ``moments``, one rate for all parameters
    mup        as ``plan(width="mup")`` has it
    readout    the same, but for the readout's init, which is that of ``one``
    rates      the rates of ``mup`` under the init of ``one``
    init       one rate under the init of ``mup``
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from kinds import Sheet, arguments, command
from torch import nn
from transfer import put

import dagscale
from dagscale.bench.verify.recipes import RECIPES, examples
from dagscale.bench.verify.suites import SUITES
from dagscale.graph.roles import roles
from dagscale.models import targets
from dagscale.planning.base import Base
from dagscale.planning.prepare import traced
from dagscale.training.engine import train

TARGETS = {
    "lm": (("lm:2?width=64", "lm:2?width=96"), range(-9, -4), 8, 20_000),
    "vit": (("vit:2?width=64&heads=4", "vit:2?width=96&heads=6"), range(-11, -6), 32, 3_000),
    "mixer": (("mixer:2?width=64", "mixer:2?width=80"), range(-10, -4), 32, 3_000),
}
"""Suite → targets, log2 of the rates, batch size, examples."""

WAYS = ("one", "mup", "readout", "rates", "init")
STEPS = 100


def plans(model: nn.Module, base: Base, recipe: dagscale.Recipe) -> dict[str, dagscale.Plan]:
    """The plan of each way."""
    make = partial(dagscale.plan, base=base, recipe=recipe, law="none", init="moments", depth="none", progress=False)
    one, mup = make(model, width="none"), make(model, width="mup")
    role = roles(traced(model, None, recipe, 0).graph)

    def mixed(init: Callable[[str], bool], rate: Callable[[str], bool]) -> dagscale.Plan:
        """As ``mup`` has it where these say so, as ``one`` has it elsewhere."""
        own = {}
        for name, entry in mup.parameters.items():
            drawn, trained = (mup if ask(name) else one for ask in (init, rate))
            own[name] = replace(entry, init_std=drawn.parameters[name].init_std, lr=trained.parameters[name].lr)
        return replace(mup, parameters=own)

    return {
        "one": one,
        "mup": mup,
        "readout": mixed(lambda name: role[name] != "readout", lambda _: True),
        "rates": mixed(lambda _: False, lambda _: True),
        "init": mixed(lambda _: True, lambda _: False),
    }


def run(path: Path, suites: Iterable[str], data: str, seeds: int, until: float) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for suite in suites:
        names, octaves, batch_size, limit = TARGETS[suite]
        family = SUITES[suite]
        practice = RECIPES[family.recipe]
        train_on = examples("text" if suite == "lm" else data, limit).train
        recipe = practice.recipe(train_on, STEPS, batch_size)
        small, _ = targets.load(family.base, data=train_on, seed=0)
        base = Base.given(traced(small, None, recipe, 0, role="base"), 1.0)
        for name in names:
            for way, plan in plans(targets.load(name, data=train_on, seed=0)[0], base, recipe).items():
                for octave in octaves:
                    for seed in range(seeds):
                        key = f"{name}/{way}/{octave}/{seed}"
                        if key not in known.setdefault(suite, {}) and time.monotonic() < until:
                            model, _ = targets.load(name, data=train_on, seed=seed)
                            plan.init_(model, seed=seed)
                            loss = train(model, recipe, plan.param_groups(model, lr=2.0**octave), seed=seed).loss
                            known[suite][key] = loss if math.isfinite(loss) else None
                            put(path, known)


def parts(known: dict[str, Any]) -> Sheet:
    """The lowest mean loss of each way above that of one rate."""
    body = []
    for suite, runs in known.items():
        losses: dict[str, list[float]] = defaultdict(list)
        for key, loss in runs.items():
            losses[key.rpartition("/")[0]].append(math.inf if loss is None else loss)
        for name in TARGETS[suite][0]:
            lows = {way: min(fmean(losses[f"{name}/{way}/{octave}"]) for octave in TARGETS[suite][1]) for way in WAYS}
            changes = (f"{100 * (lows[way] / lows['one'] - 1):+.1f} %".replace("-", "−") for way in WAYS[1:])
            body.append([f"`{name}`", *changes])
    return ["target", "`mup`", "readout's init as it is", "its rates alone", "its init alone"], body


SHEETS = {"parts": parts}

if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--suites", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    runs.add_argument("--data", default="data/cifar10")
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.suites, a.data, a.seeds, until))
