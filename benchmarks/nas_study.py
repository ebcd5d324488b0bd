"""Tables and picture of the evidence page on retraining, from files of results that ``dagscale retrain`` wrote.

    python benchmarks/nas_study.py                                  # prints the page's tables
    python benchmarks/nas_study.py published --benchmark TABLE      # keeps the published accuracies that it needs

``make evidence`` puts the same tables into ``docs/evidence/nas-retraining.md`` and draws the picture.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path

import matplotlib
import nas_rates
import numpy as np
from matplotlib.figure import Figure

from dagscale.bench.nas.agreement import Estimate, kendall, matched, mean_change, taus, top
from dagscale.bench.nas.comparison import CLASSES, published_values
from dagscale.bench.nas.components import Components, components
from dagscale.bench.nas.recipes import REFERENCE
from dagscale.bench.nas.results import Retraining, read_results
from dagscale.bench.nas.tables import MEAN, Floats, read_table

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
PUBLISHED = EVIDENCE / "tables" / "nas-published.csv"
FIRST, SECOND = "nas-retraining", "nas-inits"
SEEN = 6
"""Architectures on which it was found that readouts matter: the table of it leaves them out."""
"""The study's files of results: the same list, size, data and seeds, other recipes."""
COLOURS = ("#1c7ed6", "#e8590c", "#2f9e44", "#862e9c", "#868e96", "#c2255c")
Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of text."""


@dataclass(frozen=True)
class Trained:
    """One recipe of one file.

    Attributes:
        found: the file.
        own, reference: accuracies, (architectures, seeds), of the recipe, and of the benchmark's in the same file.
        known: published ones, (architectures,).
    """

    name: str
    found: Retraining
    own: Floats
    reference: Floats
    known: Floats

    @property
    def gain(self) -> Floats:
        return self.own.mean(1) - self.reference.mean(1)


@cache
def read(name: str) -> Retraining:
    return read_results(EVIDENCE / "results" / f"{name}.jsonl")


@cache
def published() -> Mapping[str, float]:
    """Code → published accuracy."""
    column = read_table(str(PUBLISHED)).select("cifar10", partial=True)
    return {arch.code: value for arch, value in zip(column.archs, column.values, strict=True)}


def by_name() -> dict[str, Trained]:
    """Name → recipe, of both files."""
    return {one.name: one for file in (SECOND, FIRST) for one in trained(file)}


def known(found: Retraining) -> Floats:
    return np.array([published()[arch.code] for arch in found.archs])


def trained(file: str) -> Iterator[Trained]:
    """Every recipe of one file."""
    found = read(file)
    for name, own in found.accuracies.items():
        yield Trained(name, found, own, found.accuracies[REFERENCE], known(found))


def recipes() -> Iterator[Trained]:
    """Every recipe that all architectures were trained under; the reference once, as the first file has it."""
    yield from trained(FIRST)
    if len(read(SECOND).archs) == len(read(FIRST).archs):
        yield from (one for one in trained(SECOND) if one.name != REFERENCE)


# --- tables ---------------------------------------------------------------------------------------------------------


def accuracies() -> Table:
    """Accuracy and gain of every recipe."""
    head = ["recipe", "rate", "decay", "accuracy, %", "gain over `benchmark`, points", "the same, best tenth"]
    body = []
    for one in recipes():
        base = one.found.bases.get(one.name)
        chosen = base or one.found.recipes[one.name]
        best = top(one.known, 10)
        gains = [ranged(changed(one.gain[rows])) for rows in (slice(None), best)] if one.name != REFERENCE else ["", ""]
        star = "*" if base and base.at_edge else ""
        rate, decay = f"{chosen.lr:.3g}{star}", f"{chosen.weight_decay:.3g}"
        body.append([f"`{one.name}`", rate, decay, f"{one.own.mean():.2f}", *gains])
    return head, body


def rankings() -> Table:
    """How much each recipe changes the ranking."""
    head = ["recipe", "interaction", "p", "could be seen", "τ with `benchmark`", "floor", "floor − τ"]
    body = []
    for one in recipes():
        if one.name != REFERENCE:
            parts = both(one.reference, one.own)
            between, within, excess = matched(one.reference, one.own, 300, np.random.default_rng(0), (100,))
            body.append([
                f"`{one.name}`", ranged(parts.interaction, signed=False), chance(parts), f"{parts.seen:.2f}",
                f"{between[100].value:.2f}".replace("-", "−"), f"{within[100].value:.2f}", ranged(excess[100]),
            ])  # fmt: skip
    return head, body


def orders() -> Table:
    """How far each recipe's ranking is the published one."""
    head = ["recipe", "all", "best half", "all, by one seed", "one seed with the other"]
    body = []
    for one in recipes():
        half = top(one.known, 50)
        order = [tau(one.known[rows], one.own[rows].mean(1)) for rows in (slice(None), half)]
        single = float(np.mean([kendall(one.known, column) for column in one.own.T]))
        body.append([
            f"`{one.name}`", *(ranged(each, signed=False) for each in order), f"{single:.2f}".replace("-", "−"),
            f"{kendall(one.own[:, 0], one.own[:, 1]):.2f}",
        ])  # fmt: skip
    return head, body


def classes() -> Table:
    """Gains by class of published rank."""
    ends = [f"{100 * k // CLASSES} to {100 * (k + 1) // CLASSES} %" for k in range(CLASSES)]
    body = [
        [f"`{one.name}`", *(margin(changed(one.gain[rows])) for rows in np.array_split(top(one.known, 100), CLASSES))]
        for one in recipes()
        if one.name != REFERENCE
    ]
    return ["recipe", *ends], body


CHANGES = (
    ("the init alone", "tuned", "tuned-moments"),
    ("the law alone", "tuned", "plan-kept"),
    ("the init, once there is the law", "plan-kept", "plan"),
    ("the law, once there is the init", "tuned-moments", "plan"),
)


def starts() -> Table:
    """Accuracy under two inits times two ways to a rate, on the architectures that were trained under all four."""
    found = by_name()
    count = len(found["plan-kept"].own)
    shown = [(name, found[name].own[:count]) for name in ("tuned", "tuned-moments", "plan-kept", "plan")]
    reference = found[REFERENCE].own[:count].mean(1)
    head = ["recipe", "init", "rate", "accuracy, %", f"gain over `benchmark`, {count} architectures"]
    body = []
    for name, own in shown:
        recipe, base = found[name].found.recipes[name], found[name].found.bases[name]
        init = "PyTorch's" if recipe.init == "keep" else f"`{recipe.init}`"
        rate = f"{base.lr:.3g} for all" if recipe.law == "none" else f"{base.lr:.3g} × `{recipe.law}`"
        body.append([f"`{name}`", init, rate, f"{own.mean():.2f}", ranged(changed(own.mean(1) - reference))])
    return head, body


def changes() -> Table:
    """What init and law do, each without and with the other."""
    found = by_name()
    body = []
    for what, first, second in CHANGES:
        count = min(len(found[first].own), len(found[second].own))  # both are the beginning of one list
        a, b = found[first].own[:count], found[second].own[:count]
        body.append([what, f"`{first}`", f"`{second}`", ranged(changed(b.mean(1) - a.mean(1)))])
    return ["what changes", "from", "to", "gain, points"], body


def again() -> Table:
    """The benchmark's recipe in both files: the same networks, trained beside others, by two versions of the code."""
    one, two = (next(trained(file)).own for file in (FIRST, SECOND))
    one = one[: len(two)]
    apart = np.abs(one - two)
    seeds = float(np.abs(one[:, 0] - one[:, 1]).mean())
    head = ["runs", "equal", "mean difference", "mean size of it", "largest", "between two seeds"]
    cells = [f"{apart.size}", f"{(apart == 0).sum()}", f"{(two - one).mean():+.2f}", f"{apart.mean():.2f}",
             f"{apart.max():.2f}", f"{seeds:.2f}"]  # fmt: skip
    return head, [[cell.replace("-", "−") for cell in cells]]


def by_setting(file: str, skipped: int = 0) -> Table:
    """Mean accuracy at every rate and init, of ``benchmarks/nas_rates.py``, and how many are best there.

    Args:
        skipped: architectures at the beginning of the list that are left out.
    """
    found = without_first(read(file), skipped)
    best = dict(nas_rates.compared(found).chosen)
    settings = sorted(found.accuracies, key=lambda key: (found.recipes[key].init, found.recipes[key].lr))
    body = []
    for key in settings:
        own, recipe = found.accuracies[key], found.recipes[key]
        init = "PyTorch's" if recipe.init == "keep" else f"`{recipe.init}`"
        gain = changed(own.mean(1) - found.accuracies[REFERENCE].mean(1))
        told = "" if key == REFERENCE else ranged(gain)
        body.append([init, f"{recipe.lr:g}", f"{own.mean():.2f}", told, str(best.get(nas_rates.name(recipe), 0))])
    return ["init", "rate", "accuracy, %", "gain over `benchmark`, points", "best for"], body


def without_first(found: Retraining, count: int) -> Retraining:
    accuracies = {key: own[count:] for key, own in found.accuracies.items()}
    return replace(found, archs=found.archs[count:], accuracies=accuracies)


def own_rates() -> Table:
    """One shared setting of init and rate against each architecture's own best."""
    shared = nas_rates.compared(read("nas-rates"))
    head = ["architectures", "settings", "best shared one", "gain of each one's own best, points"]
    return head, [[str(shared.archs), str(shared.settings), shared.setting, ranged(shared.gains[0].gain)]]


def together() -> Table:
    """Networks an hour, and accuracies, of ``benchmarks/nas_together.py``."""
    rows = json.loads((EVIDENCE / "results" / "nas-together.json").read_text(encoding="utf-8"))["rows"]
    keys = [key for key in rows[0] if key != "architecture"]
    shown = {key: ",.0f" if key.startswith("networks") else ".2f" for key in keys}
    head = ["architecture", *(key.removeprefix("networks an hour, ") for key in keys)]
    return head, [[f"`{row['architecture']}`", *(f"{row[key]:{shown[key]}}" for key in keys)] for row in rows]


TABLES = {
    "accuracies": accuracies, "rankings": rankings, "orders": orders, "classes": classes, "starts": starts,
    "changes": changes, "again": again, "rates": partial(by_setting, "nas-rates"),
    "readouts": partial(by_setting, "nas-readouts", SEEN), "own-rates": own_rates, "together": together,
}  # fmt: skip


# --- figures --------------------------------------------------------------------------------------------------------


def changed(gain: Floats) -> Estimate:
    return mean_change(gain, np.random.default_rng(0))


def both(a: Floats, b: Floats) -> Components:
    """Variance components of two recipes."""
    parts = components(np.stack([a, b], 1))
    assert parts is not None
    return parts


def chance(parts: Components) -> str:
    """The p of the interaction."""
    return "< 0.001" if parts.p < 0.001 else f"{parts.p:.2g}"


def tau(x: Floats, y: Floats) -> Estimate:
    return taus(x, y, 1000, np.random.default_rng(0), (100,))[100]


def ranged(one: Estimate, *, signed: bool = True) -> str:
    """``−0.29 (−0.43 to −0.12)``."""
    sign = "+" if signed else ""
    end = "" if one.low is None else f" ({one.low:{sign}.2f} to {one.high:{sign}.2f})"
    return f"{one.value:{sign}.2f}{end}".replace("-", "−")


def margin(one: Estimate) -> str:
    """``−0.27 ± 0.38``, half of the interval."""
    assert one.low is not None
    assert one.high is not None
    return f"{one.value:+.2f} ± {(one.high - one.low) / 2:.2f}".replace("-", "−")


def picture(path: Path) -> None:
    """Gain of every architecture over the reference, with what two seeds of the reference differ by."""
    own = read(FIRST).accuracies[REFERENCE]
    spread = float(np.abs(own[:, 1] - own[:, 0]).mean())
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(-spread, spread, color="#dee2e6", label=f"mean difference of two seeds of {REFERENCE}")
    axes.axhline(0, color="black", linewidth=0.8)
    shown = [one for one in recipes() if one.name != REFERENCE]
    for one, colour in zip(shown, cycle(COLOURS), strict=False):
        mean = f"{one.gain.mean():+.2f}".replace("-", "−")
        axes.plot(one.known, one.gain, "o", color=colour, markersize=4, label=f"{one.name}: {mean} on average")
    axes.set_xlabel("published test accuracy after 200 epochs, %")
    axes.set_ylabel(f"gain over {REFERENCE}, points")
    found = read(FIRST)
    axes.set_title(f"{len(own)} architectures, {found.preset}, means over {len(found.seeds)} seeds", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "dagscale"}):  # the same bytes from the same results
        figure.savefig(path, metadata={"Date": None})


# --- command line ---------------------------------------------------------------------------------------------------


def keep_published(source: str) -> None:
    """The published accuracies of the study's list, as a table that ``--benchmark`` reads."""
    archs = read(FIRST).archs
    values = published_values(read_table(source).select("cifar10", partial=True), archs)
    with PUBLISHED.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["code", "dataset", "seed", "test_acc"])
        lines.writerows([arch.code, "cifar10", MEAN, f"{value:.4f}"] for arch, value in zip(archs, values, strict=True))


def show(made: Table) -> None:
    print(*(" | ".join(cells) for cells in (made[0], *made[1])), sep="\n", end="\n\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", nargs="?", choices=["tables", "published"], default="tables")
    parser.add_argument("--benchmark", help="the published table, for `published`")
    options = parser.parse_args(arguments)
    if options.do == "published":
        keep_published(options.benchmark)
        return
    for make in TABLES.values():
        show(make())


if __name__ == "__main__":
    main()
