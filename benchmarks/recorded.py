"""What studies have recorded about laws, read from ``docs/evidence``: how far each is off, by kind of network.

    tables/*.csv               a family a file: how far the rates of each law are off (root mean square)
    results/rates.json         families of ``benchmarks/rates.py``: every network's curve, and what was measured on it
    results/schedules.json     families of ``benchmarks/schedules.py``, likewise
    results/transfer.json      networks of ``benchmarks/transfer.py``: their base's rate as it is, layer by layer
    results/kinds.json         networks of ``benchmarks/kinds.py``, likewise
    results/sgd-depth.json     networks of ``benchmarks/sgd_depth.py``, likewise
    results/plain.json         networks of ``benchmarks/plain.py``: by the depth rule for plain networks
    results/contest-*.json     targets of ``dagscale verify`` under recipes: what a plan said, and a grid under it
    tables/without-a-base.csv  networks whose rate was measured without a base
    results/replay-*.json      finished runs of others, carried over from the smallest network

``benchmarks/intervals.py`` and ``benchmarks/constants.py`` make tables of it.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rates import FAMILIES, band_of, middle, of_seed, regular
from transfer import Curve, curves, optimum

from dagscale.bench.verify.compute import Contest, Trial
from dagscale.bench.verify.truth import TOLERANCE
from dagscale.laws.accuracy import Kind, by_layer_row
from dagscale.laws.short_run import PRECISION
from dagscale.planning.certainty import OCTAVE
from dagscale.rates import WIDEST, find_band
from dagscale.training.optimizers import resolve

Sheet = list[dict[str, str]]

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "docs" / "evidence"
TABLES = sorted((EVIDENCE / "tables").glob("*.csv"))

OUTSIDE = ("grid", "middle", "lr-finder", "prodigy", "mup", "released", "walk")
"""Rows of the tables that are no laws, or laws that one family alone was held against."""


def read_table(name: str) -> Sheet:
    """A file of ``tables/``."""
    with open(EVIDENCE / "tables" / f"{name}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_results(name: str) -> dict[str, Any]:
    """A file of ``results/``."""
    found: dict[str, Any] = json.loads((EVIDENCE / "results" / f"{name}.json").read_text("utf-8"))
    return found


def put(sheets: dict[str, Sheet], write: bool) -> None:
    """Print tables, and write them into the folder of the evidence's."""
    for name, rows in sheets.items():
        print(f"\n{name}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
        for one in rows:
            print(f"| {' | '.join(one.values())} |")
        if write:
            with open(EVIDENCE / "tables" / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)


def study(
    about: str | None,
    name: str,
    families: Iterable[str],
    run: Callable[[Path, list[str], str], None],
    tables: Callable[[dict[str, Any]], dict[str, Sheet]],
) -> None:
    """The command line of a study of small networks: ``run`` goes on with it, ``report`` makes tables of what there is.

    Args:
        about: what ``--help`` says.
        name: of its file in ``results/``.
        run: (file, families, data) → adds to the file.
        tables: what the file holds → tables by name.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, report = commands.add_parser("run"), commands.add_parser("report")
    for command in (runs, report):
        command.add_argument("file", type=Path, nargs="?", default=EVIDENCE / "results" / f"{name}.json")
    runs.add_argument("--data", default="data/cifar10")
    runs.add_argument("--families", nargs="+", default=list(families), choices=list(families))
    report.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.command == "run":
        run(given.file, given.families, given.data)
    else:
        put(tables(json.loads(given.file.read_text("utf-8"))), given.write)


@dataclass(frozen=True)
class Family:
    """What a family says of a law.

    Attributes:
        law, kind: the row and column of the table that it counts for.
        name: of the family and its init.
        kin: what it shares with families that are left out with it: space, norms, optimiser.
        square: mean square error in squared octaves, less what does not come from the law.
        count: of its networks.
        half: share of its networks within half an octave; NaN where unknown.
        octaves: how far each network's best rate is from the law's; empty where that is not known one by one, or a
            `Group` has it.
        band, seeds: half the width of the base's band in octaves, 0 where unknown, and the seeds of its search.
    """

    law: str
    kind: Kind
    name: str
    kin: tuple[str, ...]
    square: float
    count: int = 1
    half: float = math.nan
    octaves: tuple[float, ...] = ()
    band: float = 0.0
    seeds: int = 1


@dataclass(frozen=True)
class Point:
    """One network: log2 rates, the error by chance of each, and half the width of the band in octaves."""

    network: str
    found: float
    spread: float
    half: float
    short: float = math.nan
    error: float = 0.0
    seeds: int = 2
    closed: float = math.nan


@dataclass(frozen=True)
class Group:
    """The networks of a family under one init, the base first."""

    name: str
    kind: Kind
    kin: tuple[str, ...]
    points: tuple[Point, ...]
    gradient: bool


# --- what was recorded ----------------------------------------------------------------------------------------


def tabulated() -> Iterator[Family]:
    """The families of ``tables/*.csv``."""
    for path in TABLES:
        rows = [row for row in read_table(path.stem) if row.get("octaves_rms")]
        for row in rows:
            if "rule" not in row or row["rule"] in OUTSIDE:
                continue
            noise = [r for r in rows if r["rule"] == "grid" and (r["init"], r["width"]) == (row["init"], row["width"])]
            base = float(noise[0]["octaves_rms"]) / 2 if noise else 0.0  # half of the seeds against the other half
            one = next(r for r in rows if r["init"] == row["init"] and r["rule"] in ("none", "one-rate"))
            count = round(int(noise[0]["steps"]) / int(one["steps"])) if noise else 4  # of a whole grid each
            words = path.stem.replace("digits-", "").split("-")
            norms = "bn" in words or "vit" in words
            convolves = not norms and words[0] in ("cnn", "resnet")
            optimizer = next(w for w in words if w in ("sgd", "momentum", "adamw"))
            law = "none" if row["rule"] == "one-rate" else row["rule"]
            law = layered(optimizer) if row["width"] and law == "none" else row_of(law, row["init"])
            yield Family(
                law, "norms" if norms else "convolutions" if convolves else "dense",
                f"{path.stem}, {row['init']}{', ' + row['width'] if row['width'] else ''}",
                ("mlp" if words[0] == "width" else words[0], str(norms), optimizer),
                rest(float(row["octaves_rms"]) ** 2, base**2), count, float(row["within_half_octave_percent"]) / 100,
            )  # fmt: skip


def row_of(law: str, init: str) -> str:
    """The row of the table. One rate for all is one thing where an init makes networks alike, and another where their
    authors' do not."""
    if law != "none":
        return law
    return "none, own init" if init == "keep" else "none"


def rest(square: float, other: float) -> float:
    """What is left of a mean square; a quarter of it at least."""
    return max(square - other, square / 4)


def groups() -> list[Group]:
    """The families whose networks are known one by one, as far as they go; those with the same curve count once."""
    known = read_results("rates")
    found = []
    for name, family in FAMILIES.items():
        for init in family.inits:
            own = {n: known[f"{name}/{init}/{n}"] for n in family.networks if f"{name}/{init}/{n}" in known}
            if family.networks[0] not in own or len(own) < 4:
                continue
            seen: dict[str, Point] = {}
            for network, one in own.items():
                seen.setdefault(json.dumps(one["losses"]), point(network, one))
            found.append(
                Group(f"{name}, {init}", *_traits(family.suite, family.optimizer), tuple(seen.values()),
                      family.optimizer != "adamw")
            )  # fmt: skip
    return [*found, *scheduled()]


def _traits(suite: str, optimizer: str) -> tuple[Kind, tuple[str, ...]]:
    norms = suite.endswith("-bn") or suite.startswith("vit")
    space = suite.partition("-")[0]
    kind: Kind = "norms" if norms else "convolutions" if space in ("cnn", "resnet") else "dense"
    return kind, (space, str(norms), "momentum" if optimizer == "nesterov" else optimizer)


def point(network: str, one: dict[str, Any]) -> Point:
    """A network of ``rates.json``: seeds are counted as the law does, until two agree."""
    found = middle(one)
    halves = [middle(of_seed(one, k)) for k in range(len(one["losses"][0]))]
    spread = abs(halves[0] - halves[1]) / 2
    low, high = band_of(one)
    half = math.log2(high / low) / 2
    closed = math.nan if one["covariance"] is None else one["covariance"]
    if isinstance(one["short"], str):
        return Point(network, found, spread, half, closed=closed)
    logs = one["short"]
    count = seeds_until(logs, PRECISION, len(logs))
    return Point(network, found, spread, half, fmean(logs[:count]), error(logs[:count]), count, closed)


def seeds_until(logs: Sequence[float], precision: float, most: int) -> int:
    """How many seeds are measured, two at least where so many may be, until their mean is known as well as that."""
    return next((n for n in range(2, most) if error(logs[:n]) * OCTAVE < precision), most)


def error(logs: Sequence[float]) -> float:
    """The standard error of the mean."""
    return float(np.std(logs, ddof=1)) / math.sqrt(len(logs))


def scheduled() -> list[Group]:
    """The families of ``schedules.json``, as far as they go."""
    known = read_results("schedules")
    made: dict[str, dict[str, Point]] = {}
    for key, one in known.items():
        name, network = key.split("/", 1)
        curve = regular(one["curve"])
        short, wrong, _ = one["short"]["constant"]
        own = replace(point(network, {**curve, "covariance": None, "short": ""}), short=short, error=wrong)
        made.setdefault(name, {}).setdefault(json.dumps(curve["losses"]), own)
    found = []
    for name, points in made.items():
        suite, optimizer = ("vit" if name.startswith("transformer") else "mlp"), name.split(", ")[-1]
        traits = _traits(suite, optimizer)
        if len(points) > 3:
            found.append(Group(f"schedules, {name}", *traits, tuple(points.values()), optimizer != "adamw"))
    return found


def alone() -> Iterator[Family]:
    """Rates that were measured without a base, by data and optimiser, in ``tables/without-a-base.csv``."""
    rows = read_table("without-a-base")
    for key in sorted({(r["data"], r["network"].partition(":")[0], r["optimizer"]) for r in rows}):
        own = [r for r in rows if (r["data"], r["network"].partition(":")[0], r["optimizer"]) == key]
        square = fmean(float(r["short_run_octaves"]) ** 2 for r in own)
        kind: Kind = "convolutions" if key[1] == "cnn" else "dense"
        yield Family("no base", kind, ", ".join(key), (key[1], "False", key[2]), square, len(own))


KIN = {
    "lm": ("lm", "True", "adamw"), "lm-long": ("lm", "True", "adamw"), "lm-no-norm": ("lm", "False", "adamw"),
    "vit": ("vit", "True", "adamw"),
    "mixer": ("mixer", "True", "adamw"), "resnet": ("resnet", "True", "momentum"),
    "mlp": ("mlp", "False", "sgd"), "mlp-adam": ("mlp", "False", "adam"),
    "cnn": ("cnn", "False", "sgd"), "cnn-adam": ("cnn", "False", "adam"),
}  # fmt: skip
"""Families of ``results/transfer.json`` and suites of contests → space, norms, optimiser."""


KINDS: dict[str, Kind] = {"mlp": "dense", "cnn": "convolutions"}
"""Spaces of ``KIN`` without norms or attention → kind of network."""


def of_networks(
    law: str, kind: Kind, name: str, kin: tuple[str, ...], found: Iterable[tuple[Curve, float]], band: float, seeds: int
) -> Iterator[Family]:
    """A family of networks whose grids are known: curves (octave → loss) and where the law has the rate, an octave.

    A network whose best rate is at an end of its grid is left out: it may lie beyond.
    """
    off = tuple(found_at(c) - at for c, at in found if min(c) < min(c, key=c.__getitem__) < max(c))
    if off:
        half = fmean(abs(o) <= 0.5 for o in off)
        yield Family(law, kind, name, kin, fmean(o**2 for o in off), len(off), half, off, band, seeds)


def ends(curve: Curve, tolerance: float = TOLERANCE, widest: float = WIDEST) -> tuple[float, float]:
    """The octaves at both ends of the band, as a search finds it."""
    low, high = find_band([2.0**octave for octave in curve], list(curve.values()), tolerance, widest=widest)
    return math.log2(low), math.log2(high)


def found_at(curve: Curve) -> float:
    """The octave that a search would find: the middle of the band, or where that reaches beyond the grid, the lowest
    point by a parabola."""
    low, high = ends(curve)
    return (low + high) / 2 if min(curve) < low <= high < max(curve) else optimum(curve)


def carried_over(
    law: str,
    name: str,
    kin: tuple[str, ...],
    about: dict[str, Any],
    scaled: Iterable[Curve],
    base: Curve,
    at: float = 0,
) -> Iterator[Family]:
    """Networks of a study that were given their base's rate, which one seed found.

    Args:
        about: what is kept of the base.
        base: its own curve, where ``at`` is the octave of the rate that was found.
    """
    low, high = ends(base)
    yield from of_networks(law, about["kind"], name, kin, ((c, at) for c in scaled), (high - low) / 2, 1)


def layered(optimizer: str) -> str:
    """The row of rates that are scaled layer by layer."""
    return f"none, {by_layer_row(resolve(optimizer))}"


def by_layer() -> Iterator[Family]:
    """Networks that were given their base's rate, scaled layer by layer (``results/transfer.json``).

    Where the depth has grown, those count that have the depth rule too. Of ``results/kinds.json`` and
    ``results/sgd-depth.json``, those that a plan scales by default, for their width, their depth or both; and the same
    networks of the first that keep their authors' weights, with the base's best rate under these.
    """
    for name, runs in read_results("transfer").items():
        about, law = runs["base"], layered(runs["base"]["recipe"]["optimizer"]["name"])
        found = curves(runs, "train")
        ways = [(way, size) for way, size in found if way in ("mup", "completep")]
        scaled = [found[w, s] for w, s in ways if w == "completep" or ("completep", s) not in found]
        base = found["moments", about["size"]]
        yield from carried_over(law, f"transfer, {name}", KIN[name], about, scaled, base)
    for study, called in (("kinds", "other kinds"), ("sgd-depth", "SGD")):
        for name, runs in read_results(study).items():
            about, law = runs["base"], layered(runs["base"]["recipe"]["optimizer"]["name"])
            found = curves(runs, "train", grid=(0,))
            for way, on_base, more in (("folded", "folded", ""), ("kept", "own", ", own init")):
                scaled = [c for (w, size), c in found.items() if w == way and size in about["carried"]]
                base = found.get((on_base, about["size"]))
                if scaled and base:
                    at = found_at(base) if more else 0.0
                    yield from carried_over(law, called + more, (name, "", ""), about, scaled, base, at)


def plain_depth() -> Iterator[Family]:
    """Networks that were given their base's rate by the depth rule ``plain``, of ``results/plain.json``."""
    for name, runs in read_results("plain").items():
        found = curves(runs, "train", grid=(0,))
        scaled = [c for (way, _), c in found.items() if way == "plain"]
        base = found["one", runs["base"]["size"]]
        yield from carried_over("none, plain depth", f"plain, {name}", (name, "", ""), runs["base"], scaled, base)


def contests() -> Iterator[Contest]:
    """What is kept of ``dagscale verify`` under recipes."""
    for path in sorted((EVIDENCE / "results").glob("contest-*.json")):
        yield Contest.from_dict(json.loads(path.read_text("utf-8")))


def contested() -> Iterator[Family]:
    """Targets of contests: the rate that a plan said, and the grid that starts as it does."""
    for contest in contests():
        trials = {entry.method: entry.trials for entry in contest.entries}
        kind, scaled = KINDS.get(KIN[contest.suite][0], "norms"), layered(contest.training["optimizer"]["name"])
        for said, init, grid, law in (
            ("none / moments / mup+completep", "moments", "grid / moments / mup+completep", scaled),
            ("one-rate", "keep", "grid / keep", "none, own init"),
            *((f"{law} / moments", "moments", "grid / moments", law) for law in ("combined", "short-run")),
        ):
            if said in trials and grid in trials:
                rates = {a: rows[0][0].lr for a, rows in trials[said].items()}
                found = [(mean_curve(rows), math.log2(lr)) for a, rows in trials[grid].items() if (lr := rates[a])]
                low, high = contest.searched.get(init, {}).get("band", (1.0, 1.0))
                yield from of_networks(
                    law, kind, f"contest, {contest.suite}", KIN[contest.suite], found, math.log2(high / low) / 2,
                    contest.seeds,
                )  # fmt: skip


def by_octave(row: Iterable[Trial]) -> Curve:
    """Trainings of a grid of whole octaves: log2 of the rate → loss."""
    return {round(math.log2(trial.lr)): trial.loss for trial in row if trial.lr is not None}


def mean_curve(seeds: Iterable[Iterable[Trial]]) -> Curve:
    """The mean over seeds."""
    curves = [by_octave(row) for row in seeds]
    return {octave: fmean(curve[octave] for curve in curves) for octave in sorted(curves[0])}


def replayed() -> Iterator[Family]:
    """Finished runs of others, from the smallest network of a kind to the others (``results/replay-*.json``)."""
    for name in ("resnet-cifar", "step-law"):
        study = json.loads((EVIDENCE / "results" / f"replay-{name}.json").read_text())
        axes = {axis["axis"]: axis for axis in study["metrics"][0]["axes"]}
        for row in axes["network"]["smallest"] if "network" in axes else ():
            law = {"one rate": "none, own init"}.get(row["rule"], row["rule"])
            if law in ("none, own init", "covariance", "paths") and row["octaves"] is not None:
                yield Family(law, "norms", f"replay, {name}", (name, "", ""), row["octaves"] ** 2, row["pairs"])
