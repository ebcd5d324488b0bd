"""Sums, products and factors. Which of them really meet is decided by which arguments carry signal."""

from typing import Any

from dagscale.trace.meaning import Arguments, Meaning, means, rule

SUM = Meaning("sum", data=("self", "other"), elementwise=True)
PRODUCT = Meaning("product", data=("self", "other"), elementwise=True)
PASS_SELF = Meaning("pass", data=("self",))
CONSTANT = Meaning("constant")

means(
    SUM,
    "aten.add", "aten.add_", "aten.sub", "aten.sub_", "aten.rsub", "aten.logaddexp", "aten.hypot",
    "aten.subtract", "aten._add_relu",
)  # fmt: skip
means(Meaning("sum", data=("self", "end"), elementwise=True), "aten.lerp", "aten.lerp_")
means(PASS_SELF, "aten.neg", "aten.neg_", "aten.positive", "aten.conj", "aten._conj_physical", "aten.real",
      "aten.imag", "aten.floor_divide", "aten.remainder", "aten.fmod", "aten.remainder_", "aten.fmod_",
      "aten.nan_to_num", "aten.nan_to_num_", "aten.cumsum", "aten.cumsum_", "aten.cumprod", "aten.tril",
      "aten.triu", "aten.tril_", "aten.triu_", "aten.floor_divide_", "aten.ceil", "aten.floor", "aten.round",
      "aten.trunc", "aten.ceil_", "aten.floor_", "aten.round_", "aten.trunc_", "aten.diff",
      "aten.resolve_conj", "aten.resolve_neg", "aten.cumsum_backward", "aten.linalg_inv_ex",
      "aten.logcumsumexp")  # fmt: skip
means(
    Meaning("product", data=("self", "tensor1", "tensor2"), elementwise=True),
    "aten.addcmul", "aten.addcmul_", "aten.addcdiv", "aten.addcdiv_",
)  # fmt: skip


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
    """A pooling; along the one dimension that a ``stack`` made, it is that stack's sum."""
    dims = arguments.get("dim")
    if isinstance(dims, int):
        dims = [dims]
    if not dims or len(dims) != 1 or arguments.get("keepdim"):
        return Meaning("pool", data=("self",))
    return Meaning("pool", data=("self",), dim=int(dims[0]) % max(arguments["self"].dim(), 1))
