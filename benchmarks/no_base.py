"""How far from the best rate is one that is measured without a base, by kind of network?

    python benchmarks/no_base.py run FILE.json [--kinds gru …] [--minutes 10]      # resumable
    python benchmarks/no_base.py report FILE.json

The networks are those of ``benchmarks/kinds.py``, of which ``docs/evidence/results/kinds.json`` has trainings over
rates an octave apart, with one rate for all parameters: each base under ``moments`` and ``small-readout``, and each
size under its author's own init. Beside them the first targets of the contests (``results/contest-*.json``), under
their authors' inits, and under ``moments`` where that has one rate for all. Here nothing is trained but the short runs
of ``plan`` itself. The folder of CIFAR-10 is ``$CIFAR10``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from kinds import Sheet, arguments, command
from kinds_networks import KINDS
from recorded import contests, mean_curve, read_results
from torch import nn
from transfer import Family, curve_of, lowest, model_of, optimum, put

import dagscale
from dagscale.bench.verify.compute import Contest
from dagscale.bench.verify.recipes import RECIPES, examples
from dagscale.errors import PlanError
from dagscale.models import targets

INITS = {"folded": "moments", "small": "small-readout", "own": "keep"}
"""Way of training in ``results/kinds.json`` → init; where nothing has grown, the rules for sizes change nothing."""

LEARNT = 0.97
"""The lowest loss over a grid's highest, above which it says nothing of a best rate."""


def networks(name: str, family: Family) -> Iterator[tuple[str, str, str]]:
    """Key, way and size of each network of a kind."""
    for way in INITS:
        for size in family.sizes if way == "own" else family.sizes[:1]:
            yield f"{name}/{way}/{size}", way, size


CONTESTS = {
    "lm": (20_000, 8), "lm-no-norm": (20_000, 8), "resnet": (3000, 32), "vit": (3000, 32), "mixer": (3000, 32),
    "mlp": (5000, 32), "mlp-adam": (5000, 32), "cnn": (3000, 32),
}  # fmt: skip
"""Suite → examples and batch size of its contest, see ``docs/evidence/real-recipes.md``."""

TARGETS = 4
"""So many of its targets."""


def of_contests() -> Iterator[tuple[str, Contest, str, str]]:
    """Key, contest, target and init of each network whose grid has one rate for all parameters."""
    for contest in contests():
        if contest.suite in CONTESTS:
            trials = {entry.method: entry.trials for entry in contest.entries}
            for init in ("keep", "moments"):
                for target in [*trials.get(f"grid / {init}", {})][:TARGETS]:
                    yield f"contest-{contest.suite}/{init}/{target}", contest, target, init


def run(path: Path, kinds: Sequence[str], until: float) -> None:
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def ask(key: str, made: Callable[[], tuple[nn.Module, dagscale.Recipe]], init: str) -> None:
        if key not in known and time.monotonic() < until:
            model, recipe = made()
            try:
                known[key] = dagscale.plan(model, recipe=recipe, init=init, law="short-run").lr
            except PlanError as error:
                known[key] = str(error)
            put(path, known)

    for name in (name for name in kinds if name in KINDS):
        family = KINDS[name]
        for key, way, size in networks(name, family):
            ask(key, lambda f=family, s=size: (model_of(f, s), f.recipe(f.steps)), INITS[way])  # type: ignore[misc]
    for key, contest, target, init in of_contests():
        if f"contest-{contest.suite}" in kinds:
            ask(key, lambda c=contest, t=target: contestant(c, t), init)  # type: ignore[misc]


def contestant(contest: Contest, target: str) -> tuple[nn.Module, dagscale.Recipe]:
    """The network and how it was trained."""
    limit, size = CONTESTS[contest.suite]
    practice = RECIPES[contest.recipe]
    data = examples(practice.data if contest.suite.startswith("lm") else os.environ["CIFAR10"], limit).train
    return targets.load(target, data=data)[0], practice.recipe(data, contest.steps, size)


def errors(known: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """Kind, init and size or target of each network, and how many octaves its rate is above the best."""
    grids = read_results("kinds")
    for name, family in KINDS.items():
        for key, way, size in networks(name, family):
            curve = curve_of(grids.get(name, {}), way, size, ())
            finite = [loss for loss in curve.values() if math.isfinite(loss)]
            if isinstance(known.get(key), float) and finite and min(finite) < LEARNT * max(finite):
                best = optimum(curve)
                at = grids[name][f"{way}/{size}/0/0"]["lr"] * 2.0**best
                yield name, INITS[way], size, math.log2(known[key] / at)
    for key, contest, target, init in of_contests():
        rows = next(entry.trials for entry in contest.entries if entry.method == f"grid / {init}")[target]
        curve = mean_curve(rows)
        if isinstance(known.get(key), float) and min(curve) < lowest(curve) < max(curve):
            yield f"contest-{contest.suite}", init, target, math.log2(known[key]) - optimum(curve)


def found(known: dict[str, Any]) -> Sheet:
    """Each kind: the mean over its networks, by init."""
    off: dict[str, dict[str, list[float]]] = {}
    for name, init, _, error in errors(known):
        off.setdefault(name, {}).setdefault(init, []).append(error)
    body = []
    for name, own in off.items():
        means = (f"{round(fmean(own[init]), 2) + 0.0:+.2f}" if init in own else "–" for init in INITS.values())
        body.append([name.replace("contest-", "contest, "), *(mean.replace("-", "−") for mean in means)])
    return ["kind", *(f"`{init}`" for init in INITS.values())], body


SHEETS = {"found": found}


if __name__ == "__main__":
    parser, runs = arguments(__doc__)
    runs.add_argument("--kinds", nargs="+", default=[*KINDS, *(f"contest-{suite}" for suite in CONTESTS)])
    command(parser, SHEETS.values(), lambda a, until: run(a.file, a.kinds, until))
