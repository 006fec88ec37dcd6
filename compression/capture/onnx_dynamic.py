"""What an .onnx file quantizes while it runs: products are read as products with weights of 8 bits, LSTMs as
LSTMs."""

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper


def without_run_time_grids(model: ModelProto) -> tuple[ModelProto, frozenset[str]]:
    """A model in which these are a MatMul behind a DequantizeLinear each, and the names of these MatMuls.
    Itself where there are none.

    What is looked for is DynamicQuantizeLinear, MatMulInteger, Cast and Mul, the scale of the tensor times
    that of the weights, as leanfront and onnxruntime's ``quantize_dynamic`` write them.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    stored = {tensor.name for tensor in model.graph.initializer}
    written: dict[str, list[NodeProto]] = {}  # output of the last node of each -> what stands for it
    names = []
    for node in model.graph.node:
        if (found := _scaled(node, made_by, readers, stored)) is None:
            continue
        last, scales = found
        name, weight = node.name or last.output[0], f"{last.output[0]}/weight"
        read = made_by[node.input[0]].input[0]
        decoded = helper.make_node(
            "DequantizeLinear", [node.input[1], scales, *node.input[3:4]], [weight], axis=1
        )
        written[last.output[0]] = [
            decoded,
            helper.make_node("MatMul", [read, weight], last.output, name=name),
        ]
        names.append(name)
    if not names:
        return model, frozenset()
    made = ModelProto()
    made.CopyFrom(model)
    wanted, kept = {value.name for value in made.graph.output}, []
    for node in reversed(model.graph.node):
        for one in reversed(written.get(node.output[0], [node])):
            if wanted.intersection(one.output):  # what stood there before is read no more
                kept.append(one)
                wanted.update(one.input)
    del made.graph.node[:]
    made.graph.node.extend(kept[::-1])
    return made, frozenset(names)


def _scaled(
    node: NodeProto, made_by: dict[str, NodeProto], readers: dict[str, list[NodeProto]], stored: set[str]
) -> tuple[NodeProto, str] | None:
    """The Mul that scales the sums of a MatMulInteger, and the scales of its weights."""
    if node.op_type != "MatMulInteger" or node.input[1] not in stored:
        return None
    quantizer = made_by.get(node.input[0])
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear":
        return None
    cast = readers.get(node.output[0], [])
    last = readers.get(cast[0].output[0], []) if [one.op_type for one in cast] == ["Cast"] else []
    if [one.op_type for one in last] != ["Mul"]:
        return None
    factor = made_by.get(next(name for name in last[0].input if name != cast[0].output[0]))
    if factor is None or factor.op_type != "Mul" or quantizer.output[1] not in factor.input:
        return None
    scales = next(name for name in factor.input if name != quantizer.output[1])
    return (last[0], scales) if scales in stored else None


def without_integer_lstms(model: ModelProto) -> ModelProto:
    """A model in which onnxruntime's DynamicQuantizeLSTM is ONNX's LSTM, with its matrices decoded; itself
    where there is none."""
    if not any(node.op_type == "DynamicQuantizeLSTM" for node in model.graph.node):
        return model
    made = ModelProto()
    made.CopyFrom(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type != "DynamicQuantizeLSTM" or not {*node.input[1:3], *node.input[8:]} <= stored.keys():
            continue
        names = []
        for place, grid in ((1, 8), (2, 10)):
            codes, scales, zeros = (stored[node.input[at]] for at in (place, grid, grid + 1))
            each = (len(codes), 1, -1)
            floats = (codes.astype(np.float32) - zeros.reshape(each)) * scales.reshape(each)
            names.append(f"{node.input[place]}/decoded")
            if names[-1] not in stored:
                stored[names[-1]] = np.ascontiguousarray(floats.transpose(0, 2, 1), dtype=np.float32)
                made.graph.initializer.append(numpy_helper.from_array(stored[names[-1]], names[-1]))
        node.op_type, node.domain = "LSTM", ""
        node.input[:] = [node.input[0], *names, *node.input[3:8]]
    return made
