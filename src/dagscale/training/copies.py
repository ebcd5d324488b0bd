"""Copies of a model to train and measure on, while the user's own stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dagscale.errors import CopyError
from dagscale.tracing import forward
from dagscale.tracing.state import State
from dagscale.training.draws import Fill

HALF = (torch.float16, torch.bfloat16)


class WorkingCopy:
    """A model to train and measure on, that can be put back to the user's values at any time.

    It is a deep copy of the user's model, where that is seen to be a model of its own: its forward reads none of the
    original's tensors, and all of its own that gradients reach. Where it is not (a wrapped or compiled forward, hooks
    that close over the original, tensors that cannot be copied), the user's model itself is borrowed, and given back to
    the bit by `give_back`.

    Args:
        model: the user's.
        run: one forward of a model that it is given, by which the copy is seen to be independent; None to trust it.
        float32: whether half precision becomes float32: squares of signals and small steps need more digits than
            bfloat16 has, and more range than float16 has.

    Raises:
        CopyError: if the model can be neither copied nor borrowed.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[nn.Module], Any] | None = None, *, float32: bool = False
    ) -> None:
        original = forward.unwrapped(model)
        half = any(t.dtype in HALF for t in (*original.parameters(), *original.buffers()))
        self.borrowed = False
        self.why = ""
        try:
            self.model = copy.deepcopy(original)
        except Exception as error:
            self.why = f"copy.deepcopy raised {type(error).__name__}"
        else:
            self.why = _dependence(original, self.model, run)
        if self.why:
            if half and float32:
                raise CopyError(
                    f"the model cannot be copied ({self.why}) and is in half precision, which is measured on a copy in "
                    "float32: give it in float32"
                )
            self.model, self.borrowed = original, True
        elif half and float32:
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                if tensor.dtype in HALF:
                    tensor.data = tensor.data.float()
        self._state = _State(self.model)
        self.parameters = {n: p for n, p in forward.plain_parameters(self.model).items() if p.requires_grad}

    def reset(self, fills: Mapping[str, Fill] | None = None, seed: int = 0, *, train: bool = True) -> nn.Module:
        """The model with the user's values, then drawn anew as ``fills`` say, without gradients; in train mode, or in
        the user's own modes."""
        self._state.restore()
        if fills:
            apply_fills(self.model, fills, seed)
        if train:
            self.model.train()
        self.model.zero_grad(set_to_none=True)
        return self.model

    def give_back(self) -> None:
        """Put everything back where the user's model itself was borrowed."""
        if self.borrowed:
            self._state.restore()


class _State:
    """All that a training run changes in a model: values, gradients, and whatever else its code keeps."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = [(t, t.detach().clone(), t.grad) for t in _held(model)]
        self.rest = State(*model.modules())

    def restore(self) -> None:
        self.rest.restore()
        with torch.no_grad():
            for tensor, value, gradient in self.tensors:
                if tensor.shape != value.shape or tensor.dtype != value.dtype:
                    tensor.data = value.clone()
                else:
                    tensor.copy_(value)
                tensor.grad = gradient


def _held(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors kept as plain attributes, each once."""
    found: dict[int, Tensor] = {}
    for tensor in forward.held_tensors(model):
        if not tensor.is_meta and tensor.is_leaf:
            found.setdefault(id(tensor), tensor)
    return list(found.values())


def _dependence(original: nn.Module, made: nn.Module, run: Callable[[nn.Module], Any] | None) -> str:
    """Why a copy is no model of its own; empty if it is one."""
    theirs = {_key(t) for t in forward.held_tensors(original)} - {0}
    own = [t for t in forward.held_tensors(made) if _key(t) in theirs]
    if own:
        return "its copy shares tensors with it"
    if len({id(p) for p in made.parameters()}) != len({id(p) for p in original.parameters()}):
        return "its copy has other parameters"
    ties = len({_place(p) for p in original.parameters()})
    if len({_place(p) for p in made.parameters()}) != ties:
        return "two of its parameters share their values, and those of its copy do not"
    if run is None or any(t.is_meta for t in original.parameters()):
        return ""
    before = _State(made)
    used = _Used(theirs)
    with forward.unchanged_random_state(), torch.no_grad(), forward.eagerly(), used:
        run(made)
    before.restore()
    return "its copy's forward uses the original's tensors" if used.found else ""


class _Used(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operator is given a tensor of certain storages."""

    def __init__(self, storages: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages, self.found = storages, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.found:
            given = tree_leaves((args, kwargs))
            self.found = any(isinstance(t, Tensor) and _key(t) in self.storages for t in given)
        return func(*args, **(kwargs or {}))


def _key(tensor: Tensor) -> int:
    """Its storage; 0 where it has none of its own, or an empty one."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() and storage._cdata
    except (NotImplementedError, RuntimeError):
        return 0


def _place(tensor: Tensor) -> Any:
    """Where its values lie."""
    key = _key(tensor)
    return (key, tensor.storage_offset()) if key else id(tensor)


def apply_fills(model: nn.Module, fills: Mapping[str, Fill], seed: int) -> None:
    """Draw the trainable parameters that ``fills`` names; an embedding's padding row is 0."""
    padding = padding_rows(model)
    with torch.no_grad():
        for name, parameter in forward.plain_parameters(model).items():
            fill = fills.get(name)
            if fill is not None and parameter.requires_grad:
                parameter.copy_(fill.draw(name, tuple(parameter.shape), seed))
                if id(parameter) in padding:
                    parameter[padding[id(parameter)]] = 0


def padding_rows(model: nn.Module) -> dict[int, int]:
    """``id(weight)`` → the row of an embedding that stands for padding: it stays 0, as PyTorch makes it."""
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    return {id(m.weight): m.padding_idx for m in embeddings if m.padding_idx is not None}


@contextmanager
def working(copied: WorkingCopy) -> Iterator[WorkingCopy]:
    """The copy, given back on leaving, whatever happens."""
    try:
        yield copied
    finally:
        copied.give_back()
