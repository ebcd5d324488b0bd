"""Legal models that tools stumble over: traced, searched and planned as their plain twins are, or refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.fixtures.hostile import PAIRS
from tests.fixtures.oracle import fake_tensors, of_model, of_process, survivors
from torch import nn
from torch.nn import functional as F

import dagscale

generator = torch.Generator().manual_seed(0)
X = torch.randn(96, 10, generator=generator)
Y = (X @ torch.randn(10, 4, generator=generator)).argmax(1)
WORDS: dict[str, Any] = {"steps": 16, "batch_size": 16}
REFUSED = {
    "parameters_made_in_the_forward": "makes parameters where it runs for the first time .*run it once",
    "in_a_thread": "runs a in a thread of its own",
    "a_generator": "returned no tensor but generator",
}
UNSEEN = {"a_layer_in_a_plain_list"}
"""What is in a plain list is no layer of the model's."""


def made(name: str, which: int) -> nn.Module:
    torch.manual_seed(1)
    return PAIRS[name][which]()


def search(model: nn.Module) -> float:
    return dagscale.search(model, (X, Y), seeds=1, **WORDS).lr


def plan(model: nn.Module, **more: Any) -> float:
    return dagscale.plan(model, X[:4], data=(X, Y), loss=F.cross_entropy, **WORDS, **more).lr


def keep(model: nn.Module) -> float:
    return plan(model, init="keep")


def layers(model: nn.Module) -> list[Any]:
    return sorted((use.op.name, use.in_degree, use.layer.fan_in) for use in dagscale.trace(model, X[:4]).layers)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PAIRS)
def test_traced_as_the_plain_twin_or_refused(name: str) -> None:
    as_the_twin(name, layers)


SAMPLE = ("a_scripted_layer", "copies_that_forget", "pruned", "parameters_in_containers", "a_sparse_embedding",
          "one_module_twice_under_two_modes", "complex_weights_of_frequencies", "a_hook_on_the_way_back")  # fmt: skip
"""``benchmarks/twins.py`` tries them all."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*SAMPLE, *REFUSED])
def test_searched_and_planned_as_the_plain_twin_or_refused(name: str) -> None:
    as_the_twin(name, search, plan, keep)


def as_the_twin(name: str, *calls: Any) -> None:
    """Half an octave, a step of the grid, and a little for rounding; nothing is left or changed either way."""
    model = made(name, 0)
    before, alive = of_model(model), fake_tensors()
    for call in calls:
        state = of_process()["random"]
        if name in REFUSED:
            with pytest.raises(dagscale.DagscaleError, match=REFUSED[name]) as caught:
                call(model)
            assert "\n" not in str(caught.value)
        elif call is layers:
            assert name in UNSEEN or layers(model) == layers(made(name, 1))
        else:
            assert abs(math.log2(call(model) / call(made(name, 1)))) < 0.52, call.__name__
        assert of_process()["random"] == state
        assert of_model(model) == before
    assert survivors(alive) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["parameters_made_in_the_forward"])
def test_what_the_refusal_says_helps(name: str) -> None:
    model = made(name, 0)
    with torch.no_grad():
        model(X[:4])
    assert keep(model) > 0
