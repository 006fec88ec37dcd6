"""The task of the stored run: bright images or dark ones, which overlap, so that some are told wrongly."""

import numpy as np
import torch

from leanfront.search.task import ArrayData, Task


def task() -> Task:
    """Each channel of a network that was made by hand is the mean of the image; 1,200 images of 6x6."""
    rng = np.random.default_rng(0)
    labels = np.arange(1200) % 2
    bright = labels[:, None, None, None] * 0.25 + rng.normal(0.0, 0.06, (1200, 1, 1, 1))
    pixels = (rng.random((1200, 1, 6, 6)) * 0.5 + bright).astype(np.float32)
    parts = [ArrayData(pixels[i::3], labels[i::3].copy(), (0.0,), (1.0,)) for i in range(3)]
    relu = torch.nn.ReLU
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), relu(), torch.nn.Conv2d(8, 8, 3, padding=1), relu(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.fill_(1 / 9)
        model[2].weight.fill_(1 / 72)
        for layer in (model[0], model[2], model[6]):
            layer.bias.zero_()
        model[6].weight[0] = -1.0
        model[6].weight[1] = 1.0
        model[6].bias[0] = 4.8
    return Task(model, torch.zeros(1, 1, 6, 6), *parts)
