"""Elementwise non-linearities: each adds one to the depth of the paths through it."""

from dagscale.tracing.meaning import Arguments, Meaning, means, rule

ACTIVATION = Meaning("activation", data=("self",))

means(
    ACTIVATION,
    *(
        f"aten.{name}{suffix}"
        for name in [
            "relu",
            "elu",
            "celu",
            "selu",
            "leaky_relu",
            "gelu",
            "silu",
            "mish",
            "hardtanh",
            "hardswish",
            "hardsigmoid",
            "sigmoid",
            "tanh",
            "relu6",
            "rrelu",
            "threshold",
            "clamp",
            "clamp_min",
            "clamp_max",
            "exp",
            "exp2",
            "expm1",
            "log",
            "log1p",
            "log2",
            "log10",
            "sin",
            "cos",
            "tan",
            "sinh",
            "cosh",
            "asin",
            "acos",
            "atan",
            "asinh",
            "acosh",
            "atanh",
            "erf",
            "erfc",
            "erfinv",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "abs",
            "sgn",
            "square",
            "sinc",
            "digamma",
            "lgamma",
            "logit",
            "frac",
            "i0",
            "copysign",
        ]
        for suffix in ("", "_")
    ),
    "aten.softplus",
    "aten.hardshrink",
    "aten.softshrink",
    "aten.log_sigmoid",
    "aten.log_sigmoid_forward",
    "aten.rrelu_with_noise",
    "aten.rrelu_with_noise_functional",
    "aten._prelu_kernel",
    "aten.prelu",
    "aten.special_i0",
    "aten.special_i0e",
    "aten.special_i1e",
    "aten.special_i1",
    "aten.angle",
)


means(Meaning("product", data=("abs", "angle")), "aten.polar")
# gradients taken in the forward: the force of an energy, a derivative by the inputs
for _other, _names in {
    "self": ["softplus", "silu", "gelu", "leaky_relu", "threshold", "hardtanh", "hardsigmoid", "hardswish", "mish"],
    "output": ["tanh", "sigmoid"],
    "self_or_result": ["elu"],
}.items():
    means(
        Meaning("product", data=("grad_output", _other), elementwise=True),
        *(f"aten.{name}_backward" for name in _names),
    )


@rule("aten.pow", "aten.pow_")
def power(arguments: Arguments) -> Meaning:
    """``x**1`` passes; ``x**n``, ``a**x`` and ``x**y`` are activations."""
    tensors = tuple(name for name in ("self", "exponent") if hasattr(arguments.get(name), "shape"))
    if tensors == ("self",) and arguments.get("exponent") == 1:
        return Meaning("pass", data=tensors)
    return Meaning("activation", data=tensors)


@rule("aten.maximum", "aten.minimum", "aten.fmax", "aten.fmin", "aten.atan2", "aten.max", "aten.min")
def extremum(arguments: Arguments) -> Meaning:
    """Of two tensors: one of them is selected; of one tensor: a pooling."""
    if hasattr(arguments.get("other"), "shape"):
        return Meaning("select", data=("self", "other"), elementwise=True)
    return Meaning("pool", data=("self",))
