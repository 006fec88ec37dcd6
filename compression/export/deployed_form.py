"""The deployed form of a compressed network, in torch: what the exported file computes, value for value."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.export.dialects import QDQ, Dialect
from leanfront.compression.export.weights import LayerWeights, along, bias_codes, finer_steps, in_groups
from leanfront.compression.graph import kernels
from leanfront.compression.layers import kind_of
from leanfront.compression.policy.grids import ActivationGrid
from leanfront.compression.policy.precision import computes_in_integers, source_of_range, tensor_bits
from leanfront.compression.techniques.compress import Compressed
from leanfront.compression.techniques.quantize import QUANTIZER, WeightQuantizer, quantizers, taken_off

_USE = "use_"
"""Prefix of what a further use of a layer calls in the deployed form; the rest of the name is its node's."""


@torch.no_grad()
def fold(compressed: Compressed, dialect: Dialect = QDQ) -> Compressed:
    """A copy with batch norms folded, weights as their codes show them, biases and sums as in a file of that
    kind (``Dialect.rounds_biases``, ``Dialect.rounds_summands``).

    An integer kernel adds its bias in steps of weight scale times activation scale. Those roundings are
    small, but in a deep network they change which way later values are rounded: a ResNet-20 that keeps its
    biases in floats answers 0.8 % of the images differently from its own file, this form answers all alike.
    The copy is for scoring; train the original. A layer that is used several times is one for each use in it:
    what they read has other steps, and so have their biases.
    """
    module = copy.deepcopy(compressed.module).eval()
    held_by = layer_weights(compressed)
    grids = activation_grids(compressed)
    fused = kernels(compressed.network)
    calls = {node.name: node for node in module.graph.nodes}
    for kernel in fused:
        if kernel.layer is None:
            continue
        layer = module.get_submodule(kernel.layer.name)
        if kernel.use > 1:
            layer, name = copy.deepcopy(layer), _USE + kernel.nodes[0].name
            module.add_submodule(name, layer)
            calls[kernel.nodes[0].name].target = name
        held = held_by[kernel.layer.name]
        device = next(layer.parameters()).device
        taken_off(layer)
        bias = torch.from_numpy(held.bias)
        layer_policy = compressed.policy[kernel.layer.name]
        if dialect.rounds_biases and computes_in_integers(kernel.layer, layer_policy):
            grid = grids[source_of_range(kernel.inputs[0], fused)]
            finer = dialect.finer(kernel.layer, layer_policy)
            codes, steps = bias_codes(held, finer, grid.scale)
            bias = (torch.from_numpy(codes).double() * torch.from_numpy(steps).double()).float()
        weight = torch.from_numpy(held.floats(axis=_out_axis(layer)))
        layer.register_parameter("weight", nn.Parameter(weight.to(device)))
        if not kernel.layer.weight_only:
            layer.register_parameter("bias", nn.Parameter(bias.to(device)))
        folded = {node.name for node in kernel.nodes[1:]}
        for node in module.graph.nodes:
            if node.op == "call_module" and node.name in folded:
                name = str(node.target)
                if isinstance(module.get_submodule(name), _BatchNorm):
                    module.set_submodule(name, nn.Identity())
    bits = dialect.held_bits(fused, tensor_bits(fused, compressed.policy), compressed.network.outputs)
    for name in quantizers(module):
        if bits[name] > 8:
            module.set_submodule(QUANTIZER + name, nn.Identity())
    module.recompile()
    return replace(compressed, module=module)


def layer_weights(compressed: Compressed) -> dict[str, LayerWeights]:
    """Layer name -> its exported weights, batch norms folded with their running statistics."""
    found = {}
    fused = kernels(compressed.network)
    grids = activation_grids(compressed)
    on_cpu = copy.deepcopy(compressed.module).cpu()
    for kernel in fused:
        if kernel.layer is None or kernel.use > 1:
            continue
        module = on_cpu.get_submodule(kernel.layer.name)
        norms = [
            on_cpu.get_submodule(str(node.target))
            for node in compressed.module.graph.nodes
            if node.op == "call_module" and node.name in {n.name for n in kernel.nodes[1:]}
        ]
        held = _folded(module, [n for n in norms if isinstance(n, _BatchNorm)])
        layer_policy = compressed.policy[kernel.layer.name]
        if layer_policy.weight_bits == 16:
            held = _in_halves(held)
        uses = [
            use
            for use in fused
            if use.layer is not None
            and use.layer.name == kernel.layer.name
            and computes_in_integers(use.layer, layer_policy)
        ]
        if uses:
            finest = min(grids[source_of_range(use.inputs[0], fused)].scale for use in uses)
            step = finest / finer_steps(layer_policy.weight_bits)
            held = _with_bias_in_reach(held, layer_policy.weight_bits, step, _out_axis(module))
        found[kernel.layer.name] = held
    return found


def _out_axis(module: nn.Module) -> int:
    kind = kind_of(module)
    assert kind is not None
    return kind.out_axis


@torch.no_grad()
def _folded(module: nn.Module, norms: list[_BatchNorm]) -> LayerWeights:
    quantizer = None
    if parametrize.is_parametrized(module, "weight"):
        steps = module.parametrizations["weight"]  # type: ignore[index]
        weight = steps.original  # type: ignore[union-attr]
        for step in steps:  # of other techniques what they show, of the quantizer its codes below
            quantizer = step if isinstance(step, WeightQuantizer) else None
            weight = weight if quantizer else step(weight)
    else:
        weight = module.weight
    assert isinstance(weight, Tensor)
    axis = _out_axis(module)
    kind = kind_of(module)
    assert kind is not None
    factor = torch.ones(kind.channels(module)[1], dtype=torch.float64)
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
    if not isinstance(quantizer, WeightQuantizer):
        folded = (weight.double() * along(factor, weight.shape, axis)).numpy().astype(np.float32)
        if parametrize.is_parametrized(module, "weight"):
            folded += np.float32(0.0)  # a 0 times a negative gain is -0, which is 0 to nobody who zips a file
        return LayerWeights(bias_array, weight=folded)
    scales = quantizer.scales(weight)
    signs = factor.sign().float()
    if quantizer.bits == 1:  # there is no code 0
        signs = torch.where(signs < 0, signs, 1.0)
    codes = quantizer.codes(weight) * along(signs, weight.shape, axis)
    return LayerWeights(
        bias_array,
        codes=codes.numpy().astype(np.int8),
        scales=(scales.double() * factor.abs()).clamp(min=1e-30).numpy().astype(np.float32),
    )


def _in_halves(held: LayerWeights) -> LayerWeights:
    """With the weight rounded to float16, as floats; what is larger than it can hold is infinite."""
    assert held.weight is not None
    with np.errstate(over="ignore"):
        return replace(held, weight=held.weight.astype(np.float16).astype(np.float32))


def _with_bias_in_reach(
    held: LayerWeights, weight_bits: int, activation_scale: float, axis: int
) -> LayerWeights:
    """The same weights; channels that are next to nothing beside their bias become 0, or, of 1 bit, as small
    as the bias lets them be.

    A batch norm with a gain near 0 leaves such channels: their bias, in steps of the product of the scales,
    would not fit 32 bits. Channels of zeros, whose scale says nothing, get fine steps, too.
    """
    assert held.codes is not None
    assert held.scales is not None
    reach = np.abs(held.bias.astype(np.float64)) / activation_scale
    if weight_bits == 1:  # there is no code 0
        scales = np.maximum(held.scales, reach / 2**30).astype(np.float32)
        return LayerWeights(held.bias, codes=held.codes, scales=scales)
    zeros = ~in_groups(held.codes, len(held.scales), axis).any(axis=(1, 3)).reshape(-1)
    empty = zeros | (held.scales < reach / 2**30)
    scales = np.where(empty, np.maximum(reach / 2**20, 1e-12), held.scales).astype(np.float32)
    codes = held.codes * along(~empty, held.codes.shape, axis)
    return LayerWeights(held.bias, codes=codes, scales=scales)


def activation_grids(compressed: Compressed) -> Mapping[str, ActivationGrid]:
    """Tensor (kernel) name -> the grid of its quantizer."""
    return {name: quantizer.grid() for name, quantizer in quantizers(compressed.module).items()}
