"""Anomalies: an autoencoder that has learnt the digits 0 to 4 alone (scikit-learn) draws others badly.

What is searched for is a large AUC of its error.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import TensorDataset

from leanfront import Task
from leanfront.metrics import AUC

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained


class Examples(TensorDataset):
    def __getitem__(self, index):
        image, odd = super().__getitem__(index)
        return image, {"image": image, "odd": odd}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
        nn.ConvTranspose2d(4, 32, 2, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 2, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 1, 3, padding=1),
    )


def loss(outputs, targets):
    return mse_loss(outputs, targets["image"])


def error(outputs, targets):
    return (outputs - targets["image"]).square().flatten(1).mean(1), targets["odd"]


@trained(epochs=12, rate=0.02, batch=32)
def task() -> Task:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    odd = torch.tensor(digits.target > 4).float()
    train, search, test = halves(images, odd)
    normal = train[1] == 0
    splits = [Examples(train[0][normal], train[1][normal]), Examples(*search), Examples(*test)]
    return Task(network(), torch.zeros(1, 1, 8, 8), *splits, loss=loss, metric=AUC.after(error))
