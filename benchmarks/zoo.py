"""Traces every model of timm, torchvision and transformers that can be built here, and checks each trace.

    python benchmarks/zoo.py run [LIBRARY...] [--only REGEX] [--timeout S]   # resumable; appends to out/zoo.jsonl
    python benchmarks/zoo.py report [--csv docs/evidence/tables/zoo.csv]     # the table of docs/how/tracing.md

It goes on from ``docs/evidence/tables/zoo.csv``: models that have a line there are not looked at again.

Each model has a process of its own, and an untouched twin in a fork of that, which runs forward and backward. The model
is traced, and never ran before. The parameters that the graph reaches are compared with those that the twin has a
gradient for of the sum of all outputs; the model with itself before (parameters and buffers bit for bit where they have
values, hooks, attributes, training flags, random state); its outputs afterwards with the twin's, bit for bit; and the
garbage collector is asked for fake tensors that are still alive. ``timm`` is built on ``meta``, so that size costs
nothing; ``timm-real``, a seeded sample with a model of each family, ``torchvision`` and the small ``transformers`` run
for real, and so do the ``fixtures`` of the tests.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from forks import in_a_fork

OUT = Path("out/zoo.jsonl")
KEPT = Path(__file__).parents[1] / "docs" / "evidence" / "tables" / "zoo.csv"
LIBRARIES = ("fixtures", "timm", "timm-real", "torchvision", "transformers", "transformers-meta")
SAMPLE, LARGEST = 160, 4e7
"""So many models of timm run for real, of at most so many parameters, and of four times as many in a large family."""


# --- one model --------------------------------------------------------------------------------------------


def gradient_reached(model: Any, inputs: Any) -> set[str]:
    """Names of the parameters with a gradient of the sum of all output tensors. They keep it."""
    from dagscale.tracing.forward import bind_inputs, output_tensors, plain_eager
    from dagscale.tracing.outputs import objects_among, tensors_within

    args, kwargs = bind_inputs(model, inputs)
    with plain_eager():
        value = model(*args, **kwargs)
        out = [*output_tensors(value), *(t for thing in objects_among(value) for t in tensors_within(thing))]
        sums = [(t.real if t.is_complex() else t).sum() for t in out if t.requires_grad]
        if sums:
            sum(sums).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None}


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that a trace must not change, as comparable values."""
    import random

    import numpy as np
    import torch

    def bits(t: Any) -> Any:
        raw = b"" if t.is_meta else t.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        return t.shape, t.dtype, hash(raw)

    return {
        "values": {n: bits(t) for n, t in (*model.named_parameters(), *model.named_buffers())},
        "identity": {n: id(t) for n, t in (*model.named_parameters(), *model.named_buffers())},
        "attributes": {n: {k: id(v) for k, v in vars(m).items()} for n, m in model.named_modules()},
        "hooks": {n: [len(v) for k, v in vars(m).items() if k.endswith("_hooks")] for n, m in model.named_modules()},
        "training": {n: m.training for n, m in model.named_modules()},
        "grads": {n: p.grad is None for n, p in model.named_parameters()},
        "random": (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()),
    }


def fake_tensors() -> dict[int, Any]:
    """The fake tensors alive."""
    import gc

    from torch._subclasses.fake_tensor import FakeTensor

    gc.collect()
    return {id(o): o for o in gc.get_objects() if issubclass(type(o), FakeTensor)}


def outputs(model: Any, inputs: Any) -> Any:
    """Types and bits of what the model gives now, buffers and random state put back; None if it does not run."""
    import torch

    from dagscale.tracing.forward import bind_inputs, output_tensors, unchanged_random_state

    args, kwargs = bind_inputs(model, inputs)
    kept = [(b, b.clone()) for b in model.buffers()]
    try:
        with unchanged_random_state(), torch.no_grad():
            torch.manual_seed(0)
            return [(type(t).__name__, t.dtype, bits(t)) for t in output_tensors(model(*args, **kwargs))]
    except Exception:
        return None
    finally:
        with torch.no_grad():
            for buffer, values in kept:
                buffer.copy_(values)


def bits(t: Any) -> Any:
    import torch

    if t.is_meta or not type(t).__module__.startswith("torch") or "Fake" in type(t).__name__:
        return tuple(t.shape)
    return hash(t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def check(model: Any, inputs: Any) -> dict[str, Any]:
    """Trace ``model`` and say what is right and wrong."""
    import dagscale
    from dagscale.graph.paths import path_sums

    row: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}

    def reached() -> tuple[Any, str]:
        try:
            return gradient_reached(model, inputs), ""
        except Exception as error:
            return None, one_line(error)

    given = in_a_fork(lambda: outputs(model, inputs))
    wanted, error = in_a_fork(reached)
    row["runs"] = not error
    if error:
        row["forward_error"] = error
    before, alive = snapshot(model), fake_tensors()
    start = time.perf_counter()
    try:
        graph = dagscale.trace(model, inputs)
    except Exception as error:
        row |= {"traced": False, "error": one_line(error)}
    else:
        sums = path_sums(graph)
        trainable = {p.name for p in graph.parameters if p.trainable}
        through = {p.name for p in graph.parameters if p.reached and p.trainable}
        row |= {
            "traced": True,
            "seconds": round(time.perf_counter() - start, 3),
            "vertices": len(graph.vertices),
            "edges": len(graph.edges),
            "paths": f"{float(sums.paths):.3g}" if sums.paths < 10**300 else f"1e{len(str(sums.paths)) - 1}",
            "depth": [sums.min_depth, sums.max_depth],
            "unknown": [n.split()[2] for n in graph.notes if n.startswith("unknown")],
            "real_run": any(n.startswith("the forward") for n in graph.notes),
        }
        if wanted is not None:
            row |= {"only_graph": sorted(through - wanted), "only_gradient": sorted(wanted - through)}
            row["told"] = any("gradient reaches" in note for note in graph.notes)
            row["unreached"] = len(trainable - through)
    after = snapshot(model)
    row["changed"] = [k for k in before if before[k] != after[k]]
    row["survivors"] = sum(key not in alive for key in fake_tensors())
    del alive
    row["compared"] = given is not None
    row["outputs_changed"] = given is not None and outputs(model, inputs) != given
    return row


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


# --- what there is ----------------------------------------------------------------------------------------


def cases(library: str) -> list[str]:
    """The names of a library's models."""
    if library.startswith("timm"):
        timm = import_timm()
        names = timm.list_models()
        if library == "timm":
            return list(names)
        return sample(timm, names)
    if library == "fixtures":
        return sorted(fixtures())
    if library == "torchvision":
        import_timm()
        from torchvision import models

        return [n for n in models.list_models() if not n.startswith("quantized")]
    import zoo_transformers

    return zoo_transformers.families()


def sample(timm: Any, names: list[str]) -> list[str]:
    """A model of each family and then any others, in a seeded order, the first small ones; kept beside the rows."""
    import torch

    kept = OUT.with_name("zoo-sample.json")
    if kept.exists():
        return list(json.loads(kept.read_text()))

    @functools.cache
    def size(name: str) -> float:
        try:
            with torch.device("meta"):
                return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:
            return math.inf

    random.Random(0).shuffle(names)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)
    first = [next((n for n in own if size(n) <= LARGEST), min(own, key=size)) for own in families.values()]
    found = [name for name in first if size(name) <= 4 * LARGEST]
    for name in names:
        if len(found) >= SAMPLE:
            break
        if name not in found and size(name) <= LARGEST:
            found.append(name)
    kept.write_text(json.dumps(found))
    return found


def fixtures() -> dict[str, Callable[[], tuple[Any, Any]]]:
    """The awkward models of the tests, by name, each with its inputs."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    from awkward import entering, gradients, keeping

    found: dict[str, Callable[[], tuple[Any, Any]]] = {}
    for module in (keeping, gradients, entering):
        for name, (build, *more) in module.CASES.items():
            inputs = more[0] if callable(more[0]) else lambda: torch.randn(2, 4)
            found[name] = lambda build=build, inputs=inputs: (build(), inputs())
    return found


def import_timm() -> Any:
    from dagscale.models.timm import declare_torchvision_ops

    declare_torchvision_ops()
    import timm

    return timm


def build(library: str, name: str) -> tuple[Any, Any]:
    """The model and example inputs."""
    import torch

    if library == "timm":
        timm = import_timm()
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:
            model = timm.create_model(name)
        model.train()
        size = model.pretrained_cfg["input_size"]
        return model, torch.randn(2, *size, device=next(model.parameters()).device)
    if library == "timm-real":
        model = import_timm().create_model(name).train()
        return model, torch.randn(2, *model.pretrained_cfg["input_size"])
    if library == "fixtures":
        return fixtures()[name]()
    if library == "torchvision":
        import_timm()
        import zoo_torchvision

        return zoo_torchvision.build(name)
    import zoo_transformers

    return zoo_transformers.build(name, "meta" if library.endswith("meta") else "cpu")


# --- the run ----------------------------------------------------------------------------------------------


def looked_at(library: str, name: str) -> dict[str, Any]:
    """Everything about one model, in a process of its own."""
    import torch

    torch.manual_seed(0)
    row: dict[str, Any] = {"library": library, "name": name}
    try:
        model, inputs = build(library, name)
    except Exception as error:
        return row | {"built": False, "error": one_line(error)}
    return row | {"built": True, **check(model, inputs)}


def run(libraries: list[str], only: str, timeout: float, again: bool) -> None:
    """Every case that has no row yet, each within ``timeout`` seconds."""
    import logging

    import torch

    import dagscale

    OUT.parent.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    dagscale.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1))  # imports on first use are made once, before the forks
    for library in libraries:
        finished = {r["name"] for r in rows() if r["library"] == library} if not again else set()
        names = [n for n in cases(library) if n not in finished and re.search(only, n)]
        random.Random(0).shuffle(names)  # a run that is cut short has seen models of all kinds
        for i, name in enumerate(names):
            try:
                row = in_a_fork(lambda library=library, name=name: looked_at(library, name), timeout)
            except TimeoutError as error:
                row = {"library": library, "name": name, "built": False, "error": str(error)}
            with OUT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{library} {i + 1}/{len(names)} {name}: {verdict(row)}", flush=True)


# --- the report -------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """The latest row of each case."""
    known = kept() if KEPT.exists() else []
    known += map(json.loads, OUT.read_text().splitlines() if OUT.exists() else [])
    return list({(r["library"], r["name"]): r for r in known}.values())


def kept() -> list[dict[str, Any]]:
    """The lines of the table of earlier runs: numbers stand where a row has lists."""
    with KEPT.open(newline="", encoding="utf-8") as file:
        lines = [{key: read(cell) for key, cell in line.items() if cell} for line in csv.DictReader(file)]
    return [line | {"told": "only_" not in line["verdict"]} for line in lines]


def read(cell: str) -> Any:
    return {"True": True, "False": False}.get(cell, int(cell) if cell.isdigit() else cell)


def verdict(row: dict[str, Any]) -> str:
    if "verdict" in row:
        return str(row["verdict"])
    if not row.get("built"):
        return f"not built ({row['error'][:150]})"
    if not row["traced"]:
        return ("FAILED: " if row["runs"] else "does not run: ") + row["error"][:300]
    problems = []
    if not row["runs"]:
        problems.append("no backward: " + row["forward_error"][:120])
    for key in ("only_graph", "only_gradient", "changed", "unknown"):
        if row.get(key) and not (key.startswith("only") and row["told"]):
            problems.append(f"{key} {len(row[key])}: {row[key][:3]}")
    if row.get("survivors"):
        problems.append(f"{row['survivors']} fake tensors alive")
    if row.get("outputs_changed"):
        problems.append("other outputs than its twin's")
    return "; ".join(problems) or "ok"


def report() -> None:
    """Counts by library, then the exceptions by name."""
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows():
        by.setdefault(row["library"], []).append(row)
    print(
        "| library | models | built | run | traced | reached as gradients | unchanged | nothing left "
        "| unknown | for real |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for library, group in by.items():
        built = [r for r in group if r.get("built")]
        runs = [r for r in built if r["runs"] or r["traced"]]
        traced = [r for r in runs if r["traced"]]
        compared = [r for r in traced if r["runs"]]
        same = [r for r in compared if r["told"] or not (r["only_graph"] or r["only_gradient"])]
        kept = [r for r in built if not r["changed"]]
        clean = [r for r in built if "survivors" in r and not r["survivors"] and not r["outputs_changed"]]
        asked = [r for r in built if "survivors" in r]
        unknown = sum(bool(r["unknown"]) for r in traced)
        real = sum(r["real_run"] for r in traced)
        print(f"| {library} | {len(group)} | {len(built)} | {len(runs)} | {len(traced)} | {len(same)}/{len(compared)} "
              f"| {len(kept)}/{len(built)} | {len(clean)}/{len(asked)} | {unknown} | {real} |")  # fmt: skip
    for library, group in by.items():
        print(f"\n{library}:")
        for row in group:
            if (text := verdict(row)) != "ok":
                print(f"- `{row['name']}`: {text}")


FIELDS = ("library", "name", "parameters", "built", "runs", "traced", "only_graph", "only_gradient", "changed",
          "survivors", "compared", "outputs_changed", "unknown", "real_run", "verdict")  # fmt: skip


def table(path: Path) -> None:
    """A line a model: lists as their lengths, and what is not ok in words."""
    known = sorted(rows(), key=lambda row: (row["library"], row["name"]))  # first: they may stand in this very file
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        for row in known:
            cells = {**row, "verdict": " ".join(verdict(row).split())}
            values = [cells.get(name, "") for name in FIELDS]
            writer.writerow([len(v) if isinstance(v, list) else v for v in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("libraries", nargs="*", default=[], help=f"of {', '.join(LIBRARIES)}; all if none")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds a model")
    parser.add_argument("--csv", type=Path, help="with report: a line a model into this file")
    parser.add_argument("--again", action="store_true", help="also those that have a row already")
    args = parser.parse_args()
    if args.command == "report":
        report()
        if args.csv is not None:
            table(args.csv)
    else:
        run(args.libraries or list(LIBRARIES), args.only, args.timeout, args.again)


if __name__ == "__main__":
    main()
