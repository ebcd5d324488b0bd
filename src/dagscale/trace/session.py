"""Runs a model's forward under the recorder and leaves the model exactly as it was."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from dagscale.errors import ForwardError, TraceError
from dagscale.trace.recorder import Recorder, module_names


def bind_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for ``model``.

    A tuple or list holds positional arguments; a mapping whose keys are the forward's parameter names holds
    keyword arguments; anything else, another mapping included, is the one positional argument.

    Raises:
        TraceError: if the forward does not take such arguments.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        signature = None
    if isinstance(example_inputs, Mapping):
        args = (example_inputs,)
        if signature is not None and all(isinstance(k, str) for k in example_inputs):
            try:
                signature.bind(**example_inputs)
            except TypeError:
                pass
            else:
                args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, (tuple, list)):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TraceError(
                f"the inputs do not fit {type(model).__name__}.forward{signature}: {error}; give a tensor, "
                "a tuple of positional arguments or a dict of keyword arguments"
            ) from None
    return args, kwargs


def check_devices(model: nn.Module, inputs: Any) -> None:
    """One clear error where the inputs lie on another device than the whole model.

    Raises:
        TraceError: naming the input, both devices and the mend.
    """
    devices = {p.device for p in model.parameters()} | {b.device for b in model.buffers()}
    if len(devices) != 1:
        return
    device = next(iter(devices))
    for i, leaf in enumerate(tree_leaves(inputs)):
        if isinstance(leaf, Tensor) and leaf.device != device and leaf.dim() > 0:
            raise TraceError(
                f"input {i} is on {leaf.device} and the model on {device}: move it with .to({str(device)!r})"
            )


@contextmanager
def unchanged_modules(model: nn.Module) -> Iterator[None]:
    """Put every module's attributes, containers in them and training flags back on leaving."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    containers = [
        (value, value.copy())
        for _, attributes in before
        for value in attributes.values()
        if isinstance(value, (dict, list, set)) and len(value) < _LARGE
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            _restore(vars(module), attributes)
        for value, copy in containers:
            _restore(value, copy)


_LARGE = 10_000
"""Containers of more items than this are the user's data, not a module's bookkeeping."""


def _restore(value: Any, copy: Any) -> None:
    """Make the dict, list or set ``value`` hold what ``copy`` holds, untouched if it does already."""
    if isinstance(value, dict):
        if value.keys() != copy.keys() or any(value[k] is not v for k, v in copy.items()):
            value.clear()
            value.update(copy)
    elif isinstance(value, list):
        if len(value) != len(copy) or any(a is not b for a, b in zip(value, copy, strict=True)):
            value[:] = copy
    elif value != copy:
        value.clear()
        value.update(copy)


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Put Python's, NumPy's and every torch device's random state back on leaving."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def copy_on_write(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Save a parameter or buffer before the forward first writes to it, and put it back on leaving."""
    owned: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        owned.setdefault(recorder.memory.key(tensor), tensor)
    saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def save(tensor: Tensor) -> None:
        key = recorder.memory.key(tensor)
        if key in owned and key not in saved:
            storage = owned[key].untyped_storage()
            with torch._C._DisableTorchDispatch():
                saved[key] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    recorder.on_write = save
    try:
        yield
    finally:
        recorder.on_write = None
        for storage, copy in saved.values():
            storage.copy_(copy)


@contextmanager
def module_paths(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Keep ``recorder.path`` at the qualified name of the module that runs, by global hooks."""
    names = module_names(model)
    path = recorder.path

    def enter(module: nn.Module, inputs: Any) -> None:
        path.append(names.get(id(module), path[-1] if path else ""))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if path:
            path.pop()

    with ExitStack() as stack:
        for handle in (
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ):
            stack.callback(handle.remove)
        yield


@contextmanager
def plain_eager() -> Iterator[None]:
    """Gradients on, attention and recurrence as plain arithmetic, compiled submodules run eagerly."""
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]))
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
        torch._C._set_mkldnn_enabled(False)
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def named_leaves(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Tensor]]:
    """The tensors among the inputs with a name each: ``input`` if there is one, else as the forward calls them."""
    named: dict[str, Any] = {f"input {i}": value for i, value in enumerate(args)} | kwargs
    with suppress(TypeError, ValueError):
        named = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    leaves = [leaf for name, value in named.items() for leaf in _leaves(name, value)]
    return [("input", leaves[0][1])] if len(leaves) == 1 else leaves


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}.{i}", item)
    else:
        for i, leaf in enumerate(tree_leaves(value)):
            if isinstance(leaf, Tensor):
                yield f"{name}.{i}", leaf


def materialised(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """``model`` itself, or a copy that ran once if some of its parameters have no shape yet (lazy modules)."""
    from torch.nn.parameter import is_lazy

    if not any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return model
    copy = deepcopy(model)
    args, kwargs = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs))
    with unchanged_random_state(), torch.no_grad():
        copy(*args, **kwargs)
    return copy


def output_tensors(value: Any) -> list[Tensor]:
    """The tensors in whatever a forward returned: nested containers, dataclasses, mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in output_tensors(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in output_tensors(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for name in value.__dataclass_fields__ for t in output_tensors(getattr(value, name))]
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]


Record = tuple[Recorder, list[int]]
"""A finished recorder and the nodes of the outputs."""


def run_fake(model: nn.Module, args: Any, kwargs: Any, select: Callable[[Any], Any]) -> Record:
    """The forward on fake tensors: shapes and dependencies without arithmetic or memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = Recorder()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    stand_ins = {id(t): fake.from_tensor(t) for t in (*model.parameters(), *model.buffers())}
    for name, parameter in model.named_parameters():
        recorder.add_parameter(name, parameter, stand_ins[id(parameter)])
    args, kwargs = tree_map(lambda t: fake.from_tensor(t) if isinstance(t, Tensor) else t, (args, kwargs))
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    with unchanged_modules(model), unchanged_random_state(), module_paths(recorder, model), plain_eager():
        for module in model.modules():
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for table in tables:
                for name, tensor in table.items():
                    table[name] = stand_ins.get(id(tensor), tensor)
        with copy_on_write(recorder, model), fake, recorder:
            outputs = output_tensors(select(model(*args, **kwargs)))
    return recorder, [n for t in outputs if (n := recorder.memory.read(t)) is not None]


def run_real(model: nn.Module, args: Any, kwargs: Any, select: Callable[[Any], Any]) -> Record:
    """The forward for real, for models whose control flow looks at values; only the branch taken is seen."""
    recorder = Recorder()
    for name, parameter in model.named_parameters():
        recorder.add_parameter(name, parameter)
    args, kwargs = tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, (args, kwargs))
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    with unchanged_modules(model), unchanged_random_state(), module_paths(recorder, model), plain_eager():
        with copy_on_write(recorder, model), recorder:
            outputs = output_tensors(select(model(*args, **kwargs)))
    return recorder, [n for t in outputs if (n := recorder.memory.read(t)) is not None]


def forward_error(model: nn.Module, error: Exception, inputs: Any) -> ForwardError:
    """The user's own exception, told in one line with the place it came from."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename.replace("\\", "/") and "/dagscale/trace/" not in f.filename]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    text = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    integer = any(
        isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()
        for leaf in tree_leaves(inputs)
    )
    hint = (
        "; the inputs hold integers: give floating-point values (x.float()) unless they feed an embedding"
        if integer and "type" in text
        else ""
    )
    return ForwardError(f"the forward of {type(model).__name__} raised {type(error).__name__}: {text}{where}{hint}")
