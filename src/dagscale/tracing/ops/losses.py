"""Losses inside a model: reductions of a signal against a target; of two signals, their difference reduced."""

from dagscale.tracing.meaning import Meaning, means

means(
    Meaning("pool", data=("self",)),
    "aten.nll_loss", "aten.nll_loss_forward", "aten.nll_loss2d", "aten.nll_loss2d_forward", "aten.nll_loss_nd",
    "aten.cross_entropy_loss", "aten.binary_cross_entropy", "aten.binary_cross_entropy_with_logits",
    "aten.multi_margin_loss", "aten.multilabel_margin_loss_forward",
)  # fmt: skip
means(
    Meaning("sum", data=("self", "target"), elementwise=True),
    "aten.mse_loss", "aten.l1_loss", "aten.smooth_l1_loss", "aten.huber_loss", "aten.kl_div",
    "aten.soft_margin_loss",
)  # fmt: skip
means(Meaning("pool", data=("log_probs",)), "aten._ctc_loss", "aten.ctc_loss")
