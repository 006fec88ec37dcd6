"""Handwritten digits (scikit-learn's 1,797, 8x8) and a small residual network, trained here in seconds.

Needs no download: the first run trains the network and keeps its weights in the cache folder.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from leanfront import ArrayData, Task, TaskError, load_state
from leanfront.readers import cache_folder

CLASSES = 10
EPOCHS = 25
BATCH = 64
SEED = 0


class DigitsNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(64)
        self.conv5 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn5 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))
        x = F.relu(x + inner)  # conv1 and conv3 must keep the same channels
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.relu(self.bn5(self.conv5(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def task() -> Task:
    splits = read_splits()
    mean, std = (float(splits["train"][0].mean()),), (float(splits["train"][0].std()),)
    train = ArrayData(*splits["train"], mean, std, pad=2)
    return Task(
        model=trained(train),
        example_input=torch.zeros(1, 1, 16, 16),
        train=train,
        search=ArrayData(*splits["search"], mean, std),
        test=ArrayData(*splits["test"], mean, std),
    )


def read_splits() -> dict[str, tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Half of each digit to train, a quarter to search, a quarter to test, in turn through the file.

    8x8 is so small that calling a layer costs more than computing it: each pixel becomes 2x2.
    """
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)[:, None]
    labels = digits.target.astype(np.int64)
    turn = np.empty(len(labels), dtype=np.int64)
    for label in range(CLASSES):
        of_class = np.flatnonzero(labels == label)
        turn[of_class] = np.arange(len(of_class)) % 4
    chosen = {"train": turn >= 2, "search": turn == 0, "test": turn == 1}
    return {name: (images[rows], labels[rows]) for name, rows in chosen.items()}


def trained(data: ArrayData) -> DigitsNet:
    """The network with weights from the cache, or trained now and kept there."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    kept = cache_folder() / f"digits-{recipe}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DigitsNet()
    with suppress(TaskError):  # absent or damaged: both are answered by training
        load_state(model, kept)
        return model.eval()
    train(model, data)
    with suppress(OSError):  # a cache that cannot be written costs only these seconds again
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}")
        save_file(model.state_dict(), beside)
        beside.replace(kept)  # whole or not there: another worker may be reading
    return model.eval()


def train(model: DigitsNet, data: ArrayData) -> None:
    """On one thread and with its own generator, so that one machine always comes to the same weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    steps = len(data) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(data), generator=generator)
        for step in range(steps):
            inputs, targets = data.batch(order[step * BATCH : (step + 1) * BATCH], generator)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
