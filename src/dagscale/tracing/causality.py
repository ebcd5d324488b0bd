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
        self._scores: set[int] = set()

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
        scores = any(key in self._scores for key in given)
        results = list(tensors_in(out))
        if name in _CONTRACTIONS:
            scores = len(meeting) > 1
            names = NOBODY if not meeting else frozenset.intersection(*meeting) if scores else names
        elif "dot_product" in name and "attention" in name and "backward" not in name:
            queries, keys = (self._from.get(storage_key(t), NOBODY) for t in args[:2])
            self._met(queries & keys, lambda: _sees_no_later(func, args, kwargs))
        elif "softmax" in name and scores and "backward" not in name:
            self._met(names, lambda: _is_lower(results[0]))
        elif name == "aten::embedding" and storage_key(args[0]) in self._tables and not _differs(results[0]):
            names = NOBODY  # one row for all of them, such as that of a token's type: it tells none apart
        for tensor in results:
            key = storage_key(tensor)
            if key in self._tables:
                continue
            self._from[key] = names | (self._from.get(key, NOBODY) if key in given else NOBODY)
            (self._scores.add if scores else self._scores.discard)(key)
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


def _sees_no_later(func: Any, args: Any, kwargs: Any) -> bool | None:
    """Whether no query of a fused operator sees a later key; None where there are not as many of both.

    Values that are 1 from some key on and 0 before it come out as 0 for all earlier queries.
    """
    query, key, value, *others = args
    length = key.shape[-2]
    if query.shape[-2] != length or length < 2:
        return None
    for first in {1, length // 2, length - 1}:
        marked = torch.zeros_like(value)
        marked[..., first:, :] = 1
        found = func(query, key, marked, *others, **kwargs)
        if bool((found[0] if isinstance(found, tuple) else found)[..., :first, :].any()):
            return False
    return True


def _differs(rows: Tensor) -> bool:
    """Whether not all rows are the same."""
    flat = rows.detach().flatten(0, -2)
    return len(flat) > 0 and bool((flat != flat[0]).any())
