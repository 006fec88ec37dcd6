"""FPGA profiles in round numbers, and small networks, for tests whose answers are known on paper."""

import math
from typing import Any

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.hw_profiles import HardwareProfile

ASSUMED = {"status": "assumed", "from": "invented"}


def profile(**sections: Any) -> HardwareProfile:
    """A profile of whatever model its sections say; every number is assumed."""
    fields: dict[str, Any] = {
        "name": "part",
        "description": "invented",
        "kind": "fpga",
        "model": "overlay" if "overlay" in sections else "dataflow",
        "supported": [[8, 8], [4, 8], [2, 4]],
        "channel_multiple": 1,
        "power_w": 2.0,
        **sections,
    }
    names = ("supported", "channel_multiple", "power_w", "memory_bytes", "resources", "overlay", "dataflow",
             "power", "space")  # fmt: skip
    fields["sources"] = {name: ASSUMED for name in names if name in fields}
    return HardwareProfile.of(fields, where="test")


def overlay(**changes: Any) -> HardwareProfile:
    """1 MHz: a cycle is 1 us; 2 x 4 x 4 array; 1 byte per us from outside; nothing else costs anything."""
    numbers: dict[str, Any] = {
        "clock_mhz": 1.0, "pixel_parallel": 2, "input_parallel": 4, "output_parallel": 4,
        "depthwise_pixel_parallel": 1, "window_bytes_per_cycle": 1.0, "elementwise_bytes_per_cycle": 1.0,
        "mean_bytes_per_cycle": 1.0, "bandwidth_bytes_per_ms": 1e12, "weights": "ahead",
        "features_outside": False, "layer_overhead_ms": 0.0, "call_overhead_ms": 0.0,
    }  # fmt: skip
    top = {
        name: changes.pop(name) for name in ("power", "space", "resources", "memory_bytes") if name in changes
    }
    return profile(overlay={**numbers, **changes}, **top)


BLOCKS = {
    "logic": {"name": "LUT", "count": 1_000_000},
    "multiplier": {"name": "DSP", "count": 1_000, "macs": {"8": 1.0, "4": 2.0}},
    "memory": {"RAM": {"count": 1_000, "bits": 8192, "shapes": [[8, 1024]]}},
}


def dataflow(**changes: Any) -> HardwareProfile:
    """1 MHz; logic is free but for 1 LUT per multiplier term; blocks as BLOCKS."""
    numbers: dict[str, Any] = {
        "clock_mhz": 1.0, "input_bytes_per_cycle": 1e9, "lut_per_layer": 0.0, "lut_per_lane_bit": 0.0,
        "lut_per_multiplier": 1.0, "lut_per_adder_bit": 0.0, "lut_multiplier_bits": 6.0, "dsp_per_scale": 0.0,
        "dsp_base": 0.0,
    }  # fmt: skip
    top = {name: changes.pop(name) for name in ("power", "space", "resources", "pattern") if name in changes}
    return profile(dataflow={**numbers, **changes}, **{"resources": BLOCKS, **top})


def conv(
    channels_in: int = 4, channels_out: int = 4, side: int = 2, kernel: int = 1, groups: int = 1
) -> LayerShape:
    return LayerShape("conv2d", channels_in, channels_out, (kernel, kernel), (1, 1), groups, side, side)


def chain(*shapes: LayerShape, after: tuple[tuple[str, int, int], ...] = ()) -> Network:
    """Layers one after the other, then nodes (op, side, kernel). The last layer cannot be cut."""
    first = shapes[0]
    side = (first.out_height, first.out_width) if first.op != "linear" else ()
    nodes = [Node("x", "input", (), (Segment(None, first.in_channels),), side)]
    layers = []
    for index, shape in enumerate(shapes):
        group = f"g{index}" if index + 1 < len(shapes) and shape.groups == 1 else None
        spatial = (shape.out_height, shape.out_width) if shape.op != "linear" else ()
        name = f"layer{index}"
        nodes.append(
            Node(
                name, shape.op, (nodes[-1].name,), (Segment(group, shape.out_channels),), spatial, layer=name
            )
        )
        layers.append(Layer(name, shape, group, bias=False))
    for index, (op, length, kernel) in enumerate(after):
        before = nodes[-1]
        spatial = (length, length) if length else ()
        nodes.append(
            Node(f"op{index}", op, (before.name,), before.channels, spatial, kernel=(kernel, kernel))
        )
    return Network(tuple(nodes), tuple(layers), (nodes[-1].name,))


def uniform(
    network: Network, weight_bits: int = 8, activation_bits: int = 8, sparsity: float = 0.0
) -> Policy:
    return Policy.uniform(network, LayerPolicy(sparsity, weight_bits, activation_bits))


def elements(network: Network) -> int:
    return sum(math.prod(node.spatial) * node.width for node in network.nodes)
