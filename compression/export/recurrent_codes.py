"""The matrices of a recurrent layer as a kernel for integers reads them: codes and scales, in ONNX's order.

torch.onnx moves the rows of torch's matrices, for ONNX has the gates in another order, and both directions
lie in one tensor. What it does with matrices is done here with their codes, and with their scales.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from leanfront.compression.export.onnx_writer import CONTRIBUTED, Writer
from leanfront.compression.export.weights import LayerWeights

Codes = tuple[NDArray[np.int8], NDArray[np.float32]]
"""Of a matrix, (directions, rows, columns), and the scale of each row, (directions, rows)."""
Resolved = Callable[[str], str]
"""Name of a value -> of the value that it stands for."""


def steps_to(
    graph: onnx.GraphProto, name: str, resolved: Resolved, ends: Collection[str]
) -> list[onnx.NodeProto]:
    """The nodes that a value is computed by from ``ends`` and constants, in order."""
    made_by = {output: node for node in graph.node for output in node.output}
    wanted, waiting = set[str](), [name]
    while waiting:
        name = resolved(waiting.pop())
        if name in made_by and name not in ends and name not in wanted:
            wanted.add(name)
            waiting.extend(source for source in made_by[name].input if source)
    return [node for node in graph.node if not wanted.isdisjoint(node.output)]


def codes_of(
    graph: onnx.GraphProto, name: str, resolved: Resolved, held: Mapping[str, LayerWeights]
) -> Codes:
    """Codes and scales of the value ``name`` of a graph, which is made of matrices by moving their rows.

    held: the values that are matrices -> their weights, in codes.
    """
    steps = steps_to(graph, name, resolved, held)
    codes, scales = {}, {}
    for matrix, weights in held.items():
        assert weights.codes is not None
        assert weights.scales is not None
        codes[matrix] = weights.codes.astype(np.float32)
        scales[matrix] = np.repeat(weights.scales[:, None], weights.codes.shape[1], axis=1)
    moved, each = (_computed(graph, steps, name, resolved, values) for values in (codes, scales))
    return moved.astype(np.int8), np.ascontiguousarray(each[..., 0])


def _computed(
    graph: onnx.GraphProto,
    steps: list[onnx.NodeProto],
    name: str,
    resolved: Resolved,
    values: Mapping[str, NDArray[np.float32]],
) -> NDArray[np.float32]:
    nodes = []
    for step in steps:
        node = onnx.NodeProto()
        node.CopyFrom(step)
        node.input[:] = [resolved(source) for source in step.input]
        nodes.append(node)
    read = {source for node in nodes for source in node.input}
    given = [helper.make_tensor_value_info(one, TensorProto.FLOAT, own.shape) for one, own in values.items()]
    out = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    model = helper.make_model(helper.make_graph(nodes, "rows", given, out, constants))
    (found,) = ReferenceEvaluator(model).run(None, dict(values))
    return np.asarray(found, dtype=np.float32)


def integer_lstm(
    out: Writer, node: onnx.NodeProto, name: str, inputs: Sequence[str], matrices: Sequence[Codes]
) -> list[str]:
    """Write an LSTM that quantizes what it reads, and its state at each step, while it runs, for which
    onnxruntime has a kernel; what it puts out.

    Args:
        node: the LSTM of ONNX. name: of the layer that holds its first matrix, which the first node of it
        bears. inputs: of the node, those in the place of its two matrices unread. matrices: of both.
    """
    again = ("read 0", name) in out.written
    read: list[list[str]] = []
    for what, (codes, scales) in zip(("read", "state"), matrices, strict=True):
        turned = np.ascontiguousarray(codes.transpose(0, 2, 1))
        parts: list[NDArray[Any]] = [turned, scales, np.zeros(scales.shape, np.int8)]
        read.append(
            [out.once((f"{what} {place}", name), partial(out.own, part)) for place, part in enumerate(parts)]
        )
    others = [*inputs[3:], *[""] * (8 - len(inputs))]
    every = [inputs[0], read[0][0], read[1][0], *others, *read[0][1:], *read[1][1:]]
    made = [out.name() for _ in node.output]
    run = helper.make_node("DynamicQuantizeLSTM", every, made, "" if again else name, domain=CONTRIBUTED)
    run.attribute.extend(own for own in node.attribute if own.name != "layout")  # steps first, as by default
    out.nodes.append(run)
    return made
