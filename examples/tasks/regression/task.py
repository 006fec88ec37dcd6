"""How far diabetes has come after a year, of ten numbers (scikit-learn's 442 patients): mean error."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn.functional import smooth_l1_loss
from torch.utils.data import TensorDataset

from leanfront import Task
from leanfront.metrics import MEAN_ABSOLUTE_ERROR

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 150 + 75 * self.layers(x)  # in the targets' own unit


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return smooth_l1_loss(outputs / 75, targets / 75)


def correlation(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.cat([outputs, targets], dim=1).T)[0, 1])


@trained(epochs=12, rate=0.002, batch=32)
def task() -> Task:
    patients = load_diabetes()
    numbers = torch.tensor(patients.data / patients.data.std(0), dtype=torch.float32)
    targets = torch.tensor(patients.target, dtype=torch.float32)[:, None]
    splits = [TensorDataset(*split) for split in halves(numbers, targets)]
    metric = replace(MEAN_ABSOLUTE_ERROR, unit="points of progression")
    return Task(
        Network(), torch.zeros(1, 10), *splits, loss=loss, metric=metric, report={"correlation": correlation}
    )
