"""Six words of two chirps in noise (generated here): a DS-CNN (Zhang et al. 2017) on spectrograms."""

import math
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from leanfront import Task

sys.path.append(str(Path(__file__).parents[1]))
from trained import halves, trained

WORDS = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1))
RISES = (-1000.0, 0.0, 1000.0)
"""What a syllable does to the pitch, in Hz."""
RATE = 8000


def separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def network(channels: int = 16) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, (5, 4), stride=2, padding=(2, 1), bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        separable(channels),
        separable(channels),
        nn.AdaptiveAvgPool2d((1, 4)),
        nn.Flatten(),
        nn.Linear(4 * channels, len(WORDS)),
    )


def spectrograms(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log power of a quarter of a second, (N, 1, 33 frequencies, 31 frames), and which word it is, (N,)."""
    words = torch.randint(len(WORDS), (count,))
    time = torch.arange(RATE // 8) / RATE
    syllables = []
    for place in (0, 1):
        rise = torch.tensor(RISES)[torch.tensor(WORDS)[words, place]][:, None]
        start = 1750 + 500 * torch.rand(count, 1)
        syllables.append((2 * math.pi * (start * time + rise * time.square() / 0.25)).sin())
    sound = torch.cat(syllables, dim=1) + 2.3 * torch.randn(count, 2 * len(time))
    power = torch.stft(sound, 64, window=torch.hann_window(64), return_complex=True).abs().square()
    return (power[:, None, :, :124].unflatten(3, (31, 4)).mean(4) + 0.1).log() - 1, words


@trained(epochs=6, rate=0.02)
def task() -> Task:
    splits = [TensorDataset(*split) for split in halves(*spectrograms(1200))]
    return Task(network(), torch.zeros(1, 1, 33, 31), *splits)
