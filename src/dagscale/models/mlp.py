"""The space ``mlp:CODE``: fully connected DAGs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from dagscale.models.dag import ACTIVATIONS, NORMS, ORDERS, Dag, DagNet, sample_codes
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import SPACES, Setting, Space


class MLP(DagNet):
    """A stem, a DAG of linear layers, a linear readout; the input is flattened.

    ``x: (batch, ...)`` with ``in_features`` scalars per example → logits ``(batch, classes)``. Parameters are
    named ``stem.linear``, ``cells.0.edges.0_2.linear``, ``readout.linear``. See ``DagNet`` for the two
    orders.

    Args:
        dag: the architecture.
        in_features: scalars per example.
        width: features at every vertex.
        act: a name in ``dagscale.models.dag.ACTIVATIONS``.
        order: ``"post"`` (weight → activation) or ``"pre"`` (activation → weight).
        norm: after each weight layer but the readout: ``"none"``, ``"batch"`` (BatchNorm1d), ``"layer"``
            (LayerNorm).
        depth: how many times the DAG is stacked.

    Raises:
        TargetError: if the DAG has no path, a size is below 1, or a name is unknown.
    """

    def __init__(
        self,
        dag: Dag,
        *,
        in_features: int,
        classes: int,
        width: int = 128,
        act: str = "relu",
        order: str = "post",
        norm: str = "none",
        depth: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            dag,
            layer=("linear", partial(nn.Linear, bias=bias)),
            norms={"batch": nn.BatchNorm1d, "layer": nn.LayerNorm},
            before=(("flatten", nn.Flatten()),),
            inputs=in_features,
            classes=classes,
            width=width,
            act=act,
            order=order,
            norm=norm,
            depth=depth,
            bias=bias,
        )


DAG_OPTIONS = (
    INPUT,
    CLASSES,
    Option("width", "int", "features (channels) at every vertex", low=1, high=8192),
    Option("act", "str", "activation", choices=tuple(ACTIVATIONS)),
    Option("order", "str", "post: weight then activation; pre: activation then weight", choices=ORDERS),
    Option("norm", "str", "normalisation after each weight layer", choices=NORMS),
    Option("depth", "int", "how many times the DAG is stacked", low=1, high=1000),
    Option("bias", "bool", "whether weight layers have a bias"),
)


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    dag = Dag.parse(code)
    dag.require_path()
    return partial(MLP, dag, in_features=math.prod(setting.shape), classes=setting.classes, **options)


SPACES.add("mlp")(Space(read=_read, options=DAG_OPTIONS, sample=sample_codes))
