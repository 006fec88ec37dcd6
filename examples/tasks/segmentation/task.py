"""Discs and squares in noise (generated here), pixel by pixel: a small U-Net, mean IoU."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from leanfront import Task
from leanfront.metrics import MEAN_IOU

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained

SIZE = 16


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle, self.up = block(1, 12), block(12, 24), block(36, 12)
        self.pool, self.grow = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down(x)
        coarse = self.grow(self.middle(self.pool(fine)))
        return self.head(self.up(torch.cat([fine, coarse], dim=1)))


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, S, S); 0 for background, 1 for a disc, 2 for a square (N, S, S)."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.int64)
    for kind in (1, 2):
        middle, radius = 3 + torch.rand(count, 2, 1, 1) * 10, 2 + torch.rand(count, 1, 1) * 2
        far = (x - middle[:, 0]).abs(), (y - middle[:, 1]).abs()
        inside = torch.hypot(*far) < radius if kind == 1 else torch.maximum(*far) < radius
        classes[inside] = kind
    return ((classes > 0) + 0.2 * torch.randn(classes.shape))[:, None], classes


@trained(epochs=8)
def task() -> Task:
    splits = [TensorDataset(*split) for split in halves(*scenes(1200))]
    return Task(UNet(), torch.zeros(1, 1, SIZE, SIZE), *splits, metric=MEAN_IOU)
