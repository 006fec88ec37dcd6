"""A task that is made in a millisecond, telling bright images from dark ones, and its configuration."""

TASK = '''
import numpy as np
import torch
from leanfront import ArrayData, Task


def task(broken: bool = False, images: int = 240) -> Task:
    """Bright or dark: each channel is the mean of the image, the classes are above and below the middle."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % 2
    pixels = (rng.random((images, 1, 6, 6)) * 0.4 + 0.6 * labels[:, None, None, None]).astype(np.float32)
    parts = [ArrayData(pixels[i::3], labels[i::3].copy(), (0.0,), (1.0,)) for i in range(3)]
    relu = torch.nn.ReLU
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), relu(), torch.nn.Conv2d(8, 8, 3, padding=1), relu(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 2),
    )
    with torch.no_grad():
        model[0].weight.fill_(1 / 9)
        model[2].weight.fill_(1 / 72)
        for layer in (model[0], model[2], model[6]):
            layer.bias.zero_()
        model[6].weight[0] = -1.0
        model[6].weight[1] = 1.0
        model[6].bias[0] = 0.0 if broken else 6.6
    return Task(model, torch.zeros(1, 1, 6, 6), *parts)
'''

CONFIG = """
[task]
file = "task.py"
[hardware]
profile = "toy"
[search]
sampler = "tpe"
trials = 4
[space]
sparsity = [0.0, 0.25, 0.5]
weight_bits = [4, 8, 32]
activation_bits = [8, 32]
[finetune]
images = 64
batch = 16
learning_rate = 0.001
calibration_images = 32
"""
