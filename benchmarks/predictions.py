"""Every law under every init over whole families: the rates and inits that plans come to, to the last digit.

    python benchmarks/predictions.py run FILE.json     # adds what the file lacks; an hour on one core
    python benchmarks/predictions.py compare A.json B.json

Two versions of dagscale are compared by running this file with each. A prediction is the same only if its rate, and
every parameter's standard deviation and rate, are equal bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.bench.data import load
from dagscale.bench.verify.suites import SUITES
from dagscale.models import targets

GRAPH_LAWS = ("paths", "walk", "covariance", "released", "none")
GRAPH_INITS = ("in-degree", "in-degree-standard", "released", "keep", "moments")
MEASURED = ("short-run", "combined", "curvature", "function-change")
FAMILIES = {"mlp-dag": 60, "cnn-dag": 12, "vit-depth": 4, "resnet-depth-bn": 3}
MEASURED_ON = {"mlp-dag": 12, "cnn-dag": 3, "vit-depth": 2, "resnet-depth-bn": 1}
"""Members on which measured laws are run, under init ``moments``: they take seconds to minutes each."""


def requests() -> Iterator[tuple[str, dict[str, Any]]]:
    """A key and the request to plan that it stands for."""
    for family, count in FAMILIES.items():
        suite = SUITES[family]
        for i, target in enumerate(suite.members(count, 0)):
            for optimizer in ("sgd", "momentum", "adam", "adamw"):
                for law in (*GRAPH_LAWS, *(MEASURED if i < MEASURED_ON[family] else ())):
                    for init in GRAPH_INITS if law == "none" else ("in-degree", "keep") if law not in MEASURED else ():
                        yield _request(suite.base, target, optimizer, law, init)
                    if law in MEASURED and (optimizer in ("sgd", "adamw") or law == "short-run"):
                        yield _request(suite.base, target, optimizer, law, "moments")
                if i < MEASURED_ON[family]:
                    yield _request(suite.base, target, optimizer, "none", "moments", "mup")


def _request(
    base: str, target: str, optimizer: str, law: str, init: str, width: str = "none"
) -> tuple[str, dict[str, Any]]:
    options = {"optimizer": optimizer, "law": law, "init": init, "width": width}
    return f"{base} → {target}: {' '.join(options.values())}", {"base": base, "target": target, **options}


def predict(request: dict[str, Any]) -> dict[str, Any]:
    """What the plan comes to, or the error that it ends in."""
    options = dict(request)
    data = load("digits")
    base, target = (targets.load(options.pop(name), data=data) for name in ("base", "target"))
    try:
        plan = dagscale.plan(
            *target, base=base, base_lr=0.1, data=(data.x, data.y), loss=cross_entropy, batch_size=32, **options
        )
    except dagscale.DagscaleError as error:
        return {"error": type(error).__name__}
    drawn = {n: (p.init_mean, p.init_std, p.lr, p.weight_decay) for n, p in plan.parameters.items()}
    digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]
    return {"lr": plan.lr, "factors": dict(plan.factors), "parameters": digest, "forwards": plan.forwards}


def run(path: Path) -> None:
    known = json.loads(path.read_text()) if path.exists() else {}
    for key, request in requests():
        if key not in known:
            known[key] = predict(request)
            path.write_text(json.dumps(known, indent=0, ensure_ascii=False))


def compare(before: Path, after: Path) -> None:
    old, new = (json.loads(path.read_text()) for path in (before, after))
    print("| law | in both | the same | other rate, most octaves | other parameters | passes, after ÷ before |")
    print("|---|---|---|---|---|---|")
    rows: dict[str, Counter[str]] = {}
    apart: dict[str, float] = {}
    cost: dict[str, list[float]] = {}
    for key in sorted(old.keys() & new.keys()):
        law = key.rsplit(": ", 1)[1].split()[1]
        a, b = old[key], new[key]
        row = rows.setdefault(law, Counter())
        row["both"] += 1
        row["same"] += all(a.get(k) == b.get(k) for k in ("lr", "factors", "parameters", "error"))
        row["rate"] += a.get("lr") != b.get("lr")
        row["parameters"] += a.get("lr") == b.get("lr") and a.get("parameters") != b.get("parameters")
        if a.get("lr") and b.get("lr"):
            octaves = abs(float(torch.log2(torch.tensor(b["lr"] / a["lr"], dtype=torch.float64))))
            apart[law] = max(apart.get(law, 0.0), octaves)
        if a.get("forwards"):
            cost.setdefault(law, []).append(b.get("forwards", 0.0) / a["forwards"])
    for law, row in rows.items():
        ratio = f"{sum(cost[law]) / len(cost[law]):.2f}" if law in cost else ""
        far = f"{row['rate']}, {apart.get(law, 0.0):.2g}"
        print(f"| {law} | {row['both']} | {row['same']} | {far} | {row['parameters']} | {ratio} |")
    print(f"\nonly before: {len(old.keys() - new.keys())}, only after: {len(new.keys() - old.keys())}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("file", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run(given.file) if given.command == "run" else compare(given.before, given.after)
