"""Layers: contractions of a signal with a parameter. Contractions of two signals are products."""

from math import prod
from typing import Any

from torch import Tensor

from dagscale.graph import Layer
from dagscale.tracing._torch import is_fake
from dagscale.tracing.meaning import Arguments, Meaning, Spelling, means, rule


def dense(left: str, right: str, bias: str = "") -> Any:
    """Rule for ``left @ right``: the fan-in is the contracted dimension, whichever side is the parameter."""

    def contraction(arguments: Arguments) -> Meaning:
        a, b = arguments[left], arguments[right]
        fan_in = a.shape[-1] if a.dim() else 1
        right_out = b.shape[-1] if b.dim() > 1 else 1
        left_out = a.shape[-2] if a.dim() > 1 else 1
        return Meaning(
            "weight",
            data=(left,),
            weight=right,
            bias=bias,
            layer=Layer(fan_in, right_out),
            swapped=Layer(fan_in, left_out),
        )

    return contraction


rule("aten.mm", "aten.mv", "aten.dot", "aten.vdot", "aten._int_mm")(
    lambda arguments: dense("self", next(k for k in ("mat2", "vec", "tensor", "other") if k in arguments))(arguments)
)
rule("aten.bmm")(dense("self", "mat2"))
rule("aten.matmul")(dense("self", "other"))
rule("aten.addmm", "aten.addmm_", "aten._addmm_activation", "aten._sparse_addmm")(dense("mat1", "mat2", "self"))
rule("aten.addmv")(dense("mat", "vec", "self"))


@rule("aten._grouped_mm")
def grouped(arguments: Arguments) -> Meaning | Spelling:
    """Each expert's rows by its matrix: a layer. On fake tensors, where only shapes count, one expert does for all,
    because PyTorch's own fake implementation refuses float32."""
    rows, experts = arguments["self"], arguments["mat2"]
    if is_fake(rows) and rows.dim() == 2 and experts.dim() == 3 and arguments.get("bias") is None:
        return Spelling(lambda self, mat2, *args, **kwargs: self @ mat2[0])
    contraction: Meaning = dense("self", "mat2", "bias")(arguments)
    return contraction


rule("aten.addbmm", "aten.baddbmm", "aten.baddbmm_")(dense("batch1", "batch2", "self"))


@rule("aten.linear", "aten.mkldnn_linear")
def linear(arguments: Arguments) -> Meaning:
    weight: Tensor = arguments["weight"]
    out = weight.shape[0] if weight.dim() > 1 else 1
    layer = Layer(weight.shape[-1], out)
    return Meaning("weight", data=("input",), weight="weight", bias="bias", layer=layer)


@rule("aten.bilinear", "aten._trilinear")
def bilinear(arguments: Arguments) -> Meaning:
    """A layer that reads the products of its two inputs' entries; weights are (out, in1, in2)."""
    left, weight, right = ("i1", "i2", "i3") if "i1" in arguments else ("input1", "weight", "input2")
    out, *entering = arguments[weight].shape
    return Meaning("weight", data=(left, right), weight=weight, bias="bias", layer=Layer(prod(entering), out))


@rule(
    "aten.convolution",
    "aten._convolution",
    "aten.convolution_overrideable",
    "aten.mkldnn_convolution",
    "aten.cudnn_convolution",
    "aten.conv1d",
    "aten.conv2d",
    "aten.conv3d",
    "aten.conv_transpose1d",
    "aten.conv_transpose2d",
    "aten.conv_transpose3d",
)
def convolution(arguments: Arguments) -> Meaning:
    """Weights are (out, in/groups, *kernel), or (in, out/groups, *kernel) where transposed.

    A transposed convolution's output position is reached by 1/stride of the kernel in each dimension.
    """
    weight: Tensor = arguments["weight"]
    groups = int(arguments.get("groups", 1))
    kernel = tuple(int(k) for k in weight.shape[2:])
    patch = prod(kernel)
    if arguments.get("transposed", False):
        stride = arguments.get("stride", 1)
        strides = tuple(stride) if isinstance(stride, (list, tuple)) else (stride,)
        strides = strides * len(kernel) if len(strides) == 1 else strides
        fan_in = max(1, weight.shape[0] // groups * patch // prod(strides))
        layer = Layer(fan_in, weight.shape[1] * patch, kernel, groups)
    else:
        layer = Layer(weight.shape[1] * patch, weight.shape[0] * patch, kernel, groups)
    data = "input" if "input" in arguments else "self"
    return Meaning("weight", data=(data,), weight="weight", bias="bias", layer=layer)


@rule("aten.embedding", "aten._embedding_bag", "aten._embedding_bag_forward_only")
def embedding(arguments: Arguments) -> Meaning:
    """A lookup is a contraction with a one-hot vector: fan-in 1."""
    return Meaning("weight", data=("indices",), weight="weight", layer=Layer(1, arguments["weight"].shape[-1]))


means(
    Meaning("product", data=("query", "key", "value")),
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "aten.scaled_dot_product_attention",
)
means(
    Meaning("product"),
    "aten.linalg_solve_triangular", "aten.linalg_solve", "aten._linalg_solve_ex", "aten.triangular_solve",
    "aten._pdist_forward",
)  # fmt: skip
means(Meaning("product", data=("self", "other")), "aten.linalg_cross", "aten.cross", "aten.kron", "aten.xlogy")
means(Meaning("product", data=("x1", "x2")), "aten._cdist_forward", "aten._euclidean_dist")
