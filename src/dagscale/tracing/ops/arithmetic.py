"""Sums, products and factors. Which of them really meet is decided by which arguments carry signal."""

from typing import Any

import torch

from dagscale.tracing.meaning import Arguments, Meaning, Spelling, means, rule, spelling

SUM = Meaning("sum", data=("self", "other"), elementwise=True)
PRODUCT = Meaning("product", data=("self", "other"), elementwise=True)
PASS_SELF = Meaning("pass", data=("self",))
CONSTANT = Meaning("constant")

means(
    SUM,
    "aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.rsub", "aten.logaddexp", "aten.logaddexp2",
    "aten.hypot",
    "aten.subtract", "aten._add_relu",
)  # fmt: skip
means(Meaning("sum", elementwise=True), "prims.add", "prims.sub", "aten.complex")
means(Meaning("product", elementwise=True), "prims.mul", "prims.div")
means(PASS_SELF, "aten.neg", "aten.neg_", "aten.positive", "aten.conj", "aten._conj_physical", "aten.real",
      "aten.imag", "aten.floor_divide", "aten.remainder", "aten.fmod", "aten.remainder_", "aten.fmod_",
      "aten.nan_to_num", "aten.nan_to_num_", "aten.cumsum", "aten.cumsum_", "aten.cumprod", "aten.tril",
      "aten.triu", "aten.tril_", "aten.triu_", "aten.floor_divide_", "aten.ceil", "aten.floor", "aten.round",
      "aten.trunc", "aten.ceil_", "aten.floor_", "aten.round_", "aten.trunc_", "aten.diff",
      "aten.resolve_conj", "aten.resolve_neg", "aten.deg2rad", "aten.rad2deg",
      "aten.logcumsumexp")  # fmt: skip


def is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


@rule("aten.mul", "aten.mul_", "aten.multiply", "aten.div", "aten.div_", "aten.divide", "aten.true_divide")
def product(arguments: Arguments) -> Meaning:
    """A product of two signals, a factor on one, or nothing: a branch multiplied by the number 0 is dead.

    Neither a value nor a gradient passes a factor 0, so counting the branch would promise paths that the
    network does not have (NAS-Bench-201's "none" operation is written this way). A zero inside a *tensor* is
    data, which a graph does not look at.
    """
    return CONSTANT if is_zero(arguments.get("other")) else PRODUCT


@rule("aten.sum", "aten.mean", "aten.nansum")
def reduction(arguments: Arguments) -> Meaning:
    """A pooling; where it adds up the parts of a ``stack``, it is their sum."""
    rank = max(arguments["self"].dim(), 1)
    dims = arguments.get("dim")
    listed = [dims] if isinstance(dims, int) else dims or range(rank)
    return Meaning("pool", data=("self",), dims=tuple(int(d) % rank for d in listed))


@rule("aten.lerp", "aten.lerp_")
def interpolation(arguments: Arguments) -> Meaning | Spelling:
    """``(1-w) x + w y``: a plain sum where the weight is a number, a gated one where it is a tensor."""
    if isinstance(arguments["weight"], (int, float)):
        return Meaning("sum", data=("self", "end"), elementwise=True)
    return Spelling(lambda self, end, weight: self * (1 - weight) + end * weight)


@spelling("aten.addcmul", "aten.addcmul_")
def addcmul(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return torch.add(self, tensor1 * tensor2, alpha=value)


@spelling("aten.addcdiv", "aten.addcdiv_")
def addcdiv(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Any:
    return torch.add(self, tensor1 / tensor2, alpha=value)


@spelling("aten.glu")
def glu(self: Any, dim: int = -1) -> Any:
    half, gate = self.chunk(2, dim)
    return half * torch.sigmoid(gate)
