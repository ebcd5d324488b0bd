"""``dagscale verify`` of suites under a recipe that people use: plans and rivals, with equal steps for both.

Three sweeps into one store: the bases' searches; then what methods predict, from what these found; then every training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from dagscale.bench.data.places import placed
from dagscale.bench.sweep import Run, code_version
from dagscale.bench.verify.compute import Contest, Entry, Trial, affordable
from dagscale.bench.verify.methods import Method
from dagscale.bench.verify.recipes import RECIPES, examples
from dagscale.bench.verify.rivals import RIVALS
from dagscale.bench.verify.runs import execute
from dagscale.bench.verify.study import K, check_asked, choose, every, swept
from dagscale.bench.verify.suites import SUITES, Exponents
from dagscale.errors import DagscaleError
from dagscale.models import targets

AFFECTS_TRAINING = False

METHODS = ("short-run/moments", "one-rate", "mup", "lr-finder", "prodigy", *RIVALS, "tpe/moments")
"""By default, behind the suite's plan, which searches on the target are given as many steps as. The last one says what
of a difference is the init's."""


def contest(
    suite: str,
    *,
    methods: Sequence[str] = (),
    data: str | None = None,
    architectures: int | None = None,
    seeds: int = 1,
    steps: int | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    grid: Exponents | None = None,
    spacing: float = 1.0,
    options: str = "",
    seed: int = 0,
    store: str | Path,
    jobs: int = -1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> Contest:
    """Hold plans and rivals against one another on the targets of a suite, by what they cost.

    The base is searched as a user would (`dagscale.search`, method ``fast``), under each init that methods begin
    with. Each target is then trained: at the rate that each method gives; over the whole grid, under the
    author's init and as the plans start it; and by random search and TPE over the grid's range, with as many trainings
    as the first plan's steps are worth. All of it goes through a sweep: killed and called again, it goes on where it
    was.

    Args:
        suite: a name in ``SUITES`` whose suite has a recipe.
        methods: names, as for `dagscale.bench.verify.study.verify`, and those in ``RIVALS``; by default
            the suite's plan and ``METHODS``. Those that lack their package are left out with a note.
        data: as `dagscale.bench.verify.recipes.examples` reads them; the recipe's own by default.
        architectures: how many targets; by default the suite's own number.
        seeds: trainings of each target at a rate, and of the base's search.
        steps, batch_size: length of a training, and examples a step; the recipe's own by default.
        limit: training examples at most.
        grid, spacing: exponents of 2, lowest and highest, in place of the suite's, and octaves between rates.
        options: for every network, in place of the suite's own of the same names.
        seed: of the first training.
        store, jobs, scheduler, retry_failed, progress: as for `dagscale.bench.sweep.sweep`.

    Raises:
        UnknownNameError: for an unknown suite or method.
        DataError, TargetError: if the data, or a network with these options, cannot be read.
        DagscaleError: if the suite has no recipe, or runs failed.
    """
    family = SUITES[suite].adapted(options)
    if not family.recipe:
        raise DagscaleError(f"suite {suite} has no recipe of its own: it is for dagscale.bench.verify.study.verify")
    practice = RECIPES[family.recipe]
    count = family.count if architectures is None else architectures
    length = practice.steps if steps is None else steps
    size = practice.batch_size if batch_size is None else batch_size
    check_asked(seed, architectures=count, seeds=seeds, steps=length, batch_size=size, limit=limit)
    optimizer, source = practice.optimizer.name, data or practice.data
    rates = family.rates(optimizer, grid, spacing)
    chosen, notes = choose(methods or (family.plan, *METHODS), optimizer)
    plans = [m for m in chosen if m.carried and m.init != "keep"] or [m for m in chosen if m.carried]
    if not plans:
        raise DagscaleError(
            "no method carries a rate over, so that nothing says how many steps the others may take: add one, as "
            f"{family.plan}"
        )
    members, both = family.members(count, seed), examples(source, limit)
    for a in (family.base, *members):
        targets.load(a, data=both.train)  # what cannot be built is refused before anything is trained
    versions = {"kind": code_version(), "train": code_version("AFFECTS_TRAINING")}

    def run(architecture: str, init: str, options: Mapping[str, Any], lr: float = 1.0, k: int = 0) -> Run:
        return Run(
            architecture, lr, init, optimizer, both.digest, limit, size, None, length, seed + k,
            {"recipe": family.recipe, **options}, versions["kind" if options["kind"] in ("base", "law") else "train"],
        )  # fmt: skip

    def answers(asked: Mapping[K, Run]) -> dict[K, Any]:
        """What the runs answered, by what they are called here."""
        found = swept(
            list(asked.values()), partial(placed, {both.digest: source}, execute), store, jobs=jobs,
            scheduler=scheduler, retry_failed=retry_failed, progress=progress,
        )  # fmt: skip
        return every(asked, found, store)

    inits = {m.init for m in chosen if m.searched}
    found = answers({init: run(family.base, init, {"kind": "base", "seeds": seeds}) for init in inits})
    cost = found[plans[0].init]["steps"] + length
    ranged = {"low": rates[0], "high": rates[-1]}

    def asked_of(m: Method, a: str, measured: int) -> dict[str, Any]:
        more = {**ranged, "trials": affordable(cost + measured, length)} if m.options["kind"] == "direct" else {}
        rate = {"lr": found[m.init]["lr"]} if m.searched and not m.carried else {}
        return {**m.options, **more, **rate, **({"base": family.base} if m.searched else {})}

    predicting = {(m.name, a): run(a, m.init, asked_of(m, a, 0)) for m in chosen if not m.per_seed for a in members}
    predicted = answers(predicting)
    measured = round(fmean(predicted[plans[0].name, a]["steps"] for a in members))
    trainings: dict[tuple[str, str, int], list[Run]] = {}
    for m in chosen:
        for a in members:
            answer = predicted.get((m.name, a), {})
            lr = found[m.init]["lr"] * answer["factor"] if m.carried else answer.get("lr", 1.0)
            kind = asked_of(m, a, measured) if m.per_seed else m.training(a, family.base)
            init = found[m.init]["init"] if m.searched else m.init
            for k in range(seeds):
                trainings[m.name, a, k] = [run(a, init, kind, lr, k)]
    starts = {m.truth: m for m in chosen if m.truth == m.init == "keep" or m is plans[0]}
    for truth, m in starts.items():
        for a in members:
            kind = m.training(a, family.base)
            for k in range(seeds):
                trainings[f"grid / {truth}", a, k] = [run(a, m.init, kind, lr, k) for lr in rates]
    done = answers({(key, i): one for key, asked in trainings.items() for i, one in enumerate(asked)})

    def entry(name: str, m: Method | None) -> Entry:
        rows = {
            a: tuple(
                tuple(trial for i, one in enumerate(trainings[key]) for trial in _trials(one, done[key, i]))
                for key in ((name, a, k) for k in range(seeds))
            )
            for a in members
        }
        before = [predicted[name, a]["steps"] for a in members if (name, a) in predicted]
        once = found[m.init]["steps"] if m is not None and m.searched else 0
        return Entry(name, once, fmean(before) if before else 0.0, rows)

    return Contest(
        suite, family.base, family.recipe, practice.recipe(both.train, length, size).describe(), both.train.name,
        length, (*(entry(m.name, m) for m in chosen), *(entry(f"grid / {truth}", None) for truth in starts)),
        plans[0].name, tuple(notes), found,
    )  # fmt: skip


def _trials(run: Run, result: Mapping[str, Any]) -> list[Trial]:
    """The trainings of one run: of a search on the target several, else one."""
    lr = run.lr if run.options["kind"] in ("train", "mup") else None
    return [
        Trial(trial.get("lr", lr), trial["loss"], trial["valid"], trial["accuracy"], trial["steps"])
        for trial in result.get("trials", [result])
    ]
