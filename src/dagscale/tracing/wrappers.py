"""Looks through what compiling, parallelism, checkpointing and sharding wrap around a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def named_parameters(model: nn.Module, *, tied: bool = False) -> Iterator[tuple[str, nn.Parameter]]:
    """All parameters by their qualified names, whatever the model's class has made of ``named_parameters``.

    Args:
        tied: whether a parameter comes under each of its names, or under the first alone.
    """
    return nn.Module.named_parameters(model, remove_duplicate=not tied)


def without_gradients(model: nn.Module) -> None:
    """Let go of the gradients, whatever the model's class has made of ``zero_grad``."""
    for _, parameter in named_parameters(model):
        parameter.grad = None


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel``, ``AveragedModel`` and
    Lightning's Fabric."""
    wrappers: tuple[type, ...] = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while True:
        children = dict(model.named_children())
        inner = children.get("module" if isinstance(model, wrappers) else "_orig_mod") or children.get(FABRIC)
        if inner is None:
            return model
        model = inner


def plain_name(name: str) -> str:
    """A qualified name without what compiling, checkpointing or sharding a part of the model put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


FABRIC = "_forward_module"
"""Where Lightning's Fabric keeps the module that it runs."""

_WRAPPED = frozenset({"_orig_mod", FABRIC, "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their plain names, as a graph has them; tied ones once."""
    return {plain_name(name): parameter for name, parameter in named_parameters(unwrapped(model))}


def known_names(names: Iterable[str], model: nn.Module | None) -> dict[str, str]:
    """Every name that the parameters ``names`` go by in the model, those of tied ones too → the one in ``names``."""
    known = {name: name for name in names}
    if model is None:
        return known
    every = [(plain_name(name), id(p)) for name, p in named_parameters(unwrapped(model), tied=True)]
    first = {key: name for name, key in reversed(every) if name in known}
    return known | {name: first[key] for name, key in every if key in first}


def meant(known: Mapping[str, str], pattern: str) -> set[str]:
    """The parameters of `known_names` that a name, a module that they lie in, or a glob pattern means."""
    return {p for n, p in known.items() if n == pattern or n.startswith(f"{pattern}.") or fnmatchcase(n, pattern)}


def module_names(model: nn.Module) -> dict[int, str]:
    """``id(module)`` → its first qualified name."""
    return {id(module): plain_name(name) for name, module in reversed(list(model.named_modules()))}


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a ``DTensor``: a shard here, with the whole's shape."""
    return hasattr(tensor, "full_tensor")


def placed_like(whole: Tensor, tensor: Tensor) -> Tensor:
    """``whole``, cut up as ``tensor`` is if that is a shard; every process holds the same ``whole``."""
    if not is_sharded(tensor):
        return whole
    try:
        from torch.distributed.tensor import distribute_tensor
    except ImportError:  # before torch 2.5
        from torch.distributed._tensor import distribute_tensor  # type: ignore[attr-defined]

    shard: Any = tensor
    whole = whole.to(device=shard.device, dtype=shard.dtype)
    return distribute_tensor(whole, shard.device_mesh, shard.placements)


def without_sharding(model: nn.Module) -> None:
    """Take off the hooks by which FSDP gathers and frees parameters. Whoever calls this puts them back."""
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
