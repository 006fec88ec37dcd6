"""What an exported layer holds: its weights with the batch norm folded in, as floats or integer codes."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.graph import LayerShape, Network, kernels
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.grids import ActivationGrid
from leanfront.compression.policy.precision import computes_in_integers, source_of_range
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import (
    WeightQuantizer,
    channel_scales,
    highest_code,
    quantizers,
    weight_codes,
)


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
        shape = [1] * self.codes.ndim
        shape[axis] = -1
        return self.codes * self.scales.reshape(shape)


def bias_codes(
    held: LayerWeights, weight_bits: int, activation_scale: float
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The bias of an integer layer as int32 codes and their scales, both (out_channels,).

    Accumulators count in steps of weight scale times the scale of the tensor that the layer reads, divided by
    ``finer_steps``; so must the bias.
    """
    assert held.scales is not None
    steps = held.scales.astype(np.float64) * np.float64(np.float32(activation_scale))
    steps /= finer_steps(weight_bits)
    return np.round(held.bias / steps).astype(np.int32), steps.astype(np.float32)


def layer_weights(compressed: Compressed) -> dict[str, LayerWeights]:
    """Layer name -> its exported weights, batch norms folded with their running statistics."""
    found = {}
    fused = kernels(compressed.network)
    grids = activation_grids(compressed)
    on_cpu = copy.deepcopy(compressed.module).cpu()
    for kernel in fused:
        if kernel.layer is None:
            continue
        module = on_cpu.get_submodule(kernel.layer.name)
        norms = [
            on_cpu.get_submodule(str(node.target))
            for node in compressed.module.graph.nodes
            if node.op == "call_module" and node.name in {n.name for n in kernel.nodes[1:]}
        ]
        held = _folded(module, [n for n in norms if isinstance(n, _BatchNorm)])
        layer_policy = compressed.policy[kernel.layer.name]
        if computes_in_integers(kernel.layer, layer_policy):
            read = grids[source_of_range(kernel.inputs[0], fused)]
            step = read.scale / finer_steps(layer_policy.weight_bits)
            held = _with_bias_in_reach(held, step, 1 if isinstance(module, nn.ConvTranspose2d) else 0)
        found[kernel.layer.name] = held
    return found


@torch.no_grad()
def _folded(module: nn.Module, norms: list[_BatchNorm]) -> LayerWeights:
    transposed = isinstance(module, nn.ConvTranspose2d)
    quantizer = None
    if parametrize.is_parametrized(module, "weight"):
        (quantizer,) = module.parametrizations["weight"]  # type: ignore[index]
        weight = module.parametrizations["weight"].original  # type: ignore[index,union-attr]
    else:
        weight = module.weight
    assert isinstance(weight, Tensor)
    axis = 1 if transposed else 0
    factor = torch.ones(weight.shape[axis], dtype=torch.float64)
    bias = torch.zeros_like(factor)
    own_bias = getattr(module, "bias", None)
    if isinstance(own_bias, Tensor):
        bias = own_bias.double()
    for norm in norms:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        gain = 1.0 / torch.sqrt(norm.running_var.double() + norm.eps)
        shift = -norm.running_mean.double() * gain
        if norm.affine:
            gain, shift = gain * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
        factor, bias = factor * gain, bias * gain + shift
    bias_array = bias.numpy().astype(np.float32)
    shape = [1] * weight.dim()
    shape[axis] = -1
    if not isinstance(quantizer, WeightQuantizer):
        folded = (weight.double() * factor.view(shape)).numpy().astype(np.float32)
        return LayerWeights(bias_array, weight=folded)
    scales = channel_scales(weight, quantizer.bits, quantizer.clip, axis)
    codes = weight_codes(weight, scales, quantizer.bits, axis) * factor.sign().float().view(shape)
    return LayerWeights(
        bias_array,
        codes=codes.numpy().astype(np.int8),
        scales=(scales.double() * factor.abs()).clamp(min=1e-30).numpy().astype(np.float32),
    )


def finer_steps(weight_bits: int) -> int:
    """How many steps of an integer kernel make one weight code: 8 for 4 bits, 1 for 7 and 8.

    The kernel adds the bias in steps of weight scale times activation scale, which are coarse where the
    weights have few levels; codes times this factor on steps as much finer are the same weights, and the bias
    is as exact as with 7 bits. (7 and not 8: AVX2 kernels without VNNI saturate above.)
    """
    return int(2 ** max(0, 7 - weight_bits))


def _with_bias_in_reach(held: LayerWeights, activation_scale: float, axis: int) -> LayerWeights:
    """The same weights; channels that are next to nothing beside their bias become 0.

    A batch norm with a gain near 0 leaves such channels: their bias, in steps of the product of the scales,
    would not fit 32 bits. Channels of zeros, whose scale says nothing, get fine steps, too.
    """
    assert held.codes is not None
    assert held.scales is not None
    others = tuple(d for d in range(held.codes.ndim) if d != axis)
    reach = np.abs(held.bias.astype(np.float64)) / activation_scale
    empty = ~held.codes.any(axis=others) | (held.scales < reach / 2**30)
    scales = np.where(empty, np.maximum(reach / 2**20, 1e-12), held.scales).astype(np.float32)
    codes = held.codes * np.expand_dims(~empty, others)
    return LayerWeights(held.bias, codes=codes, scales=scales)


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
    if shape.op == "linear":
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


def activation_grids(compressed: Compressed) -> Mapping[str, ActivationGrid]:
    """Tensor (kernel) name -> the grid of its quantizer."""
    return {name: quantizer.grid() for name, quantizer in quantizers(compressed.module).items()}
