"""Runs a model's forward under the recorder and leaves the model exactly as it was."""

from __future__ import annotations

import inspect
import logging
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from copy import deepcopy
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import UnsupportedOperatorException as UnsupportedOperator
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from dagscale.errors import ForwardError, TraceError
from dagscale.tracing.recorder import Recorder, module_names


def bind_inputs(model: nn.Module, example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for ``model``.

    A tuple or list holds positional arguments; a mapping whose keys are the forward's parameter names holds
    keyword arguments; anything else, another mapping included, is the one positional argument.

    Raises:
        TraceError: if the forward does not take such arguments, or there is no tensor among them.
    """
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    if not isinstance(model, nn.Module):
        raise TraceError(f"{type(model).__name__} is not a torch.nn.Module: give the model itself")
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
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
        raise TraceError("there is no tensor among the inputs: give the model's example inputs, as torch tensors")
    return args, kwargs


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    wrappers: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, wrappers):
            inner = model._modules["module"]
        if inner is None:
            return model
        model = inner


def plain_name(name: str) -> str:
    """A qualified name without what compiling, checkpointing or sharding a part of the model put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their plain names, as a graph has them; tied ones once."""
    return {plain_name(name): parameter for name, parameter in unwrapped(model).named_parameters()}


def eagerly() -> AbstractContextManager[object]:
    """Compiled parts of a model run eagerly inside, where torch can be told so."""
    return torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()


_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``: a shard here, with the whole's shape."""
    return hasattr(tensor, "full_tensor")


def placed_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """``whole``, cut up as ``tensor`` is if that is a shard; every process holds the same ``whole``."""
    if not is_sharded(tensor):
        return whole
    from torch.distributed.tensor import distribute_tensor

    shard: Any = tensor
    whole = whole.to(device=shard.device, dtype=shard.dtype)
    return distribute_tensor(whole, shard.device_mesh, shard.placements)


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


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules keep as plain attributes or in lists, tuples and dicts."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)) and name not in ("_parameters", "_buffers", "_modules"):
                items = list(value.values()) if isinstance(value, dict) else value
                yield from (item for item in items if isinstance(item, Tensor))


@contextmanager
def unchanged_values(recorder: Recorder, model: nn.Module, at_once: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put the values of all tensors that the model holds back on leaving.

    They are saved before the forward first writes to them, those ``at_once`` before it starts.
    """
    owned: dict[int, Tensor] = {}
    for tensor in filterfalse(is_sharded, held_tensors(model)):
        owned.setdefault(recorder.memory.key(tensor), tensor)
    saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def save(tensor: Tensor) -> None:
        key = recorder.memory.key(tensor)
        if key in owned and key not in saved:
            storage = owned[key].untyped_storage()
            with torch._C._DisableTorchDispatch():
                saved[key] = (storage, storage.clone())  # type: ignore[no-untyped-call]

    for tensor in at_once:
        save(tensor)
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
    names = {module: plain_name(name) for module, name in module_names(model).items()}
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
        log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints what we report
        stack.callback(setattr, log, "disabled", log.disabled)
        log.disabled = True
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Using `torch.compile.module.` when there are global hooks")
        stack.enter_context(eagerly())
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


def copied(inputs: Any, stand_in: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    """``inputs`` with a tensor of its own for each place, so that a tensor given twice is two inputs."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return stand_in(value).detach().clone().requires_grad_(value.requires_grad)

    return tree_map(copy, inputs)


def materialised(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
    """``model`` itself, or a copy that ran once if some of its parameters have no shape yet (lazy modules)."""
    from torch.nn.parameter import is_lazy

    if not any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        return model
    copy = deepcopy(model)
    args, kwargs = copied((args, kwargs))
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


def run_fake(
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Callable[[Any], Any],
) -> list[int]:
    """The forward on fake tensors: shapes and dependencies without arithmetic or memory.

    Returns:
        The nodes of the outputs.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    buffers = list(model.buffers())
    stand_ins = {id(t): _stand_in(t, fake) for t in (*parameters.values(), *buffers)}
    for name, parameter in parameters.items():
        versions = [] if is_sharded(parameter) else [parameter]
        recorder.add_parameter(name, *versions, stand_ins[id(parameter)])
    with fake:
        args, kwargs = copied((args, kwargs), fake.from_tensor)
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    with undisturbed(recorder, model):
        if any(is_sharded(p) for p in parameters.values()):
            without_sharding(model)
        for module in model.modules():
            tables: list[dict[str, Any]] = [module._parameters, module._buffers]
            for table in tables:
                for name, tensor in table.items():
                    table[name] = stand_ins.get(id(tensor), tensor)
        with unchanged_values(recorder, model), fake, recorder:
            return _output_nodes(recorder, model(*args, **kwargs), select)


def _stand_in(tensor: Tensor, fake: Any) -> Any:
    """A fake tensor for it; for a shard, one of the whole's shape."""
    if not is_sharded(tensor):
        return fake.from_tensor(tensor)
    with fake:
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return nn.Parameter(whole, requires_grad=tensor.requires_grad)


def without_sharding(model: nn.Module) -> None:
    """Take off the hooks by which FSDP gathers and frees parameters; :func:`unchanged_modules` puts them back."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if _origin(hook).startswith("torch.distributed."):
                    del hooks[key]


def _origin(hook: Any) -> str:
    """The module that a hook's code is from."""
    hook = getattr(hook, "func", hook)
    owner = getattr(hook, "__self__", None)
    return str(type(owner).__module__ if owner is not None else getattr(hook, "__module__", ""))


def run_real(
    recorder: Recorder,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    args: Any,
    kwargs: Any,
    select: Callable[[Any], Any],
) -> list[int]:
    """The forward for real, for models whose control flow looks at values; only the branch taken is seen.

    Returns:
        The nodes of the outputs.
    """
    for name, parameter in parameters.items():
        recorder.add_parameter(name, parameter)
    args, kwargs = copied((args, kwargs))
    for name, leaf in named_leaves(model, args, kwargs):
        recorder.add_input(leaf, name)
    # Batch norm's schema does not own up to writing its running statistics, so that buffers are saved beforehand.
    with unchanged_values(recorder, model, model.buffers()), undisturbed(recorder, model), recorder:
        return _output_nodes(recorder, model(*args, **kwargs), select)


@contextmanager
def undisturbed(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Everything around the forward that makes it plain to record and leaves no trace of its own."""
    with unchanged_modules(model), unchanged_random_state():
        with module_paths(recorder, model), plain_eager():
            yield


def _output_nodes(recorder: Recorder, value: Any, select: Callable[[Any], Any]) -> list[int]:
    recorder.finished = True
    try:
        chosen = select(value)
    except Exception as error:
        raise TraceError(
            f"select raised {type(error).__name__}: {_first_line(error)}, on the forward's {type(value).__name__}"
        ) from error
    tensors = output_tensors(chosen)
    if not tensors:
        raise TraceError(
            f"the forward returned no tensor but {type(chosen).__name__}: return what is to count as output, as a "
            "tensor or in tuples, lists, dicts and dataclasses"
        )
    return [n for t in tensors if (n := recorder.memory.read(t)) is not None]


def forward_error(model: nn.Module, recorder: Recorder | None, error: Exception, inputs: Any) -> ForwardError:
    """The user's own exception, told in one line with the operator, the module and the line it came from."""
    place = _place(recorder, error)
    name = type(model).__name__
    if _needs_values(error) and any(p.is_meta for p in model.parameters()):
        return ForwardError(
            f"the forward of {name} looks at values, which a model on meta does not have{place}: give it storage "
            "with model.to_empty(device='cpu') and initialise it, then trace"
        )
    text = _first_line(error)
    integer = any(
        isinstance(leaf, Tensor) and not leaf.is_floating_point() and not leaf.is_complex()
        for leaf in tree_leaves(inputs)
    )
    if any(p.is_meta for p in model.parameters()) and isinstance(error, (NotImplementedError, UnsupportedOperator)):
        return ForwardError(
            f"the forward of {name} cannot run on meta: {text}{place}; give the operator a fake implementation "
            "(torch.library.register_fake), or the model storage: model.to_empty(device='cpu')"
        )
    hint = (
        "; the inputs hold integers: give floating-point values (x.float()) unless they feed an embedding"
        if integer and "type" in text
        else "; batch statistics need more: give 2 examples or more, and a batch size of 2 or more"
        if "more than 1 value per channel" in text
        else ""
    )
    return ForwardError(f"the forward of {name} raised {type(error).__name__}: {text}{place}{hint}")


def looks_at_values(error: Exception) -> str:
    """The note on a forward that could not be run on fake tensors."""
    if _needs_values(error):
        return f"the forward looks at values ({_first_line(error)}): run for real, only the branch taken was seen"
    return (
        f"the forward does not run on fake tensors ({type(error).__name__}: {_first_line(error)}): run for real, "
        "only the branch taken was seen"
    )


def _needs_values(error: Exception) -> bool:
    text = str(error)
    return type(error).__name__ in _VALUE_ERRORS or "meta tensor" in text or "aten::_local_scalar_dense" in text


_VALUE_ERRORS = frozenset(
    {"DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependentSymNode"}
)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else "no message"


def _place(recorder: Recorder | None, error: Exception) -> str:
    """`` (operator in 'module', file:line)`` of the user's line that the exception came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _is_the_users(Path(f.filename))]
    parts = []
    if recorder is not None and recorder.failed is not None and not recorder.finished:
        operator, module = recorder.failed
        parts.append(f"{operator} in {module!r}" if module else operator)
    if own:
        parts.append(f"{own[-1].filename}:{own[-1].lineno}")
    return f" ({', '.join(parts)})" if parts else ""


def _is_the_users(file: Path) -> bool:
    """Whether code of this file is the user's: neither torch's, nor Python's own contexts, nor this package's.

    The models that dagscale builds from a TARGET count as the user's.
    """
    package = Path(__file__).parent.parent
    own = package in file.parents and package / "models" not in file.parents
    return not own and file.name != "contextlib.py" and Path(torch.__file__).parent not in file.parents
