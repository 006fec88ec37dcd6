"""Networks beside those of the examples: inverted bottlenecks, attention, skips that are concatenated.

Small versions of well-known designs, with random weights: for timing and for tests of what a search does to
such networks. The batch norms are as they are before training.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InvertedBottleneck(nn.Module):
    """Widen, filter each channel, project; a shortcut where shapes allow (Sandler et al. 2018, figure 3)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
        layers += [
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        ]
        self.body = nn.Sequential(*layers)
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, after, H / stride, W / stride)."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """MobileNetV2 at half its width (Sandler et al. 2018, table 2), for images of (3, 96, 96)."""

    STAGES = (
        (1, 8, 1, 1), (6, 16, 2, 2), (6, 24, 3, 2), (6, 32, 4, 2),
        (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1),
    )  # fmt: skip
    """Expansion, output channels, blocks, stride of the first block."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        width = 16
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        blocks = []
        for expansion, channels, count, first_stride in self.STAGES:
            for index in range(count):
                stride = first_stride if index == 0 else 1
                blocks.append(InvertedBottleneck(width, channels, stride, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(nn.Conv2d(width, 640, 1, bias=False), nn.BatchNorm2d(640), nn.ReLU6())
        self.head = nn.Linear(640, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 96, 96) -> (N, classes)."""
        features: Tensor = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


class Attention(nn.Module):
    """Multi-head self-attention, one projection for queries, keys and values (Vaswani et al. 2017, 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same shape."""
        batch, tokens, width = x.shape
        per_head = width // self.heads
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, per_head).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv[0], qkv[1], qkv[2]
        scores = (queries @ keys.transpose(-2, -1)) * per_head**-0.5
        mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(batch, tokens, width)
        projected: Tensor = self.proj(mixed)
        return projected


class TransformerBlock(nn.Module):
    """Attention and a perceptron of four times the width, each behind its norm, on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) -> the same shape."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.out(self.act(self.hidden(self.norm2(x))))
        return y


class VisionTransformer(nn.Module):
    """A vision transformer of DeiT-Ti's width and half its depth (Touvron et al. 2021), for (3, 32, 32).

    The mean over the tokens goes to the classifier; there is no class token.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        patch: int = 4,
        size: int = 32,
        classes: int = 10,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) -> (N, classes)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Three times down and up again, with skips that are concatenated (Ronneberger et al. 2015, figure 1).

    ``width``: channels of the first level; (3, 64, 64) by default.
    """

    def __init__(self, width: int = 16, classes: int = 2) -> None:
        super().__init__()
        self.down1 = DoubleConvolution(3, width)
        self.down2 = DoubleConvolution(width, 2 * width)
        self.down3 = DoubleConvolution(2 * width, 4 * width)
        self.bottom = DoubleConvolution(4 * width, 8 * width)
        self.up3 = nn.ConvTranspose2d(8 * width, 4 * width, 2, 2)
        self.join3 = DoubleConvolution(8 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = DoubleConvolution(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = DoubleConvolution(2 * width, width)
        self.output_layer = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W); H and W are multiples of 8."""
        level1 = self.down1(x)
        level2 = self.down2(F.max_pool2d(level1, 2))
        level3 = self.down3(F.max_pool2d(level2, 2))
        x = self.bottom(F.max_pool2d(level3, 2))
        x = self.join3(torch.cat([self.up3(x), level3], 1))
        x = self.join2(torch.cat([self.up2(x), level2], 1))
        x = self.join1(torch.cat([self.up1(x), level1], 1))
        logits: Tensor = self.output_layer(x)
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int]]] = {
    "MobileNetV2": (MobileNetV2, (1, 3, 96, 96)),
    "VisionTransformer": (VisionTransformer, (1, 3, 32, 32)),
    "UNet": (UNet, (1, 3, 64, 64)),
}
"""Name -> how to make it and the shape of its input."""
