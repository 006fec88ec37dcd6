"""What moves values and computes none: codes stay on their grid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from leanfront.compression.export.dialects import DialectError
from leanfront.compression.export.litert.layers import padded
from leanfront.compression.export.litert.lowering import Landing, Lowering, attributes, writes
from leanfront.compression.export.litert.values import Layout, Value, channels_last, laid, on_grid, plain


@writes("Identity", "Dropout")
def same(to: Lowering, node: onnx.NodeProto) -> None:
    """Another name of a value."""
    to.values[node.output[0]] = to.read(node)


def _moved(to: Lowering, name: str, value: Value, layout: Layout, tensor: int) -> None:
    """Note a value whose numbers are those of another."""
    to.values[name] = Value(to.shapes[name], value.kind, value.grid, forms={(layout, value.coded): tensor})


@writes("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(to: Lowering, node: onnx.NodeProto) -> None:
    """Other dimensions. What a linear layer reads in a row may lie in any order."""
    value, name = to.read(node), node.output[0]
    shape = to.shapes[name]
    lies = value.layout != plain(value.rank)
    if lies and value.layout[0] == 0 and len(shape) == 2 and shape[0] == value.shape[0] == 1:
        to.values[name] = Value(shape, value.kind, value.grid, flat=value)
        return
    tensor = to.form(value, plain(value.rank), value.coded)
    made = to.reshaped(tensor, shape, value.kind, value.grid)
    _moved(to, name, value, plain(len(shape)), made)


@writes("Transpose")
def transpose(to: Lowering, node: onnx.NodeProto) -> None:
    """Dimensions under other numbers: nothing is moved until somebody wants that."""
    value, name = to.read(node), node.output[0]
    order = tuple(attributes(node).get("perm") or reversed(range(value.rank)))
    if value.flat is not None and not value.forms:
        to.form(value, plain(value.rank), value.coded)
    forms = {
        (tuple(order.index(dimension) for dimension in layout), coded): tensor
        for (layout, coded), tensor in value.forms.items()
    }
    to.values[name] = Value(laid(value.shape, order), value.kind, value.grid, forms)


@writes("Concat")
def concat(to: Lowering, node: onnx.NodeProto) -> None:
    """Side by side; in integers all on the grid of what comes out."""
    values = [to.values[name] for name in node.input]
    shape = to.shapes[node.output[0]]
    axis = attributes(node)["axis"] % len(shape)
    moved = [value for value in values if value.constant is None]
    layout = moved[0].layout
    grids = {value.grid for value in moved}
    following = to.follower(node.output[0])
    lands = following is not None and following.op_type == "QuantizeLinear"
    integer = all(value.coded for value in moved) and lands
    if integer:
        landing = to.landing(node, True)
    else:
        alike = None not in grids and len(grids) == 1 and len(moved) == len(values)
        landing = Landing(node.output[0], 0, values[0].grid if alike else None)
    tensors = [_on(to, value, landing.grid, layout) for value in values]
    options = schema.ConcatenationOptionsT()
    options.axis = layout.index(axis)
    to.file.add("CONCATENATION", tensors, [to.result(landing, shape, layout, moved[0].kind)], options)


def _on(to: Lowering, value: Value, grid: Any, layout: Layout) -> int:
    """A value on a grid; ``None``: in floats."""
    if grid is None:
        return to.form(value, layout)
    if value.constant is not None:
        codes = on_grid(value.floats.transpose(layout), grid)
        return to.file.constant(np.ascontiguousarray(codes), grid)
    tensor = to.form(value, layout, True)
    if value.grid == grid:
        return tensor
    made = to.make(laid(value.shape, layout), "int8", grid)
    to.file.add("QUANTIZE", [tensor], [made], schema.QuantizeOptionsT())
    return made


@writes("Slice")
def sliced(to: Lowering, node: onnx.NodeProto) -> None:
    """A part, along some dimensions."""
    value, name = to.read(node), node.output[0]
    starts, ends = to.numbers_of(node, 1), to.numbers_of(node, 2)
    axes = to.numbers_of(node, 3) if to.optional(node, 3) else list(range(len(starts)))
    steps = to.numbers_of(node, 4) if to.optional(node, 4) else [1] * len(starts)
    begin, end, step = [0] * value.rank, list(value.shape), [1] * value.rank
    for axis, first, last, each in zip(axes, starts, ends, steps, strict=True):
        begin[axis % value.rank], end[axis % value.rank], _ = slice(first, last, each).indices(
            value.shape[axis]
        )
        step[axis % value.rank] = each
    _cut(to, name, value, begin, end, step)


def _cut(
    to: Lowering, name: str, value: Value, begin: Sequence[int], end: Sequence[int], step: Sequence[int]
) -> None:
    layout = value.layout
    tensor = to.form(value, layout, value.coded)
    made = strided(to, tensor, laid(begin, layout), laid(end, layout), laid(step, layout), value)
    to.shapes.setdefault(name, tuple(len(range(*one)) for one in zip(begin, end, step, strict=True)))
    _moved(to, name, value, layout, made)


def strided(
    to: Lowering, tensor: int, begin: Sequence[int], end: Sequence[int], step: Sequence[int], value: Value
) -> int:
    """A part of a tensor, as it lies in the file."""
    options = schema.StridedSliceOptionsT()
    shape = [len(range(*one)) for one in zip(begin, end, step, strict=True)]
    for place, (last, each) in enumerate(zip(end, step, strict=True)):
        options.endMask |= (1 << place) if last < 0 and each < 0 else 0
    made = to.make(shape, value.kind, value.grid if to.file.tensors[tensor].quantization else None)
    inputs = [tensor, to.numbers(begin), to.numbers(end), to.numbers(step)]
    to.file.add("STRIDED_SLICE", inputs, [made], options)
    return made


@writes("Split")
def split(to: Lowering, node: onnx.NodeProto) -> None:
    """Parts along a dimension, each a part of its own."""
    value = to.read(node)
    axis, place = attributes(node).get("axis", 0) % value.rank, 0
    for name in node.output:
        size = to.shapes[name][axis]
        begin, end = [0] * value.rank, list(value.shape)
        begin[axis], end[axis] = place, place + size
        place += size
        _cut(to, name, value, begin, end, [1] * value.rank)


@writes("Pad")
def pad(to: Lowering, node: onnx.NodeProto) -> None:
    """Zeros, another number, or what lies inside, around a tensor."""
    value, name, found = to.read(node), node.output[0], attributes(node)
    pads, mode = to.numbers_of(node, 1), found.get("mode", "constant")
    axes = to.numbers_of(node, 3) if to.optional(node, 3) else list(range(value.rank))
    before, after = [0] * value.rank, [0] * value.rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[len(axes) + place]
    if min(*before, *after) < 0:
        begin = [max(-one, 0) for one in before]
        end = [size - max(-one, 0) for size, one in zip(value.shape, after, strict=True)]
        inner = f"{name}:cut"
        _cut(to, inner, value, begin, end, [1] * value.rank)
        value = to.values[inner]
        before, after = [max(one, 0) for one in before], [max(one, 0) for one in after]
    layout = value.layout
    around = _number(to, node)
    coded = value.coded
    if coded and mode == "constant" and around is not None:
        assert value.grid is not None
        coded = around == value.grid.zero or (around == 0 and not _codes(to, node))
    tensor = to.form(value, layout, coded)
    first, last = laid(before, layout), laid(after, layout)
    grid = value.grid if coded else None
    if mode in ("wrap", "edge"):
        made = _looked_up(to, tensor, first, last, mode, value, coded)
    elif mode == "constant" and (coded or not around):
        made = padded(to, tensor, first, last, grid, value.kind)
    else:
        made = _other(to, tensor, first, last, mode, around, grid)
    to.values[name] = Value(to.shapes[name], value.kind, grid, forms={(layout, coded): made})


def _codes(to: Lowering, node: onnx.NodeProto) -> bool:
    """Whether what is put around is a code."""
    given = to.optional(node, 2)
    return given is not None and given.kind in ("uint8", "int8")


def _number(to: Lowering, node: onnx.NodeProto) -> float | None:
    """What is put around; a code as a signed one."""
    given = to.optional(node, 2)
    if given is None or given.constant is None:
        return 0.0
    return float(given.constant.reshape(-1)[0]) - (128 if given.kind == "uint8" else 0)


def _other(
    to: Lowering, tensor: int, before: Sequence[int], after: Sequence[int], mode: str, around: Any, grid: Any
) -> int:
    shape = to.file.tensors[tensor].shape.tolist()
    wanted = [b + size + a for b, size, a in zip(before, shape, after, strict=True)]
    pads = to.file.constant(np.array(list(zip(before, after, strict=True)), dtype=np.int32))
    made = to.make(wanted, "float32", grid)
    if mode == "constant":
        number = to.file.constant(np.full(1, around, np.float32))
        to.file.add("PADV2", [tensor, pads, number], [made], schema.PadV2OptionsT())
        return made
    options = schema.MirrorPadOptionsT()
    options.mode = schema.MirrorPadMode.REFLECT
    to.file.add("MIRROR_PAD", [tensor, pads], [made], options)
    return made


def _looked_up(
    to: Lowering,
    tensor: int,
    before: Sequence[int],
    after: Sequence[int],
    mode: str,
    value: Value,
    coded: bool,
) -> int:
    """A tensor with its ends, or its other end, around it: places looked up along each dimension."""
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        if not first and not last:
            continue
        shape = to.file.tensors[tensor].shape.tolist()
        places = np.arange(-first, shape[axis] + last)
        places = places % shape[axis] if mode == "wrap" else np.clip(places, 0, shape[axis] - 1)
        options = schema.GatherOptionsT()
        options.axis = axis
        shape[axis] = len(places)
        made = to.make(shape, value.kind, value.grid if coded else None)
        to.file.add("GATHER", [tensor, to.numbers(places.tolist())], [made], options)
        tensor = made
    return tensor


@writes("Gather")
def gather(to: Lowering, node: onnx.NodeProto) -> None:
    """Rows of a table, or places along a dimension."""
    value, places, name = to.read(node), to.read(node, 1), node.output[0]
    axis = attributes(node).get("axis", 0) % value.rank
    coded = value.coded
    if value.constant is not None:
        value = _table(to, node, value)
        coded = False
    if places.constant is not None:
        numbers = np.where(places.constant < 0, places.constant + value.shape[axis], places.constant)
        places = Value(places.shape, "int32", constant=numbers.astype(np.int32))
    layout = value.layout if places.rank < 2 else plain(value.rank)
    after = layout if places.rank else _without(layout, axis)
    after = after if places.rank < 2 else plain(len(to.shapes[name]))
    tensor = to.form(value, layout, coded)
    options = schema.GatherOptionsT()
    options.axis = layout.index(axis)
    grid = value.grid if coded else None
    made = to.make(laid(to.shapes[name], after), value.kind, grid)
    to.file.add("GATHER", [tensor, to.form(places, plain(places.rank))], [made], options)
    to.values[name] = Value(to.shapes[name], value.kind, grid, forms={(after, coded): made})


@writes("GatherND")
def gather_many(to: Lowering, node: onnx.NodeProto) -> None:
    """Parts by their places along the first dimensions."""
    if attributes(node).get("batch_dims", 0):
        raise DialectError("it has none that counts within a batch")
    value, places, name = to.read(node), to.read(node, 1), node.output[0]
    if places.constant is not None:
        places = Value(places.shape, "int32", constant=places.constant.astype(np.int32))
    tensors = [to.form(value, plain(value.rank), value.coded), to.form(places, plain(places.rank))]
    layout, shape = plain(len(to.shapes[name])), to.shapes[name]
    made = to.make(shape, value.kind, value.grid)
    to.file.add("GATHER_ND", tensors, [made], schema.GatherNdOptionsT())
    _moved(to, name, value, layout, made)


def _without(layout: Layout, axis: int) -> Layout:
    """The order of the dimensions that are left without one."""
    return tuple(dimension - (dimension > axis) for dimension in layout if dimension != axis)


def _table(to: Lowering, node: onnx.NodeProto, value: Value) -> Value:
    """What rows are looked up in; of 16 bits in halves, decoded once."""
    array = value.floats
    if node.name not in to.halves or array.dtype != np.float32:
        return Value(value.shape, value.kind, constant=array)
    held = to.file.constant(array.astype(np.float16))
    made = to.emit("DEQUANTIZE", [held], array.shape, schema.DequantizeOptionsT())
    return Value(value.shape, forms={(plain(value.rank), False): made})


@writes("DepthToSpace", "SpaceToDepth")
def shuffled(to: Lowering, node: onnx.NodeProto) -> None:
    """Channels as positions, and back. The file counts a block's positions before channels; where the network
    counts them behind (pixel shuffle), channels are put in that order first."""
    value, found, name = to.read(node), attributes(node), node.output[0]
    size, shape, layout = found["blocksize"], to.shapes[name], channels_last(value.rank)
    tensor = to.form(value, layout, value.coded)
    if node.op_type == "DepthToSpace" and found.get("mode", "DCR") == "CRD":
        order = np.arange(value.shape[1]).reshape(-1, size * size).T.reshape(-1)
        options = schema.GatherOptionsT()
        options.axis = 3
        read, tensor = tensor, to.make(laid(value.shape, layout), value.kind, value.grid)
        to.file.add("GATHER", [read, to.numbers(order.tolist())], [tensor], options)
    forward = node.op_type == "DepthToSpace"
    settings: Any = schema.DepthToSpaceOptionsT() if forward else schema.SpaceToDepthOptionsT()
    settings.blockSize = size
    made = to.make(laid(shape, layout), value.kind, value.grid)
    to.file.add("DEPTH_TO_SPACE" if forward else "SPACE_TO_DEPTH", [tensor], [made], settings)
    _moved(to, name, value, layout, made)


@writes("Expand")
def expand(to: Lowering, node: onnx.NodeProto) -> None:
    """Repeated along dimensions of 1."""
    value, name = to.read(node), node.output[0]
    shape = to.shapes[name]
    tensor = to.form(value, plain(value.rank), False)
    made = to.emit(
        "BROADCAST_TO", [tensor, to.numbers(shape)], shape, schema.BroadcastToOptionsT(), value.kind
    )
    to.values[name] = Value(shape, value.kind, forms={(plain(len(shape)), False): made})
