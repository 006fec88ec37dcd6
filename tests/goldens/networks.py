"""The five networks that the goldens are of: never changed, whatever happens to those of other tests."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def conv(before: int, after: int, stride: int = 1, groups: int = 1, act: type = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, groups=groups, bias=False),
        nn.BatchNorm2d(after),
        act(),
    )


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(before, width, stride)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNet(nn.Module):
    """Blocks of two convolutions, of which some may be left out; two shortcuts with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.Sequential(
            Block(16, 16, 1), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2),
            Block(64, 64, 1),
        )  # fmt: skip
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Vgg(nn.Sequential):
    """A chain with a wide classifier behind a flattened image, too large for small parts."""

    def __init__(self) -> None:
        pool = nn.MaxPool2d(2)
        super().__init__(
            conv(3, 32), conv(32, 32), pool, conv(32, 64), pool, conv(64, 128), conv(128, 128), pool,
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, 10),
        )  # fmt: skip


class Bottleneck(nn.Module):
    def __init__(self, before: int, after: int, stride: int, squeeze: bool, act: type) -> None:
        super().__init__()
        inner = 3 * before
        self.expand = nn.Sequential(nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), act())
        self.depth = conv(inner, inner, stride, inner, act)
        self.excite = (
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(inner, 8, 1), nn.ReLU(), nn.Conv2d(8, inner, 1),
                nn.Hardsigmoid(),
            )
            if squeeze
            else None
        )  # fmt: skip
        self.project = nn.Sequential(nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after))
        self.skip = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        if self.excite is not None:
            y = y * self.excite(y)
        y = self.project(y)
        return x + y if self.skip else y


class MobileNet(nn.Module):
    """Linear bottlenecks with depthwise convolutions, squeeze and excitation, ReLU6 and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, 2, act=nn.ReLU6)
        self.blocks = nn.Sequential(
            Bottleneck(16, 16, 1, False, nn.ReLU6), Bottleneck(16, 24, 2, False, nn.ReLU6),
            Bottleneck(24, 24, 1, True, nn.Hardswish),
        )  # fmt: skip
        self.last = nn.Conv2d(24, 48, 1)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu6(self.last(self.blocks(self.stem(x)))).mean((2, 3)))


class Attention(nn.Module):
    """Patches, a class token, a layer of an encoder, a second one written out with GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 3, 48, 0.1, batch_first=True, norm_first=True),
            1,
            nn.LayerNorm(24),
            enable_nested_tensor=False,
        )
        self.wide, self.narrow = nn.Linear(24, 64), nn.Linear(64, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.encoder(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))
        x = x + self.narrow(F.gelu(self.wide(x)))
        return self.head(x[:, 0])


class UNet(nn.Module):
    """Two ways up, transposed and bilinear, each joined with what went down; an image comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = conv(3, 16), conv(16, 24, 2), conv(24, 32, 2)
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.join1, self.join2 = conv(48, 24), conv(40, 16)
        self.output = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down1(x)
        middle = self.down2(wide)
        x = self.join1(torch.cat([middle, F.relu(self.up(self.down3(middle)))], 1))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        return self.output(self.join2(torch.cat([wide, x], 1)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet, "vgg": Vgg, "mobilenet": MobileNet, "attention": Attention, "unet": UNet,
}  # fmt: skip
SIZE = {"resnet": 32, "vgg": 32, "mobilenet": 32, "attention": 16, "unet": 32}
"""Pixels of the square images of three channels that each takes."""


def inputs(name: str, count: int, seed: int) -> Tensor:
    """(count, 3, size, size)"""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE[name], SIZE[name], generator=random)


def built(name: str) -> nn.Module:
    """A network with norms as training leaves them; some of their gains are negative, one is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = KINDS[name]()
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
