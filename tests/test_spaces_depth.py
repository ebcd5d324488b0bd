"""Residual CNNs and vision transformers by depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dagscale
from dagscale.errors import TargetError
from dagscale.graph.paths import path_sums
from dagscale.models import load
from dagscale.models.by_depth import default_patch


def convolutions(model: nn.Module, kernel: int) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]


@pytest.mark.parametrize("depth", [8, 20, 56])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_resnet_has_its_depth(depth: int, norm: str) -> None:
    model, x = load(f"resnet:{depth}?width=4&norm={norm}")
    graph = dagscale.trace(model, x)
    assert len(convolutions(model, 3)) + 1 == depth
    assert len(convolutions(model, 1)) == 2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (depth + 1 if norm == "batch" else 0)
    assert path_sums(graph).paths == 2 ** ((depth - 2) // 2)  # one choice a block
    assert all(p.reached for p in graph.parameters)


@pytest.mark.parametrize("shape", ["1x8x8", "3x5x7", "3x32x32", "2x1x1"])
def test_resnet_takes_images_of_any_size(shape: str) -> None:
    model, x = load(f"resnet:8?width=4&stride=2&classes=7&act=gelu&input={shape}")
    assert model(x).shape == (2, 7)


def test_resnet_has_the_published_size() -> None:
    """0.27 M parameters for 20 layers on CIFAR [He et al. 2016, Table 6], but for the two 1×1 projections."""
    model, _ = load("resnet:20?input=3x32x32")
    projections = sum(p.numel() for stage in model.stages for p in stage[0].skip.parameters())
    assert sum(p.numel() for p in model.parameters()) - projections == 269_722


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_vit_layers_and_positions(pool: str) -> None:
    model, x = load(f"vit:3?width=16&heads=2&pool={pool}&input=3x32x32&classes=5")
    graph = dagscale.trace(model, x)
    assert model(x).shape == (2, 5)
    assert len(graph.layers) == 3 * 4 + 2
    assert model.position.shape == (1, 16 + (pool == "token"), 16)
    assert all(p.reached for p in graph.parameters)


def test_vit_without_positions_does_not_see_the_order_of_patches() -> None:
    model, x = load("vit:2?width=16&patch=4")
    swapped = torch.cat([x[..., 4:], x[..., :4]], dim=-1)
    assert not torch.allclose(model(x), model(swapped), atol=1e-4)
    nn.init.zeros_(model.position)
    torch.testing.assert_close(model(x), model(swapped))


def test_vit_attends_as_written_out() -> None:
    model, _ = load("vit:1?width=16&heads=2")
    block, x = model.blocks[0], torch.randn(3, 5, 16)
    q, k, v = block.qkv(x).split(16, dim=-1)
    parts = [(q[..., s] @ k[..., s].mT / 8**0.5).softmax(-1) @ v[..., s] for s in (slice(0, 8), slice(8, 16))]
    torch.testing.assert_close(block.attention(x), block.out(torch.cat(parts, dim=-1)))


def test_default_patch_divides_the_image() -> None:
    assert [default_patch(*size) for size in ((8, 8), (32, 32), (28, 28), (12, 8), (30, 30), (7, 7))] == [
        2, 8, 7, 2, 6, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet:9", "depth 9: three stages of two-layer blocks make 6n + 2 layers; write 8"),
        ("resnet:x", "'x' is no depth; write a number of layers or blocks up to 1,500, as resnet:20"),
        ("vit:0", "'0' is no depth; write a number of layers or blocks up to 1,500, as vit:4"),
        ("vit:2?input=64", "a vision transformer takes images, not inputs of shape 64; write ?input=CxHxW"),
        ("vit:2?patch=3", "patch=3 does not divide images of 8×8; write patch=2"),
        ("vit:2?heads=3", "heads=3 does not divide width=64"),
        ("resnet:8?norm=layer", "norm='layer' is unknown"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(TargetError) as error:
        load(text)
    assert message in str(error.value)
