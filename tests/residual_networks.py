"""Tiny networks with residual branches, one for each way in which they can lie. Inputs are (1, 3, 8, 8)."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.capture.trace import Traced, trace
from tests.networks import ConvNormRelu, OptionA, Residual, Sequence, example
from tests.networks import built as plainly_built


class PreActivated(nn.Module):
    """Norms and activations before the layers; after the last addition a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.layers[0](F.relu(self.norms[0](x)))
        x = x + self.layers[1](F.relu(self.norms[1](x)))
        return self.head(F.relu(self.norms[2](x)).mean((2, 3)))


class Inverted(nn.Module):
    """Linear bottlenecks with depthwise layers, a dropout in the branch, and an average behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8, act=nn.ReLU6)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 16, 1), nn.ReLU6(), ConvNormRelu(16, 16, groups=16, act=nn.ReLU6),
                nn.Conv2d(16, 8, 1), nn.Dropout(0.1),
            )
            for _ in range(2)
        )  # fmt: skip
        self.last = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu6(self.last(x)).mean((2, 3)))


class Nested(nn.Module):
    """A long skip around two short ones and a layer; both operands of the last sum qualify; a sum that is
    scaled, one behind which a padding with ones is rectified, and one with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8)
        self.inner = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.end = nn.Conv2d(8, 8, 1)
        self.one = ConvNormRelu(8, 8)
        self.two = nn.Sequential(ConvNormRelu(8, 8), nn.Conv2d(8, 8, 1))
        self.scaled = nn.Conv2d(8, 8, 1)
        self.filled = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(x + self.inner[0](x))
        y = y + self.inner[1](y)
        x = x + self.end(y)
        x = self.one(x) + self.two(x)
        x = torch.add(self.scaled(x), x, alpha=2)
        y = F.pad(F.relu(x[:, :, 1:, 1:]), (1, 0, 1, 0), value=-1.0)
        x = F.relu(y + self.filled(x))
        return self.head((x + x).mean((2, 3)))


class Around(nn.Module):
    """The network's own input is the operand that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvNormRelu(3, 8), nn.Conv2d(8, 3, 3, padding=1)
        self.third, self.head = ConvNormRelu(3, 6, stride=2), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.second(self.first(x))
        return self.head(self.third(x).mean((2, 3)))


RESIDUAL: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Residual, OptionA, Sequence, PreActivated, Inverted, Nested, Around)
}


def built(name: str) -> nn.Module:
    """As ``tests.networks.built``."""
    return plainly_built(name, RESIDUAL)


@cache
def traced_network(name: str) -> Traced:
    """As ``tests.networks.traced_network``."""
    return trace(built(name), example(name))
