"""Networks of kinds that nobody had thought of: each was wrong, or a traceback, when it was tried."""

import importlib

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leanfront as lf
from leanfront.compression.capture.program import TraceError
from leanfront.compression.export.measured_sizes import measured
from leanfront.compression.export.template import template
from leanfront.compression.export.torch_exporter import ExportError
from leanfront.compression.export.walk import random_model
from leanfront.compression.graph import kernels
from leanfront.compression.policy.batch import PolicyBatch
from leanfront.compression.policy.precision import integer_kernels
from leanfront.networks import file_of
from leanfront.search.gate.kernels import kernel_report
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


class Frames(nn.Module):
    """The frames of a film as images one after the other, some channels of which come from the next (TSM)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        count, length = x.shape[:2]
        y = self.first(x.flatten(0, 1)).relu().view(count, length, 8, 6, 6)
        y = torch.cat([torch.roll(y[:, :, :2], 1, 1), y[:, :, 2:]], 2).flatten(0, 1)
        return self.head(self.second(y).relu().mean((2, 3))).view(count, length, -1).mean(1)


class Blurred(nn.Module):
    """A fixed filter in a buffer, whose name would be the layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        self.register_buffer("filter", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(self.first(x).relu(), self.filter, stride=2, groups=8)
        return self.head(x.mean((2, 3)))


class Bags(nn.Module):
    """Bags of ids: sums, means and maxima of rows; weighed ones, for which torch.onnx writes a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(20, 8, mode=mode) for mode in ("sum", "mean", "max")])
        self.weighed, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(32, 3)

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        found = [bag(ids) for bag in self.bags] + [self.weighed(ids, per_sample_weights=weights)]
        return self.head(torch.cat(found, 1).relu())


class Nearest(nn.Module):
    """The nearest of some vectors is put out (VQ-VAE): distances, for which torch.onnx has nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.inside, self.out, self.p = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(8, 3, 4, 4), p
        self.book = nn.Embedding(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inside(x).permute(0, 2, 3, 1)
        nearest = torch.cdist(z.flatten(0, 2), self.book.weight, p=self.p).argmin(-1)
        return self.out(self.book(nearest).view(z.shape).permute(0, 3, 1, 2)).tanh()


class Near(Nearest):
    """Both norms are written out."""

    def __init__(self) -> None:
        super().__init__(1.0)


class Nearer(Nearest):
    def __init__(self) -> None:
        super().__init__(2.0)


class Ranked(nn.Module):
    """The rows that score best are gathered by places: integers, which no grid holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.score, self.head = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(5 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.first(x))).squeeze(-1)
        best = torch.argsort(scores, -1, descending=True)[:, :5, None].expand(-1, -1, 6)
        return self.head(torch.gather(x, 1, best).flatten(1))


class Standardised(nn.Module):
    """Each channel by its own deviation: torch.onnx writes a variance with sizes that count the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.bank, self.after, self.head = nn.Conv1d(1, 12, 8, 4), nn.Conv1d(12, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bank(x)
        y = (y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 1e-3)
        return self.head(self.after(y).relu().amax(-1))


class Regions(nn.Module):
    """`with` blocks, one within the other, with layers and a dropout inside (EfficientViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = self.drop(self.first(x.float()).relu())
            with torch.no_grad():
                scale = y.abs().mean(-1, keepdim=True) + 1
            y = self.second(y / scale).relu()
        return self.head(y)


class Differences(nn.Module):
    """torch.onnx writes a difference as slices, and calls them as the graph around calls its own (GPT-2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 24), nn.Linear(8, 8), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.diff(x[:, 1:5], dim=-1)
        one, other, third = self.first(x).chunk(3, -1)
        return self.head(torch.cat([self.second(one * other.sigmoid() + third).relu(), steps], -1))


class Placed(nn.Module):
    """A layer that reads the places which the network holds, and no input: engines compute it once, when they
    load the file (ConViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.where, self.head = nn.Linear(6, 16), nn.Linear(3, 16), nn.Linear(16, 3)
        self.register_buffer("places", torch.randn(1, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        where = self.where(self.places.expand(x.shape[0], -1, -1))
        return self.head((self.first(x)[:, None] + where).relu().mean(1))


class Relations(nn.Module):
    """Keys of relative places, a layer that reads a norm of what the network holds (DeBERTa): some engines
    compute it once, others each time."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 16), nn.LayerNorm(16)
        self.query, self.head = nn.Linear(6, 16), nn.Linear(7, 3)
        self.keys = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        places, query = self.norm(self.table.weight), self.query(x)[:, None]
        found = [
            query @ key(places.unsqueeze(0)).repeat(x.shape[0], 1, 1).transpose(1, 2) for key in self.keys
        ]
        return self.head((found[0] + found[1].relu()).softmax(-1).flatten(1))


class OneWindow(nn.Module):
    """An image in windows, of which there is one (MaxViT's last stage)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu().permute(0, 2, 3, 1)
        n, height, width, channels = y.shape
        y = y.view(n, height // 8, 8, width // 8, 8, channels).permute(0, 1, 3, 2, 4, 5)
        return self.head(self.second(y.contiguous().view(-1, 8, 8, channels)).relu().mean((1, 2)))


class Positions(nn.Module):
    """Positions of a sequence in another order: by an index, and by two reshapes and a transpose. They are no
    channels, and as many as there were where channels are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24 * 13, 3)
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 4, 4, 11, 10, 9, 8, 7, 6, 5]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        y = y.reshape(-1, 3, 4, y.shape[-1]).transpose(1, 2).reshape(y.shape)
        return self.head(self.second(y.index_select(1, self.order)).relu().flatten(1))


class Bordered(nn.Module):
    """Zeros around numbers below zero, and the largest of each window (BiT): onnxruntime would make one
    kernel of both, which pads with the lowest number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        with torch.no_grad():
            self.first.bias.fill_(-2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(F.pad(self.first(x), (1, 1, 1, 1)), 3, 2).mean((2, 3)))


class Film(nn.Module):
    """As many patches as frames change places in one batch (TimeSformer): channels stay, positions do not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = self.first(x).relu().reshape(n * 4, 4, 16)
        y = y.reshape(n, 4, 4, 16).permute(0, 2, 1, 3).reshape(n * 4, 4, 16)
        return self.head(self.second(y).relu().reshape(n, 4, 4, 24).mean(2).flatten(1))


class Cache:
    """Keys of all positions so far, as a decoder has it: an object, and empty at first."""

    def __init__(self) -> None:
        self.keys = torch.tensor([])

    def update(self, keys: Tensor) -> Tensor:
        self.keys = torch.cat([self.keys, keys], -2)
        return self.keys


class Decoder(nn.Module):
    """Puts its cache out beside the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        cache = Cache()
        scores = self.query(x) @ cache.update(self.key(x)).transpose(-1, -2)
        answer = self.out(scores.softmax(-1).mean(1))
        return {"answer": answer, "cache": cache, "length": x.shape[1], "more": None}


class Distant(nn.Module):
    """What is added for a distance is computed from a table of distances: one number for each."""

    def __init__(self) -> None:
        super().__init__()
        out = nn.Linear(512, 1, bias=False)
        self.near = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Dropout(0.1), out)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 7)
        self.register_buffer("distances", torch.rand(7, 7, 2, generator=torch.Generator().manual_seed(0)) * 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu())
        return x + 20 * self.near(self.distances).squeeze(-1)


class Queries(nn.Module):
    """What asks begins with zeros, as many for each example as there are places for them."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
        self.value, self.key, self.mixed = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = self.places.unsqueeze(0).repeat(len(x), 1, 1)
        asked = torch.zeros_like(places)
        shares = ((asked + places) @ places.transpose(-1, -2)).softmax(-1)
        asked = asked + self.mixed(shares @ self.value(asked))
        found = ((asked + places) @ self.key(x).transpose(-1, -2)).softmax(-1) @ self.key(x)
        answer: Tensor = self.out(found)
        return answer


class Counted(nn.Module):
    """Sizes become numbers, as code for other frameworks has it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = map(int, x.shape)
        assert isinstance(count, int)
        assert type(height) == int  # noqa: E721 (what is tested)
        seen = F.relu(self.first(x)).reshape(int(x.size(0)), 8 * height * width)
        assert int("1", base=2) == int(1.5) == 1
        answer: Tensor = self.last(seen) + torch.zeros(count, 1)
        return answer


class Numbered(nn.Module):
    """Parts of a picture are numbered, of which some hold nothing (Swin of videos that are a window long)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.first(x)
        numbers = seen.new_zeros((6, 6))
        for number, rows in enumerate((slice(0, -6), slice(-6, -2), slice(-2, None))):
            numbers[rows, 1:] = number
        answer: Tensor = self.last(F.relu(seen + numbers).mean((2, 3)))
        return answer


class Twice(nn.Module):
    """One tensor in two places of what is put out (segmenting YOLOs)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        seen = F.relu(self.first(x))
        answer = self.last(seen)
        return {"answer": answer, "besides": (seen, answer)}


class Distances(nn.Module):
    """What a distribution over 16 distances says on average, as YOLOs find boxes. Untrained all are alike,
    and onnxruntime's softmax of integers overflows on a grid that ends at 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mean = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(16, 1, 1, bias=False)
        nn.init.normal_(self.first.weight, std=0.01)
        self.mean.weight.data[:] = torch.arange(16.0).reshape(1, 16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.first(x).reshape(-1, 4, 16, 36).transpose(2, 1).softmax(1)
        answer: Tensor = self.mean(shares).reshape(-1, 4, 36)
        return answer


class Improved(nn.Module):
    """A guess that begins with zeros and is improved by the same layers again (optical flow)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.guessed, self.better = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(16, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(self.seen(x))
        guess = torch.zeros(x.shape[0], 2, 6, 6)
        for _ in range(3):
            joined = torch.cat([seen, F.relu(self.guessed(guess))], 1)
            guess = guess + self.better(joined)
        return guess


class Together(nn.Module):
    """Heads among the batch, with lengths that follow from it."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList([nn.Linear(12, 16) for _ in range(3)])
        self.out, self.last = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        apart = [
            project(x).view(count, -1, 4, 4).transpose(1, 2).reshape(count * 4, -1, 4)
            for project in self.projections
        ]
        scores = torch.bmm(apart[0], apart[1].transpose(1, 2)).view(count, 4, length, length)
        shares = torch.max(scores, torch.tensor(-1e4)).view(count * 4, length, length).softmax(-1)
        met = torch.bmm(shares, apart[2]).view(count, 4, length, 4).transpose(1, 2)
        answer: Tensor = self.last(self.out(met.reshape(count, length, 16)).mean(1))
        return answer


class Reversible(nn.Module):
    """Two streams that are joined at the end, and a dropout of the module that has the norms inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(6, 24)
        self.inside = _Streams()
        self.last = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.inside(self.first(x), self.second(x)))
        return answer


class _Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(24), nn.LayerNorm(24)
        self.inner = nn.Linear(24, 24)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        one = one + self.inner(self.before(other)).relu()
        other = other + self.behind(one)
        return F.dropout(torch.cat([one, other], -1), 0.1, self.training)


EXAMPLES = {
    Bordered: torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    Film: torch.randn(1, 16, 6, generator=torch.Generator().manual_seed(0)),
    OneWindow: torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    Positions: torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(0)),
    Relations: torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),
    Placed: torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),
    Shifted: torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(0)),
    Decoder: torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0)),
    Distant: torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0)),
    Queries: torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0)),
    Counted: torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
    Numbered: torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
    Twice: torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)),
    Distances: torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
    Improved: torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    Together: torch.randn(1, 7, 12, generator=torch.Generator().manual_seed(0)),
    Reversible: torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0)),
    Unrolled: torch.randn(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),
    Windows: torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
    Frames: torch.randn(1, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0)),
    Blurred: torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)),
    Near: torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    Nearer: torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    Ranked: torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0)),
    Standardised: torch.randn(1, 1, 80, generator=torch.Generator().manual_seed(0)),
    Regions: torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),
    Differences: torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),
    Bags: (torch.arange(1, 8).reshape(1, 7), torch.rand(1, 7, generator=torch.Generator().manual_seed(0))),
}


def test_a_file_in_which_int_is_a_type_of_arrays_keeps_its_own(tmp_path, monkeypatch) -> None:
    text = (
        "import torch\n\n\nclass Net(torch.nn.Linear):\n    def forward(self, x: torch.Tensor, n: int = 2):\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name, line, passes in (
        ("converts", "b = int(x.shape[0]) if isinstance(n, (int, float)) else 0", True),
        ("as_a_type", "b = int(x.shape[0]) + torch.zeros(1, dtype=int).shape[0] - 1", False),
    ):
        (tmp_path / f"{name}.py").write_text(
            f"{text}        {line}\n        return super().forward(x.view(b, 6))\n"
        )
        model = importlib.import_module(name).Net(6, 3).eval()
        if passes:
            assert not prove(model, lf.capture(model, torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3)).failures
        else:
            with pytest.raises(TraceError, match="fits one batch size only"):
                lf.capture(model, torch.zeros(1, 2, 3))


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


def test_bags_of_rows_are_tables_that_are_cut() -> None:
    captured = lf.capture(Bags().eval(), EXAMPLES[Bags])
    tables = {layer.name for layer in captured.network.layers if layer.looked_up}
    assert tables == {"bags.0", "bags.1", "bags.2"}
    assert captured.network.groups


def test_what_stands_in_regions_is_captured_as_all_else() -> None:
    captured = lf.capture(Regions().eval(), EXAMPLES[Regions])
    assert {layer.name for layer in captured.network.layers} == {"first", "second", "head"}
    assert list(captured.network.groups) == ["second"]  # a mean reads all channels of the first
    assert any(isinstance(part, nn.Dropout) for part in captured.traced.module.modules())


def test_what_is_put_out_beside_tensors_is_left_out_and_said() -> None:
    model = Decoder().eval()
    captured = lf.capture(model, EXAMPLES[Decoder])
    assert "Cache that is put out beside tensors is left out: None stands there" in captured.notes
    made = captured.traced.module(EXAMPLES[Decoder])
    assert made["cache"] is made["more"] is None
    assert torch.allclose(made["answer"], model(EXAMPLES[Decoder])["answer"], atol=1e-6)  # type: ignore[arg-type]
    assert captured.network.groups  # keys and queries are cut together: nobody else reads them


class Careless(nn.Module):
    """Makes its mask only where nobody looks, as some networks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None and not torch.compiler.is_compiling():
            mask = torch.ones_like(x)
        answer: Tensor = self.last(x * mask.view(x.shape))  # type: ignore[union-attr]
        return answer


class OneByOne(nn.Module):
    """Goes through the examples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(one) for one in x])


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_captured_is_told_what_helps() -> None:
    x = torch.ones(1, 3)
    with pytest.raises(TraceError, match=r"by itself it runs, .*\(a mask of ones"):
        lf.capture(Careless(), x)
    assert lf.capture(Careless(), (x, x))
    with pytest.raises(TraceError, match="rewrite that line without decisions on values of tensors"):
        lf.capture(Decides(), x)
    with pytest.raises(TraceError, match=r"goes through the examples of a batch.*line \d+ of .*part"):
        lf.capture(OneByOne(), x)


class Said(nn.Module):
    def forward(self, x: Tensor) -> list[str]:
        return ["yes"]


def test_what_puts_out_no_tensor_is_refused() -> None:
    with pytest.raises(TraceError, match="Said puts out no tensor, but str; wrap it in a module that"):
        lf.capture(Said(), torch.zeros(1, 3))


def test_norms_inside_of_what_drops_out_are_their_own() -> None:
    captured = lf.capture(Reversible().eval(), EXAMPLES[Reversible])
    policy = lf.uniform(captured, 0.5)
    small = lf.compress(captured, policy)
    assert PolicyBatch.of(measured(captured.traced), [policy]).size_bytes()[0] == len(file_of(small, "onnx"))
    drawn = random_model(template(captured.traced), small.network, small.policy).SerializeToString()
    onnxruntime.InferenceSession(drawn, providers=["CPUExecutionProvider"])


def test_what_depends_on_no_input_is_computed_in_floats() -> None:
    captured = lf.capture(Distant().eval(), EXAMPLES[Distant])
    policy = lf.uniform(captured, 0.0, 8, 8)
    small = lf.compress(captured, policy, [torch.randn(16, 7, 6)])
    assert "near.3" in captured.network.layer
    assert integer_kernels(kernels(small.network), policy) == {"relu", "second"}
    report = kernel_report(file_of(small, "onnx"), small.network, small.policy, 1)
    assert not report["not_fused"]
    assert not report["not_wanted"]
    assert "MatMulNBits" not in report["operations"]
