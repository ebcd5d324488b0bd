"""TARGET texts: spaces by code, and callables in the user's own files and modules."""

from __future__ import annotations

import random
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dagscale.errors import TargetError, UnknownNameError
from dagscale.models import CNN, MLP, SPACES, Dag, Option, Setting, Space, load, resolve, sample
from dagscale.models.own_code import find


@dataclass(frozen=True)
class Data:
    """Stands for a data set: what ``load`` reads of one."""

    shape: tuple[int, ...] = (3, 4, 4)
    classes: int = 7
    x: Tensor | None = None


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a user's file; gives its path."""

    def write(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def fails(text: str, **arguments: object) -> str:
    with pytest.raises(TargetError) as error:
        load(text, **arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{text}: ")
    return message.removeprefix(f"{text}: ")


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- spaces --------------------------------------------------------------------------------------------------------


def test_defaults_are_digits() -> None:
    model, x = load("mlp:2_02_002")
    assert isinstance(model, MLP)
    assert x.shape == (2, 1, 8, 8)
    assert model(x).shape == (2, 10)
    assert model.stem.linear.weight.shape == (128, 64)
    model, x = load("cnn:2_02_002")
    assert isinstance(model, CNN)
    assert model.stem.conv.weight.shape == (16, 1, 3, 3)
    assert model(x).shape == (2, 10)


def test_options_reach_the_model() -> None:
    model, x = load("cnn:2_12?kernel=5&width=4&act=gelu&order=pre&norm=batch&depth=2&bias=false&classes=3&input=2x9x9")
    assert x.shape == (2, 2, 9, 9)
    assert model(x).shape == (2, 3)
    assert model.stem.conv.weight.shape == (4, 2, 5, 5)
    assert model.stem.conv.bias is None
    assert len(model.cells) == 2
    assert [name for name, _ in model.cells[0].edges["0_1"].named_children()] == ["act", "conv", "norm"]
    assert isinstance(model.readout.act, nn.GELU)
    assert isinstance(model.stem.norm, nn.BatchNorm2d)


def test_data_give_shape_classes_and_examples() -> None:
    x = torch.randn(5, 3, 4, 4)
    model, inputs = load("cnn:2?width=4", data=Data(x=x))
    assert torch.equal(inputs, x[:2])
    assert inputs.data_ptr() != x.data_ptr()
    assert model(inputs).shape == (2, 7)
    model, inputs = load("mlp:2?width=4&classes=2&input=1x2x3", data=Data(x=x))
    assert inputs.shape == (2, 1, 2, 3)
    assert model(inputs).shape == (2, 2)
    model, inputs = load("mlp:2?width=4", data=Data(x=None))
    assert inputs.shape == (2, 3, 4, 4)
    _, inputs = load("mlp:2?width=4", data=Data(x=x), input_shape=(6,))
    assert inputs.shape == (2, 6)


def test_a_seed_fixes_everything_and_disturbs_nothing() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    target = resolve("mlp:2_22?width=8", seed=3)
    (a, x), (b, y) = target.build(), target.build()
    c, z = load("mlp:2_22?width=8", seed=4)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert a is not b
    assert same(a, b)
    assert torch.equal(x, y)
    assert not same(a, c)
    assert not torch.equal(x, z)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp:2_2", "architecture code '2_2', group 2 ('2'): the length is 1, but vertex 2 has 2 earlier vertices"),
        ("mlp:", "empty architecture code; write one group of digits per vertex"),
        ("cnn:0", "no path from input to output: in architecture code '0'"),
        ("mlp:2?widht=3", "unknown option 'widht'; did you mean 'width'? (mlp takes: input, classes, width, act, "),
        ("mlp:2?kernel=3", "unknown option 'kernel' (mlp takes: "),
        ("mlp:2?width", "option 'width' has no value; write width=VALUE"),
        ("mlp:2?width=", "width='' is not an integer"),
        ("mlp:2?width=1e3", "width='1e3' is not an integer"),
        ("mlp:2?width=0", "width=0: must be at least 1"),
        ("mlp:2?width=3&width=4", "option 'width' is given twice; keep one"),
        ("mlp:2?width=3&", "unknown option ''"),
        ("mlp:2?bias=maybe", "bias='maybe' is not true or false"),
        ("mlp:2?act=rleu", "act='rleu' is unknown; did you mean 'relu'? (known: relu, gelu, "),
        ("mlp:2?input=3x0", "input='3x0' is not a shape such as 3x32x32"),
        ("cnn:2?kernel=4", "kernel=4: must be odd"),
        ("cnn:2?input=64", "a CNN takes images, not inputs of shape 64; write ?input=CxHxW, as 3x32x32"),
        ("mpl:2_02", "'mpl' is no space (cnn, "),
        ("resnet18", "not a TARGET; write SPACE:CODE, package.module:callable or file.py:callable"),
        ("2_02:x", "not a TARGET; write SPACE:CODE"),
        ("torch.nn:", "nothing is named after the colon"),
    ],
)
def test_malformed_target(text: str, message: str) -> None:
    assert fails(text).startswith(message)


def test_a_malformed_target_is_found_before_anything_is_built() -> None:
    with pytest.raises(TargetError):
        resolve("mlp:2?width=0")
    with pytest.raises(TargetError):
        resolve("cnn:2_2")
    with pytest.raises(TargetError):
        resolve("nowhere.py:build")
    with pytest.raises(TargetError, match="sizes must be at least 1"):
        resolve("mlp:2", input_shape=(3, 0))


def test_near_space_is_suggested() -> None:
    assert fails("mpl:2_02").endswith("; did you mean 'mlp'?")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        (Option("a", "float", "", low=0, high=1), "0.5", 0.5),
        (Option("a", "float", "", low=0, high=1), "1e-3", 0.001),
        (Option("a", "int", "", high=9), "-3", -3),
        (Option("a", "bool", ""), "1", True),
        (Option("a", "bool", ""), "no", False),
        (Option("a", "str", ""), "x=y", "x=y"),
        (Option("a", "shape", ""), "3x32x32", (3, 32, 32)),
    ],
)
def test_option_values(option: Option, text: str, value: object) -> None:
    assert option.parse(text) == value


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        (Option("a", "float", "", low=0, high=1), "1.5", "a=1.5: must be at most 1"),
        (Option("a", "float", ""), "nan", "a='nan' is not a finite number"),
        (Option("a", "float", ""), "much", "a='much' is not a finite number"),
        (Option("a", "int", ""), "1_000", "a='1_000' is not an integer"),
        (Option("a", "str", ""), "", "a='' is not a text"),
        (Option("a", "shape", ""), "3×32", "a='3×32' is not a shape such as 3x32x32"),
    ],
)
def test_option_refusals(option: Option, text: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        option.parse(text)
    assert str(error.value) == message


def test_a_space_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(code: str, options: dict[str, object], setting: Setting) -> Callable[[], tuple[nn.Module, object]]:
        return lambda: (nn.Linear(int(code), setting.classes), (torch.ones(1, int(code)), options))

    monkeypatch.setattr(SPACES, "_entries", {**SPACES._entries})
    SPACES.add("wide")(Space(read, (Option("p", "float", "anything"),)))
    model, inputs = load("wide:5?p=0.5")
    assert model.weight.shape == (10, 5)
    assert inputs[1] == {"p": 0.5}
    with pytest.raises(TargetError, match="space 'wide' cannot be sampled; choose one of cnn, mlp"):
        sample("wide")


# --- sampling ------------------------------------------------------------------------------------------------------


def test_sampled_targets_are_distinct_and_connected() -> None:
    targets = sample(vertices=5, count=40, seed=1)
    assert targets == sample("mlp", 5, 40, 1)
    assert targets != sample("mlp", 5, 40, 2)
    assert len(set(targets)) == 40
    assert all(Dag.parse(target.removeprefix("mlp:")).has_path for target in targets)


def test_sampled_targets_carry_options_and_load() -> None:
    for target in sample("cnn", vertices=4, count=3, width=4, bias=False, kernel=5, input=(2, 6, 6)):
        assert target.endswith("?width=4&bias=false&kernel=5&input=2x6x6")
        model, x = load(target)
        assert model(x).shape == (2, 10)


def test_sampling_may_take_all_but_not_more() -> None:
    connected = {f"mlp:{dag}" for dag in Dag.enumerate(3) if dag.has_path}
    assert set(sample(vertices=3, count=len(connected))) == connected
    with pytest.raises(TargetError, match=f"but only {len(connected)} have a path"):
        sample(vertices=3, count=len(connected) + 1)


def test_sampling_refusals() -> None:
    with pytest.raises(TargetError, match="unknown option 'widht'; did you mean 'width'"):
        sample(widht=3)
    with pytest.raises(TargetError, match="count=0: must be at least 1"):
        sample(count=0)
    with pytest.raises(UnknownNameError, match="did you mean 'mlp'"):
        sample("mpl")


# --- the user's own code -------------------------------------------------------------------------------------------


def test_file_with_module_and_inputs(write: Callable[..., str]) -> None:
    path = write(
        """
        import torch
        def build():
            return torch.nn.Linear(4, 2), {"input": torch.ones(3, 4)}
        """
    )
    model, inputs = load(f"{path}:build")
    assert model(**inputs).shape == (3, 2)
    assert load(f"{path}:build", data=Data())[1].keys() == {"input"}
    again, _ = load(f"{path}:build")
    assert again is not model
    assert same(again, model)
    assert not same(load(f"{path}:build", seed=1)[0], model)


def test_file_with_module_alone_takes_its_inputs_from_a_shape_or_data(write: Callable[..., str]) -> None:
    path = write("import torch\nclass Net(torch.nn.Flatten):\n    pass\n")
    x = torch.randn(4, 3, 4, 4)
    assert load(f"{path}:Net?input=5x6")[1].shape == (2, 5, 6)
    assert load(f"{path}:Net", input_shape=[9])[1].shape == (2, 9)
    assert torch.equal(load(f"{path}:Net", data=Data(x=x))[1], x[:2])
    assert fails(f"{path}:Net") == (
        "the callable returned a module without inputs; return (module, inputs), name the data "
        "(--data, or --recipe with data), or write ?input=SHAPE, as ?input=3x32x32"
    )
    assert fails(f"{path}:Net?width=3").startswith("unknown option 'width' (a callable takes: input)")


def test_relative_file_with_siblings(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("SIZE = 6", "dagscale_test_sibling.py")
    write("LATE = 2", "dagscale_test_late_sibling.py")
    write(
        """
        from dataclasses import dataclass
        import torch
        from dagscale_test_sibling import SIZE
        @dataclass
        class Shape:  # a dataclass looks its module up in sys.modules
            size: int
        class Zoo:
            @staticmethod
            def linear():
                from dagscale_test_late_sibling import LATE
                return torch.nn.Linear(Shape(SIZE).size, LATE)
        """
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    model, _ = load("mine.py:Zoo.linear?input=6")
    assert model.weight.shape == (2, 6)
    assert sys.path == path


def test_an_edited_file_is_read_again(write: Callable[..., str]) -> None:
    text = "import torch\ndef build():\n    return torch.nn.Linear({size}, 1)\n"
    assert load(f"{write(text.format(size=3))}:build?input=3")[0].in_features == 3
    assert load(f"{write(text.format(size=4))}:build?input=4")[0].in_features == 4


def test_two_targets_of_one_file_share_its_classes(write: Callable[..., str]) -> None:
    path = write(
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self): super().__init__(2, 2)\nOther = Net\n"
    )
    assert type(load(f"{path}:Net?input=2")[0]) is type(load(f"{path}:Other?input=2")[0])


def test_user_code_is_seeded_and_leaves_the_random_state_alone(write: Callable[..., str]) -> None:
    path = write(
        """
        import random, numpy, torch
        torch.rand(3)
        def build():
            model = torch.nn.Linear(3, 1)
            return model, (random.random(), numpy.random.rand(), torch.rand(()).item())
        """
    )
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again, other = (load(f"{path}:build", seed=seed)[1] for seed in (5, 5, 6))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_module_and_callable() -> None:
    model, x = load("torch.nn:Flatten?input=2x3")
    assert model(x).shape == (2, 6)


def test_module_of_the_working_directory(
    write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("", "dagscale_test_pkg/__init__.py")
    path = write("import torch\ndef build():\n    return torch.nn.Linear(2, 3 // 0)\n", "dagscale_test_pkg/nets.py")
    monkeypatch.chdir(tmp_path)
    assert fails("dagscale_test_pkg.nets:build") == (
        f"calling build() raised ZeroDivisionError: integer division or modulo by zero ({path}:3)"
    )
    assert fails("dagscale_test_pkg.nest:build").startswith(
        "importing dagscale_test_pkg.nest raised ModuleNotFoundError: No module named 'dagscale_test_pkg.nest'"
    )
    assert fails(
        "dagscale_test_pgk:build"
    ) == f"'dagscale_test_pgk' is no space ({', '.join(SPACES)}) and no module " + ("that can be imported")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def data(): return None", "data returned None: it has to be data, or a function that returns it"),
        ("def data(size): return size", "needs the argument 'size'; give it a default"),
    ],
)
def test_a_function_that_returns_nothing_or_needs_an_argument_is_refused(
    write: Callable[..., str], text: str, message: str
) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        find(f"{write(text)}:data", "data", call=True)


def test_what_is_imported_for_a_recipe_first_is_seeded_too(write: Callable[..., str]) -> None:
    """One file holds both, as is usual, and is imported once."""
    text = """
        import random, torch
        from torch import nn
        SCALE = random.random(), torch.rand(()).item()
        def build(): return nn.Linear(2, 2), torch.full((1, 2), SCALE[0] + SCALE[1])
    """
    found = []
    for name, state in (("one.py", 1), ("two.py", 2)):
        path = write(text, name)
        random.seed(state)
        torch.manual_seed(state)
        before = random.getstate(), torch.get_rng_state()
        scale = find(f"{path}:SCALE", "scale")
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        found.append((scale, load(f"{path}:build")[1][0, 0].item()))
    assert found[0] == found[1]


def test_code_that_raises_at_import(write: Callable[..., str]) -> None:
    path = write("import json\n\njson.loads('{')\n")
    with pytest.raises(TargetError) as error:
        load(f"{path}:build")
    assert isinstance(error.value.__cause__, ValueError)
    assert str(error.value).startswith(
        f"{path}:build: importing mine.py raised JSONDecodeError: Expecting property name"
    )
    assert str(error.value).endswith(f"({path}:3)")
    assert not [name for name in sys.modules if name.startswith("_dagscale_target_mine_") and not sys.modules[name]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def build(:\n", "importing mine.py raised SyntaxError: "),
        ("raise SystemExit(2)\n", "importing mine.py raised SystemExit: 2 ({path}:1); what a script does"),
        (
            "from . import other\n",
            "importing mine.py raised ImportError: attempted relative import with no known parent "
            "package ({path}:1); name it as a module of its package, package.module:name",
        ),
        ("import dagscale_test_absent\n", "importing mine.py raised ModuleNotFoundError: No module named "),
        ("def build():\n    raise KeyError\n", "calling build() raised KeyError ({path}:2)"),
        (
            "def build():\n    raise ValueError('two\\nlines')\n",
            "calling build() raised ValueError: two lines ({path}:2)",
        ),
        (
            "import torch\ndef build():\n    return torch.nn.Linear(-1, 2)\n",
            "calling build() raised RuntimeError: Trying to create tensor with negative dimension",
        ),
        ("def biuld(): pass\n", "mine.py has no 'build'; did you mean 'biuld'?"),
        ("def biuld(): pass\nbuilds = 3\n", "mine.py has no 'build'; did you mean 'biuld'?"),
        ("build = 3\n", "'build' in mine.py is int, not a function or class that builds the module"),
        (
            "import torch\nbuild = torch.nn.ReLU()\n",
            "'build' in mine.py is ReLU, not a function or class that builds the module; "
            "wrap it: def build(): return build",
        ),
        (
            "def build(width, depth=2): pass\n",
            "'build' in mine.py needs the argument 'width'; give it a default, or name a function "
            "without required arguments",
        ),
        ("def build(): return {}\n", "the callable returned dict; return the module, or (module, inputs)"),
        ("def build(): return 1, 2\n", "the callable returned tuple; return the module, or (module, inputs)"),
    ],
)
def test_user_code_that_cannot_serve(write: Callable[..., str], text: str, message: str) -> None:
    path = write(text)
    found = fails(f"{path}:build")
    assert found.startswith(message.format(path=path))
    if " raised " in found:
        assert f"({path}:" in found


def test_the_cause_is_kept(write: Callable[..., str]) -> None:
    with pytest.raises(TargetError) as error:
        load(f"{write('def build(): raise KeyError(7)')}:build")
    assert isinstance(error.value.__cause__, KeyError)


def test_missing_file(tmp_path: Path) -> None:
    assert fails(f"{tmp_path}/absent.py:build") == f"there is no file {tmp_path.resolve()}/absent.py"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mlp:2?width=99999999999", "width=99999999999: must be at most 8192"),
        ("mlp:2?depth=99999999999", "depth=99999999999: must be at most 1000"),
        (f"mlp:2?width={'9' * 500}", "is too long"),
        (f"mlp:{'2_02_' * 2000}2", "characters; 5,000 are the most"),
        ("mlp:2_22_222?width=8192", "over 268,435,456 parameters"),
        ("mlp:2?classes=1000000000", "must be at most 100000"),
        ("mlp:2?input=9999999x9999999", "values in one example"),
        ("resnet:2000000", "is no depth"),
        (f"resnet:{'9' * 500}", "is no depth"),
        ("~nobodyhere/x.py:build", "cannot be read"),
    ],
)
def test_sizes_that_no_machine_holds_are_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        load(text)
    assert message in str(error.value)
    assert len(str(error.value)) < 500


def test_seeds_have_64_bits() -> None:
    load("mlp:2", seed=2**64 - 1)
    with pytest.raises(TargetError, match="64 bits"):
        load("mlp:2", seed=2**64)


def test_counting_what_is_built_leaves_torch_as_it_was() -> None:
    from torch.nn.modules import module

    before = len(module._global_parameter_registration_hooks), len(module._global_module_registration_hooks)
    load("mlp:2")
    with pytest.raises(TargetError):
        load("mlp:2_22_222?width=8192")
    assert (len(module._global_parameter_registration_hooks), len(module._global_module_registration_hooks)) == before
    nn.Linear(2, 2)
