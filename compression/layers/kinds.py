"""The table of layers: a torch module, its axes, its shape as prices see it, its attributes in a file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from leanfront.compression.graph import LayerShape


@dataclass(frozen=True)
class LayerKind:
    """One kind of layer.

    op: of its ``LayerShape``; a sequence is an image of height 1, and a volume one whose height counts depth
    times height. module: the class of torch. out_axis, in_axis: of its weight, the dimensions of output and
    input channels. last: channels are the last dimension of its tensors, else the second. counts: what a
    module calls its numbers of input and output channels. looked_up: what it reads are places in its input
    dimension, and no channels. alone: it reads nothing, and puts out its weight.
    """

    op: str
    module: type[nn.Module]
    out_axis: int
    in_axis: int
    last: bool = False
    counts: tuple[str, str] = ("in_channels", "out_channels")
    looked_up: bool = False
    alone: bool = False

    @property
    def weight_only(self) -> bool:
        """Whether nothing is computed with its weights, which are stored alone."""
        return self.looked_up or self.alone

    def channel_axis(self, rank: int) -> int:
        """The dimension of channels in a tensor that it reads or puts out."""
        return rank - 1 if self.last else 1

    def channels(self, module: nn.Module) -> tuple[int, int]:
        """Input and output channels of a module."""
        inputs, outputs = self.counts
        return getattr(module, inputs), getattr(module, outputs)

    def set_channels(self, module: nn.Module, inputs: int, outputs: int, groups: int) -> None:
        """Say in a module that it has so many channels, in place; its weights are changed by the caller."""
        for name, count in zip(self.counts, (inputs, outputs), strict=True):
            setattr(module, name, count)
        if not self.last:
            setattr(module, "groups", groups)  # noqa: B010 (not an attribute of every Module)

    def attributes(self, module: nn.Module) -> Mapping[str, Any]:
        """Of its ONNX operation: kernel, strides, paddings, dilations and groups."""
        if not isinstance(module, nn.modules.conv._ConvNd):
            return {}
        found: dict[str, Any] = {"kernel_shape": list(module.kernel_size), "strides": list(module.stride)}
        found["pads"] = paddings(module)
        found["dilations"] = list(module.dilation)
        if module.transposed and any(module.output_padding):
            found["output_padding"] = list(module.output_padding)
        if module.groups > 1:
            found["group"] = module.groups
        return found


def paddings(module: nn.modules.conv._ConvNd) -> list[int]:
    """Zeros around each dimension of what a convolution reads, those before all dimensions first."""
    if isinstance(module.padding, str):
        if module.padding == "valid":
            return [0] * (2 * len(module.kernel_size))
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    sizes = [int(size) for size in module.padding]
    return sizes + sizes


class Weights(nn.Module):
    """Weights (rows, columns) that something computes with which is no layer: a recurrent one."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.rows, self.columns = weight.shape

    def forward(self) -> Tensor:
        """They themselves."""
        return self.weight


KINDS: tuple[LayerKind, ...] = (
    LayerKind("linear", nn.Linear, 0, 1, last=True, counts=("in_features", "out_features")),
    LayerKind(
        "embedding", nn.Embedding, 1, 0, last=True, counts=("num_embeddings", "embedding_dim"), looked_up=True
    ),
    LayerKind("weights", Weights, 0, 1, last=True, counts=("columns", "rows"), alone=True),
    LayerKind("conv2d", nn.Conv1d, 0, 1),
    LayerKind("conv2d", nn.Conv2d, 0, 1),
    LayerKind("conv2d", nn.Conv3d, 0, 1),
    LayerKind("conv_transpose2d", nn.ConvTranspose1d, 1, 0),
    LayerKind("conv_transpose2d", nn.ConvTranspose2d, 1, 0),
    LayerKind("conv_transpose2d", nn.ConvTranspose3d, 1, 0),
)

_BY_CLASS = {kind.module: kind for kind in KINDS}


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer; None where a module is none. A parametrized module is of the kind that it was."""
    return next((_BY_CLASS[cls] for cls in type(module).__mro__ if cls in _BY_CLASS), None)


def pair(sizes: Sequence[int]) -> tuple[int, int]:
    """Sizes of one, two or three dimensions as height and width."""
    return math.prod(sizes[:-1]), int(sizes[-1])


def layer_shape(kind: LayerKind, module: nn.Module, out_shape: Sequence[int]) -> LayerShape:
    """What a layer computes. ``out_shape``: of the tensor that it puts out, with a batch of one."""
    inputs, outputs = kind.channels(module)
    if kind.alone:
        return LayerShape(kind.op, inputs, outputs)
    if kind.last:
        return LayerShape(kind.op, inputs, outputs, out_height=math.prod(out_shape[:-1]))
    assert isinstance(module, nn.modules.conv._ConvNd)
    return LayerShape(
        kind.op, inputs, outputs, pair(module.kernel_size), pair(module.stride), module.groups,
        *pair(out_shape[2:]),
    )  # fmt: skip
