"""Is it cheaper than what you have? Two inputs: a picture (scikit-learn's digits) and two numbers."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

from leanfront import Task

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 32),
        )
        self.money = nn.Linear(2, 32)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, image: Tensor, money: Tensor) -> Tensor:
        return self.head(torch.cat([self.picture(image), self.money(money)], dim=1))


class Purchases(Dataset):
    def __init__(self, images: Tensor, prices: Tensor, money: Tensor) -> None:
        self.images, self.money = images, money
        self.enough = (money.sum(1) * 5 > prices).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (self.images[index], self.money[index]), self.enough[index]


@trained(epochs=15)
def task() -> Task:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    money = torch.rand(len(images), 2)
    splits = [Purchases(*split) for split in halves(images, torch.tensor(digits.target), money)]
    return Task(Network(), (torch.zeros(1, 1, 8, 8), torch.zeros(1, 2)), *splits)
