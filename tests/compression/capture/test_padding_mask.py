"""Attention under a mask that each head has a copy of: the copies are no part of the heads, which are cut."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.search.gate.prove import prove
from tests.variants import some


class Padded(nn.Module):
    """Words, some of them padding, through an encoder of torch."""

    def __init__(self, heads: int = 4, norm_first: bool = False, causal: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, heads, 24, 0.1, batch_first=True, norm_first=norm_first)
        self.words, self.causal = nn.Embedding(20, 16), causal
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        later = torch.full((6, 6), -torch.inf).triu(1) if self.causal else None
        return self.head(self.layers(self.words(x), later, x == 0, is_causal=False).mean(1))


class WrittenOut(nn.Module):
    """Heads written out, with a mask of the user's own for each; a boolean one, and one that is added."""

    def __init__(self, boolean: bool) -> None:
        super().__init__()
        self.words, self.boolean = nn.Embedding(20, 16), boolean
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0)[:, None, None, :].expand(-1, 4, -1, -1)
        q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in self.qkv(self.words(x)).chunk(3, 2))
        if self.boolean:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=there)
        else:
            scores = q @ k.transpose(2, 3) * 0.5 + (1.0 - there.float()) * -30.0
            mixed = scores.softmax(3) @ v
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


def words(count: int) -> Tensor:
    drawn = torch.randint(1, 20, (count, 6), generator=torch.Generator().manual_seed(count))
    return drawn.masked_fill(torch.arange(6) > 3, 0)


KINDS: dict[str, Any] = {
    "encoder": lambda: (Padded(), {f"layers.layers.{i}.self_attn.in_proj": 4 for i in range(2)}),
    "encoder, norms first": lambda: (
        Padded(norm_first=True), {f"layers.layers.{i}.self_attn.in_proj": 4 for i in range(2)},
    ),
    "encoder, and no word sees a later one": lambda: (
        Padded(causal=True), {f"layers.layers.{i}.self_attn.in_proj": 4 for i in range(2)},
    ),
    "a share of each of two heads": lambda: (
        Padded(2), {f"layers.layers.{i}.self_attn.in_proj": 8 for i in range(2)},
    ),
    "boolean": lambda: (WrittenOut(True), {"qkv": 4}),
    "added": lambda: (WrittenOut(False), {"qkv": 4}),
}  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    some(KINDS, 3),
)
def test_heads_are_cut_under_a_mask_of_padding(
    kind: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEANFRONT_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model, expected = KINDS[kind]()
    captured = lf.capture(model.eval(), words(1))
    sizes = captured.network.group_sizes
    assert {group: sizes.get(group) for group in expected} == expected
    proof = prove(model, captured, words(1), [words(8)])
    assert proof.passed, proof.failures
    assert next(check.passed for check in proof.checks if check.name == "cut: channels out")
