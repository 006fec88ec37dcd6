"""The deployed form of a compressed network, in torch: what the exported file computes, value for value."""

import copy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from leanfront.compression.export.weights import activation_grids, bias_codes, layer_weights
from leanfront.compression.graph import kernels
from leanfront.compression.policy.precision import computes_in_integers, source_of_range
from leanfront.compression.techniques.compress import Compressed


@torch.no_grad()
def fold(compressed: Compressed) -> Compressed:
    """A copy with batch norms folded, weights as their codes show them, and biases rounded as exported.

    An integer kernel adds its bias in steps of weight scale times activation scale. Those roundings are
    small, but in a deep network they change which way later values are rounded: a ResNet-20 that keeps its
    biases in floats answers 0.8 % of the images differently from its own file, this form answers all alike.
    The copy is for scoring; train the original.
    """
    module = copy.deepcopy(compressed.module).eval()
    held_by = layer_weights(compressed)
    grids = activation_grids(compressed)
    fused = kernels(compressed.network)
    for kernel in fused:
        if kernel.layer is None:
            continue
        layer = module.get_submodule(kernel.layer.name)
        held = held_by[kernel.layer.name]
        device = next(layer.parameters()).device
        if parametrize.is_parametrized(layer):
            # not remove_parametrizations: a deep copy shares its class with the original, and would damage it
            layer.__class__ = type(layer).__bases__[0]
            del layer._modules["parametrizations"]
        bias = torch.from_numpy(held.bias)
        layer_policy = compressed.policy[kernel.layer.name]
        if computes_in_integers(kernel.layer, layer_policy):
            grid = grids[source_of_range(kernel.inputs[0], fused)]
            codes, steps = bias_codes(held, layer_policy.weight_bits, grid.scale)
            bias = (torch.from_numpy(codes).double() * torch.from_numpy(steps).double()).float()
        weight = torch.from_numpy(held.floats(axis=1 if isinstance(layer, nn.ConvTranspose2d) else 0))
        layer.register_parameter("weight", nn.Parameter(weight.to(device)))
        layer.register_parameter("bias", nn.Parameter(bias.to(device)))
        folded = {node.name for node in kernel.nodes[1:]}
        for node in module.graph.nodes:
            if node.op == "call_module" and node.name in folded:
                name = str(node.target)
                if isinstance(module.get_submodule(name), _BatchNorm):
                    module.set_submodule(name, nn.Identity())
    return Compressed(module, compressed.network, compressed.policy)
