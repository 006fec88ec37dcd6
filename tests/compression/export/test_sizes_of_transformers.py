"""The size of a vision transformer's file: position embeddings and norms are a good part of it."""

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.policy.batch import size_bytes
from leanfront.compression.techniques.compress import compress
from leanfront.compression.techniques.quantize import calibrate
from tests.variants import some


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int = 32, image: int = 48, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.blocks(x)[:, 0])


@pytest.mark.parametrize(
    "layer", some([LayerPolicy(0.5, 4, 8), LayerPolicy(), LayerPolicy(0.0, 8, 8), LayerPolicy(0.5, 8, 8)], 1)
)
def test_predicted_within_a_percent_or_300_bytes(layer: LayerPolicy) -> None:
    torch.manual_seed(0)
    model = Transformer()
    for parameter in model.parameters():  # as training leaves them: equal ones are stored once
        nn.init.normal_(parameter)
    traced = trace(model.eval(), torch.zeros(1, 3, 48, 48))
    policy = Policy.uniform(traced.network, layer)
    compressed = compress(traced, policy)
    calibrate(compressed.module, [torch.randn(4, 3, 48, 48)])
    written = len(exported(template(traced), compressed).SerializeToString())
    for network, bytes_, share in ((measured(traced), 40, 0.0), (traced.network, 300, 0.01)):
        assert abs(size_bytes(policy.cut(network), policy) - written) < max(bytes_, share * written)
