"""Attention in every form that torch has: followed, cut beside it, exported; or kept as it is and named."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.export.template import template
from leanfront.compression.export.walk import exported, random_model
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.latency_models.benchmark.timing import session


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(12, 12)
        self.attend = nn.MultiheadAttention(12, 3, dropout=0.1, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """With a class token, which alone goes to the classifier."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 3, 20, 0.1, batch_first=True, norm_first=norm_first)
        self.before = nn.Linear(12, 12)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.before(x)], 1)
        return self.head(self.layers(x)[:, 0])


class PostNorm(Encoder):
    def __init__(self) -> None:
        super().__init__(norm_first=False)


class Product(nn.Module):
    """F.scaled_dot_product_attention; views with sizes, chunk, unbind."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.qkv = nn.Linear(12, 12), nn.Linear(12, 36)
        self.qk, self.proj, self.head = nn.Linear(12, 24), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, c // 3).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        queries, keys = self.qk(x).chunk(2, dim=-1)
        scores = torch.bmm(queries, keys.transpose(1, 2)).softmax(-1)
        return self.head((x + self.proj(mixed) + scores @ x).mean(1))


class Kept(nn.Module):
    """What is not followed: attention between two tensors, recurrence, layers without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(12, 12)
        self.cross = nn.MultiheadAttention(12, 3, batch_first=True)
        self.recurrent = nn.GRU(12, 6, batch_first=True)
        self.weight = nn.Parameter(torch.randn(12, 6) * 0.3)
        self.mixing = nn.Conv1d(5, 5, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        x = x + self.cross(x, x * 2, x * 2)[0]
        return self.head(self.mixing(F.linear(self.recurrent(x)[0], self.weight)).mean(1))


KINDS: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (Multihead, Encoder, PostNorm, Product, Kept)
}


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = KINDS[name]().eval()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def data(count: int) -> Tensor:
    return torch.randn(count, 5, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(KINDS))
def test_traced_cut_and_exported(name: str) -> None:
    """The graph is the model; after a cut, file and torch still agree, at another batch size, too."""
    model = built(name)
    traced = trace(model, data(1))
    x = data(3)
    with torch.no_grad():
        torch.testing.assert_close(traced.module(x), model(x), rtol=1e-5, atol=1e-6)
    base = template(traced)
    for share in (0.0, 0.5):
        policy = Policy.uniform(traced.network, LayerPolicy(share))
        compressed = compress(traced, policy)
        with torch.no_grad():  # training changes every weight, those that are kept as they are, too
            for parameter in compressed.module.parameters():
                parameter.mul_(1.05)
            expected = compressed.module.eval()(x).numpy()
        opened = session(exported(base, compressed).SerializeToString())
        found = np.concatenate([opened.run(None, {"input": one[None].numpy()})[0] for one in x])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        session(random_model(base, compressed.network, policy).SerializeToString())


EXPECTED: dict[str, dict[str, int]] = {
    "Multihead": {"before": 2, "attend.in_proj": 1},
    "Encoder": {
        "before": 5,
        "layers.layers.0.self_attn.in_proj": 1,
        "layers.layers.0.linear1": 1,
        "layers.layers.1.self_attn.in_proj": 1,
        "layers.layers.1.linear1": 1,
    },
    "PostNorm": {
        "before": 5,
        "layers.layers.0.self_attn.in_proj": 1,
        "layers.layers.0.linear1": 1,
        "layers.layers.1.self_attn.in_proj": 1,
        "layers.layers.1.linear1": 1,
    },
    "Product": {"before": 2, "qkv": 1, "qk": 1},
    "Kept": {"cross": 2, "cross_2": 1},
}


@pytest.mark.parametrize("name", list(KINDS))
def test_groups(name: str) -> None:
    """Group -> number of layers. Queries, keys and values are cut together; positions that a layer mixes, and
    what a recurrent layer reads, stay."""
    network = trace(built(name), data(1)).network
    assert {group: len(layers) for group, layers in network.groups.items()} == EXPECTED[name]


def test_layers_of_torchs_modules_are_seen() -> None:
    traced = trace(built("Encoder"), data(1))
    assert {"layers.layers.0.self_attn.in_proj", "layers.layers.1.self_attn.out_proj"} <= set(
        traced.network.layer
    )
    assert traced.notes == ()
    ops = {node.op for node in traced.network.nodes}
    assert {"matmul", "softmax", "layernorm", "concat", "slice", "transpose"} <= ops
    assert "other" not in ops | {node.op for node in trace(built("Product"), data(1)).network.nodes}


def test_what_is_kept_is_said() -> None:
    notes = trace(built("Kept"), data(1)).notes
    assert [note.split(" is kept as it is: ")[0] for note in notes] == ["recurrent"]


class Named(nn.Conv2d):
    """A layer under another name."""


class Standardized(nn.Conv2d):
    """A layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight / 2, self.bias)


def test_subclasses_and_borders() -> None:
    model: Any = nn.Sequential(
        Named(3, 4, 1), Standardized(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 2, 1),
    ).eval()  # fmt: skip
    traced = trace(model, torch.zeros(1, 3, 6, 6))
    assert set(traced.network.layer) == {"0", "1", "2", "3", "4"}  # what is computed counts
    assert set(traced.network.groups) == {"0", "1", "2", "3"}
    assert traced.notes == ()
    compressed = compress(traced, Policy.uniform(traced.network, LayerPolicy(0.5)))
    x = torch.randn(1, 3, 6, 6)
    opened = session(exported(template(traced), compressed).SerializeToString())
    with torch.no_grad():
        np.testing.assert_allclose(opened.run(None, {"input": x.numpy()})[0], compressed.module(x), atol=1e-5)
