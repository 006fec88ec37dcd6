"""Statistics of batch norms: which of them are touched, what a cut shifts, and what is nearest is taken."""

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import Traced, trace
from leanfront.compression.policy import LayerPolicy, Policy
from leanfront.compression.techniques.compress import compress
from leanfront.compression.training.batch_norms import (
    Shift,
    changed_norms,
    norms_of,
    re_estimate,
    set_statistics,
    statistics,
)


class Branched(nn.Module):
    """Two branches of the input that do not see each other, and what joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.b_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.c_norm = nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a_norm(self.a(x)).relu(), self.b_norm(self.b(x)).relu()
        return self.out(self.c_norm(self.c(torch.cat([a, b], 1))).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def traced() -> Traced:
    torch.manual_seed(0)
    model = Branched()
    re_estimate(model, images(0))
    return trace(model.eval(), torch.randn(1, 3, 6, 6))


def images(seed: int) -> list[Tensor]:
    return list(torch.randn(4, 16, 3, 6, 6, generator=torch.Generator().manual_seed(seed)))


def policy(traced: Traced, **changed: LayerPolicy) -> Policy:
    return Policy.of({layer.name: changed.get(layer.name, LayerPolicy()) for layer in traced.network.layers})


@pytest.mark.parametrize(
    ("changed", "norms"),
    [
        ({}, set()),
        ({"a": LayerPolicy(0.0, 8, 8), "b": LayerPolicy(0.0, 8, 8), "c": LayerPolicy(0.0, 8, 8)}, set()),
        ({"a": LayerPolicy(0.5)}, {"a_norm", "c_norm"}),
        ({"b": LayerPolicy(0.0, 4, 32)}, {"b_norm", "c_norm"}),
        ({"c": LayerPolicy(0.5)}, {"c_norm"}),
    ],
)
def test_only_norms_behind_a_change_are_touched(
    traced: Traced, changed: dict[str, LayerPolicy], norms: set[str]
) -> None:
    compressed = compress(traced, policy(traced, **changed))
    assert changed_norms(traced, compressed) == norms
    before = statistics(compressed.module)
    re_estimate(compressed.module, images(5), changed_norms(traced, compressed))
    after = statistics(compressed.module)
    assert {name for name in before if not torch.equal(before[name][0], after[name][0])} == norms


def test_what_a_cut_shifts_is_added_to_what_was_there(traced: Traced) -> None:
    """On the inputs that the statistics came from, corrected ones are those estimated anew."""
    compressed = compress(traced, policy(traced, a=LayerPolicy(0.5)))
    shift = Shift.of(traced, images(0))
    kept = statistics(compressed.module)
    re_estimate(compressed.module, images(0))
    estimated = statistics(compressed.module)
    found = shift.corrected(compressed, kept, estimated)
    assert found.keys() == {"a_norm", "b_norm", "c_norm"}
    for name, (mean, variance) in found.items():
        torch.testing.assert_close(mean, estimated[name][0])
        torch.testing.assert_close(variance, estimated[name][1])


def test_the_uncut_network_is_left_as_it_was(traced: Traced) -> None:
    before = statistics(traced.module)
    Shift.of(traced, images(7))
    after = statistics(traced.module)
    assert all(
        torch.equal(one, other)
        for name in before
        for one, other in zip(before[name], after[name], strict=True)
    )


def test_statistics_go_back_where_they_came_from(traced: Traced) -> None:
    module = compress(traced, policy(traced)).module
    wanted = {"a_norm": (torch.full((8,), 2.0), torch.full((8,), 3.0))}
    set_statistics(module, wanted)
    assert float(norms_of(module)["a_norm"].running_var[0]) == 3.0
    assert torch.equal(norms_of(module)["b_norm"].running_mean, statistics(traced.module)["b_norm"][0])
