"""A narrow VGG-11 on CIFAR-10: a plain chain of layers, 100 M multiply-accumulates.

Options: data, any form of CIFAR-10 that search.readers.read_cifar10 takes; weights, a state dict. Relative
paths start at this file. The default weights were trained on JPEG copies of the images and lose a little on
the originals.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from leanfront import ArrayData, Task, load_state
from leanfront.readers import CIFAR10_MEAN, CIFAR10_STD, read_cifar10

HERE = Path(__file__).parent
WIDTHS = (64, 128, 192, 192, 256, 256, 256, 256)
POOLED_AFTER = (0, 1, 3, 5)


class Vgg11(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if index in POOLED_AFTER:
                layers.append(nn.MaxPool2d(2))
            before = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def task(
    data: str = "../../../shared/data/cifar10_jpeg.zip",
    weights: str = "../../../shared/baselines/vgg11_cifar10_jpeg.pt",
) -> Task:
    images = read_cifar10((HERE / data).resolve())
    model = Vgg11()
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
