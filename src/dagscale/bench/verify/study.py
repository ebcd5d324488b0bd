"""``dagscale verify``: learning rates predicted by each method against those found by training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from dagscale.bench.bounds import check_count
from dagscale.bench.data import load
from dagscale.bench.data.places import placed
from dagscale.bench.sweep import Run, Store, code_version, sweep
from dagscale.bench.verify.methods import SCALINGS, Method, law_method, law_methods
from dagscale.bench.verify.peers import PEERS
from dagscale.bench.verify.rivals import RIVALS
from dagscale.bench.verify.runs import execute
from dagscale.bench.verify.suites import SUITES, Exponents
from dagscale.bench.verify.truth import Truth
from dagscale.bench.verify.verdict import Judge, Truths, Verdict
from dagscale.errors import DagscaleError, UnknownNameError
from dagscale.inits import INITS
from dagscale.models import targets
from dagscale.replacing import make_folder
from dagscale.training.optimizers import OPTIMIZERS

AFFECTS_TRAINING = False

K = TypeVar("K")

MOST = {
    "architectures": 1000, "bases": 1000, "seeds": 1000, "epochs": 10**6, "steps": 10**8, "batch_size": 10**6,
    "limit": 10**9,
}  # fmt: skip
"""How much may be asked for."""


@dataclass(frozen=True)
class Study:
    """All of it: what was asked, what training found, what each method came to, what a reader should know."""

    suite: str
    optimizer: str
    architectures: tuple[str, ...]
    truths: Truths
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]


def verify(
    suite: str,
    *,
    methods: Sequence[str] = (),
    optimizer: str = "sgd",
    data: str = "digits",
    architectures: int | None = None,
    bases: int = 1,
    seeds: int = 2,
    epochs: int = 1,
    batch_size: int = 32,
    limit: int | None = None,
    grid: Exponents | None = None,
    spacing: float = 0.5,
    options: str = "",
    seed: int = 0,
    store: str | Path,
    jobs: int = -1,
    scheduler: str | None = None,
    retry_failed: bool = False,
    progress: bool = False,
) -> Study:
    """Compare methods on a suite.

    The base and every architecture are trained over the whole grid under each init, which gives the truth; a law's
    rate is the middle of the base's band times its factors. All of it goes through a sweep: killed and called
    again, it goes on where it was.

    Args:
        suite: a name in ``SUITES``.
        methods: names, as ``curvature/moments`` (any law and init), ``none/moments/mup`` (layers scaled by width),
            ``none/moments/mup+completep`` (by width and residual depth) or ``lr-finder``; by default every law under
            the inits offered, and every peer. Those that do not cover the optimiser, or lack their package, are left
            out.
        optimizer: a name in ``dagscale.training.OPTIMIZERS``.
        data, limit: the data set and how much of it.
        architectures: how many members of the suite; by default its own number.
        bases: how many networks laws carry rates over from: the suite's own base, and the first of the members, which
            are not reported on then. The mean is that of ``dagscale.plan`` with several bases.
        seeds: runs a rate; at least 2.
        epochs, batch_size: length of each run.
        grid: exponents of 2, lowest and highest, in place of the suite's.
        spacing: octaves between rates.
        options: for every architecture, as ``norm=batch&width=128``, in place of the suite's.
        seed: chooses the architectures, and is the first run's seed.
        store: the sweep's file.
        jobs: processes on this machine, -1 for one a core.
        scheduler: a Dask scheduler's address, in place of processes.
        retry_failed: execute the runs again that failed in an earlier call.

    Raises:
        UnknownNameError: for an unknown suite, method or optimiser.
        DataError, TargetError: if the data, or an architecture with these options, cannot be read.
        DagscaleError: if training runs failed, or too few architectures, rates or seeds are asked for.
    """
    family = SUITES[suite].adapted(options)
    OPTIMIZERS[optimizer]
    count = family.count if architectures is None else architectures
    check_asked(seed, architectures=count, bases=bases, seeds=seeds, epochs=epochs, batch_size=batch_size, limit=limit)
    rates = family.rates(optimizer, grid, spacing)
    if count < bases + 2 or seeds < 2 or len(rates) < 3:
        raise DagscaleError(
            "verify needs at least 3 architectures beside further bases, 3 rates and 2 seeds to correlate anything"
        )
    if family.recipe:
        raise DagscaleError(
            f"suite {suite} trains under a recipe of its own: it is for dagscale.bench.verify.contest.contest"
        )
    chosen, notes = choose(methods, optimizer, family.extra)
    if alone := [m.name for m in chosen if m.name.partition(" / ")[0] in RIVALS]:
        able = ", ".join(name for name in SUITES if SUITES[name].recipe)
        raise DagscaleError(f"{alone[0]} is held against plans with equal steps: it is for the suites {able}")
    members = family.members(count, seed)
    images = load(data, limit=limit)
    for a in (family.base, *members):
        targets.resolve(a, data=images)  # what cannot be read is refused before anything is trained
    common: dict[str, Any] = {
        "optimizer": optimizer, "data": images.digest, "limit": limit, "batch_size": batch_size, "epochs": epochs,
    }  # fmt: skip
    trained = code_version("AFFECTS_TRAINING")
    trainings = {
        (m.truth, a, lr, k): Run(
            a, lr, m.init, seed=seed + k, options=m.training(a, family.base), version=trained, **common
        )
        for m in {m.truth: m for m in chosen}.values() for a in (family.base, *members) for lr in rates
        for k in range(seeds)
    }  # fmt: skip
    predictions = {
        (m.name, a, k): Run(a, 1.0, m.init, seed=seed + k, options={**m.options, "base": family.base}, **common)
        for m in chosen for a in members for k in range(seeds if m.per_seed else 1)
    }  # fmt: skip
    results = swept(
        [*predictions.values(), *trainings.values()], partial(placed, {images.digest: data}, execute), store,
        jobs=jobs, scheduler=scheduler, retry_failed=retry_failed, progress=progress,
    )  # fmt: skip
    curves = every(trainings, results, store)
    truths: dict[str, dict[str, Truth]] = {m.truth: {} for m in chosen}
    for truth, known in truths.items():
        for a in (family.base, *members):
            known[a] = Truth(rates, tuple(tuple(curves[truth, a, lr, k]["loss"] for k in range(seeds)) for lr in rates))
    _require_finite(truths)
    spent: Counter[tuple[str, str]] = Counter()
    for (truth, a, _, _), result in curves.items():
        spent[truth, a] += result["steps"]
    judge = Judge(truths, (family.base, *members[: bases - 1]), members[bases - 1 :], spent)
    verdicts = []
    for m in chosen:
        answers = {
            a: [results.get(run.key) for (name, of, _), run in predictions.items() if (name, of) == (m.name, a)]
            for a in members
        }
        complete = {a: [one for one in row if one is not None] for a, row in answers.items() if None not in row}
        if len(complete) == len(members):
            verdicts.append(judge.method(m, complete))
        else:
            lacking = len(members) - len(complete)
            notes.append(
                f"{m.name} left out: no answer for {lacking} architectures, see `dagscale sweep status {store}`"
            )
    return Study(suite, optimizer, judge.members, truths, (*verdicts, *judge.searches()), (*notes, *_ends(truths)))


def check_asked(seed: int, **counts: int | None) -> None:
    """Refuse what is not from 1 to its number in ``MOST``; None is what nobody asked for.

    Raises:
        DagscaleError: for the first of them, or a seed below 0.
    """
    for name, value in counts.items():
        if value is not None:
            check_count(name, value, 1, MOST[name])
    check_count("seed", seed, 0, 2**63)


def swept(
    asked: Sequence[Run], execute: Callable[[Run], Mapping[str, Any]], store: str | Path, **how: Any
) -> dict[str, Mapping[str, Any]]:
    """Execute runs in a sweep; the results of those that did not fail, by their keys.

    Args:
        how: further arguments of `dagscale.bench.sweep.sweep`.
    """
    make_folder(Path(store).parent)
    sweep(asked, execute, store, **how)
    with Store(store) as book:
        return {run.key: result for run, result in book.results(asked) if isinstance(result, Mapping)}


def every(asked: Mapping[K, Run], results: Mapping[str, Any], store: str | Path) -> dict[K, Any]:
    """The result of every run, by what the run is called here.

    Raises:
        DagscaleError: if one has none.
    """
    failed = [run for run in asked.values() if run.key not in results]
    if failed:
        raise DagscaleError(
            f"{len(failed)} runs failed, the first {failed[0].architecture} (kind {failed[0].options['kind']}, lr "
            f"{failed[0].lr:.3g}, init {failed[0].init}): see `dagscale sweep status {store}`; once it is mended, "
            "--retry-failed executes them again"
        )
    return {name: results[run.key] for name, run in asked.items()}


def choose(names: Sequence[str], optimizer: str, extra: Sequence[str] = ()) -> tuple[list[Method], list[str]]:
    """The methods of these names that can be had, by default all and the extra ones; and a note for each other.

    Raises:
        UnknownNameError: for an unknown name.
        DagscaleError: if none is left.
    """
    chosen, notes = [], []
    default = [*law_methods(), *map(named, extra), *(PEERS[name] for name in PEERS)]
    for method in [named(name) for name in names] or default:
        if not method.covers(optimizer):
            notes.append(f"{method.name} left out: it is for {', '.join(sorted(method.optimizers))}, not {optimizer}")
        elif method.package is not None and (problem := _missing(*method.package)):
            notes.append(f"{method.name} left out: {problem}")
        elif method not in chosen:
            chosen.append(method)
    if not chosen:
        raise DagscaleError("; ".join(notes))
    return chosen, notes


def named(name: str) -> Method:
    """A method by name: ``LAW/INIT`` or ``LAW/INIT/SCALING``, spaces as you like, or a peer's or a rival's.

    A rival under another init than its own is ``tpe/moments``: what of a difference is the init's, not the rate's.
    ``dagscale`` may have several, as ``dagscale/moments,keep``, of which the base's search chooses.

    Raises:
        UnknownNameError: for an unknown one.
    """
    law, *rest = (part.strip() for part in name.split("/"))
    if len(rest) > 2 or not set(rest[1:]) <= set(SCALINGS):
        ways = ", ".join(f"LAW/INIT/{scaling}" for scaling in SCALINGS)
        raise UnknownNameError(f"unknown method {name!r}: write LAW/INIT, {ways} or one of {', '.join(PEERS)}")
    if law in RIVALS and len(rest) == 1:
        rival, inits = RIVALS[law], rest[0]
        for init in inits.split(",") if rival.searched else [inits]:
            INITS[init]
        return replace(rival, name=f"{law} / {inits}", init=inits, truth=inits)
    if rest:
        return law_method(law, *rest)
    return RIVALS.get(law) or PEERS[law]


def _missing(package: str, module: str) -> str:
    try:
        import_module(module)
    except ImportError as error:
        return f"{module} cannot be imported ({error}); pip install --no-deps {package}"
    return ""


def _require_finite(truths: Truths) -> None:
    for truth, curves in truths.items():
        for a, t in curves.items():
            if not all(math.isfinite(half.best) for half in t.halves):
                raise DagscaleError(
                    f"{a} under {truth}: every rate from {t.rates[0]:.3g} to {t.rates[-1]:.3g} diverged; give a grid "
                    "of lower rates"
                )


def _ends(truths: Truths) -> list[str]:
    """A note for each truth whose bands reach an end of the grid."""
    at_end = {truth: sum(t.at_end for t in curves.values()) for truth, curves in truths.items()}
    return [
        f"{truth}: {count} of {len(truths[truth])} bands reach an end of the grid; give a wider one"
        for truth, count in at_end.items()
        if count
    ]
