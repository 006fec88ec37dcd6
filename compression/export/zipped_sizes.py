"""What weights and the rest of a file take when zipped, measured by zipping them."""

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanfront.compression.capture.trace import Traced
from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.graph import Layer, Network, Zipped
from leanfront.compression.layers import kind_of
from leanfront.compression.layers.kinds import LayerKind
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch, size_bytes
from leanfront.compression.policy.flatbuffer_size import KIND, MANY, PACKED
from leanfront.compression.policy.layer_size import storage_bits
from leanfront.compression.policy.zeros import PATTERNS, Pattern
from leanfront.compression.policy.zipped import FLOAT, HALF, LEVEL
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.masks import least
from leanfront.compression.techniques.quantize import best_clip, calibrate, channel_scales, weight_codes

MOST_WEIGHTS = 2**15
"""Of a layer are zipped; of more of them whole rows, evenly spread, ``_ROWS`` together: blocks stay whole."""
_ROWS = 8
_AS_FORETOLD = 0.02
"""A file whose size is further from the foretold one is none that sizes are foretold of (floats that stand
for integers): onnxruntime's is zipped in its place."""


def zipped(
    traced: Traced, network: Network, dialect: Dialect, bits: Iterable[int], shares: Iterable[float]
) -> Network:
    """A network whose layers know what their weights take in a zipped file (``Layer.zipped``).

    Args:
        traced: the uncompressed model; its own weights are zipped.
        network: its network, which knows what operations take in a file of this dialect.
        bits: of weights, that are asked for.
        shares: of zeros, beside those that a search usually offers; what lies between them is a line.
    """
    widths = sorted({*bits, 8, FLOAT})
    each: dict[str, tuple[tuple[str, int, int, tuple[float, ...], tuple[float, ...]], ...]] = {}
    for layer in network.layers:
        sample = _sample(traced.module.get_submodule(layer.name))
        rows = [row for row in PATTERNS.values() if row.fits(layer)]
        found: list[tuple[str, int, int, tuple[float, ...], tuple[float, ...]]] = []
        for one in widths:
            held = _held_bits(network, layer, one)
            plain = _each(sample, one, held, None, 0.0)
            found.append(("", one, held, (0.0,), (plain,)))
            for row in rows:
                wanted = sorted({*row.shares, *(() if row.share else shares)} - {0.0})
                sizes = [_each(sample, one, held, row, share) for share in wanted]
                found.append((row.name, one, held, (0.0, *wanted), (plain, *sizes)))
        each[layer.name] = tuple(found)
    floats, integers = (_rest(traced, network, dialect, one, each) for one in (FLOAT, 8))
    layers = [replace(one, zipped=Zipped(each[one.name], (floats, integers))) for one in network.layers]
    return Network(network.nodes, tuple(layers), network.outputs)


def deflated(content: bytes) -> int:
    """Bytes that are left of some."""
    return len(zlib.compress(content, LEVEL))


class _Sample(NamedTuple):
    """Weights of a layer, or some of its rows; ``channels``: see ``best_clip``."""

    weight: Tensor
    kind: LayerKind
    channels: int | None
    groups: int


def _sample(part: torch.nn.Module) -> _Sample:
    kind, weight = kind_of(part), part.weight
    assert kind is not None
    assert isinstance(weight, Tensor)
    weight = weight.detach().float().cpu()
    rows = MOST_WEIGHTS * weight.shape[0] // max(weight.numel(), 1)
    if rows >= weight.shape[0]:
        return _Sample(weight, kind, kind.channels(part)[1], int(getattr(part, "groups", 1)))
    rows = max(_ROWS, rows // _ROWS * _ROWS)
    chosen = torch.linspace(0, weight.shape[0] - _ROWS, rows // _ROWS).long()[:, None] + torch.arange(_ROWS)
    return _Sample(weight[chosen.flatten()], kind, None, 1)


@torch.no_grad()
def _each(sample: _Sample, bits: int, held: int, pattern: Pattern | None, share: float) -> float:
    """Bytes that a weight of a layer takes when zipped. ``held``: bits that it is stored in."""
    weight, kind = sample.weight, sample.kind
    if pattern is not None:
        weight = weight.masked_fill(least(weight, pattern, share, kind, sample.groups), 0.0)
    if bits > 8:
        weight = weight.half() if bits == HALF else weight
        return deflated(weight.contiguous().numpy().tobytes()) / weight.numel()
    clip = best_clip(weight, bits, kind.out_axis, sample.channels)
    codes = weight_codes(weight, channel_scales(weight, bits, clip, kind.out_axis), bits, kind.out_axis)
    return deflated(packed(codes.numpy().astype(np.int8), held)) / weight.numel()


def _held_bits(network: Network, layer: Layer, bits: int) -> int:
    """Bits that a weight is stored in: in a flatbuffer only some layers have room for 4 alone."""
    kinds = {node.written.spelling.kind for node in network.nodes if node.written is not None}
    shape = layer.shape
    if kinds != {KIND} or bits > 4:
        return storage_bits(bits)
    added = math.prod(shape.kernel) * shape.in_channels // shape.groups
    return 4 if shape.op in PACKED and added >= MANY else 8


def packed(codes: NDArray[np.int8], size: int) -> bytes:
    """Codes as a file holds them in so many bits: of fewer than 8 several in a byte, the first lowest."""
    flat = codes.reshape(-1)
    if size == 8:
        return flat.tobytes()
    several = 8 // size
    flat = np.concatenate([flat, np.zeros(-len(flat) % several, dtype=np.int8)]).view(np.uint8)
    parts = (flat & (2**size - 1)).reshape(-1, several) << (size * np.arange(several, dtype=np.uint8))
    return bytes(np.bitwise_or.reduce(parts.astype(np.uint8), axis=1).tobytes())


def _rest(
    traced: Traced, network: Network, dialect: Dialect, bits: int, each: Mapping[str, Sequence[Any]]
) -> float:
    """Of a file of the uncut network with weights and tensors of so many bits: the share of its size, but for
    its weights, that is left when it is zipped. ``each``: of each layer ``Zipped.each``."""
    policy = Policy.uniform(network, LayerPolicy(0.0, bits, bits))
    made = compress(traced, policy)
    calibrate(made.module, [traced.example])  # where the grids lie changes no size
    content = dialect.finished(exported(template(traced), made, dialect), made.network, policy)
    if abs(len(content) / size_bytes(network, policy) - 1.0) > _AS_FORETOLD:
        content = exported(template(traced), made, QDQ).SerializeToString()
    counts = PolicyBatch.of(network, [policy]).weight_counts[:, 0].tolist()
    stored = left = 0.0
    for layer, count in zip(network.layers, counts, strict=True):
        plain = [one for one in each[layer.name] if one[:2] == ("", policy[layer.name].weight_bits)]
        (_, _, held, _, (size,)) = plain[0]
        stored, left = stored + count * held / 8, left + count * size
    return float(np.clip((deflated(content) - left) / max(len(content) - stored, 1.0), 0.0, 1.0))
