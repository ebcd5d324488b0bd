"""Normalisations: they fix the scale of what passes, and may carry a gain and a bias."""

from dagscale.tracing.meaning import Meaning, means

means(
    Meaning("norm", data=("input",), weight="weight", bias="bias"),
    *(
        f"aten.{name}"
        for name in [
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_functional",
            "_native_batch_norm_legit_no_training",
            "_batch_norm_with_update",
            "_batch_norm_no_update",
            "batch_norm",
            "cudnn_batch_norm",
            "miopen_batch_norm",
            "native_layer_norm",
            "layer_norm",
            "native_group_norm",
            "group_norm",
            "instance_norm",
        ]
    ),
)
means(
    Meaning("norm", data=("self",)),
    *(
        f"aten.{name}"
        for name in [
            "_softmax",
            "softmax",
            "_log_softmax",
            "log_softmax",
            "_safe_softmax",
            "linalg_vector_norm",
            "norm",
            "logsumexp",
            "var",
            "std",
            "var_mean",
            "std_mean",
            "renorm",
        ]
    ),
)
means(Meaning("norm", data=("input",), weight="weight"), "aten.rms_norm", "aten._fused_rms_norm")
means(Meaning("norm", data=("v", "g")), "aten._weight_norm", "aten._weight_norm_interface")
