"""What the tracer says when it cannot read a model: one line, the cause and the mend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dagscale import Recipe, plan
from dagscale.errors import ForwardError, TraceError
from dagscale.tracing import trace

X = torch.randn(2, 4)


class Simple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.a(x)


def message(model: nn.Module, inputs: Any, kind: type[TraceError] = TraceError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        trace(model, inputs, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


class Raising(Simple):
    def forward(self, x: Tensor) -> Any:
        raise KeyError("layer 7")


def test_the_users_own_exception() -> None:
    with pytest.raises(ForwardError) as caught:
        trace(Raising(), X)
    assert isinstance(caught.value.__cause__, KeyError)
    text = str(caught.value)
    assert "the forward of Raising raised KeyError: 'layer 7'" in text
    assert "test_trace_errors.py:" in text


class WrongShape(Simple):
    def forward(self, x: Tensor) -> Any:
        return self.a(x[:, :3])


def test_shapes_that_do_not_fit() -> None:
    text = message(WrongShape(), X, ForwardError)
    assert "2x3 and 4x4" in text or "[2, 3]" in text
    assert "(aten.addmm in 'a', " in text
    assert "test_trace_errors.py:" in text


def test_inputs_that_do_not_fit_the_signature() -> None:
    text = message(Simple(), (X, X))
    assert "do not fit Simple.forward(x: " in text
    assert "too many positional arguments" in text
    assert "a tuple of positional arguments or a dict of keyword arguments" in text
    assert "missing a required argument: 'x'" in message(Simple(), ())


def test_inputs_on_another_device() -> None:
    text = message(Simple().to("meta"), X)
    assert text == "input 0 is on cpu and the model on meta: move it with .to('meta')"
    assert "move it with .to('cpu')" in message(Simple(), X.to("meta"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_integers_into_a_linear_layer(dtype: torch.dtype) -> None:
    text = message(Simple(), torch.ones(2, 4, dtype=dtype))
    assert f"'a.weight' is torch.float32 and meets a {dtype} signal" in text
    assert "x.float()" in text
    assert "embedding" in text


def test_another_floating_type() -> None:
    text = message(Simple(), X.double())
    assert "x.to(torch.float32)" in text


def test_no_parameters() -> None:
    assert message(nn.ReLU(), X) == "ReLU has no parameters: nothing to initialise or to train"


class Constant(Simple):
    def forward(self, x: Tensor) -> Any:
        return torch.ones_like(torch.relu(self.a(x)))


def test_output_independent_of_the_input_names_the_last_op() -> None:
    text = message(Constant(), X)
    assert "no output depends on an input's values" in text
    assert "'relu'" in text


class Nothing(Simple):
    def forward(self, x: Tensor) -> Any:
        self.a(x)


def test_no_output_at_all() -> None:
    assert "forward returned no tensor" in message(Nothing(), X)
    assert "forward returned no tensor" in message(Simple(), X, select=lambda out: None)


def test_select_raises() -> None:
    text = message(Simple(), X, select=lambda out: out["logits"])
    assert "select" in text


class Looking(Simple):
    def forward(self, x: Tensor) -> Any:
        if x.mean() > 0:
            x = -x
        return self.a(x)


def test_a_model_on_meta_that_looks_at_values() -> None:
    text = message(Looking().to("meta"), X.to("meta"), ForwardError)
    assert "looks at values" in text
    assert "to_empty" in text or "on the CPU" in text
    assert "test_trace_errors.py:" in text


def test_a_custom_operator_without_a_fake_implementation() -> None:
    """On the CPU it is run for real; on meta it cannot be."""

    @torch.library.custom_op("dagscale_test::only_real", mutates_args=())
    def only_real(x: Tensor) -> Tensor:
        return x + 1

    class Custom(Simple):
        def forward(self, x: Tensor) -> Any:
            return only_real(self.a(x))

    graph = trace(Custom(), X)
    assert any("does not run on fake tensors" in note for note in graph.notes)
    text = message(Custom().to("meta"), X.to("meta"), ForwardError)
    assert "only_real" in text
    assert "register_fake" in text
    assert "test_trace_errors.py:" in text


def test_not_a_module() -> None:
    assert "not a torch.nn.Module" in message(lambda x: x, X)  # type: ignore[arg-type]


def test_no_tensor_among_the_inputs() -> None:
    assert "no tensor among the inputs" in message(Simple(), (3.0,))


class Needy(Simple):
    def forward(self, x: Tensor) -> Any:
        return self.a(x).numpy() if not x.requires_grad else x


def test_numpy_in_the_forward_cannot_be_seen_through() -> None:
    text = message(Needy(), X)
    assert "numpy" in text or "no tensor" in text


def test_a_forward_of_several_inputs_says_which() -> None:
    """As a model of images and texts that is given the images."""

    class Both(Simple):
        def forward(self, image: Tensor, text: Tensor, scale: float = 1.0) -> Any:
            return self.a(image) * self.a(text) * scale

    class Named(Simple):
        def forward(self, *, image: Tensor, text: Tensor) -> Any:
            return self.a(image) * self.a(text)

    assert message(Both(), X).endswith("give a tuple of 2, (image, text), or a dict of these")
    assert message(Named(), X).endswith("give a dict of its arguments (image, text)")


def test_data_of_another_shape_than_the_forward_takes() -> None:
    """As a generator that is given images: the error tells what it was given, and how it gets something else."""
    data = (torch.randn(8, 7), torch.randint(0, 2, (8,)))
    recipe = Recipe(data, loss=torch.nn.functional.cross_entropy, batch_size=4, steps=4)
    with pytest.raises(ForwardError, match=r"is given \(2, 7\): .* give the recipe unpack="):
        plan(Simple(), recipe=recipe, law="none", base_lr=0.1)


def test_a_tensor_class_that_is_called() -> None:
    class Mine(Tensor):
        pass

    class Calls(Simple):
        def forward(self, x: Tensor) -> Any:
            return self.a(Mine(x))

    class Views(Simple):
        def forward(self, x: Tensor) -> Any:
            return self.a(x.as_subclass(Mine))

    assert message(Calls(), X, ForwardError).endswith("write x.as_subclass(Mine) in place of Mine(x)")
    assert [use.name for use in trace(Views(), X).layers] == ["a"]
