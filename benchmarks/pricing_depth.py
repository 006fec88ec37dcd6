"""How long a million policies take to price that leave branches out at random.

    python -m benchmarks.pricing_depth                    # all networks, a roofline part and a measured table
    python -m benchmarks.pricing_depth --policies 100000 --networks vit

Networks are described by their shapes alone, as torchvision has them. The measured table has made-up times
and forms of kernels: only its size and the way it is asked are real.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from leanfront.compression.export.network_model import network_model
from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment, operation
from leanfront.compression.policy import Policy
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.hw_profiles import HardwareProfile, load_profile
from leanfront.latency_models.cost import CostModel
from leanfront.latency_models.kernel_table.keys import read_bytes_of
from leanfront.latency_models.kernel_table.table import Device, Entry, LatencyTable
from leanfront.latency_models.measured.model import TableModel
from leanfront.latency_models.measured.optimised_kernels import Part, Structure
from leanfront.latency_models.registry import model_of

PORTION = 50_000
"""Policies that are drawn at a time; only pricing is timed."""
SEEN = 200
SHARES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75)


class Shapes:
    """A network under construction, by its shapes."""

    def __init__(self, side: int) -> None:
        self.nodes = [Node("x", "input", (), (Segment(None, 3),), (side, side))]
        self.layers: list[Layer] = []

    def node(self, op: str, *reads: Node, spatial: tuple[int, ...] | None = None, **more: object) -> Node:
        """An operation on tensors like its first."""
        first = reads[0]
        spatial = first.spatial if spatial is None else spatial
        return self._added(
            Node(f"{op}_{len(self.nodes)}", op, tuple(r.name for r in reads), first.channels, spatial, **more)  # type: ignore[arg-type]
        )

    def conv(
        self,
        read: Node,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        group: str | None = "",
        depthwise: bool = False,
        act: str = "",
    ) -> Node:
        """With its batch norm, and an activation. ``group``: of its outputs; "" is one of its own."""
        name = f"conv{len(self.layers)}"
        size = -(-read.spatial[0] // stride)
        groups = out if depthwise else 1
        shape = LayerShape("conv2d", read.width, out, (kernel,) * 2, (stride,) * 2, groups, size, size)  # type: ignore[arg-type]
        own = read.channels[0].group if depthwise else group if group != "" else name
        self.layers.append(Layer(name, shape, own, bias=False))
        made = Node(name, "conv2d", (read.name,), (Segment(own, out),), (size, size), layer=name)
        made = self.node("batchnorm", self._added(made))
        return self.node(act, made) if act else made

    def linear(self, read: Node, out: int, group: str | None = "") -> Node:
        """On vectors or sequences."""
        name = f"linear{len(self.layers)}"
        own = group if group != "" else name
        positions = int(np.prod(read.spatial, dtype=int))
        self.layers.append(Layer(name, LayerShape("linear", read.width, out, out_height=positions), own))
        return self._added(Node(name, "linear", (read.name,), (Segment(own, out),), read.spatial, layer=name))

    def network(self) -> Network:
        """The last node is its output."""
        named = {layer.group for layer in self.layers}
        assert all(s.group is None or s.group in named for node in self.nodes for s in node.channels)
        return Network(tuple(self.nodes), tuple(self.layers), (self.nodes[-1].name,))

    def _added(self, node: Node) -> Node:
        self.nodes.append(node)
        return node


def resnet50(side: int = 224) -> Network:
    """He et al. 2015, table 1, with the stride in the 3x3 convolution as torchvision has it."""
    made = Shapes(side)
    x = made.conv(made.nodes[0], 64, 7, 2, act="relu")
    half = x.spatial[0] // 2
    x = made.node("maxpool", x, spatial=(half, half), kernel=(3, 3), stride=(2, 2))
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        stream = f"conv{len(made.layers) + 2}"  # of the first block's last convolution
        for index in range(blocks):
            step = stride if index == 0 else 1
            y = made.conv(made.conv(x, width, act="relu"), width, 3, step, act="relu")
            y = made.conv(y, 4 * width, group=stream)
            stays = x if index else made.conv(x, 4 * width, 1, step, group=stream)
            x = made.node("relu", made.node("add", y, stays))
    x = made.node("flatten", made.node("global_avgpool", x, spatial=(1, 1)), spatial=())
    made.linear(x, 1000, None)
    return made.network()


def mobilenet_v2(side: int = 224) -> Network:
    """Sandler et al. 2018, table 2."""
    made = Shapes(side)
    x = made.conv(made.nodes[0], 32, 3, 2, act="relu6")
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, out, blocks, stride in stages:
        stream = f"conv{len(made.layers) + (2 if expansion > 1 else 1)}"
        for index in range(blocks):
            y, step = x, stride if index == 0 else 1
            if expansion > 1:
                y = made.conv(y, x.width * expansion, act="relu6")
            y = made.conv(y, y.width, 3, step, depthwise=True, act="relu6")
            y = made.conv(y, out, group=stream)
            x = made.node("add", x, y) if index else y
    x = made.conv(x, 1280, act="relu6")
    x = made.node("flatten", made.node("global_avgpool", x, spatial=(1, 1)), spatial=())
    made.linear(x, 1000, None)
    return made.network()


def vit_b16(side: int = 224, width: int = 768, depth: int = 12, heads: int = 12) -> Network:
    """Dosovitskiy et al. 2020, table 1. Attention is written out; its channels are whole heads, and stay."""
    made = Shapes(side)
    patches = side // 16
    name, tokens = "patches", patches**2 + 1
    shape = LayerShape("conv2d", 3, width, (16, 16), (16, 16), 1, patches, patches)
    made.layers.append(Layer(name, shape, name))
    stream = (Segment(name, width),)
    x = made._added(Node(name, "conv2d", ("x",), stream, (patches, patches), layer=name))
    x = made.node("transpose", made.node("reshape", x, spatial=(patches**2,)))
    token = made._added(Node("token", "constant", (), stream, (1,)))
    x = made.node("concat", token, x, spatial=(tokens,))
    x = made.node("add", x, made._added(Node("positions", "constant", (), stream, (tokens,))))
    for _ in range(depth):
        qkv = made.linear(made.node("layernorm", x), 3 * width, None)
        parts = [
            made._added(
                Node(
                    f"{part}_{len(made.nodes)}",
                    "slice",
                    (qkv.name,),
                    (Segment(None, heads),),
                    (tokens, width // heads),
                )
            )
            for part in "qkv"
        ]
        scores = made.node("matmul", parts[0], parts[1], spatial=(tokens, tokens))
        mixed = made.node("matmul", made.node("softmax", scores), parts[2], spatial=(tokens, width // heads))
        joined = made._added(
            Node(f"reshape_{len(made.nodes)}", "reshape", (mixed.name,), (Segment(None, width),), (tokens,))
        )
        x = made.node("add", x, made.linear(joined, width, name))
        y = made.node("gelu", made.linear(made.node("layernorm", x), 4 * width))
        x = made.node("add", x, made.linear(y, width, name))
    x = made.node("slice", made.node("layernorm", x), spatial=())
    made.linear(x, 1000, None)
    return made.network()


def vit_b16_captured(side: int = 224, width: int = 768, depth: int = 12, heads: int = 12) -> Network:
    """The same as torchvision's is captured: heads can be cut, and most operations only move values."""
    made = Shapes(side)
    patches = side // 16
    tokens, each = patches**2 + 1, width // heads
    shape = LayerShape("conv2d", 3, width, (16, 16), (16, 16), 1, patches, patches)
    made.layers.append(Layer("patches", shape, "patches"))
    stream = (Segment("patches", width),)
    image = Node("patches", "conv2d", ("x",), stream, (patches, patches), layer="patches")
    x = made.node("transpose", made.node("reshape", made._added(image), spatial=(patches**2,)))
    token = made.node("expand", made._added(Node("token", "constant", (), stream, (1,))))
    x = made.node("concat", token, x, spatial=(tokens,))
    x = made.node("add", x, made._added(Node("positions", "constant", (), stream, (tokens,))))
    for block in range(depth):
        whole, one = (Segment(f"heads{block}", heads, each),), (Segment(f"heads{block}", heads),)

        def moved(op: str, read: Node, channels: tuple[Segment, ...], spatial: tuple[int, ...]) -> Node:
            name = f"{op}_{len(made.nodes)}"
            return made._added(Node(name, op, (read.name,), channels, spatial))

        y = made.node("reshape", made.node("layernorm", x))
        name = f"heads{block}"
        made.layers.append(Layer(name, LayerShape("linear", width, 3 * width, out_height=tokens), name))
        packed = (Segment(name, heads, 3 * each),)
        y = made._added(Node(name, "linear", (y.name,), packed, (tokens,), layer=name))
        for op in ("reshape", "reshape", "transpose", "reshape"):
            y = moved(op, y, whole, (3, tokens))
        query, key, value = (moved("slice", y, whole, (tokens,)) for _ in range(3))
        for op in ("reshape", "transpose", "reshape"):
            query, key, value = (moved(op, part, one, (tokens, each)) for part in (query, key, value))
        scores = made.node(
            "matmul", query, moved("transpose", key, one, (each, tokens)), spatial=(tokens, tokens)
        )
        scores = made.node("softmax", made.node("identity_arithmetic", scores))
        mixed = made.node("matmul", scores, value, spatial=(tokens, each))
        mixed = moved("reshape", made.node("transpose", mixed), whole, (tokens,))
        y = made.node("reshape", made.node("reshape", made.linear(mixed, width, "patches")))
        x = made.node("add", y, x)
        y = made.node("gelu", made.linear(made.node("layernorm", x), 4 * width))
        x = made.node("add", x, made.linear(y, width, "patches"))
    x = made.node("slice", made.node("layernorm", x), spatial=())
    made.linear(x, 1000, None)
    return made.network()


class MadeUp(Structure):
    """Kernels whose optimised nodes are made up from their precision and widths: nothing is built."""

    def observe(self, network: Network, policy: Policy) -> list[Part]:
        """As ``Structure.observe``, without onnxruntime."""
        batch = PolicyBatch.of_cut(self.network, network, policy)
        widths, integer, bits = (rows[:, 0].tolist() for rows in (batch.widths, batch.integer, batch.bits))
        rows = [self._part(row, widths, integer, bits) for row in range(len(self.kernels))]
        idle = {row for row, flags in batch.idle.items() if flags[0]}
        parts: list[Part] = [() if row in idle else part for row, part in enumerate(rows)]
        self.note(self.state(network, policy), parts)
        return parts

    def _part(self, row: int, widths: list[int], integer: list[bool], bits: list[int]) -> Part:
        kernel = self.kernels[row]
        if operation(kernel.op).work == "free":
            return ()
        read = widths[self.width_columns[row][1]] if kernel.inputs else 1
        positions = int(np.prod(kernel.output.spatial, dtype=int))
        if kernel.layer is None:
            found = [f"{kernel.op}(f32[1x{widths[row]}x{positions}])"]
        else:
            window = int(np.prod(kernel.layer.shape.kernel))
            weights = f"[{widths[row]}x{1 if kernel.layer.shape.depthwise else read}x{window}]"
            kind = "ConvInteger(u8" if integer[row] else "Conv(f32"
            found = [f"{kind}[1x{read}x{positions}], ={'i8' if integer[row] else 'f32'}{weights}) group=1"]
        if bits[row] <= 8 and not integer[row]:
            found.append(f"QuantizeLinear(f32[1x{widths[row]}x{positions}], =f32[], =u8[])")
        return tuple(found)


def measured(network: Network) -> TableModel:
    """A measured part that has seen 200 networks, with made-up times."""
    profile, structure = load_profile("this-machine"), MadeUp(network, network_model)
    batch = drawn(network, profile, SEEN, np.random.default_rng(1))
    for column in range(batch.count):
        policy = batch.policy(column)
        structure.observe(policy.cut(network), policy)
    keys = structure.keys()
    entries = {key: Entry(1e-3 + 1e-8 * read_bytes_of(key), 0.0, 1, 1.0, 0.05, 0, "") for key in keys}
    entries["call"] = Entry(0.005, 0.0, 1, 1.0, 0.05, 0, "")
    device = Device("made up", 2, 1, "CPUExecutionProvider", "1.0")
    return TableModel(structure, LatencyTable(device, entries, near_cache_bytes=1 << 20), profile)


def model_on(part: str, network: Network) -> CostModel:
    """What prices a network on a part."""
    profile = load_profile(part)
    return measured(network) if profile.measured else model_of(profile)


NETWORKS: dict[str, Callable[[], Network]] = {
    "resnet50": resnet50, "mobilenet_v2": mobilenet_v2, "vit_b16": vit_b16,
    "vit_b16_captured": vit_b16_captured,
}  # fmt: skip


def drawn(network: Network, profile: HardwareProfile, count: int, rng: np.random.Generator) -> PolicyBatch:
    """Channels, bits and branches at random."""
    sizes = np.array(list(network.group_sizes.values()))[:, None]
    channels = np.maximum(1, np.round(sizes * (1 - rng.choice(SHARES, (len(sizes), count)))).astype(np.int64))
    pairs = np.array(profile.supported)[rng.integers(0, len(profile.supported), (len(network.layers), count))]
    row = {layer.name: index for index, layer in enumerate(network.layers)}
    for first, *others in network.reading_together:
        pairs[[row[name] for name in others]] = pairs[row[first]]
    left_out = rng.random((len(network.branches), count)) < 0.4
    return PolicyBatch(network, channels, pairs[..., 0], pairs[..., 1]).leaving_out(left_out)


def seconds(model: CostModel, network: Network, count: int) -> float:
    """Of one processor, to price so many policies."""
    rng, total = np.random.default_rng(0), 0.0
    model.costs(drawn(network, model.profile, 1000, rng))  # what a model makes once
    for begin in range(0, count, PORTION):
        batch = drawn(network, model.profile, min(PORTION, count - begin), rng)
        started = time.process_time()
        model.costs(batch)
        total += time.process_time() - started
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", type=int, default=1_000_000)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--profiles", nargs="*", default=["raspberry-pi-4", "this-machine"])
    wanted = parser.parse_args()
    for name in wanted.networks:
        network = NETWORKS[name]()
        for part in wanted.profiles:
            taken = seconds(model_on(part, network), network, wanted.policies)
            print(
                f"{name:13} {len(network.layers):3} layers {len(network.branches):3} branches  {part:16}"
                f" {wanted.policies:9,} policies in {taken:6.1f} s"
            )


if __name__ == "__main__":
    main()
