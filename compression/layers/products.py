"""A layer as what it is: a matrix product of the values that it reads at a place with its weights."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.layers.kinds import LayerKind

PLACES = 4096
"""Places of what a layer puts out (pixels of some images) that its weights are fitted on."""


def matrices(kind: LayerKind, module: nn.Module, weight: Tensor) -> Tensor:
    """A weight as one matrix for each group, (groups, outputs of a group, values read)."""
    groups = int(getattr(module, "groups", 1))
    if kind.out_axis == 0:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    spread = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return spread.flip(list(range(3, spread.dim()))).flatten(2)


def weight_of(kind: LayerKind, module: nn.Module, found: Tensor, like: Tensor) -> Tensor:
    """What ``matrices`` made into matrices back as a weight of the shape of ``like``."""
    if kind.out_axis == 0:
        return found.reshape(like.shape)
    groups, outputs = found.shape[:2]
    spread = found.reshape(groups, outputs, -1, *like.shape[2:])
    return spread.flip(list(range(3, spread.dim()))).transpose(1, 2).reshape(like.shape)


def values_at(kind: LayerKind, made: Tensor, places: Tensor) -> Tensor:
    """(places, channels) of a tensor that a layer puts out. ``places``: see ``number_of_places``."""
    return made.movedim(kind.channel_axis(made.dim()), -1).flatten(0, -2)[places]


def number_of_places(kind: LayerKind, made: Tensor) -> int:
    """Of a tensor that a layer puts out: examples times what there is beside the channels. They are counted
    as in a tensor whose channels come last."""
    return made.numel() // made.shape[kind.channel_axis(made.dim())]


def some_places(kind: LayerKind, made: Tensor) -> Tensor:
    """Of the places of a tensor that a layer puts out at most ``PLACES``, drawn: the same whenever there are
    as many."""
    count = number_of_places(kind, made)
    generator = torch.Generator().manual_seed(count)
    return torch.randperm(count, generator=generator)[:PLACES].to(made.device)


def values_read(kind: LayerKind, module: nn.Module, given: Tensor, places: Tensor) -> Tensor:
    """What a layer reads for some places of what it puts out, (groups, places, values read): these times
    ``matrices`` are what it makes of them without its bias."""
    if not isinstance(module, nn.modules.conv._ConvNd):
        return given.flatten(0, -2)[places][None]
    padded, strides = _padded(module, given)
    sizes = module.kernel_size
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, sizes, strict=True)]
    inner = padded.shape[2:]
    outer = [(n - span) // s + 1 for n, span, s in zip(inner, spans, strides, strict=True)]
    rows, left = torch.zeros_like(places), places
    step = 1
    offsets = torch.zeros(1, dtype=torch.int64, device=given.device)
    for d in reversed(range(len(sizes))):
        rows = rows + (left % outer[d]) * strides[d] * step
        left = left // outer[d]
        along = torch.arange(sizes[d], device=given.device) * module.dilation[d] * step
        offsets = (along[:, None] + offsets[None]).reshape(-1)
        step *= inner[d]
    rows = rows + left * step
    lines = padded.movedim(1, -1).flatten(0, -2)
    found = lines[(rows[:, None] + offsets[None]).reshape(-1)]
    return _in_groups(found, len(places), len(offsets), module.groups)


def _in_groups(found: Tensor, places: int, window: int, groups: int) -> Tensor:
    """(places * window, channels) as (groups, places, channels of a group * window)."""
    inside = found.shape[1] // groups
    return found.reshape(places, window, groups, inside).permute(2, 0, 3, 1).reshape(groups, places, -1)


def _padded(module: nn.modules.conv._ConvNd, given: Tensor) -> tuple[Tensor, Sequence[int]]:
    """What a convolution reads with its padding, and by how many values its window moves. A transposed one
    is one with zeros between what it reads (Dumoulin and Visin 2016, section 4)."""
    rank = len(module.kernel_size)
    if not module.transposed:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return F.pad(given, module._reversed_padding_repeated_twice, mode=mode), module.stride
    strides = module.stride
    sizes = [(n - 1) * s + 1 for n, s in zip(given.shape[2:], strides, strict=True)]
    spread = given.new_zeros(*given.shape[:2], *sizes)
    spread[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = given
    pads: list[int] = []
    for d in reversed(range(rank)):
        before = module.dilation[d] * (module.kernel_size[d] - 1) - int(module.padding[d])
        pads += [before, before + module.output_padding[d]]
    return F.pad(spread, pads), [1] * rank
