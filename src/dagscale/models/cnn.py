"""The space ``cnn:CODE``: convolutional DAGs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape
from dagscale.models.dag import Dag, DagNet, sample_codes
from dagscale.models.mlp import DAG_OPTIONS
from dagscale.models.options import Option
from dagscale.models.targets import SPACES, Setting, Space


class CNN(DagNet):
    """A stem, a DAG of convolutions at one resolution, global average pooling, a linear readout.

    ``x: (batch, in_channels, H, W)`` → logits ``(batch, classes)``. Every convolution, the stem's too, has
    the same kernel, stride 1 and padding ``kernel // 2``. Parameters are named ``stem.conv``,
    ``cells.0.edges.0_2.conv``, ``readout.linear``. See ``DagNet`` for the two orders.

    Args:
        dag: the architecture.
        in_channels: channels of the input.
        width: channels at every vertex.
        kernel: side of the square kernels, odd.
        act: a name in ``dagscale.models.dag.ACTIVATIONS``.
        order: ``"post"`` (weight → activation) or ``"pre"`` (activation → weight).
        norm: after each convolution: ``"none"``, ``"batch"`` (BatchNorm2d), ``"layer"`` (over channels and
            positions of one example: GroupNorm with one group).
        depth: how many times the DAG is stacked.
        downsample: side of the squares that the images are averaged over before the stem, to save time.

    Raises:
        TargetError: if the kernel is even, the DAG has no path, a size is below 1, or a name is unknown.
    """

    def __init__(
        self,
        dag: Dag,
        *,
        in_channels: int,
        classes: int,
        width: int = 16,
        kernel: int = 3,
        act: str = "relu",
        order: str = "post",
        norm: str = "none",
        depth: int = 1,
        bias: bool = True,
        downsample: int = 1,
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise TargetError(f"kernel={kernel}: must be odd, so that the resolution stays, as 3 or 5")
        super().__init__(
            dag,
            layer=("conv", partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2, bias=bias)),
            norms={"batch": nn.BatchNorm2d, "layer": partial(nn.GroupNorm, 1)},
            before=(("downsample", nn.AvgPool2d(downsample)),) if downsample > 1 else (),
            pool=(("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())),
            inputs=in_channels,
            classes=classes,
            width=width,
            act=act,
            order=order,
            norm=norm,
            depth=depth,
            bias=bias,
        )


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    dag = Dag.parse(code)
    dag.require_path()
    channels, *sides = image_shape(setting, "a CNN")
    smallest, downsample = min(sides), options.get("downsample", 1)
    if downsample > smallest:
        raise TargetError(f"downsample={downsample}: images are {smallest} pixels at their smaller side; write less")
    return partial(CNN, dag, in_channels=channels, classes=setting.classes, **options)


KERNEL = Option("kernel", "int", "side of the square kernels", low=1, high=999, odd=True)
DOWNSAMPLE = Option(
    "downsample", "int", "side of the squares that images are averaged over before the stem", low=1, high=4096
)
SPACES.add("cnn")(Space(read=_read, options=(*DAG_OPTIONS, KERNEL, DOWNSAMPLE), sample=sample_codes))
