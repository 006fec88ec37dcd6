"""A network so small that every policy of a space can be scored: handwritten digits of 8x8 pixels."""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from leanfront import ArrayData, Task

EPOCHS, BATCH, SEED = 40, 64, 0


class SmallNet(nn.Module):
    """A residual block and two more convolutions: 22,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((1, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in widths)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        x = F.relu(self.norms[0](self.convs[0](x)))
        inner = self.norms[2](self.convs[2](F.relu(self.norms[1](self.convs[1](x)))))
        x = F.relu(x + inner)
        x = F.relu(self.norms[3](self.convs[3](x)))
        x = F.relu(self.norms[4](self.convs[4](x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def task() -> Task:
    """A quarter of each digit to train, the rest to score: scores are fine-grained then."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    train = np.arange(len(labels)) % 6 == 0
    mean, std = (float(images[train].mean()),), (float(images[train].std()),)
    data = ArrayData(images[train], labels[train], mean, std, pad=1)
    held_out = ArrayData(images[~train], labels[~train], mean, std)
    return Task(
        model=_trained(data),
        example_input=torch.zeros(1, 1, 8, 8),
        train=data,
        search=held_out,
        test=held_out,  # nothing is picked here
    )


def _trained(data: ArrayData) -> SmallNet:
    torch.manual_seed(SEED)
    model = SmallNet()
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * (len(data) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(data), generator=generator)
        for step in range(len(data) // BATCH):
            inputs, targets = data.batch(order[step * BATCH : (step + 1) * BATCH], generator)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()
