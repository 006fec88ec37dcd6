"""Layers whose tensors are quantized while a network runs: which can be, and what their files take. No torch.

A linear layer with weights of 8 bits that reads floats may have them quantized to 8 bits in each inference,
on a grid from the smallest to the largest of them (dynamic quantization): it computes in integers, and
nothing is calibrated. So may an LSTM what it reads, and its state at each step; its matrices go together.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanfront.compression.graph.network import Network
from leanfront.compression.graph.operations import operation
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


def in_steps(network: Network) -> Mapping[str, tuple[str, ...]]:
    """Nodes that may quantize what they read, and their state at each step -> the layers that hold their
    matrices. Of a matrix that is computed on the way (of an LSTM with a projection) there are no codes."""
    found = {}
    for node in network.nodes:
        row = operation(node.op)
        if not (row.at_run_time and row.in_steps):
            continue
        read = [network.node[name] for name in node.inputs]
        layers = [other.layer for other in read if other.layer and operation(other.op).weight_only]
        first = next((place for place, other in enumerate(read) if other.layer in layers), len(read))
        if layers and all(other.layer in layers or operation(other.op).stored for other in read[first:]):
            found[node.name] = tuple(layers)
    return found


def together(network: Network) -> tuple[tuple[str, ...], ...]:
    """Layers that are quantized so at once: a linear one by itself, and the matrices of an LSTM."""
    linear = [
        (layer.name,)
        for layer in network.layers
        if operation(layer.shape.op).at_run_time and not layer.weight_only
    ]
    sets = dict.fromkeys(in_steps(network).values())
    shared = Counter(name for layers in sets for name in layers)
    return (*linear, *(layers for layers in sets if all(shared[name] == 1 for name in layers)))


def check_dynamic(network: Network, policy: Mapping[str, LayerPolicy]) -> None:
    """Raise PolicyError for a layer that cannot be quantized so."""
    wanted = [name for name, layer in policy.items() if is_dynamic(layer) and name in network.layer]
    sets = {name: layers for layers in together(network) for name in layers} if wanted else {}
    for name in wanted:
        layer = policy[name]
        bits = layer.weight_bits, layer.activation_bits
        if name not in sets or bits != BITS or layer.value(DYNAMIC) != 1.0:
            raise PolicyError(
                f"dynamic is 1 for a linear layer or an LSTM with weights of {BITS[0]} bits that reads floats"
                f" ({BITS[1]} bits), but {name!r} ({network.layer[name].shape.op}, {bits[0]} and {bits[1]}"
                f" bits) has {layer.value(DYNAMIC):g}; leave it out there"
            )
        if others := [other for other in sets[name] if other not in wanted]:
            raise PolicyError(
                f"the matrices of an LSTM are quantized at run time together ({', '.join(sets[name])}), but"
                f" {name!r} has dynamic = 1 and {others[0]!r} has not"
            )


def more_bytes(network: Network, values: NDArray[Any]) -> NDArray[np.int64]:
    """(n,): bytes by which files are larger. ``values``: (layers, n), which layers are quantized so."""
    found = np.zeros(values.shape[1], dtype=np.int64)
    rows = {layer.name: row for row, layer in enumerate(network.layers)}
    for layers in together(network):
        own = values[rows[layers[0]]] > 0
        if not own.any() or network.layer[layers[0]].weight_only:
            continue
        vectors = not any(network.node[use].spatial for use in network.uses[layers[0]])
        found += own * (ON_VECTORS_BYTES if vectors else ON_SEQUENCES_BYTES)
    for name, layers in in_steps(network).items():
        written = network.node[name].written
        found += (values[rows[layers[0]]] > 0) * (written.at_run_time if written is not None else 0)
    return found
