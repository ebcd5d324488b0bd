"""Trace, plan, search and check of the set-ups and kinds of networks that tools forget, each beside a plain twin.

    python benchmarks/long_tail.py [NAME...] [--csv docs/evidence/tables/long-tail.csv]

The models are the tests' (`tests/fixtures/tail.py`, `tail_kinds.py`, `tail_code.py`). A row says for trace whether
the layers and in-degrees are those counted by hand, for plan and search how many octaves the rate is off the twin's,
for check whether the verdict is the twin's; or the line in which the model was refused. Half an octave is a step of
the search's grid.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dagscale
from dagscale.planning.prepare import example_inputs

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.fixtures import oracle, tail, tail_code, tail_kinds

TESTS = "tests/test_long_tail.py"
FIELDS = ("item", "fixture", "trace", "plan", "search", "check", "changed", "test")


def made(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make()


def inputs_of(model: nn.Module, recipe: dagscale.Recipe) -> Any:
    inputs = example_inputs(model, recipe)
    return inputs.to("meta") if any(p.is_meta for p in model.parameters()) else inputs


def check(model: nn.Module, recipe: dagscale.Recipe) -> Any:
    pair = (model, inputs_of(model, recipe))
    report = dagscale.check([pair, pair], recipe=recipe, sizes=[1, 2], law="none", base_lr=2.0**-9, steps=2, seeds=2)
    return report.ok


CALLS: dict[str, Callable[[nn.Module, dagscale.Recipe], Any]] = {
    "plan": lambda model, recipe: dagscale.plan(model, inputs_of(model, recipe), recipe=recipe, law="short-run").lr,
    "search": lambda model, recipe: dagscale.search(model, recipe, inputs=inputs_of(model, recipe), seeds=1).lr,
    "check": check,
}


def refused_or(call: Callable[[], str]) -> str:
    try:
        return call()
    except dagscale.DagscaleError as error:
        return f"refused: {error}"


def traced(case: tail.Tail) -> str:
    model = made(case.build)
    graph = dagscale.trace(model, inputs_of(model, dagscale.Recipe(**case.recipe)))
    right = {use.name: use.in_degree for use in graph.layers} == case.layers
    noted = [note for note in graph.notes if "only the branch taken was seen" not in note]
    return ("as counted by hand" if right else "WRONG") + "".join(f"; {note}" for note in noted)


def against_the_twin(case: tail.Tail, name: str, model: nn.Module) -> str:
    own = CALLS[name](model, dagscale.Recipe(**case.recipe))
    right = CALLS[name](made(case.twin), dagscale.Recipe(**case.plain))
    if name == "check":
        return "the twin's verdict" if own == right else f"WRONG: {own}, the twin's {right}"
    return f"{abs(math.log2(own / right)):.2f}"


def row_of(name: str) -> dict[str, Any]:
    case = tail.TAIL[name]
    with tail.process_group() if name in tail.GROUPED else nullcontext():
        row = {
            "item": case.item,
            "fixture": name,
            "trace": refused_or(lambda: traced(case)),
            "test": f"{TESTS} [{name}]",
        }
        model = made(case.build)
        before = (None if name == "sharded" else oracle.of_model(model)), oracle.of_process()
        alive = oracle.fake_tensors()
        for call in CALLS:
            row[call] = refused_or(lambda call=call: against_the_twin(case, call, model))  # type: ignore[misc]
        after = (None if name == "sharded" else oracle.of_model(model)), oracle.of_process()
        changed = [key for b, a in zip(before, after, strict=True) for key in (b or ()) if b[key] != a[key]]
        row["changed"] = " ".join([*changed, *oracle.survivors(alive)]) or "nothing"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    assert None not in (tail_kinds.LISTED, tail_code.LISTED)  # importing them fills TAIL
    for warm in CALLS.values():  # what is imported at the first call changes the process, once
        warm(tail.Net(), dagscale.Recipe(**tail.ROWS))
    rows = []
    for name in args.names or tail.TAIL:
        rows.append(row_of(name))
        print(*(f"{key} {rows[-1][key]}" for key in FIELDS[:-1]), sep="; ", flush=True)
    rows.sort(key=lambda row: (row["item"], row["fixture"]))
    if args.csv is not None:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    octaves = [float(row[call]) for row in rows for call in ("plan", "search") if row[call][:1].isdigit()]
    refused = sum(row["search"].startswith("refused") for row in rows)
    print(f"{len(rows)} fixtures, {refused} refused, largest difference {max(octaves, default=0.0):.2f} octaves")


if __name__ == "__main__":
    main()
