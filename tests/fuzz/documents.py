"""Surfaces of the package's own documents and of recipes: JSON edited by hand, recipes in files and in options."""

from __future__ import annotations

import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_oracle import Call
from fuzz_surfaces import Draw, argument, damaged, mostly, names, number, surface, text
from hypothesis import strategies as st

# --- plans and bases ----------------------------------------------------------------------------------------------

VALUES = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.5, 1e-300, 1e300, 1e308, 10**25, 10**400, -(10**400), 2**63, math.nan,
    math.inf, -math.inf, "", "x", "nan", "1", [], [1], [[]], {}, {"a": 1}, {"$float": "nan"},
)  # fmt: skip
values = st.sampled_from(VALUES) | st.integers() | st.floats() | text


def make_net() -> Any:
    """A small network with all that a plan has a word for."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))


def make_recipe() -> Any:
    import torch

    import dagscale

    data = (torch.linspace(-1, 1, 96).sin().reshape(24, 4), torch.arange(24) % 3)
    return dagscale.Recipe(data, batch_size=8, steps=6, schedule=dagscale.cosine(0.1))


@cache
def documents() -> dict[str, str]:
    """A sound plan and a sound base as JSON."""
    import dagscale

    base = dagscale.search(make_net(), make_recipe(), seeds=1, init="in-degree").measure("covariance")
    adam = make_recipe().changed(optimizer="adamw", betas=(0.9, 0.95), weight_decay=0.1)
    found = dagscale.search(make_net(), adam, seeds=1, init="in-degree")
    plan = dagscale.plan(make_net(), base=found, law="none", width="mup")
    with tempfile.TemporaryDirectory() as folder:
        base.plot(Path(folder) / "x.svg")  # imports what each use would
    return {"plan": plan.to_json(), "base": base.to_json()}


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of a document."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [at, *(place for name, part in inner for place in places(part, (*at, name)))]


def edited(draw: Draw, content: str) -> str:
    """A document with some values replaced, left out, renamed or put in, or its text damaged."""
    match draw(st.sampled_from(("values", "values", "values", "values", "text", "deep"))):
        case "text":
            return damaged(draw, content.encode()).decode("utf-8", "replace")
        case "deep":
            return content.replace("{", draw(st.sampled_from(("[", '{"a":'))) * 100_000, 1)
    document = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(document)[1:]))
        node = document
        for name in way:
            node = node[name]
        match draw(st.sampled_from(("put", "put", "put", "drop", "rename", "add"))):
            case "put" if isinstance(node[last], float) and draw(st.booleans()):
                node[last] *= draw(st.sampled_from((0.5, 2.0, -1.0, 1e20, 1e300)))
            case "put":
                node[last] = draw(values)
            case "drop":
                del node[last]
            case "rename" if isinstance(node, dict):
                node[draw(names)] = node.pop(last)
            case "add" if isinstance(node, dict):
                node[draw(names)] = draw(values)
        if not isinstance(document, dict) or len(document) < 2:
            break
    return json.dumps(document)


def bits(model: Any) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in model.parameters()]


def use_plan(content: str, path: Path) -> None:
    """All that a plan does: refused as a whole, or every part of it right."""
    import pickle

    from dagscale import Plan
    from dagscale.errors import DagscaleError

    path.write_text(content)
    plan, good = Plan.load(path), Plan.from_json(documents()["plan"])
    assert Plan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    _ = str(plan), repr(plan), plan._repr_html_(), hash(plan), plan.diff(good), good.diff(plan)
    model = make_net()
    before = bits(model)
    try:
        plan.init_(model)
    except DagscaleError:
        assert bits(model) == before, "a refused plan has changed the model"
        raise
    assert all(p.isfinite().all() for p in model.parameters()), "the plan wrote NaN or infinity"
    assert all(math.isfinite(group["lr"]) for group in plan.param_groups(model)), "a rate is no number"
    plan.schedule(plan.optimizer(model), None if plan.recipe.get("steps") else 10)


LAWS = ("covariance", "covariance", "paths", "walk", "effective-depth", "released", "none")


def use_base(content: str, path: Path, law: str, width: str) -> None:
    """All that a base from a file does."""
    import dagscale

    path.write_text(content)
    base = dagscale.Base.load(path)
    _ = str(base), repr(base), base._repr_html_(), hash(base)
    assert dagscale.Base.from_json(base.to_json()) == base
    base.plot(path.with_suffix(".svg"))
    plan = dagscale.plan(make_net(), base=base, law=law, width=width, recipe=make_recipe())
    _ = str(plan), plan.to_json()
    assert all(0 < group["lr"] < math.inf for group in plan.param_groups(make_net())), "a rate is no positive number"


@surface
def plan_json(draw: Draw, folder: Path) -> Call:
    """Plans, written down and edited."""
    content = edited(draw, documents()["plan"])
    return Call(f"plan {content}", lambda: use_plan(content, folder / "plan.json"))


@surface
def base_json(draw: Draw, folder: Path) -> Any:
    """Bases, written down and edited."""
    content = edited(draw, documents()["base"])
    if draw(st.booleans()):
        law, width = draw(st.sampled_from(LAWS)), draw(st.sampled_from(("none", "mup")))
        return Call(
            f"{law}, width {width}, base {content}", lambda: use_base(content, folder / "base.json", law, width)
        )
    (folder / "base.json").write_text(content)
    training = [
        "--data",
        "digits",
        "--limit",
        "24",
        "--schedule",
        "cosine",
        "--warmup",
        "0.1",
        "--batch-size",
        "8",
        "--steps",
        "6",
    ]
    return ["plan", "mlp:2_02", "--base", "base.json", "--law", "none", "--init", "in-degree", *training, "--json"]


# --- recipes ------------------------------------------------------------------------------------------------------

GOOD = {
    "data": ("(torch.randn(24, 4), torch.arange(24) % 3)", "[(torch.randn(8, 4), torch.arange(8) % 3)] * 3"),
    "loss": ("None", "torch.nn.functional.cross_entropy", "lambda out, y: out.square().mean()"),
    "optimizer": ("'sgd'", "'adamw'", "torch.optim.Adam", "'momentum'"),
    "steps": ("2", "4"), "batch_size": ("8", "24"), "clip": ("1.0", "0.5"), "accumulate": ("1", "2"),
    "weight_decay": ("0.0", "0.1"), "schedule": ("dagscale.cosine()", "dagscale.linear(0.5)"),
}  # fmt: skip
BAD = {
    "data": (
        "None", "()", "torch.randn(4)", "(torch.randn(24, 4), torch.arange(7))", "(torch.randn(0, 4), torch.zeros(0))",
        "(torch.randn(24, 4) * float('nan'), torch.arange(24) % 3)", "(torch.randn(24, 5), torch.arange(24) % 3)",
        "(torch.randn(24, 4), torch.arange(24) * 10**12)", "(torch.randn(24, 4), torch.randn(24))", "iter([])", "[]",
        "[None]", "'digits'", "{'x': torch.randn(4, 4)}", "[(torch.randn(8, 4), 'x')]", "range(10)",
        "[(torch.randn(8, 4, requires_grad=True) * 2, torch.arange(8) % 3)]", "(i for i in range(3))",
    ),
    "loss": (
        "'x'", "3", "lambda out, y: None", "lambda out, y: out", "lambda out, y: 1 / 0", "torch.nn.MSELoss",
        "lambda *given: None",
        "lambda out, y: out.sum() * float('nan')", "lambda: 0", "lambda out, y: torch.tensor(1.0)",
        "lambda out, y: (_ for _ in ()).throw(ValueError('a\\n\\x1b[31mb'))",
    ),
    "optimizer": ("'nope'", "None", "3", "torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])", "torch.optim",
                  "lambda groups: None", "lambda groups: 1 / 0", "[]", "{}"),
    "steps": ("0", "-1", "1.5", "'3'", "float('nan')", "[]", "10**400"),
    "batch_size": ("0", "-1", "2.5", "'x'", "10**30", "True"),
    "epochs": ("0", "-3", "'x'"),
    "clip": ("0", "-1.0", "float('nan')", "'x'", "10**400"),
    "accumulate": ("0", "-1", "'x'", "1.5"),
    "weight_decay": ("-1", "float('inf')", "'x'", "10**400"),
    "schedule": ("3", "'cosine'", "lambda o, n: None", "lambda o, n: 1 / 0", "dagscale.cosine(float('nan'))",
                 "lambda *given: None"),
    "no_decay": ("3", "'norm'", "[3]", "lambda n, p: 1 / 0", "['nope']", "None"),
    "unpack": ("3", "lambda b: b", "lambda b: None", "lambda b: 1 / 0"),
    "autocast": ("torch.bfloat16", "'bfloat16'", "3", "torch.int8"),
    "step": ("3", "lambda m, o, x, y: None", "lambda m, o, x, y: 1 / 0", "lambda m, o, x, y: float('nan')"),
    "momentum": ("2.0", "-1", "'x'", "None", "float('nan')"), "betas": ("3", "(2, 2)", "()", "('a', 'b')"),
    "nope": ("1",), "lr": ("0.1",),
}  # fmt: skip


@surface
def recipes(draw: Draw, folder: Path) -> list[str]:
    """Files of recipes whose arguments are right and wrong, to plan and to search with."""
    said = {name: draw(st.sampled_from(GOOD[name])) for name in ("data", "optimizer", "steps", "batch_size")}
    for name in draw(st.lists(st.sampled_from(sorted(GOOD)), max_size=2)):
        said[name] = draw(st.sampled_from(GOOD[name]))
    for name in draw(st.lists(st.sampled_from(sorted(BAD)), max_size=2)):
        said[name] = draw(st.sampled_from(BAD[name]) | mostly(st.sampled_from(BAD[name]), values.map(repr)))
    given = ", ".join(f"{name}={value}" for name, value in said.items())
    shape = draw(st.sampled_from(("recipe = {}", "def recipe():\n    return {}")))
    (folder / "mine.py").write_text(
        "import torch\nfrom torch import nn\nimport dagscale\nfrom math import inf, nan\n"
        "def net():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), "
        "torch.ones(2, 4)\n" + shape.format(f"dagscale.Recipe({given})") + "\n",
        encoding="utf-8",
        errors="replace",
    )
    name = draw(mostly(st.just("mine.py:recipe"), st.sampled_from(("mine.py:net", "mine.py:nope", "mine.py", "torch"))))
    based = ["--base=mine.py:net", "--base-lr=0.1"]
    command = draw(st.sampled_from((
        ["plan", "mine.py:net", "--base-lr=0.1", "--law=none"], ["plan", "mine.py:net", *based, "--law=curvature"],
        ["plan", "mine.py:net", *based, "--law=paths"],
        ["search", "mine.py:net", "--seeds=1"], ["search", "mine.py:net", "--seeds=1", "--init=in-degree"],
    )))  # fmt: skip
    return [*command, "--recipe", name, *draw(st.sampled_from(([], ["--json"])))]


@surface
def recipe_options(draw: Draw, folder: Path) -> list[str]:
    """The options of the command line that say how a network is trained."""
    known = {
        "--optimizer": mostly(st.sampled_from(("sgd", "momentum", "adamw")), text), "--steps": number,
        "--batch-size": number, "--weight-decay": number, "--clip": number, "--warmup": number,
        "--schedule": mostly(st.sampled_from(("cosine", "linear", "constant")), text),
        "--loss": mostly(st.sampled_from(("cross_entropy", "mse_loss", "os:abort", "torch.nn.functional:relu")), text),
        "--setting": st.tuples(mostly(st.sampled_from(("momentum", "nesterov", "betas", "foreach")), text),
                               number | text | st.sampled_from(("0.9", "True", "0.9,0.95", "2"))).map("=".join),
        "--data": mostly(st.just("digits"), text), "--limit": mostly(st.sampled_from(("24", "64")), number),
    }  # fmt: skip
    command = draw(
        st.sampled_from(
            (
                ["plan", "mlp:2_02", "--law=curvature", "--base=mlp:2", "--base-lr=0.1"],
                ["search", "mlp:2_02", "--seeds=1"],
            )
        )
    )
    if command[0] == "search":  # so many steps as are asked for are taken
        known["--steps"] = st.sampled_from(("0", "-1", "1", "3", "1.5", "nan", "9" * 5000, ""))
    chosen = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True))
    given = [f"{name}={argument(draw(known[name]))}" for name in chosen]
    limit = [] if "--limit" in chosen else ["--limit=24"]
    steps = [] if "--steps" in chosen else ["--steps=2"]
    data = [] if "--data" in chosen else ["--data=digits"]
    return [*command, *given, *limit, *steps, *data, *draw(st.sampled_from(([], ["--json"])))]
