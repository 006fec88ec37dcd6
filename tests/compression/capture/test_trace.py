import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.capture.trace import TraceError, trace
from leanfront.compression.graph import Network
from leanfront.compression.policy import LayerPolicy, Policy
from tests.networks import ALL, built, example, traced_network


def groups(network: Network) -> dict[str, list[str]]:
    return {name: [layer.name for layer in layers] for name, layers in network.groups.items()}


@pytest.fixture(scope="module")
def resnet20() -> Network:
    path = Path(__file__).parents[3] / "examples/cifar10_resnet20/task.py"
    spec = importlib.util.spec_from_file_location("resnet20_task", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return trace(module.ResNet20(), torch.zeros(1, 3, 32, 32)).network


def test_macs_of_resnet20(resnet20: Network) -> None:
    """Weights of stem, stages and classifier by hand, each at its positions."""
    stages = {32 * 32: 27 * 16 + 6 * 2_304, 16 * 16: 4_608 + 5 * 9_216, 8 * 8: 18_432 + 5 * 36_864, 1: 640}
    assert resnet20.macs == sum(positions * weights for positions, weights in stages.items())
    assert resnet20.macs == 40_551_040
    assert len(resnet20.layers) == 20
    assert resnet20.weight_count == sum(stages.values()) == 268_336


def test_groups_of_resnet20(resnet20: Network) -> None:
    """Its shortcuts slice and pad: the stream is one group, of which the first stage has a third; the inner
    channels of the 9 blocks are cut on their own."""
    blocks = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)]
    stream = ["conv1", *(name.replace("conv1", "conv2") for name in blocks)]
    assert groups(resnet20) == {"conv1": stream, **{name: [name] for name in blocks}}
    assert resnet20.group_size("conv1") == 64
    halved = resnet20.resized({"conv1": 32})
    assert [halved.layer[name].shape.out_channels for name in ("conv1", stream[4], stream[7])] == [8, 16, 32]


EXPECTED = {
    "Chain": [["0.0"], ["1.0"], ["3"]],
    "Residual": [
        ["stem.0", "stage1.conv2"],
        ["stage1.conv1.0"],
        ["stage2.0.conv1.0"],
        ["stage2.0.conv2", "stage2.0.shortcut.0", "stage2.1.conv2"],
        ["stage2.1.conv1.0"],
    ],
    "OptionA": [["stem.0", "outer.0"], ["inner.0"]],
    "Depthwise": [["first.0", "depth.0"], ["point"], ["grouped.0"], ["last.0"]],
    "UNet": [["down1.0"], ["down2.0"], ["up"], ["join.0"]],
    "Dense": [["first"], ["second"], ["third"]],
    "Perceptron": [["1"], ["4"]],
    "Sequence": [["a", "b"]],
    "Odd": [["input"], ["relu"]],
}


@pytest.mark.parametrize("name", list(ALL))
def test_coupled_channels(name: str) -> None:
    network = traced_network(name).network
    assert list(groups(network).values()) == EXPECTED[name]
    for output in network.outputs:
        assert all(segment.group is None for segment in network.node[output].channels)


@pytest.mark.parametrize("name", list(ALL))
def test_the_traced_module_is_the_model(name: str) -> None:
    model = built(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    traced = trace(model, example(name))
    x = torch.randn_like(example(name).repeat(3, *[1] * (example(name).dim() - 1)))
    with torch.no_grad():
        torch.testing.assert_close(traced.module(x), model(x), rtol=0, atol=0)
    for node in traced.module.graph.nodes:
        if node.name in traced.network.node:
            assert traced.network.node[node.name].elements == math.prod(node.meta["shape"]), node.name
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not {id(p) for p in model.parameters()} & {id(p) for p in traced.module.parameters()}


def test_segments_of_concat_and_flatten() -> None:
    unet = traced_network("UNet").network
    assert [(s.group, s.size) for s in unet.node["cat"].channels] == [("down1.0", 8), ("up", 8)]
    cut = unet.resized({"down1.0": 3, "up": 2})
    assert cut.layer["join.0"].shape.in_channels == 5
    chain = traced_network("Chain").network
    assert chain.resized({"3": 5}).layer["6"].shape.in_channels == 4 * 5


def test_a_concat_that_is_flattened() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(32, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1).flatten(1))

    network = trace(Joined(), torch.zeros(1, 3, 2, 2)).network
    assert groups(network) == {"a": ["a"], "b": ["b"]}
    assert network.resized({"a": 1, "b": 3}).layer["c"].shape.in_channels == 4 * (1 + 3)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(F.relu(self.twice(x)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() > 0:
            x = -x
        return x


def test_models_that_cannot_be_followed() -> None:
    image = torch.zeros(1, 3, 4, 4)
    with pytest.raises(TraceError, match=r"cannot capture Branching: .*line \d+ of .*test_trace.*a part"):
        trace(Branching(), image)
    with pytest.raises(TraceError, match="no linear layer of its own that can be compressed"):
        trace(nn.Sequential(nn.ReLU(), nn.Flatten()), image)
    with pytest.raises(TraceError, match="batch of one, not 2"):
        trace(nn.Conv2d(3, 3, 1), image.repeat(2, 1, 1, 1))
    with pytest.raises(TraceError, match=r"shape \(1, 3, 4, 4\)"):
        trace(nn.Conv2d(5, 3, 1), image)


def test_shapes_and_macs_by_hand() -> None:
    network = traced_network("UNet").network
    assert {layer.name: (str(layer.shape), layer.shape.macs) for layer in network.layers} == {
        "down1.0": ("conv2d 3x3 3->8 @8x8", 27 * 8 * 64),
        "down2.0": ("conv2d 3x3/2 8->16 @4x4", 72 * 16 * 16),
        "up": ("conv_transpose2d 2x2/2 16->8 @8x8", 16 * 8 * 4 * 16),
        "join.0": ("conv2d 3x3 16->8 @8x8", 144 * 8 * 64),
        "output": ("conv2d 1x1 8->4 @8x8", 8 * 4 * 64),
    }
    positions = traced_network("Sequence").network
    assert [layer.shape.macs for layer in positions.layers] == [5 * 6 * 16, 5 * 16 * 16, 16 * 5]
    depthwise = traced_network("Depthwise").network.layer["depth.0"].shape
    assert (str(depthwise), depthwise.macs) == ("depthwise 3x3 8->8 @8x8", 9 * 8 * 64)


def test_every_network_takes_a_policy() -> None:
    for name in ALL:
        network = traced_network(name).network
        policy = Policy.uniform(network, LayerPolicy(0.5, 8, 8))
        halved = network.resized(policy.channels(network))
        assert (halved.macs < network.macs) == bool(network.groups)


def test_parts_of_a_split_tensor_have_their_own_width() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            kept, changed = self.stem(x).chunk(2, 1)
            joined = torch.cat([kept, self.branch(changed)], 1)
            shuffled = joined.view(-1, 2, 4, 8, 8).transpose(1, 2).reshape(-1, 8, 8, 8)
            last: Tensor = self.last(shuffled)
            return last

    network = trace(Shuffled(), torch.zeros(1, 3, 8, 8)).network
    assert network.layer["branch"].shape.in_channels == 4
    parts = [node for node in network.nodes if node.op == "slice"]
    assert [(part.width, part.spatial) for part in parts] == [(4, (8, 8))] * 2
    assert groups(network) == {"stem": ["stem"], "branch": ["branch"]}
    resized = network.resized({"stem": 4, "branch": 1})
    assert [str(layer.shape) for layer in resized.layers] == [
        "conv2d 3x3 3->4 @8x8", "conv2d 1x1 2->1 @8x8", "conv2d 1x1 3->2 @8x8",
    ]  # fmt: skip
