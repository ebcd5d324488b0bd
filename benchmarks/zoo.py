"""Traces every model of timm, torchvision and transformers that can be built here, and checks each trace.

    python benchmarks/zoo.py run [LIBRARY...] [--only REGEX] [--timeout S]   # resumable; appends to out/zoo.jsonl
    python benchmarks/zoo.py report                                          # the table of docs/tracing.md

For each model: it is traced; the parameters that the graph reaches are compared with those that get a gradient
in a backward of the sum of all outputs; and the model is compared with itself before (parameters and buffers
bit for bit where they have values, hooks, attributes, training flags, random state), its later outputs with those of
before, and the garbage collector is asked for fake tensors that are still alive. Models are built on
``meta``, so that size costs nothing; the smallest model of each timm family, all of torchvision's and the small
transformers are built, traced, and sent backward for real.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import queue
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
OUT = Path("out/zoo.jsonl")
LIBRARIES = ("timm", "timm-real", "torchvision", "transformers", "transformers-meta")


# --- one model --------------------------------------------------------------------------------------------


def gradient_reached(model: Any, inputs: Any) -> set[str]:
    """Names of the parameters with a gradient of the sum of all output tensors."""
    import torch

    from dagscale.tracing.forward import bind_inputs, output_tensors, plain_eager

    args, kwargs = bind_inputs(model, inputs)
    with plain_eager():
        out = [t for t in output_tensors(model(*args, **kwargs)) if t.requires_grad]
        total = sum((t.real if t.is_complex() else t).sum() for t in out)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(total, [model.get_parameter(n) for n in names], allow_unused=True)
    return {n for n, g in zip(names, grads, strict=True) if g is not None}


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
    try:
        wanted = gradient_reached(model, inputs)
        row["runs"] = True
    except Exception as error:
        wanted = None
        row["runs"] = False
        row["forward_error"] = one_line(error)
    given = outputs(model, inputs) if row["runs"] else None
    before, alive = snapshot(model), fake_tensors()
    start = time.perf_counter()
    try:
        graph = dagscale.trace(model, inputs)
    except Exception as error:
        row |= {"traced": False, "error": one_line(error)}
    else:
        sums = path_sums(graph)
        trainable = {p.name for p in graph.parameters if p.trainable}
        reached = {p.name for p in graph.parameters if p.reached and p.trainable}
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
            row |= {"only_graph": sorted(reached - wanted), "only_gradient": sorted(wanted - reached)}
            row["unreached"] = len(trainable - reached)
    after = snapshot(model)
    row["changed"] = [k for k in before if before[k] != after[k]]
    row["survivors"] = sum(key not in alive for key in fake_tensors())
    del alive
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
        smallest: dict[str, tuple[int, str]] = {}
        traced = {r["name"]: r for r in rows() if r["library"] == "timm"}
        for name in names:
            family = timm.models._registry._model_to_module[name]
            size = traced.get(name, {}).get("parameters", 10**12)
            smallest[family] = min(smallest.get(family, (10**13, "")), (size, name))
        return [name for _, name in smallest.values()]
    if library == "torchvision":
        import_timm()
        from torchvision import models

        return [n for n in models.list_models() if not n.startswith("quantized")]
    import zoo_transformers

    return zoo_transformers.families()


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
    if library == "torchvision":
        import_timm()
        import zoo_torchvision

        return zoo_torchvision.build(name)
    import zoo_transformers

    return zoo_transformers.build(name, "meta" if library.endswith("meta") else "cpu")


# --- the run ----------------------------------------------------------------------------------------------


def worker(todo: Any, done: Any) -> None:
    """Takes (library, name), gives a row; lives until it is ended."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    while True:
        library, name = todo.get()
        row: dict[str, Any] = {"library": library, "name": name}
        torch.manual_seed(0)
        try:
            model, inputs = build(library, name)
        except Exception as error:
            row |= {"built": False, "error": one_line(error)}
        else:
            row |= {"built": True, **check(model, inputs)}
            del model, inputs
        done.put(row)


def run(libraries: list[str], only: str, timeout: float, again: bool) -> None:
    """Every case that has no row yet, each within ``timeout`` seconds."""
    OUT.parent.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    process = todo = done = None
    for library in libraries:
        finished = {r["name"] for r in rows() if r["library"] == library} if not again else set()
        names = [n for n in cases(library) if n not in finished and re.search(only, n)]
        for i, name in enumerate(names):
            if process is None or not process.is_alive():
                todo, done = context.Queue(), context.Queue()
                process = context.Process(target=worker, args=(todo, done), daemon=True)
                process.start()
            todo.put((library, name))
            try:
                row = answer(process, done, timeout)
            except TimeoutError as error:
                process.kill()
                process.join()
                process = None
                row = {"library": library, "name": name, "built": False, "error": str(error)}
            with OUT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{library} {i + 1}/{len(names)} {name}: {verdict(row)}", flush=True)


def answer(process: Any, done: Any, timeout: float) -> dict[str, Any]:
    start = time.monotonic()
    while time.monotonic() - start < timeout:
        try:
            return dict(done.get(timeout=1))
        except queue.Empty:
            if not process.is_alive():
                raise TimeoutError("the process died (out of memory?)") from None
    raise TimeoutError(f"no answer within {timeout:g} s")


# --- the report -------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    """The latest row of each case."""
    if not OUT.exists():
        return []
    latest = {(r["library"], r["name"]): r for r in map(json.loads, OUT.read_text().splitlines())}
    return list(latest.values())


def verdict(row: dict[str, Any]) -> str:
    if not row.get("built"):
        return f"not built ({row['error'][:150]})"
    if not row["traced"]:
        return ("FAILED: " if row["runs"] else "does not run: ") + row["error"][:300]
    problems = []
    if not row["runs"]:
        problems.append("no backward: " + row["forward_error"][:120])
    for key in ("only_graph", "only_gradient", "changed", "unknown"):
        if row.get(key):
            problems.append(f"{key} {len(row[key])}: {row[key][:3]}")
    if row.get("survivors"):
        problems.append(f"{row['survivors']} fake tensors alive")
    if row.get("outputs_changed"):
        problems.append("other outputs than before")
    return "; ".join(problems) or "ok"


def report() -> None:
    """Counts by library, then the exceptions by name."""
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows():
        by.setdefault(row["library"], []).append(row)
    print(
        "| library | models | built | run | traced | parameters as gradients | unchanged | nothing left "
        "| unknown ops | for real |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for library, group in by.items():
        built = [r for r in group if r.get("built")]
        runs = [r for r in built if r["runs"] or r["traced"]]
        traced = [r for r in runs if r["traced"]]
        compared = [r for r in traced if r["runs"]]
        same = [r for r in compared if not r["only_graph"] and not r["only_gradient"]]
        kept = [r for r in built if not r["changed"]]
        clean = [r for r in built if "survivors" in r and not r["survivors"] and not r["outputs_changed"]]
        asked = [r for r in built if "survivors" in r]
        ops = Counter(op for r in traced for op in r["unknown"])
        real = sum(r["real_run"] for r in traced)
        print(f"| {library} | {len(group)} | {len(built)} | {len(runs)} | {len(traced)} | {len(same)}/{len(compared)} "
              f"| {len(kept)}/{len(built)} | {len(clean)}/{len(asked)} | {len(ops)} | {real} |")  # fmt: skip
    for library, group in by.items():
        print(f"\n{library}:")
        for row in group:
            if (text := verdict(row)) != "ok":
                print(f"- `{row['name']}`: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("libraries", nargs="*", default=[], help=f"of {', '.join(LIBRARIES)}; all if none")
    parser.add_argument("--only", default="", help="regular expression on names")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds a model")
    parser.add_argument("--again", action="store_true", help="also those that have a row already")
    args = parser.parse_args()
    if args.command == "report":
        report()
    else:
        run(args.libraries or list(LIBRARIES), args.only, args.timeout, args.again)


if __name__ == "__main__":
    main()
