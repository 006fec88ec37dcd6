"""Ways up again in a network of images, squeeze and excitation, activations: cut, exported, timed alike."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.deployed_form import fold
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from leanfront.latency_models.benchmark.timing import session
from tests.variants import some


class Ways(nn.Module):
    """Bilinear to a size and by a factor, nearest, transposed with padding, groups, depthwise; a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.deep = nn.Conv2d(8, 12, 3, 2, padding=1)
        self.padded = nn.ConvTranspose2d(12, 8, 3, 2, padding=1, output_padding=1)
        self.depthwise = nn.ConvTranspose2d(12, 12, 2, 2, groups=12)
        self.grouped = nn.ConvTranspose2d(12, 6, 2, 2, groups=2)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.joined = nn.Conv2d(8 + 8 + 12 + 6 + 12, 8, 1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.first(x))
        deep = F.relu6(self.deep(wide))
        ups = [F.relu(self.padded(deep)), self.depthwise(deep), self.grouped(deep), self.up(deep)]
        x = F.relu(self.joined(torch.cat([wide, *ups], 1)))
        x = F.interpolate(self.pool(x), size=wide.shape[2:], mode="bilinear") + x
        x = F.interpolate(x, scale_factor=0.5)
        return self.head(x.view(x.size(0), x.size(1) * 16))


class SqueezeExcite(nn.Module):
    """Channels weighed by what all positions say, as in MobileNetV3; hard activations; a learnt scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16).view(16, 1, 1))
        self.last = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.first(x))
        weight = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(F.silu(self.last(x * weight * self.scale)).mean((2, 3)))


class Activated(nn.Sequential):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), kind(), nn.Conv2d(16, 16, 1), kind(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip


KINDS: dict[str, Any] = {"Ways": Ways, "SqueezeExcite": SqueezeExcite} | {
    kind.__name__: (lambda kind=kind: Activated(kind))
    for kind in (nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ReLU6)
}

EXPECTED = {
    "Ways": {"first": 1, "deep": 2, "padded": 1, "grouped": 1, "joined": 1},
    "SqueezeExcite": {"first": 2, "squeeze": 1, "last": 1},
}


@pytest.mark.parametrize("name", some(KINDS, 4))
def test_cut_and_exported_and_timed_alike(name: str, tmp_path: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = KINDS[name]().eval()
        x = torch.randn(6, 3, 16, 16)
    traced = trace(model, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(traced.module(x), model(x))
    groups = {group: len(layers) for group, layers in traced.network.groups.items()}
    assert groups == EXPECTED.get(name, {"0": 1, "2": 1})
    assert traced.notes == ()
    base = template(traced)
    for share, bits in ((0.0, 32), (0.5, 32), (0.25, 8)):
        policy = Policy.uniform(traced.network, LayerPolicy(share, bits, bits))
        compressed = compress(traced, policy)
        calibrate(compressed.module, [x])
        compressed.module.eval()
        file = exported(base, compressed).SerializeToString()
        opened = session(file)
        with torch.no_grad():
            expected = fold(compressed).module(x).numpy()
        found = np.concatenate([opened.run(None, {"input": one[None].numpy()})[0] for one in x])
        np.testing.assert_allclose(
            found, expected, atol=1e-4 if bits == 32 else 0.03 * np.abs(expected).max()
        )
        random = random_model(base, compressed.network, policy).SerializeToString()
        lists = []
        for content in (file, random):
            session(content, save=str(tmp_path / "optimised.onnx"))
            graph = onnx.load_model(tmp_path / "optimised.onnx").graph
            lists.append(sorted(node.op_type for node in graph.node))
        assert lists[0] == lists[1]
