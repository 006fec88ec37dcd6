"""Grids, and layers with weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from leanfront.compression.export.litert.file import Grid
from leanfront.compression.export.litert.lowering import (
    NONE,
    Landing,
    Lowering,
    attributes,
    writes,
)
from leanfront.compression.export.litert.values import Value, channels_last

SAME, VALID = schema.Padding.SAME, schema.Padding.VALID


@writes("QuantizeLinear")
def quantize(to: Lowering, node: onnx.NodeProto) -> None:
    """Onto a grid; what is on it already stays as it is."""
    value, grid = to.read(node), to.grid(node)
    if value.coded and value.grid == grid:
        to.values[node.output[0]] = value
        return
    made = Value(value.shape, value.kind, grid)
    source = to.form(value, value.layout, value.coded)
    to.file.add("QUANTIZE", [source], [to.made(made, value.layout)], schema.QuantizeOptionsT())
    to.values[node.output[0]] = made


@writes("DequantizeLinear")
def dequantize(to: Lowering, node: onnx.NodeProto) -> None:
    """A tensor on a grid stays there until somebody wants it in floats; a weight keeps its scales."""
    value = to.read(node)
    if value.constant is None:
        to.values[node.output[0]] = value
        return
    scales = to.read(node, 1).constant
    assert scales is not None
    if scales.ndim == 0:
        grid = to.grid(node)
        wide = value.constant.astype(np.int32) - (128 if value.constant.dtype == np.uint8 else 0)
        floats = ((wide - grid.zero) * np.float32(grid.scale)).astype(np.float32)
        to.values[node.output[0]] = Value(value.shape, grid=grid, constant=floats)
        return
    axis = attributes(node).get("axis", 1) % value.rank
    to.values[node.output[0]] = Value(
        value.shape, constant=value.constant, scales=scales, axis=axis, stored=value.stored
    )


def bias_of(to: Lowering, value: Value | None, count: int, zeros: NDArray[np.int64] | None) -> int:
    """A bias as the operation reads it. ``zeros``: of an integer layer, the zeros of its weight."""
    if zeros is None:
        floats = np.zeros(count, np.float32) if value is None else value.floats.reshape(-1)
        return to.file.constant(np.ascontiguousarray(floats.astype(np.float32)))
    assert value is not None
    assert value.constant is not None
    assert value.scales is not None
    return to.file.codes_of(value.constant.astype(np.int32), value.scales, zeros, 0, "int32")


def weight_of(
    to: Lowering, node: onnx.NodeProto, value: Value, array: NDArray[Any], axis: int, integer: bool
) -> tuple[int, NDArray[np.int64] | None]:
    """A weight as the operation reads it; ``array``: its values or codes in the operation's order."""
    array = np.ascontiguousarray(array)
    if value.scales is None:
        if node.name not in to.halves:
            return to.file.weight(array.astype(np.float32)), None
        with np.errstate(over="ignore"):
            held = to.file.weight(array.astype(np.float16))
        return to.emit("DEQUANTIZE", [held], array.shape, schema.DequantizeOptionsT()), None
    zeros = np.zeros(len(value.scales), dtype=np.int64)
    codes = array.astype(np.int8)
    if integer:
        return to.file.codes_of(codes, value.scales, zeros, axis, value.stored), zeros
    held = to.file.codes_of(codes, value.scales, zeros, axis, "int8")
    return to.emit("DEQUANTIZE", [held], codes.shape, schema.DequantizeOptionsT()), None


def runs_in_integers(to: Lowering, node: onnx.NodeProto) -> bool:
    """Whether a layer computes in integers: what it reads, its weights and its bias are."""
    bias = to.optional(node, 2)
    weight = to.read(node, 1)
    return (
        to.read(node).coded
        and weight.scales is not None
        and (bias is None or (bias.scales is not None and bias.constant is not None))
    )


def window(node: onnx.NodeProto, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and pads before and after, of the dimensions that a window moves along."""
    found, count = attributes(node), rank - 2
    pads = list(found.get("pads", [0] * 2 * count))
    return (
        list(found.get("strides", [1] * count)), list(found.get("dilations", [1] * count)),
        pads[:count], pads[count:],
    )  # fmt: skip


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after that padding SAME means."""
    wide = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + wide - size, 0)
    return total // 2, total - total // 2


def padding(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    before: Sequence[int], after: Sequence[int],
) -> int | None:  # fmt: skip
    """The padding that a convolution or pool does by itself; None: zeros have to be put around before."""
    if not any((*before, *after)):
        return int(VALID)
    wanted = list(zip(before, after, strict=True))
    each = zip(sizes, kernel, strides, dilations, strict=True)
    return int(SAME) if [same_pads(*one) for one in each] == wanted else None


def padded(
    to: Lowering,
    tensor: int,
    before: Sequence[int],
    after: Sequence[int],
    grid: Grid | None,
    kind: str = "float32",
) -> int:
    """Zeros around a tensor, along each of its dimensions as it lies in the file."""
    shape = to.file.tensors[tensor].shape.tolist()
    wanted = [b + size + a for b, size, a in zip(before, shape, after, strict=True)]
    made = to.make(wanted, kind, grid)
    pads = to.file.constant(np.array(list(zip(before, after, strict=True)), dtype=np.int32))
    to.file.add("PAD", [tensor, pads], [made], schema.PadOptionsT())
    return made


def image(to: Lowering, value: Value, coded: bool) -> tuple[int, list[int]]:
    """A value with channels last and two dimensions between (a signal is an image one high), an; sizes."""
    tensor = to.form(value, channels_last(value.rank), coded)
    shape = list(to.file.tensors[tensor].shape.tolist())
    if value.rank == 3:
        shape.insert(1, 1)
        tensor = to.reshaped(tensor, shape, value.kind, value.grid if coded else None)
    return tensor, shape


def put(
    to: Lowering, landing: Landing, shape: Sequence[int], op: str, inputs: Sequence[int], options: Any
) -> None:
    """Write an operation on images; ``shape``: of what it puts out, as the network has it."""
    layout = channels_last(len(shape))
    if len(shape) == 4:
        to.file.add(op, inputs, [to.result(landing, shape, layout)], options)
        return
    wide = [shape[0], 1, shape[2], shape[1]]
    made = to.make(wide, "float32", landing.grid)
    to.file.add(op, inputs, [made], options)
    tensor = to.reshaped(made, [shape[0], shape[2], shape[1]], "float32", landing.grid)
    to.values[landing.name] = Value(
        tuple(shape), grid=landing.grid, forms={(layout, landing.grid is not None): tensor}
    )


@writes("Conv")
def conv(to: Lowering, node: onnx.NodeProto) -> None:
    """A convolution, depthwise where each group reads one channel."""
    value, weight = to.read(node), to.read(node, 1)
    integer = runs_in_integers(to, node) and to.lands_on_grid(node)
    landing = to.landing(node, integer)
    strides, dilations, before, after = window(node, value.rank)
    kernel = list(weight.shape[2:])
    around = padding(value.shape[2:], kernel, strides, dilations, before, after)
    tensor, _ = image(to, value, integer)
    if value.rank == 3:
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
        before, after = [0, *before], [0, *after]
    if around is None:
        tensor = padded(to, tensor, [0, *before, 0], [0, *after, 0], value.grid if integer else None)
        around = VALID
    groups, count = attributes(node).get("group", 1), weight.shape[0]
    depthwise = groups == value.shape[1] and weight.shape[1] == 1 and groups > 1
    array = weight.constant if weight.scales is not None else weight.floats
    assert array is not None
    array = array.reshape(*array.shape[:2], *kernel)
    axes, axis = ((1, 2, 3, 0), 3) if depthwise else ((0, 2, 3, 1), 0)
    held, zeros = weight_of(to, node, weight, array.transpose(axes), axis, integer)
    bias = bias_of(to, to.optional(node, 2), count, zeros)
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding, options.fusedActivationFunction = around, landing.activation
    options.strideH, options.strideW = strides
    options.dilationHFactor, options.dilationWFactor = dilations
    if depthwise:
        options.depthMultiplier = count // groups
    op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    put(to, landing, to.shapes[node.output[0]], op, [tensor, held, bias], options)


@writes("ConvTranspose")
def transposed(to: Lowering, node: onnx.NodeProto) -> None:
    """A transposed convolution, whole, and cut where the network's is; of several groups each by itself."""
    value, weight, found = to.read(node), to.read(node, 1), attributes(node)
    groups, shape = found.get("group", 1), to.shapes[node.output[0]]
    integer = runs_in_integers(to, node) and to.lands_on_grid(node)
    landing = to.landing(node, integer)
    made = _Transposed(node, value, weight, shape)
    tensor, _ = image(to, value, integer)
    array = weight.constant if weight.scales is not None else weight.floats
    assert array is not None
    array = _spread(array.reshape(*array.shape[:2], *made.kernel), made.dilations)
    out = array.shape[1]
    each_in, wide = array.shape[0] // groups, [shape[0], *made.full]
    bias, parts = to.optional(node, 2), []
    for group in range(groups):
        piece = array[group * each_in : (group + 1) * each_in].transpose(1, 2, 3, 0)
        span = slice(group * out, (group + 1) * out)
        read = tensor if groups == 1 else _channels(to, tensor, group * each_in, each_in, value, integer)
        held, zeros = weight_of(to, node, _some(weight, span), piece, 0, integer)
        added = bias_of(to, None if bias is None else _some(bias, span, True), out, zeros)
        put_out = to.make([*wide, out], "float32", landing.grid)
        options = schema.TransposeConvOptionsT()
        options.padding, (options.strideH, options.strideW) = made.padding, made.strides
        to.file.add("TRANSPOSE_CONV", [to.numbers([*wide, out]), held, read, added], [put_out], options)
        parts.append(put_out)
    whole = parts[0] if groups == 1 else _joined(to, parts, [*wide, out * groups], landing.grid)
    _cropped(to, landing, whole, made, shape)


class _Transposed:
    """The geometry of a transposed convolution, as of an image."""

    def __init__(self, node: onnx.NodeProto, value: Value, weight: Value, shape: Sequence[int]) -> None:
        self.strides, self.dilations, self.before, _ = window(node, value.rank)
        self.kernel, sizes, wanted = list(weight.shape[2:]), list(value.shape[2:]), list(shape[2:])
        if value.rank == 3:
            self.kernel, sizes, wanted = [1, *self.kernel], [1, *sizes], [1, *wanted]
            self.strides, self.dilations, self.before = (
                [1, *self.strides], [1, *self.dilations], [0, *self.before],
            )  # fmt: skip
        self.wanted = wanted
        wide = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        same = [
            -(-n // s) == size and max((size - 1) * s + k - n, 0) // 2 == b and (size - 1) * s + k >= n
            for n, s, size, k, b in zip(wanted, self.strides, sizes, wide, self.before, strict=True)
        ]
        self.padding = SAME if all(same) else VALID
        self.full = wanted
        if not all(same):
            each = zip(sizes, self.strides, wide, wanted, self.before, strict=True)
            self.full = [max((size - 1) * s + k, b + n) for size, s, k, n, b in each]
        self.begin = [0, 0] if all(same) else self.before


def _spread(array: NDArray[Any], dilations: Sequence[int]) -> NDArray[Any]:
    """A kernel with zeros between, where it is dilated."""
    if all(one == 1 for one in dilations):
        return array
    sizes = [(k - 1) * d + 1 for k, d in zip(array.shape[2:], dilations, strict=True)]
    wide = np.zeros((*array.shape[:2], *sizes), dtype=array.dtype)
    wide[:, :, :: dilations[0], :: dilations[1]] = array
    return wide


def _some(value: Value, span: slice, of_bias: bool = False) -> Value:
    """A weight's scales, or a bias, of some output channels; all of them, where a group has its own."""
    constant_ = value.constant[span] if of_bias and value.constant is not None else value.constant
    scales = value.scales
    if scales is not None and len(scales) >= span.stop:
        scales = scales[span]
    shape = constant_.shape if constant_ is not None else value.shape
    return Value(shape, constant=constant_, scales=scales, axis=value.axis, stored=value.stored)


def _channels(to: Lowering, tensor: int, first: int, count: int, value: Value, coded: bool) -> int:
    """Some channels of an image."""
    shape = to.file.tensors[tensor].shape.tolist()
    made = to.make([*shape[:-1], count], "float32", value.grid if coded else None)
    begin, sizes = to.numbers([0] * (len(shape) - 1) + [first]), to.numbers([*shape[:-1], count])
    to.file.add("SLICE", [tensor, begin, sizes], [made], schema.SliceOptionsT())
    return made


def _joined(to: Lowering, tensors: Sequence[int], shape: Sequence[int], grid: Grid | None) -> int:
    """Channels side by side."""
    made, options = to.make(shape, "float32", grid), schema.ConcatenationOptionsT()
    options.axis = len(shape) - 1
    to.file.add("CONCATENATION", tensors, [made], options)
    return made


def _cropped(to: Lowering, landing: Landing, tensor: int, made: _Transposed, shape: Sequence[int]) -> None:
    """Cut the rows and columns off that the network's layer has not, then the activation."""
    coded = landing.grid is not None
    wide = [shape[0], *made.wanted, shape[1]]
    if made.full != made.wanted:
        cut = to.make(wide, "float32", landing.grid)
        begin, sizes = to.numbers([0, *made.begin, 0]), to.numbers(wide)
        to.file.add("SLICE", [tensor, begin, sizes], [cut], schema.SliceOptionsT())
        tensor = cut
    if landing.activation != NONE:
        op = {1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}[landing.activation]
        behind = to.make(wide, "float32", landing.grid)
        to.file.add(op, [tensor], [behind])
        tensor = behind
    layout = channels_last(len(shape))
    if len(shape) == 3:
        tensor = to.reshaped(tensor, [shape[0], shape[2], shape[1]], "float32", landing.grid)
    to.values[landing.name] = Value(tuple(shape), grid=landing.grid, forms={(layout, coded): tensor})
