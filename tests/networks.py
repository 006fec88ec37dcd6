"""Tiny networks, one for each way in which layers can hang together. Inputs are (1, 3, 8, 8) but for one."""

from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanfront.compression.capture.trace import Traced
from leanfront.networks import Captured, capture


class ConvNormRelu(nn.Sequential):
    def __init__(
        self, before: int, after: int, stride: int = 1, groups: int = 1, act: type = nn.ReLU
    ) -> None:
        conv = nn.Conv2d(before, after, 3, stride, padding=1, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(after), act())


class Chain(nn.Sequential):
    """Flattened with 2x2 positions left; dropout; layer names that are numbers."""

    def __init__(self) -> None:
        super().__init__(
            ConvNormRelu(3, 8), ConvNormRelu(8, 12, stride=2), nn.MaxPool2d(2), nn.Conv2d(12, 16, 1),
            nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 4, 10),
        )  # fmt: skip


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNormRelu(before, width, stride)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.conv1(x))) + self.shortcut(x))


class Residual(nn.Module):
    """Two stages, the second behind a projection shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8)
        self.stage1 = Block(8, 8, 1)
        self.stage2 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.stage2(self.stage1(self.stem(x)))), 1))


class OptionA(nn.Module):
    """A shortcut that slices and pads with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNormRelu(3, 8)
        self.inner = ConvNormRelu(8, 16, stride=2)
        self.outer = ConvNormRelu(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.outer(self.inner(x))
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(x + y).mean((2, 3)))


class Depthwise(nn.Module):
    """A depthwise separable pair, and a convolution of two groups, which cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvNormRelu(3, 8, act=nn.ReLU6)
        self.depth = ConvNormRelu(8, 8, groups=8, act=nn.ReLU6)
        self.point = nn.Conv2d(8, 16, 1)
        self.grouped = ConvNormRelu(16, 16, stride=2, groups=2)
        self.last = ConvNormRelu(16, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.grouped(self.point(self.depth(self.first(x))))).mean((2, 3)))


class UNet(nn.Module):
    """Segmentation: a transposed convolution, a concat, an output that is a convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = ConvNormRelu(3, 8)
        self.down2 = ConvNormRelu(8, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.join = ConvNormRelu(16, 8)
        self.output = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down1(x)
        deep = F.relu(self.up(self.down2(wide)))
        return self.output(self.join(torch.cat([wide, deep], 1)))


class Dense(nn.Module):
    """Each layer reads all before it, as in DenseNet; a batch norm before its convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.third = nn.Conv2d(12, 4, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = torch.cat([x, F.relu(self.second(x))], 1)
        x = torch.cat([x, F.relu(self.third(F.relu(self.norm(x))))], 1)
        return self.head(x.mean((2, 3)))


class Odd(nn.Module):
    """Constants, a norm that folds into nothing, an upsampling to a size, two outputs, a bias before a norm,
    layers named like functions and like what the file itself has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(-1, 1, 3).view(1, 3, 1, 1))
        self.norm = nn.BatchNorm2d(3)
        self.input = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Upsample(size=(12, 12))
        self.output = nn.Linear(8, 10)
        self.other = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(self.input(self.norm(x) + self.offset))
        x = F.hardswish(self.relu(F.relu(x) * 0.5))
        x = self.up(x).mean((2, 3))
        return self.output(x), self.other(x)


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(3 * 8 * 8, 32), nn.BatchNorm1d(32), nn.ReLU(),
            nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10),
        )  # fmt: skip


class Sequence(nn.Module):
    """Linear layers on (N, T, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)
        self.b = nn.Linear(16, 16)
        self.c = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = x + F.relu(self.b(x))
        return self.c(x.mean(1))


class Pyramid(nn.Module):
    """A head that reads three maps, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.out = (
            nn.Conv2d(*c, padding=1) for c in ((3, 32, 3), (32, 32, 3), (32, 40, 3))
        )
        self.last = nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        found = []
        for _ in range(3):
            found.append(self.out(self.head(x).relu()).mean((2, 3)))
            x = F.max_pool2d(x, 2)
        return self.last(torch.cat(found, 1))  # type: ignore[no-any-return]


ALL: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (Chain, Residual, OptionA, Depthwise, UNet, Dense, Odd, Perceptron, Sequence)
}


def example(name: str) -> Tensor:
    return torch.zeros(1, 5, 6) if name == "Sequence" else torch.zeros(1, 3, 8, 8)


def inputs(name: str, count: int, seed: int) -> Tensor:
    return torch.randn(count, *example(name).shape[1:], generator=torch.Generator().manual_seed(seed))


def built(name: str, kinds: Mapping[str, type[nn.Module]] = ALL) -> nn.Module:
    """A network with norms as training leaves them; some of their gains are negative, one is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kinds[name]()
        for norm in model.modules():
            if isinstance(norm, _BatchNorm):
                nn.init.normal_(norm.weight, 1.0, 0.3)
                nn.init.normal_(norm.bias, 0.0, 0.3)
                with torch.no_grad():
                    norm.weight[0] *= -1
                    norm.weight[1] = 0.0
                    norm.running_mean.normal_(0.0, 0.2)
                    norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


@cache
def captured_network(name: str) -> Captured:
    """Captured once for all tests, which takes half a second. Nobody changes it."""
    return capture(built(name), example(name))


def traced_network(name: str) -> Traced:
    """What is traced of it."""
    return captured_network(name).traced
