"""What the operations of a network take in a .tflite file, measured in three files of it."""

from collections import Counter
from dataclasses import replace

from leanfront.compression.export.dialects import dialect_of
from leanfront.compression.export.litert.writing import Lowering as Lowering
from leanfront.compression.export.measured_sizes import owners_of_nodes
from leanfront.compression.export.onnx_writer import nodes_read
from leanfront.compression.export.template import Template
from leanfront.compression.export.walk import Walk
from leanfront.compression.export.weights import random_weights
from leanfront.compression.graph import Network, Spelling, Written, operation
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.flatbuffer_size import (
    CONVERSION_BYTES,
    KIND,
    WeightsOnce,
    content_bytes,
    conversions,
    decoded_bytes,
)
from leanfront.compression.policy.grids import stand_in_grids


def measured_in(graph: Template) -> Network:
    """The network, where each node says what it takes: in floats, for each of its channels, and how much more
    in integers. What belongs to no node stands with the first."""
    whole = graph.network
    half = whole.resized({group: max(1, size // 2) for group, size in whole.group_sizes.items()})
    (floats, _), (fewer, _), (coded, counts) = (
        _structure(graph, network, bits) for network, bits in ((whole, 32), (half, 32), (whole, 8))
    )
    nodes = []
    for place, node in enumerate(whole.nodes):
        wider = node.width - half.node[node.name].width
        each = round((floats[node.name] - fewer[node.name]) / wider) if wider else 0
        each = max(each, 0)
        fixed = floats[node.name] - each * node.width + (floats[""] if place == 0 else 0)
        more = coded[node.name] - floats[node.name] + (coded[""] - floats[""] if place == 0 else 0)
        row = operation(node.op)
        if row.joining and not row.adds:  # its grid is that of the widest of its inputs
            more -= CONVERSION_BYTES
        nodes.append(
            replace(
                node,
                written=Written(
                    fixed,
                    each,
                    more,
                    0,
                    (),
                    counts[node.name, "tensors"],
                    Spelling(KIND),
                    counts[node.name, "operators"],
                ),
            )
        )
    return Network(tuple(nodes), whole.layers, whole.outputs)


def _structure(graph: Template, network: Network, bits: int) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Bytes by node, besides weights and conversions; "": of no node. And how many tensors and operators are
    written for each, those of no node with the first."""
    policy = Policy.uniform(network, LayerPolicy(0.0, bits, bits)).completed(network)
    walk = Walk(graph, network, policy, dialect_of(KIND))
    walk.weights = random_weights(network, policy)
    walk.grids = walk.held(stand_in_grids(walk.kernels, policy))
    model = walk.model()
    owners = owners_of_nodes(walk)
    kept = nodes_read(walk.out.nodes, {value.name for value in model.graph.output})
    lowering = Lowering(model)
    content = lowering.written()
    found: Counter[str] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    first = network.nodes[0].name
    counted = {"tensors": lowering.file.tensor_counts, "operators": lowering.file.operator_counts}
    for what, numbers in counted.items():
        for place, number in numbers.items():
            name = next(iter(owners[id(kept[place])]), first) if place >= 0 else first
            counts[name, what] += number
    for place, node in enumerate(kept):
        found[next(iter(owners[id(node)]), "")] += lowering.file.sizes[place]
    found[""] = len(content) - sum(size for name, size in found.items() if name)
    batch = PolicyBatch.one(network, policy)
    rows = batch.kernel_index
    reads = [[rows[name] for name in kernel.inputs] for kernel in batch.kernels]
    there = batch.widths > 0
    made, read = conversions(batch.kernels, reads, batch.bits, batch.integer, there)
    once = WeightsOnce()
    for row, kernel in enumerate(batch.kernels):
        found[kernel.nodes[0].name] -= CONVERSION_BYTES * int(made[row, 0] + read[row, 0])
        if kernel.layer is None:
            continue
        place = batch.layer_index[kernel.layer.name]
        weight_bits, integer = batch.weight_bits[place], batch.integer[row]
        lands = (batch.bits[row] <= 8) & there[row]
        weights, rest = content_bytes(
            kernel, batch.widths[row], batch.reduced[place], weight_bits, integer, lands
        )
        held = once.stored(kernel.layer.name, weights) + rest
        found[kernel.nodes[0].name] -= int(held[0]) + int(decoded_bytes(weight_bits, integer)[0])
    return found, counts
