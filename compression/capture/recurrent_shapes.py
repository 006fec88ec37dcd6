"""What recurrent operations put out, by their shapes alone, while torch.export follows a network.

torch has no rule of their shapes: for each it computes step after step of the sequence, as if all were a
network of its own, to learn what comes out. That takes some 60 ms a step (an LSTM of two layers and both
directions over 120 steps: 14 s, and 0.06 s with the rules), and leaves nothing in the graph.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey

aten = torch.ops.aten
Rule = Callable[..., tuple[Tensor, ...]]


def _rnn(
    given: Tensor, state: Tensor, weights: Any, biases: bool, layers: int, dropout: float, train: bool,
    both_ways: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """(what comes out of the last layer, its last states); the first two sizes are those of what goes in."""
    width = state.shape[2] * (2 if both_ways else 1)
    return given.new_empty((*given.shape[:2], width)), state.new_empty(state.shape)


def _lstm(given: Tensor, states: tuple[Tensor, Tensor], *more: Any) -> tuple[Tensor, ...]:
    """The same with the cells' last states; projected ones are narrower than these."""
    outputs, cells = states
    return (*_rnn(given, outputs, *more), cells.new_empty(cells.shape))


RULES: dict[Any, Rule] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _rnn,
    aten.rnn_tanh.input: _rnn,
    aten.rnn_relu.input: _rnn,
}
_WHERE = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
"""Where torch's step by step computation of an operator is found."""


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within, recurrent operations of fake tensors are computed by rule. Nothing else may run beside."""
    if not all(hasattr(op, "py_kernels") and hasattr(op, "_dispatch_cache") for op in RULES):
        yield  # another torch: slower, and right
        return
    before = {op: {key: op.py_kernels[key] for key in _WHERE if key in op.py_kernels} for op in RULES}
    try:
        for op, rule in RULES.items():
            op.py_kernels.update(dict.fromkeys(before[op], rule))
            op._dispatch_cache.clear()  # what it has found before
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()
