"""Copies, casts, indexing, masks, dropout, concatenation: elements move or are dropped, none is combined."""

from dagscale.tracing.meaning import Arguments, Meaning, means, rule

PASS_SELF = Meaning("pass", data=("self",))

means(
    PASS_SELF,
    *(
        f"aten.{name}"
        for name in [
            "clone",
            "_to_copy",
            "to",
            "contiguous",
            "index",
            "index_select",
            "gather",
            "take",
            "take_along_dim",
            "masked_select",
            "roll",
            "flip",
            "rot90",
            "repeat",
            "tile",
            "masked_fill",
            "masked_fill_",
            "index_fill",
            "index_fill_",
            "fill_diagonal_",
            "constant_pad_nd",
            "pad",
            "reflection_pad1d",
            "reflection_pad2d",
            "reflection_pad3d",
            "replication_pad1d",
            "replication_pad2d",
            "replication_pad3d",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
            "im2col",
            "col2im",
            "_unsafe_view",
            "_reshape_copy",
            "_pin_memory",
            "sort",
            "topk",
            "kthvalue",
            "trace",
            "diagonal_copy",
            "_unsafe_index",
            "_unsafe_masked_index",
            "view_as_real_copy",
            "view_as_complex_copy",
            "alias_copy",
            "expand_copy",
            "permute_copy",
            "t_copy",
            "transpose_copy",
            "view_copy",
            "detach_copy",
            "slice_copy",
            "select_copy",
            "squeeze_copy",
            "unsqueeze_copy",
            "split_copy",
            "split_with_sizes_copy",
            "narrow_copy",
            "as_strided_copy",
            "unbind_copy",
            "unfold_copy",
            "repeat_interleave",
            "to_padded_tensor",
            "_fused_moving_avg_obs_fq_helper",
            "fake_quantize_per_tensor_affine_cachemask",
            "fake_quantize_per_channel_affine_cachemask",
            "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
            "_fake_quantize_learnable_per_tensor_affine",
            "_fake_quantize_learnable_per_channel_affine",
            "_fft_r2c",
            "_fft_c2r",
            "_fft_c2c",
            "diag_embed",
        ]
    ),
)
means(
    Meaning("pass", data=("input",)),
    "aten._pack_padded_sequence",
    "aten.native_dropout", "aten.dropout", "aten.feature_dropout", "aten.alpha_dropout",
)  # fmt: skip
means(
    Meaning("pass"),
    "aten._fused_dropout", "aten.affine_grid_generator", "aten.linalg_qr", "aten.linalg_svd", "aten._linalg_svd",
    "aten._linalg_eigh", "aten.linalg_inv_ex", "aten.linalg_cholesky_ex", "aten.linalg_matrix_exp",
    "aten._linalg_det", "aten._linalg_slogdet", "aten.linalg_lu", "aten.linalg_lu_factor_ex", "aten.linalg_pinv",
    "aten.linalg_householder_product", "aten.cholesky", "aten.cholesky_inverse",
)  # fmt: skip
means(Meaning("select", data=("self", "other"), elementwise=True), "aten.where")
means(Meaning("concat", data=("tensors",)), "aten.block_diag")
means(Meaning("pass", data=("src",)), "aten.copy_", "aten.copy")
means(
    Meaning("concat", data=("self", "src")),
    "aten.slice_scatter", "aten.select_scatter", "aten.diagonal_scatter",
    "aten.as_strided_scatter",
)  # fmt: skip
means(
    Meaning("sum", data=("self", "src")),
    "aten.scatter_add", "aten.scatter_add_", "aten.scatter_reduce", "aten.scatter_reduce_",
)  # fmt: skip
means(
    Meaning("sum", data=("self", "source")),
    "aten.index_add", "aten.index_add_", "aten.index_reduce", "aten.index_reduce_",
)  # fmt: skip
means(
    Meaning("concat", data=("self", "source")),
    "aten.index_copy", "aten.index_copy_", "aten.masked_scatter", "aten.masked_scatter_",
)  # fmt: skip
means(Meaning("product", data=("input", "grid")), "aten.grid_sampler_2d", "aten.grid_sampler_3d")


@rule("aten.scatter", "aten.scatter_")
def scatter(arguments: Arguments) -> Meaning:
    """Writes ``src`` among the elements of ``self``; where it is a number, as in a one-hot code, the places tell."""
    return Meaning("concat", data=("self", "index" if "value" in arguments else "src"))


@rule("aten.stack")
def stack(arguments: Arguments) -> Meaning:
    """A concatenation along a new dimension."""
    rank = arguments["tensors"][0].dim() + 1
    return Meaning("concat", data=("tensors",), dims=(int(arguments.get("dim", 0)) % rank,))


@rule("aten.cat", "aten.concat")
def concatenation(arguments: Arguments) -> Meaning:
    rank = max(t.dim() for t in arguments["tensors"])
    return Meaning("concat", data=("tensors",), dims=(int(arguments.get("dim", 0)) % max(rank, 1),))


@rule("aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index_put", "aten.put_")
def index_put(arguments: Arguments) -> Meaning:
    """Writes ``values`` among the elements of ``self``, or adds them."""
    return Meaning("sum" if arguments.get("accumulate") else "concat", data=("self", "values"))
