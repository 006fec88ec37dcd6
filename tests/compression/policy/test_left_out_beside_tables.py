"""A branch that is left out beside a table: what its layers would have had is a pair that they can have."""

import numpy as np
import torch
from torch import Tensor, nn

from leanfront.compression.capture.trace import trace
from leanfront.compression.policy.space import Space
from leanfront.hw_profiles import load_profile


class Words(nn.Module):
    """A table, a residual branch, and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) -> (N, 3)."""
        x = self.words(ids)
        found: Tensor = self.head((x + self.outer(torch.relu(self.inner(x)))).mean(1))
        return found


def test_every_policy_of_a_space_can_be_said_in_its_decisions() -> None:
    network = trace(Words().eval(), torch.zeros(1, 5, dtype=torch.int64)).network
    space = Space(network, load_profile("raspberry-pi-4"), (0.0, 0.5), (8, 32), (8, 32), depth=True)
    assert space.branches
    rng = np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(100)]
    assert any(policy.absent for policy in drawn)
    for policy in drawn:
        assert space.params_of(policy)
