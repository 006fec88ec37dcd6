"""Is it an eight? One in ten is (scikit-learn's digits): accuracy says little, AUC of one logit more."""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from leanfront import ArrayData, Task
from leanfront.metrics import AUC

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
        nn.Linear(32 * 4 * 4, 1),
        nn.Flatten(0),
    )


@trained(epochs=8)
def task() -> Task:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    eight = (digits.target == 8).astype(np.float32)
    splits = [ArrayData(*split, mean=(0.3,), std=(0.38,)) for split in halves(images, eight)]
    return Task(
        network(), torch.zeros(1, 1, 8, 8), *splits, loss=binary_cross_entropy_with_logits, metric=AUC
    )
