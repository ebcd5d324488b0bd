"""Operators that end a signal: their result depends at most on the shape of their arguments, or stepwise on values."""

from torch import Tensor

from dagscale.tracing.meaning import Arguments, Meaning, means, rule

means(
    Meaning("constant"),
    "aten.zeros_like", "aten.ones_like", "aten.empty_like", "aten.full_like", "aten.rand_like",
    "aten.randn_like", "aten.randint_like", "aten.new_zeros", "aten.new_ones", "aten.new_empty",
    "aten.new_full", "aten.new_empty_strided", "aten.zero_", "aten.zero", "aten.fill_", "aten.fill",
    "aten.bernoulli_", "aten.uniform_", "aten.normal_", "aten.exponential_", "aten.random_",
    "aten.geometric_", "aten.cauchy_", "aten.log_normal_", "aten.zeros", "aten.ones", "aten.empty",
    "aten.full", "aten.rand", "aten.randn", "aten.randint", "aten.randperm", "aten.arange",
    "aten.linspace", "aten.eye", "aten.scalar_tensor", "aten.tril_indices", "aten.triu_indices",
    "aten.empty_strided", "aten.sym_size", "aten._local_scalar_dense", "aten.is_nonzero",
    "aten._assert_async", "aten._assert_tensor_metadata",
)  # fmt: skip
means(
    Meaning("flat"),
    "aten.argmax", "aten.argmin", "aten.argsort", "aten.ne", "aten.lt", "aten.le", "aten.gt",
    "aten.ge", "aten.eq_", "aten.ne_", "aten.isnan", "aten.isinf", "aten.isfinite", "aten.logical_and",
    "aten.logical_or", "aten.logical_not", "aten.logical_xor", "aten.bitwise_and", "aten.bitwise_or",
    "aten.bitwise_not", "aten.bitwise_xor", "aten.any", "aten.all", "aten.sign", "aten.sign_",
    "aten.signbit", "aten.heaviside", "aten.nonzero", "aten.bernoulli", "aten.multinomial",
    "aten.bucketize", "aten.searchsorted", "aten.count_nonzero", "aten.isin", "aten.histc",
    "aten.bincount", "aten.unique_dim", "aten._unique2", "aten.equal", "aten.allclose", "aten.isclose",
)  # fmt: skip


@rule("aten.eq")
def equal(arguments: Arguments) -> Meaning:
    """A comparison; of each token with every class, ``tokens[..., None] == arange(n)``, its one-hot code."""
    tokens, classes = arguments["self"], arguments.get("other")
    if not isinstance(classes, Tensor) or classes.is_floating_point() or tokens.is_floating_point():
        return Meaning("flat")
    one_hot = classes.dim() == 1 and len(classes) > 1 and tokens.dim() > 1 and tokens.shape[-1] == 1
    return Meaning("pass", data=("self",), code=True) if one_hot else Meaning("flat")
