"""Models without their weights: these are random where only latency matters, so they need not be carried."""

from collections.abc import Callable

import numpy as np

from leanfront.latency_models.kernel_table import onnx_protobuf
from leanfront.latency_models.kernel_table.onnx_protobuf import Tensor

_LARGE = 64  # constants with more values than this are left out
_LEFT_OUT = ("float32", "float16", "int8", "uint8", "int32")
_NOTE = "between"
_TILE = 4093


def stripped(model: bytes) -> bytes:
    """The model with its large constants replaced by their range, which stands in their doc_string."""
    return _with_constants(model, lambda message, _: _emptied(Tensor.read(message)))


def filled(model: bytes) -> bytes:
    """A model that ``stripped`` made, with other random values of the same ranges: it takes as long."""
    return _with_constants(model, _refilled)


def _with_constants(model: bytes, changed: Callable[[bytes, int], bytes]) -> bytes:
    graph = onnx_protobuf.graph_of(model)
    messages = onnx_protobuf.messages(graph, onnx_protobuf.GRAPH_CONSTANTS)
    constants = [changed(message, number) for number, message in enumerate(messages)]
    return onnx_protobuf.with_graph(
        model, onnx_protobuf.replaced(graph, onnx_protobuf.GRAPH_CONSTANTS, constants)
    )


def _emptied(tensor: Tensor) -> bytes:
    if tensor.size <= _LARGE or onnx_protobuf.ELEMENT_NAMES.get(tensor.element_type) not in _LEFT_OUT:
        return tensor.raw
    note = f"{_NOTE} {float(tensor.values.min())!r} {float(tensor.values.max())!r}"
    kept = [onnx_protobuf.field(1, size) for size in tensor.shape]
    kept += [
        onnx_protobuf.field(2, tensor.element_type),
        onnx_protobuf.field(onnx_protobuf.TENSOR_NAME, tensor.name),
    ]
    return b"".join([*kept, onnx_protobuf.field(onnx_protobuf.TENSOR_NOTE, note)])


def _refilled(message: bytes, number: int) -> bytes:
    words = " ".join(onnx_protobuf.texts(message, onnx_protobuf.TENSOR_NOTE)).split()
    if len(words) != 3 or words[0] != _NOTE:
        return message
    low, high = float(words[1]), float(words[2])
    tensor = Tensor.read(message)
    kind = onnx_protobuf.numpy_type(tensor.element_type)
    generator = np.random.default_rng(number)
    if kind.kind == "f":
        values = generator.uniform(low, high, _TILE).astype(kind)
    else:
        values = generator.integers(int(low), int(high) + 1, _TILE).astype(kind)
    return onnx_protobuf.tensor(np.resize(values, tensor.shape), tensor.name)
