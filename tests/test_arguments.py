"""Whatever is given for an argument of what users call: it is taken, or refused in one line that says what to give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dagscale
from dagscale.arguments import checked
from dagscale.errors import PlanError

X, Y = torch.randn(32, 6), torch.arange(32) % 3
RECIPE = dagscale.Recipe((X, Y), cross_entropy, "sgd", batch_size=16, steps=2)


def network(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


GRAPH = dagscale.trace(network(), X[:2])
BASE = dagscale.search(network(), RECIPE, seeds=1, grid=[0.05, 0.1, 0.2])
PLAN = dagscale.plan(network(16), base=BASE, law="none")


def watched() -> dict[str, Any]:
    model = network(16)
    return {"model": model, "plan": PLAN, "optimizer": PLAN.optimizer(model)}


def clipped() -> dict[str, Any]:
    model = network(16)
    cross_entropy(model(X), Y).backward()
    return {"optimizer": PLAN.optimizer(model), "max_norm": 1.0}


def methods(of: object, **needed: Any) -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]]:
    """Public methods by name, and what each has to be given."""
    found = {}
    for name, method in inspect.getmembers(of, inspect.ismethod):
        if not name.startswith("_") and name != "found":  # which is what a search calls
            wanted = {n: needed[n] for n in inspect.signature(method).parameters if n in needed}
            found[f"{type(of).__name__}.{name}"] = (method, lambda wanted=wanted: dict(wanted))
    return found


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "plan": (dagscale.plan, lambda: {"model": network(16), "base": BASE, "law": "none"}),
    "plan, base_lr": (
        dagscale.plan,
        lambda: {"model": network(16), "base": (network(), X[:2]), "base_lr": 0.1, "law": "walk", "init": "in-degree"},
    ),
    "plan, depth": (
        dagscale.plan, lambda: {"model": network(16), "base": BASE, "width": "mup", "depth": "completep"},
    ),
    "trace": (dagscale.trace, lambda: {"model": network(), "example_inputs": X[:2]}),
    "Recipe": (dagscale.Recipe, lambda: {"data": (X, Y), "loss": cross_entropy}),
    "watch": (dagscale.watch, watched),
    "clip": (dagscale.clip_grad_norm_, clipped),
    "cosine": (dagscale.cosine, dict), "linear": (dagscale.linear, dict), "constant": (dagscale.constant, dict),
    "path_sums": (dagscale.path_sums, lambda: {"graph": GRAPH}),
    "kernel_size": (dagscale.kernel_size, lambda: {"graph": GRAPH}),
    **methods(PLAN, model=network(16), optimizer=PLAN.optimizer(network(16)), other=PLAN, path="p.json", text="{}"),
    **methods(BASE, network=None, lr=0.1, path="b.json", text="{}", law="walk"),
    **methods(GRAPH, raw={}, text="{}", edges=[]),
}  # fmt: skip


def values() -> Iterator[Any]:
    yield from ("x", "", None, object(), {}, {"a": 1}, [], ["x", 2], (1, 2), float("nan"), float("inf"), -1, 0, 1, 0.5)
    yield from (10**30, True, 1j, b"x", torch.ones(2), torch.tensor(0.1), nn.Linear(2, 2), object, {1})
    yield (i for i in range(2))


@pytest.mark.parametrize("name", CALLS)
def test_no_argument_is_answered_by_a_raw_exception(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    function, needed = CALLS[name]
    for argument, what in inspect.signature(function).parameters.items():
        if what.kind not in (what.VAR_KEYWORD, what.VAR_POSITIONAL):
            for value in values():
                try:
                    function(**{**needed(), argument: value})
                except dagscale.DagscaleError as error:
                    if "\n" in str(error):
                        pytest.fail(f"more than a line: {error}")
                except Exception as error:
                    pytest.fail(f"{name}({argument}={value!r}) raises {type(error).__name__}: {error}")


@pytest.mark.parametrize(("given", "said"), [
    ({"depth": "completep", "depth_alpha": "x"}, r"depth_alpha= is of type str, and should be a number or None"),
    ({"lr_scale": ["head"]}, r"lr_scale= is of type list, and should be a dict of which each is a number or None"),
    ({"only": 3}, r"only= is of type int, and should be text or a sequence of which each is text or None"),
])  # fmt: skip
def test_a_refusal_names_the_argument_and_what_to_give(given: dict[str, Any], said: str) -> None:
    model, small = (nn.Sequential(Block(), nn.Linear(6, 3)) for _ in range(2))
    with pytest.raises(PlanError, match=said):
        dagscale.plan(model, X[:2], base=(small, X[:2]), base_lr=0.1, **given)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(torch.relu(x))


def test_what_the_users_own_functions_raise_goes_on_as_it_is() -> None:
    def family(width: int) -> nn.Module:
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        dagscale.check(family, recipe=RECIPE, sizes=[8, 16])


def test_what_is_as_good_as_its_type_is_taken() -> None:
    rates: Any = np.array([0.05, 0.1, 0.2], dtype=np.float32)
    found = dagscale.search(network(), RECIPE, seeds=np.int64(1), grid=rates)  # type: ignore[arg-type]
    assert found.lr > 0
    PLAN.param_groups(network(16), lr=torch.tensor(0.1), only=iter(["0.weight"]))  # type: ignore[arg-type]


def test_annotations_that_say_nothing_at_run_time_let_everything_through() -> None:
    @checked(PlanError)
    def taken(one: Unknown, other, /, *rest: int, third: int = 1, **more: str) -> list[Any]:  # type: ignore  # noqa
        return [one, other, rest, 1 / third, more]

    assert taken(1, "a", "b", third=2, named=3) == [1, "a", ("b",), 0.5, {"named": 3}]
    with pytest.raises(PlanError, match="third= is of type str, and should be a whole number"):
        taken(1, 2, third="x")
    with pytest.raises(TypeError, match="missing"):
        taken(1)
    with pytest.raises(ZeroDivisionError):
        taken(1, 2, third=0)
