"""Pools, means over dimensions, and changes of size."""

import math
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.litert.layers import VALID, image, padded, padding, put, window
from leanfront.compression.export.litert.lowering import Landing, Lowering, attributes, writes
from leanfront.compression.export.litert.values import Value, channels_last, laid

LOWEST = -3.4e38
"""Around what a maximum is taken of."""


def _flat(to: Lowering, node: onnx.NodeProto) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, and pads before and after, of two dimensions. Of a pool that rounds its size up, the
    pads after are as many as its last window reaches."""
    value, found = to.read(node), attributes(node)
    kernel = list(found["kernel_shape"])
    strides, dilations, before, after = window(node, value.rank)
    if any(one > 1 for one in dilations):
        raise DialectError("it has no pool with dilation")
    sizes = to.shapes[node.output[0]][2:]
    reach = zip(sizes, strides, kernel, value.shape[2:], before, after, strict=True)
    after = [max((n - 1) * s + k - size - b, min(a, 0)) for n, s, k, size, b, a in reach]
    if value.rank == 3:
        return [1, *kernel], [1, *strides], [0, *before], [0, *after]
    return kernel, strides, before, after


def _options(kernel: list[int], strides: list[int], around: int, activation: int) -> Any:
    options = schema.Pool2DOptionsT()
    options.padding, options.fusedActivationFunction = around, activation
    options.filterHeight, options.filterWidth = kernel
    options.strideH, options.strideW = strides
    return options


@writes("MaxPool")
def max_pool(to: Lowering, node: onnx.NodeProto) -> None:
    """The largest of each window: codes stay on their grid."""
    value = to.read(node)
    kernel, strides, before, after = _flat(to, node)
    tensor, shape = image(to, value, value.coded)
    after = [max(one, 0) for one in after]
    around = padding(shape[1:3], kernel, strides, [1, 1], before, after)
    if around is None:
        tensor = _surrounded(to, tensor, before, after, value)
        around = VALID
    landing = Landing(node.output[0], 0, value.grid)
    put(to, landing, to.shapes[node.output[0]], "MAX_POOL_2D", [tensor], _options(kernel, strides, around, 0))


def _surrounded(to: Lowering, tensor: int, before: list[int], after: list[int], value: Value) -> int:
    """The lowest value around a tensor."""
    begin, end = [0, *before, 0], [0, *after, 0]
    if value.grid is not None and value.grid.zero == -128:
        return padded(to, tensor, begin, end, value.grid)
    shape = to.file.tensors[tensor].shape.tolist()
    wanted = [b + size + a for b, size, a in zip(begin, shape, end, strict=True)]
    made = to.make(wanted, "float32", value.grid)
    pads = to.file.constant(np.array(list(zip(begin, end, strict=True)), dtype=np.int32))
    lowest = np.full(1, LOWEST, np.float32) if value.grid is None else np.full(1, -128, np.int8)
    to.file.add("PADV2", [tensor, pads, to.file.constant(lowest, value.grid)], [made], schema.PadV2OptionsT())
    return made


@writes("AveragePool")
def average_pool(to: Lowering, node: onnx.NodeProto) -> None:
    """The mean of each window. In integers as a depthwise convolution whose weights are all the same, for the
    kernel of the pool has no grid of its own for what it puts out."""
    value, found = to.read(node), attributes(node)
    kernel, strides, before, after = _flat(to, node)
    around: int | None = int(VALID)
    alike = all(one <= 0 for one in (*before, *after))  # every window has as many values
    counted = bool(found.get("count_include_pad", 0)) and not found.get("ceil_mode", 0)
    integer = value.coded and (alike or counted) and to.lands_on_grid(node)
    tensor, shape = image(to, value, integer)
    after = [max(one, 0) for one in after]
    if not alike:
        around = padding(shape[1:3], kernel, strides, [1, 1], before, after) if not counted else None
        if around is None:
            tensor = padded(to, tensor, [0, *before, 0], [0, *after, 0], value.grid if integer else None)
    wrong = around is None and not counted
    landing = to.landing(node, integer) if not wrong else Landing(node.output[0], 0, None)
    around = VALID if around is None else around
    size = to.shapes[node.output[0]]
    if integer:
        _averaged(to, landing, size, tensor, value, kernel, strides)
        return
    put(to, landing, size, "AVERAGE_POOL_2D", [tensor], _options(kernel, strides, around, landing.activation))
    if wrong:
        _corrected(to, node, shape, kernel, strides, before, after)


def _averaged(
    to: Lowering, landing: Landing, size: tuple[int, ...], tensor: int, value: Value, kernel: list[int],
    strides: list[int],
) -> None:  # fmt: skip
    channels, count = value.shape[1], math.prod(kernel)
    assert value.grid is not None
    zeros = np.zeros(channels, dtype=np.int64)
    each = np.full(channels, 1 / count, dtype=np.float32)
    codes = np.ones((1, *kernel, channels), dtype=np.int8)
    held = to.file.codes_of(codes, each, zeros, 3, "int8")
    nothing = np.zeros(channels, dtype=np.int32)
    bias = to.file.codes_of(nothing, each * np.float32(value.grid.scale), zeros, 0, "int32")
    options = schema.DepthwiseConv2DOptionsT()
    options.padding, options.fusedActivationFunction = VALID, landing.activation
    options.strideH, options.strideW = strides
    options.depthMultiplier = 1
    put(to, landing, size, "DEPTHWISE_CONV_2D", [tensor, held, bias], options)


def _corrected(
    to: Lowering, node: onnx.NodeProto, shape: list[int], kernel: list[int], strides: list[int],
    before: list[int], after: list[int],
) -> None:  # fmt: skip
    """Means of windows that hold zeros of the padding, over what is no padding."""
    found, counts = attributes(node), []
    include = bool(found.get("count_include_pad", 0))
    pads = (
        list(found.get("pads", [0] * 4)) if len(kernel) * 2 == len(found.get("pads", [])) else [0, *before]
    )[-2:]
    sizes = [
        (n + b + a - k) // s + 1
        for n, b, a, k, s in zip(shape[1:3], before, after, kernel, strides, strict=True)
    ]
    for n, b, k, s, count, end in zip(shape[1:3], before, kernel, strides, sizes, pads, strict=True):
        starts = np.arange(count) * s - b
        low, high = (-b, n + end) if include else (0, n)
        counts.append(np.minimum(starts + k, high) - np.maximum(starts, low))
    value = to.values[node.output[0]]
    factor = math.prod(kernel) / (counts[0][:, None] * counts[1][None, :])
    wide = [1, *factor.shape, 1] if value.rank == 4 else [1, factor.shape[1], 1]
    layout = channels_last(value.rank)
    scale = to.file.constant(factor.astype(np.float32).reshape(wide))
    tensor = to.form(value, layout)
    made = to.emit("MUL", [tensor, scale], to.file.tensors[tensor].shape, schema.MulOptionsT())
    to.floats(node.output[0], value.shape, layout, made)


@writes("GlobalAveragePool")
def global_average(to: Lowering, node: onnx.NodeProto) -> None:
    """The mean over all but channels."""
    _reduced(to, node, "MEAN", list(range(2, to.read(node).rank)), True)


def _axes(to: Lowering, node: onnx.NodeProto) -> list[int]:
    found, rank = attributes(node), to.read(node).rank
    axes = found.get("axes")
    if axes is None and to.optional(node, 1) is not None:
        axes = to.numbers_of(node, 1)
    if not axes:
        axes = [] if found.get("noop_with_empty_axes", 0) else list(range(rank))
    return [axis % rank for axis in axes]


@writes("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")
def reduced(to: Lowering, node: onnx.NodeProto) -> None:
    """Over some dimensions."""
    op = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}
    _reduced(to, node, op[node.op_type], _axes(to, node), bool(attributes(node).get("keepdims", 1)))


@writes("ReduceL1", "ReduceL2", "ReduceSumSquare")
def lengths(to: Lowering, node: onnx.NodeProto) -> None:
    """Sums of absolute values or squares over some dimensions, and the root of that."""
    value, layout, name = to.read(node), to.read(node).layout, node.output[0]
    x, shape = to.form(value), laid(value.shape, layout)
    if node.op_type == "ReduceL1":
        each = to.emit("ABS", [x], shape, schema.AbsOptionsT())
    else:
        each = to.emit("MUL", [x, x], shape, schema.MulOptionsT())
    to.values[f"{name}:each"] = Value(value.shape, forms={(layout, False): each})
    keep = bool(attributes(node).get("keepdims", 1))
    summed = helper.make_node("ReduceSum", [f"{name}:each"], [name])
    _reduced(to, summed, "SUM", _axes(to, node), keep)
    if node.op_type == "ReduceL2":
        found = to.values[name]
        small = laid(found.shape, found.layout)
        root = to.emit("SQRT", [to.form(found)], small)
        to.values[name] = Value(found.shape, forms={(found.layout, False): root})


def _reduced(to: Lowering, node: onnx.NodeProto, op: str, axes: list[int], keep: bool) -> None:
    value = to.read(node)
    integer = op == "MEAN" and value.coded and to.lands_on_grid(node) and bool(axes)
    following = to.follower(node.output[0])
    integer = integer and following is not None and following.op_type == "QuantizeLinear"
    layout = value.layout
    tensor = to.form(value, layout, integer)
    options = schema.ReducerOptionsT()
    options.keepDims = keep
    places = to.numbers(sorted(layout.index(axis) for axis in axes))
    shape = to.shapes[node.output[0]]
    if not keep:
        left = [dimension for dimension in layout if dimension not in axes]
        layout = tuple(sorted(left).index(dimension) for dimension in left)
    landing = to.landing(node, integer) if integer else Landing(node.output[0], 0, None)
    to.file.add(op, [tensor, places], [to.result(landing, shape, layout, value.kind)], options)


@writes("Resize")
def resized(to: Lowering, node: onnx.NodeProto) -> None:
    """To another height and width."""
    value, found = to.read(node), attributes(node)
    shape = to.shapes[node.output[0]]
    mode, way = found.get("mode", "nearest"), found.get("coordinate_transformation_mode", "half_pixel")
    nearest = mode == "nearest"
    if found.get("antialias", 0) or value.rank not in (3, 4) or value.shape[:2] != shape[:2]:
        raise DialectError("it changes the size of images alone, without antialias")
    coded = value.coded and nearest
    tensor, _ = image(to, value, coded)
    if nearest:
        options: Any = schema.ResizeNearestNeighborOptionsT()
        if found.get("nearest_mode", "round_prefer_floor") != "floor" or way != "asymmetric":
            options.halfPixelCenters = True
    else:
        options = schema.ResizeBilinearOptionsT()
        options.alignCorners = way == "align_corners"
        options.halfPixelCenters = way in ("half_pixel", "pytorch_half_pixel")
    wide = list(shape[2:]) if value.rank == 4 else [1, shape[2]]
    inputs = [tensor, to.numbers(wide)]
    landing = Landing(node.output[0], 0, value.grid if coded else None)
    op = "RESIZE_NEAREST_NEIGHBOR" if nearest else "RESIZE_BILINEAR"
    put(to, landing, shape, op, inputs, options)
