"""torchvision's models with inputs, and the operators that a build for another torch cannot load."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the boxes kept, best score first."""
    from torchvision.ops import box_iou

    overlap = box_iou(boxes, boxes) > threshold
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    kept = []
    for i in scores.argsort(descending=True).tolist():
        if not gone[i]:
            kept.append(i)
            gone |= overlap[i]
    return torch.tensor(kept, dtype=torch.int64)


def stand_in_for_missing_operators() -> None:
    from torchvision import extension
    from torchvision.ops import boxes

    if not extension._has_ops():
        boxes.nms = nms
        boxes._assert_has_ops = lambda: None
        torch.library.impl("torchvision::nms", "CPU", nms)


class Losses(torch.nn.Module):
    """A detector in training mode, its targets held: it returns its losses."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        boxes = torch.tensor([[8.0, 8.0, 60.0, 60.0], [30.0, 40.0, 90.0, 100.0]])
        self.target = {
            "boxes": boxes,
            "labels": torch.tensor([1, 1]),
            "masks": torch.ones(2, 128, 128, dtype=torch.uint8),
            "keypoints": torch.rand(2, 17, 3) * 50 + 20,
        }

    def forward(self, images: Tensor) -> Any:
        targets = [dict(self.target) for _ in images]
        return self.detector(list(images), targets)


def build(name: str) -> tuple[Any, Any]:
    """The model with random weights in training mode, and a small batch."""
    from torchvision import models

    stand_in_for_missing_operators()
    options: dict[str, Any] = {}
    module = models.get_model_builder(name).__module__
    if "detection" in module or "segmentation" in module:
        options = {"weights_backbone": None}
    if "detection" in module:
        options["min_size"], options["max_size"] = 128, 128
        if name.startswith("ssd"):
            options = {"weights_backbone": None}
        return Losses(models.get_model(name, weights=None, **options).train()), torch.rand(2, 3, 128, 128)
    model = models.get_model(name, weights=None, **options).train()
    if "video" in module:
        size = 224 if name.startswith(("mvit", "swin", "s3d")) else 64
        return model, torch.randn(1, 3, 16 if name.startswith(("mvit", "s3d")) else 8, size, size)
    if "optical_flow" in module:
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if "vit_" in name:
        size = 518 if name == "vit_h_14_518" else 224
        return model, torch.randn(1, 3, size, size)
    size = 299 if "inception" in name else 224
    return model, torch.randn(2, 3, size, size)
