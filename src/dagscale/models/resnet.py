"""The space ``resnet:DEPTH``: residual CNNs for small images, with batch norm or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from dagscale.errors import TargetError
from dagscale.models.by_depth import image_shape, read_depth
from dagscale.models.dag import ACTIVATIONS
from dagscale.models.options import CLASSES, INPUT, Option
from dagscale.models.targets import SPACES, Setting, Space

STAGES = 3
NORMS = ("batch", "none")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a skip, the activation after the sum [He et al. 2016, Fig. 2].

    ``x: (batch, c_in, H, W)`` → ``(batch, c_out, H / stride, W / stride)``, rounded up. The skip is a 1×1 convolution
    where the shape changes, else the identity.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, act: str, norm: str) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(c_in, c_out, 3, stride, norm)
        self.act1 = ACTIVATIONS[act]()
        self.conv2, self.norm2 = convolution(c_out, c_out, 3, 1, norm)
        same = c_in == c_out and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(*convolution(c_in, c_out, 1, stride, norm))
        self.act2 = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        result: Tensor = self.act2(branch + self.skip(x))
        return result


class ResNet(nn.Module):
    """A stem, three stages of equally many basic blocks, global average pooling, a linear readout.

    ``x: (batch, in_channels, H, W)`` → logits ``(batch, classes)``. Each stage after the first halves the resolution
    and doubles the channels. With ``n`` blocks a stage there are ``6n + 2`` layers on the longest path [He et al.
    2016, Sec. 4.2]. Parameters are named ``stem.conv``, ``stages.1.0.conv1``, ``stages.1.0.skip.0``, ``readout``.

    Args:
        depth: 8, 14, 20, …
        width: channels of the first stage.
        stride: of the stem; 1 in the paper, more to save time on larger images.
        act: a name in ``dagscale.models.dag.ACTIVATIONS``.
        norm: after each convolution: ``"batch"``, or ``"none"``, where convolutions have a bias instead.

    Raises:
        TargetError: if the depth is none of these.
    """

    def __init__(
        self,
        depth: int,
        *,
        in_channels: int,
        classes: int,
        width: int = 16,
        stride: int = 1,
        act: str = "relu",
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_depth(depth)
        conv, normalise = convolution(in_channels, width, 3, stride, norm)
        self.stem = nn.Sequential()
        for name, part in (("conv", conv), ("norm", normalise), ("act", ACTIVATIONS[act]())):
            self.stem.add_module(name, part)
        self.stages = nn.Sequential()
        channels = width
        for stage in range(STAGES):
            blocks = nn.Sequential()
            for block in range((depth - 2) // (2 * STAGES)):
                first = stage > 0 and block == 0
                c_out = width * 2**stage
                blocks.append(BasicBlock(channels, c_out, 2 if first else 1, act, norm))
                channels = c_out
            self.stages.append(blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.readout = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, in_channels, H, W) → logits: (batch, classes)."""
        logits: Tensor = self.readout(self.pool(self.stages(self.stem(x))))
        return logits


def convolution(c_in: int, c_out: int, kernel: int, stride: int, norm: str) -> tuple[nn.Module, nn.Module]:
    """A convolution that keeps the resolution at stride 1, and what normalises its output."""
    bare = norm == "none"
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bare)
    return conv, nn.Identity() if bare else nn.BatchNorm2d(c_out)


def check_depth(depth: int) -> None:
    """Raises: TargetError unless ``depth`` is ``6n + 2``, ``n`` at least 1."""
    if depth < 8 or (depth - 2) % 6:
        near = max(8, 6 * round((depth - 2) / 6) + 2)
        raise TargetError(f"depth {depth}: three stages of two-layer blocks make 6n + 2 layers; write {near}")


def _read(code: str, options: Mapping[str, Any], setting: Setting) -> Callable[[], nn.Module]:
    depth = read_depth(code, "resnet:20")
    check_depth(depth)
    channels, _, _ = image_shape(setting, "a residual CNN")
    return partial(ResNet, depth, in_channels=channels, classes=setting.classes, **options)


OPTIONS = (
    INPUT,
    CLASSES,
    Option("width", "int", "channels of the first stage", low=1, high=8192),
    Option("stride", "int", "stride of the stem", low=1, high=4096),
    Option("act", "str", "activation", choices=tuple(ACTIVATIONS)),
    Option("norm", "str", "normalisation after each convolution", choices=NORMS),
)
SPACES.add("resnet")(Space(read=_read, options=OPTIONS))
