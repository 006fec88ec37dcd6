"""What a layer of a file holds: weights and bias, as floats or integer codes. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph import LayerShape, Network, operation
from leanfront.compression.policy import LayerPolicy, Policy

V = TypeVar("V", bound=Any)


@dataclass(frozen=True)
class LayerWeights:
    """Weights in torch's layout; ``bias`` (out_channels,) float32.

    Either ``weight`` (float32) or ``codes`` (int8) with ``scales`` (out_channels,) float32 is set:
    weight = codes * scales.
    """

    bias: NDArray[np.float32]
    weight: NDArray[np.float32] | None = None
    codes: NDArray[np.int8] | None = None
    scales: NDArray[np.float32] | None = None

    def floats(self, axis: int = 0) -> NDArray[np.float32]:
        """The weight as floats; ``axis``: that of the output channels."""
        if self.codes is None or self.scales is None:
            assert self.weight is not None
            return self.weight
        return self.codes * along(self.scales, self.codes.shape, axis)

    def transposed(self) -> "LayerWeights":
        """A linear layer's weight as a matrix product wants it, (in, out)."""
        if self.codes is not None:
            return replace(self, codes=np.ascontiguousarray(self.codes.T))
        assert self.weight is not None
        return replace(self, weight=np.ascontiguousarray(self.weight.T))


def along(values: V, shape: Sequence[int], axis: int) -> V:
    """One value per output channel, an array or a tensor, so that it broadcasts with a weight of ``shape``
    that has them along ``axis``.

    A transposed convolution in groups has along its axis as many as one group has; those of the groups lie
    one after the other along the first.
    """
    wanted = [1] * len(shape)
    wanted[axis] = shape[axis]
    groups = len(values) // shape[axis]
    if groups > 1:
        wanted[0] = shape[0]
        inside = shape[0] // groups
        values = values.reshape(groups, -1)[[row // inside for row in range(shape[0])]]
    reshaped: V = values.reshape(wanted)
    return reshaped


def in_groups(weight: V, channels: int, axis: int) -> V:
    """A view of a weight, an array or a tensor, of four dimensions: its output channels, of which there are
    so many, are along the first (groups) and the third (those of a group); see ``along``."""
    inside = weight.shape[axis]
    groups = channels // inside
    before = math.prod(weight.shape[:axis]) // groups
    viewed: V = weight.reshape(groups, before, inside, -1)
    return viewed


def highest_code(bits: int) -> int:
    """The largest weight code: codes are -highest .. highest (2 bits: -1, 0, 1; 1 bit: -1, 1)."""
    return max(1, int(2 ** (bits - 1)) - 1)


def bias_codes(
    held: LayerWeights, finer: int, activation_scale: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The bias of an integer layer as int32 codes and their scales, both (out_channels,).

    Accumulators count in steps of weight scale times the scale of the tensor that the layer reads, divided by
    ``finer`` (``Dialect.finer``); so must the bias.
    """
    assert held.scales is not None
    steps = held.scales.astype(np.float64) * np.float64(np.float32(activation_scale))
    steps /= finer
    return np.round(held.bias / steps).astype(np.int32), steps.astype(np.float32)


def finer_steps(weight_bits: int) -> int:
    """How many steps of an integer kernel make one weight code: 8 for 4 bits, 1 for 7 and 8.

    The kernel adds the bias in steps of weight scale times activation scale, which are coarse where the
    weights have few levels; codes times this factor on steps as much finer are the same weights, and the bias
    is as exact as with 7 bits. (7 and not 8: AVX2 kernels without VNNI saturate above.)
    """
    return int(2 ** max(0, 7 - weight_bits))


def random_weights(network: Network, policy: Policy, seed: int = 0) -> dict[str, LayerWeights]:
    """Weights of the right shapes and kinds, for timing: latency does not depend on their values.

    They are cut from tiles of random numbers that are drawn once; no two layers get the same.
    """
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, _TILE // 2, len(network.layers)).tolist()
    return {
        layer.name: _random_layer(layer.shape, policy[layer.name], seed, start)
        for layer, start in zip(network.layers, starts, strict=True)
    }


def weight_shape(shape: LayerShape) -> tuple[int, ...]:
    """Shape of a layer's weight in torch's layout."""
    if operation(shape.op).looked_up:
        return (shape.in_channels, shape.out_channels)
    if shape.op == "linear" or operation(shape.op).weight_only:
        return (shape.out_channels, shape.in_channels)
    if shape.op == "conv_transpose2d":
        return (shape.in_channels, shape.out_channels // shape.groups, *shape.kernel)
    return (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)


_TILE = 2**16


@cache
def _normal_tile(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(_TILE, dtype=np.float32)


@cache
def _code_tile(seed: int, top: int) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-top, top + 1, _TILE, dtype=np.int8)


def _random_layer(shape: LayerShape, layer_policy: LayerPolicy, seed: int, start: int) -> LayerWeights:
    size = weight_shape(shape)
    normal = _normal_tile(seed)[start:]
    bias = np.resize(normal, shape.out_channels) * np.float32(0.01)
    spread = math.sqrt(2.0 / max(math.prod(size[1:]), 1))
    if layer_policy.weight_bits > 8:
        return LayerWeights(bias, weight=np.resize(normal, size) * np.float32(spread))
    top = highest_code(layer_policy.weight_bits)
    codes = np.resize(_code_tile(seed, top)[start:], size)
    scales = (1.0 + np.resize(normal, shape.out_channels) / 50) * np.float32(spread / top)
    return LayerWeights(bias, codes=codes, scales=scales.astype(np.float32))
