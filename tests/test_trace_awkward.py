"""The awkward models, traced: their graphs counted by hand, gradients as an oracle for what is reached."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dagscale.graph.paths import path_sums
from dagscale.tracing import Meaning, rule, spelling, trace
from dagscale.tracing.forward import bind_inputs, output_tensors, plain_name


def load_models() -> Any:
    spec = importlib.util.spec_from_file_location("models", Path(__file__).parent / "fixtures" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["models"] = module
    spec.loader.exec_module(module)
    return module


CASES = load_models().CASES


def with_gradient(model: nn.Module, inputs: Any) -> set[str]:
    """Names of the parameters that get a gradient of the sum of all outputs."""
    args, kwargs = bind_inputs(model, inputs)
    out = [t for t in output_tensors(model(*args, **kwargs)) if t.requires_grad]
    total = sum((t.abs() if t.is_complex() else t).sum() for t in out)
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {plain_name(n) for n, g in zip(wanted, grads, strict=True) if g is not None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_awkward_model(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model, inputs = case.build(), case.inputs()
    graph = trace(model, inputs)
    sums = path_sums(graph)
    if case.paths is not None:
        assert (sums.paths, sums.min_depth, sums.max_depth) == (case.paths, case.min_depth, case.max_depth), str(graph)
    in_degrees = {use.name: use.in_degree for use in graph.layers}
    assert {layer: in_degrees[layer] for layer in case.in_degrees} == case.in_degrees
    assert tuple(p.name for p in graph.parameters if not p.reached) == case.unreached
    assert any("only the branch taken" in note for note in graph.notes) is case.real
    assert not any("unknown" in note for note in graph.notes)
    if name == "lazy modules":
        model(inputs)
    trainable = {p.name for p in graph.parameters if p.trainable and p.reached}
    assert trainable - with_gradient(model, inputs) == set(case.no_gradient)
    assert with_gradient(model, inputs) <= trainable


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("lazy modules", "compiled submodule")])
def test_a_copy_has_the_same_graph(name: str) -> None:
    model, inputs = CASES[name].build(), CASES[name].inputs()
    try:
        twin = copy.deepcopy(model)
    except Exception:
        pytest.skip("cannot be copied")
    assert trace(twin, inputs) == trace(model, inputs)


def test_scripted_submodule() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        part = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
        model = nn.Sequential(part, nn.Linear(4, 2))
        graph = trace(model, torch.randn(2, 4))
    assert all(p.reached for p in graph.parameters)
    assert path_sums(graph).max_depth == 1


def test_lora_adapters_from_peft() -> None:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"], r=2, lora_dropout=0.1))
        graph = trace(model, torch.randn(2, 4))
    in_degrees = {use.name.rsplit("model.", 1)[-1]: use.in_degree for use in graph.layers}
    assert in_degrees == {"0.base_layer": 2, "0.lora_A.default": 1, "0.lora_B.default": 2, "2": 1}
    assert {p.name.rsplit("model.", 1)[-1] for p in graph.parameters if p.trainable} == {
        "0.lora_A.default.weight",
        "0.lora_B.default.weight",
    }


# --- custom operators -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operators() -> Any:
    """``dagscale_test::scale_relu(x)``, ``::mix(x, y)`` and ``::odd(x)``, made with torch.library."""

    @torch.library.custom_op("dagscale_test::mix", mutates_args=())
    def mix(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x) * y

    @torch.library.custom_op("dagscale_test::soft", mutates_args=())
    def soft(x: Tensor) -> Tensor:
        return torch.tanh(x)

    @torch.library.custom_op("dagscale_test::odd", mutates_args=())
    def odd(x: Tensor) -> Tensor:
        return x**3

    for op in (soft, odd):
        op.register_fake(torch.empty_like)
    mix.register_fake(lambda x, y: torch.empty_like(x))
    return torch.ops.dagscale_test


class Uses(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.function(self.a(x), self.b(x)))


def test_unknown_operator_is_a_plain_dependency_and_reported_once(operators: Any) -> None:
    graph = trace(Uses(lambda a, b: operators.odd(operators.odd(a)) + b), torch.randn(2, 4))
    assert all(p.reached for p in graph.parameters)
    assert path_sums(graph).max_depth == 0
    (note,) = graph.notes
    assert note == (
        "unknown operator dagscale_test.odd in the model: taken as a plain dependency; "
        "tell its meaning with rule or spelling of dagscale.tracing"
    )


def test_users_own_rules(operators: Any) -> None:
    @rule("dagscale_test.soft")
    def soft(arguments: Any) -> Meaning:
        return Meaning("activation", data=("x",))

    @spelling("dagscale_test.mix")
    def mix(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x) * y

    graph = trace(Uses(lambda a, b: operators.mix(operators.soft(a), b)), torch.randn(2, 4))
    sums = path_sums(graph)
    assert (sums.paths, sums.min_depth, sums.max_depth) == (2, 0, 2)
    assert [v.kind for v in graph.vertices] == ["input", "product", "output"]
    assert not graph.notes


def test_a_known_operator_keeps_its_meaning() -> None:
    with pytest.raises(ValueError, match=r"aten\.relu.*twice"):
        rule("aten.relu")(lambda arguments: Meaning("pass"))


def test_the_registry_names_arguments_that_operators_have() -> None:
    """A misspelt argument would let a signal pass unseen."""
    from dagscale.tracing.meaning import OPS

    wrong = []
    for name in OPS:
        namespace, _, operator = name.partition(".")
        packet = getattr(getattr(torch.ops, namespace), operator, None)
        meaning = OPS[name]
        if packet is None or not isinstance(meaning, Meaning):
            continue
        known = {a.name for overload in packet.overloads() for a in getattr(packet, overload)._schema.arguments}
        wrong += [(name, a) for a in (*meaning.data, meaning.weight, meaning.bias) if a and a not in known]
    assert wrong == []
