"""Shapes of an ONNX graph, where onnx's own inference stops: size calculations are folded on the way."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

SMALL = 4096
"""Tensors of up to so many elements are taken for sizes, axes and the like."""

ROUNDS = 32
"""Each round finds at least one more shape, and few exporters stack size calculations deeper."""


def infer_shapes(model: ModelProto) -> ModelProto:
    """A copy of the model with the shapes of all tensors that follow from its inputs.

    Exporters calculate sizes in the graph (Shape, Gather, Concat, Reshape): onnx's inference follows the
    common calculations only. The rest is computed here with onnx's reference implementation, round after
    round, until nothing new comes out. Tensors without a shape after that depend on values.

    Raises:
        Exception: what onnx raises for a graph that contradicts itself.
    """
    inferred = _inferred(model)
    for _ in range(ROUNDS):
        shapes = fixed_shapes(inferred.graph)
        if all(name in shapes for node in inferred.graph.node for name in node.output if name):
            break
        if not _fold(inferred, shapes):
            break
        inferred = _inferred(inferred)
    return inferred


def fixed_shapes(graph: GraphProto) -> dict[str, tuple[int, ...]]:
    """Tensor -> its sizes, for all tensors of which every size is known."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim):
            shapes[value.name] = tuple(size.dim_value for size in tensor.shape.dim)
    return shapes


def _inferred(model: ModelProto) -> ModelProto:
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _fold(model: ModelProto, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Replace what can be computed by stored tensors, in place; whether anything was."""
    known: dict[str, NDArray[np.generic]] = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != TensorProto.EXTERNAL and np.prod(tensor.dims) <= SMALL
    }
    kept: list[NodeProto] = []
    stored: list[TensorProto] = []
    for node in model.graph.node:
        values = _values(node, known, shapes, model)
        if values is None:
            kept.append(node)
            continue
        for name, value in zip(node.output, values, strict=True):
            known[name] = value
            stored.append(numpy_helper.from_array(value, name))
    if stored:
        del model.graph.node[:]
        model.graph.node.extend(kept)
        model.graph.initializer.extend(stored)
    return bool(stored)


def _values(
    node: NodeProto,
    known: dict[str, NDArray[np.generic]],
    shapes: dict[str, tuple[int, ...]],
    model: ModelProto,
) -> list[NDArray[np.generic]] | None:
    """The outputs of a node whose inputs are known small tensors, or None."""
    if node.op_type == "Shape" and node.input[0] in shapes and not node.attribute:
        return [np.array(shapes[node.input[0]], np.int64)]
    computed = all(not name or name in known for name in node.input)
    if not computed or node.domain not in ("", "ai.onnx") or node.op_type.startswith("Random"):
        return None
    if any(attribute.HasField("g") for attribute in node.attribute):
        return None
    if any(np.prod(shapes.get(name, (0,))) > SMALL for name in node.output):
        return None
    alone = helper.make_model(
        helper.make_graph(
            [node],
            "alone",
            [],
            [helper.make_empty_tensor_value_info(name) for name in node.output],
            [numpy_helper.from_array(known[name], name) for name in dict.fromkeys(node.input) if name],
        ),
        opset_imports=model.opset_import,
    )
    try:
        values = ReferenceEvaluator(alone).run(None, {})
    except Exception:  # not implemented there, or odd values: the shape stays unknown and is reported
        return None
    return [np.asarray(value) for value in values]
