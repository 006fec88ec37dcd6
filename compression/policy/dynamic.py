"""Layers whose tensors are quantized while a network runs: which can be, and what their files take. No torch.

A linear layer with weights of 8 bits that reads floats may have them quantized to 8 bits in each inference,
on a grid from the smallest to the largest of them (dynamic quantization): it computes in integers, and
nothing is calibrated.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.network import Network
from leanfront.compression.policy.policy import LayerPolicy, PolicyError

DYNAMIC = "dynamic"
"""Name of the technique: its number is 1 for a layer that is quantized so."""
BITS = (8, 32)
"""Of the weights of such a layer, and of what it reads."""
ON_VECTORS_BYTES, ON_SEQUENCES_BYTES = 81, 77
"""By which the file of a layer is larger than with its weights decoded to floats."""


def is_dynamic(policy: LayerPolicy) -> bool:
    """Whether a layer's tensor is quantized while it runs."""
    return bool(policy.value(DYNAMIC))


def able(network: Network, name: str) -> bool:
    """Whether a layer has such a kernel: linear layers have."""
    layer = network.layer[name]
    return layer.shape.op == "linear" and not layer.weight_only


def check_dynamic(network: Network, policy: Mapping[str, LayerPolicy]) -> None:
    """Raise PolicyError for a layer that cannot be quantized so."""
    for name, layer in policy.items():
        if not is_dynamic(layer) or name not in network.layer:
            continue
        bits = layer.weight_bits, layer.activation_bits
        if not able(network, name) or bits != BITS or layer.value(DYNAMIC) != 1.0:
            raise PolicyError(
                f"dynamic is 1 for a linear layer with weights of {BITS[0]} bits that reads floats ({BITS[1]}"
                f" bits), but {name!r} ({network.layer[name].shape.op}, {bits[0]} and {bits[1]} bits) has"
                f" {layer.value(DYNAMIC):g}; leave it out there"
            )


def more_bytes(network: Network, values: NDArray[Any]) -> NDArray[np.int64]:
    """(n,): bytes by which files are larger. ``values``: (layers, n), which layers are quantized so."""
    found = np.zeros(values.shape[1], dtype=np.int64)
    for row, layer in enumerate(network.layers):
        if values[row].any():
            vectors = not any(network.node[use].spatial for use in network.uses[layer.name])
            found += (values[row] > 0) * (ON_VECTORS_BYTES if vectors else ON_SEQUENCES_BYTES)
    return found
