"""Linear layers and products of two tensors."""

from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.litert.file import Grid
from leanfront.compression.export.litert.layers import bias_of, weight_of
from leanfront.compression.export.litert.lowering import NONE, Lowering, attributes, writes
from leanfront.compression.export.litert.values import Value, plain
from leanfront.compression.policy.flatbuffer_size import WIDE


@writes("Gemm", "MatMul")
def product(to: Lowering, node: onnx.NodeProto) -> None:
    """A linear layer, at each position where there are several; or a product of two tensors."""
    weight = to.read(node, 1)
    if weight.constant is None or weight.rank != 2:
        tensors_multiplied(to, node)
        return
    value, found = to.read(node), attributes(node)
    array = weight.constant if weight.scales is not None else weight.floats
    assert array is not None
    if node.op_type == "MatMul":
        array, axis = array.T, 1
        last, bias = _addition(to, node)
    else:
        array, axis = (array if found.get("transB", 0) else array.T), 0 if found.get("transB", 0) else 1
        last, bias = node, to.optional(node, 2)
        if found.get("alpha", 1.0) != 1.0 or found.get("beta", 1.0) != 1.0 or found.get("transA", 0):
            raise DialectError("it has no alpha, beta or transA")
    integer = value.coded and weight.scales is not None and weight.axis == axis
    integer = integer and (bias is None or bias.scales is not None)
    on_grid = integer and to.lands_on_grid(last)
    integer = integer and (on_grid or array.size <= WIDE)
    tensor, array = _read(to, value, array, integer)
    landing = to.landing(last, on_grid)
    options, shape = schema.FullyConnectedOptionsT(), to.shapes[node.output[0]]
    options.keepNumDims, options.fusedActivationFunction = len(shape) != 2, landing.activation
    held, zeros = weight_of(to, node, weight, array, 0, integer)
    if integer and not on_grid:
        assert value.grid is not None
        assert zeros is not None
        made = _wide(to, tensor, value.grid, (held, zeros), weight, array, bias, shape, options)
        to.floats(landing.name, shape, plain(len(shape)), made)
        return
    to.file.add(
        "FULLY_CONNECTED",
        [tensor, held, bias_of(to, bias, len(array), zeros)],
        [to.result(landing, shape, plain(len(shape)))],
        options,
    )


def _addition(to: Lowering, node: onnx.NodeProto) -> tuple[onnx.NodeProto, Value | None]:
    """The addition behind a product that is its bias, if it is one."""
    following = to.follower(node.output[0])
    if following is None or following.op_type != "Add":
        return node, None
    other = next((name for name in following.input if name != node.output[0]), "")
    value = to.values.get(other)
    width = to.shapes[node.output[0]][-1]
    if value is None or value.constant is None or value.shape != (width,):
        return node, None
    to.done.add(id(following))
    return following, value


def _read(to: Lowering, value: Value, array: NDArray[Any], coded: bool) -> tuple[int, NDArray[Any]]:
    """What a linear layer reads, and its weight; what lies in a row in another order of dimensions than the
    network's stays as it lies, and the weight's inputs are put in that order."""
    source = value.flat
    if source is None or value.forms or source.layout == plain(source.rank):
        return to.form(value, plain(value.rank), coded), array
    order, rank = source.layout, source.rank
    inputs = array.reshape(len(array), *source.shape[1:])
    inputs = inputs.transpose(0, *(d for d in order if d)) if rank > 1 else inputs
    tensor = to.form(source, order, coded)
    grid = source.grid if coded else None
    return to.reshaped(tensor, value.shape, "float32", grid), inputs.reshape(array.shape)


def _wide(
    to: Lowering, tensor: int, grid: Grid, held: tuple[int, NDArray[np.int64]], weight: Value,
    array: NDArray[Any], bias: Value | None, shape: tuple[int, ...], options: Any,
) -> int:  # fmt: skip
    """An integer layer whose output stays in floats. Kernels of integers put out integers: those of 16 bits,
    on a grid that no input can leave, are floats but for a rounding of a thousandth or so of the outputs."""
    assert weight.scales is not None
    lowest, highest = -128 - grid.zero, 127 - grid.zero
    up, down = np.maximum(array, 0).sum(axis=1), np.minimum(array, 0).sum(axis=1)
    steps = weight.scales.astype(np.float64) * np.float32(grid.scale)
    offset = np.zeros(len(array)) if bias is None else bias.floats.astype(np.float64)
    ends = [(up * a + down * b) * steps + offset for a, b in ((highest, lowest), (lowest, highest))]
    reach = max(float(np.abs(end).max()) for end in ends)
    out = Grid(float(np.float32(reach / 32767)) or 1.0, 0, "int16")
    wide = to.make(to.file.tensors[tensor].shape, "int16", Grid(grid.scale, 0, "int16"))
    to.file.add("QUANTIZE", [tensor], [wide], schema.QuantizeOptionsT())
    codes = np.zeros(len(array), dtype=np.int64)
    if bias is not None:
        assert bias.constant is not None
        codes = bias.constant.astype(np.int64)
    added = to.file.codes_of(codes, steps.astype(np.float32), held[1], 0, "int64")
    made = to.make(shape, "int16", out)
    to.file.add("FULLY_CONNECTED", [wide, held[0], added], [made], options)
    return to.emit("DEQUANTIZE", [made], shape, schema.DequantizeOptionsT())


def tensors_multiplied(to: Lowering, node: onnx.NodeProto) -> None:
    """A product of two tensors, over the dimensions before the last two."""
    one, other = to.read(node), to.read(node, 1)
    found = attributes(node)
    if node.op_type == "Gemm" or min(one.rank, other.rank) < 2:
        raise DialectError("it has none of these tensors")
    integer = one.coded and other.coded and to.lands_on_grid(node)
    landing = to.landing(node, integer)
    shape = to.shapes[node.output[0]]
    rank = len(shape)
    tensors = []
    for value in (one, other):
        tensor = to.form(value, plain(value.rank), integer)
        wide = [1] * (rank - value.rank) + list(value.shape)
        tensors.append(to.reshaped(tensor, wide, value.kind, value.grid if integer else None))
    options = schema.BatchMatMulOptionsT()
    made = to.result(landing, shape, plain(rank))
    if landing.activation != NONE:
        raise DialectError("it has no activation")
    assert not found
    to.file.add("BATCH_MATMUL", tensors, [made], options)
