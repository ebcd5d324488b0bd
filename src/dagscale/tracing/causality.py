"""Whether attention sees what comes later: read from a forward that is really run, masks and all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dagscale.tracing._torch import TorchDispatchMode, storage_key

_CONTRACTIONS = frozenset({"aten::bmm", "aten::baddbmm", "aten::mm"})
"""What a product of queries and keys comes to, once PyTorch has taken it apart."""

Names = frozenset[str]
NOBODY: Names = frozenset()


class Attended(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows some tensors through a forward, to the self-attention that they reach.

    It is self-attention where queries and keys are both made from a tensor, and are equally many. There, ``causal``
    says of the tensor's name whether every one is causal: no query sees a key that stands later. A tensor that reaches
    none is not in it. What is known by a mask's values and by weights that are exactly 0 holds for fused operators, for
    a softmax between two products, and however a mask is made.

    Args:
        tensors: by name, as the forward will use them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.causal: dict[str, bool] = {}
        self._from: dict[int, Names] = {storage_key(t): frozenset({name}) for name, t in tensors.items()}
        self._tables = frozenset(self._from)
        self._stages: dict[int, str | None] = {}  # storage → whether it holds attention's scores or its weights

    supports_higher_order_operators = True

    @classmethod
    def is_infra_mode(cls) -> bool:
        """As `dagscale.tracing.calls.LayerCalls`: compiled parts of the model stay compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from dagscale.tracing.recorder import tensors_in

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not hasattr(func, "_schema"):  # control flow and the like, which is given functions
            return out
        name: str = func._schema.name
        given = [storage_key(t) for t in tensors_in([*args, *kwargs.values()])]
        meeting = [names for key in given if (names := self._from.get(key, NOBODY))]
        names = NOBODY.union(*meeting)
        stage = next((found for key in given if (found := self._stages.get(key))), None)
        results = list(tensors_in(out))
        if name in _CONTRACTIONS and len(meeting) > 1:
            names, stage = frozenset.intersection(*meeting), None if stage == "weights" else "scores"
        elif "dot_product" in name and "attention" in name and "backward" not in name:
            named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
            queries, keys = (self._from.get(storage_key(named[a]), NOBODY) for a in ("query", "key"))
            self._met(queries & keys, lambda: _sees_no_later(func, named))
        elif "softmax" in name and stage == "scores" and "backward" not in name:
            by_key = args[1] % results[0].ndim == results[0].ndim - 1
            self._met(names, lambda: _is_lower(results[0] if by_key else results[0].transpose(-1, -2)))
            stage = "weights"
        elif name == "aten::embedding" and storage_key(args[0]) in self._tables and not _differs(results[0]):
            names = NOBODY  # one row for all of them, such as that of a token's type: it tells none apart
        for tensor in results:
            key = storage_key(tensor)
            if key and key not in self._tables:
                self._from[key] = names | (self._from.get(key, NOBODY) if key in given else NOBODY)
                self._stages[key] = stage
        return out

    def _met(self, names: Names, causal: Callable[[], bool | None]) -> None:
        found = causal() if names else None
        if found is not None:
            for name in names:
                self.causal[name] = found and self.causal.get(name, True)


def _is_lower(weights: Tensor) -> bool | None:
    """Whether a square of attention's weights, query by key, has only zeros above its diagonal; None if it is none."""
    if weights.ndim < 2 or weights.shape[-1] != weights.shape[-2] or weights.shape[-1] < 2:
        return None
    return not bool(weights.triu(1).any())


def _sees_no_later(func: Any, named: Mapping[str, Any]) -> bool | None:
    """Whether no query of a fused operator sees a later key; None where there are not as many of both.

    Values that are 1 from some key on and 0 before it come out as 0 for all earlier queries.
    """
    length = named["key"].shape[-2]
    if named["query"].shape[-2] != length or length < 2:
        return None
    for first in {1, length // 2, length - 1}:
        marked = torch.zeros_like(named["value"])
        marked[..., first:, :] = 1
        found = func(**{**named, "value": marked})
        if bool((found[0] if isinstance(found, tuple) else found)[..., :first, :].any()):
            return False
    return True


def _differs(rows: Tensor) -> bool:
    """Whether not all rows are the same."""
    flat = rows.detach().reshape(-1, rows.shape[-1])
    return len(flat) > 0 and bool((flat != flat[0]).any())
