"""Networks made of what most networks are made of: to fill a latency table before any search is known.

Four small designs, each at several widths: residual blocks, inverted bottlenecks with depthwise filters,
an encoder and decoder with concatenated skips, and the linear layers of a transformer. In float32 and in
int8, they hold convolutions, depthwise and transposed convolutions, linear layers, additions, concats,
pools, resizes, softmax, layer norms and element-wise operations, and what onnxruntime puts in between.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from leanfront.compression.graph import Layer, LayerShape, Network, Node, Segment
from leanfront.compression.policy import LayerPolicy, Policy

WIDTHS = (8, 16, 32, 64)
"""Channels of the first layer of each design; later ones have up to eight times as many."""

PRECISIONS = (LayerPolicy(), LayerPolicy(0.0, 8, 8))


def reference_networks() -> Iterator[tuple[str, Network, Policy]]:
    """(name such as "residual 16 int8", network, policy) of each; the policy says float32 or int8."""
    designs: tuple[tuple[str, Callable[[int], Network]], ...] = (
        ("residual", residual),
        ("inverted", inverted),
        ("skips", skips),
        ("sequence", sequence),
    )
    for name, design in designs:
        for width in WIDTHS:
            network = design(width)
            for precision in PRECISIONS:
                bits = "int8" if precision.integer else "float32"
                yield f"{name} {width} {bits}", network, Policy.uniform(network, precision)


@dataclass
class _Draft:
    """A network that is being written down; each method adds a node and returns its name."""

    nodes: list[Node] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    def node(self, op: str, inputs: tuple[str, ...], width: int, spatial: tuple[int, ...]) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs, (Segment(None, width),), spatial))
        return name

    def of(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def same(self, op: str, *inputs: str) -> str:
        """An operation that keeps the shape of what it reads."""
        before = self.of(inputs[0])
        return self.node(op, inputs, before.width, before.spatial)

    def layer(self, shape: LayerShape, source: str, spatial: tuple[int, ...], act: str = "relu") -> str:
        name = f"{shape.op}{len(self.nodes)}"
        self.layers.append(Layer(name, shape))
        channels = (Segment(None, shape.out_channels),)
        self.nodes.append(Node(name, shape.op, (source,), channels, spatial, layer=name))
        return self.same(act, name) if act else name

    def conv(
        self, source: str, width: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: str = "relu"
    ) -> str:
        before = self.of(source)
        height, wide = (size // stride for size in before.spatial)
        shape = LayerShape(
            "conv2d", before.width, width, (kernel, kernel), (stride, stride), groups, height, wide
        )
        return self.layer(shape, source, (height, wide), act)

    def linear(self, source: str, width: int, act: str = "") -> str:
        before = self.of(source)
        positions = before.spatial[0] if before.spatial else 1
        shape = LayerShape("linear", before.width, width, out_height=positions)
        return self.layer(shape, source, before.spatial, act)

    def classifier(self, source: str) -> Network:
        pooled = self.node("global_avgpool", (source,), self.of(source).width, ())
        return self.network(self.linear(pooled, 10))

    def network(self, output: str) -> Network:
        return Network(tuple(self.nodes), tuple(self.layers), (output,))


def residual(width: int) -> Network:
    """Four stages of a residual block each, on images of 32 x 32; a softmax at the end of the pooled one."""
    draft = _Draft()
    x = draft.conv(draft.node("input", (), 3, (32, 32)), width)
    for stage in range(4):
        wide, stride = width << stage, 1 if stage == 0 else 2
        inner = draft.conv(draft.conv(x, wide, stride=stride), wide, act="")
        beside = x if stage == 0 else draft.conv(x, wide, kernel=1, stride=2, act="")
        x = draft.same("relu", draft.same("add", inner, beside))
    pooled = draft.node("global_avgpool", (x,), draft.of(x).width, ())
    return draft.network(draft.same("softmax", draft.linear(pooled, 10)))


def inverted(width: int) -> Network:
    """Inverted bottlenecks of expansion 4, strides 1 and 2, on images of 64 x 64."""
    draft = _Draft()
    x = draft.conv(draft.node("input", (), 3, (64, 64)), width, stride=2, act="relu6")
    for stage, stride in enumerate((1, 2, 1, 2)):
        narrow = width << (stage // 2)
        wide = 4 * draft.of(x).width
        y = draft.conv(x, wide, kernel=1, act="relu6")
        y = draft.conv(y, wide, stride=stride, groups=wide, act="relu6")
        y = draft.conv(y, narrow, kernel=1, act="")
        x = draft.same("add", x, y) if stride == 1 and narrow == draft.of(x).width else y
    x = draft.conv(x, 4 * draft.of(x).width, kernel=1, act="hardswish")
    return draft.classifier(x)


def skips(width: int) -> Network:
    """Two steps down (maximum, average), two up (transposed convolution, resize), skips concatenated."""
    draft = _Draft()
    first = draft.conv(draft.node("input", (), 3, (32, 32)), width)
    pooled = _pool(draft, "maxpool", first)
    second = draft.conv(pooled, 2 * width)
    x = draft.conv(_pool(draft, "avgpool", second), 4 * width)
    shape = LayerShape("conv_transpose2d", 4 * width, 2 * width, (2, 2), (2, 2), 1, 16, 16)
    x = draft.layer(shape, x, (16, 16), act="")
    x = draft.conv(draft.node("concat", (x, second), 4 * width, (16, 16)), 2 * width)
    x = draft.node("upsample", (x,), 2 * width, (32, 32))
    x = draft.conv(draft.node("concat", (x, first), 3 * width, (32, 32)), width)
    return draft.network(draft.conv(x, 2, kernel=1, act="sigmoid"))


def sequence(width: int) -> Network:
    """A transformer's layers around its attention: norms, projections and a wide middle, 64 positions."""
    draft = _Draft()
    dim = 4 * width
    x = draft.node("input", (), dim, (64,))
    for _ in range(2):
        y = draft.linear(draft.same("layernorm", x), 3 * dim)
        x = draft.same("add", x, draft.linear(y, dim))
        y = draft.linear(draft.same("layernorm", x), 4 * dim, act="gelu")
        x = draft.same("add", x, draft.linear(y, dim))
    return draft.network(draft.linear(draft.same("layernorm", x), 10))


def _pool(draft: _Draft, op: str, source: str) -> str:
    before = draft.of(source)
    name = f"{op}{len(draft.nodes)}"
    height, width = (size // 2 for size in before.spatial)
    channels = (Segment(None, before.width),)
    draft.nodes.append(Node(name, op, (source,), channels, (height, width), kernel=(2, 2), stride=(2, 2)))
    return name
