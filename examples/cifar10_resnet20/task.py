"""ResNet-20 (He et al. 2015) on CIFAR-10: residual streams couple its channels, 41 M multiply-accumulates.

Options: data, any form of CIFAR-10 that search.readers.read_cifar10 takes; weights, a state dict. Relative
paths start at this file. The default weights were trained on JPEG copies of the images and lose a little on
the originals.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront import ArrayData, Task, load_state
from leanfront.readers import CIFAR10_MEAN, CIFAR10_STD, read_cifar10

HERE = Path(__file__).parent


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:  # option A: no weights in the shortcut, the new channels are zeros
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(inner + x)


class ResNet20(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def task(
    data: str = "../../../shared/data/cifar10_jpeg.zip",
    weights: str = "../../../shared/baselines/resnet20_cifar10_jpeg.pt",
) -> Task:
    images = read_cifar10((HERE / data).resolve())
    model = ResNet20()
    load_state(model, HERE / weights)
    return Task(
        model=model.eval(),
        example_input=torch.zeros(1, 3, 32, 32),
        train=ArrayData(
            images.train.images, images.train.labels, CIFAR10_MEAN, CIFAR10_STD, pad=4, flip=True
        ),
        search=ArrayData(images.search.images, images.search.labels, CIFAR10_MEAN, CIFAR10_STD),
        test=ArrayData(images.test.images, images.test.labels, CIFAR10_MEAN, CIFAR10_STD),
    )
