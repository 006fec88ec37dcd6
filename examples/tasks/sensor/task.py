"""What is wrong with a machine? Convolutions in one dimension on accelerometers (generated here)."""

import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from leanfront import Task

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained

LENGTH = 64


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(16, 32, 5, padding=2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def signals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sound, unbalanced (one axis), loose (a second harmonic), a bearing's knocks: (N, 3, LENGTH), (N,)."""
    state = torch.arange(count) // 4 % 4
    turn = 2 * math.pi * (torch.arange(LENGTH) / 16 + torch.rand(count, 1))
    axes = torch.stack([turn.sin(), turn.cos(), (turn / 2).sin()], dim=1)
    axes[state == 1, 0] *= 1.8
    axes[state == 2, 1] += 0.6 * (2 * turn[state == 2]).sin()
    axes[state == 3, 2] += 1.2 * ((3 * turn[state == 3]).sin() > 0.95)
    return axes + 0.5 * torch.randn(axes.shape), state


@trained(epochs=10)
def task() -> Task:
    splits = [TensorDataset(*split) for split in halves(*signals(1600))]
    return Task(network(), torch.zeros(1, 3, LENGTH), *splits)
