"""Operators whose result depends at most on the shape of their arguments: they end a signal."""

from dagscale.trace.meaning import Meaning, means

means(
    Meaning("constant"),
    *(
        f"aten.{name}"
        for name in (
            "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones "
            "new_empty new_full new_empty_strided zero_ zero fill_ fill bernoulli_ bernoulli uniform_ normal_ "
            "exponential_ random_ geometric_ cauchy_ log_normal_ argmax argmin argsort eq ne lt le gt ge eq_ ne_ "
            "isnan isinf isfinite logical_and logical_or logical_not logical_xor bitwise_and bitwise_or "
            "bitwise_not bitwise_xor any all sign sign_ signbit heaviside nonzero multinomial bucketize "
            "searchsorted count_nonzero isin zeros ones empty full rand randn randint randperm arange linspace "
            "eye scalar_tensor tril_indices triu_indices empty_strided sym_size _local_scalar_dense is_nonzero "
            "histc bincount unique_dim _unique2 equal allclose isclose _assert_async _assert_tensor_metadata"
        ).split()
    ),
)
