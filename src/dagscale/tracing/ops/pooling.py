"""Pooling and resampling: fixed averages or maxima over positions."""

from dagscale.tracing.meaning import Meaning, means

means(
    Meaning("pool", data=("self",)),
    *(
        f"aten.{name}"
        for name in [
            "max_pool1d",
            "max_pool2d",
            "max_pool3d",
            "max_pool1d_with_indices",
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
            "mkldnn_max_pool2d",
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_avg_pool3d",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool1d",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
            "fractional_max_pool2d",
            "fractional_max_pool3d",
            "max_unpool2d",
            "max_unpool3d",
            "amax",
            "amin",
            "median",
            "nanmedian",
            "mode",
            "prod",
            "cummax",
            "cummin",
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "_upsample_nearest_exact1d",
            "_upsample_nearest_exact2d",
            "_upsample_nearest_exact3d",
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
            "aminmax",
        ]
    ),
)
means(Meaning("pool", data=("input", "rois")), "torchvision.roi_align", "torchvision.roi_pool")
