"""What recurrent operations put out, by rule: as torch has it step by step, in no time."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import leanfront as lf
from leanfront.compression.capture.recurrent_shapes import RULES, shapes_alone

KINDS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(4, 6),
    "lstm, batch first, two layers, both ways": lambda: nn.LSTM(
        4, 6, 2, batch_first=True, bidirectional=True
    ),
    "lstm, projected, both ways": lambda: nn.LSTM(4, 6, proj_size=3, bidirectional=True),
    "gru": lambda: nn.GRU(4, 6, 2, batch_first=True, bidirectional=True),
    "tanh": lambda: nn.RNN(4, 6, bidirectional=True),
    "relu": lambda: nn.RNN(4, 6, batch_first=True, nonlinearity="relu"),
}


class All(nn.Module):
    """Every output of a recurrent layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = KINDS[kind]()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        steps, states = self.inner(x)
        return (steps, *states) if isinstance(states, tuple) else (steps, states)


def followed(model: nn.Module, x: Tensor, batch: int) -> list[tuple[Any, Any]]:
    """What torch.export makes of it: operators and shapes, in order."""
    program = torch.export.export(model, (x,), dynamic_shapes=({batch: Dim.AUTO},), strict=False)
    shapes = {}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        shapes[node.name] = str(tuple(value.shape)) if isinstance(value, Tensor) else str(type(value))
    return [(str(node.target), shapes[node.name]) for node in program.graph.nodes]


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_says_what_torch_finds_step_by_step(kind: str) -> None:
    model, x = All(kind).eval(), torch.randn(5, 3, 4)
    batch = 0 if model.inner.batch_first else 1
    step_by_step = followed(model, x, batch)
    with shapes_alone():
        assert followed(model, x, batch) == step_by_step
    kernels = [dict(op.py_kernels) for op in RULES]
    with pytest.raises(ZeroDivisionError), shapes_alone():
        assert 1 / 0
    assert [dict(op.py_kernels) for op in RULES] == kernels


def test_a_long_sequence_is_followed_as_fast_as_a_short_one(tmp_path: Path) -> None:
    class Long(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTM(4, 8, 2, batch_first=True, bidirectional=True)
            self.last = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x)[0].mean(1))

    model, x = Long().eval(), torch.randn(1, 1000, 4)
    started = time.process_time()
    captured = lf.capture(model, x)
    lf.export(lf.compress(captured, lf.uniform(captured)), tmp_path / "model.onnx")  # it proves the file
    assert time.process_time() - started < 15  # step by step: minutes
    more = torch.randn(3, 1000, 4)
    with torch.no_grad():
        assert torch.allclose(captured.module(more), model(more), atol=1e-6)
