"""Tables and pictures of the evidence pages that a study's own script makes of its results in ``evidence/results/``."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

from cells import table

from dagscale.bench import demo
from dagscale.bench.verify import curves
from dagscale.bench.verify.compute import Contest

DOCS = Path(__file__).parent
RESULTS = DOCS / "evidence" / "results"


def script(name: str) -> ModuleType:
    """A script of the benchmarks, as a module."""
    folder = str(DOCS.parent / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def printed(action: Callable[[], object]) -> str:
    """What a script prints, without empty lines around it."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        action()
    return out.getvalue().strip() + "\n"


def transfer(family: str) -> str:
    """One family of ``benchmarks/transfer.py``."""
    module = script("transfer")
    return printed(lambda: module.table(family, module.FAMILIES[family], read("transfer")[family]))


def schedules(_: str) -> str:
    """``benchmarks/schedules.py``."""
    module = script("schedules")
    return printed(lambda: module.report(RESULTS / "schedules.json")).replace(" nan ", " – ")


def contest(suite: str) -> str:
    """One suite under a recipe, as ``dagscale verify SUITE --out`` wrote it."""
    found = read_contest(suite)
    said = f"Base `{found.base}`, {len(found.targets)} targets from `{found.targets[0]}` to `{found.targets[-1]}`,"
    size = found.training["batch_size"]
    more = f"{found.seeds} seed{'s' * (found.seeds > 1)}; a training is {found.steps:,} steps of {size} examples."
    return f"{said}\n{more}\n\n{curves.markdown(found)}"


CONTESTS = {
    "lm": "language models",
    "lm-no-norm": "the same without norms",
    "resnet": "ResNets",
    "vit": "vision transformers",
    "mixer": "MLP-Mixers",
    "mlp": "MLP DAGs under plain SGD",
    "cnn": "CNN DAGs under plain SGD",
    "mlp-adam": "MLP DAGs under Adam",
    "cnn-adam": "CNN DAGs under Adam",
}
OURS = ("none", "combined", "short-run", "dagscale", "grid")
"""What methods of a contest begin with that are no rivals."""


def contests(_: str) -> str:
    """A row a contest: the plan with nothing named, TPE from the plan's init with as many steps, shared and alone, and
    the best rival from the author's init with as many."""
    body, worth = [], []
    for suite, name in CONTESTS.items():
        found = read_contest(suite)
        few, many = (found.budgets()[reading] for reading in ("dagscale", "alone"))
        worth.append((few, many))
        plan = next(one for one in curves.rows(found) if one.method == "dagscale")
        tpe = {one.trainings: one for one in curves.rows(found) if one.method == "tpe / moments"}
        rivals = [
            one
            for one in curves.rows(found)
            if one.method.partition(" / ")[0] not in OURS and one.method != "tpe / moments"
            if one.trainings <= few and one.loss is not None
        ]
        best = min(rivals, key=lambda one: one.loss or 0.0)
        body.append([
            name, above(plan), above(tpe[few]), above(tpe[many]),
            f"{above(best)}, {best.name}",
        ])  # fmt: skip
    short, long = (f"{min(counts)} to {max(counts)} trainings" for counts in zip(*worth, strict=True))
    head = ["networks", "the plan", f"TPE, plan's init, {short}", f"TPE, plan's init, {long}", "best rival"]
    return table(head, body, left=1)


def above(row: curves.Row) -> str:
    """Of a row of a contest: the mean loss above the lowest of the grids, and the worst."""
    if row.loss is None or row.loss_worst is None:
        return "diverged"
    return f"{100 * row.loss:.1f}\u00a0% ({100 * row.loss_worst:.1f}\u00a0%)".replace("-", "−")


def read_contest(suite: str) -> Contest:
    """What a contest came to."""
    return Contest.from_dict(read(f"contest-{suite}"))


def targets(suite: str) -> str:
    """The plans of a contest target by target: the mean over seeds of the loss above the lowest of the grids."""
    found = read_contest(suite)
    plans = found.plan, "short-run / moments"
    body = []
    for target in found.targets:
        lows = [found.lowest(target, seed, "loss") for seed in range(found.seeds)]
        above = (
            fmean(t.loss / low - 1 for t, low in zip(found.entry(method).best(target), lows, strict=True))
            for method in plans
        )
        body.append([f"`{target}`", *(f"{100 * share:.1f} %".replace("-", "−") for share in above)])
    return table(["target", *(curves.NAMES[method] for method in plans)], body, left=1)


SPACED = {"one rate for all": "one rate for all", "as tried, 1 apart": "one octave apart",
          "as tried, 2 apart": "two octaves apart"}  # fmt: skip
SPACED_FAMILIES = {
    "mlp": "MLP DAGs, SGD",
    "mlp, PyTorch's init": "MLP DAGs, PyTorch's init, SGD",
    "mlp, batch norm": "MLP DAGs with batch norm, SGD",
    "transformer, AdamW": "vision transformers, AdamW",
}


def spacing(_: str) -> str:
    """The law's own search on recorded curves, at two spacings (``benchmarks/short_run.py``)."""
    head = ["family, optimiser", "rates tried", "steps", "correlation", "octaves off", "loss above best, mean (worst)"]
    body = [
        [
            SPACED_FAMILIES[row["cell"]], SPACED[row["by"]], f"{row.get('steps', 0):.0f}",
            f"{row['r']:.2f}" if "r" in row else "–", f"{row['octaves']:.2f}", spaced(row["power 0.75"]),
        ]
        for row in read("short-run-spacing")
        if row["cell"] in SPACED_FAMILIES and row["by"] in SPACED
    ]  # fmt: skip
    return table(head, body)


def spaced(text: str) -> str:
    """``0.53%, 1.5%`` → ``0.53 % (1.5 %)``."""
    mean, worst = text.replace("%", " %").split(", ")
    return f"{mean} ({worst})"


def demo_outcomes() -> list[demo.Outcome]:
    """What ``dagscale demo --json`` came to."""
    return [demo.Outcome(**one) for one in read("demo")["outcomes"]]


def demo_table(which: str) -> str:
    """The demo's summary, or a row a network."""
    found = demo_outcomes()
    if which == "summary":
        rows = demo.summary(found)
        body = [
            [name, *(text(rows[way]) for way in demo.WAYS)]
            for name, text in (
                ("mean loss above the grid's", lambda row: signed(row["mean_excess"])),
                ("worst", lambda row: signed(row["worst_excess"])),
                ("rate off by a factor of (rms)", lambda row: f"{2 ** row['rms_octaves']:.2f}"),
            )
        ]
    else:
        body = [
            [
                f"`{one.target if one.target.startswith('lm:') else one.target.partition('?')[0]}`",
                *(demo.cell(one, way) for way in demo.WAYS),
            ]
            for one in found
        ]
    head = ["" if which == "summary" else "network", *(demo.NAMES[way] for way in demo.WAYS)]
    return table(head, body, left=1)


def signed(value: float | None) -> str:
    """A share in percent with its sign."""
    return "diverged" if value is None else f"{100 * value:+.1f} %".replace("-", "−")


def nas(which: str) -> str:
    """``benchmarks/nas_study.py``."""
    return table(*script("nas_study").TABLES[which](), left=1)


def points(name: str) -> str:
    """``points.json`` of ``dagscale verify``: a row a network, a column a method, losses above the lowest under any
    start."""
    found = [one for one in read(name) if one["method"].partition(" / ")[0] not in ("grid", "middle")]
    methods = list(dict.fromkeys(one["method"] for one in found))
    excess = {(one["architecture"], one["method"]): one["excess"] for one in found}
    body = [
        [f"`{a}`", *(f"{100 * excess[a, m]:.1f} %" for m in methods)]
        for a in dict.fromkeys(one["architecture"] for one in found)
    ]
    means = [f"{100 * fmean(excess[a, m] for a in {k for k, _ in excess}):.1f} %" for m in methods]
    return table(["network", *(curves.NAMES.get(m, f"`{m}`") for m in methods)], [*body, ["mean", *means]], left=1)


def positions(which: str) -> str:
    """``benchmarks/positions.py``."""
    return table(*script("positions").lowest_losses(read("positions")), left=2)


def sheets(name: str, left: int = 2) -> Callable[[str], str]:
    """The sheets of a script of ``benchmarks/``, made of the results of its name."""
    return lambda which: table(*script(name.replace("-", "_")).SHEETS[which](read(name)), left=left)


STUDIES: dict[str, Callable[[str], str]] = {
    "transfer": transfer, "schedules": schedules, "contest": contest, "contests": contests,
    "targets": targets, "spacing": spacing, "demo": demo_table, "nas": nas, "positions": positions, "points": points,
    "kinds": sheets("kinds"), "plain": sheets("plain"), "regression": sheets("regression"),
    "width": sheets("width-parts", left=1), "sgd-depth": sheets("sgd-depth", left=3),
    "default-init": sheets("default-init", left=3), "products": sheets("products", left=1),
    "exponents": sheets("exponents"),
    "bottlenecks": sheets("bottlenecks", left=1), "no-base": sheets("no-base", left=1),
}  # fmt: skip
