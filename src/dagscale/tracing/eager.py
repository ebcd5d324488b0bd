"""What PyTorch would compile, or hand to kernels that no mode sees into, runs as plain Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from dagscale.tracing._torch import unseen

__all__ = ["biases_made_unseen", "eagerly"]

Forms = dict[tuple[str, str], Any]
"""Module and name → what stands there."""

_FLEX, _BIAS = "torch.nn.attention.flex_attention", "torch.nn.attention.bias"  # a second to import, if nobody has


@contextmanager
def eagerly() -> Iterator[None]:
    """Compiled parts of a model run eagerly inside, control flow (``torch.cond``, ``scan``, …) as Python's own, and
    ``flex_attention`` by matrix products, on any device and with gradients."""
    with _standing(_plain_forms(_FLEX in sys.modules, _has_bias())):
        frames: Any = sys.modules.get("torch._dynamo.eval_frame")  # nothing is compiled where it was never imported
        if hasattr(torch.compiler, "set_stance"):  # from torch 2.6 on
            with torch.compiler.set_stance("force_eager"):  # which it is as soon as this is made
                yield
        elif frames is None:
            yield
        else:  # calls of compiled functions ask for no compiler, which leaves what they have compiled before in place
            asked = frames.set_eval_frame
            frames.set_eval_frame = lambda compiler: asked(None)
            try:
                yield
            finally:
                frames.set_eval_frame = asked


@contextmanager
def biases_made_unseen() -> Iterator[None]:
    """Causal biases of attention, tensors of a class that dispatch modes cannot make, are made all the same."""
    with _standing(_biases(_has_bias())):
        yield


@contextmanager
def _standing(forms: Forms) -> Iterator[None]:
    """Inside, ``forms`` stand in the modules that are there and have such a name."""
    old = []
    try:
        for (module, name), form in forms.items():
            there = vars(sys.modules[module]) if module in sys.modules else {}
            if name in there:
                old.append((there, name, there[name]))
                there[name] = form
        yield
    finally:
        for there, name, value in old:
            there[name] = value


# --- the forms --------------------------------------------------------------------------------------------


@cache  # asked for at every forward
def _plain_forms(flex: bool, bias: bool) -> Forms:
    forms = _biases(bias) | {
        ("torch._higher_order_ops.cond", "cond_op"): _cond,
        ("torch._higher_order_ops.while_loop", "while_loop_op"): _while_loop,
        ("torch._higher_order_ops.map", "map_impl"): _map,
        ("torch._higher_order_ops.scan", "scan_op"): _scan,
    }
    if flex:
        from torch._higher_order_ops.flex_attention import math_attention

        forms |= {
            (_FLEX, "flex_attention_hop"): math_attention,
            (_FLEX, "_validate_device"): lambda *tensors: None,
            (_FLEX, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"): True,
        }
    return forms


@cache
def _biases(there: bool) -> Forms:
    return {(_BIAS, "CausalBias"): partial(_made_unseen, sys.modules[_BIAS].CausalBias)} if there else {}


def _has_bias() -> bool:
    return hasattr(sys.modules.get(_BIAS), "CausalBias")


def _made_unseen(kind: Callable[..., Any], *arguments: Any) -> Any:
    with unseen():
        return kind(*arguments)


def _cond(predicate: Any, true: Callable[..., Any], false: Callable[..., Any], operands: Iterable[Any] = ()) -> Any:
    return true(*operands) if predicate else false(*operands)


def _while_loop(
    go_on: Callable[..., Any], body: Callable[..., Any], carried: Iterable[Any], more: Iterable[Any] = ()
) -> Any:
    while go_on(*carried, *more):
        carried = body(*carried, *more)
    return carried


def _map(function: Callable[..., Any], rows: Sequence[Tensor], more: Sequence[Any] = ()) -> Any:
    """All rows at once: a layer that each of them passes is one layer."""
    along = (0,) * len(rows) + (None,) * len(more)
    return torch.vmap(function, in_dims=along, randomness="different")(*rows, *more)


def _scan(
    combine: Callable[..., Any], carry: Any, rows: Sequence[Tensor], additional_inputs: Iterable[Any] = ()
) -> Any:
    """A call for each row, given what the one before carries on; the last of that, and the others' results stacked."""
    made = []
    for row in zip(*rows, strict=True):
        out = combine(*carry, *row, *additional_inputs)
        carry, rest = out[: len(carry)], out[len(carry) :]
        made.append(rest)
    return (*carry, *(torch.stack(parts) for parts in zip(*made, strict=True)))
