"""Models without their weights: these are random where only latency matters, so they need not be carried."""

import numpy as np

from latency_models import wire
from latency_models.wire import Tensor

_LARGE = 64  # constants with more values than this are left out
_LEFT_OUT = ("float32", "float16", "int8", "uint8", "int32")
_NOTE = "between"
_TILE = 4093


def hollow(model: bytes) -> bytes:
    """The model with its large constants replaced by their range, which stands in their doc_string."""
    graph = wire.graph_of(model)
    constants = [_emptied(Tensor.read(message)) for message in wire.messages(graph, wire.GRAPH_CONSTANTS)]
    return wire.with_graph(model, wire.replaced(graph, wire.GRAPH_CONSTANTS, constants))


def filled(model: bytes) -> bytes:
    """A model that ``hollow`` made, with other random values of the same ranges: it takes as long."""
    graph = wire.graph_of(model)
    messages = wire.messages(graph, wire.GRAPH_CONSTANTS)
    constants = [_refilled(message, number) for number, message in enumerate(messages)]
    return wire.with_graph(model, wire.replaced(graph, wire.GRAPH_CONSTANTS, constants))


def _emptied(tensor: Tensor) -> bytes:
    if tensor.size <= _LARGE or wire.ELEMENT_NAMES.get(tensor.element_type) not in _LEFT_OUT:
        return tensor.raw
    note = f"{_NOTE} {float(tensor.values.min())!r} {float(tensor.values.max())!r}"
    kept = [wire.field(1, size) for size in tensor.shape]
    kept += [wire.field(2, tensor.element_type), wire.field(wire.TENSOR_NAME, tensor.name)]
    return b"".join([*kept, wire.field(wire.TENSOR_NOTE, note)])


def _refilled(message: bytes, number: int) -> bytes:
    words = " ".join(wire.texts(message, wire.TENSOR_NOTE)).split()
    if len(words) != 3 or words[0] != _NOTE:
        return message
    low, high = float(words[1]), float(words[2])
    tensor = Tensor.read(message)
    kind = wire.numpy_type(tensor.element_type)
    generator = np.random.default_rng(number)
    if kind.kind == "f":
        values = generator.uniform(low, high, _TILE).astype(kind)
    else:
        values = generator.integers(int(low), int(high) + 1, _TILE).astype(kind)
    return wire.tensor(np.resize(values, tensor.shape), tensor.name)
