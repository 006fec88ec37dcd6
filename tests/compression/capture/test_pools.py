"""Pools to given sizes, whatever of them torch's exporter can write."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import leanfront as lf
from leanfront.search.gate.prove import prove


class Pooled(nn.Module):
    """A volume, pooled between two layers."""

    def __init__(self, sizes: Sequence[int | None]) -> None:
        super().__init__()
        self.first, self.pool, self.last = (
            nn.Linear(4, 6),
            nn.AdaptiveAvgPool3d(tuple(sizes)),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(-1, 6, *x.shape[2:])
        return self.last(self.pool(y).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("sizes", "operators"),
    [
        ((2, 2, 2), {"avg_pool3d"}),
        ((4, 4, 4), set()),
        ((1, None, 2), {"avg_pool3d"}),
        ((3, 3, 3), {"slice", "mean", "cat"}),
        ((2, 6, 4), {"avg_pool3d", "slice", "mean", "cat"}),
    ],
    ids=["halves", "same", "one", "thirds", "mixed"],
)
def test_volumes_are_pooled_to_any_sizes(sizes: Sequence[int | None], operators: set[str]) -> None:
    torch.manual_seed(0)
    model, example = Pooled(sizes).eval(), torch.randn(1, 4, 4, 4, 4)
    captured = lf.capture(model, example)
    targets = [str(node.target) for node in captured.module.graph.nodes]
    called = {target.split(".")[1] for target in targets if target.startswith("aten.")}
    assert called & {"avg_pool3d", "adaptive_avg_pool3d", "slice", "mean", "cat"} == operators
    assert prove(model, captured, example).failures == ()
