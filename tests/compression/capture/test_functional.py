"""Operators in place taken out by rewriting: what comes out is the same; not plain, they are left alone."""

import pytest
import torch
from torch import Tensor, nn

from leanfront.compression.capture import program as capturing
from leanfront.compression.capture.functional import made_functional
from leanfront.compression.capture.program import Arguments, program
from leanfront.search.gate.tensors import share_of_range


class Made(nn.Module):
    """A network of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.held = nn.BatchNorm2d(4), nn.Parameter(torch.randn(4))
        self.register_buffer("table", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def plain(s, x):
    y = s.norm(s.conv(x)).relu_()
    y += x
    return y.mul_(2).flatten(1)


def read_before_and_after(s, x):
    y = s.conv(x)
    z = y * 3  # what it was
    y.clamp_(min=0)
    return y + z


def into_a_slice(s, x):
    y = s.conv(x)
    y[:, :2] += x[:, 2:]
    y[:, 3] = 1.0
    return y


def slice_read_before(s, x):
    y = s.conv(x)
    part = y[:, 1:3]
    part.relu_()
    return torch.cat([y, part], 1)


def mask(s, x):
    m = torch.zeros(4, 8)
    m[:2] = 1.0
    first = x * m.sum()
    m[3, 1:] = -2.0
    return first + x * m.mean() + s.table.sum()


def bias_with_zeros(s, x):
    bias = s.held.clone()
    bias[1:3].zero_()
    return x + bias.view(1, 4, 1, 1)


def view_read_later(s, x):
    y = s.conv(x)
    flat = y.view(y.shape[0], -1)
    y.relu_()
    return flat


def input_written(s, x):
    x.relu_()
    return s.conv(x)


RIGHT = [plain, read_before_and_after, into_a_slice, slice_read_before, mask, bias_with_zeros]
NOT_PLAIN = [view_read_later, input_written]


@pytest.mark.parametrize("function", RIGHT + NOT_PLAIN, ids=lambda one: one.__name__)
def test_it_computes_the_same(function, monkeypatch) -> None:
    torch.manual_seed(0)
    model = Made(function).eval()
    told = []
    monkeypatch.setattr(
        capturing, "made_functional", lambda graph: told.append(made_functional(graph)) or told[-1]
    )
    graph = program(model, Arguments.of(torch.randn(1, 4, 5, 6)))
    assert told == [function in RIGHT]
    mutable = [
        n for n in graph.graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)
    ]
    assert not mutable or function is input_written
    for count in (1, 3):
        x = torch.randn(count, 4, 5, 6)
        with torch.no_grad():
            assert share_of_range([model(x.clone())], [graph(x.clone())]) < 1e-6


def test_noise_is_drawn_anew_each_time() -> None:
    """What is drawn is no constant, though it depends on no input."""

    def noisy(s, x):
        noise = torch.zeros(4, 1, 1)
        noise[1:].uniform_()
        mask = torch.zeros(4, 1, 1)
        mask[:2] = 1.0
        return s.conv(x) * mask + noise

    graph = program(Made(noisy).eval(), Arguments.of(torch.randn(1, 4, 5, 6)))
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        one, other = graph(x), graph(x)
    assert torch.equal(one[:, 0], other[:, 0])
    assert not torch.equal(one[:, 1:], other[:, 1:])


def test_all_sizes_are_said() -> None:
    """A batch that is known from an input is named, one that is not is left open."""

    def sizes(s, x):
        y = x.flatten(1).unflatten(1, (4, 30))
        z = x.reshape_as(s.conv(x)).flatten(0, 1)
        return y.sum() + z.expand_as(z.sum(1, keepdim=True).expand(-1, 5, -1)).sum()

    graph = program(Made(sizes).eval(), Arguments.of(torch.randn(1, 4, 5, 6)))
    views = [node.args[1] for node in graph.graph.nodes if "view" in str(node.target)]
    assert [[size if isinstance(size, int) else str(size) for size in one] for one in views] == [
        ["sym_size_int", 120], ["sym_size_int", 4, 30], ["sym_size_int", 4, 5, 6], [-1, 5, 6],
    ]  # fmt: skip
