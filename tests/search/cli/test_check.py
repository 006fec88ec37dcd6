"""What ``leanfront check`` says of what a search does not touch: why, and what its owner could do."""

import pytest
import torch
from torch import nn

from leanfront.compression.capture.trace import trace
from leanfront.search.cli.check import _channels_that_stay, _print_untouched


class Odd(nn.Module):
    """A recurrent layer, a computed weight, channels that are mixed, and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 3)
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.mixed = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, 6) -> (N, 3)."""
        y, _ = self.gru(torch.relu(self.first(x)))
        found: torch.Tensor = self.last(torch.sort(torch.relu(self.mixed(y[:, -1])), 1)[0])
        return found


def test_it_says_why_and_what_could_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    traced = trace(Odd().eval(), torch.zeros(1, 5, 6))
    stay = _channels_that_stay(traced.network)
    assert stay["last"] == "they are outputs of the network"
    assert stay["mixed"].partition(";")[0].endswith("mixes them")
    _print_untouched({"kept_as_they_are": list(traced.notes), "channels_stay_because": stay})
    out = capsys.readouterr().out
    assert "\n- output channels of last: they are outputs of the network; their bits are searched\n" in out
    assert "mixes them; in operations that keep channels apart" in out
    assert "\n- gru is kept as it is: recurrent layers are not cut" in out
    assert "convolutions or attention in their place would be cut\n" in out
    _print_untouched({"kept_as_they_are": []})
    assert not capsys.readouterr().out
