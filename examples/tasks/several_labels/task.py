"""Which digits are in the picture? Two of scikit-learn's digits side by side, ten answers of yes and no."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from leanfront import ArrayData, Task
from leanfront.metrics import F1

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 8, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def pictures(images: np.ndarray, digits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = torch.randint(len(images), (count, 2)).numpy()
    labels = np.zeros((count, 10), np.float32)
    for side in (0, 1):
        labels[np.arange(count), digits[pairs[:, side]]] = 1
    return np.concatenate([images[pairs[:, 0]], images[pairs[:, 1]]], axis=2)[:, None], labels


@trained(epochs=10)
def task() -> Task:
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    made = [pictures(*split, count=2 * len(split[0])) for split in halves(images, digits.target)]
    splits = [ArrayData(*split, mean=(0.3,), std=(0.38,)) for split in made]
    return Task(
        network(), torch.zeros(1, 1, 8, 16), *splits, loss=binary_cross_entropy_with_logits, metric=F1
    )
