"""Arithmetic, activations and norms, value by value or in pieces."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.litert.lowering import (
    NONE,
    Landing,
    Lowering,
    attributes,
    writes,
)
from leanfront.compression.export.litert.values import Layout, Value, channels_last, laid, plain

_BINARY = {
    "Add": ("ADD", schema.AddOptionsT), "Sub": ("SUB", schema.SubOptionsT),
    "Mul": ("MUL", schema.MulOptionsT), "Div": ("DIV", schema.DivOptionsT),
    "Max": ("MAXIMUM", schema.MaximumMinimumOptionsT),
    "Min": ("MINIMUM", schema.MaximumMinimumOptionsT), "Pow": ("POW", schema.PowOptionsT),
    "Equal": ("EQUAL", schema.EqualOptionsT), "Less": ("LESS", schema.LessOptionsT),
    "LessOrEqual": ("LESS_EQUAL", schema.LessEqualOptionsT),
    "Greater": ("GREATER", schema.GreaterOptionsT),
    "GreaterOrEqual": ("GREATER_EQUAL", schema.GreaterEqualOptionsT),
    "And": ("LOGICAL_AND", schema.LogicalAndOptionsT), "Or": ("LOGICAL_OR", schema.LogicalOrOptionsT),
}  # fmt: skip
_INTEGER = {"Add", "Sub", "Mul"}
_FUSES = {"Add", "Sub", "Mul", "Div"}


def aligned(to: Lowering, value: Value, rank: int, layout: Layout, coded: bool) -> int:
    """An operand with as many dimensions as what comes out, in the same order."""
    if value.rank == rank:
        return to.form(value, layout, coded)
    wide = (1,) * (rank - value.rank) + value.shape
    if value.constant is not None:
        grown = Value(wide, value.kind, value.grid, constant=value.floats.reshape(wide))
        return to.form(grown, layout, coded)
    grid = value.grid if coded else None
    tensor = to.reshaped(to.form(value, plain(value.rank), coded), wide, value.kind, grid)
    return to.moved(tensor, wide, plain(rank), layout, value, coded)


def common(values: Sequence[Value], rank: int) -> Layout:
    """The order of dimensions in which most of what is read lies already; of images, rather channels last,
    of others the network's own."""
    first = channels_last(rank) if rank == 4 else plain(rank)
    held: dict[Layout, int] = {first: 0, plain(rank): 0}
    for value in values:
        if value.constant is None and value.rank == rank:
            for layout in {layout for layout, _ in value.forms}:
                held[layout] = held.get(layout, 0) + math.prod(value.shape)
    return max(held, key=lambda layout: held[layout])


@writes(*_BINARY)
def binary(to: Lowering, node: onnx.NodeProto) -> None:
    """Two tensors, value by value."""
    op, options = _BINARY[node.op_type]
    values = [to.values[name] for name in node.input]
    if len(values) != 2:
        raise DialectError(f"it has {op} of two tensors alone, not of {len(values)}")
    shape = to.shapes[node.output[0]]
    layout = common(values, len(shape))
    integer = node.op_type in _INTEGER and all(value.codable for value in values)
    integer = integer and any(value.coded for value in values) and to.lands_on_grid(node)
    fuses = node.op_type in _FUSES and (integer or values[0].kind == "float32")
    landing = to.landing(node, integer) if fuses else Landing(node.output[0], NONE, None)
    tensors = [aligned(to, value, len(shape), layout, integer) for value in values]
    made = options()
    if fuses:
        made.fusedActivationFunction = landing.activation
    kind = to.kinds.get(node.output[0], values[0].kind)
    to.file.add(op, tensors, [to.result(landing, shape, layout, kind)], made)


_UNARY: dict[str, tuple[str, Any]] = {
    "Abs": ("ABS", schema.AbsOptionsT), "Ceil": ("CEIL", None), "Cos": ("COS", schema.CosOptionsT),
    "Exp": ("EXP", schema.ExpOptionsT), "Floor": ("FLOOR", None), "Log": ("LOG", None),
    "Neg": ("NEG", schema.NegOptionsT), "Round": ("ROUND", None), "Sigmoid": ("LOGISTIC", None),
    "Sin": ("SIN", None), "Sqrt": ("SQRT", None), "Tanh": ("TANH", None), "HardSwish": ("HARD_SWISH", None),
    "Not": ("LOGICAL_NOT", schema.LogicalNotOptionsT), "Sign": ("SIGN", None),
}  # fmt: skip


@writes(*_UNARY)
def unary(to: Lowering, node: onnx.NodeProto) -> None:
    """One tensor, value by value, in floats."""
    op, options = _UNARY[node.op_type]
    alone(to, node, op, options() if options else None)


def alone(to: Lowering, node: onnx.NodeProto, op: str, options: Any = None) -> None:
    """An operation on one tensor, in the order in which that lies."""
    value = to.read(node)
    shape, layout = value.shape, value.layout
    kind = to.kinds.get(node.output[0], value.kind)
    made = to.emit(op, [to.form(value, layout)], laid(shape, layout), options, kind)
    to.values[node.output[0]] = Value(shape, kind, forms={(layout, False): made})


@writes("Relu", "Clip")
def cut(to: Lowering, node: onnx.NodeProto) -> None:
    """Values outside a range at its ends. Codes whose grid ends there are only put on that."""
    value, clip = to.read(node), to.clip(node)
    ends = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    following = to.follower(node.output[0])
    lands = following is not None and following.op_type == "QuantizeLinear"
    if lands and clip == (0.0, math.inf) and value.coded:
        assert following is not None
        if to.grid(following).zero == -128:
            to.values[node.output[0]] = value
            return
    if clip in ends:
        alone(to, node, ends[clip])
        return
    if clip is None:
        raise DialectError("its range is computed")
    tensor, layout = to.form(value), value.layout
    shape = laid(value.shape, layout)
    for op, end in (("MAXIMUM", clip[0]), ("MINIMUM", clip[1])):
        if math.isfinite(end):
            number = to.file.constant(np.array(end, dtype=value.kind))
            tensor = to.emit(op, [tensor, number], shape, schema.MaximumMinimumOptionsT(), value.kind)
    to.values[node.output[0]] = Value(value.shape, value.kind, forms={(layout, False): tensor})


@writes("LeakyRelu")
def leaky_relu(to: Lowering, node: onnx.NodeProto) -> None:
    """With its slope."""
    options = schema.LeakyReluOptionsT()
    options.alpha = attributes(node).get("alpha", 0.01)
    alone(to, node, "LEAKY_RELU", options)


@writes("Gelu")
def gelu(to: Lowering, node: onnx.NodeProto) -> None:
    """Exact, or by tanh."""
    options = schema.GeluOptionsT()
    options.approximate = attributes(node).get("approximate", "none") == "tanh"
    alone(to, node, "GELU", options)


class Formula:
    """A few operations in floats on one tensor, as it lies."""

    def __init__(self, to: Lowering, value: Value, layout: Layout | None = None) -> None:
        self.to, self.value = to, value
        self.layout = value.layout if layout is None else layout
        self.shape = list(laid(value.shape, self.layout))
        self.x = to.form(value, self.layout)

    def number(self, value: float) -> int:
        """A constant."""
        return self.to.file.constant(np.array(value, dtype=np.float32))

    def of(self, op: str, *tensors: int, options: Any = None) -> int:
        """An operation on tensors of this shape."""
        kinds = {"ADD": "Add", "SUB": "Sub", "MUL": "Mul", "DIV": "Div", "MAXIMUM": "Max", "MINIMUM": "Min"}
        if options is None and op in kinds:
            options = _BINARY[kinds[op]][1]()
        if options is None and op in ("EXP", "ABS", "NEG"):
            options = _UNARY[op.capitalize()][1]()
        return self.to.emit(op, tensors, self.shape, options)

    def done(self, node: onnx.NodeProto, tensor: int) -> None:
        """Note what came out."""
        self.to.floats(node.output[0], self.value.shape, self.layout, tensor)


@writes("HardSigmoid")
def hard_sigmoid(to: Lowering, node: onnx.NodeProto) -> None:
    """A slope between 0 and 1."""
    found, f = attributes(node), Formula(to, to.read(node))
    alpha, beta = found.get("alpha", 0.2), found.get("beta", 0.5)
    line = f.of("ADD", f.of("MUL", f.x, f.number(alpha)), f.number(beta))
    f.done(node, f.of("MINIMUM", f.of("MAXIMUM", line, f.number(0.0)), f.number(1.0)))


@writes("Elu", "Selu", "Celu")
def elu(to: Lowering, node: onnx.NodeProto) -> None:
    """Exponential below 0."""
    found, f = attributes(node), Formula(to, to.read(node))
    alpha = found.get("alpha", 1.67326319217681884765625 if node.op_type == "Selu" else 1.0)
    gamma = found.get("gamma", 1.05070102214813232421875) if node.op_type == "Selu" else 1.0
    divided = f.x if node.op_type != "Celu" else f.of("MUL", f.x, f.number(1 / alpha))
    low = f.of("MINIMUM", f.of("ELU", divided), f.number(0.0))
    low = f.of("MUL", low, f.number(alpha * gamma))
    f.done(node, f.of("ADD", f.of("MUL", f.of("RELU", f.x), f.number(gamma)), low))


def softplus_of(f: Formula) -> int:
    """The logarithm of 1 + e^x, of what is far from 0 as well."""
    small = f.of("LOG", f.of("ADD", f.of("EXP", f.of("NEG", f.of("ABS", f.x))), f.number(1.0)))
    return f.of("ADD", f.of("RELU", f.x), small)


@writes("Softplus")
def softplus(to: Lowering, node: onnx.NodeProto) -> None:
    """In pieces."""
    f = Formula(to, to.read(node))
    f.done(node, softplus_of(f))


@writes("Mish")
def mish(to: Lowering, node: onnx.NodeProto) -> None:
    """In pieces."""
    f = Formula(to, to.read(node))
    f.done(node, f.of("MUL", f.x, f.of("TANH", softplus_of(f))))


@writes("Swish")
def swish(to: Lowering, node: onnx.NodeProto) -> None:
    """x times its sigmoid."""
    f = Formula(to, to.read(node))
    scaled = f.of("MUL", f.x, f.number(attributes(node).get("alpha", 1.0)))
    f.done(node, f.of("MUL", f.x, f.of("LOGISTIC", scaled)))


@writes("Softsign")
def softsign(to: Lowering, node: onnx.NodeProto) -> None:
    """x over 1 + |x|."""
    f = Formula(to, to.read(node))
    f.done(node, f.of("DIV", f.x, f.of("ADD", f.of("ABS", f.x), f.number(1.0))))


@writes("Reciprocal")
def reciprocal(to: Lowering, node: onnx.NodeProto) -> None:
    """One over x."""
    f = Formula(to, to.read(node))
    f.done(node, f.of("DIV", f.number(1.0), f.x))


@writes("PRelu")
def prelu(to: Lowering, node: onnx.NodeProto) -> None:
    """A slope below 0 for each channel."""
    value, slope = to.read(node), to.read(node, 1)
    f = Formula(to, value)
    slopes = aligned(to, slope, value.rank, f.layout, False)
    low = f.of("MUL", f.of("MINIMUM", f.x, f.number(0.0)), slopes)
    f.done(node, f.of("ADD", f.of("RELU", f.x), low))


@writes("Softmax", "LogSoftmax")
def softmax(to: Lowering, node: onnx.NodeProto) -> None:
    """Along a dimension, which is the last in the file."""
    value = to.read(node)
    axis = attributes(node).get("axis", -1) % value.rank
    layout = value.layout
    if layout[-1] != axis:
        layout = (*(dimension for dimension in layout if dimension != axis), axis)
    options = schema.LogSoftmaxOptionsT() if node.op_type == "LogSoftmax" else schema.SoftmaxOptionsT()
    if node.op_type == "Softmax":
        options.beta = 1.0
    op = "SOFTMAX" if node.op_type == "Softmax" else "LOG_SOFTMAX"
    made = to.emit(op, [to.form(value, layout)], laid(value.shape, layout), options)
    to.floats(node.output[0], value.shape, layout, made)


@writes("Cast")
def cast(to: Lowering, node: onnx.NodeProto) -> None:
    """To another type of numbers."""
    value = to.read(node)
    wanted = helper.tensor_dtype_to_np_dtype(attributes(node)["to"]).name
    wanted = "float32" if wanted in ("float64", "float16") else wanted
    if wanted == value.kind:
        to.values[node.output[0]] = value
        return
    made = to.emit("CAST", [to.form(value)], laid(value.shape, value.layout), schema.CastOptionsT(), wanted)
    to.values[node.output[0]] = Value(value.shape, wanted, forms={(value.layout, False): made})


@writes("Where")
def where(to: Lowering, node: onnx.NodeProto) -> None:
    """One or the other, value by value."""
    values = [to.values[name] for name in node.input]
    shape = to.shapes[node.output[0]]
    layout = common(values, len(shape))
    tensors = [aligned(to, value, len(shape), layout, False) for value in values]
    made = to.emit("SELECT_V2", tensors, shape, schema.SelectV2OptionsT(), values[1].kind)
    to.values[node.output[0]] = Value(shape, values[1].kind, forms={(layout, False): made})


@writes("BatchNormalization")
def batch_norm(to: Lowering, node: onnx.NodeProto) -> None:
    """A gain and a shift for each channel."""
    value = to.read(node)
    gain, shift, mean, variance = (to.read(node, place).floats.astype(np.float64) for place in range(1, 5))
    gain = gain / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    f = Formula(to, value)
    scaled = f.of("MUL", f.x, _along(to, gain, value.rank, 1, f.layout))
    f.done(node, f.of("ADD", scaled, _along(to, shift - mean * gain, value.rank, 1, f.layout)))


def _along(to: Lowering, array: Any, rank: int, axis: int, layout: Layout) -> int:
    """A constant for each index along a dimension."""
    wide = array.astype(np.float32).reshape([-1 if d == axis else 1 for d in range(rank)])
    return to.file.constant(np.ascontiguousarray(wide.transpose(layout)))


def normed(to: Lowering, x: int, shape: Sequence[int], places: Sequence[int], epsilon: float) -> int:
    """Values around 0 with deviation 1, over dimensions as they lie."""
    few = [1 if place in places else size for place, size in enumerate(shape)]
    options = schema.ReducerOptionsT()
    options.keepDims = True
    axes = to.numbers(sorted(places))
    mean = to.emit("MEAN", [x, axes], few, options)
    apart = to.emit("SUB", [x, mean], shape, schema.SubOptionsT())
    squared = to.emit("MUL", [apart, apart], shape, schema.MulOptionsT())
    variance = to.emit("MEAN", [squared, axes], few, options)
    number = to.file.constant(np.array(epsilon, dtype=np.float32))
    more = to.emit("ADD", [variance, number], few, schema.AddOptionsT())
    return to.emit("MUL", [apart, to.emit("RSQRT", [more], few)], shape, schema.MulOptionsT())


@writes("LayerNormalization")
def layer_norm(to: Lowering, node: onnx.NodeProto) -> None:
    """Over the last dimensions."""
    value, found = to.read(node), attributes(node)
    first = found.get("axis", -1) % value.rank
    f = Formula(to, value)
    places = [f.layout.index(dimension) for dimension in range(first, value.rank)]
    made = normed(to, f.x, f.shape, places, found.get("epsilon", 1e-5))
    made = f.of("MUL", made, aligned(to, to.read(node, 1), value.rank, f.layout, False))
    if (shift := to.optional(node, 2)) is not None:
        made = f.of("ADD", made, aligned(to, shift, value.rank, f.layout, False))
    f.done(node, made)


@writes("InstanceNormalization")
def instance_norm(to: Lowering, node: onnx.NodeProto) -> None:
    """Of each channel, over its positions."""
    value, found = to.read(node), attributes(node)
    f = Formula(to, value)
    places = [f.layout.index(dimension) for dimension in range(2, value.rank)]
    made = normed(to, f.x, f.shape, places, found.get("epsilon", 1e-5))
    made = f.of("MUL", made, _along(to, to.read(node, 1).floats, value.rank, 1, f.layout))
    f.done(node, f.of("ADD", made, _along(to, to.read(node, 2).floats, value.rank, 1, f.layout)))


@writes("GroupNormalization")
def group_norm(to: Lowering, node: onnx.NodeProto) -> None:
    """Of groups of channels, over their positions."""
    value, found = to.read(node), attributes(node)
    groups, rank = found["num_groups"], value.rank
    x = to.form(value, plain(rank))
    wide = [value.shape[0], groups, math.prod(value.shape[1:]) // groups]
    grouped = to.reshaped(x, wide, "float32", None)
    made = normed(to, grouped, wide, [2], found.get("epsilon", 1e-5))
    made = to.reshaped(made, value.shape, "float32", None)
    for op, place, options in (("MUL", 1, schema.MulOptionsT()), ("ADD", 2, schema.AddOptionsT())):
        array = to.read(node, place).floats
        array = np.repeat(array, value.shape[1] // len(array))
        made = to.emit(op, [made, _along(to, array, rank, 1, plain(rank))], value.shape, options)
    to.floats(node.output[0], value.shape, plain(rank), made)
