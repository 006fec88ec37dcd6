"""Where are which digits? A detector like YOLO (Redmon et al. 2016): three outputs and its own loss.

One to three of scikit-learn's zeros, ones and twos, 8 or 16 pixels large, on 32x32.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from leanfront import Task

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained

CLASSES, SIZE, CELLS = 3, 32, 4
STRIDE = SIZE // CELLS


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(1, 16), block(16, 32), block(32, 48))
        self.neck = nn.Sequential(nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.box, self.there, self.kind = nn.Conv2d(48, 4, 1), nn.Conv2d(48, 1, 1), nn.Conv2d(48, CLASSES, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.neck(self.backbone(x))
        return {"box": self.box(x).sigmoid(), "there": self.there(x), "kind": self.kind(x)}


class Scenes(Dataset):
    """Boxes are (middle x and y within the cell, width and height of the image), each 0 to 1."""

    def __init__(self, images: np.ndarray, kinds: np.ndarray) -> None:
        self.images, self.kinds = images[kinds < CLASSES] / 16, kinds[kinds < CLASSES]

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        rng = np.random.default_rng(index)
        image = rng.normal(0, 0.05, (1, SIZE, SIZE)).astype(np.float32)
        box, there = np.zeros((4, CELLS, CELLS), np.float32), np.zeros((1, CELLS, CELLS), np.float32)
        kind = np.zeros((CELLS, CELLS), np.int64)
        for which in rng.integers(len(self.images), size=rng.integers(1, 4)):
            times = rng.integers(1, 3)
            size = 8 * times
            x, y = rng.integers(0, SIZE - size + 1, 2)
            if image[0, y : y + size, x : x + size].max() > 0.5:
                continue  # no two on top of each other
            image[0, y : y + size, x : x + size] += np.kron(self.images[which], np.ones((times, times)))
            (column, across), (row, down) = (divmod((at + size / 2) / STRIDE, 1) for at in (x, y))
            cell = int(row), int(column)
            box[:, *cell] = across, down, size / SIZE, size / SIZE
            there[0, *cell], kind[cell] = 1, self.kinds[which]
        return torch.from_numpy(image), {
            "box": torch.from_numpy(box),
            "there": torch.from_numpy(there),
            "kind": torch.from_numpy(kind),
        }


def loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    there = targets["there"]
    box = ((outputs["box"] - targets["box"]).square() * there).sum() / there.sum().clamp(min=1)
    kind = (F.cross_entropy(outputs["kind"], targets["kind"], reduction="none") * there[:, 0]).sum()
    return (
        5 * box
        + F.binary_cross_entropy_with_logits(outputs["there"], there)
        + kind / there.sum().clamp(min=1)
    )


def distil(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """The teacher's boxes and kinds count where it sees something."""
    seen = teacher["there"].sigmoid()
    targets = teacher["kind"].softmax(1)
    kind = (F.cross_entropy(student["kind"], targets, reduction="none") * seen[:, 0]).mean()
    box = ((student["box"] - teacher["box"]).square() * seen).mean()
    return 5 * box + F.binary_cross_entropy_with_logits(student["there"], seen) + kind


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of the boxes (N, 4, C, C) of the same cells: (N, C, C)."""
    low, high = [], []
    for box in (a, b):
        middle, size = box[:, :2] / CELLS, box[:, 2:]
        low.append(middle - size / 2)
        high.append(middle + size / 2)
    both = (torch.minimum(*high) - torch.maximum(*low)).clamp(min=0).prod(1)
    return both / (a[:, 2:].prod(1) + b[:, 2:].prod(1) - both).clamp(min=1e-9)


def score(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """F1 of each image: a box is right where the digit is, and the overlap is more than a half."""
    claimed, there = outputs["there"][:, 0] > 0, targets["there"][:, 0] > 0
    right = claimed & there & (outputs["kind"].argmax(1) == targets["kind"])
    right &= overlap(outputs["box"], targets["box"]) > 0.5
    return 2 * right.sum((1, 2)) / (claimed.sum((1, 2)) + there.sum((1, 2)))


@trained(epochs=15, rate=0.02)
def task() -> Task:
    digits = load_digits()
    splits = [Scenes(*split) for split in halves(digits.images, digits.target)]
    return Task(Detector(), torch.zeros(1, 1, SIZE, SIZE), *splits, loss=loss, score=score, distil=distil)
