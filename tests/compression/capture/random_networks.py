"""Random networks of all kinds of layers and operations that people write, small enough to be proved in a
second.

``random_network(seed)`` is the same network each time: blocks drawn one after the other, each for what the
one before it puts out (an image, a volume, a sequence, tokens, a vector), with norms that have other gains,
shifts and statistics than those of a new network. ``python -m tests.compression.capture.random_networks
SEED`` prints one and what is proved of it.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
DROPOUTS = {0: nn.Dropout, 1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}


@dataclass(frozen=True)
class Shape:
    """What a tensor is, without its batch: channels, and sizes behind them; ``tokens``: channels come
    last."""

    channels: int
    sizes: tuple[int, ...] = ()
    tokens: bool = False

    @property
    def dimensions(self) -> int:
        return len(self.sizes)


class Block(nn.Module):
    """A part of a random network. ``line``: what it is, for whoever reads of a failure."""

    line = ""


class Called(Block):
    """Modules by name, and a function of them and of a tensor."""

    def __init__(
        self, line: str, function: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module
    ) -> None:
        super().__init__()
        self.line, self.function = line, function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


Made = tuple[nn.Module, Shape]
Maker = Callable[[random.Random, Shape], Made | None]


def drop_path(x: Tensor, share: float, training: bool) -> Tensor:
    if not training or share == 0:
        return x
    keep = torch.empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - share)
    return x * keep / (1 - share)


def activation(rng: random.Random) -> Callable[[Tensor], Tensor]:
    """As a function, as a method, in place or not."""
    return rng.choice(
        [
            F.relu, torch.relu, lambda x: x.relu(), F.relu6, F.gelu, F.silu, F.hardswish, torch.sigmoid,
            torch.tanh,
            lambda x: F.leaky_relu(x, 0.2), F.elu, F.softplus, F.mish, lambda x: x.clamp(-1.0, 1.5),
            lambda x: F.relu(x, inplace=True), lambda x: x.mul_(0.7), lambda x: x.clamp_(min=-0.5),
            lambda x: x * torch.sigmoid(x), lambda x: F.hardtanh(x, -0.8, 0.8), lambda x: x.abs() + 0.1,
        ]
    )  # fmt: skip


def activation_module(rng: random.Random, channels: int) -> nn.Module:
    return rng.choice(
        [
            nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(inplace=True), nn.Hardswish(),
            nn.PReLU(), nn.PReLU(channels), nn.LeakyReLU(0.1), nn.ELU(), nn.Sigmoid(), nn.Softplus(),
            nn.Tanh(),
        ]
    )  # fmt: skip


# what is done to an image, a volume or a sequence (N, C, ...)


def convolution(
    rng: random.Random, shape: Shape, after: int | None = None, kernel: int | None = None
) -> nn.Module:
    """A convolution that keeps sizes."""
    after, kernel = after or rng.choice([4, 6, 8, 12]), kernel or rng.choice([1, 3, 3])
    options: dict[str, Any] = {"bias": rng.random() < 0.7}
    options["padding"] = "same" if rng.random() < 0.2 else kernel // 2
    if kernel == 3 and min(shape.sizes) > 2 and rng.random() < 0.15 and shape.dimensions < 3:
        options |= {"padding_mode": rng.choice(["reflect", "replicate", "circular"]), "padding": 1}
    return CONVOLUTIONS[shape.dimensions](shape.channels, after, kernel, **options)


def norm(rng: random.Random, channels: int, dimensions: int) -> nn.Module:
    """Of any kind; most are batch norms."""
    kinds: list[Callable[[], nn.Module]] = [lambda: BATCH_NORMS[dimensions](channels)] * 4
    kinds.append(lambda: BATCH_NORMS[dimensions](channels, affine=False))
    if dimensions:
        kinds.append(lambda: BATCH_NORMS[dimensions](channels, track_running_stats=False))
        kinds.append(lambda: nn.GroupNorm(rng.choice([1, 2]), channels))
        kinds.append(lambda: INSTANCE_NORMS[dimensions](channels, affine=rng.random() < 0.5))
    return rng.choice(kinds)()


def plain(rng: random.Random, shape: Shape) -> Made:
    conv = convolution(rng, shape)
    parts: list[nn.Module] = [conv]
    if rng.random() < 0.7:
        parts.append(norm(rng, conv.out_channels, shape.dimensions))
    parts.append(activation_module(rng, conv.out_channels))
    return nn.Sequential(*parts), replace(shape, channels=conv.out_channels)


def functional_convolution(rng: random.Random, shape: Shape) -> Made:
    conv, act = convolution(rng, shape), activation(rng)
    made = Called(f"act(conv) {conv}", lambda s, x: act(s.conv(x)), conv=conv)
    return made, replace(shape, channels=conv.out_channels)


def strided(rng: random.Random, shape: Shape) -> Made | None:
    if min(shape.sizes) < 4:
        return None
    kernel = rng.choice([2, 3])
    after = rng.choice([6, 8])
    conv = CONVOLUTIONS[shape.dimensions](shape.channels, after, kernel, 2, kernel // 2)
    sizes = tuple((size + 2 * (kernel // 2) - kernel) // 2 + 1 for size in shape.sizes)
    return nn.Sequential(conv, nn.ReLU()), Shape(after, sizes)


def depthwise(rng: random.Random, shape: Shape) -> Made:
    more = rng.choice([1, 1, 2])
    kind = CONVOLUTIONS[shape.dimensions]
    conv = kind(shape.channels, shape.channels * more, 3, padding=1, groups=shape.channels)
    point = kind(shape.channels * more, 8, 1)
    middle = norm(rng, shape.channels * more, shape.dimensions)
    return nn.Sequential(conv, middle, nn.ReLU6(), point), replace(shape, channels=8)


def grouped(rng: random.Random, shape: Shape) -> Made | None:
    if shape.channels % 2:
        return None
    conv = CONVOLUTIONS[shape.dimensions](shape.channels, rng.choice([4, 8]), 3, padding=1, groups=2)
    return nn.Sequential(conv, nn.ReLU()), replace(shape, channels=conv.out_channels)


def transposed(rng: random.Random, shape: Shape) -> Made | None:
    if max(shape.sizes) > 6:
        return None
    odd, after = rng.random() < 0.5, rng.choice([6, 6, 8, shape.channels])
    each = [count for count in (1, 2, 4, shape.channels) if shape.channels % count == after % count == 0]
    groups = rng.choice([1, *each])
    options = {"stride": 2, "padding": 1, "output_padding": 1} if odd else {"stride": 2}
    conv = TRANSPOSED[shape.dimensions](shape.channels, after, 3 if odd else 2, groups=groups, **options)
    made = nn.Sequential(conv, norm(rng, after, shape.dimensions), nn.ReLU())
    return made, Shape(after, tuple(2 * size for size in shape.sizes))


def residual(rng: random.Random, shape: Shape) -> Made:
    """Additions in all spellings, also with a dropout behind them, or in place."""
    inner = replace(shape, channels=rng.choice([4, 6, 8]))
    a, b = convolution(rng, shape, inner.channels), convolution(rng, inner, shape.channels)
    last = norm(rng, shape.channels, shape.dimensions)
    act = activation(rng)

    def added(s: nn.Module, x: Tensor) -> Tensor:
        return x + s.last(s.b(act(s.a(x))))

    def in_place(s: nn.Module, x: Tensor) -> Tensor:
        y = s.last(s.b(F.relu(s.a(x))))
        y += x
        return F.relu(y)

    def with_dropout(s: nn.Module, x: Tensor) -> Tensor:
        return s.drop(torch.add(x, s.last(s.b(F.relu(s.a(x))))))

    def with_drop_path(s: nn.Module, x: Tensor) -> Tensor:
        return F.relu(x + drop_path(s.last(s.b(s.a(x).relu())), 0.1, s.training))

    def through_an_alias(s: nn.Module, x: Tensor) -> Tensor:
        keep = y = s.last(s.b(F.relu(s.a(x))))
        y.mul_(0.5)
        return keep + x

    function = rng.choice([added, in_place, with_dropout, with_drop_path, through_an_alias])
    made = Called(f"residual {function.__name__}", function, a=a, b=b, last=last, drop=nn.Dropout(0.1))
    return made, shape


def projected(rng: random.Random, shape: Shape) -> Made:
    after = rng.choice([6, 8])
    a, b = convolution(rng, shape, after), convolution(rng, shape, after, 1)
    made = Called("projection shortcut", lambda s, x: F.relu(s.na(s.a(x)) + s.nb(s.b(x))), a=a, b=b,
                  na=norm(rng, after, shape.dimensions), nb=norm(rng, after, shape.dimensions))  # fmt: skip
    return made, replace(shape, channels=after)


def option_a(rng: random.Random, shape: Shape) -> Made | None:
    """ResNet's shortcut without weights: every second position, zeros for the channels that are new."""
    if shape.dimensions != 2 or min(shape.sizes) < 4 or shape.sizes[0] != shape.sizes[1]:
        return None
    after = shape.channels + 4
    conv = nn.Conv2d(shape.channels, after, 3, 2, 1)
    outer = nn.Conv2d(after, after, 3, padding=1)
    made = Called(
        "option A",
        lambda s, x: F.relu(s.outer(F.relu(s.conv(x))) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))),
        conv=conv, outer=outer,
    )  # fmt: skip
    return made, Shape(after, tuple((size + 1) // 2 for size in shape.sizes))


def concatenated(rng: random.Random, shape: Shape) -> Made:
    conv = convolution(rng, shape, 4)
    function = rng.choice(
        [
            lambda s, x: torch.cat([x, F.relu(s.conv(x))], 1),
            lambda s, x: torch.cat((F.relu(s.conv(x)), x), axis=1),
            lambda s, x: torch.concat([x, F.gelu(s.conv(x))], dim=-x.dim() + 1),
        ]
    )
    return Called("concat", function, conv=conv), replace(shape, channels=shape.channels + 4)


def concatenated_with_itself(rng: random.Random, shape: Shape) -> Made:
    conv, act = convolution(rng, shape, 4), rng.choice([F.relu, F.gelu])

    def twice(s: nn.Module, x: Tensor) -> Tensor:
        y = act(s.conv(x))
        return torch.cat([y, y], 1)

    return Called("cat of a tensor with itself", twice, conv=conv), replace(shape, channels=8)


def split(rng: random.Random, shape: Shape) -> Made:
    conv = convolution(rng, shape, 8)
    inner = convolution(rng, replace(shape, channels=4), 4)

    def chunks(s: nn.Module, x: Tensor) -> Tensor:
        y = F.silu(s.conv(x)).chunk(2, 1)
        return torch.cat((*y, F.silu(s.inner(y[-1]))), 1)

    def parts(s: nn.Module, x: Tensor) -> Tensor:
        first, second = torch.split(F.silu(s.conv(x)), [4, 4], dim=1)
        return torch.cat([first, second, s.inner(second) + second], 1)

    def sliced(s: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(s.conv(x))
        return torch.cat([y[:, :4], F.relu(s.inner(y[:, 4:])), y[:, 4:]], 1)

    def gated(s: nn.Module, x: Tensor) -> Tensor:
        first, second = s.conv(x).chunk(2, dim=1)
        return torch.cat([first * torch.sigmoid(second), s.inner(second), second], 1)

    function = rng.choice([chunks, parts, sliced, gated])
    return Called(f"split {function.__name__}", function, conv=conv, inner=inner), replace(shape, channels=12)


def shuffled(rng: random.Random, shape: Shape) -> Made | None:
    if shape.channels % 2:
        return None

    def shuffle(s: nn.Module, x: Tensor) -> Tensor:
        n, c, *sizes = x.size()
        return x.view(n, 2, c // 2, *sizes).transpose(1, 2).contiguous().view(n, c, *sizes)

    if shape.dimensions == 2 and rng.random() < 0.4:
        return nn.ChannelShuffle(2), shape
    return Called("channel shuffle", shuffle), shape


def gate(rng: random.Random, shape: Shape) -> Made:
    """Squeeze and excitation, by convolutions or linear layers, with and without a named pooling."""
    few = 4
    ones = [1] * shape.dimensions
    if rng.random() < 0.5:
        down = CONVOLUTIONS[shape.dimensions](shape.channels, few, 1)
        up = CONVOLUTIONS[shape.dimensions](few, shape.channels, 1)
        pool = ADAPTIVE_POOLS[shape.dimensions](1)
        made = Called("squeeze by convolutions",
                      lambda s, x: x * torch.sigmoid(s.up(F.relu(s.down(s.pool(x))))),
                      down=down, up=up, pool=pool)  # fmt: skip
    else:
        axes = tuple(range(2, 2 + shape.dimensions))

        def by_linear(s: nn.Module, x: Tensor) -> Tensor:
            y = F.hardsigmoid(s.up(F.relu(s.down(x.mean(axes)))))
            return y.view(y.shape[0], -1, *ones).expand_as(x) * x

        made = Called("squeeze by linear layers", by_linear,
                      down=nn.Linear(shape.channels, few), up=nn.Linear(few, shape.channels))  # fmt: skip
    return made, shape


def padded(rng: random.Random, shape: Shape) -> Made | None:
    if max(shape.sizes) > 10:
        return None
    widths = [rng.choice([0, 1, 1, 2]) for _ in range(2 * shape.dimensions)]
    options: dict[str, Any] = {}
    kind = rng.random()
    if kind < 0.25:
        options["value"] = -0.5
    elif kind < 0.45 and min(shape.sizes) > 2 and shape.dimensions < 3:
        options["mode"] = rng.choice(["reflect", "replicate"])
    before = list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    sizes = tuple(size + sum(pair) for size, pair in zip(shape.sizes, before, strict=True))
    after = CONVOLUTIONS[shape.dimensions](shape.channels, 6, 3, padding=1)
    if not options and rng.random() < 0.4 and shape.dimensions == 2:
        made: nn.Module = nn.Sequential(nn.ZeroPad2d(tuple(widths)), after)
        return made, Shape(6, sizes)
    made = Called(f"pad {widths} {options}", lambda s, x: s.after(F.pad(x, widths, **options)), after=after)
    return made, Shape(6, sizes)


def pooled(rng: random.Random, shape: Shape) -> Made | None:
    if min(shape.sizes) < 4:
        return None
    dimensions = shape.dimensions
    kind = rng.choice(["max", "max3", "average", "ceil", "adaptive"])
    if kind == "max3":
        sizes = tuple((size - 1) // 2 + 1 for size in shape.sizes)
        return MAX_POOLS[dimensions](3, 2, 1), replace(shape, sizes=sizes)
    if kind == "adaptive":
        even = [size for size in shape.sizes if size % 2 == 0]
        if len(even) < dimensions:
            return None
        sizes = tuple(size // 2 for size in shape.sizes)
        return ADAPTIVE_POOLS[dimensions](sizes), replace(shape, sizes=sizes)
    if kind == "ceil":
        return MAX_POOLS[dimensions](2, ceil_mode=True), replace(
            shape, sizes=tuple((size + 1) // 2 for size in shape.sizes)
        )
    pools = MAX_POOLS if kind == "max" else AVERAGE_POOLS
    return pools[dimensions](2), replace(shape, sizes=tuple(size // 2 for size in shape.sizes))


def upsampled(rng: random.Random, shape: Shape) -> Made | None:
    if max(shape.sizes) > 6:
        return None
    smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[shape.dimensions]
    sizes = tuple(2 * size for size in shape.sizes)
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.Upsample(scale_factor=2, mode="nearest"),
        lambda: nn.Upsample(size=sizes),
        lambda: Called("interpolate", lambda s, x: F.interpolate(x, scale_factor=2.0, mode="nearest")),
        lambda: Called("interpolate to sizes", lambda s, x: F.interpolate(x, size=sizes, mode="nearest")),
        lambda: nn.Upsample(scale_factor=2, mode=smooth, align_corners=False),
    ]
    return rng.choice(makers)(), replace(shape, sizes=sizes)


def pixels(rng: random.Random, shape: Shape) -> Made | None:
    if shape.dimensions != 2:
        return None
    if shape.channels % 4 == 0 and max(shape.sizes) <= 6 and rng.random() < 0.7:
        after = shape.channels // 4
        conv = nn.Conv2d(after, 6, 3, padding=1)
        return nn.Sequential(nn.PixelShuffle(2), conv), Shape(6, tuple(2 * size for size in shape.sizes))
    if all(size % 2 == 0 for size in shape.sizes):
        return nn.PixelUnshuffle(2), Shape(4 * shape.channels, tuple(size // 2 for size in shape.sizes))
    return None


def nothing(rng: random.Random, shape: Shape) -> Made:
    """What changes no value in evaluation mode."""
    parts: list[Callable[[], nn.Module]] = [
        nn.Identity, lambda: DROPOUTS[shape.dimensions](0.2), nn.Sequential, lambda: nn.Dropout(0.0),
        lambda: Called("contiguous", lambda s, x: x.contiguous()),
        lambda: Called("drop path", lambda s, x: drop_path(x, 0.2, s.training)),
        lambda: Called("functional dropout", lambda s, x: F.dropout(x, 0.3, training=s.training)),
        lambda: Called("to the same type", lambda s, x: x.float()),
        lambda: Called("plus nothing", lambda s, x: x + 0),
        lambda: Called("clone", lambda s, x: x.clone()),
    ]  # fmt: skip
    return nn.Sequential(*(rng.choice(parts)() for _ in range(rng.choice([1, 2])))), shape


def shared_layer(rng: random.Random, shape: Shape) -> Made:
    """A layer used twice: on what it has put out, on two levels, in two branches, with and without a norm."""
    conv = convolution(rng, shape, shape.channels)
    normed = rng.choice([None, BATCH_NORMS[shape.dimensions](shape.channels)])
    act, pool = activation(rng), AVERAGE_POOLS[shape.dimensions](3, 1, 1)

    def used(s: nn.Module, x: Tensor) -> Tensor:
        return act(s.conv(x) if normed is None else s.norm(s.conv(x)))

    ways: list[tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = [
        ("on what it has put out", lambda s, x: used(s, used(s, x))),
        ("with and without", lambda s, x: F.relu(used(s, x)) + s.conv(x * 0.5)),
        ("on two levels", lambda s, x: used(s, x) + used(s, pool(x))),
        ("on two levels, side by side", lambda s, x: torch.cat([used(s, x), used(s, pool(x))], 1)),
        ("in two branches", lambda s, x: (y := x + used(s, x)) + used(s, y)),
        ("twice in a branch", lambda s, x: x + used(s, used(s, x))),
    ]
    line, way = rng.choice(ways)
    parts = {"conv": conv} | ({} if normed is None else {"norm": normed})
    more = 2 if "side by side" in line else 1
    return Called(
        f"one convolution used twice, {line}, {'normed' if normed else 'plain'}", way, **parts
    ), replace(shape, channels=more * shape.channels)


def shared_norm(rng: random.Random, shape: Shape) -> Made:
    a, b = convolution(rng, shape, 6), convolution(rng, replace(shape, channels=6), 6)
    made = Called("one norm used twice", lambda s, x: F.relu(s.norm(s.b(F.relu(s.norm(s.a(x)))))), a=a, b=b,
                  norm=BATCH_NORMS[shape.dimensions](6))  # fmt: skip
    return made, replace(shape, channels=6)


def normed_weight(rng: random.Random, shape: Shape) -> Made:
    conv = convolution(rng, shape, 8)
    old = nn.utils.weight_norm  # by a hook
    kind = rng.choice([parametrizations.weight_norm, parametrizations.spectral_norm, old])
    return nn.Sequential(kind(conv), nn.ReLU()), replace(shape, channels=8)


def hooked(rng: random.Random, shape: Shape) -> Made:
    conv = convolution(rng, shape, 6)
    conv.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return nn.Sequential(conv, nn.ReLU()), replace(shape, channels=6)


def scaled(rng: random.Random, shape: Shape) -> Made:
    """Buffers and parameters of the user's own, also read twice."""

    class Scaled(Block):
        line = "own scale and offset"

        def __init__(self) -> None:
            super().__init__()
            size = (1, shape.channels, *[1] * shape.dimensions)
            self.register_buffer("scale", torch.linspace(0.5, 1.5, shape.channels).view(size))
            self.offset = nn.Parameter(torch.randn(size) * 0.3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x * self.scale + self.offset) * self.scale

    return Scaled(), shape


def channels_last_norm(rng: random.Random, shape: Shape) -> Made:
    """A layer norm over channels that are moved behind for it, then linear layers there."""
    forth = (0, *range(2, 2 + shape.dimensions), 1)
    back = (0, 1 + shape.dimensions, *range(1, 1 + shape.dimensions))

    def function(s: nn.Module, x: Tensor) -> Tensor:
        return s.down(F.gelu(s.up(s.norm(x.permute(*forth))))).permute(*back) + x

    made = Called("norm over channels, moved behind", function, norm=nn.LayerNorm(shape.channels, eps=1e-6),
                  up=nn.Linear(shape.channels, 8), down=nn.Linear(8, shape.channels))  # fmt: skip
    return made, shape


def expanded(rng: random.Random, shape: Shape) -> Made:
    conv = CONVOLUTIONS[shape.dimensions](shape.channels, 4, 1)
    axes = tuple(range(2, 2 + shape.dimensions))

    def function(s: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(s.conv(x.mean(axes, keepdim=True)))
        return torch.cat([x, y.expand(-1, -1, *shape.sizes)], 1)

    made = Called("expanded to written sizes", function, conv=conv)
    return made, replace(shape, channels=shape.channels + 4)


SPATIAL: tuple[Maker, ...] = (
    plain, plain, plain, functional_convolution, strided, depthwise, grouped, transposed, residual, residual,
    projected, option_a, concatenated, concatenated_with_itself, split, shuffled, gate, padded, pooled,
    upsampled, pixels, nothing, shared_layer, shared_norm, normed_weight, hooked, scaled, channels_last_norm,
    expanded,
)  # fmt: skip


# what is done to tokens (N, T, C)


def token_norm(rng: random.Random, channels: int) -> nn.Module:
    return nn.RMSNorm(channels) if rng.random() < 0.3 else nn.LayerNorm(channels, bias=rng.random() < 0.8)


def token_layer(rng: random.Random, shape: Shape) -> Made:
    after = rng.choice([8, 12])
    act = activation(rng)
    made = Called("linear", lambda s, x: act(s.a(s.norm(x))), a=nn.Linear(shape.channels, after),
                  norm=token_norm(rng, shape.channels))  # fmt: skip
    return made, replace(shape, channels=after)


def feed_forward(rng: random.Random, shape: Shape) -> Made:
    """Before and behind the norm, gated or not."""
    width, inner = shape.channels, rng.choice([8, 16])
    up, down = nn.Linear(width, inner), nn.Linear(inner, width)
    functions = {
        "norm first": lambda s, x: x + s.down(F.gelu(s.up(s.norm(x)))),
        "norm behind": lambda s, x: s.norm(x + s.drop(s.down(F.relu(s.up(x))))),
        "gated": lambda s, x: x + s.down(F.silu(s.up(s.norm(x))) * s.gate(s.norm(x))),
        "scaled": lambda s, x: x + 0.5 * s.down(F.gelu(s.up(s.norm(x)), approximate="tanh")),
    }
    name = rng.choice(list(functions))
    made = Called(f"feed forward, {name}", functions[name], up=up, down=down, gate=nn.Linear(width, inner),
                  norm=token_norm(rng, width), drop=nn.Dropout(0.1))  # fmt: skip
    return made, shape


def attention(rng: random.Random, shape: Shape) -> Made | None:
    """torch's own, or written by hand."""
    heads, width = 2, shape.channels
    if width % heads:
        return None
    each = width // heads

    def by_torch(s: nn.Module, x: Tensor) -> Tensor:
        y = s.norm(x)
        return x + s.attention(y, y, y, need_weights=False)[0]

    def heads_of(x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, heads, each).transpose(1, 2)

    def joined(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], -1, width)

    def by_products(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (heads_of(layer(s.norm(x))) for layer in (s.q, s.k, s.v))
        scores = (q @ k.transpose(-2, -1) * each**-0.5).softmax(dim=-1)
        return x + s.out(joined(torch.matmul(scores, v)))

    def in_one(s: nn.Module, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = s.qkv(s.norm(x)).reshape(n, t, 3, heads, each).permute(2, 0, 3, 1, 4).unbind(0)
        return x + s.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))

    def in_chunks(s: nn.Module, x: Tensor) -> Tensor:
        q, k, v = (heads_of(part) for part in s.qkv(s.norm(x)).chunk(3, dim=-1))
        return x + s.out(
            joined(F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if s.training else 0.0))
        )

    layers = {name: nn.Linear(width, width) for name in ("q", "k", "v", "out")}
    used: dict[Any, dict[str, nn.Module]] = {
        by_torch: {"attention": nn.MultiheadAttention(width, heads, batch_first=True)},
        by_products: dict(layers),
        in_one: {"qkv": nn.Linear(width, 3 * width), "out": layers["out"]},
        in_chunks: {"qkv": nn.Linear(width, 3 * width, bias=False), "out": layers["out"]},
    }
    function = rng.choice(list(used))
    made = Called(f"attention {function.__name__}", function, norm=token_norm(rng, width), **used[function])
    return made, shape


def recurrent(rng: random.Random, shape: Shape) -> Made:
    kind = rng.choice([nn.GRU, nn.LSTM])
    both = rng.random() < 0.3
    made = Called("kept recurrent", lambda s, x: s.kept(x)[0],
                  kept=kind(shape.channels, 6, batch_first=True, bidirectional=both))  # fmt: skip
    return made, replace(shape, channels=12 if both else 6)


def positions(rng: random.Random, shape: Shape) -> Made:
    class Positions(Block):
        line = "learned positions"

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, shape.sizes[0], shape.channels) * 0.2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    return Positions(), shape


def class_token(rng: random.Random, shape: Shape) -> Made:
    class Token(Block):
        line = "a token in front"

        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, shape.channels))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)

    return Token(), replace(shape, sizes=(shape.sizes[0] + 1,))


def shared_layer_norm(rng: random.Random, shape: Shape) -> Made:
    width = shape.channels
    made = Called("one layer norm used twice", lambda s, x: s.norm(x + s.b(F.relu(s.norm(s.a(x))))),
                  a=nn.Linear(width, width), b=nn.Linear(width, width), norm=nn.LayerNorm(width))  # fmt: skip
    return made, shape


def shared_linear(rng: random.Random, shape: Shape) -> Made:
    """One linear layer twice: in a row, within and behind a branch, or around another."""
    width = shape.channels
    ways: list[tuple[str, Callable[[nn.Module, Tensor], Tensor]]] = [
        ("in a row", lambda s, x: s.act(s.a(s.act(s.a(x))))),
        ("within and behind a branch", lambda s, x: s.act(s.a(x + s.act(s.a(x))))),
        ("around another", lambda s, x: s.a(s.act(s.b(s.act(s.a(x)))))),
    ]
    line, way = rng.choice(ways)
    parts = {"a": nn.Linear(width, width), "act": rng.choice([nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh()])}
    if line == "around another":
        parts["b"] = nn.Linear(width, width)
    return Called(f"one linear layer used twice, {line}", way, **parts), shape


def over_time(rng: random.Random, shape: Shape) -> Made:
    conv = nn.Conv1d(shape.channels, 8, 3, padding=1)
    made = Called(
        "convolution over tokens", lambda s, x: F.relu(s.conv(x.transpose(1, 2)).transpose(1, 2)), conv=conv
    )
    return made, replace(shape, channels=8)


TOKENS: tuple[Maker, ...] = (
    token_layer, token_layer, feed_forward, feed_forward, attention, attention, recurrent, positions,
    class_token, shared_layer_norm, shared_linear, over_time, nothing,
)  # fmt: skip


# what is done to vectors (N, C)


def vector_layer(rng: random.Random, shape: Shape) -> Made:
    parts: list[nn.Module] = [nn.Linear(shape.channels, rng.choice([8, 12]))]
    if rng.random() < 0.5:
        parts.append(nn.BatchNorm1d(parts[0].out_features))
    parts.append(activation_module(rng, parts[0].out_features))
    if rng.random() < 0.3:
        parts.append(nn.Flatten())
    return nn.Sequential(*parts), Shape(parts[0].out_features)


def vector_residual(rng: random.Random, shape: Shape) -> Made:
    made = Called("residual of vectors", lambda s, x: F.relu(x + s.b(F.relu(s.a(x)))),
                  a=nn.Linear(shape.channels, 8), b=nn.Linear(8, shape.channels))  # fmt: skip
    return made, shape


VECTORS: tuple[Maker, ...] = (vector_layer, vector_layer, vector_residual, shared_linear, nothing)


# from one kind to another


def to_tokens(rng: random.Random, shape: Shape) -> Made:
    count = 1
    for size in shape.sizes:
        count *= size
    made = Called("to tokens", lambda s, x: x.flatten(2).transpose(1, 2))
    return made, Shape(shape.channels, (count,), tokens=True)


def to_vector(rng: random.Random, shape: Shape) -> Made:
    if shape.tokens:
        function = rng.choice([lambda s, x: x.mean(1), lambda s, x: x[:, 0], lambda s, x: x.amax(dim=1)])
        return Called("tokens to a vector", function), Shape(shape.channels)
    count = shape.channels
    for size in shape.sizes:
        count *= size
    axes = tuple(range(2, 2 + shape.dimensions))
    makers: list[Callable[[], Made]] = [
        lambda: (Called("mean", lambda s, x: x.mean(axes)), Shape(shape.channels)),
        lambda: (Called("largest", lambda s, x: x.amax(axes)), Shape(shape.channels)),
        lambda: (nn.Sequential(ADAPTIVE_POOLS[shape.dimensions](1), nn.Flatten()), Shape(shape.channels)),
        lambda: (
            Called(
                "pooled, squeezed",
                lambda s, x: s.pool(x).flatten(1),
                pool=ADAPTIVE_POOLS[shape.dimensions](1),
            ),
            Shape(shape.channels),
        ),
    ]
    if count <= 200:
        makers.append(lambda: (nn.Flatten(), Shape(count)))
        makers.append(lambda: (Called("view", lambda s, x: x.reshape(x.shape[0], -1)), Shape(count)))
    return rng.choice(makers)()


class RandomNetwork(nn.Module):
    """Stems, one for each input; a trunk; heads. Inputs and outputs come in ``taken`` and ``given``."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.taken = rng.choice(["one"] * 5 + ["two", "dictionary"])
        self.given = rng.choice(["one"] * 5 + ["tuple", "dictionary", "nested"])
        self.lines: list[str] = []
        start, stem = self._stem(rng)
        self.stem, shape = stem
        self.starts = [start]
        self.trunk = nn.ModuleList()
        for _ in range(rng.choice([2, 3, 4, 5])):
            block, shape = self._block(rng, shape)
            self.trunk.append(block)
            self.lines.append(_line(block))
        if shape.sizes:
            block, shape = to_vector(rng, shape)
            self.trunk.append(block)
            self.lines.append(_line(block))
        self.beside = None
        if self.taken != "one":
            self.beside = nn.Linear(5, 6)
            self.starts.append(lambda: torch.randn(1, 5))
            shape = Shape(shape.channels + 6)
        self.behind = nn.ModuleList()
        for _ in range(rng.choice([0, 1, 1])):
            block, shape = rng.choice(VECTORS)(rng, shape)
            self.behind.append(block)
            self.lines.append(_line(block))
        self.head = nn.Linear(shape.channels, rng.choice([1, 3, 7]))
        self.other = nn.Linear(shape.channels, 2) if self.given != "one" else None

    def _stem(self, rng: random.Random) -> tuple[Callable[[], Tensor], Made]:
        kind = rng.choice(["image"] * 5 + ["sequence", "volume", "tokens", "words", "vector"])
        if kind == "words":
            return lambda: torch.randint(0, 20, (1, 6)), (nn.Embedding(20, 8), Shape(8, (6,), tokens=True))
        if kind == "tokens":
            return lambda: torch.randn(1, 6, 8), (nn.Linear(8, 8), Shape(8, (6,), tokens=True))
        if kind == "vector":
            return lambda: torch.randn(1, 10), (nn.Linear(10, 8), Shape(8))
        size = rng.choice([6, 8, 9])
        sizes = {"image": (size, size), "sequence": (12,), "volume": (4, 4, 4)}[kind]
        shape = Shape(rng.choice([1, 3]), sizes)
        return lambda: torch.randn(1, shape.channels, *sizes), plain(rng, shape)

    def _block(self, rng: random.Random, shape: Shape) -> Made:
        while True:
            if not shape.sizes:
                made = rng.choice(VECTORS)(rng, shape)
            elif shape.tokens:
                made = rng.choice(TOKENS)(rng, shape)
            elif rng.random() < 0.08:
                made = to_tokens(rng, shape)
            else:
                made = rng.choice(SPATIAL)(rng, shape)
            if made is not None and made[1].channels <= 48:
                return made

    def example(self) -> tuple[Any, ...]:
        """Inputs with a batch of one."""
        tensors = [start() for start in self.starts]
        if self.taken == "dictionary":
            return ({"main": tensors[0], "beside": tensors[1]},)
        return tuple(tensors)

    def forward(self, x: Any, y: Tensor | None = None) -> Any:
        if self.taken == "dictionary":
            x, y = x["main"], x["beside"]
        x = self.stem(x)
        for block in self.trunk:
            x = block(x)
        if self.beside is not None:
            x = torch.cat([x, F.relu(self.beside(y))], 1)
        for block in self.behind:
            x = block(x)
        if self.other is None:
            return self.head(x)
        both = self.head(x), self.other(x)
        if self.given == "tuple":
            return both
        if self.given == "dictionary":
            return {"first": both[0], "second": both[1]}
        return {"all": [both[0], (both[1],)]}


def _line(block: nn.Module) -> str:
    return getattr(block, "line", "") or " ".join(str(block).split())


def trained(model: nn.Module) -> None:
    """Norms as training leaves them; some gains are negative, batch norms have one of 0."""
    for part in model.modules():
        if "Norm" not in type(part).__name__ or list(part.children()):
            continue
        with torch.no_grad():
            for name, middle in (("weight", 1.0), ("bias", 0.0)):
                held = getattr(part, name, None)
                if isinstance(held, Tensor):
                    held.normal_(middle, 0.3)
            if isinstance(part, _BatchNorm) and part.running_mean is not None:
                part.running_mean.normal_(0.0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
                if part.affine:
                    part.weight[0] *= -1
                    part.weight[-1] = 0.0


def random_network(seed: int) -> tuple[RandomNetwork, tuple[Any, ...]]:
    """A network, in evaluation mode, and inputs with a batch of one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RandomNetwork(random.Random(seed))
        trained(model)
        return model.eval(), model.example()


def described(seed: int, model: RandomNetwork) -> str:
    """For whoever reads of a failure."""
    lines = [f"random_network({seed}): takes {model.taken}, gives {model.given}", f"  {_line(model.stem)}"]
    return "\n".join([*lines, *(f"  {line}" for line in model.lines)])


def main() -> None:
    """Print a network, and what is proved of it."""
    import leanfront as lf
    from leanfront.search.gate.prove import prove

    for seed in map(int, sys.argv[1:]):
        model, example = random_network(seed)
        print(described(seed, model))
        captured = lf.capture(model, example)
        for check in prove(model, captured, example).checks:
            print(f"  {check.passed!s:<6} {check.sentence}")


if __name__ == "__main__":
    main()
