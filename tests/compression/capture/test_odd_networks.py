"""Networks of kinds that nobody had thought of: each was wrong, or a traceback, when it was tried."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.export.torch_exporter import ExportError
from leanfront.search.gate.prove import prove


class Shifted(nn.Module):
    """A pad that cuts off as much at the other end: the shape stays, the values move (RWKV)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(12))
        self.inside, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        return self.head(self.inside(x * self.mix + before * (1 - self.mix)).relu()[:, -1])


class Unrolled(nn.Module):
    """A state that begins with zeros, made of sizes alone, and goes with the channels of a layer's gates."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(1 + 8, 32, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 8, 6, 6)
        cell = hidden
        for step in range(2):
            into, keep, out, new = self.gates(torch.cat([x[:, step], hidden], 1)).chunk(4, 1)
            cell = keep.sigmoid() * cell + into.sigmoid() * new.tanh()
            hidden = out.sigmoid() * cell.tanh()
        return self.head(hidden)


class Windows(nn.Module):
    """Windows around each place, weighed by what a layer says there: padding inside of one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.weights, self.head = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 9, 1),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x).relu()
        windows = F.unfold(x, 3, padding=1).view(-1, 8, 9, 6, 6)
        return self.head((windows * self.weights(x).unsqueeze(1)).sum(2).mean((2, 3)))


EXAMPLES = {
    Shifted: torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(0)),
    Unrolled: torch.randn(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
    Windows: torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_they_are_proved(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    assert not prove(model, lf.capture(model, EXAMPLES[kind]), EXAMPLES[kind]).failures


class Waves(nn.Module):
    """Complex values, of which torch.onnx writes few operations."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(self.inside(x))
        return self.out(torch.fft.irfft2(waves + torch.zeros_like(waves), s=x.shape[-2:]))


def test_what_no_file_can_be_written_of_is_said_in_a_line(tmp_path) -> None:
    model = Waves().eval()
    captured = lf.capture(model, torch.randn(1, 1, 8, 8))
    small = lf.compress(captured, lf.uniform(captured), [torch.randn(4, 1, 8, 8)])
    with pytest.raises(ExportError, match=r"^torch\.onnx cannot export the model: .*zeros_like.*$") as error:
        lf.export(small, tmp_path / "model.onnx")
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
