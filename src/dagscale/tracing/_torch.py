"""Everything private of PyTorch that tracing stands on, in one place: what to look at when a new release breaks it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import UnsupportedOperatorException as UnsupportedOperator
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import UninitializedBuffer, is_lazy
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from dagscale.shown import said

__all__ = [
    "DEVICE_OF",
    "FakeTensor",
    "StorageWeakRef",
    "TorchDispatchMode",
    "UnsupportedOperator",
    "apply_code",
    "by_python",
    "constant_of",
    "deep_copy",
    "device_of",
    "fake_mode",
    "gradient_taken",
    "is_fake",
    "is_lazy",
    "is_plain",
    "leaf_of",
    "module_hooks",
    "needs_values",
    "plain_arithmetic",
    "storage_key",
    "tree_leaves",
    "tree_map",
    "unseen",
    "without_formula",
]

DEVICE_OF = torch.ops.prim.device.default
"""The operator that asks a tensor for its device: by far the commonest under a mode."""


def gradient_taken() -> int | None:
    """The number of the gradient that autograd is working out now, as in a forward that differentiates a potential;
    None outside of any."""
    task: int = torch._C._current_graph_task_id()
    return None if task == -1 else task


# --- fake tensors -----------------------------------------------------------------------------------------


def fake_mode() -> Any:
    """A new mode under which operators compute shapes alone, and real tensors met on the way are taken as fake."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: object, mode: Any = None) -> bool:
    """Whether ``value`` is a fake tensor, of ``mode`` if one is given; asks no user's ``__class__``."""
    return issubclass(type(value), FakeTensor) and (mode is None or getattr(value, "fake_mode", None) is mode)


def device_of(tensor: Any) -> torch.device:
    """The device that a fake tensor stands for."""
    found: torch.device = tensor.fake_device
    return found


def constant_of(value: object) -> float | None:
    """The number that a plain tensor of one entry holds, a fake one of a literal too; None where nobody knows."""
    if not isinstance(value, Tensor):
        return None
    held = value.constant if is_fake(value) else value  # type: ignore[attr-defined]
    if type(held) is not Tensor or held.numel() != 1 or held.is_meta or held.is_complex():
        return None
    with _disable_current_modes():
        return float(held.detach().item())


def needs_values(error: BaseException) -> bool:
    """Whether a forward on fake or meta tensors failed because it looked at values."""
    text = said(error)
    return type(error).__name__ in _VALUE_ERRORS or "meta tensor" in text or "aten::_local_scalar_dense" in text


_VALUE_ERRORS = frozenset(
    {"DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependentSymNode"}
)


# --- storages and tensors ---------------------------------------------------------------------------------


def storage_key(tensor: Tensor) -> int:
    """Identifies the storage that ``tensor`` shows; 0 if it has none, as sparse ones."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def put_storage(storage: torch.UntypedStorage, values: torch.UntypedStorage) -> None:
    """Write a storage's earlier values back, and its earlier length where somebody has resized it."""
    if storage.nbytes() != values.nbytes():
        storage.resize_(values.nbytes())
    storage.copy_(values)


def is_plain(tensor: Tensor) -> bool:
    """Whether it is laid out in memory as an ordinary tensor: no subclass of its own making, as nested ones."""
    return type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model that may be lazy: buffers without a shape, which PyTorch cannot copy, are made anew."""
    memo: dict[int, object] = {}
    for buffer in model.buffers():
        if is_lazy(buffer):
            memo[id(buffer)] = UninitializedBuffer(device=buffer.device, dtype=buffer.dtype)  # type: ignore[call-arg]
    return deepcopy(model, memo)


def unseen() -> AbstractContextManager[Any]:
    """What runs inside is seen by no dispatch mode."""
    mode: AbstractContextManager[Any] = torch._C._DisableTorchDispatch()
    return mode


# --- autograd ---------------------------------------------------------------------------------------------


def apply_code() -> CodeType:
    """The code of ``autograd.Function.apply``: a frame that runs it is inside a custom function."""
    code: CodeType = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
    return code


def by_python(node: object) -> bool:
    """Whether an autograd node's backward is a custom ``autograd.Function``'s."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)


def without_formula(node: object) -> bool:
    """Whether it stands for an operator of ``torch.library``, whose backward may be missing and then raises."""
    return type(node).__name__.startswith("GeneratedBackwardFor_")


def leaf_of(node: object) -> Tensor | None:
    """The tensor that an autograd node collects the gradient of, if it is one of those that do."""
    return getattr(node, "variable", None)


# --- process-wide state -----------------------------------------------------------------------------------


_FUSED = (
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    (torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    # what NNPACK works in is several times a layer's weights, and stays allocated
    (torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled),
)
"""Of each switch of fused kernels, how it is read and how it is turned."""


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Attention, recurrence and convolution without fused kernels whose choice depends on the device."""
    with ExitStack() as stack:
        stack.enter_context(torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]))
        for read, turn in _FUSED:
            stack.callback(turn, read())
            turn(False)
        log = logging.getLogger("torch._subclasses.fake_tensor")  # it prints what we report
        stack.callback(setattr, log, "disabled", log.disabled)
        log.disabled = True
        stack.enter_context(_unwarned("Using `torch.compile.module.` when there are global hooks"))
        yield


@contextmanager
def _unwarned(message: str) -> Iterator[None]:
    """Without warnings that begin so, and, unlike under ``warnings.catch_warnings``, with each of the user's own shown
    once: that makes Python forget which it has shown, at every forward anew."""
    before = warnings.filters
    warnings.filters = [("ignore", re.compile(message), Warning, None, 0), *before]
    try:
        yield
    finally:
        warnings.filters = before


@contextmanager
def as_in_training() -> Iterator[None]:
    """With gradients, on devices that have values, and in the model's own type, whatever the program around has set:
    ``no_grad``, inference mode, autocast (whose cache would hide changes of weights), or ``meta`` by default."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def module_hooks(enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """``enter(module, inputs)`` and ``leave(module, inputs, output)`` around every module's forward."""
    with ExitStack() as stack:
        stack.callback(nn.modules.module.register_module_forward_pre_hook(enter).remove)
        stack.callback(nn.modules.module.register_module_forward_hook(leave, always_call=True).remove)
        yield
