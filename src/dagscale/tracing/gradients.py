"""Autograd as a second witness: which parameters a gradient of the outputs reaches, by what autograd has recorded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from dagscale.tracing._torch import by_python, is_fake, leaf_of, without_formula


def with_gradient(
    outputs: Sequence[Tensor], parameters: Sequence[tuple[str, Tensor]], fake: bool
) -> tuple[set[str], bool]:
    """Names of the parameters that get a gradient of the sum of all ``outputs``.

    Autograd's own record is followed backwards. Where a custom function is on the way, what its backward gives is
    only known by running it: then a backward is run.

    Args:
        parameters: name and tensor, of a parameter and of what stands in for it.
        fake: whether gradients may be collected in the tensors: they are fake, and will go.

    Returns:
        The names, and whether a custom function is on the way. A gradient that is zero everywhere counts.
    """
    outputs = [t for t in outputs if t.requires_grad]
    reached, nodes = _followed(outputs)
    custom = bool(nodes)
    if custom:
        wanted = [t for _, t in parameters if t.requires_grad and t.is_leaf]
        collect = fake and all(map(is_fake, reached))
        if not any(map(without_formula, nodes)):
            with suppress(Exception):  # the user's backward looks at values, say: what autograd has recorded must do
                reached = _run_backward(outputs, wanted, collect)
    found = set(map(id, reached))
    return {name for name, tensor in parameters if id(tensor) in found}, custom


def _followed(outputs: list[Tensor]) -> tuple[list[Tensor], list[object]]:
    """The leaves behind ``outputs``, and the custom functions on the way."""
    leaves = {id(t): t for t in outputs if t.is_leaf}
    stack = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = dict.fromkeys(stack)
    custom: list[object] = []
    while stack:
        node = stack.pop()
        if by_python(node):
            custom.append(node)
        leaf = leaf_of(node)
        if leaf is not None:
            leaves[id(leaf)] = leaf
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen[further] = None
                stack.append(further)
    return list(leaves.values()), custom


def _run_backward(outputs: list[Tensor], leaves: list[Tensor], collect: bool) -> list[Tensor]:
    """Those of ``leaves`` that get a gradient.

    Args:
        collect: run ``backward`` proper, which re-entrant checkpointing needs, and read the gradients off.
    """
    sums = [(t.real if t.is_complex() else t).sum() for t in outputs]
    total = torch.stack([s.to(sums[0]) for s in sums]).sum()
    if not collect:
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        return [leaf for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None]
    leaves = [leaf for leaf in leaves if is_fake(leaf)]
    for leaf in leaves:
        leaf.grad = None
    total.backward()  # type: ignore[no-untyped-call]
    return [leaf for leaf in leaves if leaf.grad is not None]
